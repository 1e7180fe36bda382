"""Border metrics: hand-solved moves of a border, and a slow oracle that measures from each crack to each crack."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checks import IGNORE_INDEX, InputError
from geometry.objects import BoundaryCounts, boundary_distances

SEEDS = st.integers(0, 2**31)


def cracks(labels, ignored):
    """All sides between two pixels of different label, as segments (y0, x0, y1, x1)."""
    height, width = labels.shape
    found = []
    for y in range(height):
        for x in range(width):
            right, below = (y, x + 1), (y + 1, x)
            if x + 1 < width and labels[y, x] != labels[right] and not (ignored[y, x] or ignored[right]):
                found.append((y, x + 1, y + 1, x + 1))
            if y + 1 < height and labels[y, x] != labels[below] and not (ignored[y, x] or ignored[below]):
                found.append((y + 1, x, y + 1, x + 1))
    return found


def oracle(labels, others, ignored):
    """Sorted distances from the middle of each crack to the nearest point of the other's cracks."""
    distances = []
    segments = cracks(others, ignored)
    for y0, x0, y1, x1 in cracks(labels, ignored):
        y, x = (y0 + y1) / 2, (x0 + x1) / 2
        # the nearest point of a segment along the axes is found by clipping
        away = [math.hypot(y - min(max(y, a), c), x - min(max(x, b), d)) for a, b, c, d in segments]
        distances.append(min(away, default=math.inf))
    return sorted(distances)


def random_pair(seed, classes=3):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 10, 2)
    target = np.kron(rng.integers(0, classes, (5, 5)), np.ones((2, 2), int))[: shape[0], : shape[1]]
    pred = np.where(rng.random(shape) < 0.15, rng.integers(0, classes, shape), np.roll(target, 1, axis=rng.integers(2)))
    target = np.where(rng.random(shape) < rng.choice([0, 0.2]), IGNORE_INDEX, target)
    return pred, target


@given(SEEDS, st.sampled_from([None, 0, 1]))
def test_against_the_slow_oracle(seed, of_class):
    pred, target = random_pair(seed)
    found = boundary_distances(pred, target, of_class)
    ignored = target == IGNORE_INDEX
    maps = (pred, target) if of_class is None else (pred == of_class, target == of_class)
    expected = oracle(*maps, ignored), oracle(*maps[::-1], ignored)
    assert (sorted(found.pred.tolist()), sorted(found.target.tolist())) == expected  # exact, to the last bit
    for tolerance in (0, 0.5, math.sqrt(2), 2):
        counts = found.within(tolerance)
        near = [sum(d <= tolerance for d in side) for side in expected]
        assert [counts.pred_near, counts.target_near] == near
        if all(expected):
            precision, recall = near[0] / len(expected[0]), near[1] / len(expected[1])
            f1 = 2 * precision * recall / (precision + recall) if sum(near) else 0
            assert counts.f1 == pytest.approx(f1)
            assert counts.surface_dice == sum(near) / (len(expected[0]) + len(expected[1]))
            assert found.hausdorff(100) == max(expected[0][-1], expected[1][-1])


def test_a_border_moved_by_hand():
    # 20 rows: pred has columns 0 … 4, target columns 0 … 6.  Two borders of length 20, everywhere 2 apart.
    pred, target = np.zeros((2, 20, 12), int)
    pred[:, :5], target[:, :7] = 1, 1
    distances = boundary_distances(pred, target)
    assert set(distances.pred) == set(distances.target) == {2.0}
    assert distances.within(2).f1 == 1 and distances.within(1.99).f1 == 0
    assert distances.hausdorff() == distances.hausdorff(100) == 2
    assert distances.within(2) == BoundaryCounts(2, 20, 20, 20, 20)


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
    assert distances.hausdorff(100) == 1
    # eight numbers, the 95th percentile lies at 0.95 · 7 = 6.65, between 0.5 and 1: 0.5 + 0.65 · 0.5
    assert distances.hausdorff(95) == pytest.approx(0.825)


def test_a_corner_is_seen_at_an_angle():
    # single pixels, (0, 0) and (2, 2): between the corners (1, 1) and (2, 2) √2, from the middle (1, 0.5) √(1 + 2.25)
    pred, target = np.zeros((2, 3, 3), int)
    pred[0, 0], target[2, 2] = 1, 1
    assert boundary_distances(pred, target).pred.tolist() == [math.sqrt(3.25)] * 2  # the frame is no border


