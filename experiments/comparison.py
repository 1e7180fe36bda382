"""Compare methods as in a publication: mean and spread over seeds, paired tests over images, and their correction.

A table is a list of rows, a row is a dict; `read_table` reads one from a .csv file and turns its text into numbers.

Sources: signed-rank test, Wilcoxon, 1945 (doi:10.2307/3001968), with ties at zero as Pratt, 1959
(doi:10.1080/01621459.1959.10501526); step-down correction, Holm, 1979 (Scandinavian Journal of Statistics 6, 65–70).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import wilcoxon

from checks import InputError

Row = dict[str, Any]
TEXT = {"set", "loss", "rule", "image", "precision"}  # columns of names: "071" is not 71


def read_table(path: str | Path) -> list[Row]:
    """The rows of a .csv file with a header; int and float in all columns but those of names.  No file, no rows.

    >>> read_table("nowhere.csv")
    []
    """
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{key: value if key in TEXT else _number(value) for key, value in row.items()} for row in rows]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows that have all the wanted values.

    >>> select([{"loss": "ce", "seed": 0}, {"loss": "dice", "seed": 0}], loss="ce")
    [{'loss': 'ce', 'seed': 0}]
    """
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def mean_sd(values: ArrayLike, digits: int = 3) -> str:
    """Mean ± standard deviation (n − 1); for one value the value alone.

    >>> mean_sd([1, 2, 3], 1), mean_sd([0.5])
    ('2.0 ± 1.0', '0.500')
    """
    numbers = np.asarray(values, dtype=float)
    mean = f"{numbers.mean():.{digits}f}"
    return f"{mean} ± {numbers.std(ddof=1):.{digits}f}" if numbers.size > 1 else mean


def per_image(rows: Sequence[Row], column: str) -> dict[str, float]:
    """The mean of a column over all rows (seeds) of an image, by image.

    >>> per_image([{"image": "a", "dice": 0.5}, {"image": "a", "dice": 1.0}], "dice")
    {'a': 0.75}
    """
    images = sorted({row["image"] for row in rows})
    return {image: float(np.mean([row[column] for row in rows if row["image"] == image])) for image in images}


def paired_test(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """p-value of Wilcoxon's signed-rank test for pairs of one name: do the differences lie evenly round 0?

    By the normal approximation, which is good for some 20 pairs and more.

    Raises `InputError` if the names differ, or a difference is not finite.

    >>> a = {str(i): float(i) for i in range(8)}
    >>> paired_test(a, a), round(paired_test(a, {key: value + 1 + value / 9 for key, value in a.items()}), 4)
    (1.0, 0.0117)
    """
    if first.keys() != second.keys():
        alone = sorted(first.keys() ^ second.keys())[:5]
        raise InputError(
            f"paired_test: {len(first)} and {len(second)} names, and some stand on one side only: {', '.join(alone)}.\n"
            "Score the same images on both sides."
        )
    differences = np.array([first[name] - second[name] for name in first])
    if not np.isfinite(differences).all():
        name = next(name for name in first if not np.isfinite(first[name] - second[name]))
        raise InputError(
            f"paired_test: the scores of {name!r} are {first[name]} and {second[name]}; expected finite numbers.\n"
            "Leave such images out on both sides, or take another score."
        )
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences, zero_method="pratt", method="approx").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: the smallest times n, the next times n − 1, …, never falling, at most 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    n, highest, corrected = len(p_values), 0.0, [0.0] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (n - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
