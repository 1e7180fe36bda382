"""What do the losses cost, compared with the training step that they are part of?

Times forward + backward of each loss, and of one training step (forward, cross-entropy, backward, AdamW) of the U-Net
with 16 channels and depth 4 (1.94 M parameters).  The step runs in float32, as PyTorch does by default, and in the
learner's fast mode (bfloat16 autocast, channels_last); each loss gets the logits in the form in which that mode hands
them over.  All take turns in one run, and each figure is a median, so ratios hold also on a busy machine.

    python3 benchmarks/losses_speed.py --size 8x256 --threads 1
    python3 benchmarks/losses_speed.py --size 4x512                 # all threads
    python3 benchmarks/losses_speed.py --size 2x128 --repetitions 3  # a quick look
"""

import functools
import statistics
from collections.abc import Callable

import numpy as np
import torch
from batches import BATCHES, common_arguments, describe, interleaved, machine, milliseconds, print_table
from torch import Tensor

from geometry.boundary import boundary_weights, signed_distance
from losses import (
    BoundaryWeightedLoss,
    TopologyLoss,
    boundary_loss,
    cross_entropy,
    dice_loss,
    focal_loss,
    soft_cldice_loss,
)
from unet import UNet

MODES = ("float32", "fast")
Work = Callable[[], object]


def training_step(mode: str, images: Tensor, target: Tensor) -> Work:
    """One step as the learner makes it; "fast" is bfloat16 with channels_last."""
    torch.manual_seed(0)
    model = UNet(1, 2, (16, 32, 64, 128, 256)).train()
    if mode == "fast":
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "fast"):
            logits = model(images)
        loss = cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def loss_calls(mode: str, logits: Tensor, target: Tensor) -> dict[str, Work]:
    """Forward and backward of each loss, by name."""
    if mode == "fast":
        logits = logits.to(torch.bfloat16, memory_format=torch.channels_last)
    labels = target.numpy()
    weight = torch.from_numpy(np.stack([boundary_weights(label) for label in labels]))
    distance = torch.from_numpy(np.stack([signed_distance(label) for label in labels]))
    bordered, topology = BoundaryWeightedLoss(), TopologyLoss()
    topology_margin = TopologyLoss(margin=1.0)
    values: dict[str, Callable[[Tensor], Tensor]] = {
        "cross_entropy": lambda z: cross_entropy(z, target),
        "TopologyLoss": lambda z: topology(z, target),
        "TopologyLoss, margin": lambda z: topology_margin(z, target),
        "BoundaryWeightedLoss, map ready": lambda z: bordered(z, target, weight),
        "BoundaryWeightedLoss, on the fly": lambda z: bordered(z, target),
        "dice_loss": lambda z: dice_loss(z, target),
        "focal_loss": lambda z: focal_loss(z, target),
        "soft_cldice_loss, 5 iterations": lambda z: soft_cldice_loss(z, target),
        "boundary_loss, map ready": lambda z: boundary_loss(z, target, distance),
        "boundary_loss, on the fly": lambda z: boundary_loss(z, target),
    }
    return {name: _forward_and_backward(value, logits) for name, value in values.items()}


def _forward_and_backward(value: Callable[[Tensor], Tensor], logits: Tensor) -> Work:
    leaf = logits.clone().requires_grad_()
    return lambda: torch.autograd.grad(value(leaf), leaf)


def compare(size: tuple[int, int], kind: str, repetitions: int, clock: str) -> None:
    """Time all losses on one batch against the step in both modes, and print the table."""
    logits, target = BATCHES[kind](*size)
    images = torch.randn(size[0], 1, size[1], size[1], generator=torch.Generator().manual_seed(0))
    works = {(mode, "training step"): training_step(mode, images, target) for mode in MODES}
    works |= {(mode, name): call for mode in MODES for name, call in loss_calls(mode, logits, target).items()}
    spent = interleaved(works, repetitions, clock)
    for mode in MODES:
        spent[mode, "**TopologyLoss − cross_entropy**"] = spent[mode, "TopologyLoss"] - spent[mode, "cross_entropy"]
    print(f"{size[0]} × {size[1]}², {kind}: {describe(logits, target)}.\n")
    names = dict.fromkeys(name for _, name in spent)
    rows = [[name] + [cell for mode in MODES for cell in _cells(spent, mode, name)] for name in names]
    print_table(["forward + backward", "float32, ms", "of the step", "fast mode, ms", "of the step"], rows)


def _cells(spent: dict[tuple[str, str], float], mode: str, name: str) -> list[str]:
    return [f"{spent[mode, name]:.1f}", f"{100 * spent[mode, name] / spent[mode, 'training step']:.2f} %"]


def time_maps(side: int, repetitions: int, clock: str) -> None:
    """`boundary_weights` of one mask, in ms: median and fastest."""
    for kind, make in BATCHES.items():
        label = make(1, side)[1][0].numpy()
        boundary_weights(label)  # warms up
        spent = [milliseconds(functools.partial(boundary_weights, label), clock) for _ in range(5 * repetitions)]
        print(
            f"boundary_weights, {kind} mask {side}²: median {statistics.median(spent):.2f} ms, best {min(spent):.2f} ms"
        )


def main() -> None:
    parser = common_arguments(__doc__)
    parser.add_argument("--batches", nargs="+", choices=BATCHES, default=list(BATCHES))
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{machine()}\n")
    for kind in arguments.batches:
        compare(arguments.size, kind, arguments.repetitions, arguments.clock)
    time_maps(256, arguments.repetitions, arguments.clock)


if __name__ == "__main__":
    main()
