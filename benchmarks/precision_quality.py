"""Does bfloat16 cost quality?  The same trainings in float32 and in bfloat16, over seeds, scored on the test part.

python3 benchmarks/precision_quality.py --set synthetic_yeast --seeds 5
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import data
from commands import train
from learner import Learner, set_seed
from losses import cross_entropy
from training.side_by_side import fit_all
from unet import UNet

FORMATS = ("float32", "bfloat16")


def make_learner(path: Path, precision: str, seed: int, folder: Path) -> Learner:
    part = data.SegmentationDataset(path, "train", crop=128, seed=seed)
    repeats = max(1, 512 // len(part))
    loader = data.make_loader(part, 16, shuffle=True, seed=seed, repeats=repeats)
    val = data.make_loader(data.SegmentationDataset(path, "val"), 8)
    set_seed(seed)
    model = UNet(part.channels, part.num_classes, (8, 16, 32, 64))
    settings = {"lr": 5e-3, "augment": train.augment, "seed": seed, "precision": precision, "verbose": False}
    return Learner(model, cross_entropy, loader, val, folder=folder / f"{precision}-{seed}", **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default=data.SYNTHETIC, choices=data.NAMES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    path = data.prepare(options.set, Path("data"))
    runs = Path("runs") / "precision" / options.set
    learners = {(p, seed): make_learner(path, p, seed, runs) for p in FORMATS for seed in range(options.seeds)}
    fit_all(learners.values(), options.epochs)
    tests = data.make_loader(data.SegmentationDataset(path, "test"), 8)
    scores = {key: learner.evaluate(tests) for key, learner in learners.items()}
    print(f"{options.set}, {options.epochs} epochs, {options.seeds} seeds: mean ± standard deviation on the test part")
    for name in ("mean_iou", "loss"):
        values = {p: np.array([scores[p, seed][name] for seed in range(options.seeds)]) for p in FORMATS}
        text = ", ".join(f"{p} {v.mean():.4f} ± {v.std(ddof=1):.4f}" for p, v in values.items())
        difference = values["bfloat16"] - values["float32"]
        error = difference.std(ddof=1) / options.seeds**0.5
        print(f"{name}: {text}; bfloat16 − float32 of a seed: {difference.mean():+.4f} ± {error:.4f} (standard error)")


if __name__ == "__main__":
    main()
