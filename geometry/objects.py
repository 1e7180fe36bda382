"""Metrics beyond the single pixel: are objects found and told apart, borders in place, and structures whole?

- *Matching*: a predicted object is a hit if its IoU with a true object is above a threshold.  F1, AP and panoptic
  quality count hits.  They tell how many objects are right, but not how a wrong one went wrong.
- *Partitions*: adapted Rand error (pairs of pixels) and variation of information (bits).  Large objects weigh more;
  both have one part that grows with splits and one that grows with merges.
- *Centre lines*: how much of each skeleton lies inside of the other mask?  Meant for roads, vessels and the like.
- *Topology*: how many objects and holes were merged, split, invented or missed (see `topology`)?
- *Borders*: distances between cracks, the sides between pixels of different label (see `boundary`).
- *Ranking*: precision and recall of probabilities at all thresholds.

Maps are (H, W) integer.  In an instance map 0 is background, every other number is the name of one object.  In a class
map 255 is ignored: background in truth and in prediction, so neither right nor wrong, and no border runs along it.

Counts first, ratios after: `Counts` of images add up, and scores are read off the sum.  The absent-object rule: nothing
in truth and nothing predicted has no score (NaN).  Something in one of the two only scores 0.

Sources: matching, Caicedo et al., 2019 (doi:10.1038/s41592-019-0612-7) and Schmidt et al., 2018 (arXiv:1806.03535);
panoptic quality, Kirillov et al., 2019 (arXiv:1801.00868); adapted Rand error, Arganda-Carreras et al., 2015
(doi:10.3389/fnana.2015.00142); variation of information, Meilă, 2007 (doi:10.1016/j.jmva.2006.11.013); clDice, Shit et
al., 2021 (arXiv:2003.07311); errors of β0 and β1, Berger et al., 2024 (arXiv:2412.14619); boundary F1, Csurka et al.,
2013 (doi:10.5244/C.27.32); surface Dice, Nikolov et al., 2021 (doi:10.2196/26151); pitfalls, Reinke et al., 2024
(doi:10.1038/s41592-023-02150-0); MaxF, Fritsch, Kühnl and Geiger, 2013 (doi:10.1109/ITSC.2013.6728473).
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree
from skimage.morphology import skeletonize

import metrics
from checks import IGNORE_INDEX, InputError
from geometry.boundary import find_cracks
from geometry.topology import check_maps, critical_regions

THRESHOLDS = tuple(k / 20 for k in range(1, 20))
"""The thresholds of a probability that `choose_threshold` tries."""
IOU_THRESHOLDS = tuple(k / 20 for k in range(10, 20))
"""The usual thresholds of an IoU, 0.50, 0.55 … 0.95."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Maps = Sequence[np.ndarray]
Row = dict[str, Any]
T = TypeVar("T")
Self = TypeVar("Self", bound="Counts")

# ---- counts that add up, and the scores read off them


class Counts:
    """Numbers of one image that add up over a data set, with + or with `sum(list_of_counts)`.

    What is named in `settings` (such as a threshold) is not added, but must be equal, else `InputError`.  Where all
    numbers named in `sizes` are 0, there is nothing in truth and prediction, and every score is NaN.
    """

    settings: ClassVar[tuple[str, ...]] = ()
    sizes: ClassVar[tuple[str, ...]] = ()

    def __add__(self: Self, other: Self) -> Self:
        if not isinstance(other, type(self)):
            return NotImplemented
        a, b = vars(self), vars(other)
        for name in self.settings:
            if a[name] != b[name]:
                raise InputError(
                    f"{type(self).__name__}: {name} is {a[name]} in one and {b[name]} in the other.\n"
                    "Counts add up only if all images were counted with the same settings."
                )
        return type(self)(**{name: a[name] if name in self.settings else a[name] + b[name] for name in a})

    def __radd__(self: Self, other: int) -> Self:
        return self if other == 0 else NotImplemented  # `sum` starts at 0


def _score(formula: Callable[[Any], tuple[float, float]], meaning: str) -> property:
    """A property of counts: part / whole as `formula` gives them, 0 for 0 / 0, and NaN by the absent-object rule."""

    def score(counts: Counts) -> float:
        if not any(getattr(counts, name) for name in counts.sizes):
            return math.nan
        part, whole = formula(counts)
        return float(part / whole) if whole else 0.0

    return property(score, doc=meaning)


