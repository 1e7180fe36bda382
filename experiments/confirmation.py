"""Is the best of many trials really better?  New seeds for a few candidates, and intervals for what they show.

The score of the best trial is too good: it is the largest of many numbers that all scatter.  So the best few and the
default are trained again with seeds that the search never used.  With one seed all have the same crops in the same
order, so differences between candidates are taken seed by seed.

Sources: the largest of many estimates is too large, Cawley and Talbot, 2010 (JMLR 11, 2079–2107); t-interval, Student,
1908 (doi:10.1093/biomet/6.1.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from checks import InputError
from experiments.search_space import Settings, digest
from learner import Learner

Row = dict[str, Any]
Build = Callable[[Settings, int, "Path | None"], Learner]


def confirm(
    build: Build,
    candidates: Mapping[str, Settings],
    *,
    epochs: int,
    seeds: Sequence[int],
    folder: str | Path | None = None,
    score: str = "val_mean_iou",
) -> list[Row]:
    """Train every candidate with every seed; a run that is found finished in its folder is only read.

    Args:
        build: makes a learner from settings, seed and folder, as for `tuning.tune`.
        candidates: name → settings.
        seeds: two or more, none of which the search has used.

    Returns: rows with candidate, seed, score (of the learner's best epoch) and seconds.
    """
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise InputError(
            f"confirm: the seeds are {list(seeds)}; expected two or more, all different: one seed shows no spread."
        )
    rows = []
    for seed in seeds:  # seed by seed: if this is cut off, all candidates have the same seeds
        for name, settings in candidates.items():
            history = trained(build, settings, seed, epochs, folder).history
            best = max(row[score] for row in history)
            rows.append({"candidate": name, "seed": seed, "score": best, "seconds": sum(r["seconds"] for r in history)})
    return rows


def trained(build: Build, settings: Settings, seed: int, epochs: int, folder: str | Path | None) -> Learner:
    """The learner of one run, trained, or read from its folder."""
    learner = build(settings, seed, Path(folder) / digest(settings, seed) if folder is not None else None)
    learner.fit(epochs)
    return learner


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half width of its interval: mean ± t·s/√n, with Student's t for n − 1; for one value the width is nan.

    If values scatter normally, such intervals hold the true mean in a share `level` of all experiments.

    >>> mean, half = interval([1.0, 2.0, 3.0])  # s = 1, t = 4.303 for two degrees of freedom
    >>> mean, round(half, 3)
    (2.0, 2.484)
    """
    numbers = np.asarray(values, dtype=float)
    if len(numbers) < 2:
        return float(numbers.mean()), float("nan")
    error = numbers.std(ddof=1) / np.sqrt(len(numbers))
    return float(numbers.mean()), float(student.ppf(0.5 + level / 2, len(numbers) - 1) * error)


def scores_of(rows: Sequence[Row], candidate: str, column: str = "score") -> list[float]:
    """The scores of a candidate, by seed."""
    return [row[column] for row in sorted(rows, key=lambda row: row["seed"]) if row["candidate"] == candidate]


def differences(rows: Sequence[Row], candidate: str, other: str, column: str = "score") -> list[float]:
    """Score of the candidate minus that of the other one, seed by seed.

    >>> rows = [{"candidate": c, "seed": s, "score": v} for c, s, v in [("a", 0, 3), ("b", 0, 1)]]
    >>> differences(rows, "a", "b")
    [2]
    """
    seeds = [sorted(row["seed"] for row in rows if row["candidate"] == name) for name in (candidate, other)]
    if seeds[0] != seeds[1] or not seeds[0]:
        raise InputError(
            f"differences: {candidate!r} has the seeds {seeds[0]}, {other!r} has {seeds[1]}; train the rest."
        )
    return [a - b for a, b in zip(scores_of(rows, candidate, column), scores_of(rows, other, column))]
