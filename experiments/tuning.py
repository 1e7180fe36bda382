"""The tuning of section A1.2: a plan, a search that does exactly this plan, confirmation, and one look at the test set.

    python3 run.py tune --minutes 60                         # goes on where it stopped

1. A range test of the default network gives the range of learning rates.
2. Trials are searched for some minutes (`search.py`); their score is the mean IoU on the validation images.
3. The best few and the default are trained again with new seeds: the best score of a search is the largest of many
   that scatter, and so too good (Cawley and Talbot, 2010, JMLR 11, 2079–2107).
4. The candidate of highest mean in step 3, and the default, are judged on the test images, once.
"""

import itertools
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from checks import InputError
from data import SegmentationDataset, make_loader, prepare
from experiments import search as hpo
from experiments.search import Build, Factor, Settings, searched, with_fixed
from experiments.statistics import Row, interval, kept, provenance, read_table, select, write_table
from imagesets.files import Sample
from learner import Learner, pick_device
from losses import cross_entropy
from metrics import confusion_matrix, mean_iou
from transforms import augment
from unet import UNet

RUNS, FIGURES, DATA = Path("runs/tuning"), Path("figures"), Path("data")
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
    Factor("lr", "nuisance", (1e-4, 1e-1), "step size: can spoil everything; the range is that of the test", log=True),
    Factor("optimiser", "fixed", ("AdamW, cosine",), "a warm-up and a cosine, as everywhere in this notebook"),
    Factor("weight decay", "fixed", (1e-4,), "assumed to matter little in so short a training"),
    Factor("loss", "fixed", ("cross-entropy",), "losses are compared in A1.3, not here"),
    Factor("augmentation", "fixed", ("symmetries, brightness",), "assumed to help, as there are few images"),
    Factor("crop", "fixed", (72,), "side in full resolution: a quarter of it, halved four times, is still 2 pixels"),
    Factor("crops", "fixed", (200,), "about so many in an epoch, whatever the batch size"),
]
DEFAULT: Settings = {"stem": 1, "width": 8, "levels": 4, "skip": "concat", "norm": "batch", "batch": 16, "lr": 5e-3}
# An earlier search had ranges that ended at width 16 and batch 4, where its best trials lay; beyond them, first of all:
_BEST: Settings = DEFAULT | {"stem": 2, "width": 16, "norm": "group", "batch": 4, "lr": 5e-4}
EARLIER = (_BEST | {"width": 32}, _BEST | {"batch": 2}, _BEST | {"width": 32, "batch": 2}, _BEST)


def own_parts(sample: Sample) -> Sample | None:
    """The parts of the tuning: a set's test images are left out, its validation images test, all others are split."""
    return None if sample.part == "test" else replace(sample, part="test" if sample.part == "val" else None)


def builder(path: Path, precision: str = "float32") -> Build:
    """The function that makes the learner of a trial on one data set, which all of them share: train one at a time."""
    train, val = SegmentationDataset(path, "train"), make_loader(SegmentationDataset(path, "val"), 8)

    def build(settings: Settings, seed: int, folder: Path | None) -> Learner:
        train.seed, train.crop = seed, settings["crop"]
        repeats = max(1, round(settings["crops"] / len(train)))
        loader = make_loader(train, settings["batch"], shuffle=True, seed=seed, repeats=repeats)
        torch.manual_seed(seed)
        widths = [settings["width"] * 2**level for level in range(settings["levels"])]
        form = {name: settings[name] for name in ("stem", "skip", "norm")}  # labels and scores are in full resolution
        model = UNet(train.channels, train.num_classes, widths, **form)
        chosen: Any = {"lr": settings["lr"], "weight_decay": settings["weight decay"], "seed": seed, "folder": folder}
        return Learner(model, cross_entropy, loader, val, augment=augment, precision=precision, verbose=False, **chosen)

    return build


def search(path: Path, storage: Path, name: str, *, minutes: float, trials: int) -> tuple[Any, list[Factor]]:
    """Steps 1 and 2, within the minutes: the study, and the plan with the range of learning rates that was tested."""
    began, study = time.monotonic(), hpo.open_study(storage, name)
    plain = builder(path)(with_fixed(PLAN, DEFAULT) | {"crops": 100 * DEFAULT["batch"]}, 0, None)
    limits = hpo.suggested_range(hpo.note(study, "range test", lambda: hpo.range_test(plain)))
    starts = (DEFAULT, *EARLIER)
    rates = [*limits, *(settings["lr"] for settings in starts)]
    factors = [replace(f, values=(min(rates), max(rates))) if f.name == "lr" else f for f in PLAN]
    factors.append(Factor("images", "fixed", (SegmentationDataset(path, "val").fingerprint,)))
    build = builder(path, hpo.note(study, "precision", plain.fastest_precision))
    left = minutes - (time.monotonic() - began) / 60
    hpo.tune(study, build, factors, epochs=EPOCHS, minutes=left, trials=trials, starts=starts)
    return study, factors


def chosen_settings(factors: Sequence[Factor], rows: Sequence[Row]) -> dict[str, Settings]:
    """The default and the best trials with other settings, as candidates for the confirmation."""
    best = [{f.name: row[f.name] for f in searched(factors)} for row in hpo.best_trials(rows, CANDIDATES + 1)]
    chosen = [DEFAULT, *(settings for settings in best if settings != DEFAULT)][: CANDIDATES + 1]
    return {f"best {i}" if i else "default": with_fixed(factors, settings) for i, settings in enumerate(chosen)}


