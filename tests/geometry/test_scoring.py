"""Scores in one row against independent counts, and thresholds against hand-made probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label as label_components

from geometry.objects import choose_threshold, dice, judge, topology_row


def test_the_threshold_with_the_fewest_errors_wins_and_in_a_tie_the_one_next_to_a_half() -> None:
    label = np.array([[1, 1, 1, 0, 1, 1, 1]] * 3)
    probs = np.where(label == 1, 0.92, 0.62).astype(np.float32)  # one bridge at 0.60 and below
    best, rows = choose_threshold([probs], [label])
    assert best == 0.65
    assert [row["merges"] for row in rows] == [1] * 12 + [0] * 7  # 0.05 … 0.60 | 0.65 … 0.95
    assert rows[-1]["missed"] == 2  # nothing is left above 0.92


def test_scores_are_those_of_independent_counts() -> None:
    rng = np.random.default_rng(0)
    labels = [(rng.random((24, 24)) > 0.6).astype(np.int64) for _ in range(3)]
    guesses = [label.astype(bool) ^ (rng.random((24, 24)) > 0.9) for label in labels]
    row = judge(guesses, labels, 1)
    a, b = np.concatenate(guesses), np.concatenate(labels) == 1
    assert row["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum())) == dice(guesses, labels)
    assert row["mean_iou"] == pytest.approx(np.mean([(x & y).sum() / (x | y).sum() for x, y in ((a, b), (~a, ~b))]))
    objects = [abs(label_components(g).max() - label_components(y).max()) for g, y in zip(guesses, labels)]
    assert row["beta0_error"] == pytest.approx(np.mean(objects))  # scikit-image: 8-connected in 2-D by default
    kinds = [row[k] for k in ("merges", "splits", "spurious", "missed")]
    holes = [row[f"hole_{k}"] for k in ("merges", "splits", "spurious", "missed")]
    assert row["all_errors"] == pytest.approx(sum(kinds) + sum(holes))


def test_perfect_predictions_have_perfect_scores() -> None:
    labels = [np.kron(np.eye(3, dtype=np.int64), np.ones((5, 5), np.int64))]
    for object_class in (0, 1):
        row = judge([labels[0] == 1], labels, object_class)
        assert row["all_errors"] == row["beta0_error"] == row["arand"] == row["voi_split"] == row["hd95"] == 0
        assert row["dice"] == row["panoptic_quality"] == row["object_f1"] == row["boundary_f1"] == row["cl_dice"] == 1


def test_ignored_pixels_have_no_say() -> None:
    rng = np.random.default_rng(1)
    label = (rng.random((12, 12)) > 0.5).astype(np.int64)
    label[:, 6:8] = 255
    guess = rng.random((12, 12)) > 0.5
    other = guess.copy()
    other[:, 6:8] ^= True
    for object_class in (0, 1):
        first, second = (judge([g], [label], object_class) for g in (guess, other))
        assert first == second
    assert dice([np.ones((2, 2), np.bool_)], [np.array([[1, 1], [255, 255]])]) == 1.0


def test_bricks_are_four_connected_as_the_background_is() -> None:
    label = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 0]])  # two bricks that share only a corner
    row = judge([label == 1], [label], 0)
    assert row["object_f1"] == 1.0
    merged = np.array([[0, 0, 1], [0, 0, 1], [1, 0, 0]], np.bool_)
    assert judge([merged], [label], 0)["object_f1"] < 1.0


def test_counts_are_per_image_and_hold_holes() -> None:
    ring = np.ones((5, 5), np.int64)
    ring[2, 2] = 0
    filled = np.ones((5, 5), np.bool_)
    row = topology_row([filled, ring == 1], [ring, ring])
    assert (row["hole_missed"], row["all_errors"], row["objects"], row["holes"]) == (0.5, 0.5, 1.0, 1.0)
