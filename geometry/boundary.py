"""Exact distances to the borders between classes, and the weight maps made from them.

A border is the set of *cracks* between neighbouring pixels of different label.  On the lattice of half pixels cracks
are points like any other, and a Euclidean distance transform there is exact; a distance to the nearest pixel of another
class would be 0.58 pixels too long on average.  Neither the frame of the image nor an ignored region makes a border.
Labels are (H, W) integer, else `InputError`.  Ronneberger et al., 2015 (arXiv:1505.04597), equation 2; Kervadec et al.,
2021 (doi:10.1016/j.media.2020.101851); Maurer, Qi and Raghavan, 2003 (doi:10.1109/TPAMI.2003.1177156).
"""

import numpy as np
from scipy import ndimage

from checks import IGNORE_INDEX, InputError


def border_distance(label: np.ndarray) -> np.ndarray:
    """Distance in pixels from every pixel centre to the nearest border, float64 (H, W); infinite if there is none.

    >>> border_distance(np.array([[0, 0, 1, 1]])).tolist()
    [[1.5, 0.5, 0.5, 1.5]]
    """
    _check_label(label)
    cracks = find_cracks(label)
    if not cracks.any():
        return np.full(label.shape, np.inf)
    # scipy's own distances would be worked out, slowly, at four times as many points as are pixels
    nearest = ndimage.distance_transform_edt(~cracks, return_distances=False, return_indices=True)[:, 1::2, 1::2]
    H, W = label.shape
    down, right = nearest[0] - np.arange(1, 2 * H, 2)[:, None], nearest[1] - np.arange(1, 2 * W, 2)
    return np.sqrt(down * down + right * right) / 2


def signed_distance(label: np.ndarray, num_classes: int = 2) -> np.ndarray:
    """Signed distance to the border of each class against the rest: −d inside of the class, +d outside.

    float32 (K, H, W), in pixels, φ of Kervadec et al.; 0 where the label is ignored, and for a class without a border.
    """
    _check_label(label)
    ignored, signed = label == IGNORE_INDEX, np.zeros((num_classes, *label.shape), np.float32)
    for number in range(num_classes):
        inside = label == number
        distance = border_distance(np.where(ignored, IGNORE_INDEX, inside))
        if np.isfinite(distance).any():
            signed[number] = np.where(ignored, 0, np.where(inside, -distance, distance))
    return signed


def boundary_weights(
    label: np.ndarray, w0: float = 5.0, sigma: float = 2.0, *, class_weight: np.ndarray | None = None
) -> np.ndarray:
    """Weight of each pixel by its distance d to the nearest border: w_class + w0·exp(−d² / 2σ²), scaled to mean 1.

    w0 > 0 stresses the border: touching objects are kept apart.  −1 ≤ w0 < 0 forgives it, where the label depends on
    the drawing hand and on the pixel grid.  `sigma` is in pixels, `class_weight` (K,) is 1 by default.  Of the float32
    (H, W) ignored pixels have weight 0 and do not count for the mean; a mask of a single class has weight 1.

    >>> [round(float(w), 2) for w in boundary_weights(np.array([[0, 0, 1, 1]]), w0=4.0, sigma=0.5)[0]]
    [0.47, 1.53, 1.53, 0.47]
    """
    return _of_mean_one(label, class_weight, _bump(border_distance(label), w0, sigma))


def separation_weights(
    instances: np.ndarray, w0: float = 10.0, sigma: float = 5.0, *, class_weight: np.ndarray | None = None
) -> np.ndarray:
    """The weights of the U-Net paper: w_class + w0·exp(−(d₁ + d₂)² / 2σ²) on the background, scaled to mean 1.

    d₁ and d₂ are the distances to the border of the nearest and second nearest *cell*, so only narrow gaps weigh much.
    `instances` (H, W): 0 background (ignored, too), 1 … n cells, class 1.  The rest is as in `boundary_weights`.
    """
    _check_label(instances)
    instances = renumber(instances)
    nearest, second = _two_distances(instances, reach=4 * sigma)
    gap = np.where(instances == 0, _bump(nearest + second, w0, sigma), 0)
    return _of_mean_one(np.minimum(instances, 1), class_weight, gap)