def confirm(build: Build, candidates: dict[str, Settings], *, seeds: Sequence[int], folder: Path) -> list[Row]:
    """Step 3: every candidate with every seed, as rows with candidate, seed, score (of its best epoch) and seconds."""
    rows = []
    for seed, (name, settings) in itertools.product(seeds, candidates.items()):
        learner = build(settings, seed, folder / f"{name}-{seed}")
        learner.fit(EPOCHS)
        row = {"candidate": name, "seed": seed, "score": max(epoch[hpo.SCORE] for epoch in learner.history)}
        rows.append(row | {"seconds": sum(epoch["seconds"] for epoch in learner.history)})
    return rows


def final_test(path: Path, build: Build, candidates: dict[str, Settings], *, seeds: Sequence[int], folder: Path) -> Row:
    """Step 4: `rows` of each run, `images` of each test image; made once, then read; `InputError` if not the same."""
    record, fingerprint = folder / "test-opened.json", SegmentationDataset(path, "test").fingerprint
    asked = {"candidates": candidates, "seeds": list(seeds), "epochs": EPOCHS, "data": fingerprint}

    def judged() -> Row:
        if record.exists():
            raise InputError(f"The test set was opened before, for other candidates, seeds or data; see {record}.")
        rows, images = [], []
        for (name, settings), seed in itertools.product(candidates.items(), seeds):
            learner = build(settings, seed, folder / f"{name}-{seed}")
            learner.fit(EPOCHS)  # was trained in step 3
            scores = judge_images(learner, path)
            rows.append({"candidate": name, "seed": seed, "test_mean_iou": scores.pop("")})
            images += [{"candidate": name, "seed": seed, "image": i, "mean_iou": s} for i, s in scores.items()]
        return {"rows": rows, "images": images}

    return kept(record, asked, judged)


def judge_images(learner: Learner, path: Path) -> dict[str, float]:
    """Mean IoU of each test image by its name, and under "" of the counts of all images together."""
    dataset: Any = SegmentationDataset(path, "test")
    guesses = (learner.predict(image[None])[0].argmax(dim=0) for image, _ in dataset)
    counts = [confusion_matrix(guess, label, dataset.num_classes) for guess, (_, label) in zip(guesses, dataset)]
    return dict(zip(dataset.names, map(mean_iou, counts))) | {"": mean_iou(torch.stack(counts).sum(dim=0))}


def save_rows(table: str, set_name: str, rows: Sequence[Row]) -> None:
    """Put the rows of one data set into `figures/tuning_TABLE.csv`, in the place of its old ones."""
    path = FIGURES / f"tuning_{table}.csv"
    others = [row for row in read_table(path) if row["set"] != set_name]
    write_table(path, [*others, *({"set": set_name} | row for row in rows)])


def run_set(set_name: str, options: Namespace, say: Any = print) -> None:
    """All four steps for one data set, and their tables."""
    path, name = prepare(set_name, DATA, changes=[own_parts], standardise=True), f"tuning-{Path(set_name).name}"
    runs = RUNS / name
    say(f"{set_name}: search for {options.minutes:g} minutes on {pick_device().type}")
    study, factors = search(path, runs / "search.db", name, minutes=options.minutes, trials=options.trials)
    rows = hpo.trial_rows(study)
    say(f"{set_name}: {len(rows)} trials, of which {dict(Counter(row['state'] for row in rows))}")
    if not hpo.best_trials(rows, 1):
        return
    plan = {f.name: str(f) for f in factors} | {"epochs": EPOCHS, "precision": study.user_attrs["precision"]}
    save_rows("range", set_name, study.user_attrs["range test"])
    save_rows("plan", set_name, [{"factor": key, "values": text} for key, text in (plan | provenance()).items()])
    save_rows("trials", set_name, rows)
    build, candidates = builder(path, study.user_attrs["precision"]), chosen_settings(factors, rows)
    again: Any = {"seeds": range(options.seeds), "folder": runs / "confirmation"}
    confirmed = confirm(build, candidates, **again)
    values = {key: {f.name: settings[f.name] for f in searched(factors)} for key, settings in candidates.items()}
    save_rows("confirm", set_name, [row | values[row["candidate"]] for row in confirmed])
    winner = max(candidates, key=lambda key: sum(row["score"] for row in select(confirmed, candidate=key)))
    tested = final_test(path, build, {key: candidates[key] for key in ("default", winner)}, **again)
    save_rows("test", set_name, tested["rows"])
    save_rows("images", set_name, tested["images"])
    for key in dict.fromkeys(("default", winner)):
        mean, half = interval([row["test_mean_iou"] for row in select(tested["rows"], candidate=key)])
        say(f"{set_name}: test mean IoU of {key}: {mean:.4f} ± {half:.4f} (95 % interval, {options.seeds} seeds)")


def main(arguments: list[str]) -> None:
    """Do what the command line asks for, and go on where an earlier run stopped."""
    parser = ArgumentParser("run.py tune", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", metavar="NAME", default=[DEFAULT_SET], help=f"default: {DEFAULT_SET}")
    parser.add_argument("--minutes", type=float, default=15, help="of training in the search, for each data set")
    parser.add_argument("--trials", type=int, default=1_000_000, help="at most so many in all")
    parser.add_argument("--seeds", type=int, default=5, help="of the confirmation")
    options = parser.parse_args(arguments)
    for set_name in options.data:
        run_set(set_name, options)
