"""The tuning of section A1.2: a plan, a search that does exactly this plan, confirmation, and one look at the test set.

    python3 run.py tune --minutes 60                         # goes on where it stopped
    python3 run.py tune --worker --storage ADDRESS           # one more process that only searches

1. A range test of the default network gives the range of learning rates.
2. Trials are searched for some minutes (`search.py`); their score is the mean IoU on the validation images.
3. The best few and the default are trained again with new seeds: the best score of a search is the largest of many
   that scatter, and so too good (Cawley and Talbot, 2010, JMLR 11, 2079–2107).
4. The candidate of highest mean in step 3, and the default, are judged on the test images, once.

The tuning has parts of its own, cut from the set's training and validation images (`own_parts`): the set's test images
are left for the networks that use the result.
"""

import hashlib
import itertools
import json
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from checks import InputError
from data import SegmentationDataset, make_loader, prepare
from experiments import search as hpo
from experiments.search import Build, Factor, LogRange, Row, Settings, searched, with_fixed
from experiments.statistics import interval, provenance, read_table, scores_of, write_table
from experiments.study import augment
from imagesets.files import Sample
from learner import Learner, pick_device, set_seed
from losses import cross_entropy
from metrics import confusion_matrix, mean_iou
from training.checkpoint import replacing
from unet import UNet

RUNS, FIGURES, DATA = Path("runs/tuning"), Path("figures"), Path("data")
Candidates = Mapping[str, Settings]
DEFAULT_SET = "dsb2018"
EPOCHS = 9  # three rungs: after 1, 3 and 9 epochs
CANDIDATES = 3  # so many of the best trials are confirmed, beside the default
PLAN = [
    Factor("stem", "scientific", (1, 2, 4), "resolution: squares of so many pixels a side are one pixel for the net"),
    Factor("width", "scientific", (8, 16, 24, 32, 48), "channels of the highest level; doubled at each level below"),
    Factor("levels", "scientific", (1, 2, 3, 4, 5), "depth: levels of the U; each further one doubles what is seen"),
    Factor("skip", "scientific", ("none", "sum", "concat"), "links from encoder to decoder"),
    Factor("norm", "nuisance", ("none", "batch", "group"), "changes which learning rates and batch sizes work"),
    Factor("batch", "nuisance", (1, 2, 4, 8, 16), "number of steps and noise of the gradient; goes with the step size"),
    Factor("lr", "nuisance", LogRange(1e-4, 1e-1), "step size: the one that can spoil everything; range from the test"),
    Factor("optimiser", "fixed", ("AdamW, cosine",), "a warm-up and a cosine, as everywhere in this notebook"),
    Factor("weight decay", "fixed", (1e-4,), "hardly matters in so short a training"),
    Factor("loss", "fixed", ("cross-entropy",), "losses are compared in A1.3, not here"),
    Factor("augmentation", "fixed", ("symmetries, brightness",), "always helps with few images"),
    Factor("crop", "fixed", (72,), "side in full resolution: a quarter of it, halved four times, is still 2 pixels"),
    Factor("crops", "fixed", (200,), "about so many in an epoch, whatever the batch size"),
]
DEFAULT: Settings = {"stem": 1, "width": 8, "levels": 4, "skip": "concat", "norm": "batch", "batch": 16, "lr": 5e-3}
# An earlier search had ranges that ended at width 16 and batch 4, where its best trials lay; beyond them, first of all:
_BEST: Settings = DEFAULT | {"stem": 2, "width": 16, "norm": "group", "batch": 4, "lr": 5e-4}
EARLIER = (_BEST | {"width": 32}, _BEST | {"batch": 2}, _BEST | {"width": 32, "batch": 2}, _BEST)
FIXED: Settings = {f.name: f.values[0] for f in PLAN if isinstance(f.values, tuple) and f.kind == "fixed"}


def make_model(settings: Settings, channels: int, num_classes: int) -> UNet:
    """The U-Net of some settings; labels and scores are always in full resolution."""
    widths = [settings["width"] * 2**level for level in range(settings["levels"])]
    return UNet(channels, num_classes, widths, **{name: settings[name] for name in ("stem", "skip", "norm")})


def own_parts(sample: Sample) -> Sample | None:
    """The parts of the tuning: a set's test images are left out, its validation images test, all others are split."""
    return None if sample.part == "test" else replace(sample, part="test" if sample.part == "val" else None)


