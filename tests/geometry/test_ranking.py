"""Precision-recall curves against thresholds tried one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import InputError
from geometry.objects import precision_recall


@given(st.integers(0, 10_000))
def test_every_entry_is_that_of_its_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probs = [rng.integers(0, 6, (3, 5)) / 5 for _ in range(2)]  # with ties
    labels = [rng.choice([0, 1, 255], (3, 5)) for _ in range(2)]
    labels[0][0, 0] = 1
    curve = precision_recall(probs, labels)
    score, truth = np.stack(probs), np.stack(labels)
    assert list(curve.thresholds) == sorted(np.unique(score[truth != 255]), reverse=True)
    for threshold, precision, recall in zip(curve.thresholds, curve.precision, curve.recall):
        said = (score >= threshold) & (truth != 255)
        hits = (said & (truth == 1)).sum()
        assert precision == pytest.approx(hits / said.sum())
        assert recall == pytest.approx(hits / (truth == 1).sum())
    f1 = [2 * p * r / max(p + r, 1e-9) for p, r in zip(curve.precision, curve.recall)]
    assert curve.max_f == pytest.approx(max(f1))
    eleven = [max(p for p, r in zip(curve.precision, curve.recall) if r >= k / 10 - 1e-9) for k in range(11)]
    assert curve.average_precision_11 == pytest.approx(np.mean(eleven))


def test_a_perfect_ranking_scores_one_and_a_constant_one_the_share() -> None:
    label = np.array([[0, 0, 0, 1]])
    perfect, constant = (precision_recall([p], [label]) for p in (label * 0.2, label * 0.0 + 0.7))
    assert (perfect.max_f, perfect.average_precision, perfect.average_precision_11) == (1, 1, 1)
    # One threshold, all is road: precision 1/4, recall 1, F1 = 2·(1/4) / (5/4) = 0.4
    assert constant.max_f == pytest.approx(0.4)
    assert constant.average_precision == constant.average_precision_11 == 0.25


def test_step_area_by_hand() -> None:
    # Ranked 1 0 1: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: 1/2·1 + 0·1/2 + 1/2·2/3 = 5/6
    curve = precision_recall([np.array([[0.9, 0.5, 0.4]])], [np.array([[1, 0, 1]])])
    assert curve.average_precision == pytest.approx(5 / 6)
    assert curve.best == 2
    assert curve.thresholds[curve.best] == 0.4


@pytest.mark.parametrize(
    ("probs", "labels"),
    [([[0.1, 0.2]], [[0, 1, 1]]), ([[0.1, np.nan]], [[0, 1]]), ([[0.1, 0.2]], [[0, 2]]), ([[0.1, 0.2]], [[0, 255]])],
)
def test_what_cannot_be_ranked_is_refused(probs, labels) -> None:
    with pytest.raises(InputError, match="precision_recall"):
        precision_recall([np.array(probs)], [np.array(labels)])


def test_lists_that_do_not_fit_are_refused_and_whole_numbers_may_rank() -> None:
    for probs, labels in (([], []), ([np.zeros((1, 2))], [])):
        with pytest.raises(InputError, match="shapes"):
            precision_recall(probs, labels)
    bytes_ = precision_recall([np.array([[0, 100, 200, 250]], np.uint8)], [np.array([[0, 0, 1, 1]])])
    assert bytes_.precision.tolist() == pytest.approx([1, 1, 2 / 3, 1 / 2])