# ---- from maps to masks, objects and their overlaps


def class_masks(pred: ArrayLike, target: ArrayLike, of_class: int = 1) -> tuple[Bools, Bools]:
    """Where the class is predicted and where it is true, two boolean (H, W); ignored pixels are in neither.

    Raises `InputError` for maps that are not integers (H, W) of one shape, and for `of_class` 255.
    """
    pred, target = check_maps(pred, target, "H, W")
    if of_class == IGNORE_INDEX:
        raise InputError(f"of_class is {of_class}, the label of ignored pixels; expected the number of a class.")
    return (pred == of_class) & (target != IGNORE_INDEX), target == of_class


def label_objects(mask: ArrayLike, *, connectivity: int = 8) -> Ints:
    """Number the connected components of a mask: (H, W), non-zero = object → instance map (H, W) int64.

    With `connectivity` 8 pixels that share only a corner are one object, with 4 they are two.  Raises `InputError`
    for other shapes and connectivities.

    >>> label_objects(np.array([[1, 0], [0, 1]]), connectivity=4).tolist()
    [[1, 0], [0, 2]]
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or connectivity not in (4, 8):
        raise InputError(f"mask has shape {mask.shape}, connectivity is {connectivity!r}; expected (H, W) and 4 or 8.")
    neighbours = ndimage.generate_binary_structure(2, connectivity // 4)
    return ndimage.label(mask != 0, neighbours)[0].astype(np.int64)


def class_objects(pred: ArrayLike, target: ArrayLike, of_class: int = 1, *, connectivity: int = 8) -> tuple[Ints, Ints]:
    """The components of one class in two class maps (H, W), as two instance maps; ignored pixels are background."""
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

    def ious(self) -> tuple[Ints, Ints, Floats]:
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
    maps = [labels.ravel().astype(np.int64) for labels in check_maps(pred, target, "H, W")]
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


# ---- matching


@dataclass(frozen=True)
class MatchCounts(Counts):
    """Hits among objects at one IoU threshold: TP = `hits`, FP = `pred` − TP, FN = `target` − TP.

    `pred` and `target` are the numbers of predicted and true objects, `iou_sum` is the sum of the IoU of all hits.
    `ap` is the average precision of the Data Science Bowl and of StarDist; it is no area under a curve, as in COCO,
    since objects have no confidence here.  PQ = SQ · RQ (= F1) is defined at the threshold 0.5.
    """

    settings = ("threshold",)
    sizes = ("pred", "target")
    threshold: float
    hits: int
    pred: int
    target: int
    iou_sum: float

    precision = _score(lambda c: (c.hits, c.pred), "TP / (TP + FP)")
    recall = _score(lambda c: (c.hits, c.target), "TP / (TP + FN)")
    f1 = _score(lambda c: (2 * c.hits, c.pred + c.target), "2·TP / (2·TP + FP + FN), the recognition quality RQ")
    ap = _score(lambda c: (c.hits, c.pred + c.target - c.hits), "TP / (TP + FP + FN)")
    panoptic_quality = _score(lambda c: (2 * c.iou_sum, c.pred + c.target), "PQ = Σ IoU / (TP + FP/2 + FN/2)")

    @property
    def segmentation_quality(self) -> float:
        """SQ = Σ IoU / TP, the mean IoU of the hits; NaN without hits."""
        return self.iou_sum / self.hits if self.hits else math.nan


def match_objects(table: Overlaps, threshold: float = 0.5) -> MatchCounts:
    """Match each predicted object with at most one true object so that IoU > threshold, and count the matches.

    From 0.5 on no choice is possible: two objects that each share more than half of the union with a third one
    would overlap.  Below 0.5 the matching is optimal: first as many hits as possible, then the highest sum of IoU.
    An IoU equal to the threshold is no hit (StarDist: a hit).  Raises `InputError` unless 0 ≤ threshold < 1.

    >>> counts = match_objects(overlaps(np.array([[1, 1, 1, 0, 2]]), np.array([[1, 1, 1, 1, 0]])))
    >>> counts.hits, counts.ap, counts.panoptic_quality  # IoU 3/4, one false object: AP 1/2, PQ 0.75 / 1.5
    (1, 0.5, 0.5)
    """
    if not 0 <= threshold < 1:
        raise InputError(f"match_objects: threshold is {threshold}; expected 0 ≤ threshold < 1.")
    pred, target, iou = table.ious()
    near = np.flatnonzero(iou > threshold)
    pred, target, iou = pred[near], target[near], iou[near]
    if threshold < 0.5 and iou.size:
        iou = _best_assignment(pred, target, iou)
    return MatchCounts(threshold, iou.size, table.pred_size.size - 1, table.target_size.size - 1, float(iou.sum()))


def match_curve(table: Overlaps, thresholds: Sequence[float] = IOU_THRESHOLDS) -> list[MatchCounts]:
    """`match_objects` at each threshold.  The mean of their AP is the score of the Data Science Bowl 2018.

    That contest averaged over images; here the counts of all images can be added first, so that an image with a
    single cell does not weigh as much as one with a hundred.
    """
    return [match_objects(table, threshold) for threshold in thresholds]


def _best_assignment(pred: Ints, target: Ints, iou: Floats) -> Floats:
    """The IoU of the matched pairs, if objects may be in several of the candidate pairs.

    As an assignment problem on a sparse matrix, since on noise a full one would not fit into memory.  Each predicted
    object also has a partner of its own, "nothing", of value 1; so an assignment of all always exists.
    """
    row, column = (np.unique(objects, return_inverse=True)[1] for objects in (pred, target))
    P, T = row.max() + 1, column.max() + 1
    # One more hit must be worth more than any gain in the sum of IoU, which is less than min(P, T) + 1.
    value = np.append(2 + iou / (min(P, T) + 1), np.ones(P))
    partners = np.append(row, np.arange(P)).astype(np.int32), np.append(column, T + np.arange(P)).astype(np.int32)
    chosen = min_weight_full_bipartite_matching(coo_array((value, partners)).tocsr(), maximize=True)[1]
    return iou[chosen[row] == column]


# ---- partitions


@dataclass(frozen=True)
class PartitionCounts(Counts):
    """What the adapted Rand error and the variation of information are made of, over `pixels` pixels.

    `joint_pairs`: ordered pairs of pixels that are in one object both in truth and in prediction, `pred_pairs`: in one
    predicted object, `target_pairs`: in one true object.  `split_bits` and `merge_bits`: entropies times `pixels`.
    """

    sizes = ("pred_pairs", "target_pairs")
    pixels: int
    joint_pairs: int
    pred_pairs: int
    target_pairs: int
    split_bits: float
    merge_bits: float

    rand_precision = _score(lambda c: (c.joint_pairs, c.pred_pairs), "Of the pairs put together, those rightly so")
    rand_recall = _score(lambda c: (c.joint_pairs, c.target_pairs), "Of the pairs that belong together, those found")
    arand = _score(
        lambda c: (c.pred_pairs + c.target_pairs - 2 * c.joint_pairs, c.pred_pairs + c.target_pairs),
        "Adapted Rand error 1 − F1 of `rand_precision` (lowered by merges) and `rand_recall` (by splits), 0 … 1",
    )

    @property
    def voi_split(self) -> float:
        """H(prediction | truth) in bits: what remains unknown about the predicted object if the true one is known."""
        return self.split_bits / self.pixels if self.pixels else math.nan

    @property
    def voi_merge(self) -> float:
        """H(truth | prediction) in bits: what remains unknown about the true object if the predicted one is known."""
        return self.merge_bits / self.pixels if self.pixels else math.nan

    @property
    def voi(self) -> float:
        """Variation of information, `voi_split` + `voi_merge`; 0 is perfect, there is no fixed worst value."""
        return self.voi_split + self.voi_merge


def partition(table: Overlaps, *, background: bool = False) -> PartitionCounts:
    """Compare two partitions by the pixels n_ij that true object i and predicted object j share.

    With t_i = Σ_j n_ij, p_j = Σ_i n_ij and n = Σ n_ij:  precision = Σ n_ij·(n_ij − 1) / Σ p_j·(p_j − 1),  recall =
    Σ n_ij·(n_ij − 1) / Σ t_i·(t_i − 1),  split = −Σ n_ij/n · log₂(n_ij / t_i),  merge = −Σ n_ij/n · log₂(n_ij / p_j).

    Only pixels of true objects count, as in the contest SNEMI3D; what was missed of them is one more segment.  False
    objects on the background are then invisible: see `match_objects` for them.  With `background` all pixels count,
    and the background is an object like the others.

    >>> counts = partition(overlaps(np.array([[1, 1, 1, 1]]), np.array([[1, 1, 2, 2]])))  # one merge
    >>> counts.rand_recall, round(counts.rand_precision, 3), counts.voi_split, counts.voi_merge  # 4 of 12 pairs
    (1.0, 0.333, 0.0, 1.0)
    """
    counted = np.flatnonzero((table.target > 0) | background)
    n, pred, target = table.pixels[counted], table.pred[counted], table.target[counted]
    p, t = (np.bincount(number, n).astype(np.int64) for number in (pred, target))
    pairs = [int((size * (size - 1)).sum()) for size in (n, p, t)]
    bits = [float((n * np.log2(whole / n)).sum()) for whole in (t[target], p[pred])]
    return PartitionCounts(int(n.sum()), *pairs, *bits)


# ---- centre lines and topology


@dataclass(frozen=True)
class CentreLineCounts(Counts):
    """Pixels of the skeletons S_P and S_G, and those of them that lie inside of the other mask."""

    sizes = ("pred_length", "target_length")
    pred_inside: int
    pred_length: int
    target_inside: int
    target_length: int

    precision = _score(lambda c: (c.pred_inside, c.pred_length), "|S_P ∩ G| / |S_P|: false branches lower it")
    sensitivity = _score(lambda c: (c.target_inside, c.target_length), "|S_G ∩ P| / |S_G|: gaps lower it")
    cl_dice = _score(
        lambda c: (2 * c.precision * c.sensitivity, c.precision + c.sensitivity), "Harmonic mean of both: clDice"
    )


def centre_lines(pred: ArrayLike, target: ArrayLike, of_class: int = 1) -> CentreLineCounts:
    """Count how much of the skeletons S_P, S_G of one class lies inside of the true mask G, the predicted mask P.

    `pred` and `target` are class maps (H, W).  Skeletons are one pixel wide (Zhang and Suen, 1984,
    doi:10.1145/357994.358023).  scikit-image's treats left and right a little differently, so a flip of both maps
    changes a score by some thousandths.  Raises `InputError` as `class_masks` does.

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

    settings = ("connectivity",)
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
        return self.hole_merges + self.hole_splits + self.hole_spurious + self.hole_missed

    @property
    def errors_per_object(self) -> float:
        """`errors` divided by the true objects; NaN for 0 / 0, infinite where there were only false objects."""
        return self.errors / self.objects if self.objects else math.inf if self.errors else math.nan

    def per_image(self) -> dict[str, float]:
        """All counts by name, divided by the number of images."""
        return {name: n / self.images for name, n in vars(self).items() if name not in ("connectivity", "images")}