def builder(path: Path, precision: str = "float32", crops: int = FIXED["crops"]) -> Build:
    """The function that makes the learner of a trial on one data set, which all of them share: train one at a time."""
    val = make_loader(SegmentationDataset(path, "val"), 8)
    train = SegmentationDataset(path, "train", crop=FIXED["crop"])

    def build(settings: Settings, seed: int, folder: Path | None) -> Learner:
        train.seed = seed
        repeats = max(1, round(crops / len(train)))
        loader = make_loader(train, settings["batch"], shuffle=True, seed=seed, repeats=repeats)
        set_seed(seed)
        return Learner(
            make_model(settings, train.channels, train.num_classes), cross_entropy, loader, val,
            lr=settings["lr"], weight_decay=settings["weight decay"], augment=augment,
            folder=folder, seed=seed, precision=precision, verbose=False,
        )  # fmt: skip

    return build


def search(
    path: Path, storage: str | Path | None, *, name: str, minutes: float, trials: int = 1_000_000,
    epochs: int = EPOCHS, seed: int | None = 0, crops: int = FIXED["crops"], steps: int = 80,
) -> tuple[Any, list[Factor]]:  # fmt: skip
    """Steps 1 and 2, within the minutes: the study, and the plan with the range of learning rates that was tested."""
    began = time.monotonic()
    study = hpo.open_study(storage, name)
    fingerprint = SegmentationDataset(path, "val").fingerprint
    if hpo.note(study, "data", lambda: fingerprint) != fingerprint:
        raise InputError(f"The study {name!r} was begun with other images than {path}; give another name.")
    plain = builder(path)(with_fixed(PLAN, DEFAULT), seed or 0, None)
    low, high = hpo.suggested_range(hpo.note(study, "range test", lambda: hpo.range_test(plain, steps)))
    starts = (DEFAULT, *EARLIER)
    rates = LogRange(*(end(limit, *(s["lr"] for s in starts)) for end, limit in ((min, low), (max, high))))
    factors = [replace(factor, values=rates) if factor.name == "lr" else factor for factor in PLAN]
    build = builder(path, hpo.note(study, "precision", plain.fastest_precision), crops)
    left = minutes - (time.monotonic() - began) / 60
    hpo.tune(study, build, factors, epochs=epochs, minutes=left, trials=trials, starts=starts, seed=seed)
    return study, factors


def chosen_settings(factors: Sequence[Factor], rows: Sequence[Row]) -> dict[str, Settings]:
    """The default and the best trials with other settings, as candidates for the confirmation."""
    best = [{f.name: row[f.name] for f in searched(factors)} for row in hpo.best_trials(rows, CANDIDATES + 1)]
    chosen = [DEFAULT, *(settings for settings in best if settings != DEFAULT)][: CANDIDATES + 1]
    return {f"best {i}" if i else "default": with_fixed(factors, settings) for i, settings in enumerate(chosen)}


def trained(build: Build, settings: Settings, seed: int, epochs: int, folder: Path) -> Learner:
    """The learner of one run, trained, or read from its folder."""
    text = json.dumps([dict(sorted(settings.items())), seed])
    learner = build(settings, seed, folder / hashlib.sha256(text.encode()).hexdigest()[:12])
    learner.fit(epochs)
    return learner


def confirm(build: Build, candidates: Candidates, *, epochs: int, seeds: Sequence[int], folder: Path) -> list[Row]:
    """Step 3: every candidate with every seed, as rows with candidate, seed, score (of its best epoch) and seconds."""
    rows = []
    for seed, (name, settings) in itertools.product(seeds, candidates.items()):  # if cut off, all have the same seeds
        history = trained(build, settings, seed, epochs, folder).history
        best, seconds = max(row[hpo.SCORE] for row in history), sum(row["seconds"] for row in history)
        rows.append({"candidate": name, "seed": seed, "score": best, "seconds": seconds})
    return rows


def final_test(
    path: Path, build: Build, candidates: Candidates, *, epochs: int, seeds: Sequence[int], folder: Path
) -> tuple[list[Row], list[Row]]:  # fmt: skip
    """Step 4: rows of each run and each test image, made once, then read; `InputError` if asked for others later."""
    record, fingerprint = folder / "test-opened.json", SegmentationDataset(path, "test").fingerprint
    asked = {"candidates": candidates, "seeds": list(seeds), "epochs": epochs, "data": fingerprint}
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        if found["asked"] != json.loads(json.dumps(asked)):
            raise InputError(f"The test set was opened before, for other candidates, seeds or data; see {record}.")
        return found["rows"], found["images"]
    rows, images = [], []
    for (name, settings), seed in itertools.product(candidates.items(), seeds):
        scores = judge_images(trained(build, settings, seed, epochs, folder), path)
        rows.append({"candidate": name, "seed": seed, "test_mean_iou": scores.pop("")})
        images += [{"candidate": name, "seed": seed, "image": i, "mean_iou": s} for i, s in scores.items()]
    with replacing(record) as part:
        part.write_text(json.dumps({"asked": asked, "rows": rows, "images": images}), encoding="utf-8")
    return rows, images


