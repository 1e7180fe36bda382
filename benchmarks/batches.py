"""The batches that all benchmarks share: what a network says about yeast half-way through its training, and noise.

*Realistic*: labels of `synthetic.yeast_scene`; the logits are the blurred label plus smooth noise, which merges,
splits, invents and misses cells, plus some speckle.  *Noise*: every pixel of prediction and truth is a coin toss
(p = 0.5).  No picture can have many more components, so this is the worst case for all that counts them.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, maximum_filter
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # our modules lie one folder up

from geometry.topology import KINDS, critical_regions
from imagesets.yeast import yeast_scene


def parse_size(text: str) -> tuple[int, int]:
    """'8x256' → 8 images of 256 × 256 pixels."""
    images, side = text.split("x")
    return int(images), int(side)


def realistic_batch(images: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (B, 2, H, W) float32 and target (B, H, W) int64; the truth has a gap between cells that touch."""
    rng = np.random.default_rng(seed)
    cells = np.stack([yeast_scene(rng, side, side).instances for _ in range(images)])
    target = (cells > 0) & (maximum_filter(cells, (1, 3, 3)) == cells)
    noise = gaussian_filter(rng.standard_normal(cells.shape), (0, 2, 2))
    doubt = 0.1 + gaussian_filter((cells > 0).astype(float), (0, 4, 4))  # the network is unsure where cells are
    evidence = gaussian_filter(2.0 * target - 1, (0, 1, 1)) + 1.2 * doubt * noise / noise.std()
    evidence = np.where(rng.random(cells.shape) < 0.0003, -evidence, evidence)  # speckle: single pixels flip
    return _as_tensors(4 * evidence, target)


def noise_batch(images: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The worst case, shaped like `realistic_batch`."""
    rng = np.random.default_rng(seed)
    shape = (images, side, side)
    return _as_tensors(rng.standard_normal(shape), rng.integers(0, 2, shape))


def _as_tensors(evidence: np.ndarray, target: np.ndarray) -> tuple[Tensor, Tensor]:
    logits = torch.from_numpy(np.stack([-evidence, evidence], axis=1) / 2).float()
    return logits, torch.from_numpy(target.astype(np.int64))


BATCHES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"realistic": realistic_batch, "noise": noise_batch}


def describe(logits: Tensor, target: Tensor) -> str:
    """True objects and the errors of the prediction, all images together."""
    regions = critical_regions(logits.argmax(1).numpy(), target.numpy())
    counts = dict(zip(KINDS, regions.counts().sum(axis=(0, 1)).tolist()))
    errors = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
    return f"{regions.betti_target[..., 0].sum()} true objects; critical regions: {errors}"


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Processor time does not count the moments in which other programs have the core, but it adds up all threads: on a
busy machine take "cpu" with one thread."""


def wait_for_gpu() -> None:
    """A GPU works while Python goes on: before a clock is read it must be done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object], clock: str = "wall") -> float:
    """Time of one call; what it has given to a GPU is waited for."""
    wait_for_gpu()
    began = CLOCKS[clock]()
    work()
    wait_for_gpu()
    return 1000 * (CLOCKS[clock]() - began)


def interleaved(
    works: dict[str, Callable[[], object]], repetitions: int, clock: str = "wall", *, twice: bool = False
) -> dict[str, float]:
    """Median time of each, in ms.  All take turns, so that a busy moment of the machine hits none of them alone.

    `twice`: each is called twice in its turn, and only the second call counts.  The first one pays for memory that
    the one before it gave back to the system; where that costs several ms it would hide the quick ones.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repetitions + 1):
        for name, work in works.items():
            if twice:
                work()
            spent = milliseconds(work, clock)
            if turn:  # the first turn warms up
                times[name].append(spent)
    return {name: statistics.median(spent) for name, spent in times.items()}


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """A markdown table, numbers to the right."""
    for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rows):
        print("| " + " | ".join(row) + " |")
    print()


def common_arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all measurements of a batch share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=(8, 256), help="images x side, default 8x256")
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine, with --threads 1")
    return parser


def add_device(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Also the option `--device`."""
    best = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=best, help="default: the GPU if there is one")
    return parser


def machine() -> str:
    """What it ran on."""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"{torch.get_num_threads()} thread(s)"
    )
