"""Metrics beyond the single pixel: are objects found and told apart, borders in place, and structures whole?

Maps are (H, W) integer, else `InputError`.  In an instance map 0 is background, every other number is the name of one
object.  In a class map 255 is ignored: background in truth and in prediction, and no border runs along it.
Counts first, ratios after: `Counts` of images add up, and scores are read off the sum.  Nothing in truth and nothing
predicted has no score (NaN); something in one of the two only scores 0.  Pitfalls: doi:10.1038/s41592-023-02150-0.
"""

import math
from collections import namedtuple
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.spatial import cKDTree
from skimage.morphology import skeletonize

import metrics
from checks import IGNORE_INDEX, InputError
from geometry.boundary import find_cracks, renumber
from geometry.topology import check_maps, critical_regions

Maps = Sequence[np.ndarray]
Row = dict[str, Any]
MOST_CLASSES = 100  # an instance map with more objects than this is told from a class map
SETTINGS = ("threshold", "connectivity", "tolerance")
TOPOLOGY = ["objects", "holes", "merges", "spurious", "splits", "missed"]
TOPOLOGY += ["hole_merges", "hole_spurious", "hole_splits", "hole_missed", "beta0_error", "beta1_error"]


class Counts(SimpleNamespace):
    """Numbers of one image that add up over a data set, with + or `sum`; `SETTINGS` among them must be equal."""

    def __add__(self, other: Any) -> Any:
        a, b = vars(self), vars(other)
        if wrong := [name for name in SETTINGS if a.get(name) != b.get(name)]:
            raise InputError(f"Counts of {wrong[0]} {a[wrong[0]]} and of {wrong[0]} {b[wrong[0]]} do not add up.")
        return type(self)(**{name: a[name] if name in SETTINGS else a[name] + b[name] for name in a})

    def __radd__(self, other: int) -> Any:
        return self  # `sum` starts at 0


def _score(formula: Callable[[Any], tuple[float, float]], meaning: str) -> property:
    """A property of counts: part / whole by `formula`; 0 / 0 is 0, and NaN if all pred… and target… numbers are 0."""

    def score(counts: Counts) -> float:
        part, whole = formula(counts)
        present = any(n for name, n in vars(counts).items() if name.startswith(("pred", "target")))
        return float(part / whole) if whole else 0.0 if present else math.nan

    return property(score, doc=meaning)


