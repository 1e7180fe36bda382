"""Look at a folder of images and labels before any training, and name all problems at once.

    python3 run.py check FOLDER                  or the name of a set, as `data.prepare` takes it
    python3 run.py check FOLDER --classes 3      labels 0, 1, 2, and 255 for what is ignored
    python3 run.py check FOLDER --map 0=0,255=1  the class of each value in the masks; a colour is written 255-0-255=1

Each problem comes with what to do; then classes, sizes, copies, and a picture: do the labels belong to the images?
"""

import contextlib
import hashlib
from argparse import ArgumentParser, RawTextHelpFormatter
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import plots
from checks import IGNORE_INDEX, InputError, printable
from commands.train import at_least
from data import NAMES, NUM_CLASSES, source_folder
from imagesets.files import SHOWN, LabelMap, Problem, Sample, parse_map
from imagesets.hdf5 import Comparison
from imagesets.layouts import Layout, read_folder, recognise
from imagesets.real import SOURCES, read_dataset

NUM_EXAMPLES = 8
RARE = 0.01  # share of the pixels below which a class is hard to learn


@dataclass
class Report:
    """What `examine` has found: all problems; the pixels of each label value, sizes, copies of the sound samples."""

    source: str
    num_classes: int
    layout: Layout | None = None
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    sizes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    duplicates: list[str] = field(default_factory=list)
    examples: list[Sample] = field(default_factory=list)


def examine(source: str | Path, *, num_classes: int | None = None, label_map: LabelMap | None = None) -> Report:
    """Look at all files of a folder of a usual layout, or of a named set; raise nothing for them."""
    layout = None
    with contextlib.suppress(InputError):  # which `_samples` lists
        layout = None if str(source) in NAMES else recognise(source_folder(source))
    counted = NUM_CLASSES.get(str(source)) or (layout.num_classes(label_map) if layout and not num_classes else 2)
    report = Report(str(source), num_classes or counted, layout)
    copies: dict[str, dict[str, str]] = defaultdict(dict)  # hash of the image → name: hash of the label
    chosen: dict[str, Sample] = {}
    comparison = Comparison(report.num_classes)
    for found in _samples(source, label_map):
        wrong = [found] if isinstance(found, Problem) else comparison.problems(found)
        report.problems += wrong
        if wrong or isinstance(found, Problem):
            continue
        report.counts += np.bincount(found.label.ravel(), minlength=256)
        report.sizes[found.label.shape] += 1
        image, label = (hashlib.sha256(np.ascontiguousarray(a).data).hexdigest() for a in (found.image, found.label))
        copies[image][found.name] = label
        chosen[image] = found
        if len(chosen) > NUM_EXAMPLES:  # those of the smallest hashes stay
            del chosen[max(chosen)]
    report.remarks, report.examples = list(comparison.remarks()), list(chosen.values())
    found_twice = {" = ".join(same): set(same.values()) for same in copies.values() if len(same) > 1}
    advice = "are one image with two different labels", "keep the right pair"
    report.duplicates = list(found_twice)
    report.problems += [Problem(names, *advice) for names, labels in found_twice.items() if len(labels) > 1]
    return report


def _samples(source: str | Path, label_map: LabelMap | None) -> Iterator[Sample | Problem]:
    try:
        folder = source_folder(source, say=lambda line: None)
        yield from read_dataset(str(source), folder) if str(source) in SOURCES else read_folder(folder, label_map)
    except InputError as error:
        yield from getattr(error, "problems", None) or [Problem("", " ".join(str(error).split()))]


def describe(report: Report) -> list[str]:
    """The report as lines: the problems, those with one advice together, then what the sound samples are like."""
    lines = [f"{report.source}: {report.sizes.total()} sound pairs, {len(report.problems)} problems"]
    lines += [f"Recognised  {report.layout}; {report.num_classes} classes"] * bool(report.layout)
    for advice in dict.fromkeys(problem.advice for problem in report.problems):
        same = [problem for problem in report.problems if problem.advice == advice]
        lines.append(f"- {advice or 'correct this, then check again'}:")
        lines += [f"    {printable(problem.file) or report.source}: {problem.found}" for problem in same[:SHOWN]]
        lines += [f"    … and {len(same) - SHOWN} more"] * (len(same) > SHOWN)
    if any("label_map" in problem.advice for problem in report.problems):
        lines.append("On the command line label_map={0: 0, 255: 1} is --map 0=0,255=1, a colour 255-0-0, others *")
    if not report.sizes:
        return lines
    inside = report.counts[: report.num_classes]
    shares = inside / max(inside.sum(), 1)
    classes = ", ".join(f"{number}: {share:.1%}" for number, share in enumerate(shares))
    lines.append(f"Classes     {classes}; ignored {report.counts[IGNORE_INDEX] / report.counts.sum():.1%}")
    lines.append(f"Sizes       {', '.join(f'{H}×{W} ({n})' for (H, W), n in report.sizes.most_common(6))}")
    lines += [f"Copies      {names}: one image; they go into one part" for names in report.duplicates[:SHOWN]]
    lines += [f"Look at     {remark}" for remark in report.remarks]
    rare = np.flatnonzero(shares < RARE)[:SHOWN]
    return lines + [f"Look at     class {k} has {shares[k]:.2%} of the pixels: is --classes right?" for k in rare]


def main(arguments: Sequence[str]) -> int:
    """What `run.py check` does; 1 if there are problems."""
    parser = ArgumentParser("run.py check", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("source", metavar="FOLDER|NAME", help="images/ and labels/ lie in it, or a known data set")
    parser.add_argument("--classes", type=at_least(2), metavar="N", help="default: as data.prepare")
    parser.add_argument("--map", type=parse_map, metavar="VALUE=CLASS,…", help="the class of each value in the masks")
    parser.add_argument("--picture", default="data_check.png", type=Path, help="default: data_check.png")
    options = parser.parse_args(arguments)
    if options.picture.suffix.lower() != ".png" or not options.picture.absolute().parent.is_dir():
        raise InputError(f"--picture {options.picture}: give a name that ends in .png, in a folder that is there.")
    report = examine(options.source, num_classes=options.classes, label_map=options.map)
    print("\n".join(describe(report)), flush=True)
    if report.examples:
        plots.use_style()
        images, labels, names = zip(*((sample.image, sample.label, sample.name) for sample in report.examples))
        classes = report.layout.classes if report.layout else ()
        plots.contact_sheet(images, labels, names, classes or [f"class {k}" for k in range(report.num_classes)])
        plots.save(options.picture)
        print(f"Picture     {options.picture}: image, label, and the label drawn on the image", flush=True)
    return 1 if report.problems else 0
