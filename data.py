"""Serve the samples of a normalised .hdf5 as batches, each random draw following from (seed, epoch, index) alone.

`prepare` makes the file (`read_folder` → `build_hdf5` → `normalise_hdf5`) whenever settings or source files change.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from checks import IGNORE_INDEX, InputError
from imagesets.files import PARTS, LabelMap, Sample, files_in
from imagesets.hdf5 import Damaged, build_hdf5, normalise_hdf5, open_hdf5
from imagesets.layouts import read_folder, recognise
from imagesets.real import SOURCES, locate, read_dataset
from imagesets.scenes import write_pets, write_roads, write_streets
from imagesets.yeast import write_yeast
from training.checkpoint import identity

BUILT_IN: dict[str, Callable[[Path], Path]] = {"synthetic_yeast": write_yeast, "synthetic_streets": write_streets}
BUILT_IN |= {"synthetic_roads": write_roads, "synthetic_pets": write_pets}
NAMES = (*BUILT_IN, *SOURCES)
NUM_CLASSES = dict(zip(BUILT_IN, (2, 6, 2, 3))) | {name: source.num_classes for name, source in SOURCES.items()}


class _Arrays(list[list[np.ndarray]]):
    """All arrays of one part, one list a sample; unlike a plain list, it may be referenced weakly."""


# All datasets of one part of one file share one copy, which is dropped with the last of them
_SHARED: WeakValueDictionary[tuple[Any, ...], _Arrays] = WeakValueDictionary()


class SegmentationDataset(Dataset[tuple[Tensor, ...]]):
    """One part of a normalised .hdf5: items (image float32 (C, H, W), target int64 (H, W), *maps (H, W)).

    `crop` cuts a random square of that side; a smaller image is padded (mirrored; target 255, maps 0).  Then
    `transform`, a `BasicTransform2D`, is called with image, label and `maps`, further groups of the file.  Both draw
    from `default_rng([seed, epoch, index])`; an index is an integer (epoch 0) or a pair (epoch, index).  Has `names`,
    `shapes`, `parts` {part: number of samples}, `num_classes`, `channels`, `mean`, `std`, `fingerprint` of the content.
    """

    determined_by = ("fingerprint", "part", "crop", "maps", "transform", "seed")  # for `training.checkpoint.identity`

    def __init__(
        self, path: str | Path, part: str, *, crop: int | None = None, transform: Any = None,
        maps: Sequence[str] = (), seed: int = 0,
    ) -> None:  # fmt: skip
        self.path, self.part, self.maps = Path(path), part, tuple(maps)
        self.crop, self.transform, self.seed = crop, transform, seed
        if part != "train" and (crop or getattr(transform, "is_random", transform is not None)):
            raise InputError(f"The part {part!r} must have no random part: leave out crop and random transforms.")
        with open_hdf5(self.path) as file:
            if not file.attrs["normalised"]:
                raise InputError(f"{path} is not normalised; use the file that normalise_hdf5 makes of it.")
            part_of = {key: str(file["image"][key].attrs["part"]) for key in sorted(file["image"])}
            self.parts = {name: list(part_of.values()).count(name) for name in PARTS}
            keys = [key for key in part_of if part_of[key] == part]
            if not keys:
                raise InputError(f"{path} has no sample in the part {part!r}; it has {self.parts}.")
            self.names = [str(file["image"][key].attrs["name"]) for key in keys]
            self.shapes: list[tuple[int, int]] = [file["label"][key].shape for key in keys]
            self.num_classes, self.channels = int(file.attrs["num_classes"]), len(file.attrs["mean"])
            self.mean, self.std = np.array(file.attrs["mean"]), np.array(file.attrs["std"])
            self.fingerprint = str(file.attrs["contents"])
            place = (self.path.resolve(), self.fingerprint, part, self.maps)
            groups = [file[name] for name in ("image", "label", *maps)]
            self._arrays = _SHARED.get(place) or _Arrays([group[key][()] for group in groups] for key in keys)
            _SHARED[place] = self._arrays
        for array in (array for arrays in self._arrays for array in arrays):  # no dataset spoils the data of another
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, ...]:
        epoch, index = index if isinstance(index, tuple) else (0, index)
        index = range(len(self))[index]  # raises IndexError behind the end, as a loop over a sequence needs
        rng = np.random.default_rng([self.seed, epoch, index])
        arrays = self._arrays[index] if self.crop is None else _cropped(self._arrays[index], self.crop, rng)
        if self.transform is not None:
            arrays = self.transform(*arrays, rng=rng)
        return tuple(_tensor(array) for array in arrays)


def _cropped(arrays: Sequence[np.ndarray], crop: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One random square of each array (…, H, W); what is too small is padded below and on the right."""
    image, label, *maps = arrays
    missing = [(0, max(crop - side, 0)) for side in label.shape]
    if missing != [(0, 0), (0, 0)]:
        image = np.pad(image, ((0, 0), *missing), mode="reflect")  # a side of one pixel is repeated
        label, maps = np.pad(label, missing, constant_values=IGNORE_INDEX), [np.pad(array, missing) for array in maps]
    top, left = rng.integers(0, [side - crop + 1 for side in label.shape])
    return [array[..., top : top + crop, left : left + crop] for array in (image, label, *maps)]