def class_masks(pred: ArrayLike, target: ArrayLike, of_class: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Where the class is predicted and where it is true in two class maps, boolean (H, W)."""
    pred, target = check_maps(pred, target, "H, W")
    return (pred == of_class) & (target != IGNORE_INDEX), target == of_class


def class_objects(pred: ArrayLike, target: ArrayLike, of_class: int = 1, *, connectivity: int = 8) -> Maps:
    """The connected components of one class in two class maps, numbered: two instance maps (H, W) int64."""
    neighbours = ndimage.generate_binary_structure(2, connectivity // 4)
    return tuple(ndimage.label(mask, neighbours, np.int64)[0] for mask in class_masks(pred, target, of_class))


# Predicted object pred[n] and true object target[n] share pixels[n] > 0 pixels; all (N,) int64.  Objects are 1 … P and
# 1 … T in the order of their labels, 0 is background; sizes (P + 1,), (T + 1,) are in pixels.
Overlaps = namedtuple("Overlaps", "pred target pixels pred_size target_size")


def overlaps(pred: ArrayLike, target: ArrayLike) -> Overlaps:
    """Count the pixels that predicted and true objects of two instance maps (H, W) share."""
    maps = [labels.ravel() for labels in check_maps(pred, target, "H, W")]
    # Cut into runs in which neither label changes: in pictures of cells ten times fewer items to sort.
    changes = (maps[0][1:] != maps[0][:-1]) | (maps[1][1:] != maps[1][:-1])
    start = np.flatnonzero(np.append(maps[0].size > 0, changes))
    length = np.diff(start, append=maps[0].size)
    pred_run, target_run = (renumber(labels[start]) for labels in maps)
    columns = pred_run.max(initial=0) + 1
    key, pair = np.unique(target_run * columns + pred_run, return_inverse=True)
    sizes = (np.bincount(run, length, n).astype(np.int64) for run, n in ((pair, 0), (pred_run, 1), (target_run, 1)))
    return Overlaps(key % columns, key // columns, *sizes)


class MatchCounts(Counts):
    """Objects at an IoU `threshold`: TP = `hits`, FP = `pred` − TP, FN = `target` − TP; `iou_sum` is that of the hits.

    `ap` is that of the Data Science Bowl 2018 (Caicedo et al., 2019, doi:10.1038/s41592-019-0612-7), not the area under
    a curve.  Panoptic quality, at the threshold 0.5: Kirillov et al., 2019 (arXiv:1801.00868).
    """

    precision = _score(lambda c: (c.hits, c.pred), "TP / (TP + FP)")
    recall = _score(lambda c: (c.hits, c.target), "TP / (TP + FN)")
    f1 = _score(lambda c: (2 * c.hits, c.pred + c.target), "2·TP / (2·TP + FP + FN), the recognition quality RQ")
    ap = _score(lambda c: (c.hits, c.pred + c.target - c.hits), "TP / (TP + FP + FN)")
    panoptic_quality = _score(lambda c: (2 * c.iou_sum, c.pred + c.target), "PQ = Σ IoU / (TP + FP/2 + FN/2) = SQ·RQ")
    segmentation_quality = _score(lambda c: (c.iou_sum, c.hits or math.nan), "SQ = Σ IoU / TP, mean IoU of the hits")


def match_objects(table: Overlaps, threshold: float = 0.5) -> MatchCounts:
    """Match each predicted object with at most one true object so that IoU > threshold, and count the matches.

    From 0.5 on there is no choice.  Below, the matching is optimal: as many hits as possible, then the highest Σ IoU.

    >>> counts = match_objects(overlaps(np.array([[1, 1, 1, 0, 2]]), np.array([[1, 1, 1, 1, 0]])))
    >>> counts.hits, counts.ap, counts.panoptic_quality  # IoU 3/4, one false object: AP 1/2, PQ 0.75 / 1.5
    (1, 0.5, 0.5)
    """
    union = table.pred_size[table.pred] + table.target_size[table.target] - table.pixels
    near = np.flatnonzero((table.pred > 0) & (table.target > 0) & (table.pixels / union > threshold))
    pred, target, iou = table.pred[near], table.target[near], (table.pixels / union)[near]
    if threshold < 0.5 and iou.size:
        iou_of = coo_array((iou, (pred, target))).toarray()
        # one more hit is worth more than any gain in the sum of IoU
        chosen = linear_sum_assignment((iou_of > 0) + iou_of / (min(iou_of.shape) + 1), maximize=True)
        iou = iou_of[chosen][iou_of[chosen] > 0]
    objects = {"pred": table.pred_size.size - 1, "target": table.target_size.size - 1}
    return MatchCounts(threshold=threshold, hits=iou.size, iou_sum=float(iou.sum()), **objects)


def match_curve(table: Overlaps) -> list[MatchCounts]:
    """`match_objects` at the IoU 0.50, 0.55 … 0.95; the mean of their AP is the score of the Data Science Bowl 2018."""
    return [match_objects(table, k / 20) for k in range(10, 20)]


class PartitionCounts(Counts):
    """Adapted Rand error, from ordered pairs of pixels in one object; variation of information, bits over all `pixels`.

    Arganda-Carreras et al., 2015 (doi:10.3389/fnana.2015.00142); Meilă, 2007 (doi:10.1016/j.jmva.2006.11.013).
    """

    rand_precision = _score(lambda c: (c.joint_pairs, c.pred_pairs), "Of the joined pairs, the right; merges lower it")
    rand_recall = _score(lambda c: (c.joint_pairs, c.target_pairs), "Of the pairs to join, the found; splits lower it")
    arand = _score(lambda c: ((n := c.pred_pairs + c.target_pairs) - 2 * c.joint_pairs, n), "1 − F1 of the two, 0 … 1")
    voi_split = _score(lambda c: (c.split_bits, c.pixels), "H(prediction | truth) in bits")
    voi_merge = _score(lambda c: (c.merge_bits, c.pixels), "H(truth | prediction) in bits")
    voi = _score(lambda c: (c.split_bits + c.merge_bits, c.pixels), "Variation of information, their sum; 0 is perfect")


def partition(table: Overlaps, *, background: bool = False) -> PartitionCounts:
    """Compare two partitions by the pixels n_ij that true object i and predicted object j share.

    With t_i = Σ_j n_ij, p_j = Σ_i n_ij and n = Σ n_ij:  precision = Σ n_ij·(n_ij − 1) / Σ p_j·(p_j − 1),  recall =
    Σ n_ij·(n_ij − 1) / Σ t_i·(t_i − 1),  split = −Σ n_ij/n · log₂(n_ij / t_i),  merge = −Σ n_ij/n · log₂(n_ij / p_j).
    Only pixels of true objects count; what was missed of them is one more segment.  With `background` all pixels do.
    """
    counted = np.flatnonzero((table.target > 0) | background)
    n, pred, target = table.pixels[counted], table.pred[counted], table.target[counted]
    p, t = (np.bincount(number, n).astype(np.int64) for number in (pred, target))
    sizes, wholes = {"joint": n, "pred": p, "target": t}, {"split": t[target], "merge": p[pred]}
    pairs = {f"{name}_pairs": int((size * (size - 1)).sum()) for name, size in sizes.items()}
    bits = {f"{name}_bits": float((n * np.log2(whole / n)).sum()) for name, whole in wholes.items()}
    return PartitionCounts(pixels=int(n.sum()), **pairs, **bits)


class CentreLineCounts(Counts):
    """Pixels of the skeletons S_P, S_G, and those inside of the other mask.  Shit et al., 2021 (arXiv:2003.07311)."""

    precision = _score(lambda c: (c.pred_inside, c.pred_length), "|S_P ∩ G| / |S_P|: false branches lower it")
    sensitivity = _score(lambda c: (c.target_inside, c.target_length), "|S_G ∩ P| / |S_G|: gaps lower it")
    cl_dice = _score(lambda c: (2 * c.precision * c.sensitivity, c.precision + c.sensitivity), "Their harmonic mean")


def centre_lines(pred: ArrayLike, target: ArrayLike, of_class: int = 1) -> CentreLineCounts:
    """Count how much of the skeletons S_P, S_G of one class lies inside of the true mask G, the predicted mask P."""
    in_pred, in_target = class_masks(pred, target, of_class)
    of_pred, of_target = skeletonize(in_pred), skeletonize(in_target)
    lines = {"pred_inside": of_pred & in_target, "pred_length": of_pred}
    lines |= {"target_inside": of_target & in_pred, "target_length": of_target}
    return CentreLineCounts(**{name: np.count_nonzero(line) for name, line in lines.items()})


class TopologyCounts(Counts):
    """Topological errors of one class, summed over `images`: objects and holes of the stated `connectivity`.

    Errors count severities: a blob that joins three objects is two merges.  `beta0_error` (objects) and `beta1_error`
    (holes) sum |β(P) − β(G)| over the images; in one image a missed and an invented object cancel out.
    """

    errors = property(lambda c: c.merges + c.spurious + c.splits + c.missed)
    hole_errors = property(lambda c: c.hole_merges + c.hole_spurious + c.hole_splits + c.hole_missed)
    errors_per_object = property(lambda c: c.errors / c.objects if c.objects else math.inf if c.errors else math.nan)


def topology_counts(pred: ArrayLike, target: ArrayLike, of_class: int = 1, *, connectivity: int = 8) -> TopologyCounts:
    """Count the topological errors of one class in class maps (H, W); `connectivity` as in `critical_regions`."""
    pred, target = check_maps(pred, target, "H, W")
    regions = critical_regions(pred[None], target[None], classes=(of_class,), connectivity=connectivity)
    betti, wrong = regions.betti_target, abs(regions.betti_pred - regions.betti_target)
    numbers = np.dstack([betti, regions.severities(), wrong]).ravel().tolist()  # severities in the order of `KINDS`
    return TopologyCounts(connectivity=connectivity, images=1, **dict(zip(TOPOLOGY, numbers, strict=True)))


class BoundaryCounts(Counts):
    """Lengths of borders in pixels, and the part of each that is `…_near`: within `tolerance` of the other's border.

    Boundary F1: Csurka et al., 2013 (doi:10.5244/C.27.32).  Surface Dice: Nikolov et al., 2021 (doi:10.2196/26151).
    """

    precision = _score(lambda c: (c.pred_near, c.pred_length), "The part of the predicted border near to a true one")
    recall = _score(lambda c: (c.target_near, c.target_length), "The part of the true border near to a predicted one")
    f1 = _score(lambda c: (2 * c.precision * c.recall, c.precision + c.recall), "Boundary F1, their harmonic mean")
    surface_dice = _score(lambda c: (c.pred_near + c.target_near, c.pred_length + c.target_length), "Of both together")


class BoundaryDistances(namedtuple("BoundaryDistances", "pred target")):
    """Pixels from each predicted crack (N,) to the true border, and from each true one (M,) to the predicted border."""

    def within(self, tolerance: float) -> BoundaryCounts:
        """Count the lengths within `tolerance` pixels of the other's border, the limit included."""
        pred, target = (np.count_nonzero(distance <= tolerance) for distance in (self.pred, self.target))
        lengths = {"pred_length": self.pred.size, "target_length": self.target.size}
        return BoundaryCounts(tolerance=tolerance, pred_near=pred, target_near=target, **lengths)

    def hausdorff(self, percentile: float = 95.0) -> float:
        """The larger of the two directed percentiles, in pixels; infinite if one map has no border, NaN if both."""
        if not self.pred.size or not self.target.size:
            return math.inf if self.pred.size or self.target.size else math.nan
        return float(max(np.percentile(self.pred, percentile), np.percentile(self.target, percentile)))


def boundary_distances(
    pred: ArrayLike, target: ArrayLike, of_class: int | None = None, *, instances: bool | None = None
) -> BoundaryDistances:
    """Exact distances between the borders in a predicted and a true label map (H, W); the frame is no border.

    With `of_class` it is the border of this class against the rest, by default all borders between different labels.
    In instance maps (`instances=True`) 255 is an object like all others, in class maps (False) what is ignored; without
    a word, class maps are expected, and a 255 beside numbers that no class has, or in `pred`, is refused.

    >>> distances = boundary_distances(np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]]))  # one pixel off
    >>> distances.hausdorff(), distances.within(0.5).f1, distances.within(1).f1
    (1.0, 0.0, 1.0)
    """
    maps: Maps = check_maps(pred, target, "H, W")
    counts = maps[1] != IGNORE_INDEX
    if of_class is None and instances is None:
        many = not counts.all() and max(labels.max(initial=0, where=counts) for labels in maps) >= MOST_CLASSES
        if many or (maps[0] == IGNORE_INDEX).any():
            raise InputError("Is 255 an object of these maps?  Give instances=True; instances=False if it is ignored.")
    if instances:  # other numbers, of which none is 255
        maps, counts = [-renumber(labels) for labels in maps], np.ones_like(counts)
    maps = maps if of_class is None else class_masks(pred, target, of_class)
    points = [np.argwhere(find_cracks(np.where(counts, labels.astype(np.int64), IGNORE_INDEX))) for labels in maps]
    middles = [p[p.sum(axis=1) % 2 == 1] for p in points]  # one coordinate is even, one odd
    # Exact, since middles and ends of all cracks lie on the lattice of half pixels
    return BoundaryDistances(*(cKDTree(others).query(own)[0] / 2 for own, others in zip(middles, points[::-1])))


def choose_threshold(probs: Maps, labels: Maps) -> float:
    """The threshold (0.05 … 0.95) with the fewest errors of topology, in a tie the one near 0.5."""
    if not all(np.isfinite(p).all() for p in probs):
        raise InputError("choose_threshold: the probabilities hold NaN or Inf; look at the predictions.")
    errors = {k / 20: topology_row([p > k / 20 for p in probs], labels)["all_errors"] for k in range(1, 20)}
    return min(errors, key=lambda threshold: (errors[threshold], abs(threshold - 0.5)))


def judge(guesses: Maps, labels: Maps, object_class: int = 1) -> Row:
    """All scores of boolean maps; the components of `object_class` (1: 8-connected, 0: 4-connected) are the objects.

    `hd95` is the median over the `hd95_images` with a border in truth or guess, infinite where one of them has none;
    counts of topology are per image; all others are of the whole set.
    """
    pairs, connectivity = list(zip(guesses, labels)), 8 if object_class == 1 else 4
    borders = [boundary_distances(guess, label, of_class=1) for guess, label in pairs]
    hd95 = [d for distances in borders if not math.isnan(d := distances.hausdorff(95))]  # nothing is there, or found
    tables = [overlaps(*class_objects(*pair, object_class, connectivity=connectivity)) for pair in pairs]
    parts, matches = total(map(partition, tables)), total(map(match_objects, tables))
    return {
        "dice": dice(guesses, labels),
        "mean_iou": metrics.mean_iou(_confusion(guesses, labels)),
        "boundary_f1": total(distances.within(2) for distances in borders).f1,
        "hd95": float(np.median(hd95)) if hd95 else math.nan,
        "hd95_images": len(hd95),
        "cl_dice": total(centre_lines(*pair) for pair in pairs).cl_dice,
        **{name: getattr(parts, name) for name in ("arand", "voi_split", "voi_merge")},
        **{"object_f1": matches.f1, "panoptic_quality": matches.panoptic_quality},
    } | topology_row(guesses, labels)


def dice(guesses: Maps, labels: Maps) -> float:
    """Dice of class 1 over all pixels of all images, which is its F1; NaN if it occurs nowhere."""
    return float(metrics.f1_per_class(_confusion(guesses, labels))[1])


def topology_row(guesses: Maps, labels: Maps) -> Row:
    """All counts of topology, per image; `all_errors` are those of objects and of holes."""
    counts: TopologyCounts = total(topology_counts(guess, label) for guess, label in zip(guesses, labels))
    per_image = {name: n / counts.images for name, n in vars(counts).items() if name not in ("connectivity", "images")}
    return {"all_errors": (counts.errors + counts.hole_errors) / counts.images} | per_image


def total(counts: Iterable[Counts]) -> Any:
    """The sum of the counts of one or more images."""
    return sum(counts)


def _confusion(guesses: Maps, labels: Maps) -> torch.Tensor:
    pairs = ([torch.from_numpy(labels.astype(np.int64)) for labels in pair] for pair in zip(guesses, labels))
    return torch.stack([metrics.confusion_matrix(guess, label, 2) for guess, label in pairs]).sum(dim=0)


def precision_recall(probs: Maps, labels: Maps) -> SimpleNamespace:
    """Precision and recall of "probability ≥ threshold" over all pixels, an entry for each of the falling `thresholds`.

    `probs` (H, W) are of class 1, `labels` 0, 1 or 255 (ignored).  `f1` is highest, `max_f`, at the entry `best`;
    `average_precision` is Σ (R_n − R_{n−1}) · P_n, `average_precision_11` the mean over the recalls 0, 0.1 … 1 of the
    best precision there or above, as in the KITTI road benchmark (Fritsch et al., 2013, doi:10.1109/ITSC.2013.6728473).
    """
    score, label = (np.concatenate([np.ravel(x) for x in arrays]) for arrays in (probs, labels))
    score, label = score[label != IGNORE_INDEX].astype(np.float64), label[label != IGNORE_INDEX]
    if not np.isfinite(score).all() or not np.isin(label, (0, 1)).all() or not (label == 1).any():
        raise InputError("precision_recall: expected finite probs, labels of 0, 1 and 255, and one pixel of 1 or more.")
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(label[order])
    last = np.flatnonzero(np.diff(score, append=-np.inf))  # equal probabilities pass a threshold together
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    f1 = 2 * hits[last] / (last + 1 + hits[-1])
    curve = SimpleNamespace(thresholds=score[last], precision=precision, recall=recall, f1=f1, best=int(f1.argmax()))
    curve.max_f, curve.average_precision = float(f1.max()), float((np.diff(recall, prepend=0) * precision).sum())
    curve.average_precision_11 = float(np.mean([precision[recall >= k / 10 - 1e-12].max() for k in range(11)]))
    return curve
