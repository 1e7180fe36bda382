"""The tuning of section A1.2: a plan, a search that does exactly this plan, confirmation, and one look at the test set.

    python3 run.py tune                                      # search, confirmation, test; goes on where it stopped
    python3 run.py tune --minutes 60 --data dsb2018          # an hour of search on real images
    python3 run.py tune --worker --storage ADDRESS           # one more process that only searches

1. A range test of the default network gives the range of learning rates.
2. Trials are searched for a number of minutes (`search.py`); their score is the mean IoU on the validation images.
3. The best few and the default are trained again with seeds that the search never used.  The score of the best trial
   is too good: it is the largest of many numbers that all scatter.
4. The candidate of highest mean in step 3, and the default, are judged on the test images, once.

What was found is in `figures/tuning_range.csv`, `tuning_plan.csv`, `tuning_trials.csv`, `tuning_epochs.csv`,
`tuning_confirm.csv`, `tuning_test.csv` and `tuning_images.csv`, a column `set` naming the data; every figure is drawn
from these.

Source: the largest of many estimates is too large, Cawley and Talbot, 2010 (JMLR 11, 2079–2107).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from checks import InputError
from data import SegmentationDataset, make_loader, prepare
from experiments.search import (
    Build,
    Factor,
    LogRange,
    Row,
    Settings,
    best_trials,
    epoch_rows,
    note,
    open_study,
    range_test,
    searched,
    spelled,
    suggested_range,
    trial_rows,
    tune,
    with_fixed,
)
from experiments.statistics import interval, read_table, scores_of, select, write_table
from experiments.study import augment
from learner import Learner, pick_device, set_seed
from losses import cross_entropy
from metrics import confusion_matrix, mean_iou
from networks.baselines import Shrunk
from training.checkpoint import replacing
from unet import UNet

RUNS, FIGURES, DATA = Path("runs/tuning"), Path("figures"), Path("data")
DEFAULT_SET = "dsb2018"
EPOCHS = 9  # three rungs: after 1, 3 and 9 epochs
CANDIDATES = 3  # so many of the best trials are confirmed, beside the default

PLAN = [
    Factor("shrink", "scientific", (1, 2, 4), "input resolution: so many pixels become one, along each axis"),
    Factor("width", "scientific", (4, 8, 16), "channels of the highest level; each level below has twice as many"),
    Factor("levels", "scientific", (2, 3, 4), "depth: levels of the U; each further one doubles what is seen"),
    Factor("skip", "scientific", ("none", "sum", "concat"), "links from encoder to decoder"),
    Factor("norm", "nuisance", ("none", "batch", "group"), "changes which learning rates and batch sizes work"),
    Factor("batch", "nuisance", (4, 8, 16, 32), "noise of the gradient; goes together with the learning rate"),
    Factor("lr", "nuisance", LogRange(1e-4, 1e-1), "step size: the one that can spoil everything; range from the test"),
    Factor("optimiser", "fixed", ("AdamW, cosine",), "a warm-up and a cosine, as everywhere in this notebook"),
    Factor("weight decay", "fixed", (1e-4,), "hardly matters in so short a training"),
    Factor("loss", "fixed", ("cross-entropy",), "losses are compared in A1.3, not here"),
    Factor("augmentation", "fixed", ("symmetries, brightness",), "always helps with few images"),
    Factor("crop", "fixed", (64,), "side in pixels of the full image, for every resolution the same part of a cell"),
    Factor("crops", "fixed", (200,), "about so many in an epoch, whatever the batch size"),
]
DEFAULT: Settings = {"shrink": 1, "width": 8, "levels": 4, "skip": "concat", "norm": "batch", "batch": 16, "lr": 5e-3}
FIXED: Settings = {f.name: f.values[0] for f in PLAN if isinstance(f.values, tuple) and f.kind == "fixed"}


# ---- one training ---------------------------------------------------------------------------------------------------


def make_model(settings: Settings, channels: int, num_classes: int) -> Shrunk:
    """The U-Net of some settings, at their resolution; labels and scores are always in full resolution."""
    widths = [settings["width"] * 2**level for level in range(settings["levels"])]
    net = UNet(channels, num_classes, widths, skip=settings["skip"], norm=settings["norm"])
    return Shrunk(net, settings["shrink"])


def builder(path: Path, precision: str = "float32", crops: int = FIXED["crops"]) -> Build:
    """The function that makes the learner of a trial on one data set.

    All learners share one data set, so one of them trains at a time.
    """
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


def fastest_precision(path: Path) -> str:
    """The number format in which the default network trains fastest here: one for all trials, so that they compare."""
    return builder(path)(with_fixed(PLAN, DEFAULT), 0, None).fastest_precision()


def rates_tried(path: Path, seed: int = 0, steps: int = 80) -> list[Row]:
    """The learning-rate range test of the default network."""
    learner = builder(path)(with_fixed(PLAN, DEFAULT), seed, None)
    return range_test(
        learner.model, cross_entropy, learner.train_loader, augment=augment, steps=steps, seed=seed,
        device=learner.device,
    )  # fmt: skip


def narrowed(rows: Sequence[Row]) -> list[Factor]:
    """The plan with the range of learning rates that the range test suggests, and the default's in it."""
    low, high = suggested_range(rows)
    rates = LogRange(min(low, DEFAULT["lr"]), max(high, DEFAULT["lr"]))
    return [replace(factor, values=rates) if factor.name == "lr" else factor for factor in PLAN]


