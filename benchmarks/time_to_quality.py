"""CPU seconds until a validation score: our recipe, the plain loop of a tutorial, and MONAI's `BasicUNet`.

All get the same crops, batches, augmentation and schedule (warm-up, cosine); "ours, InstanceNorm" more steps, which are
cheaper.  The other two run as their users run them: float32, Adam, MONAI with its DiceCELoss, images normalised by the
training part (no matter to MONAI, which begins with an InstanceNorm).  Each goes on with the best of several rates by
seed 0.  The clock is that of the processor, and stands still while the whole validation images are scored, in
bfloat16: after each epoch until all goals are reached, and at the end.  Rows that `--output` holds are not made again.

    peers/bin/python benchmarks/time_to_quality.py                                # both sets, three seeds, one thread
    python3 benchmarks/time_to_quality.py --sets dsb2018 --methods ours --seeds 0 # without the peers
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from batches import print_table
from torch import Tensor, nn

import data
from experiments.statistics import provenance, read_table, select, write_table
from imagesets.changes import Resize
from imagesets.files import Sample
from learner import Learner
from losses import cross_entropy, cross_entropy_dice
from transforms import random_intensity, random_symmetries
from unet import UNet

WIDTHS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Task:
    """A data set, its batches, and the validation scores to reach."""

    batch: int
    epochs: int
    longer: int  # epochs of a longer training
    score: str
    goals: tuple[float, ...]
    crop: int | None = None
    changes: tuple[Callable[[Sample], Sample], ...] = ()
    symmetries: Sequence[int] = range(8)

    def augment(self, *tensors: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        """A symmetry of each image and its label; gain and offset of the image vary."""
        images, *maps = random_symmetries(*tensors, generator=generator, symmetries=self.symmetries)
        return random_intensity(images, gain=0.3, offset=0.3, generator=generator), *maps


TASKS = {
    "dsb2018": Task(16, 10, 30, "mean_iou", (0.88, 0.90), crop=96),  # 130 steps, or 390
    "kitti_road": Task(4, 4, 6, "accuracy", (0.95,), changes=(Resize(128, 128),), symmetries=(0, 4)),  # 204 or 306
}


@dataclass(frozen=True)
class Method:
    """How a network is made and trained; in the plain loop, or in that of the `Learner`."""

    make: Callable[[int], nn.Module]  # of the number of channels
    loss: Callable[[Tensor, Tensor], Tensor]
    rates: tuple[float, ...]
    standardise: bool = False
    plain: bool = False
    longer: bool = False


def monai(channels: int) -> nn.Module:
    """Our widths; the last number is that of the top level of its decoder."""
    nets = importlib.import_module("monai.networks.nets")
    net: nn.Module = nets.BasicUNet(spatial_dims=2, in_channels=channels, out_channels=2, features=(*WIDTHS, 16))
    return net


def monai_loss(logits: Tensor, target: Tensor) -> Tensor:
    """DiceCELoss.  It knows no ignored pixels: they are given the class that is predicted, and weigh little."""
    loss = importlib.import_module("monai.losses").DiceCELoss(to_onehot_y=True, softmax=True)
    value: Tensor = loss(logits, target.where(target != 255, logits.argmax(dim=1))[:, None])
    return value


OURS = Method(lambda C: UNet(C, 2, WIDTHS[:4], stem=2), cross_entropy_dice, (5e-3, 1e-2), standardise=True)
METHODS = {
    "ours": OURS,
    "ours, InstanceNorm": replace(OURS, make=lambda C: UNet(C, 2, WIDTHS[:4], norm="instance", stem=2), longer=True),
    "ours, no stem": replace(OURS, make=lambda C: UNet(C, 2, WIDTHS[:4])),
    "plain loop": Method(lambda C: UNet(C, 2, WIDTHS), cross_entropy, (1e-3, 5e-3), plain=True),
    "MONAI": Method(monai, monai_loss, (2e-3, 5e-3), plain=True),
}


def plain_loop(learner: Learner, epochs: int, after_epoch: Callable[[dict[str, float]], object]) -> None:
    """What `Learner.fit` does, as a tutorial has it."""
    model, loader, steps = learner.model.to(memory_format=torch.contiguous_format), learner.train_loader, 0
    optimizer = torch.optim.Adam(model.parameters())
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(learner.seed * 100_003 + epoch)
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            total = epochs * len(loader)
            optimizer.param_groups[0]["lr"] = learner.lr * learner._lr_factor(steps / total, 1 / total)
            images, target = learner.augment(*batch, generator=generator)
            loss = learner.loss(model.train()(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        after_epoch({"epoch": epoch + 1})


def run(folder: Path, name: str, method_name: str, lr: float, seed: int) -> list[dict[str, Any]]:
    """Train once, and score after the epochs."""
    task, method, rows = TASKS[name], METHODS[method_name], list[dict[str, Any]]()
    epochs = task.longer if method.longer else task.epochs
    path = data.prepare(name, folder, changes=task.changes, standardise=method.standardise)
    part = data.SegmentationDataset(path, "train", crop=task.crop, seed=seed)
    loader = data.make_loader(part, task.batch, shuffle=True, seed=seed)
    held_out = {kind: data.make_loader(data.SegmentationDataset(path, kind), 1) for kind in ("val", "test")}
    torch.manual_seed(seed)
    format_ = "float32" if method.plain else "auto"
    settings = {"lr": lr, "augment": task.augment, "seed": seed, "precision": format_, "verbose": False}
    learner = Learner(method.make(part.channels), method.loss, loader, **settings)
    learner.number_format = "bfloat16"  # in which all are scored
    clock = -time.process_time()

    def after_epoch(row: dict[str, float]) -> None:
        nonlocal clock
        clock += time.process_time()
        epoch, best = int(row["epoch"]), max((r["val"] for r in rows), default=0.0)
        if best < task.goals[-1] or epoch == epochs:
            scores = {kind: learner.evaluate(held_out[kind]) for kind in ("val", "test")[: 1 + (epoch == epochs)]}
            found = {"set": name, "method": method_name, "lr": lr, "seed": seed, "steps": epoch * len(loader)}
            values = {kind: scores.get(kind, {}).get(task.score, "") for kind in ("val", "test")}
            values["precision"] = "float32" if method.plain else learner.number_format
            rows.append(found | {"cpu_seconds": round(clock, 2)} | values)
        clock -= time.process_time()

    (partial(plain_loop, learner) if method.plain else learner.fit)(epochs, after_epoch)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("figures/time_to_quality.csv"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # processor time adds up all threads

    def once(**wanted: Any) -> list[dict[str, Any]]:
        if not select(read_table(options.output), **wanted):
            rows = run(options.data, wanted["set"], wanted["method"], wanted["lr"], wanted["seed"])
            write_table(options.output, [*read_table(options.output), *(row | provenance() for row in rows)])
        return select(read_table(options.output), **wanted)

    for name in options.sets:
        best = {
            method: max(METHODS[method].rates, key=lambda lr: once(set=name, method=method, lr=lr, seed=0)[-1]["val"])
            for method in options.methods
        }
        for seed in options.seeds:  # side by side, so that a busy hour of the machine hits none of them alone
            for method, lr in best.items():
                once(set=name, method=method, lr=lr, seed=seed)
        print(f"{name}: {TASKS[name].score} of the validation images\n")
        summary(name, {m: [once(set=name, method=m, lr=lr, seed=s) for s in options.seeds] for m, lr in best.items()})


def summary(name: str, runs: dict[str, list[list[dict[str, Any]]]]) -> None:
    """A line for each method: mean of the seeds, and standard deviation."""
    goals = TASKS[name].goals
    table = []
    for method, seeds in runs.items():
        cells = [method, f"{seeds[0][0]['lr']:g}"]
        for goal in goals:
            times = [next((row["cpu_seconds"] for row in rows if row["val"] >= goal), None) for rows in seeds]
            reached = [t for t in times if t is not None]
            cells.append(f"{statistics.mean(reached):.1f} ({len(reached)} of {len(times)})" if reached else "never")
        for kind in ("val", "test"):
            ends = [rows[-1][kind] for rows in seeds]
            cells.append(f"{statistics.mean(ends):.4f} ± {statistics.stdev(ends) if len(ends) > 1 else 0:.4f}")
        cells.append(f"{statistics.mean(rows[-1]['cpu_seconds'] for rows in seeds):.1f}")
        table.append(cells)
    print_table(["method", "lr", *(f"CPU s to {goal:g}" for goal in goals), "end", "test", "CPU s in all"], table)


if __name__ == "__main__":
    main()
