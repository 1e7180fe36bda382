"""Objects, borders and structures: pictures solved by hand, and slow or independent judges beside every metric."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import label
from skimage.metrics import adapted_rand_error, variation_of_information

from checks import IGNORE_INDEX, InputError
from geometry import objects as geo
from geometry.boundary import separation_weights
from geometry.objects import boundary_distances, judge, match_objects, overlaps, partition, topology_counts

SEEDS = st.integers(0, 2**31)
EMPTY = np.zeros((5, 5), int)


def random_instances(rng, objects=6, largest=16):
    """A pair of instance maps: random rectangles, and a copy that was shifted, merged, cut and sprinkled."""
    shape = tuple(rng.integers(1, largest + 1, 2))
    target = np.zeros(shape, np.int64)
    for number in range(1, rng.integers(0, objects + 1) + 1):
        y, x = (rng.integers(0, n) for n in shape)
        target[y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = number
    pred = np.roll(target, rng.integers(-1, 2, 2), axis=(0, 1))
    pred[pred == rng.integers(0, objects + 1)] = rng.integers(0, objects + 3)
    cut = pred == rng.integers(1, objects + 1)
    cut[:, : shape[1] // 2] = False
    pred[cut] = objects + 7
    noise = rng.random(shape) < 0.1
    pred[noise] = rng.integers(0, objects + 1, noise.sum())
    return pred, target


def scores_of(pred, target):
    """The scores of all kinds of counts, by name, and the counts of topology."""
    table, borders = overlaps(*geo.class_objects(pred, target)), boundary_distances(pred, target, 1).within(1)
    found = {}
    for counts in (match_objects(table), match_objects(table, 0.1), geo.centre_lines(pred, target), borders):
        names = [name for name, value in vars(type(counts)).items() if isinstance(value, property)]
        found |= {f"{type(counts).__name__}.{name}": getattr(counts, name) for name in names}
    return found, partition(table), topology_counts(pred, target)


def test_nothing_in_truth_and_prediction_has_no_score():
    found, parts, counts = scores_of(EMPTY, EMPTY)
    values = [*found.values(), counts.errors_per_object]
    values += [parts.arand, parts.rand_precision, parts.rand_recall, parts.voi]
    assert len(values) == 18 and all(math.isnan(value) for value in values)
    assert overlaps(EMPTY[:0], EMPTY[:0]).pixels.size == 0


@pytest.mark.parametrize("exchange", [False, True])
def test_something_in_truth_or_prediction_only_scores_zero(exchange):
    block = np.pad(np.ones((3, 3), int), 1)
    found, parts, counts = scores_of(*((block, EMPTY) if exchange else (EMPTY, block)))
    assert math.isnan(found.pop("MatchCounts.segmentation_quality"))  # the mean over no hit
    assert len(found) == 12 and set(found.values()) == {0}
    assert math.isnan(parts.arand) == exchange  # as documented, the background of the truth is not counted
    assert counts.errors_per_object == (math.inf if exchange else 1)


def test_ignored_pixels_are_in_no_mask_no_object_no_skeleton_and_no_border():
    pred, target = np.array([[1, 1, 1, 0, 2]]), np.array([[1, 255, 1, 255, 1]])
    assert [m.tolist() for m in geo.class_masks(pred, target)] == [[[1, 0, 1, 0, 0]], [[1, 0, 1, 0, 1]]]
    assert [m.tolist() for m in geo.class_objects(pred, target)] == [[[1, 0, 2, 0, 0]], [[1, 0, 2, 0, 3]]]
    assert geo.class_objects(pred, target, of_class=2)[0].tolist() == [[0, 0, 0, 0, 1]]
    target = np.array([[1, 1, 1, 255, 255]])
    assert geo.centre_lines(np.ones_like(target), target).cl_dice == 1
    assert topology_counts(np.array([[1, 1, 1, 0, 1]]), target).errors == 0
    pred, target = np.array([[0, 1, 1, 0, 0]]), np.array([[0, 255, 1, 0, 255]])
    counts = boundary_distances(pred, target).within(0)
    # only the crack between columns 2 and 3 is left
    assert counts == geo.BoundaryCounts(tolerance=0, pred_near=1, pred_length=1, target_near=1, target_length=1)
    assert boundary_distances(pred, target, 1).within(0) == counts


def test_wrong_maps_are_refused():
    good = np.eye(4, dtype=int)[:3]
    for metric in (overlaps, geo.class_masks, geo.centre_lines, topology_counts, boundary_distances):
        for bad, words in ((good[None], "shape"), (good.astype(float), "dtype"), (good.T, "one shape")):
            with pytest.raises(InputError, match=words):
                metric(good, bad)
    with pytest.raises(InputError, match="negative"):
        overlaps(good - 1, good)


@given(SEEDS)
def test_overlaps_against_counting(seed):
    pred, target = random_instances(np.random.default_rng(seed))
    table = overlaps(pred, target)
    names_p, names_t = ([0, *sorted(set(m.ravel().tolist()) - {0})] for m in (pred, target))
    pairs = zip(table.pred.tolist(), table.target.tolist(), table.pixels.tolist(), strict=True)
    found = {(names_p[p], names_t[t]): n for p, t, n in pairs}
    assert found == Counter(zip(pred.ravel().tolist(), target.ravel().tolist()))
    assert len(found) == table.pixels.size  # each pair once
    assert table.pred_size.tolist() == [(pred == name).sum() for name in names_p]
    assert table.target_size.tolist() == [(target == name).sum() for name in names_t]


def test_matching_by_hand():
    # object 1 and 6 share 3 of 4 pixels: IoU 3/4; 2 covers 7 exactly: 1; 3 and 8 share 1 of 4: 1/4; 9 is missed
    pred = np.array([[1, 1, 1, 1, 0, 3, 3, 3], [0, 0, 2, 2, 2, 3, 0, 0]])
    true = np.array([[6, 6, 6, 0, 0, 8, 0, 0], [0, 0, 7, 7, 7, 0, 0, 9]])
    table = overlaps(pred, true)
    half = match_objects(table)
    # TP 2, FP 1 (object 3), FN 2 (8 and 9)
    assert (half.hits, half.pred, half.target, half.iou_sum) == (2, 3, 4, 1.75)
    assert (half.precision, half.recall, half.f1, half.ap) == (2 / 3, 2 / 4, 4 / 7, 2 / 5)
    assert half.segmentation_quality == 0.875  # (3/4 + 1) / 2
    assert half.panoptic_quality == 0.5  # 1.75 / (2 + 1/2 + 2/2)
    assert match_objects(table, 0.75).hits == 1  # an IoU equal to the threshold is no hit
    assert match_objects(table, 0.2).hits == 3
    # above 0.5, 0.55 … 0.70 two hits (AP 2/5), from 0.75 to 0.95 one (AP 1/6)
    curve = geo.match_curve(table)
    assert [counts.threshold for counts in curve] == pytest.approx(np.arange(0.5, 0.99, 0.05))
    assert [counts.ap for counts in curve] == [2 / 5] * 5 + [1 / 6] * 5


def test_below_one_half_more_hits_win_over_a_higher_iou():
    # pred 1 shares 4 pixels with true 1 (IoU 4/7) and 2 with true 2 (2/8); pred 2 shares 1 with true 1 (1/6)
    pred, target = np.array([[2, 1, 1, 1, 1, 1, 1, 0, 0]]), np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2]])
    counts = match_objects(overlaps(pred, target), 0.1)
    assert counts.hits == 2 and counts.iou_sum == pytest.approx(1 / 5 + 2 / 8)
    # greedy would take the best pair first, and then nothing would be left for pred 2


@given(SEEDS, st.sampled_from([0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9]))
def test_matching_against_every_possible_matching(seed, threshold):
    pred, target = random_instances(np.random.default_rng(seed), objects=4)
    sets = [[set(zip(*np.nonzero(m == name))) for name in np.unique(m[m > 0])] for m in (pred, target)]
    a, b = sorted(sets, key=len)
    iou = [[len(p & t) / len(p | t) for t in b] for p in a]
    choices = itertools.permutations(range(len(b)), len(a))
    kept = [[row[k] for row, k in zip(iou, choice) if row[k] > threshold] for choice in choices]
    hits, iou_sum = max((len(values), sum(values)) for values in kept)
    counts = match_objects(overlaps(pred, target), threshold)
    assert counts.hits == hits and counts.iou_sum == pytest.approx(iou_sum)
    assert (counts.pred, counts.target) == (len(sets[0]), len(sets[1]))


def test_partition_by_hand():
    # true 1 (4 pixels) cut in halves, one of which (3) also holds true 2 (2 pixels)
    #          pred   2 2 3 3 3 3 9         n: (1,2) = 2, (1,3) = 2, (2,3) = 2
    #          true   1 1 1 1 2 2 0         the false object 9 is on the background
    table = overlaps(np.array([[2, 2, 3, 3, 3, 3, 9]]), np.array([[1, 1, 1, 1, 2, 2, 0]]))
    counts = partition(table)
    # ordered pairs: joint 3 · 2·1 = 6, pred 2·1 + 4·3 = 14, true 4·3 + 2·1 = 14
    assert (counts.pixels, counts.joint_pairs, counts.pred_pairs, counts.target_pairs) == (6, 6, 14, 14)
    assert counts.rand_precision == counts.rand_recall == 6 / 14 and counts.arand == pytest.approx(8 / 14)
    # split: the four pixels of true 1 need one bit each, merge: so do the four of pred 3
    assert counts.voi_split == counts.voi_merge == pytest.approx(4 / 6) and counts.voi == pytest.approx(8 / 6)
    assert partition(table, background=True).pixels == 7
    # objects of single pixels have bits, but no pairs
    pixels, one = np.array([[1, 2]]), np.array([[1, 1]])
    assert partition(overlaps(pixels, one)).arand == 1 and partition(overlaps(pixels, one)).rand_precision == 0
    perfect = partition(overlaps(pixels, pixels))
    assert math.isnan(perfect.arand) and perfect.voi == 0


@given(SEEDS, st.booleans())
def test_partition_against_scikit_image(seed, background):
    pred, target = random_instances(np.random.default_rng(seed))
    counts = partition(overlaps(pred, target), background=background)
    ignored = () if background else (0,)
    if counts.pixels:
        bits = variation_of_information(target, pred, ignore_labels=ignored)
        assert [counts.voi_split, counts.voi_merge] == pytest.approx(bits, abs=1e-12)
    if counts.pred_pairs and counts.target_pairs:  # scikit-image gives the recall as precision
        error, recall, precision = adapted_rand_error(target, pred, ignore_labels=ignored)
        assert [counts.arand, counts.rand_precision, counts.rand_recall] == pytest.approx([error, precision, recall])


def all_scores(pred, target):
    table = overlaps(pred, target)
    counts, parts = match_objects(table), partition(table)
    return [counts.f1, counts.ap, counts.panoptic_quality, match_objects(table, 0.2).f1, parts.arand, parts.voi]


@given(SEEDS)
def test_renaming_and_moving_change_no_score(seed):
    rng = np.random.default_rng(seed)
    pred, target = random_instances(rng)
    names = [np.append(0, 1 + rng.permutation(300)) for _ in range(2)]
    before = all_scores(pred, target)
    assert all_scores(names[0][pred], names[1][target]) == pytest.approx(before, nan_ok=True)
    for move in (np.fliplr, np.flipud, np.transpose):
        assert all_scores(move(pred), move(target)) == pytest.approx(before, nan_ok=True)


def test_topology_by_hand():
    picture = "##+##..##-##", ".....+......", "-....+..###.", "........#+#.", "........###."
    signs = np.array([list(row) for row in picture])
    # row 0: the + joins two objects (merge), the - cuts one (split); the other two + touch nothing by a side
    # (spurious); the single - is missed; the ring's hole is filled.  Truth: three bars, the missed one, the ring.
    pred, target = np.isin(signs, ["#", "+"]), np.isin(signs, ["#", "-"])
    counts = topology_counts(pred, target, connectivity=4)
    assert (counts.objects, counts.holes, counts.images) == (5, 1, 1)
    assert (counts.merges, counts.splits, counts.spurious, counts.missed) == (1, 1, 1, 1)
    # predicted are five objects as well: the merged bar, two halves, the false one, the ring.  β0 sees no error.
    assert (counts.beta0_error, counts.beta1_error, counts.hole_missed) == (0, 1, 1)
    assert counts.errors == 4 and counts.errors_per_object == 4 / 5


def test_errors_of_images_do_not_cancel_out_and_the_connectivity_matters():
    more, less = np.array([[1, 0, 1]]), np.array([[1, 0, 0]])
    both = topology_counts(more, less) + topology_counts(less, more)
    assert both.beta0_error == 2 and both.spurious == 1
    ring = np.pad(np.zeros((1, 1), np.int64), 2, constant_values=1)
    row = geo.topology_row([ring >= 0, ring == 1], [ring, ring])  # per image
    assert (row["hole_missed"], row["all_errors"], row["objects"], row["holes"]) == (0.5, 0.5, 1.0, 1.0)
    pred, target = np.array([[1, 0], [0, 1]]), np.array([[1, 1], [0, 1]])
    assert topology_counts(pred, target, connectivity=8).splits == 0
    assert topology_counts(pred, target, connectivity=4).splits == 1
    with pytest.raises(InputError, match="connectivity 8 and of connectivity 4 do not add up"):
        topology_counts(pred, target) + topology_counts(pred, target, connectivity=4)


def test_centre_lines_by_hand():
    # The true line has 9 pixels, the predicted one is cut in the middle and has a false pixel far away.
    target = np.pad(np.ones((1, 9), int), ((2, 2), (0, 0)))
    pred = target.copy()
    pred[2, 4], pred[0, 0] = 0, 1
    counts = geo.centre_lines(pred, target)
    assert counts == geo.CentreLineCounts(pred_inside=8, pred_length=9, target_inside=8, target_length=9)
    assert counts.precision == counts.sensitivity == 8 / 9 and counts.cl_dice == pytest.approx(8 / 9)


def cracks(labels, ignored):
    """All sides between two pixels of different label, as segments (y0, x0, y1, x1)."""
    (height, width), found = labels.shape, []
    for y, x in np.ndindex(height, width):
        for other in ((y, x + 1), (y + 1, x)):  # the pixel to the right or below; the crack begins at its corner
            inside = other[0] < height and other[1] < width
            if inside and labels[y, x] != labels[other] and not (ignored[y, x] or ignored[other]):
                found.append((*other, y + 1, x + 1))
    return found


def from_crack_to_crack(labels, others, ignored):
    """Sorted distances from the middle of each crack to the nearest point of the other's cracks."""
    distances, segments = [], cracks(others, ignored)
    for y0, x0, y1, x1 in cracks(labels, ignored):
        y, x = (y0 + y1) / 2, (x0 + x1) / 2
        # the nearest point of a segment along the axes is found by clipping
        away = [math.hypot(y - min(max(y, a), c), x - min(max(x, b), d)) for a, b, c, d in segments]
        distances.append(min(away, default=math.inf))
    return sorted(distances)