def find_cells(label: np.ndarray) -> np.ndarray:
    """Number the objects of a mask as instances, int64 (H, W): 8-connected pixels of one class (not 0, not ignored)."""
    _check_label(label)
    cells, total = np.zeros(label.shape, np.int64), 0
    for number in np.unique(label[(label > 0) & (label != IGNORE_INDEX)]):
        parts, count = ndimage.label(label == number, structure=np.ones((3, 3)))
        cells += np.where(parts > 0, parts + total, 0)
        total += count
    return cells


def renumber(instances: np.ndarray) -> np.ndarray:
    """Number the objects of an instance map anew, 1 … n in the order of their numbers, which may have any size."""
    if instances.min(initial=0) < 0:
        raise InputError("An instance map holds a negative number; expected 0 (background) and numbers > 0 (objects).")
    numbers = np.unique(np.append(instances.dtype.type(0), instances), return_inverse=True)[1]  # background is 0
    return numbers[1:].reshape(instances.shape)


def find_cracks(label: np.ndarray) -> np.ndarray:
    """Where the cracks lie on the half-pixel lattice, bool (2H+1, 2W+1); pixel (i, j) is its point (2i+1, 2j+1)."""
    (H, W), counts = label.shape, label != IGNORE_INDEX
    cracks = np.zeros((2 * H + 1, 2 * W + 1), dtype=bool)
    vertical = (label[:, 1:] != label[:, :-1]) & counts[:, 1:] & counts[:, :-1]
    horizontal = (label[1:] != label[:-1]) & counts[1:] & counts[:-1]
    for end in (0, 1, 2):  # a crack is one pixel long: its middle and both ends
        cracks[end : end + 2 * H : 2, 2:-1:2] |= vertical
        cracks[2:-1:2, end : end + 2 * W : 2] |= horizontal
    return cracks


def _two_distances(instances: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the nearest and second nearest cell's border, infinite beyond `reach`: each in its widened box."""
    nearest, second = np.full(instances.shape, np.inf), np.full(instances.shape, np.inf)
    margin = int(np.ceil(reach)) + 1
    for number, box in enumerate(ndimage.find_objects(instances), start=1):  # renumbered: none is missing
        around = tuple(slice(max(s.start - margin, 0), s.stop + margin) for s in box)
        distance = border_distance((instances[around] == number).astype(np.uint8))
        distance[distance > reach] = np.inf
        second[around] = np.minimum(second[around], np.maximum(nearest[around], distance))
        nearest[around] = np.minimum(nearest[around], distance)
    return nearest, second


def _of_mean_one(label: np.ndarray, class_weight: np.ndarray | None, bump: np.ndarray) -> np.ndarray:
    """w_class + bump over their mean; ignored pixels have 0 and do not count."""
    counts, weights = label != IGNORE_INDEX, 1 + bump
    if class_weight is not None:
        by_class, label = np.asarray(class_weight, dtype=float), np.where(counts, label, 0)
        fits = by_class.ndim == 1 and label.max(initial=0) < by_class.size
        if not fits or not 0 <= by_class.min() <= by_class.max() < np.inf:
            raise InputError(f"class_weight is {class_weight}; expected a finite number ≥ 0 for each class of label.")
        weights = by_class[label] + bump
    mean = weights[counts].mean() if counts.any() else 0.0
    return np.where(counts, weights / mean if mean > 0 else 1.0, 0.0).astype(np.float32)


def _bump(distance: np.ndarray, w0: float, sigma: float) -> np.ndarray:
    if not (w0 >= -1 and sigma > 0):
        raise InputError(f"w0={w0}, sigma={sigma}; expected w0 ≥ −1 and sigma > 0 pixels.")
    return w0 * np.exp(distance**2 / (-2 * sigma**2))


def _check_label(label: np.ndarray) -> None:
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise InputError(f"label has shape {label.shape} and dtype {label.dtype}; expected (H, W) integers.")
