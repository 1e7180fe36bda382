"""The plan: what it allows, what it refuses, and points that fill its space evenly."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import InputError
from experiments.search_space import (
    Factor,
    LogRange,
    digest,
    plan_table,
    quasi_random,
    searched,
    spelled,
    with_fixed,
    with_values,
)

PLAN = [
    Factor("lr", "nuisance", LogRange(1e-4, 1e-1), "step size"),
    Factor("skip", "scientific", ("none", "concat", "sum"), "links"),
    Factor("epochs", "fixed", (9,), "the budget of a trial"),
]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("fixed", (1, 2)),
        ("nuisance", (1,)),
        ("scientific", ()),
        ("nuisance", (1, 1)),
        ("fixed", LogRange(1, 2)),
        ("odd", (1, 2)),
    ],
)
def test_a_role_and_its_number_of_values_must_agree(kind: str, values: Any) -> None:
    with pytest.raises(InputError, match="Factor batch"):
        Factor("batch", kind, values)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0)])
def test_a_range_is_positive_and_rises(ends: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="0 < low < high"):
        LogRange(*ends)


@given(st.floats(0, 1), st.floats(1e-8, 1.0), st.floats(1.001, 1e6))
def test_a_share_of_a_range_lies_in_it(share: float, low: float, ratio: float) -> None:
    values = LogRange(low, low * ratio)
    assert values.at(share) in values


def test_equal_shares_are_equal_ratios() -> None:
    values = LogRange(1e-4, 1e-1)
    assert np.allclose([values.at(share) for share in (0, 1 / 3, 2 / 3, 1)], [1e-4, 1e-3, 1e-2, 1e-1])


def test_settings_are_the_chosen_and_the_fixed_values_in_the_order_of_the_plan() -> None:
    assert list(with_fixed(PLAN, {"skip": "sum", "lr": 0.01}).items()) == [("lr", 0.01), ("skip", "sum"), ("epochs", 9)]
    for chosen, named in (({"lr": 0.01}, "skip"), ({"lr": 0.01, "skip": "sum", "batch": 4}, "batch")):
        with pytest.raises(InputError, match=named):
            with_fixed(PLAN, chosen)
    for chosen, named in (({"lr": 1.0, "skip": "sum"}, "lr=1.0"), ({"lr": 0.01, "skip": "add"}, "skip='add'")):
        with pytest.raises(InputError, match=f"{named} is outside of the plan"):
            with_fixed(PLAN, chosen)


def test_other_values_for_one_factor() -> None:
    narrow = with_values(PLAN, "lr", LogRange(1e-3, 1e-2))
    assert spelled(narrow) == {"lr": "0.001 … 0.01", "skip": "none, concat, sum", "epochs": "9"}
    assert spelled(PLAN)["lr"] == "0.0001 … 0.1"  # the old plan stays
    with pytest.raises(InputError, match="no factor 'rate'"):
        with_values(PLAN, "rate", (1, 2))


def test_the_table_has_every_factor_sorted_by_role() -> None:
    lines = plan_table(PLAN).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["scientific", "nuisance", "fixed"]
    assert "none, concat, sum | links" in lines[0]


def test_quasi_random_points_fill_the_space_more_evenly_than_random_ones() -> None:
    from scipy.stats import qmc

    plan = [Factor(f"x{i}", "nuisance", LogRange(1.0, np.e)) for i in range(7)]
    points = np.array([[np.log(v) for v in quasi_random(plan, index).values()] for index in range(16)])
    random = [qmc.discrepancy(np.random.default_rng(seed).random((16, 7))) for seed in range(20)]
    assert qmc.discrepancy(points) < np.min(random)


@pytest.mark.parametrize("seed", range(5))
def test_a_few_quasi_random_points_meet_every_value(seed: int) -> None:
    points = [quasi_random(PLAN, index, seed) for index in range(9)]
    assert {point["skip"] for point in points} == {"none", "concat", "sum"}
    assert {int(4 + np.log10(point["lr"])) for point in points} == {0, 1, 2}  # each decade
    for point in points:
        with_fixed(PLAN, point)
    assert all(a != b for a, b in itertools.combinations(points, 2))
    assert points != [quasi_random(PLAN, index, seed + 1) for index in range(9)]


def test_fixed_factors_are_not_searched() -> None:
    assert [factor.name for factor in searched(PLAN)] == ["lr", "skip"]
    assert len(digest({"a": 1}, 0)) == 12
