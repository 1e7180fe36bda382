"""Instance metrics: hand-solved pictures, every possible matching by brute force, and scikit-image as the judge."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from skimage.metrics import adapted_rand_error, variation_of_information
from test_objects import random_instances

from checks import InputError
from geometry.objects import THRESHOLDS, label_objects, match_curve, match_objects, overlaps, partition

SEEDS = st.integers(0, 2**31)

# pred    1 1 1 1 0 3 3 3     object 1 and 6 share 3 of 4 pixels: IoU 3/4
#         0 0 2 2 2 3 0 0     object 2 covers 7 exactly:           IoU 1
# target  6 6 6 0 0 8 0 0     object 3 and 8 share 1 of 4 pixels:  IoU 1/4
#         0 0 7 7 7 0 0 9     object 9 is missed
PRED = np.array([[1, 1, 1, 1, 0, 3, 3, 3], [0, 0, 2, 2, 2, 3, 0, 0]])
TRUE = np.array([[6, 6, 6, 0, 0, 8, 0, 0], [0, 0, 7, 7, 7, 0, 0, 9]])


def partitions_of(labels):
    return [set(zip(*np.nonzero(labels == name), strict=True)) for name in np.unique(labels[labels > 0])]


def best_matching(pred, target, threshold):
    """Most hits, then the highest sum of IoU, over all ways to give each predicted object a true one."""
    a, b = sorted((partitions_of(pred), partitions_of(target)), key=len)
    if not a:
        return 0, 0.0
    iou = [[len(p & t) / len(p | t) for t in b] for p in a]
    results = []
    for choice in itertools.permutations(range(len(b)), len(a)):
        hits = [row[k] for row, k in zip(iou, choice, strict=True) if row[k] > threshold]
        results.append((len(hits), sum(hits)))
    return max(results)


@given(SEEDS, st.sampled_from([0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9]))
def test_matching_against_brute_force(seed, threshold):
    pred, target = random_instances(np.random.default_rng(seed), objects=4)
    counts = match_objects(overlaps(pred, target), threshold)
    hits, iou_sum = best_matching(pred, target, threshold)
    assert counts.hits == hits and counts.iou_sum == pytest.approx(iou_sum)
    P, T = len(partitions_of(pred)), len(partitions_of(target))
    assert (counts.pred, counts.target) == (P, T)
    if P + T:
        assert counts.ap == hits / (P + T - hits) and counts.f1 == 2 * hits / (P + T)
        assert counts.panoptic_quality == pytest.approx(iou_sum / (hits + (P - hits) / 2 + (T - hits) / 2))
    if hits:
        assert counts.panoptic_quality == pytest.approx(counts.segmentation_quality * counts.f1)


@given(SEEDS, st.sampled_from([0, 0.1, 0.3, 0.5, 0.7]))
def test_matching_of_many_objects_against_the_dense_assignment(seed, threshold):
    rng = np.random.default_rng(seed)
    table = overlaps(*(label_objects(rng.random((24, 24)) < 0.6, connectivity=4) for _ in range(2)))
    pred, target, iou = table.ious()
    value = np.zeros((table.pred_size.size, table.target_size.size))
    value[pred, target] = np.where(iou > threshold, 1 + iou / 1000, 0)  # fewer than 1000 objects
    expected = value[linear_sum_assignment(value, maximize=True)].sum()
    counts = match_objects(table, threshold)
    assert counts.hits + counts.iou_sum / 1000 == pytest.approx(expected)


def test_fault_57_noise_takes_bounded_time_and_memory():
    rng = np.random.default_rng(0)
    maps = [label_objects(rng.random((256, 256)) < 0.5, connectivity=4) for _ in range(2)]  # about 4400 objects each
    start = time.perf_counter()
    assert match_objects(overlaps(*maps), 0).hits > 1000
    assert time.perf_counter() - start < 5  # 0.02 s on one core


def test_matching_by_hand():
    table = overlaps(PRED, TRUE)
    half = match_objects(table)
    # TP 2, FP 1 (object 3), FN 2 (8 and 9)
    assert (half.hits, half.pred, half.target, half.iou_sum) == (2, 3, 4, 1.75)
    assert (half.precision, half.recall, half.f1, half.ap) == (2 / 3, 2 / 4, 4 / 7, 2 / 5)
    assert half.segmentation_quality == 0.875  # (3/4 + 1) / 2
    assert half.panoptic_quality == 0.5  # 1.75 / (2 + 1/2 + 2/2)
    assert match_objects(table, 0.75).hits == 1  # an IoU equal to the threshold is no hit
    assert match_objects(table, 0.2).hits == 3
    # above 0.5, 0.55 … 0.70 two hits (AP 2/5), from 0.75 to 0.95 one (AP 1/6)
    curve = match_curve(table)
    assert [counts.threshold for counts in curve] == list(THRESHOLDS) == pytest.approx(np.arange(0.5, 0.99, 0.05))
    assert [counts.ap for counts in curve] == [2 / 5] * 5 + [1 / 6] * 5


def test_half_an_object_is_no_hit():
    # A true object of two pixels, cut into two of one: both have IoU 1/2, and > keeps the matching unique.
    assert match_objects(overlaps(np.array([[1, 2]]), np.array([[1, 1]]))).hits == 0


def test_below_one_half_more_hits_win_over_a_higher_iou():
    # pred 1 shares 4 pixels with true 1 (IoU 4/7) and 2 with true 2 (2/8); pred 2 shares 1 with true 1 (1/6)
    pred, target = np.array([[2, 1, 1, 1, 1, 1, 1, 0, 0]]), np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2]])
    counts = match_objects(overlaps(pred, target), 0.1)
    assert counts.hits == 2 and counts.iou_sum == pytest.approx(1 / 5 + 2 / 8)
    # greedy would take the best pair first, and then nothing would be left for pred 2


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


def test_precision_falls_with_merges_and_recall_with_splits():
    one, two = np.array([[1, 1, 1, 1]]), np.array([[1, 1, 2, 2]])
    merge, split = partition(overlaps(one, two)), partition(overlaps(two, one))
    assert (merge.rand_precision, merge.rand_recall, merge.voi_split, merge.voi_merge) == (4 / 12, 1, 0, 1)
    assert (split.rand_precision, split.rand_recall, split.voi_split, split.voi_merge) == (1, 4 / 12, 1, 0)
    # scikit-image gives the recall as precision: this test tells when it no longer does
    assert adapted_rand_error(two, one)[1:] == (1, 4 / 12)


@given(SEEDS, st.booleans())
def test_partition_against_scikit_image(seed, background):
    pred, target = random_instances(np.random.default_rng(seed))
    counts = partition(overlaps(pred, target), background=background)
    ignored = () if background else (0,)
    if counts.pixels:
        assert [counts.voi_split, counts.voi_merge] == pytest.approx(
            variation_of_information(target, pred, ignore_labels=ignored), abs=1e-12
        )
    if counts.pred_pairs and counts.target_pairs:
        error, recall, precision = adapted_rand_error(target, pred, ignore_labels=ignored)
        assert [counts.arand, counts.rand_precision, counts.rand_recall] == pytest.approx([error, precision, recall])


@given(SEEDS)
def test_partition_against_all_pairs_of_pixels(seed):
    pred, target = random_instances(np.random.default_rng(seed), largest=7)
    pred, target = pred[target > 0], target[target > 0]
    counts = partition(overlaps(pred[None], target[None]))
    pairs = list(itertools.permutations(range(len(pred)), 2))
    together = [(pred[i] == pred[j], target[i] == target[j]) for i, j in pairs]
    assert counts.joint_pairs == sum(p and t for p, t in together)
    assert counts.pred_pairs == sum(p for p, _ in together) and counts.target_pairs == sum(t for _, t in together)


def all_scores(pred, target):
    table = overlaps(pred, target)
    counts, parts = match_objects(table), partition(table)
    return [counts.f1, counts.ap, counts.panoptic_quality, match_objects(table, 0.2).f1, parts.arand, parts.voi]


@given(SEEDS)
def test_renaming_and_moving_the_objects_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    pred, target = random_instances(rng)
    names = [np.append(0, 1 + rng.permutation(300)) for _ in range(2)]
    before = all_scores(pred, target)
    assert all_scores(names[0][pred], names[1][target]) == pytest.approx(before, nan_ok=True)
    for move in (np.fliplr, np.flipud, np.transpose):
        assert all_scores(move(pred), move(target)) == pytest.approx(before, nan_ok=True)


@given(SEEDS)
def test_swapping_truth_and_prediction_swaps_the_parts(seed):
    pred, target = random_instances(np.random.default_rng(seed))
    there, back = (partition(overlaps(*maps), background=True) for maps in ((pred, target), (target, pred)))
    assert [there.rand_precision, there.voi_split] == pytest.approx([back.rand_recall, back.voi_merge], nan_ok=True)
    there, back = (match_objects(overlaps(*maps)) for maps in ((pred, target), (target, pred)))
    assert [there.precision, there.ap] == pytest.approx([back.recall, back.ap], nan_ok=True)


@given(SEEDS)
def test_perfect_is_best(seed):
    _, target = random_instances(np.random.default_rng(seed))
    table = overlaps(2 * target, target)
    if target.any():
        for counts in match_curve(table):
            assert counts.f1 == counts.ap == counts.panoptic_quality == counts.segmentation_quality == 1
        assert partition(table).voi == 0 and not partition(table).arand > 0


def test_fault_47_no_objects_at_all_have_no_score():
    table = overlaps(np.zeros((3, 3), int), np.zeros((3, 3), int))
    counts, parts = match_objects(table), partition(table)
    values = [counts.f1, counts.ap, counts.precision, counts.recall, counts.panoptic_quality, parts.arand, parts.voi]
    assert all(math.isnan(value) for value in [*values, counts.segmentation_quality, match_objects(table, 0.1).f1])


def test_fault_48_objects_in_truth_or_prediction_only_score_zero():
    empty, full = np.zeros((3, 3), int), np.ones((3, 3), int)
    for pair in ((empty, full), (full, empty)):
        counts = match_objects(overlaps(*pair))
        assert counts.f1 == counts.ap == counts.precision == counts.recall == counts.panoptic_quality == 0
        assert math.isnan(counts.segmentation_quality)
    assert math.isnan(partition(overlaps(full, empty)).arand)  # documented: the background of the truth is not counted


def test_no_pair_at_all_is_a_full_error_or_no_score():
    pixels, one = np.array([[1, 2]]), np.array([[1, 1]])
    assert partition(overlaps(pixels, one)).arand == 1 and partition(overlaps(pixels, one)).rand_precision == 0
    assert math.isnan(partition(overlaps(pixels, pixels)).arand)


@given(SEEDS)
def test_fault_51_counts_of_images_add_up(seed):
    # Two images above each other are one image in which the objects of the second have numbers of their own.
    rng = np.random.default_rng(seed)
    (pred, target), (pred2, target2) = (random_instances(rng, objects=3) for _ in range(2))
    width = max(pred.shape[1], pred2.shape[1])
    stack = [np.zeros((pred.shape[0] + pred2.shape[0], width), int) for _ in range(2)]
    for whole, above, below in zip(stack, (pred, target), (pred2, target2), strict=True):
        whole[: above.shape[0], : above.shape[1]] = above
        whole[above.shape[0] :, : below.shape[1]] = np.where(below > 0, below + 100, 0)
    tables = overlaps(pred, target), overlaps(pred2, target2)
    for threshold in (0.2, 0.5):
        added, whole = sum(match_objects(t, threshold) for t in tables), match_objects(overlaps(*stack), threshold)
        assert (added.hits, added.pred, added.target) == (whole.hits, whole.pred, whole.target)
        assert added.iou_sum == pytest.approx(whole.iou_sum)
    # the background of the prediction is one segment over both images, so fill it to compare
    filled = [np.where(stack[0] == 0, np.where(np.arange(len(stack[0]))[:, None] < len(pred), 998, 999), stack[0])]
    parts = [partition(overlaps(np.where(p == 0, 999, p), t)) for p, t in ((pred, target), (pred2, target2))]
    added, whole = sum(parts), partition(overlaps(filled[0], stack[1]))
    assert (added.pixels, added.joint_pairs, added.pred_pairs) == (whole.pixels, whole.joint_pairs, whole.pred_pairs)
    assert [added.voi_split, added.voi_merge] == pytest.approx([whole.voi_split, whole.voi_merge], nan_ok=True)


def test_wrong_input():
    table = overlaps(PRED, TRUE)
    for threshold in (-0.1, 1, math.nan):
        with pytest.raises(InputError, match="threshold is"):
            match_objects(table, threshold)
    with pytest.raises(InputError, match="threshold is 0.5 in one and 0.6"):
        match_objects(table, 0.5) + match_objects(table, 0.6)