def _tensor(array: np.ndarray | Tensor) -> Tensor:
    """Float → float32, integer → int64, as a copy: what is done to it does not reach the data in memory."""
    if isinstance(array, Tensor):
        return array
    dtype = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of pairs (epoch, index) for a `SegmentationDataset`; their order depends on (seed, epoch) only.

    Without a crop, only samples of one shape share a batch.  With `shuffle`, the samples of each shape and then the
    batches are shuffled; a last batch of one sample is left out if its shape fills other batches, because BatchNorm
    cannot learn from one sample: `dropped` counts them.  With `repeats`, an epoch draws every sample so often.
    """

    determined_by = ("batch_size", "shuffle", "seed", "repeats")  # and by the data set, which the loader has too

    def __init__(
        self, dataset: SegmentationDataset, batch_size: int, shuffle: bool = False, seed: int = 0, repeats: int = 1
    ) -> None:
        self.batch_size, self.shuffle, self.seed, self.repeats, self.epoch = batch_size, shuffle, seed, repeats, 0
        shapes = dataset.shapes if dataset.crop is None else [(dataset.crop, dataset.crop)] * len(dataset)
        draws = [(time, i) for time in range(repeats) for i in range(len(shapes))]
        self._groups = [[draw for draw in draws if shapes[draw[1]] == one] for one in sorted(set(shapes))]
        self._used = [n - (shuffle and n > batch_size and n % batch_size == 1) for n in map(len, self._groups)]
        self.dropped = len(draws) - sum(self._used)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-used // self.batch_size) for used in self._used)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        batches: list[list[tuple[int, int]]] = []
        for group, used in zip(self._groups, self._used):
            order = [group[i] for i in rng.permutation(len(group))[:used]] if self.shuffle else group
            batches += [order[i : i + self.batch_size] for i in range(0, used, self.batch_size)]
        for number in rng.permutation(len(batches)) if self.shuffle else range(len(batches)):
            yield [(self.epoch * self.repeats + time, index) for time, index in batches[number]]


def make_loader(
    dataset: SegmentationDataset, batch_size: int, *, shuffle: bool = False, seed: int = 0, repeats: int = 1
) -> DataLoader[tuple[Tensor, ...]]:
    """Batches [images (B, C, H, W), targets, *maps (B, H, W)]; before a pass call `loader.batch_sampler.set_epoch`."""
    batches = EpochBatches(dataset, batch_size, shuffle, seed, repeats)
    generator = torch.Generator().manual_seed(seed)  # else each pass would advance torch's global one
    return DataLoader(dataset, batch_sampler=batches, pin_memory=torch.cuda.is_available(), generator=generator)


def prepare(
    source: str | Path, data_dir: str | Path = Path("data"), *, num_classes: int | None = None, seed: int = 0,
    label_map: LabelMap | None = None, changes: Sequence[Callable[[Sample], Sample | None]] = (),
    standardise: bool = False, say: Callable[[str], object] = print,
) -> Path:  # fmt: skip
    """Return the path of the normalised .hdf5 of `source`; build it first if it must be.

    `source` is one of `NAMES` or a folder of a usual layout (`read_folder`), which says its number of classes.  Files
    in `data_dir` are used again if the settings, the code of changes and reader (`training.checkpoint.identity`), and
    names, sizes and times of the source files are the same.  `changes`, as `[separate_cells, WeightMap(5, 2)]`, are
    applied to every sample in turn; one that returns None leaves it out.  Images are normalised by mean and deviation
    of the training part, with `standardise` each by its own.  A file that is not ours is never replaced.
    """
    source = str(source)
    folder = source_folder(source, Path(data_dir), say)
    read = partial(read_dataset, source) if source in SOURCES else partial(read_folder, label_map=label_map)
    num_classes = NUM_CLASSES.get(source) if num_classes is None else num_classes
    code = identity(read=read, build=[build_hdf5, normalise_hdf5], changes=list(changes))
    state = [(str(path.relative_to(folder)), (s := path.stat()).st_size, s.st_mtime_ns) for path in files_in(folder)]
    made_by = _sha256([code, num_classes, seed, state])
    # A folder of yours is known by its place: two may have one name, or that of a data set
    name = source if source in NAMES else f"{folder.resolve().name[:40]}_{_sha256(folder.resolve())[:8]}"
    known = {key: text for key, text in identity(changes=list(changes)).items() if not text.startswith("unknown")}
    name += f"_{_sha256(known)[:8]}" if changes else ""
    plain = Path(data_dir, f"{name}.hdf5")
    normalised = plain.with_stem(f"{name}_{'standardised' if standardise else 'normalised'}")
    if not _is_current(plain, made_by):
        line = f"Building {plain}: it is missing or damaged, or settings, code or files have changed."
        if num_classes is None or source not in NAMES:
            layout = recognise(folder)
            num_classes = layout.num_classes(label_map) if num_classes is None else num_classes
            line += f"\n{layout}; {num_classes} classes"
        say(line)
        samples = read(folder)
        for change in changes:
            samples = filter(None, map(change, samples))
        build_hdf5(samples, plain, num_classes=num_classes, seed=seed, source=made_by, say=say)
    if not _is_current(normalised, made_by):
        normalise_hdf5(plain, normalised, standardise=standardise)
    return normalised


def source_folder(source: str | Path, data_dir: Path = Path("data"), say: Callable[[str], object] = print) -> Path:
    """The folder that holds the files of `source`: drawn, fetched, or the folder itself."""
    source = str(source)
    if source in BUILT_IN:
        return BUILT_IN[source](data_dir / source)
    if source in SOURCES:
        return locate(source, data_dir, say=say)
    if Path(source).is_dir():
        return Path(source)
    raise InputError(f"{source!r} is neither a folder nor a known data set;\nknown are {', '.join(NAMES)}.")


def _sha256(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()


def _is_current(path: Path, made_by: str) -> bool:
    """Whether the file need not be built; an `InputError` if it cannot be read, or is not of this course."""
    with contextlib.suppress(Damaged), open_hdf5(path) as file:
        return bool(file.attrs["source"] == made_by)
    return False