def topology_counts(pred: ArrayLike, target: ArrayLike, of_class: int = 1, *, connectivity: int = 8) -> TopologyCounts:
    """Count merges, splits, spurious and missed objects and holes of one class, and the errors of β0 and β1.

    `pred` and `target` are class maps (H, W); `connectivity` (4 or 8) is that of the objects, holes have the other
    one.  The choice can change which method is best, so state it.  Definitions and errors: `topology.critical_regions`.

    >>> counts = topology_counts(np.array([[1, 1, 1, 0, 1]]), np.array([[1, 0, 1, 0, 0]]))
    >>> counts.merges, counts.spurious, counts.beta0_error  # the merge and the false object cancel out in β0
    (1, 1, 0)
    """
    pred, target = check_maps(pred, target, "H, W")
    regions = critical_regions(pred[None], target[None], classes=(of_class,), connectivity=connectivity)
    severities = regions.severities()[0, 0].tolist()  # in the order of `topology.KINDS`, as the fields above
    betti_errors = np.abs(regions.betti_pred - regions.betti_target)[0, 0].tolist()
    return TopologyCounts(connectivity, 1, *regions.betti_target[0, 0].tolist(), *severities, *betti_errors)


# ---- borders


@dataclass(frozen=True)
class BoundaryCounts(Counts):
    """Lengths of borders in pixels: all, and the part within `tolerance` pixels of the other's border."""

    settings = ("tolerance",)
    sizes = ("pred_length", "target_length")
    tolerance: float
    pred_near: int
    pred_length: int
    target_near: int
    target_length: int

    precision = _score(lambda c: (c.pred_near, c.pred_length), "The part of the predicted border near to a true one")
    recall = _score(lambda c: (c.target_near, c.target_length), "The part of the true border near to a predicted one")
    f1 = _score(lambda c: (2 * c.precision * c.recall, c.precision + c.recall), "Boundary F1, their harmonic mean")
    surface_dice = _score(
        lambda c: (c.pred_near + c.target_near, c.pred_length + c.target_length),
        "Normalised surface distance: the part of both borders together that is near to the other one",
    )


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
            return math.inf if self.pred.size or self.target.size else math.nan
        return float(max(np.percentile(self.pred, percentile), np.percentile(self.target, percentile)))


