"""New seeds for a few candidates: what is trained, intervals by an independent way, differences seed by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from checks import InputError
from experiments.confirmation import confirm, differences, interval, scores_of
from tests.tuning_helpers import Fake

TWO = {"default": {"lr": 0.01, "skip": "none"}, "best": {"lr": 0.1, "skip": "concat"}}


def test_every_candidate_is_trained_with_every_seed_once(tmp_path: Path) -> None:
    learners: list[Fake] = []

    def build(settings, seed, folder) -> Any:
        learners.append(Fake(settings, seed, folder))
        return learners[-1]

    rows = confirm(build, TWO, epochs=3, seeds=[0, 1], folder=tmp_path)
    assert [(row["candidate"], row["seed"]) for row in rows] == [
        ("default", 0),
        ("best", 0),
        ("default", 1),
        ("best", 1),
    ]
    assert scores_of(rows, "best") == [0.9 * 7 / 8] * 2
    assert [learner.trained for learner in learners] == [[1, 2, 3]] * 4
    again = confirm(build, TWO, epochs=3, seeds=[0, 1, 2], folder=tmp_path)
    assert [learner.trained for learner in learners[4:]] == [[]] * 4 + [[1, 2, 3]] * 2 and again[:4] == rows


@pytest.mark.parametrize("seeds", [[0], [], [1, 1]])
def test_one_seed_or_equal_ones_are_refused(seeds: list[int]) -> None:
    with pytest.raises(InputError, match="two or more, all different"):
        confirm(Fake, TWO, epochs=3, seeds=seeds)


def test_the_interval_is_that_of_the_t_test() -> None:
    values = np.random.default_rng(0).normal(size=5)
    mean, half = interval(values)
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert np.allclose([mean - half, mean + half], [expected.low, expected.high])
    assert interval([3.0])[0] == 3.0 and np.isnan(interval([3.0])[1])


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    samples = np.random.default_rng(1).normal(7.0, 2.0, size=(2000, 5))
    inside = [abs(mean - 7.0) < half for mean, half in map(interval, samples)]
    assert abs(np.mean(inside) - 0.95) < 0.015


def test_differences_are_taken_seed_by_seed() -> None:
    rows = [{"candidate": c, "seed": s, "score": v} for c, s, v in [("a", 1, 5), ("b", 0, 1), ("a", 0, 3), ("b", 1, 4)]]
    assert differences(rows, "a", "b") == [2, 1]
    with pytest.raises(InputError, match="'b' has"):
        differences(rows[:3], "a", "b")
