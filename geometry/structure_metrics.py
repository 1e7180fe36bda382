"""Metrics of structure: are thin things complete, and are objects and holes whole and apart?

A single missing pixel can cut a road in two, and a single wrong one can join two cells.  Pixel metrics do not see it.

- *centre lines*: how much of each skeleton lies inside of the other mask?  For thin things such as roads and vessels;
  thick objects that were merged or cut keep nearly all of their skeletons.
- *topology*: how many objects and holes were merged, split, invented or missed (see `topology`), and by how many do
  their numbers differ?

Counts first, ratios after: counts of images add up.  The absent-object rule: nothing in truth and nothing predicted has
no score (NaN) and stays out of the mean.  Centre lines in one of the two only score 0.

Sources: clDice, Shit et al., 2021 (arXiv:2003.07311); skeletons, Zhang and Suen, 1984 (doi:10.1145/357994.358023);
errors of β0 and β1 apart, with stated connectivity, Berger et al., 2024 (arXiv:2412.14619).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from skimage.morphology import skeletonize

from geometry.objects import Counts, check_maps, class_masks, harmonic_mean, ratio
from geometry.topology import KINDS, critical_regions


@dataclass(frozen=True)
class CentreLineCounts(Counts):
    """Pixels of the skeletons, and those of them that lie inside of the other mask."""

    pred_inside: int
    pred_length: int
    target_inside: int
    target_length: int

    @property
    def precision(self) -> float:
        """Topology precision |S_P ∩ G| / |S_P|: false branches lower it."""
        return ratio(self.pred_inside, self.pred_length, absent=self._absent)

    @property
    def sensitivity(self) -> float:
        """Topology sensitivity |S_G ∩ P| / |S_G|: gaps lower it."""
        return ratio(self.target_inside, self.target_length, absent=self._absent)

    @property
    def cl_dice(self) -> float:
        """Centre-line Dice, the harmonic mean of precision and sensitivity."""
        return harmonic_mean(self.precision, self.sensitivity)

    @property
    def _absent(self) -> bool:
        return self.pred_length + self.target_length == 0


def centre_lines(pred: ArrayLike, target: ArrayLike, of_class: int = 1) -> CentreLineCounts:
    """Count how much of the skeletons S_P, S_G of one class lies inside of the true mask G, the predicted mask P.

    `pred` and `target` are label maps (H, W); ignored pixels are background in both.  Skeletons are one pixel wide,
    by scikit-image's `skeletonize` (Zhang and Suen, 1984).  It treats left and right a little differently, so
    a flip of both maps changes a score by some thousandths.  Raises `InputError` as `class_masks` does.

    >>> counts = centre_lines(np.array([[1, 1, 0, 1]]), np.array([[1, 1, 1, 1]]))
    >>> counts.precision, counts.sensitivity, round(counts.cl_dice, 3)  # 2 · 1 · 3/4 / (1 + 3/4)
    (1.0, 0.75, 0.857)
    """
    in_pred, in_target = class_masks(pred, target, of_class)
    of_pred, of_target = skeletonize(in_pred), skeletonize(in_target)
    lengths = [int(np.count_nonzero(m)) for m in (of_pred & in_target, of_pred, of_target & in_pred, of_target)]
    return CentreLineCounts(*lengths)


@dataclass(frozen=True)
class TopologyCounts(Counts):
    """Topological errors of one class, summed over `images`: objects and holes of the stated `connectivity`.

    `merges` and `splits` count severities: a blob that joins three objects is two merges.  `beta0_error` sums
    |β0(P) − β0(G)| over the images, the numbers of objects; `beta1_error` does so for the holes.  An object missed
    and another one invented cancel out in β0, and that is why both kinds of numbers are here.
    """

    settings: ClassVar[tuple[str, ...]] = ("connectivity",)
    connectivity: int
    images: int
    objects: int
    holes: int
    merges: int
    spurious: int
    splits: int
    missed: int
    hole_merges: int
    hole_spurious: int
    hole_splits: int
    hole_missed: int
    beta0_error: int
    beta1_error: int

    @property
    def errors(self) -> int:
        """All errors of the objects: merges + splits + spurious + missed."""
        return self.merges + self.splits + self.spurious + self.missed

    @property
    def hole_errors(self) -> int:
        """The same errors of the holes."""
        return self.hole_merges + self.hole_spurious + self.hole_splits + self.hole_missed

    @property
    def errors_per_object(self) -> float:
        """`errors` divided by the true objects; NaN for 0 / 0, infinite where there were only false objects."""
        return self.errors / self.objects if self.objects else float("inf" if self.errors else "nan")

    def per_image(self) -> dict[str, float]:
        """All counts by name, divided by the number of images."""
        names = [field.name for field in fields(self) if field.name not in ("connectivity", "images")]
        return {name: getattr(self, name) / self.images for name in names}


def topology_counts(pred: ArrayLike, target: ArrayLike, of_class: int = 1, *, connectivity: int = 8) -> TopologyCounts:
    """Count merges, splits, spurious and missed objects and holes of one class, and the errors of β0 and β1.

    `pred` and `target` are label maps (H, W); `connectivity` (4 or 8) is that of the objects, holes have the other
    one.  The choice can change which method is best, so state it.  Definitions and errors: `topology.critical_regions`.

    >>> counts = topology_counts(np.array([[1, 1, 1, 0, 1]]), np.array([[1, 0, 1, 0, 0]]))
    >>> counts.merges, counts.spurious, counts.beta0_error  # the merge and the false object cancel out in β0
    (1, 1, 0)
    """
    pred, target = check_maps(pred, target)
    regions = critical_regions(pred[None], target[None], classes=(of_class,), connectivity=connectivity)
    severity = dict(zip(KINDS, regions.severities()[0, 0].tolist()))
    objects, holes = regions.betti_target[0, 0].tolist()
    beta0_error, beta1_error = np.abs(regions.betti_pred - regions.betti_target)[0, 0].tolist()
    return TopologyCounts(
        connectivity=connectivity,
        images=1,
        objects=objects,
        holes=holes,
        merges=severity["merge"],
        spurious=severity["spurious"],
        splits=severity["split"],
        missed=severity["missed"],
        hole_merges=severity["hole_merge"],
        hole_spurious=severity["hole_spurious"],
        hole_splits=severity["hole_split"],
        hole_missed=severity["hole_missed"],
        beta0_error=beta0_error,
        beta1_error=beta1_error,
    )
