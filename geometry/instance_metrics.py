"""Metrics of instances: are the objects found, told apart, and of the right shape?

Two families, both read off the table of overlaps of `objects.overlaps`.

- *Matching*: a predicted object is a hit if its IoU with a true object is above a threshold.  F1, AP and panoptic
  quality count hits.  They tell how many objects are right, but not how a wrong one went wrong.
- *Partitions*: the objects are a partition of the pixels.  The adapted Rand error counts pairs of pixels, the
  variation of information measures bits.  Big objects weigh more.  Both have one part that grows with splits and one
  that grows with merges.

Counts first, ratios after: the counts of images add up, and objects of different images are different objects.  The
absent-object rule: nothing in truth and nothing predicted has no score (NaN) and stays out of the mean.  Objects in one
of the two only score 0.

Sources: matching as in the Data Science Bowl 2018, Caicedo et al., 2019 (doi:10.1038/s41592-019-0612-7) and StarDist,
Schmidt et al., 2018 (arXiv:1806.03535); panoptic quality, Kirillov et al., 2019 (arXiv:1801.00868); adapted Rand error,
Arganda-Carreras et al., 2015 (doi:10.3389/fnana.2015.00142); variation of information, Meilă, 2007
(doi:10.1016/j.jmva.2006.11.013).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from checks import InputError
from geometry.objects import Counts, Ints, Overlaps, ratio

THRESHOLDS = tuple(k / 20 for k in range(10, 20))
"""The usual IoU thresholds 0.50, 0.55 … 0.95."""


@dataclass(frozen=True)
class MatchCounts(Counts):
    """Hits among objects at one IoU threshold: TP = `hits`, FP = `pred` − TP, FN = `target` − TP.

    `pred` and `target` are the numbers of predicted and true objects, `iou_sum` is the sum of the IoU of all hits.
    """

    settings: ClassVar[tuple[str, ...]] = ("threshold",)
    threshold: float
    hits: int
    pred: int
    target: int
    iou_sum: float

    @property
    def precision(self) -> float:
        """TP / (TP + FP): the share of the predicted objects that are right."""
        return ratio(self.hits, self.pred, absent=self._absent)

    @property
    def recall(self) -> float:
        """TP / (TP + FN): the share of the true objects that were found."""
        return ratio(self.hits, self.target, absent=self._absent)

    @property
    def f1(self) -> float:
        """2·TP / (2·TP + FP + FN); this is also the recognition quality RQ of the panoptic quality."""
        return ratio(2 * self.hits, self.pred + self.target, absent=self._absent)

    @property
    def ap(self) -> float:
        """TP / (TP + FP + FN), which the Data Science Bowl and StarDist call average precision.

        It is no area under a curve, and so not the AP of COCO: objects have no confidence here.
        """
        return ratio(self.hits, self.pred + self.target - self.hits, absent=self._absent)

    @property
    def segmentation_quality(self) -> float:
        """SQ = Σ IoU / TP, the mean IoU of the hits; NaN without hits."""
        return ratio(self.iou_sum, self.hits, absent=self.hits == 0)

    @property
    def panoptic_quality(self) -> float:
        """PQ = Σ IoU / (TP + FP/2 + FN/2) = SQ · RQ; 0 without hits.  By definition at the threshold 0.5."""
        return ratio(2 * self.iou_sum, self.pred + self.target, absent=self._absent)

    @property
    def _absent(self) -> bool:
        return self.pred + self.target == 0


def match_objects(table: Overlaps, threshold: float = 0.5) -> MatchCounts:
    """Match each predicted object with at most one true object so that IoU > threshold, and count the matches.

    From 0.5 on no choice is possible: two objects that each share more than half of the union with a third one
    would overlap.  Below 0.5 the matching is optimal: first as many hits as possible, then the highest sum of IoU.

    Args:
        table: of one image, from `objects.overlaps`.
        threshold: 0 ≤ threshold < 1.  An IoU equal to it is no hit (StarDist: a hit).

    Raises:
        InputError: if the threshold is out of its range.

    >>> from geometry.objects import overlaps
    >>> table = overlaps(np.array([[1, 1, 1, 0, 2]]), np.array([[1, 1, 1, 1, 0]]))
    >>> counts = match_objects(table)
    >>> counts.hits, counts.ap, counts.panoptic_quality  # IoU 3/4, one false object: AP 1/2, PQ 0.75 / 1.5
    (1, 0.5, 0.5)
    """
    if not 0 <= threshold < 1:
        raise InputError(f"match_objects: threshold is {threshold}; expected 0 ≤ threshold < 1.")
    pred, target, iou = table.ious()
    near = np.flatnonzero(iou > threshold)
    pred, target, iou = pred[near], target[near], iou[near]
    if threshold < 0.5:
        iou = _best_assignment(pred, target, iou)
    return MatchCounts(threshold, iou.size, table.pred_size.size - 1, table.target_size.size - 1, float(iou.sum()))


def match_curve(table: Overlaps, thresholds: Sequence[float] = THRESHOLDS) -> list[MatchCounts]:
    """`match_objects` at each threshold.  The mean of their AP is the score of the Data Science Bowl 2018.

    That contest averaged over images.  Here the counts of all images are added for each threshold, then averaged
    over the thresholds, so that an image with a single cell does not weigh as much as one with a hundred.

    >>> from geometry.objects import overlaps
    >>> table = overlaps(np.array([[1, 1, 1, 0]]), np.array([[1, 1, 1, 1]]))  # IoU 0.75: a hit at five of ten
    >>> float(np.mean([counts.ap for counts in match_curve(table)]))
    0.5
    """
    return [match_objects(table, threshold) for threshold in thresholds]


def _best_assignment(pred: Ints, target: Ints, iou: NDArray[np.float64]) -> NDArray[np.float64]:
    """The IoU of the matched pairs, if objects may be in several of the candidate pairs.

    As an assignment problem on a sparse matrix, since on noise a full one would not fit into memory.  Each predicted
    object also has a partner of its own, "nothing", of value 1; so an assignment of all always exists.
    """
    if not iou.size:
        return iou
    row, column = (np.unique(objects, return_inverse=True)[1] for objects in (pred, target))
    P, T = row.max() + 1, column.max() + 1
    # One more hit must be worth more than any gain in the sum of IoU, which is less than min(P, T) + 1.
    value = np.append(2 + iou / (min(P, T) + 1), np.ones(P))
    partners = np.append(row, np.arange(P)).astype(np.int32), np.append(column, T + np.arange(P)).astype(np.int32)
    chosen = min_weight_full_bipartite_matching(coo_array((value, partners)).tocsr(), maximize=True)[1]
    return iou[chosen[row] == column]


@dataclass(frozen=True)
class PartitionCounts(Counts):
    """What the adapted Rand error and the variation of information are made of, over `pixels` pixels.

    `joint_pairs`: pairs of pixels that are in one object both in truth and in prediction, `pred_pairs`: in one
    predicted object, `target_pairs`: in one true object; all pairs are ordered, so Σ n·(n − 1).  `split_bits` and
    `merge_bits` are the entropies times `pixels`.
    """

    pixels: int
    joint_pairs: int
    pred_pairs: int
    target_pairs: int
    split_bits: float
    merge_bits: float

    @property
    def rand_precision(self) -> float:
        """Of the pairs that are together in the prediction, the share that belongs together: merges lower it."""
        return ratio(self.joint_pairs, self.pred_pairs, absent=self._no_pairs)

    @property
    def rand_recall(self) -> float:
        """Of the pairs that belong together, the share that is together in the prediction: splits lower it."""
        return ratio(self.joint_pairs, self.target_pairs, absent=self._no_pairs)

    @property
    def arand(self) -> float:
        """Adapted Rand error 1 − F1 of `rand_precision` and `rand_recall`; 0 is perfect, 1 the worst."""
        return 1 - ratio(2 * self.joint_pairs, self.pred_pairs + self.target_pairs, absent=self._no_pairs)

    @property
    def voi_split(self) -> float:
        """H(prediction | truth) in bits: what remains unknown about the predicted object if the true one is known."""
        return ratio(self.split_bits, self.pixels, absent=self.pixels == 0)

    @property
    def voi_merge(self) -> float:
        """H(truth | prediction) in bits: what remains unknown about the true object if the predicted one is known."""
        return ratio(self.merge_bits, self.pixels, absent=self.pixels == 0)

    @property
    def voi(self) -> float:
        """Variation of information, `voi_split` + `voi_merge`; 0 is perfect, there is no fixed worst value."""
        return self.voi_split + self.voi_merge

    @property
    def _no_pairs(self) -> bool:
        return self.pred_pairs + self.target_pairs == 0


def partition(table: Overlaps, *, background: bool = False) -> PartitionCounts:
    """Compare two partitions by the pixels n_ij that true object i and predicted object j share.

    With t_i = Σ_j n_ij, p_j = Σ_i n_ij and n = Σ n_ij:  precision = Σ n_ij·(n_ij − 1) / Σ p_j·(p_j − 1),  recall =
    Σ n_ij·(n_ij − 1) / Σ t_i·(t_i − 1),  split = −Σ n_ij/n · log₂(n_ij / t_i),  merge = −Σ n_ij/n · log₂(n_ij / p_j).

    Only pixels of true objects count, as in the contest SNEMI3D; what was missed of them is one more segment.  False
    objects on the background are then invisible: see `match_objects` for them.  With `background` all pixels count,
    and the background is an object like the others.  (scikit-image's `adapted_rand_error` returns the same numbers,
    but precision in the place of recall.)

    >>> from geometry.objects import overlaps
    >>> counts = partition(overlaps(np.array([[1, 1, 1, 1]]), np.array([[1, 1, 2, 2]])))  # one merge
    >>> counts.rand_recall, round(counts.rand_precision, 3), counts.voi_split, counts.voi_merge  # 4 of 12 pairs
    (1.0, 0.333, 0.0, 1.0)
    """
    counted = np.flatnonzero((table.target > 0) | background)
    n, pred, target = table.pixels[counted], table.pred[counted], table.target[counted]
    p, t = (np.bincount(number, n).astype(np.int64) for number in (pred, target))
    return PartitionCounts(
        pixels=int(n.sum()),
        joint_pairs=_pairs(n),
        pred_pairs=_pairs(p),
        target_pairs=_pairs(t),
        split_bits=float((n * np.log2(t[target] / n)).sum()),
        merge_bits=float((n * np.log2(p[pred] / n)).sum()),
    )


def _pairs(size: Ints) -> int:
    return int((size * (size - 1)).sum())
