"""Changes of a sample on its way into the .hdf5: cells kept apart, weights for borders, another size, other classes.

They are made once for each image, and the file remembers them:
`data.prepare("dsb2018", changes=[separate_cells, WeightMap(10, 5, separation=True)])`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

from checks import InputError
from geometry.boundary import boundary_weights, find_cells, renumber, separation_weights
from imagesets.files import Sample


def separate_cells(sample: Sample) -> Sample:
    """Turn the pixels where two cells touch, corners included, into background (class 0), in label and `instances`.

    The gap is two pixels wide, one from each cell; a cell whose pixels all touch others is lost.  Raises `InputError`
    if no map `instances` numbers the cells.  Source: Ronneberger et al., 2015 (arXiv:1505.04597), section 3.

    >>> ids = np.array([[1, 1, 2, 2, 0]])
    >>> sample = separate_cells(Sample("a", np.zeros((1, 5)), ids > 0, extras={"instances": ids}))
    >>> sample.label.tolist(), sample.extras["instances"].tolist()
    ([[1, 0, 0, 1, 0]], [[1, 0, 0, 2, 0]])
    """
    if "instances" not in sample.extras:
        raise InputError(f"{sample.name}: separate_cells needs a map that numbers the cells, in a folder instances/.")
    instances, ids = sample.extras["instances"], renumber(sample.extras["instances"])
    largest = ndimage.maximum_filter(ids, 3, mode="nearest")
    smallest = ndimage.minimum_filter(np.where(ids > 0, ids, ids.max()), 3, mode="nearest")  # background does not count
    touching = (ids > 0) & (largest != smallest)
    extras = {**sample.extras, "instances": np.where(touching, 0, instances).astype(instances.dtype)}
    return replace(sample, label=np.where(touching, 0, sample.label).astype(np.uint8), extras=extras)


@dataclass(frozen=True)
class WeightMap:
    """Adds a map `weights` (H, W) float32: `boundary_weights`, or with `separation` the `separation_weights`."""

    w0: float = 5.0
    sigma: float = 2.0
    separation: bool = False

    def __call__(self, sample: Sample) -> Sample:
        numbers = sample.label.astype(np.int64)
        if self.separation:
            numbers = sample.extras["instances"] if "instances" in sample.extras else find_cells(numbers)
        weights = (separation_weights if self.separation else boundary_weights)(numbers, self.w0, self.sigma)
        return replace(sample, extras={**sample.extras, "weights": weights.astype(np.float32)})


@dataclass(frozen=True)
class Resize:
    """Stretches a sample to one size: the image by averaging and interpolation, label and maps by the nearest pixel."""

    height: int
    width: int

    def __call__(self, sample: Sample) -> Sample:
        dtype = np.float64 if sample.image.dtype == np.float64 else np.float32
        channels = torch.from_numpy(np.atleast_3d(sample.image).astype(dtype)).permute(2, 0, 1)[None]
        # antialias: all old pixels below a new one count; without it, thin stripes would come and go
        smooth = interpolate(channels, (self.height, self.width), mode="bilinear", antialias=True)
        image = smooth[0].permute(1, 2, 0).numpy().reshape(self.height, self.width, *sample.image.shape[2:])
        image = image.round() if sample.image.dtype.kind == "u" else image
        extras = {name: self._nearest(array) for name, array in sample.extras.items()}
        return replace(sample, image=image.astype(sample.image.dtype), label=self._nearest(sample.label), extras=extras)

    def _nearest(self, array: np.ndarray) -> np.ndarray:
        sides = zip((self.height, self.width), array.shape)
        return array[np.ix_(*(((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in sides))]


@dataclass(frozen=True)
class Relabel:
    """Gives classes other numbers; classes that are not named keep theirs."""

    numbers: Mapping[int, int]

    def __call__(self, sample: Sample) -> Sample:
        label = sample.label.copy()
        for old, new in self.numbers.items():
            label[sample.label == old] = new
        return replace(sample, label=label)


@dataclass(frozen=True)
class PartsByName:
    """Puts samples into training or validation by their names; samples that are not named are left out."""

    train: tuple[str, ...]
    val: tuple[str, ...] = ()

    def __call__(self, sample: Sample) -> Sample | None:
        part = "val" if sample.name in self.val else "train" if sample.name in self.train else None
        return replace(sample, part=part) if part else None


def half_of_test_validates(sample: Sample) -> Sample:
    """Let all of train and val train, and half of the test part validate: for small sets with a large test part."""
    if sample.part != "test":
        return replace(sample, part="train")
    odd = hashlib.sha256(sample.image.tobytes()).digest()[0] % 2  # so that copies of it lie in the same half
    return replace(sample, part="val" if odd else "test")
