"""Drawing what a search has found: every function takes plain rows or numbers and axes, and returns the axes.

Complete trials are filled dots, pruned ones (stopped early) hollow, failed ones crosses.  Colours as in `plots.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator, NullFormatter

from plots import BLACK, BLUE, GREY, ORANGE, PALETTE, SKY, VERMILION

Row = Mapping[str, Any]


def range_curve(
    ax: Axes, rows: Sequence[Row], smooth: Sequence[float], limits: tuple[float, float], default: float | None = None
) -> Axes:
    """Range test: the loss of each step over its learning rate, smoothed, and the suggested range as a band."""
    rates = [row["lr"] for row in rows]
    ax.axvspan(*limits, color=SKY, alpha=0.25, linewidth=0, label=f"searched: {limits[0]:g} … {limits[1]:g}")
    ax.plot(rates, [row["train_loss"] for row in rows], color=GREY, linewidth=0.8, label="each step")
    ax.plot(rates, smooth, color=BLUE, linewidth=2, label="median of 9 steps")
    if default is not None:
        ax.axvline(default, color=VERMILION, linestyle="--", linewidth=1, label=f"default: {default:g}")
    top = 1.3 * max(smooth[0], max(smooth[: max(len(smooth) // 2, 1)]))
    ax.set(xscale="log", xlabel="learning rate", ylabel="training loss", ylim=(0, top))
    ax.legend(fontsize=8)
    return ax


def history(ax: Axes, rows: Sequence[Row], best: Sequence[float], startup: int = 0) -> Axes:
    """Scores in the order of the trials, and the best so far; `startup` trials came before TPE."""
    bottom = _lowest(rows)
    for state, style in _STYLES.items():
        chosen = [row for row in rows if row["state"] == state]
        scores = [row["score"] if np.isfinite(row["score"]) else bottom for row in chosen]
        if chosen:
            ax.plot([row["trial"] for row in chosen], scores, label=f"{state} ({len(chosen)})", **style)
    ax.step([row["trial"] for row in rows], best, where="post", color=VERMILION, linewidth=1.5, label="best so far")
    if 0 < startup < len(rows):
        ax.axvline(startup - 0.5, color=GREY, linestyle=":", linewidth=1)
        ax.text(startup, 0.3, "TPE →", fontsize=8, color=GREY, transform=ax.get_xaxis_transform(), bbox=_BOX)
    ax.set(xlabel="trial", ylabel="validation mean IoU")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=8, loc="lower right")
    return ax


_STYLES: dict[str, dict[str, Any]] = {
    "complete": {"marker": "o", "linestyle": "", "color": BLUE, "markersize": 5},
    "pruned": {"marker": "o", "linestyle": "", "color": BLUE, "markersize": 4, "markerfacecolor": "none", "alpha": 0.6},
    "failed": {"marker": "x", "linestyle": "", "color": BLACK, "markersize": 5},
}


def _lowest(rows: Sequence[Row]) -> float:
    return min((row["score"] for row in rows if np.isfinite(row["score"])), default=0.0)


def learning_curves(ax: Axes, epochs: Sequence[Row], trials: Sequence[Row], score: str = "val_mean_iou") -> Axes:
    """The score after each epoch: complete trials in blue, pruned ones in grey up to their end, the best in red."""
    states = {row["trial"]: row["state"] for row in trials}
    complete = [row for row in trials if row["state"] == "complete"]
    best = max(complete, key=lambda row: row["score"])["trial"] if complete else None
    for number in sorted(states, key=lambda n: (n == best, states[n] == "complete")):
        rows = [row for row in epochs if row["trial"] == number]
        x, y = [row["epoch"] for row in rows], [row[score] for row in rows]
        if number == best:
            ax.plot(x, y, "o-", color=VERMILION, linewidth=2, markersize=4, label=f"best: trial {number}")
        elif states[number] == "complete":
            ax.plot(x, y, color=BLUE, linewidth=1, alpha=0.7)
        elif rows:
            ax.plot(x, y, color=GREY, linewidth=0.8, alpha=0.5)
            ax.plot(x[-1], y[-1], "o", color=GREY, markersize=3, markerfacecolor="none")
    ax.plot([], [], color=BLUE, linewidth=1, label="other complete trials")
    ax.plot([], [], "o-", color=GREY, linewidth=0.8, markersize=3, markerfacecolor="none", label="pruned or failed")
    ax.set(xlabel="epoch", ylabel="validation mean IoU")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=8)
    return ax


def parallel(ax: Axes, rows: Sequence[Row], factors: Mapping[str, Sequence[Any]], score: str = "score") -> Axes:
    """Each trial as a line through its values, one axis for each factor and one for the score, which gives the colour.

    Args:
        factors: name → all its values in order, or (low, high) as two floats for a logarithmic range.
    """
    rows = sorted(rows, key=lambda row: row[score])
    scores = [row[score] for row in rows]
    low, high = np.percentile(scores, 10), max(scores)
    norm = Normalize(low, max(high, low + 1e-6))
    for order, row in enumerate(rows):
        heights = [_height(row[name], values, order / max(len(rows) - 1, 1)) for name, values in factors.items()]
        colour = plt.get_cmap("viridis")(norm(row[score]))
        complete = row["state"] == "complete"
        ends = [*heights, float(np.clip(norm(row[score]), 0, 1))]
        ax.plot(
            range(len(ends)), ends, color=colour, alpha=0.9 if complete else 0.35, linewidth=1.6 if complete else 0.7
        )
    for x, values in enumerate(factors.values()):
        ax.axvline(x, color=BLACK, linewidth=0.6)
        for value in values:
            text = f"{value:g}" if isinstance(value, (int, float)) else str(value)
            ax.text(x + 0.04, _height(value, values, 0.5), text, fontsize=7, va="center", bbox=_BOX)
    ax.axvline(len(factors), color=BLACK, linewidth=0.6)
    for share in (0.0, 0.5, 1.0):
        ax.text(len(factors) + 0.04, share, f"{low + share * (high - low):.3f}", fontsize=7, va="center")
    ax.set_xticks(range(len(factors) + 1), [*factors, "mean IoU"])
    ax.set(yticks=[], xlim=(-0.1, len(factors) + 0.35))
    ax.spines["left"].set_visible(False)
    return ax


_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}


def _height(value: Any, values: Sequence[Any], spread: float) -> float:
    """Where a value lies on its axis; equal names are spread a little, so that their lines can be told apart."""
    if len(values) == 2 and all(isinstance(v, float) for v in values):
        return float(np.log(value / values[0]) / np.log(values[1] / values[0]))
    return list(values).index(value) / max(len(values) - 1, 1) + 0.05 * (spread - 0.5)


def slices(
    ax: Axes, rows: Sequence[Row], factor: str, means: Sequence[tuple[float, float, float]], names: Sequence[str] = ()
) -> Axes:
    """The scores over the values of one factor, and for groups of values the mean with its interval.

    Args:
        rows: with the factor, `state`, and `score`.
        means: one for each group: its place on the axis, the mean, and half the width of the interval.
        names: the values in the order of their places 0, 1, …; without them the axis is logarithmic.
    """
    rng = np.random.default_rng(0)
    for row in rows:
        x = list(names).index(str(row[factor])) + rng.uniform(-0.18, 0.18) if names else row[factor]
        ax.plot(x, row["score"], **_STYLES.get(row["state"], _STYLES["failed"]))
    for place, mean, half in means:
        bar = half if np.isfinite(half) else None
        ax.errorbar(place, mean, bar, fmt="_", color=VERMILION, markersize=14, capsize=4, markeredgewidth=2, zorder=5)
    if names:
        ax.set_xticks(range(len(names)), names)
        ax.set_xlim(-0.5, len(names) - 0.5)
    else:
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_title(factor)
    return ax


def importance(ax: Axes, shares: Mapping[str, Mapping[str, tuple[float, float]]]) -> Axes:
    """Bars: the share of the variance that each factor explains; a line that chance hardly passes.

    Args:
        shares: what was explained (such as "after epoch 1") → factor → (share, share that chance hardly passes).
    """
    names = list(next(iter(shares.values())))
    order = sorted(names, key=lambda name: -next(iter(shares.values()))[name][0])
    height = 0.8 / len(shares)
    for k, ((label, entries), colour) in enumerate(zip(shares.items(), cycle((BLUE, ORANGE, SKY)))):
        y = np.arange(len(order)) + (k - (len(shares) - 1) / 2) * height
        ax.barh(y, [entries[name][0] for name in order], height=0.9 * height, color=colour, label=label)
        for position, name in zip(y, order):
            chance = entries[name][1]
            ax.plot([chance] * 2, [position - height / 2, position + height / 2], color=BLACK, linewidth=1.5)
    ax.plot([], [], color=BLACK, linewidth=1.5, label="chance passes this once in 20")
    ax.set_yticks(range(len(order)), order)
    ax.invert_yaxis()
    ax.set(xlabel="share of the variance explained by the factor alone", xlim=(0, 1))
    ax.legend(fontsize=8, loc="lower right")
    return ax


def quality_and_time(
    ax: Axes, rows: Sequence[Row], groups: Mapping[str, Sequence[int]], front: Sequence[int], labels: Mapping[int, str]
) -> Axes:
    """Score over cost, one colour and marker a group, and the trials that none beats in both joined by a line.

    Args:
        rows: with cost and score.
        groups: name → indices into `rows`.
        front: indices of the Pareto front, by rising cost.
        labels: a text beside some of the points.
    """
    for (name, indices), colour, marker in zip(groups.items(), cycle((BLUE, ORANGE, VERMILION)), cycle("os^")):
        chosen = [rows[index] for index in indices]
        x, y = [row["cost"] for row in chosen], [row["score"] for row in chosen]
        ax.plot(x, y, marker, color=colour, label=name, markersize=5, alpha=0.8)
    edge = [rows[index] for index in front]
    ax.step(
        [r["cost"] for r in edge], [r["score"] for r in edge], where="post", color=BLACK, linewidth=1, label="front"
    )
    for index, text in labels.items():
        ax.annotate(
            text, (rows[index]["cost"], rows[index]["score"]), xytext=(4, -3), textcoords="offset points",
            fontsize=7, va="top",
        )  # fmt: skip
    ax.set(xscale="log", xlabel="seconds an epoch", ylabel="validation mean IoU")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
    ax.legend(fontsize=8, loc="lower right")
    return ax


def confirmed(
    ax: Axes, values: Mapping[str, tuple[Sequence[float], tuple[float, float]]], xlabel: str, first_colour: int = 0
) -> Axes:
    """One row a candidate: a dot for each seed, and the mean with its interval beside them.

    Args:
        values: candidate → the values of its seeds, and (mean, half width).
        first_colour: index in the palette, so that a candidate keeps its colour in another panel.
    """
    colours = islice(cycle(PALETTE), first_colour, None)
    for row, ((numbers, (mean, half)), colour) in enumerate(zip(values.values(), colours)):
        ax.plot(numbers, [row - 0.12] * len(numbers), "o", color=colour, alpha=0.6, markersize=4)
        ax.errorbar(mean, row + 0.15, xerr=half, fmt="|", color=colour, markersize=10, capsize=4, markeredgewidth=2)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    return ax