def random_borders(seed, classes=3):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 10, 2)
    target = np.kron(rng.integers(0, classes, (5, 5)), np.ones((2, 2), int))[: shape[0], : shape[1]]
    pred = np.where(rng.random(shape) < 0.15, rng.integers(0, classes, shape), np.roll(target, 1, axis=rng.integers(2)))
    target = np.where(rng.random(shape) < rng.choice([0, 0.2]), IGNORE_INDEX, target)
    return pred, target


@given(SEEDS, st.sampled_from([None, 0, 1]))
def test_borders_against_the_distance_from_each_crack_to_each_crack(seed, of_class):
    pred, target = random_borders(seed)
    found = boundary_distances(pred, target, of_class)
    ignored = target == IGNORE_INDEX
    maps = (pred, target) if of_class is None else (pred == of_class, target == of_class)
    expected = from_crack_to_crack(*maps, ignored), from_crack_to_crack(*maps[::-1], ignored)
    assert (sorted(found.pred.tolist()), sorted(found.target.tolist())) == expected  # exact, to the last bit
    for tolerance in (0, 0.5, math.sqrt(2), 2):
        counts = found.within(tolerance)
        assert [counts.pred_near, counts.target_near] == [sum(d <= tolerance for d in side) for side in expected]
        if all(expected):
            assert found.hausdorff(100) == max(expected[0][-1], expected[1][-1])