def judge_images(learner: Learner, path: Path) -> dict[str, float]:
    """Mean IoU of each test image by its name, and under "" of the counts of all images together."""
    dataset, counts = SegmentationDataset(path, "test"), {}
    for index, name in enumerate(dataset.names):
        image, label = dataset[index]
        counts[name] = confusion_matrix(learner.predict(image[None])[0].argmax(dim=0), label, dataset.num_classes)
    scores = {name: mean_iou(count) for name, count in counts.items()}
    return scores | {"": mean_iou(torch.stack([*counts.values()]).sum(dim=0))}


def save_rows(table: str, set_name: str, rows: Sequence[Row]) -> None:
    """Put the rows of one data set into `figures/tuning_TABLE.csv`, in the place of its old ones."""
    path = FIGURES / f"tuning_{table}.csv"
    columns = list(dict.fromkeys(["set", *(name for row in rows for name in row)]))
    new = [dict.fromkeys(columns, "") | row | {"set": set_name} for row in rows]
    others = [row for row in read_table(path) if row["set"] != set_name and list(row) == columns]
    write_table(path, [*others, *new])


def run_set(set_name: str, options: Namespace, say: Callable[[str], object] = print) -> None:
    """All four steps for one data set, and their tables."""
    path, name = prepare(set_name, DATA, changes=[own_parts], standardise=True), f"tuning-{Path(set_name).name}"
    runs, seeds = RUNS / name, range(options.seeds)
    say(f"{set_name}: search for {options.minutes:g} minutes on {pick_device().type}")
    storage, seed = options.storage or runs / "search.db", None if options.worker else 0
    study, factors = search(path, storage, name=name, minutes=options.minutes, trials=options.trials, seed=seed)
    rows = hpo.trial_rows(study)
    say(f"{set_name}: {len(rows)} trials, of which {dict(Counter(row['state'] for row in rows))}")
    if options.worker or not hpo.best_trials(rows, 1):
        return
    save_rows("range", set_name, study.user_attrs["range test"])
    plan = hpo.spelled(factors) | {"epochs": EPOCHS, "precision": study.user_attrs["precision"]} | provenance()
    save_rows("plan", set_name, [{"factor": key, "values": text} for key, text in plan.items()])
    save_rows("trials", set_name, rows)
    build, candidates = builder(path, study.user_attrs["precision"]), chosen_settings(factors, rows)
    confirmed = confirm(build, candidates, epochs=EPOCHS, seeds=seeds, folder=runs / "confirmation")
    values = {key: {f.name: settings[f.name] for f in searched(factors)} for key, settings in candidates.items()}
    save_rows("confirm", set_name, [row | values[row["candidate"]] for row in confirmed])
    winner = max(candidates, key=lambda key: interval(scores_of(confirmed, key))[0])
    judged = {key: candidates[key] for key in ("default", winner)}
    tests, images = final_test(path, build, judged, epochs=EPOCHS, seeds=seeds, folder=runs / "confirmation")
    save_rows("test", set_name, tests)
    save_rows("images", set_name, images)
    for key in judged:
        mean, half = interval(scores_of(tests, key, "test_mean_iou"))
        say(f"{set_name}: test mean IoU of {key}: {mean:.4f} ± {half:.4f} (95 % interval, {options.seeds} seeds)")


def main(arguments: list[str]) -> None:
    """Do what the command line asks for, and go on where an earlier run stopped."""
    parser = ArgumentParser("run.py tune", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", metavar="NAME", default=[DEFAULT_SET], help=f"default: {DEFAULT_SET}")
    parser.add_argument("--minutes", type=float, default=15, help="of training in the search, for each data set")
    parser.add_argument("--trials", type=int, default=1_000_000, help="at most so many in all")
    parser.add_argument("--seeds", type=int, default=5, help="of the confirmation")
    parser.add_argument("--storage", help="an SQLite file, or an address like postgresql+psycopg://user@host/database")
    parser.add_argument("--worker", action="store_true", help="take part in the search, then end")
    options = parser.parse_args(arguments)
    for set_name in options.data:
        run_set(set_name, options)
