"""Train a U-Net on a data set or a folder of your own from the command line, in one process or in many.

    python3 run.py train FOLDER                                      # a folder that `run.py check FOLDER` finds sound
    python3 run.py train FOLDER --map 0=0,255=1                      # the class of each value in its masks, as in check
    torchrun --nproc-per-node 4 run.py train dsb2018                 # four GPUs of this machine (or four CPU processes)
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 run.py train NAME

The recipe is that of the notebook: cross-entropy + Dice, images normalised each by its own mean and deviation, a U-Net
that works on squares of 2 × 2 pixels; --stem 1 has finer borders, and takes thrice the time.  A run that is cut off
goes on when the command is repeated; another run in its folder is not replaced.  At the end the test part is scored,
also by the mean of its four reflections, and the folder holds history.csv, curves.png and model.pt2, for `predict`.
Several machines need the same data.
"""

import csv
import importlib.util
import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawTextHelpFormatter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import data
import plots
from checks import InputError
from imagesets.files import parse_map
from imagesets.layouts import recognise
from learner import Learner
from losses import cross_entropy_dice
from training import checkpoint, modelfile, parallel
from training.checkpoint import replacing
from transforms import augment
from unet import UNet


def make_learner(options: Namespace, path: Path) -> Learner:
    """The learner that the options describe, for a normalised .hdf5."""
    part = data.SegmentationDataset(path, "train", crop=options.crop, seed=options.seed)
    loader = data.make_loader(part, options.batch, shuffle=True, seed=options.seed, repeats=options.repeats)
    val = data.make_loader(data.SegmentationDataset(path, "val"), batch_size=options.batch)
    torch.manual_seed(options.seed)
    model = UNet(part.channels, part.num_classes, options.widths, stem=options.stem)
    settings = {"lr": options.lr, "folder": options.output / "checkpoints", "seed": options.seed}
    return Learner(model, cross_entropy_dice, loader, val, augment=partial(augment, hue=False), **settings)


def refuse_another_run(learner: Learner, options: Namespace) -> None:
    """Raise `InputError` if the folder holds the run of other data, other options, or other code."""
    stored, note = checkpoint.load(options.output / "checkpoints")
    print(note, end="")
    what = checkpoint.changed(stored.get("settings", {}), learner.settings()) if stored else ""
    if what and not options.overwrite:
        raise InputError(f"{options.output} holds another run, which differs in {what}: add --output or --overwrite.")


def write_history(learner: Learner, folder: Path, name: str) -> None:
    """The numbers of all epochs as history.csv, and as curves in curves.png."""
    with replacing(folder / "history.csv") as part, open(part, "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, [*learner.history[-1]])
        table.writeheader()
        table.writerows(learner.history)
    plots.use_style()
    plots.curves(plots.grid(1, 2, size=4)[0], {name: learner.history})
    plots.save(folder / "curves.png")


def log_to(folder: Path) -> Callable[[dict[str, float]], object]:
    """What takes the numbers of an epoch into a log for TensorBoard."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("--log tensorboard: it is not installed here; pip install tensorboard, or leave this out.")
    from torch.utils.tensorboard import SummaryWriter

    write: Callable[..., object] = SummaryWriter(folder).add_scalar
    return lambda row: [write(name, value, int(row["epoch"])) for name, value in row.items()]


def at_least(least: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """A reader of a number for the command line, which refuses one that is too small, infinite or NaN."""

    def number(text: str) -> Any:
        if not least <= (value := kind(text)) < math.inf:
            raise ArgumentTypeError(f"{text} is not possible here; expected {least} or more")
        return value

    return number


def main(arguments: list[str]) -> int:
    """What `run.py train` does; `InputError` if something is wrong with the data."""
    parser = ArgumentParser("run.py train", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("source", help=f"a folder with images and labels, or one of {', '.join(data.NAMES)}")
    parser.add_argument("--output", type=Path, help="gets all that is written; default: runs/NAME")
    parser.add_argument("--overwrite", action="store_true", help="replace another run that is in this folder")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the .hdf5 files are kept; default: data")
    parser.add_argument("--map", type=parse_map, metavar="VALUE=CLASS,…", help="the class of each value in the masks")
    parser.add_argument("--classes", type=at_least(2), help="default: as the folder or its labels say")
    parser.add_argument("--epochs", type=at_least(1), default=30, help="default 30")
    parser.add_argument("--repeats", type=at_least(1), default=4, help="crops of each image in an epoch, default 4")
    parser.add_argument("--crop", type=at_least(1), default=256, help="side of the crops in pixels, default 256")
    parser.add_argument("--batch", type=at_least(1), default=16, help="images in a batch of all processes, default 16")
    parser.add_argument("--widths", type=at_least(1), nargs="+", default=[16, 32, 64, 128, 256], help="of the U-Net")
    parser.add_argument("--stem", type=int, choices=[1, 2, 4, 8], default=2, help="side of these squares; default 2")
    parser.add_argument("--normalise", choices=["image", "training"], default="image", help="whose mean; default image")
    parser.add_argument("--log", choices=["tensorboard"], help="write the numbers of each epoch for it, too")
    parser.add_argument("--lr", type=at_least(1e-9, float), default=5e-3, help="highest learning rate, default 0.005")
    parser.add_argument("--seed", type=at_least(0), default=0, help="what all chance follows from, default 0")
    options = parser.parse_args(arguments)
    name = Path(options.source).resolve().name
    options.output = options.output or Path("runs") / name
    parallel.start()
    try:
        learner = make_learner(options, parallel.from_rank_0(lambda: prepare(options)))
        parallel.from_rank_0(lambda: refuse_another_run(learner, options))
        try:
            learner.fit(options.epochs, log_to(options.output) if options.log else lambda row: None)
        finally:  # also of what was trained before it was stopped
            if learner.history and parallel.rank() == 0:
                write_history(learner, options.output, name)
        finish(learner, options)
    finally:
        if parallel.world_size() > 1:
            torch.distributed.destroy_process_group()
    return 0


def prepare(options: Namespace) -> Path:
    """The normalised .hdf5; `InputError` before any work if the source is unknown or the output cannot be written."""
    if options.source not in data.NAMES:
        data.source_folder(options.source)
    with checkpoint.locked(options.output / "checkpoints"):
        pass  # so it can be written, and no other run is in it
    settings = {"num_classes": options.classes, "label_map": options.map}
    return data.prepare(options.source, options.data, standardise=options.normalise == "image", **settings)


def finish(learner: Learner, options: Namespace) -> None:
    """Score the test part, and write the model with the names of its classes."""
    dataset = learner.train_loader.dataset
    classes: Sequence[str] = () if options.source in data.NAMES else recognise(options.source).classes
    if len(classes) != dataset.num_classes:
        classes = ["background", *(f"class {k}" for k in range(1, dataset.num_classes))]
    scores = {}
    if dataset.parts["test"]:
        test = data.make_loader(data.SegmentationDataset(dataset.path, "test"), options.batch)
        scores = learner.evaluate(test) | {"flips": learner.evaluate(test, flips=True)["mean_iou"]}
    if parallel.rank() == 0:
        names = {"mean_iou": "mean_iou", "flips": "mean_iou with four reflections", "accuracy": "accuracy"}
        names |= {f"iou_{k}": f"IoU of {name}" for k, name in enumerate(classes)}
        print("".join(f"test {text} {scores[key]:.4f}\n" for key, text in names.items() if scores), end="")
        path, known = options.output / "model.pt2", data.SegmentationDataset(dataset.path, "train")
        modelfile.save(learner.model, path, mean=dataset.mean, std=dataset.std, class_names=classes, dataset=known)