def test_a_tooth_by_hand():
    # target: a straight border of length 6.  pred: one pixel of it sticks out, cracks 5 + 1 + 2 = 8.
    # The two sides of the tooth have their middles at 0.5 from the straight border, its top at 1.
    target = np.zeros((6, 8), int)
    target[:, :4] = 1
    pred = target.copy()
    pred[3, 4] = 1
    distances = boundary_distances(pred, target)
    assert sorted(distances.pred) == [0, 0, 0, 0, 0, 0.5, 0.5, 1]
    assert sorted(distances.target) == [0, 0, 0, 0, 0, 0.5]  # from the covered crack to the end of its neighbour
    counts = distances.within(0.5)
    assert (counts.precision, counts.recall, counts.surface_dice) == (7 / 8, 1, 13 / 14)
    assert counts.f1 == pytest.approx(14 / 15)  # 2 · 7/8 / (15/8)
    # eight numbers, the 95th percentile lies at 0.95 · 7 = 6.65, between 0.5 and 1: 0.5 + 0.65 · 0.5
    assert distances.hausdorff(100) == 1 and distances.hausdorff(95) == pytest.approx(0.825)


def test_the_threshold_with_the_fewest_errors_wins_and_in_a_tie_the_one_next_to_a_half():
    target = np.array([[1, 1, 1, 0, 1, 1, 1]] * 3)
    probs = np.where(target == 1, 0.92, 0.62).astype(np.float32)  # one bridge at 0.60 and below
    assert geo.choose_threshold([probs], [target]) == 0.65


