"""Means, paired tests and their correction, against definitions written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from checks import InputError
from comparison import holm, mean_sd, paired_test, per_image, read_table, select


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


def test_images_are_averaged_over_seeds() -> None:
    rows = [{"image": i, "seed": s, "errors": 10 * i + s} for i, s in itertools.product((7, 8), (0, 1, 2))]
    assert per_image(rows, "errors") == {"7": 71.0, "8": 81.0}


def test_signed_ranks_against_all_signs() -> None:
    # Exact test by hand: ranks 1 … 6, the sum of the positive ranks over all 2⁶ signs
    differences = [0.3, -0.1, 0.5, 0.7, -0.2, 1.1]
    ranks = [3, 1, 4, 5, 2, 6]
    sums = [sum(r for r, sign in zip(ranks, signs) if sign) for signs in itertools.product((0, 1), repeat=6)]
    found = 3 + 4 + 5 + 6
    tail = np.mean([abs(total - 10.5) >= abs(found - 10.5) for total in sums])
    zero = dict.fromkeys("abcdef", 0.0)
    assert paired_test(dict(zip("abcdef", differences)), zero) == pytest.approx(tail)
    assert paired_test(zero, dict(zip("abcdef", differences))) == pytest.approx(tail)


def test_equal_methods_are_not_different() -> None:
    same = {"a": 1.0, "b": 2.0}
    assert paired_test(same, dict(same)) == 1.0


def test_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="not the same"):
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
