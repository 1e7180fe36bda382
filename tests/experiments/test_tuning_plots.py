"""The figures of a search: each draws what its rows say, also with a single trial or none that is complete."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

from experiments import tuning_plots
from plots import BLUE, GREY, VERMILION


@pytest.fixture
def ax() -> Iterator[Axes]:
    figure, ax = plt.subplots()
    yield ax
    figure.canvas.draw()  # what cannot be drawn raises here
    plt.close(figure)


def row(trial: int, state: str, score: float, **more: Any) -> dict[str, Any]:
    return {"trial": trial, "state": state, "score": score, "lr": 10.0 ** (-trial - 1), "skip": "ab"[trial % 2]} | more


ROWS = [row(0, "complete", 0.5), row(1, "pruned", 0.3), row(2, "failed", float("nan")), row(3, "complete", 0.8)]
EPOCHS = [{"trial": t, "epoch": e, "val_mean_iou": 0.1 * t + 0.1 * e} for t in (0, 1, 3) for e in (1, 2)]


def lines(ax: Axes) -> dict[str, Any]:
    return {str(line.get_label()): line for line in ax.lines}


def test_range_curve(ax: Axes) -> None:
    rows = [{"lr": 10.0**-e, "train_loss": 1.0 * e} for e in range(6, 0, -1)]
    tuning_plots.range_curve(ax, rows, [5.0, 5, 4, 3, 2, 1], (1e-4, 1e-2), default=1e-3)
    assert ax.get_xscale() == "log" and list(lines(ax)["each step"].get_ydata()) == [6, 5, 4, 3, 2, 1]
    assert [text.get_text() for text in ax.get_legend().get_texts()][0] == "searched: 0.0001 … 0.01"


def test_history_shows_each_state_and_the_best_so_far(ax: Axes) -> None:
    tuning_plots.history(ax, ROWS, [0.5, 0.5, 0.5, 0.8], startup=2)
    found = lines(ax)
    assert list(found["complete (2)"].get_xdata()) == [0, 3] and list(found["pruned (1)"].get_ydata()) == [0.3]
    assert list(found["failed (1)"].get_ydata()) == [0.3]  # at the bottom, as it has no score
    assert list(found["best so far"].get_ydata()) == [0.5, 0.5, 0.5, 0.8]


def test_history_of_nothing_but_failures(ax: Axes) -> None:
    tuning_plots.history(ax, [row(0, "failed", float("nan"))], [float("nan")])


def test_learning_curves_mark_the_best(ax: Axes) -> None:
    tuning_plots.learning_curves(ax, EPOCHS, ROWS)
    assert list(lines(ax)["best: trial 3"].get_ydata()) == pytest.approx([0.4, 0.5])
    colours = [line.get_color() for line in ax.lines if len(line.get_xdata()) == 2]
    assert sorted(colours) == sorted([BLUE, GREY, VERMILION])


def test_learning_curves_without_a_complete_trial(ax: Axes) -> None:
    tuning_plots.learning_curves(ax, EPOCHS[:2], [row(0, "pruned", 0.1)])


def test_parallel_lines_pass_through_the_values(ax: Axes) -> None:
    finite = [r for r in ROWS if np.isfinite(r["score"])]
    tuning_plots.parallel(ax, finite, {"skip": ("a", "b"), "lr": (1e-4, 1e-1)})
    best = next(line for line in ax.lines if line.get_linewidth() == 1.6 and line.get_ydata()[-1] == 1)
    assert list(best.get_ydata())[1:] == pytest.approx([0.0, 1.0])  # trial 3: lr 1e-4, the best score
    assert best.get_ydata()[0] == pytest.approx(1.0, abs=0.03)  # skip b, spread a little
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["skip", "lr", "mean IoU"]


def test_parallel_of_one_trial(ax: Axes) -> None:
    tuning_plots.parallel(ax, ROWS[:1], {"skip": ("a", "b"), "lr": (1e-4, 1e-1)})


@pytest.mark.parametrize(("factor", "names"), [("skip", ["a", "b"]), ("lr", [])])
def test_slices_show_every_trial_and_the_means(ax: Axes, factor: str, names: list[str]) -> None:
    place = 0 if names else 1e-2
    tuning_plots.slices(ax, ROWS, factor, [(place, 0.5, 0.1), (place + 1, 0.3, float("nan"))], names)
    assert sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() in "ox") >= 4
    assert factor in (ax.get_title(), ax.get_title(loc="left")) and (ax.get_xscale() == "log") == (not names)


def test_importance_is_sorted_by_the_first(ax: Axes) -> None:
    tuning_plots.importance(
        ax, {"early": {"a": (0.1, 0.2), "b": (0.7, 0.2)}, "late": {"a": (0.5, 0.3), "b": (0.0, 0.3)}}
    )
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["b", "a"]
    assert [bar.get_width() for bar in ax.patches] == [0.7, 0.1, 0.0, 0.5]


def test_quality_and_time(ax: Axes) -> None:
    points = [{"cost": 1.0, "score": 0.5}, {"cost": 2.0, "score": 0.4}, {"cost": 3.0, "score": 0.7}]
    tuning_plots.quality_and_time(ax, points, {"one": [0, 1], "two": [2]}, [0, 2], {0: "first"})
    assert list(lines(ax)["front"].get_xdata()) == [1, 3] and list(lines(ax)["one"].get_ydata()) == [0.5, 0.4]
    assert [text.get_text() for text in ax.texts] == ["first"]


def test_confirmed(ax: Axes) -> None:
    tuning_plots.confirmed(ax, {"default": ([1, 2, 3], (2.0, 0.5)), "best": ([4], (4.0, float("nan")))}, "score")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["default", "best"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first one on top