# ---- the steps ------------------------------------------------------------------------------------------------------


def search(
    path: Path, storage: str | Path | None, *, name: str, minutes: float, trials: int = 1_000_000,
    epochs: int = EPOCHS, seed: int | None = 0, crops: int = FIXED["crops"], steps: int = 80,
) -> tuple[Any, list[Factor]]:  # fmt: skip
    """Steps 1 and 2, within the minutes: the study, and the plan with the range of learning rates that was tested.

    Args:
        path: the normalised .hdf5 of a data set.
        storage, minutes, trials, epochs, seed: as for `search.open_study` and `search.tune`.
        crops: about so many in an epoch.
        steps: of the range test.
    """
    began = time.monotonic()
    study = open_study(storage, name)
    fingerprint = SegmentationDataset(path, "val").fingerprint
    if note(study, "data", lambda: fingerprint) != fingerprint:
        raise InputError(
            f"The study {name!r} was begun with other images than those of {path}.\n"
            "Their scores would not be comparable: give another --name or --storage."
        )
    factors = narrowed(note(study, "range test", lambda: rates_tried(path, seed or 0, steps)))
    precision = note(study, "precision", lambda: fastest_precision(path))
    left = minutes - (time.monotonic() - began) / 60
    build = builder(path, precision, crops)
    tune(study, build, factors, epochs=epochs, minutes=left, trials=trials, default=DEFAULT, seed=seed)
    return study, factors


def chosen_settings(factors: Sequence[Factor], rows: Sequence[Row], number: int = CANDIDATES) -> dict[str, Settings]:
    """The default and the best trials with other settings, as candidates for the confirmation."""
    names = [factor.name for factor in searched(factors)]
    best = [{name: row[name] for name in names} for row in best_trials(rows, number + 1)]
    others = [settings for settings in best if settings != DEFAULT][:number]
    found = {"default": DEFAULT} | {f"best {i + 1}": settings for i, settings in enumerate(others)}
    return {name: with_fixed(factors, settings) for name, settings in found.items()}


def trained(build: Build, settings: Settings, seed: int, epochs: int, folder: Path) -> Learner:
    """The learner of one run, trained, or read from its folder."""
    text = json.dumps([dict(sorted(settings.items())), seed])
    learner = build(settings, seed, folder / hashlib.sha256(text.encode()).hexdigest()[:12])
    learner.fit(epochs)
    return learner


