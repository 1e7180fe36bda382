"""Metrics of borders: how far are the predicted borders from the true ones?

Pixel metrics hardly see a border that is two pixels off: a big object has few border pixels, whatever they look like.
Here only borders count.  A border is made of *cracks*, the sides between pixels of different label (see `boundary`),
so no pixel must be called "the border", and a perfect map of a one-pixel object has a border too.  The distances are
exact, and a border moved by one pixel is at distance 1.

As in `boundary`, the frame of the image is no border and ignored pixels make none.

Counts first, ratios after: lengths of images add up.  The absent-object rule: no border in truth and none predicted has
no score (NaN) and stays out of the mean.  A border in one of the two only scores 0.

Sources: boundary F1, Csurka et al., 2013 (doi:10.5244/C.27.32); normalised surface distance, Nikolov et al., 2021
(doi:10.2196/26151); pitfalls of both and of Hausdorff distances, Reinke et al., 2024 (doi:10.1038/s41592-023-02150-0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from checks import IGNORE_INDEX, InputError
from geometry.boundary import find_cracks  # one definition of a border for weights and for metrics
from geometry.objects import Counts, check_maps, class_masks, harmonic_mean, ratio

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BoundaryCounts(Counts):
    """Lengths of borders in pixels: all, and the part within `tolerance` pixels of the other's border."""

    settings: ClassVar[tuple[str, ...]] = ("tolerance",)
    tolerance: float
    pred_near: int
    pred_length: int
    target_near: int
    target_length: int

    @property
    def precision(self) -> float:
        """The share of the predicted border that is near to a true one."""
        return ratio(self.pred_near, self.pred_length, absent=self._absent)

    @property
    def recall(self) -> float:
        """The share of the true border that is near to a predicted one."""
        return ratio(self.target_near, self.target_length, absent=self._absent)

    @property
    def f1(self) -> float:
        """Boundary F1 score 2·precision·recall / (precision + recall)."""
        return harmonic_mean(self.precision, self.recall)

    @property
    def surface_dice(self) -> float:
        """Normalised surface distance: the share of both borders together that is near to the other one."""
        near, length = self.pred_near + self.target_near, self.pred_length + self.target_length
        return ratio(near, length, absent=self._absent)

    @property
    def _absent(self) -> bool:
        return self.pred_length + self.target_length == 0


@dataclass(frozen=True)
class BoundaryDistances:
    """Distance in pixels from the middle of each crack to the border of the other map.

    `pred` (N,) is measured from the predicted cracks to the true border, `target` (M,) the other way round.  A crack
    is one pixel long.  Distances are infinite where the other map has no border.
    """

    pred: Floats
    target: Floats

    def within(self, tolerance: float) -> BoundaryCounts:
        """Count the lengths that lie within `tolerance` ≥ 0 pixels of the other's border, the limit included."""
        if not 0 <= tolerance < np.inf:
            raise InputError(f"tolerance is {tolerance}; expected a finite number ≥ 0, in pixels.")
        pred, target = (int(np.count_nonzero(distance <= tolerance)) for distance in (self.pred, self.target))
        return BoundaryCounts(tolerance, pred, self.pred.size, target, self.target.size)

    def hausdorff(self, percentile: float = 95.0) -> float:
        """Hausdorff distance: the larger of the two directed percentiles, in pixels; 100 gives the maximum.

        NaN where neither map has a border, infinite where only one has: such images are reported apart, since no
        mean holds them.  Percentiles are interpolated linearly, as numpy does.
        """
        if not 0 <= percentile <= 100:
            raise InputError(f"percentile is {percentile}; expected a number from 0 to 100.")
        if not self.pred.size or not self.target.size:
            return float("inf" if self.pred.size or self.target.size else "nan")
        return float(max(np.percentile(self.pred, percentile), np.percentile(self.target, percentile)))


def boundary_distances(pred: ArrayLike, target: ArrayLike, of_class: int | None = None) -> BoundaryDistances:
    """Distances between the borders in a predicted and a true label map.

    Args:
        pred: (H, W) integer or boolean.
        target: (H, W) likewise; where it is 255, and on the frame of the image, there is no border in either map.
        of_class: the border of this class against the rest; by default all borders between different labels, where
            each may match any other.  That is also the setting for instance maps (in which no object is 255).

    Raises:
        InputError: if the maps are not integers (H, W) of one shape.

    >>> distances = boundary_distances(np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]]))  # one pixel off
    >>> distances.hausdorff(), distances.within(0.5).f1, distances.within(1).f1
    (1.0, 0.0, 1.0)
    """
    pred, target = check_maps(pred, target)
    ignored = target == IGNORE_INDEX
    maps = (pred, target) if of_class is None else class_masks(pred, target, of_class)
    in_pred, in_target = (find_cracks(np.where(ignored, IGNORE_INDEX, labels.astype(np.int64))) for labels in maps)
    return BoundaryDistances(_middles_to(in_pred, in_target), _middles_to(in_target, in_pred))


def _middles_to(cracks: NDArray[np.bool_], others: NDArray[np.bool_]) -> Floats:
    """Distance of the middle of each crack to the other cracks.

    The nearest point of a crack is its middle or an end, and all of these are points of the half-pixel lattice, so the
    distances are exact.  A point of it is the middle of a crack if one coordinate is even, one odd.  Borders are few
    points: a search tree over them is faster than a distance transform of the whole lattice.
    """
    points = np.argwhere(cracks)
    middles = points[points.sum(axis=1) % 2 == 1]
    if not others.any():
        return np.full(len(middles), np.inf)
    return cKDTree(np.argwhere(others)).query(middles)[0] / 2  # two steps on the lattice are one pixel
