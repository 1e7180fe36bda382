"""The doctor looks at a folder of images and labels before any training, and names all problems at once.

    python3 run.py check FOLDER                  or the name of a set, as `data.prepare` takes it
    python3 run.py check FOLDER --classes 3      labels 0, 1, 2, and 255 for what is ignored
    python3 run.py check FOLDER --map 0=0,255=1  the class of each value in the masks; a colour is written 255-0-255=1

Each problem comes with the file, the value found, the value expected and what to do.  Then: classes, sizes, copies,
a picture of some images with their labels, whether a tiny network can learn one batch of them, and the minutes that
each part of the notebook will take on this machine.  Nothing in the folder is changed.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

import plots
from checks import IGNORE_INDEX, InputError
from commands import rehearsal
from data import NUM_CLASSES, extra_maps, source_folder
from imagesets.files import PARTS, BadFiles, LabelMap, Problem, Sample, read_each, split_parts
from imagesets.hdf5 import sample_problems
from imagesets.readers import READERS, read_dataset
from learner import pick_device

NUM_EXAMPLES = 8
SHOWN = 20  # files of one kind of problem
RARE = 0.01  # share of the pixels below which a class is hard to learn


@dataclass
class Report:
    """What `examine` has found; shares are of the pixels that are not ignored."""

    source: str
    num_classes: int
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    num_sound: int = 0
    frequencies: dict[int, float] = field(default_factory=dict)
    images_with: dict[int, int] = field(default_factory=dict)
    ignored: float = 0.0
    sizes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    parts: dict[str, int] = field(default_factory=dict)
    duplicates: list[tuple[str, ...]] = field(default_factory=list)
    examples: list[Sample] = field(default_factory=list)


def examine(source: str | Path, *, num_classes: int | None = None, label_map: LabelMap | None = None) -> Report:
    """Look at all files of a folder (`images/` and `labels/` or `masks/`) or of a named set; raise nothing for them.

    Without `num_classes` a named set has its own number, a folder 2, as in `data.prepare`.

    >>> report = examine("nowhere")
    >>> report.problems[0].found
    "'nowhere' is neither a folder nor a known data set"
    """
    report = Report(str(source), num_classes or NUM_CLASSES.get(str(source), 2))
    counts = np.zeros(256, np.int64)
    names: dict[str, list[tuple[str, str, str | None]]] = defaultdict(list)  # image → (name, label, part)
    chosen: dict[str, Sample] = {}
    for found in _samples(source, label_map):
        if isinstance(found, Problem):
            report.problems.append(found)
            continue
        wrong = sample_problems(found, next(iter(chosen.values()), None), report.num_classes)
        report.problems += wrong
        if wrong:
            continue
        here = np.bincount(found.label.ravel(), minlength=256)
        counts += here
        for number in np.flatnonzero(here[:IGNORE_INDEX]).tolist():
            report.images_with[number] = report.images_with.get(number, 0) + 1
        report.sizes[found.label.shape] += 1
        image, label = (hashlib.sha256(np.ascontiguousarray(a).data).hexdigest() for a in (found.image, found.label))
        names[image].append((found.name, label, found.part))
        chosen[image] = found
        if len(chosen) > NUM_EXAMPLES + 1:  # the first one stays, of the others those of the smallest hashes
            del chosen[max(list(chosen)[1:])]
    report.examples = list(chosen.values())[:NUM_EXAMPLES]
    _count_classes(report, counts)
    _compare_copies(report, names)
    return report


def _samples(source: str | Path, label_map: LabelMap | None) -> Iterator[Sample | Problem]:
    """Each sound sample, and each problem."""
    folder = Path(source)
    try:
        folder = source_folder(source, say=lambda line: None)
        if str(source) in READERS:
            yield from read_dataset(str(source), folder)
        else:
            yield from read_each(folder, label_map, extra_maps(folder))
    except InputError as error:
        yield from _problems(error)


def _problems(error: InputError) -> Sequence[Problem]:
    """Those that the error lists, or the one that it is."""
    return error.problems if isinstance(error, BadFiles) else [Problem("", str(error).partition(";")[0])]


def _count_classes(report: Report, counts: np.ndarray) -> None:
    report.num_sound = report.sizes.total()
    total = counts[:IGNORE_INDEX].sum()
    report.ignored = float(counts[IGNORE_INDEX] / max(counts.sum(), 1))
    for number in range(report.num_classes if report.num_sound else 0):
        share = report.frequencies[number] = float(counts[number] / max(total, 1))
        if counts[number] == 0:
            report.remarks.append(f"Class {number} occurs in no label: is --classes {report.num_classes} right?")
        elif share < RARE:
            report.remarks.append(f"Class {number} has {share:.2%} of the pixels only: see section A1.3a.")


def _compare_copies(report: Report, names: Mapping[str, Sequence[tuple[str, str, str | None]]]) -> None:
    """Find images that occur twice, and the number of samples in each part; copies always share a part."""
    for same in names.values():
        if len(same) > 1:
            report.duplicates.append(tuple(name for name, _, _ in same))
            if len({label for _, label, _ in same}) > 1:
                file, found = " = ".join(report.duplicates[-1]), "is the same image with two different labels"
                report.problems.append(Problem(file, found, "keep the right one of the two pairs"))
    flat = [(image, name, part) for image, same in names.items() for name, _, part in same]
    if flat:
        images, labels, given = zip(*flat)
        try:
            found = split_parts(images, given=given, names=labels)
            report.parts = {part: found.count(part) for part in PARTS}
        except InputError as error:
            report.problems += _problems(error)


# --- the command ---


def main(arguments: Sequence[str]) -> int:
    """Print the report of one folder; 1 if there are problems."""
    options = _parse(arguments)
    report = examine(options.source, num_classes=options.classes, label_map=options.map)
    print("\n".join(describe(report)), flush=True)
    if report.examples:
        _draw(report, options.picture)
        print(f"Picture     {options.picture}: image, label, and the label drawn on the image", flush=True)
    if len(report.examples) > 1:
        print(f"One batch   {_one_batch(report)}", flush=True)
    if not options.no_times:
        print("\n".join(_times()))
    return 1 if report.problems else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("run.py check", description=__doc__, formatter_class=layout)
    parser.add_argument("source", metavar="FOLDER|NAME", help="images/ and labels/ lie in it, or a known data set")
    parser.add_argument("--classes", type=int, choices=range(2, 256), metavar="N", help="default: as data.prepare")
    parser.add_argument("--map", type=parse_map, metavar="VALUE=CLASS,…", help="the class of each value in the masks")
    parser.add_argument("--picture", default=Path("data_check.png"), type=Path, help="default: data_check.png")
    parser.add_argument("--no-times", action="store_true", help="do not measure how long the notebook takes")
    return parser.parse_args(arguments)


def parse_map(text: str) -> dict[int | tuple[int, ...], int]:
    """Read `--map`.

    >>> parse_map("0=0,255=1"), parse_map("255-0-255=1")
    ({0: 0, 255: 1}, {(255, 0, 255): 1})
    """
    result: dict[int | tuple[int, ...], int] = {}
    for entry in text.split(","):
        if not re.fullmatch(r"\d+(-\d+-\d+)?=\d+", entry.strip()):
            raise argparse.ArgumentTypeError(f"{entry!r} is not VALUE=CLASS, for example 0=0,255=1 or 255-0-255=1")
        value, _, number = entry.strip().partition("=")
        numbers = tuple(map(int, value.split("-")))
        result[numbers if len(numbers) > 1 else numbers[0]] = int(number)
    return result


def describe(report: Report) -> list[str]:
    """The report as lines: the problems by kind, then what the sound samples are like."""
    bad = len(report.problems)
    lines = [f"{report.source}: {report.num_sound} sound pairs, {bad} problem{'s' * (bad != 1)}"]
    for advice, group in groupby(sorted(report.problems, key=lambda p: p.advice), lambda problem: problem.advice):
        same = list(group)
        lines += [f"- {advice or 'Correct this, then check again'}:"]
        lines += [f"    {problem.file or report.source}: {problem.found}" for problem in same[:SHOWN]]
        lines += [f"    … and {len(same) - SHOWN} more"] if len(same) > SHOWN else []
    if any("label_map" in problem.advice for problem in report.problems):
        lines.append("On the command line, a label_map is written like this: --map 0=0,255=1")
    if report.num_sound:
        shares = [f"{k}: {share:.1%} (in {report.images_with.get(k, 0)})" for k, share in report.frequencies.items()]
        lines.append(f"Classes     {', '.join(shares)}; ignored {report.ignored:.1%}")
        sizes = [f"{H}×{W} ({number})" for (H, W), number in report.sizes.most_common(6)]
        lines.append(f"Sizes       {', '.join(sizes)}{', …' if len(report.sizes) > 6 else ''}")
    if report.parts:
        lines.append(f"Parts       {', '.join(f'{part} {number}' for part, number in report.parts.items())}")
    lines += [
        f"Copies      {' = '.join(names)}: one image; they go into one part" for names in report.duplicates[:SHOWN]
    ]
    return lines + [f"Look at     {remark}" for remark in report.remarks]


def _draw(report: Report, path: Path) -> None:
    plots.use_style()
    images, labels, names = zip(*((sample.image, sample.label, sample.name) for sample in report.examples))
    plots.contact_sheet(images, labels, names, report.num_classes)
    plots.save(path)


def _one_batch(report: Report) -> str:
    images, targets = rehearsal.one_batch(report.examples)
    result = rehearsal.learn_one_batch(images, targets, report.num_classes)
    if np.isnan(result.share):
        return "these labels have one class only: there is nothing to learn."
    numbers = f"{result.share:.0%} of the loss is left; with exchanged labels {result.exchanged:.0%}"
    if result.fits:
        return f"a tiny network learns it: {numbers}."
    return f"WARNING: labels and images may not belong together ({numbers}). Look at the picture."


def _times() -> Iterator[str]:
    device = pick_device().type
    device = f"{torch.get_num_threads()} CPU threads" if device == "cpu" else device
    table = rehearsal.minutes(rehearsal.seconds_per_megapixel())
    yield f"Minutes     on this machine ({device}), about: {', '.join(rehearsal.BUDGETS)}"
    for part, row in {**table, "together": _sums(table)}.items():
        yield f"    {part:40} " + " ".join(f"{row[budget]:8.1f}" for budget in rehearsal.BUDGETS)


def _sums(table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {budget: sum(row[budget] for row in table.values()) for budget in rehearsal.BUDGETS}