def test_scores_in_one_row_are_those_of_independent_counts():
    rng = np.random.default_rng(0)
    labels = [(rng.random((24, 24)) > 0.6).astype(np.int64) for _ in range(3)]
    guesses = [target.astype(bool) ^ (rng.random((24, 24)) > 0.9) for target in labels]
    row = judge(guesses, labels, 1)
    a, b = np.concatenate(guesses), np.concatenate(labels) == 1
    assert row["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum())) == geo.dice(guesses, labels)
    assert row["mean_iou"] == pytest.approx(np.mean([(x & y).sum() / (x | y).sum() for x, y in ((a, b), (~a, ~b))]))
    objects = [abs(label(g).max() - label(y).max()) for g, y in zip(guesses, labels)]
    assert row["beta0_error"] == pytest.approx(np.mean(objects))  # scikit-image: 8-connected in 2-D by default
    errors = [row[f"{holes}{kind}"] for holes in ("", "hole_") for kind in ("merges", "splits", "spurious", "missed")]
    assert row["all_errors"] == pytest.approx(sum(errors))


@pytest.mark.parametrize("object_class", [0, 1])
def test_perfect_predictions_have_perfect_scores_and_ignored_pixels_no_say(object_class):
    target = np.kron(np.eye(3, dtype=np.int64), np.ones((5, 5), np.int64))
    guess = target == 1
    target[:, 6:8] = IGNORE_INDEX
    other = guess.copy()
    other[:, 6:8] ^= True
    row = judge([guess], [target], object_class)
    assert row["all_errors"] == row["beta0_error"] == row["arand"] == row["voi_split"] == row["hd95"] == 0
    assert row["dice"] == row["panoptic_quality"] == row["object_f1"] == row["boundary_f1"] == row["cl_dice"] == 1
    assert judge([other], [target], object_class) == row


def test_bricks_are_four_connected_as_the_background_is():
    target = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 0]])  # two bricks that share only a corner
    assert judge([target == 1], [target], 0)["object_f1"] == 1.0
    assert judge([np.array([[0, 0, 1], [0, 0, 1], [1, 0, 0]]) == 1], [target], 0)["object_f1"] < 1.0  # merged