def boundary_distances(pred: ArrayLike, target: ArrayLike, of_class: int | None = None) -> BoundaryDistances:
    """Distances between the borders in a predicted and a true label map, exact; the frame of the image is no border.

    `pred` and `target` are (H, W); where `target` is 255, there is no border in either map.  With `of_class` it is the
    border of this class against the rest.  By default it is all borders between different labels, where each may match
    any other; so for instance maps, in which no object is 255.  Raises `InputError` as `topology.check_maps` does.

    >>> distances = boundary_distances(np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]]))  # one pixel off
    >>> distances.hausdorff(), distances.within(0.5).f1, distances.within(1).f1
    (1.0, 0.0, 1.0)
    """
    pred, target = check_maps(pred, target, "H, W")
    ignored = target == IGNORE_INDEX
    maps = (pred, target) if of_class is None else class_masks(pred, target, of_class)
    in_pred, in_target = (find_cracks(np.where(ignored, IGNORE_INDEX, labels.astype(np.int64))) for labels in maps)
    return BoundaryDistances(_middles_to(in_pred, in_target), _middles_to(in_target, in_pred))


def _middles_to(cracks: Bools, others: Bools) -> Floats:
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


# ---- all scores of a set of predictions: lists of arrays (H, W), class 1 against class 0, 255 ignored


