"""Means, paired tests and their correction, against definitions written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import norm

from checks import InputError
from experiments.comparison import holm, mean_sd, paired_test, per_image, read_table, select


def test_a_table_comes_back_with_numbers(tmp_path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("set,seed,dice\nwalls,1,0.5\nwalls10,2,nan\n")
    first, second = read_table(path)
    assert first == {"set": "walls", "seed": 1, "dice": 0.5}
    assert isinstance(first["seed"], int)
    assert np.isnan(second["dice"])
    assert select([first, second], set="walls10") == [second]
    assert select([first, second], set="walls", seed=2) == []


def test_spread_is_that_of_a_sample() -> None:
    assert mean_sd([2, 4, 4, 4, 5, 5, 7, 9], 2) == "5.00 ± 2.14"  # √(32/7)


def test_images_are_averaged_over_seeds_and_keep_their_names(tmp_path) -> None:
    path = tmp_path / "table.csv"
    lines = [
        f"{name},{seed},{10 * int(name) + seed}" for name, seed in itertools.product(("071", "71", "8"), (0, 1, 2))
    ]
    path.write_text("\n".join(["image,seed,errors", *lines]))
    assert per_image(read_table(path), "errors") == {"071": 711.0, "71": 711.0, "8": 81.0}


def test_signed_ranks_against_all_signs() -> None:
    # the sum of the positive ranks, compared with that of 20 000 random choices of all signs
    rng = np.random.default_rng(0)
    differences = rng.normal(0.3, 1, 30)
    ranks = np.abs(differences).argsort().argsort() + 1
    sums = (rng.integers(0, 2, (20_000, 30)) * ranks).sum(axis=1)
    found = ranks[differences > 0].sum()
    tail = np.mean(np.abs(sums - ranks.sum() / 2) >= abs(found - ranks.sum() / 2))
    values, zero = ({str(i): value for i, value in enumerate(array)} for array in (differences, np.zeros(30)))
    assert 0.02 < tail < 0.5
    assert paired_test(values, zero) == pytest.approx(tail, abs=0.015)
    assert paired_test(zero, values) == paired_test(values, zero)


def test_differences_of_zero_keep_their_ranks() -> None:
    # Pratt: ranks of |d| with the zeros are 1.5, 1.5, 3, 4, 5; the zeros are then left out.  Normal
    # approximation: mean (3 + 4 + 5) / 2 = 6, variance (9 + 16 + 25) / 4 = 12.5, found 12
    found = paired_test(dict(zip("abcde", [0.0, 0.0, 0.3, 0.5, 0.7])), dict.fromkeys("abcde", 0.0))
    assert found == pytest.approx(2 * norm.sf((12 - 6) / 12.5**0.5), abs=1e-3)


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="'b' are nan and 2.0"):
        paired_test({"a": 1.0, "b": float("nan")}, {"a": 1.0, "b": 2.0})


def test_equal_methods_are_not_different() -> None:
    same = {"a": 1.0, "b": 2.0}
    assert paired_test(same, dict(same)) == 1.0


def test_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="on one side only: a, b"):
        paired_test({"a": 1.0}, {"b": 1.0})


def test_holm_rejects_as_the_step_down_rule_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.random(5) ** 3
        rejected, order = set(), np.argsort(p)
        for rank, index in enumerate(order):  # the rule as Holm states it
            if p[index] > 0.05 / (5 - rank):
                break
            rejected.add(int(index))
        assert {i for i, value in enumerate(holm(p)) if value <= 0.05} == rejected
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