@given(SEEDS)
def test_every_entry_of_the_curve_is_that_of_its_threshold(seed):
    rng = np.random.default_rng(seed)
    probs = [rng.integers(0, 6, (3, 5)) / 5 for _ in range(2)]  # with ties
    labels = [rng.choice([0, 1, 255], (3, 5)) for _ in range(2)]
    labels[0][0, 0] = 1
    curve = geo.precision_recall(probs, labels)
    score, truth = np.stack(probs), np.stack(labels)
    assert list(curve.thresholds) == sorted(np.unique(score[truth != 255]), reverse=True)
    for threshold, precision, recall in zip(curve.thresholds, curve.precision, curve.recall):
        said = (score >= threshold) & (truth != 255)
        hits = (said & (truth == 1)).sum()
        assert (precision, recall) == pytest.approx((hits / said.sum(), hits / (truth == 1).sum()))
    f1 = [2 * p * r / max(p + r, 1e-9) for p, r in zip(curve.precision, curve.recall)]
    assert curve.max_f == pytest.approx(max(f1))
    eleven = [max(p for p, r in zip(curve.precision, curve.recall) if r >= k / 10 - 1e-9) for k in range(11)]
    assert curve.average_precision_11 == pytest.approx(np.mean(eleven))


def test_rankings_by_hand():
    target = np.array([[0, 0, 0, 1]])
    perfect, constant = (geo.precision_recall([p], [target]) for p in (target * 0.2, target * 0.0 + 0.7))
    assert (perfect.max_f, perfect.average_precision, perfect.average_precision_11) == (1, 1, 1)
    # One threshold, all is road: precision 1/4, recall 1, F1 = 2·(1/4) / (5/4) = 0.4
    assert constant.max_f == pytest.approx(0.4) and constant.average_precision == constant.average_precision_11 == 0.25
    # Ranked 1 0 1: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: 1/2·1 + 0·1/2 + 1/2·2/3 = 5/6
    curve = geo.precision_recall([np.array([[0.9, 0.5, 0.4]])], [np.array([[1, 0, 1]])])
    assert curve.average_precision == pytest.approx(5 / 6)
    assert curve.best == 2 and curve.thresholds[curve.best] == 0.4