def choose_threshold(probs: Maps, labels: Maps) -> tuple[float, list[Row]]:
    """The threshold with the fewest errors of objects and holes, in a tie the one next to 0.5; and a row for each.

    >>> probs, label = np.array([[0.9, 0.6, 0.9]]), np.array([[1, 0, 1]])  # a bridge that 0.6 and more removes
    >>> best, rows = choose_threshold([probs], [label])
    >>> best, len(rows)
    (0.6, 19)
    """
    rows = []
    for threshold in THRESHOLDS:
        guesses = [p > threshold for p in probs]
        rows.append({"threshold": threshold, "dice": dice(guesses, labels)} | topology_row(guesses, labels))
    best = min(rows, key=lambda row: (row["all_errors"], abs(row["threshold"] - 0.5)))
    return best["threshold"], rows


def judge(guesses: Maps, labels: Maps, object_class: int = 1) -> Row:
    """All scores of boolean maps; `object_class` is the class whose components are the objects of instance metrics.

    Class 1 is 8-connected, class 0 4-connected.  `hd95` is the median over the images, and counts of topology are per
    image; all others are of the whole set.
    """
    pairs = list(zip(guesses, labels))
    borders = [boundary_distances(guess, label, of_class=1) for guess, label in pairs]
    connectivity = 8 if object_class == 1 else 4
    objects = [class_objects(*_as_labels(*pair), object_class, connectivity=connectivity) for pair in pairs]
    tables = [overlaps(*pair) for pair in objects]
    parts, matches = total(map(partition, tables)), total(map(match_objects, tables))
    row = {"dice": dice(guesses, labels), "mean_iou": metrics.mean_iou(_confusion(guesses, labels))}
    row |= {
        "boundary_f1": total(d.within(2) for d in borders).f1,
        "hd95": np.median([d.hausdorff(95) for d in borders]),
    }
    row |= {"cl_dice": total(centre_lines(guess, label) for guess, label in pairs).cl_dice}
    row |= {"arand": parts.arand, "voi_split": parts.voi_split, "voi_merge": parts.voi_merge}
    row |= {"object_f1": matches.f1, "panoptic_quality": matches.panoptic_quality}
    return row | topology_row(guesses, labels)