@given(SEEDS)
def test_moving_both_maps_changes_nothing(seed):
    pred, target = random_pair(seed)
    before = boundary_distances(pred, target)
    swapped = boundary_distances(*np.where(target == IGNORE_INDEX, 0, (target, pred)), None)
    plain = boundary_distances(*np.where(target == IGNORE_INDEX, 0, (pred, target)), None)
    assert np.array_equal(swapped.pred, plain.target) and np.array_equal(swapped.target, plain.pred)
    names = np.arange(256)
    names[:3] = 7, 200, 1000  # the names of the labels do not matter either
    for move in (np.fliplr, np.flipud, np.transpose, names.__getitem__):
        after = boundary_distances(move(pred), move(target))
        assert np.array_equal(np.sort(before.pred), np.sort(after.pred))
        assert np.array_equal(np.sort(before.target), np.sort(after.target))


@given(SEEDS)
def test_a_perfect_prediction_and_more_tolerance(seed):
    pred, target = random_pair(seed)
    perfect = boundary_distances(np.where(target == IGNORE_INDEX, 0, target), target)
    if perfect.target.size:
        assert perfect.hausdorff(100) == 0 and perfect.within(0).f1 == perfect.within(0).surface_dice == 1
    distances = boundary_distances(pred, target)
    shares = [distances.within(tolerance).surface_dice for tolerance in (0, 1, 2, 20)]
    assert shares == sorted(shares) or math.isnan(shares[0])


def test_fault_47_no_border_at_all_has_no_score():
    distances = boundary_distances(np.ones((4, 4), int), np.zeros((4, 4), int))  # both maps have one class: no border
    counts = distances.within(2)
    for value in (counts.f1, counts.precision, counts.recall, counts.surface_dice, distances.hausdorff()):
        assert math.isnan(value)


def test_fault_48_a_border_in_one_map_only_scores_zero():
    empty, half = np.zeros((4, 4), int), np.eye(4, dtype=int)
    for pair in ((empty, half), (half, empty)):
        distances = boundary_distances(*pair)
        counts = distances.within(1000)
        assert counts.f1 == counts.precision == counts.recall == counts.surface_dice == 0
        assert distances.hausdorff() == math.inf


def test_fault_50_ignored_pixels_make_no_border():
    pred, target = np.array([[0, 1, 1, 0, 0]]), np.array([[0, 255, 1, 0, 255]])
    counts = boundary_distances(pred, target).within(0)
    assert counts == BoundaryCounts(0, 1, 1, 1, 1)  # only the crack between columns 2 and 3 is left
    assert boundary_distances(pred, target, 1).within(0) == counts


def test_fault_51_lengths_of_images_add_up():
    # two images beside each other, with an ignored column in between, are one data set
    pred, target = random_pair(3)
    pred2, target2 = pred[::-1, ::-1], np.roll(target, 1, axis=1)
    gap = np.full((len(pred), 40), IGNORE_INDEX)
    whole = boundary_distances(np.hstack([pred, gap, pred2]), np.hstack([target, gap, target2]), 1).within(1)
    assert sum(boundary_distances(p, t, 1).within(1) for p, t in ((pred, target), (pred2, target2))) == whole
    with pytest.raises(InputError, match="tolerance"):
        whole + boundary_distances(pred, target).within(2)


@settings(max_examples=20)
@given(SEEDS)
def test_fault_64_inputs_are_not_changed(seed):
    pred, target = random_pair(seed)
    copies = pred.copy(), target.copy()
    boundary_distances(pred, target, 1)
    assert np.array_equal(pred, copies[0]) and np.array_equal(target, copies[1])


def test_fault_57_a_checkerboard_takes_bounded_time():
    board = np.indices((256, 256)).sum(axis=0) % 2
    half = np.zeros_like(board)
    half[:, :128] = 1
    start = time.perf_counter()
    distances = boundary_distances(board, half)
    assert distances.target.max() == 0 and distances.pred.max() == 127.5  # the last crack of a row, between 254 and 255
    assert time.perf_counter() - start < 5  # 0.05 s on one core


def test_wrong_input():
    good = np.eye(4, dtype=int)
    with pytest.raises(InputError, match="shape"):
        boundary_distances(good, good[:3])
    for tolerance in (-1, math.nan, math.inf):  # the last one would match a border with nothing
        with pytest.raises(InputError, match=f"tolerance is {tolerance}"):
            boundary_distances(good, good).within(tolerance)
    with pytest.raises(InputError, match="percentile is 101"):
        boundary_distances(good, good).hausdorff(101)
