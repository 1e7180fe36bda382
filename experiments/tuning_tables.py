"""What a search has found, as plain rows: its trials, their epochs, and what can be read off them.

A row is a dict.  Rows can be written to a .csv file and read back, so every figure is drawn again without any training.
The functions below the first two need no study, only rows.

Sources: share of the variance that one factor explains (η², the main effects of an analysis of variance), Fisher, 1925;
what is uncertain about such numbers when a search has drawn the values, Hutter et al., 2014 (ICML, PMLR 32).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]

# How a trial ended, where Optuna has no state for it: kept in its attribute "end".
SURPLUS, PAUSED = "surplus", "paused"
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "RUNNING": "running"}


def recorded_epochs(trial: Any) -> list[Row]:
    """The rows of the epochs of an Optuna trial, in their order."""
    rows = [value for key, value in trial.user_attrs.items() if key.startswith("epoch ")]
    return sorted(rows, key=lambda row: row["epoch"])


def counted(trials: Sequence[Any]) -> list[Any]:
    """The trials without surplus ones, and without those that go on as another trial."""
    real = [trial for trial in trials if trial.user_attrs.get("end") != SURPLUS]
    continued = {trial.user_attrs.get("goes_on_from") for trial in real}
    return [trial for trial in real if trial.number not in continued]


def trial_rows(study: Any, score: str = "val_mean_iou") -> list[Row]:
    """One row for each trial of an Optuna study that has begun.

    Columns: trial, state, score (the best of its epochs, nan without any), first_score (after its first epoch), epochs,
    seconds (of training), seed, reason (of a failure), and the values.  The state is complete, pruned, failed, running,
    paused (the time was over), or continued: cut off, and gone on as a later trial.
    """
    trials = [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get("end") != SURPLUS]
    last = {trial.number for trial in counted(trials)}
    rows = []
    for trial in trials:
        if trial.state.name == "WAITING":
            continue
        epochs = recorded_epochs(trial)
        scores = [row[score] for row in epochs] or [float("nan")]
        reason = trial.user_attrs.get("end", "the process was killed") if trial.state.name == "FAIL" else ""
        state = PAUSED if reason == PAUSED else _STATES.get(trial.state.name, "failed")
        state = state if trial.number in last else "continued"
        row = {"trial": trial.number, "state": state, "score": max(scores), "first_score": scores[0]}
        row |= {"epochs": len(epochs), "seconds": sum(row["seconds"] for row in epochs)}
        rows.append(row | {"seed": trial.user_attrs.get("seed", -1), "reason": reason} | trial.params)
    return rows


def epoch_rows(study: Any) -> list[Row]:
    """One row for each epoch of each trial, those left out that go on as another trial and have their epochs there."""
    shown = [t for t in counted(study.get_trials(deepcopy=False)) if t.state.name != "WAITING"]
    return [{"trial": trial.number} | row for trial in shown for row in recorded_epochs(trial)]


# ---- reading rows ---------------------------------------------------------------------------------------------------


def best_trials(rows: Sequence[Row], number: int) -> list[Row]:
    """The complete trials of highest score, best first.

    >>> rows = [{"state": "complete", "score": s} for s in (0.1, 0.3, 0.2)] + [{"state": "pruned", "score": 0.9}]
    >>> [row["score"] for row in best_trials(rows, 2)]
    [0.3, 0.2]
    """
    return sorted((row for row in rows if row["state"] == "complete"), key=lambda row: -row["score"])[:number]


def best_so_far(rows: Sequence[Row]) -> list[float]:
    """After each trial, in their order: the highest score of a complete one; nan before the first.

    >>> best_so_far([{"state": "complete", "score": 0.2}, {"state": "pruned", "score": 0.9}])
    [0.2, 0.2]
    """
    scores = [row["score"] if row["state"] == "complete" else float("nan") for row in rows]
    return [float(value) for value in np.fmax.accumulate(scores)] if scores else []


def groups(rows: Sequence[Row], factor: str, bins: int = 4) -> dict[str, list[Row]]:
    """The rows by their value of a factor; numbers of more than six values are cut into `bins` parts of equal size.

    >>> rows = [{"lr": lr} for lr in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
    >>> {name: len(part) for name, part in groups(rows, "lr", bins=2).items()}
    {'0.1 … 0.4': 4, '0.5 … 0.8': 4}
    """
    values = sorted({row[factor] for row in rows}, key=lambda value: (isinstance(value, str), value))
    if len(values) <= 6 or isinstance(values[-1], str):
        return {str(value): [row for row in rows if row[factor] == value] for value in values}
    ordered = sorted(rows, key=lambda row: row[factor])
    parts = [ordered[i] for i in np.linspace(0, len(ordered), bins + 1).astype(int)[:-1]]
    found: dict[str, list[Row]] = {}
    for first, end in zip(parts, [*parts[1:], None]):
        part = [r for r in ordered if r[factor] >= first[factor] and (end is None or r[factor] < end[factor])]
        if part:
            found[f"{part[0][factor]:.2g} … {part[-1][factor]:.2g}"] = part
    return found


def explained(rows: Sequence[Row], factor: str, score: str = "score", shuffles: int = 500) -> tuple[float, float]:
    """The share of the variance of a score that one factor explains alone, and how far chance gets.

    η² = Σ_groups n_g (mean_g − mean)² / Σ (score − mean)².  The second number is the share that a factor without any
    influence passes once in twenty times: the scores are shuffled between the trials.  Nothing is said about factors
    that act together, and values near the good ones were drawn more often.

    >>> share, chance = explained([{"a": i % 2, "score": float(i % 2)} for i in range(20)], "a")
    >>> share, 0 < chance < 0.4
    (1.0, True)
    """
    parts = [[row[score] for row in part] for part in groups(rows, factor).values()]
    values = np.array([value for part in parts for value in part], dtype=float)
    if len(values) < 3 or np.ptp(values) == 0:
        return 0.0, 1.0
    membership = np.repeat(np.eye(len(parts)), [len(part) for part in parts], axis=0)  # (trials, groups)
    rng = np.random.default_rng(0)
    centred = values - values.mean()
    drawn = np.stack([centred, *(rng.permutation(centred) for _ in range(shuffles))])
    between = ((drawn @ membership) ** 2 / membership.sum(axis=0)).sum(axis=1)  # n_g·mean_g² = (Σ_g)² / n_g
    shares = between / (centred**2).sum()
    return float(min(shares[0], 1.0)), float(np.quantile(shares[1:], 0.95))


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """The indices of points that no other one beats in both, at most the same cost and at least the same score.

    By rising cost; of equal points the first.

    >>> pareto_front([3.0, 1.0, 2.0], [0.9, 0.5, 0.4])
    [1, 0]
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i]))
    front: list[int] = []
    for index in order:
        if not front or scores[index] > scores[front[-1]]:
            front.append(index)
    return front


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation: 1 if both order the trials alike, 0 if they have nothing to do with each other.

    >>> round(rank_agreement([0.1, 0.2, 0.3], [1, 2, 9]), 3), round(rank_agreement([1, 2, 3], [3, 2, 1]), 3)
    (1.0, -1.0)
    """
    from scipy.stats import rankdata

    if len(first) < 2:
        return float("nan")
    ranks = np.stack([rankdata(first), rankdata(second)])
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    scale = float(np.sqrt((ranks**2).sum(axis=1).prod()))
    return float((ranks[0] * ranks[1]).sum() / scale) if scale else float("nan")
