"""Compare methods as in a publication: tables (lists of dicts), intervals over seeds, paired tests over images.

Sources: signed-rank test, Wilcoxon, 1945 (doi:10.2307/3001968), with ties at zero as Pratt, 1959
(doi:10.1080/01621459.1959.10501526); step-down correction, Holm, 1979 (Scandinavian Journal of Statistics 6, 65–70).
"""

import csv
import itertools
import json
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import ArrayLike
from scipy import stats

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
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return text


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows to a .csv file, floats with five significant digits, so that tables stay small; blank: not known."""
    columns = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()})


def provenance() -> Row:
    """What a measured row came from: `machine`, its device, threads and PyTorch, and the `commit`, if git knows one."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    status, commit = subprocess.getstatusoutput(f'git -C "{Path(__file__).parent}" describe --always --dirty')
    machine = f"{device}; {torch.get_num_threads()} threads; torch {torch.__version__}"
    return {"machine": machine, "commit": "" if status else commit}


def kept(file: Path, settings: Row, make: Callable[[], Row]) -> Row:
    """What a run under these settings gave, from its file; else it is made, and kept there beside the settings."""
    if file.exists() and (done := json.loads(file.read_text(encoding="utf-8")))["settings"] == settings:
        return done
    done = {"settings": settings} | make()
    with replacing(file) as part:
        part.write_text(json.dumps(done), encoding="utf-8")
    return done


def collect(runs: Path, figures: Path, tables: Mapping[str, tuple[str, int]]) -> None:
    """Bring the rows of all finished runs into `tables` {kind: (name, first columns that tell rows apart)}."""
    with FileLock(runs / "tables.lock"):  # two processes may do a part each
        files = sorted(runs.glob("*/*/*.json"), key=lambda file: file.stat().st_mtime)
        done = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        for kind, (table, keys) in tables.items():
            rows = [*read_table(figures / f"{table}.csv"), *(row for run in done for row in run[kind])]
            merged = {tuple(row.values())[:keys]: row for row in rows}
            write_table(figures / f"{table}.csv", [merged[key] for key in sorted(merged)])


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows that have all the wanted values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


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


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: the smallest times n, the next times n − 1, …, never falling, at most 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p, order = np.array(p_values, dtype=float), np.argsort(p_values)
    p[order] = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    return p.tolist()
