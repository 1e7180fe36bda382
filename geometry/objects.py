"""From label maps to objects: masks of one class, connected components, and the overlaps of two sets of objects.

An *instance map* is (H, W) integer: 0 is background, every other number is one object.  Its numbers are only names.
All that the metrics of objects need to know is how many pixels each predicted object shares with each true object.
This table is computed once for an image and handed to each metric.

Ignored pixels (label 255) are background in truth and in prediction, so they can be neither right nor wrong.  Only
class maps have ignored pixels: in an instance map 255 is an object like any other.

`Counts` is the base of all results: counts of images add up, and ratios are read off the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from checks import IGNORE_INDEX, InputError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Self = TypeVar("Self", bound="Counts")


class Counts:
    """Numbers of one image that add up over a data set, with + or with `sum(list_of_counts)`.

    The fields named in `settings` (such as a threshold) are not added.  They must be equal, else `InputError`.
    """

    settings: ClassVar[tuple[str, ...]] = ()

    def __add__(self: Self, other: Self) -> Self:
        """The counts of both together."""
        if not isinstance(other, type(self)):
            return NotImplemented
        values = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        for name in self.settings:
            if values[name][0] != values[name][1]:
                raise InputError(
                    f"{type(self).__name__}: {name} is {values[name][0]} in one and {values[name][1]} in the other.\n"
                    "Counts add up only if all images were counted with the same settings."
                )
        return type(self)(**{name: a if name in self.settings else a + b for name, (a, b) in values.items()})

    def __radd__(self: Self, other: int) -> Self:
        """Let `sum` start at its 0."""
        return self if other == 0 else NotImplemented


def ratio(part: float, whole: float, *, absent: bool) -> float:
    """part / whole; NaN where `absent` (nothing in truth and nothing predicted), else 0 where the whole is 0.

    >>> ratio(1, 2, absent=False), ratio(0, 0, absent=False), ratio(0, 0, absent=True)
    (0.5, 0.0, nan)
    """
    if absent:
        return float("nan")
    return float(part / whole) if whole else 0.0


def harmonic_mean(a: float, b: float) -> float:
    """2·a·b / (a + b); 0 where both are 0, NaN where one is NaN.

    >>> harmonic_mean(1.0, 0.5), harmonic_mean(0.0, 0.0)
    (0.6666666666666666, 0.0)
    """
    return 2 * a * b / (a + b) if a + b != 0 else 0.0


def check_maps(pred: ArrayLike, target: ArrayLike) -> tuple[NDArray, NDArray]:
    """Both label maps as arrays; raises `InputError` unless they are integer or boolean and of one shape (H, W)."""
    maps = np.asarray(pred), np.asarray(target)
    for name, labels in zip(("pred", "target"), maps):
        if labels.ndim != 2 or labels.dtype.kind not in "iub":
            raise InputError(
                f"{name} has shape {labels.shape} and dtype {labels.dtype}; expected integers (H, W), one image.\n"
                "Take the labels of one image from a batch with labels[i].numpy()."
            )
    if maps[0].shape != maps[1].shape:
        raise InputError(f"pred has shape {maps[0].shape}, target {maps[1].shape}; expected one shape (H, W).")
    return maps


def class_masks(pred: ArrayLike, target: ArrayLike, of_class: int = 1) -> tuple[Bools, Bools]:
    """Where the class is predicted and where it is true, two boolean (H, W); ignored pixels are in neither.

    Raises `InputError` for maps that are not integers (H, W) of one shape, and for `of_class` 255.

    >>> [mask.tolist() for mask in class_masks(np.array([[1, 1, 0]]), np.array([[1, 255, 1]]))]
    [[[True, False, False]], [[True, False, True]]]
    """
    pred, target = check_maps(pred, target)
    if of_class == IGNORE_INDEX:
        raise InputError(f"of_class is {of_class}, the label of ignored pixels; expected the number of a class.")
    return (pred == of_class) & (target != IGNORE_INDEX), target == of_class


def label_objects(mask: ArrayLike, *, connectivity: int = 8) -> Ints:
    """Number the connected components of a mask: (H, W), non-zero = object → instance map (H, W) int64.

    With `connectivity` 8 pixels that share only a corner are one object, with 4 they are two.  Touching objects
    become one.  Raises `InputError` for other shapes and connectivities.

    >>> mask = np.array([[1, 0], [0, 1]])
    >>> label_objects(mask, connectivity=4).tolist(), label_objects(mask, connectivity=8).tolist()
    ([[1, 0], [0, 2]], [[1, 0], [0, 1]])
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or connectivity not in (4, 8):
        raise InputError(f"mask has shape {mask.shape}, connectivity is {connectivity!r}; expected (H, W) and 4 or 8.")
    neighbours = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    return ndimage.label(mask != 0, neighbours)[0].astype(np.int64)