@pytest.mark.parametrize(("probability", "label"), [(np.nan, 1), (0.2, 2), (0.2, 255)])  # at last no pixel of class 1
def test_what_cannot_be_ranked_is_refused(probability, label):
    with pytest.raises(InputError, match="precision_recall"):
        geo.precision_recall([np.array([[0.1, probability]])], [np.array([[0, label]])])
    with pytest.raises(InputError, match="NaN"):
        geo.choose_threshold([np.array([[0.3, np.nan]])], [np.array([[0, 1]])])


def test_255_is_an_object_like_others_in_instance_maps():
    assert match_objects(overlaps(np.array([[True, False]]), np.array([[255, 0]], np.uint8))).iou_sum == 1
    target = np.zeros((9, 20), int)
    target[2:6, 2:6], target[2:6, 10:14] = 7, 255
    missed = np.where(target == 255, 0, target)
    # one of two equal borders was found: precision 1, recall 1/2
    assert boundary_distances(missed, target, instances=True).within(1).f1 == pytest.approx(2 / 3)
    assert boundary_distances(missed, target, instances=False).within(1).f1 == 1  # in a class map: ignored
    renamed = np.where(target == 255, 300, target)
    assert boundary_distances(renamed, target, instances=True).within(0).f1 == 1
    for pred, truth in ((target, target), (missed, np.where(target == 7, 254, target))):
        with pytest.raises(InputError, match="instances=True"):
            boundary_distances(pred, truth)


@pytest.mark.parametrize("large", [2**31, 2**24, 2**63 - 1, 2**64 - 2])
def test_numbers_of_objects_are_names_of_any_size(large):
    small = np.array([[1, 1, 0, 2, 2, 0, 1]])
    big = np.where(small == 2, np.uint64(large), np.where(small == 1, np.uint64(large + 1), np.uint64(0)))
    for pred, target in ((small, big), (big, small), (big, big)):
        assert match_objects(overlaps(pred, target)).panoptic_quality == 1
    assert np.array_equal(separation_weights(big), separation_weights(3 * small))
    with pytest.raises(InputError, match="negative"):
        separation_weights(-small)


def test_an_image_without_borders_does_not_spoil_the_distance_of_the_set():
    empty, disc = np.zeros((9, 9), bool), np.pad(np.ones((3, 3), bool), 3)
    row = judge([disc, empty], [np.roll(disc, 1, axis=1), empty])
    assert (row["hd95"], row["hd95_images"]) == (1.0, 1)
    for one, other in ((disc, empty), (empty, disc)):  # found where nothing is, or missed: no image to leave out
        assert judge([one, empty], [other, empty])["hd95"] == boundary_distances(one, other).hausdorff() == np.inf
    assert math.isnan(boundary_distances(~empty, empty).hausdorff())  # each map is of one class: no border
    nothing = judge([empty], [empty])
    assert np.isnan(nothing["hd95"]) and nothing["hd95_images"] == 0
