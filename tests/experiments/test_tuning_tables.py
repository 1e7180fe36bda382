"""Reading the rows of a search: hand-solved cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments.tuning_tables import best_so_far, best_trials, explained, groups, pareto_front, rank_agreement


def test_the_best_complete_trials() -> None:
    rows = [
        {"state": s, "score": v}
        for s, v in (("failed", math.nan), ("complete", 0.4), ("pruned", 0.9), ("complete", 0.6))
    ]
    assert best_trials(rows, 5) == [rows[3], rows[1]]
    assert [str(value) for value in best_so_far(rows)] == ["nan", "0.4", "0.4", "0.6"]
    assert best_so_far([]) == [] and best_trials([], 3) == []


def test_groups_of_names_few_numbers_and_many_numbers() -> None:
    rows = [{"skip": "abcdefgh"[i % 8], "batch": 4 * (1 + i % 3), "lr": 0.1 * (i + 1)} for i in range(16)]
    assert list(groups(rows, "skip")) == list("abcdefgh")
    assert {name: len(part) for name, part in groups(rows, "batch").items()} == {"4": 6, "8": 5, "12": 5}
    assert {name: len(part) for name, part in groups(rows, "lr").items()} == {
        "0.1 … 0.4": 4, "0.5 … 0.8": 4, "0.9 … 1.2": 4, "1.3 … 1.6": 4,
    }  # fmt: skip
    same = [{"lr": value} for value in (1, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7)]  # equal values stay together
    parts = groups(same, "lr")
    assert sum(len(part) for part in parts.values()) == 12 and len(parts["1 … 1"]) == 6
    assert groups([], "lr") == {}


def test_explained_variance() -> None:
    # groups (1, 3) and (5, 7): mean 4, between 2·4 + 2·4 = 16, total 9 + 1 + 1 + 9 = 20
    rows = [{"a": a, "score": s} for a, s in (("x", 1.0), ("x", 3.0), ("y", 5.0), ("y", 7.0))]
    assert explained(rows, "a")[0] == pytest.approx(0.8)
    assert explained(rows[:2], "a") == (0.0, 1.0)  # too few
    assert explained([row | {"score": 1.0} for row in rows], "a") == (0.0, 1.0)  # nothing to explain


def test_a_factor_without_influence_passes_the_mark_once_in_twenty_times() -> None:
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(300):
        rows = [{"a": int(rng.integers(3)), "score": rng.normal()} for _ in range(20)]
        share, chance = explained(rows, "a", shuffles=200)
        passed += share > chance
    assert abs(passed / 300 - 0.05) < 0.03


def test_pareto_front() -> None:
    costs, scores = [5.0, 1.0, 2.0, 2.0, 4.0, 1.0], [0.9, 0.3, 0.5, 0.6, 0.6, 0.3]
    assert pareto_front(costs, scores) == [1, 3, 0]
    assert pareto_front([], []) == []


@pytest.mark.parametrize("seed", range(5))
def test_rank_agreement_is_spearmans(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, 12), rng.normal(size=12)
    assert math.isclose(rank_agreement(list(a), list(b)), spearmanr(a, b).statistic)
    assert math.isnan(rank_agreement([1.0], [2.0])) and math.isnan(rank_agreement([1, 1], [1, 2]))