def class_objects(pred: ArrayLike, target: ArrayLike, of_class: int = 1, *, connectivity: int = 8) -> tuple[Ints, Ints]:
    """The components of one class in two class maps (H, W), as two instance maps; ignored pixels are background.

    >>> [objects.tolist() for objects in class_objects(np.array([[1, 1, 1]]), np.array([[1, 0, 1]]))]
    [[[1, 1, 1]], [[1, 0, 2]]]
    """
    in_pred, in_target = class_masks(pred, target, of_class)
    return label_objects(in_pred, connectivity=connectivity), label_objects(in_target, connectivity=connectivity)


@dataclass(frozen=True)
class Overlaps:
    """How P predicted and T true objects share the pixels of one image.

    Predicted object `pred[n]` and true object `target[n]` share `pixels[n]` > 0 pixels; all (N,) int64.  Objects
    have the numbers 1 … P and 1 … T in the order of their labels, 0 is background.  `pred_size` (P + 1,) and
    `target_size` (T + 1,) are their sizes in pixels.
    """

    pred: Ints
    target: Ints
    pixels: Ints
    pred_size: Ints
    target_size: Ints

    def ious(self) -> tuple[Ints, Ints, NDArray[np.float64]]:
        """Predicted object, true object and IoU = |P ∩ G| / |P ∪ G| of all pairs of objects that share a pixel."""
        both = (self.pred > 0) & (self.target > 0)
        pred, target, shared = self.pred[both], self.target[both], self.pixels[both]
        return pred, target, shared / (self.pred_size[pred] + self.target_size[target] - shared)


def overlaps(pred: ArrayLike, target: ArrayLike) -> Overlaps:
    """Count the pixels n_ij that predicted object j and true object i share.

    `pred` and `target` are instance maps (H, W), integer ≥ 0 or boolean.  Raises `InputError` for others.

    >>> table = overlaps(np.array([[7, 7, 0]]), np.array([[3, 5, 5]]))
    >>> table.pred.tolist(), table.target.tolist(), table.pixels.tolist()
    ([1, 0, 1], [1, 2, 2], [1, 1, 1])
    """
    maps = [labels.ravel().astype(np.int64) for labels in check_maps(pred, target)]
    if any(labels.min(initial=0) < 0 for labels in maps):
        raise InputError("An instance map holds a negative number; expected 0 (background) and numbers > 0 (objects).")
    # Cut into runs in which neither label changes: in pictures of cells ten times fewer items to sort.
    changes = (maps[0][1:] != maps[0][:-1]) | (maps[1][1:] != maps[1][:-1])
    start = np.flatnonzero(np.append(maps[0].size > 0, changes))
    length = np.diff(start, append=maps[0].size)
    (pred_run, P), (target_run, T) = (_renumber(labels[start]) for labels in maps)
    key, pair = np.unique(target_run * (P + 1) + pred_run, return_inverse=True)
    target_of, pred_of = np.divmod(key, P + 1)
    return Overlaps(
        pred=pred_of,
        target=target_of,
        pixels=_sums(pair, length, key.size),
        pred_size=_sums(pred_run, length, P + 1),
        target_size=_sums(target_run, length, T + 1),
    )


def _renumber(labels: Ints) -> tuple[Ints, int]:
    """Labels > 0 become 1 … n, and 0 stays 0; with n."""
    names, number = np.unique(np.append(0, labels), return_inverse=True)
    return number[1:], names.size - 1


def _sums(index: Ints, values: Ints, size: int) -> Ints:
    return np.bincount(index, values, size).astype(np.int64)  # sums of float64 are exact up to 2⁵³ pixels
