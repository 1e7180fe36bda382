"""How cost grows: time and memory of a training step over image side, batch and depth, and of the topology loss over
the number of components.

Each series changes one number and keeps the others.  A power law, cost = a · n^p, is fitted in log-log coordinates:
p = 2 over the side means "with the number of pixels".  Memory is what the backward pass keeps (on a GPU: the peak of
the allocator).  Figures go into figures/growth.csv, the plot into figures/growth.png.

    python3 benchmarks/growth.py
    python3 benchmarks/growth.py --quick --folder scratch    # tiny sizes: to see whether all works
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from batches import add_device, interleaved, machine, print_table, wait_for_gpu
from torch import Tensor
from training_speed import Candidate

import plots
from learner import Learner
from losses import TopologyLoss, cross_entropy
from unet import UNet

ROOT = Path(__file__).parents[1]


class Series(NamedTuple):
    """What is changed, its values, and the values for a quick look."""

    title: str
    values: list[int]
    quick: list[int]


SERIES = {
    "side": Series("side of image, pixels", [64, 96, 128, 192, 256, 384, 512], [32, 64]),
    "batch": Series("images in the batch", [1, 2, 4, 8, 16, 32], [1, 2]),
    "depth": Series("depth: number of poolings", [1, 2, 3, 4, 5], [1, 2]),
    "components": Series("components in an image", [1, 4, 16, 64, 256, 1024], [1, 4]),
}


def step_of(side: int = 256, batch: int = 8, depth: int = 4, device: str = "cpu") -> Candidate:
    """A training step of the U-Net of this size, in the number format that is fastest here."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 1, side, side, generator=generator).to(device)
    target = torch.randint(0, 2, (batch, side, side), generator=generator).to(device)
    model = UNet(1, 2, [16 * 2**level for level in range(depth + 1)])
    precision = Learner(model, cross_entropy, [(images.cpu(), target.cpu())], device=device).fastest_precision()
    return Candidate(model, cross_entropy, images, target, precision, torch.optim.AdamW)


def topology_of(components: int, device: str = "cpu", side: int = 256, batch: int = 8) -> Callable[[], object]:
    """Forward and backward of the topology loss where every second of `components` squares is missed."""
    per_row = int(np.ceil(components**0.5))
    cell = max(side // per_row, 2)
    target = torch.zeros(batch, side, side, dtype=torch.int64)
    predicted = torch.zeros(batch, side, side)
    for number in range(components):
        top, left = (cell * place for place in divmod(number, per_row))
        square = (slice(None), slice(top, top + max(cell // 2, 1)), slice(left, left + max(cell // 2, 1)))
        target[square] = 1
        predicted[square] = number % 2
    logits = torch.stack([-predicted, predicted], 1).mul(4).sub(2).to(device).requires_grad_()
    target, loss = target.to(device), TopologyLoss()
    return lambda: torch.autograd.grad(loss(logits, target), logits)


def kept_memory(work: Callable[[], object], device: str) -> float:
    """MB that the backward pass keeps; on a GPU the peak of the allocator."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        wait_for_gpu()
        return torch.cuda.max_memory_allocated() / 1e6
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()  # views of one storage count once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(sizes.values()) / 1e6


def power_law(n: list[int], cost: list[float]) -> tuple[float, float]:
    """a and p of cost ≈ a · n^p, by least squares of the logarithms."""
    p, log_a = np.polyfit(np.log(n), np.log(np.maximum(cost, 1e-9)), 1)
    return float(np.exp(log_a)), round(float(p), 4) + 0.0


def measure(name: str, values: list[int], device: str, repetitions: int) -> list[dict[str, float | str]]:
    """One row for each value; all values take turns."""
    works: dict[int, Callable[[], object]] = {
        value: topology_of(value, device) if name == "components" else step_of(**{name: value}, device=device)
        for value in values
    }
    memory = {value: kept_memory(work, device) for value, work in works.items()}
    spent = interleaved({str(value): work for value, work in works.items()}, repetitions, twice=name == "components")
    return [{"series": name, "n": n, "ms": spent[str(n)], "mb": memory[n]} for n in values]


def draw(rows: list[dict[str, float | str]], path: Path) -> None:
    """Time above, memory below; dots measured, lines fitted."""
    plots.use_style()
    names = list(dict.fromkeys(str(row["series"]) for row in rows))
    _, axes = plt.subplots(2, len(names), figsize=(2.5 * len(names), 4.6), squeeze=False)
    for column, name in zip(axes.T, names):
        mine = [row for row in rows if row["series"] == name]
        n = [int(row["n"]) for row in mine]
        for ax, key, unit, colour in zip(column, ("ms", "mb"), ("time, ms", "memory, MB"), plots.PALETTE):
            cost = [float(row[key]) for row in mine]
            a, p = power_law(n, cost)
            ax.loglog(n, cost, "o", color=colour, markersize=4)
            ax.loglog(n, [a * value**p for value in n], color=colour, linewidth=1)
            ax.set(title=f"grows with n^{p:.2f}", ylabel=unit, xlabel=SERIES[name].title if key == "mb" else "")
            ax.set_xticks(n, [str(value) for value in n], fontsize=7)
            ax.set_ylim(0.7 * min(cost), 1.5 * max(cost))
            ax.set_yticks([min(cost), max(cost)], [f"{value:.3g}" for value in (min(cost), max(cost))], fontsize=7)
            ax.minorticks_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = add_device(parser)
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--folder", type=Path, default=ROOT / "figures", help="for growth.csv and growth.png")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{machine()}, {arguments.device}\n")
    rows: list[dict[str, float | str]] = []
    table = []
    for name in arguments.series:
        values = SERIES[name].quick if arguments.quick else SERIES[name].values
        rows += (found := measure(name, values, arguments.device, arguments.repetitions))
        (_, time), (_, memory) = (power_law(values, [float(row[key]) for row in found]) for key in ("ms", "mb"))
        span = [f"{float(row['ms']):.1f} ms, {float(row['mb']):.1f} MB" for row in (found[0], found[-1])]
        table.append([SERIES[name].title, f"{values[0]} … {values[-1]}", *span, f"n^{time:.2f}", f"n^{memory:.2f}"])
    print_table(["n", "from … to", "smallest", "largest", "time", "memory"], table)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with open(arguments.folder / "growth.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "ms": f"{row['ms']:.5g}", "mb": f"{row['mb']:.5g}"} for row in rows)
    draw(rows, arguments.folder / "growth.png")


if __name__ == "__main__":
    main()
