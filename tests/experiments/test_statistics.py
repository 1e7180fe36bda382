"""Tables, means, intervals, paired tests and what a factor explains, against definitions written out."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

from experiments import statistics


def test_a_table_that_is_written_comes_back_with_numbers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.csv"
    rows = [{"set": "1", "seed": 7, "dice": 2 / 3, "why": "a, b"}, {"set": "2", "seed": 8, "dice": 0.5, "why": "c"}]
    statistics.write_table(path, rows)
    assert statistics.read_table(path) == [rows[0] | {"dice": 0.66667}, rows[1]]
    assert statistics.select(rows, set="2") == rows[1:] and statistics.select(rows, set="2", seed=7) == []
    assert statistics.read_table(tmp_path / "nowhere.csv") == []


def test_images_are_averaged_over_seeds_and_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,seed,errors\n071,0,5\n071,1,7\n71,0,8\n")
    assert statistics.per_image(statistics.read_table(tmp_path / "a.csv"), "errors") == {"071": 6.0, "71": 8.0}


def test_holm_rejects_as_the_step_down_rule_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.random(5) ** 3
        rejected, order = set(), np.argsort(p)
        for rank, index in enumerate(order):  # the rule as Holm states it
            if p[index] > 0.05 / (5 - rank):
                break
            rejected.add(int(index))
        assert {i for i, value in enumerate(statistics.holm(p)) if value <= 0.05} == rejected
    assert statistics.holm([]) == [] and statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_interval_is_that_of_the_t_test() -> None:
    values = np.random.default_rng(0).normal(size=5)
    mean, half = statistics.interval(values)
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert np.allclose([mean - half, mean + half], [expected.low, expected.high])
    assert statistics.interval([3.0])[0] == 3.0 and np.isnan(statistics.interval([3.0])[1])


def test_what_was_made_under_the_same_settings_is_read_and_all_else_made_anew(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"rows": [{"seed": len(made)}]}

    for settings, wanted in (({"lr": 1}, 1), ({"lr": 1}, 1), ({"lr": 2}, 2), ({"lr": 1}, 3)):
        assert statistics.kept(tmp_path / "new" / "0.json", settings, make)["rows"] == [{"seed": wanted}]