def dice(guesses: Maps, labels: Maps) -> float:
    """Dice of class 1 over all pixels of all images, which is its F1; NaN if it occurs nowhere."""
    return float(metrics.f1_per_class(_confusion(guesses, labels))[1])


def topology_row(guesses: Maps, labels: Maps) -> Row:
    """All counts of topology, per image; `all_errors` are those of objects and of holes."""
    counts: TopologyCounts = total(topology_counts(guess, label) for guess, label in zip(guesses, labels))
    return {"all_errors": (counts.errors + counts.hole_errors) / counts.images} | counts.per_image()


def total(counts: Iterable[T]) -> T:
    """The sum of one or more counts; unlike `sum` it has no 0 to start with."""
    return functools.reduce(operator.add, counts)


def _confusion(guesses: Maps, labels: Maps) -> torch.Tensor:
    pairs = (map(torch.from_numpy, _as_labels(*pair)) for pair in zip(guesses, labels))
    return total(metrics.confusion_matrix(guess, label, 2) for guess, label in pairs)


def _as_labels(guess: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return guess.astype(np.int64), label.astype(np.int64)


# ---- ranking


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of "probability ≥ threshold", one entry a threshold, from the highest threshold down.

    The threshold of `max_f` is chosen on the pixels that are judged: a best case, and the rule of the KITTI road
    benchmark.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """2·P·R / (P + R) at each threshold."""
        added = self.precision + self.recall
        return 2 * self.precision * self.recall / np.where(added > 0, added, 1)

    @property
    def best(self) -> int:
        """The entry of the highest F1."""
        return int(self.f1.argmax())

    @property
    def max_f(self) -> float:
        """MaxF: the highest F1 of all thresholds."""
        return float(self.f1[self.best])

    @property
    def average_precision(self) -> float:
        """Area below the curve as a sum of steps, Σ (R_n − R_{n−1}) · P_n."""
        return float((np.diff(self.recall, prepend=0) * self.precision).sum())

    @property
    def average_precision_11(self) -> float:
        """Mean over the recalls 0, 0.1 … 1 of the best precision at this recall or above: KITTI's and PASCAL's AP."""
        from_here_on = np.maximum.accumulate(self.precision[::-1])[::-1]
        entries = np.searchsorted(self.recall, np.linspace(0, 1, 11) - 1e-12)
        return float(from_here_on[entries].mean())


def precision_recall(probs: Maps, labels: Maps) -> PrecisionRecall:
    """The curve over all pixels of all images: `probs` (H, W) of class 1, `labels` (H, W) of 0, 1 and 255 (ignored).

    Raises `InputError` if shapes differ, a probability is not finite, a label is something else, or none is 1.

    >>> curve = precision_recall([np.array([[0.9, 0.8, 0.3, 0.1]])], [np.array([[1, 0, 1, 0]])])
    >>> [round(float(p), 2) for p in curve.precision], [float(r) for r in curve.recall], curve.max_f
    ([1.0, 0.5, 0.67, 0.5], [0.5, 0.5, 1.0, 1.0], 0.8)
    """
    shapes = [[np.shape(x) for x in arrays] for arrays in (probs, labels)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise InputError(
            f"precision_recall: {len(shapes[0])} probs of the shapes {shapes[0][:4]}, "
            f"{len(shapes[1])} labels of the shapes {shapes[1][:4]}.\n"
            "Expected at least one image, and for each image one shape (H, W) of both."
        )
    score, label = (np.concatenate([np.ravel(x) for x in arrays]) for arrays in (probs, labels))
    score, label = score[label != IGNORE_INDEX].astype(np.float64), label[label != IGNORE_INDEX]
    if not np.isfinite(score).all() or not np.isin(label, (0, 1)).all() or not (label == 1).any():
        raise InputError(
            "precision_recall: expected finite probabilities, labels of 0, 1 and 255, and at least one pixel of 1."
        )
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(label[order])
    last = np.flatnonzero(np.diff(score, append=-np.inf))  # equal probabilities pass a threshold together
    return PrecisionRecall(score[last], hits[last] / (last + 1), hits[last] / hits[-1])