def confirm(
    build: Build, candidates: Mapping[str, Settings], *, epochs: int, seeds: Sequence[int], folder: Path,
    score: str = "val_mean_iou",
) -> list[Row]:  # fmt: skip
    """Step 3: train every candidate with every seed; a run that is found finished in its folder is only read.

    Args:
        build: makes a learner from settings, seed and folder.
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


def winner(rows: Sequence[Row]) -> str:
    """The candidate of highest mean in the confirmation."""
    return max(dict.fromkeys(row["candidate"] for row in rows), key=lambda name: interval(scores_of(rows, name))[0])


def final_test(
    path: Path, build: Build, candidates: Mapping[str, Settings], *, epochs: int, seeds: Sequence[int], folder: Path,
    record: Path,
) -> tuple[list[Row], list[Row]]:  # fmt: skip
    """Step 4: the test images, for the candidates that were decided for.  What was seen once is only read again.

    Returns: rows with candidate, seed, test_mean_iou; and rows with candidate, seed, image, mean_iou.

    Raises:
        InputError: if the test set was opened before for other candidates, seeds or data: whoever looks again and
            changes the choice has chosen by the test images, and then they are no test any more.
    """
    asked = {"candidates": candidates, "seeds": list(seeds), "epochs": epochs}
    asked["data"] = SegmentationDataset(path, "test").fingerprint
    asked = json.loads(json.dumps(asked))
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        if found["asked"] != asked:
            raise InputError(
                f"The test set was opened before, for other candidates, seeds or data ({record}).\n"
                "A second look would be a choice by the test images. Keep that result; or take new test images, and\n"
                "remove this file."
            )
        return found["rows"], found["images"]
    rows, images = [], []
    for name, settings in candidates.items():
        for seed in seeds:
            scores = judge_images(trained(build, settings, seed, epochs, folder), path)
            rows.append({"candidate": name, "seed": seed, "test_mean_iou": scores.pop("")})
            images += [{"candidate": name, "seed": seed, "image": i, "mean_iou": s} for i, s in scores.items()]
    with replacing(record) as part:
        part.write_text(json.dumps({"asked": asked, "rows": rows, "images": images}), encoding="utf-8")
    return rows, images


def judge_images(learner: Learner, path: Path) -> dict[str, float]:
    """Mean IoU of each test image by its name, and under "" of the counts of all images together."""
    dataset = SegmentationDataset(path, "test")
    counts = {}
    for index, name in enumerate(dataset.names):
        image, label = dataset[index][:2]
        guess = learner.predict(image[None])[0].argmax(dim=0)
        counts[name] = confusion_matrix(guess, label, dataset.num_classes)
    total = mean_iou(sum(counts.values()))  # type: ignore[arg-type]  # the sum of tensors is a tensor
    return {name: mean_iou(count) for name, count in counts.items()} | {"": total}


# ---- tables and command ---------------------------------------------------------------------------------------------


def save_rows(table: str, set_name: str, rows: Sequence[Row]) -> None:
    """Put the rows of one data set into `figures/tuning_TABLE.csv`, in the place of its old ones."""
    path = FIGURES / f"tuning_{table}.csv"
    columns = list(dict.fromkeys(["set", *(name for row in rows for name in row)]))
    new = [{name: (row | {"set": set_name}).get(name, "") for name in columns} for row in rows]
    others = [row for row in read_table(path) if row["set"] != set_name and list(row) == columns]
    write_table(path, [*others, *new])


def load_rows(table: str, set_name: str) -> list[Row]:
    """The rows of one data set from `figures/tuning_TABLE.csv`."""
    return select(read_table(FIGURES / f"tuning_{table}.csv"), set=set_name)


def run_set(set_name: str, options: argparse.Namespace, say: Callable[[str], object] = print) -> None:
    """All four steps for one data set, and their tables."""
    path = prepare(set_name, DATA)
    name = f"{options.name}-{Path(set_name).name}"
    runs, seeds = RUNS / name, range(options.seeds)
    say(f"{set_name}: search for {options.minutes:g} minutes on {pick_device().type}")
    study, factors = search(
        path, options.storage or runs / "search.db", name=name, minutes=options.minutes, trials=options.trials,
        seed=None if options.worker else options.seed,
    )  # fmt: skip
    rows = trial_rows(study)
    states = [row["state"] for row in rows]
    say(f"{set_name}: {len(rows)} trials, of which " + ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states))))
    if options.worker or "complete" not in states:
        return
    save_rows("range", set_name, study.user_attrs["range test"])
    save_rows("plan", set_name, [{"factor": key, "values": text} for key, text in spelled(factors).items()])
    save_rows("trials", set_name, rows)
    save_rows("epochs", set_name, epoch_rows(study))
    build, candidates = builder(path, study.user_attrs["precision"]), chosen_settings(factors, rows)
    say(f"{set_name}: confirmation of {len(candidates)} candidates with {options.seeds} seeds each")
    confirmed = confirm(build, candidates, epochs=EPOCHS, seeds=seeds, folder=runs / "confirmation")
    values = {key: {f.name: settings[f.name] for f in searched(factors)} for key, settings in candidates.items()}
    save_rows("confirm", set_name, [row | values[row["candidate"]] for row in confirmed])
    judged = {key: candidates[key] for key in dict.fromkeys(["default", winner(confirmed)])}
    tests, images = final_test(
        path, build, judged, epochs=EPOCHS, seeds=seeds, folder=runs / "confirmation", record=runs / "test-opened.json"
    )
    save_rows("test", set_name, tests)
    save_rows("images", set_name, images)
    for key in judged:
        mean, half = interval(scores_of(tests, key, "test_mean_iou"))
        say(f"{set_name}: test mean IoU of {key}: {mean:.4f} ± {half:.4f} (95 % interval, {options.seeds} seeds)")


def main(arguments: list[str]) -> None:
    """Do what the command line asks for, and go on where an earlier run stopped."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="run.py tune", description=__doc__, formatter_class=layout)
    parser.add_argument("--data", nargs="+", metavar="NAME", default=[DEFAULT_SET], help=f"default: {DEFAULT_SET}")
    parser.add_argument("--minutes", type=float, default=15, help="of training in the search, for each data set")
    parser.add_argument("--trials", type=int, default=1_000_000, help="at most so many in all")
    parser.add_argument("--seeds", type=int, default=5, help="of the confirmation")
    parser.add_argument("--storage", help="an SQLite file, or an address like postgresql+psycopg://user@host/database")
    parser.add_argument("--name", default="tuning", help="of the study; another plan needs another name")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--worker", action="store_true", help="take part in the search, then end")
    options = parser.parse_args(arguments)
    for set_name in options.data:
        run_set(set_name, options)
