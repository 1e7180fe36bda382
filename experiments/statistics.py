"""Compare methods as in a publication: tables (lists of dicts), intervals over seeds, paired tests over images.

Sources: signed-rank test, Wilcoxon, 1945 (doi:10.2307/3001968), with ties at zero as Pratt, 1959
(doi:10.1080/01621459.1959.10501526); step-down correction, Holm, 1979 (Scandinavian Journal of Statistics 6, 65–70).
"""

import contextlib
import csv
import itertools
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import ArrayLike
from scipy import stats

from checks import InputError
from training.checkpoint import replacing

Row = dict[str, Any]
TEXT = {"set", "loss", "rule", "image", "precision", "machine", "arm", "commit"}  # columns of names: "071" is not 71


def read_table(path: str | Path) -> list[Row]:
    """The rows of a .csv file with a header; int and float in all columns but those of names.  No file, no rows."""
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [{key: value if key in TEXT else _number(value) for key, value in row.items()} for row in rows]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of equal columns to a .csv file, floats with five significant digits, so that tables stay small."""
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()})


def provenance() -> Row:
    """What a measured row came from: `machine`, its device, threads and PyTorch, and the `commit`, if git knows one."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    place, commit = Path(__file__).parent, ""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout.strip()
    return {"machine": f"{device}; {torch.get_num_threads()} threads; torch {torch.__version__}", "commit": commit}


def collect(runs: Path, figures: Path, tables: Mapping[str, tuple[str, int]]) -> None:
    """Bring the rows of all finished runs, `runs`/*/*/*.json, into the tables of `figures`, each row once.

    `tables` says for each kind of rows the name of its .csv and how many of the first columns tell rows apart.  Rows of
    other places stay unless they have columns that the new ones lack; what has no value is blank.
    """
    with FileLock(runs / "tables.lock"):  # two processes may do a part each
        files = sorted(runs.glob("*/*/*.json"), key=lambda file: file.stat().st_mtime)
        done = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        for kind, (table, keys) in tables.items():
            rows = [row for run in done for row in run[kind]]
            widest: Row = max(rows, key=len)
            columns = dict.fromkeys(widest, "")
            rows = [row for row in [*read_table(figures / f"{table}.csv"), *rows] if row.keys() <= columns.keys()]
            merged = {tuple(row.values())[:keys]: columns | row for row in rows}
            write_table(figures / f"{table}.csv", [merged[key] for key in sorted(merged)])


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows that have all the wanted values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def scores_of(rows: Sequence[Row], candidate: str, column: str = "score") -> list[float]:
    """The scores of a candidate, by seed."""
    return [row[column] for row in sorted(rows, key=lambda row: row["seed"]) if row["candidate"] == candidate]


def differences(rows: Sequence[Row], candidate: str, other: str, column: str = "score") -> list[float]:
    """Score of the candidate minus that of the other one, seed by seed: one seed gives both the same crops."""
    seeds = [sorted(row["seed"] for row in rows if row["candidate"] == name) for name in (candidate, other)]
    if seeds[0] != seeds[1]:
        raise InputError(f"{candidate!r} has the seeds {seeds[0]}, {other!r} has {seeds[1]}; train the rest.")
    return [a - b for a, b in zip(scores_of(rows, candidate, column), scores_of(rows, other, column))]


def per_image(rows: Sequence[Row], column: str) -> dict[str, float]:
    """The mean of a column over all rows (seeds) of an image, by image."""
    images = itertools.groupby(sorted(rows, key=lambda row: row["image"]), key=lambda row: row["image"])
    return {image: float(np.mean([row[column] for row in part])) for image, part in images}


def mean_sd(values: ArrayLike, digits: int = 3) -> str:
    """Mean ± standard deviation (n − 1); for one value the value alone.

    >>> mean_sd([1, 2, 3], 1), mean_sd([0.5])
    ('2.0 ± 1.0', '0.500')
    """
    numbers = np.asarray(values, dtype=float)
    mean = f"{numbers.mean():.{digits}f}"
    return f"{mean} ± {numbers.std(ddof=1):.{digits}f}" if numbers.size > 1 else mean


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval, mean ± t·s/√n with Student's t for n − 1; of one value nan."""
    numbers = np.asarray(values, dtype=float)
    half = stats.t.ppf(0.975, len(numbers) - 1) * stats.sem(numbers) if len(numbers) > 1 else np.nan
    return float(numbers.mean()), float(half)


def paired_test(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """p-value of Wilcoxon's signed-rank test for pairs of one name, by the normal approximation (some 20 pairs)."""
    if alone := first.keys() ^ second.keys():
        raise InputError(f"On one side only: {', '.join(sorted(alone)[:5])}. Score the same images on both sides.")
    differences = np.array([first[name] - second[name] for name in first])
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt", method="approx", nan_policy="raise").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: the smallest times n, the next times n − 1, …, never falling, at most 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p, order = np.array(p_values, dtype=float), np.argsort(p_values)
    p[order] = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    return p.tolist()


def groups(rows: Sequence[Row], factor: str, bins: int = 4) -> dict[str, list[Row]]:
    """The rows by their value of a factor; numbers of more than six values are split into equal parts."""
    values = sorted({row[factor] for row in rows}, key=lambda value: (isinstance(value, str), value))
    if len(values) <= 6 or isinstance(values[-1], str):
        return {str(value): [row for row in rows if row[factor] == value] for value in values}
    ordered = sorted(rows, key=lambda row: row[factor])
    starts = [ordered[i][factor] for i in np.linspace(0, len(ordered), bins + 1).astype(int)[:-1]]
    ranges = itertools.pairwise([*starts, np.inf])  # equal values stay together
    parts = ([row for row in ordered if low <= row[factor] < high] for low, high in ranges)
    return {f"{part[0][factor]:.2g} … {part[-1][factor]:.2g}": part for part in parts if part}


def explained(rows: Sequence[Row], factor: str, score: str = "score", shuffles: int = 500) -> tuple[float, float]:
    """The fraction of the variance that one factor explains, η² = Σ_groups n_g (mean_g − mean)² / Σ (score − mean)².

    The second number is what a factor without any influence passes once in twenty times, found by shuffling the scores.
    """
    parts = [[row[score] for row in part] for part in groups(rows, factor).values()]
    values = np.array([value for part in parts for value in part], dtype=float)
    if len(values) < 3 or np.ptp(values) == 0:
        return 0.0, 1.0
    membership = np.repeat(np.eye(len(parts)), [len(part) for part in parts], axis=0)  # (rows, groups)
    rng = np.random.default_rng(0)
    values -= values.mean()
    drawn = np.stack([values, *(rng.permutation(values) for _ in range(shuffles))])
    between = ((drawn @ membership) ** 2 / membership.sum(axis=0)).sum(axis=1)  # n_g·mean_g² = (Σ_g)² / n_g
    shares = between / (values**2).sum()
    return float(min(shares[0], 1.0)), float(np.quantile(shares[1:], 0.95))
