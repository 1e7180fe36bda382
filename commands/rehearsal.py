"""Two short trainings before the long one: can a tiny network learn one batch, and how long will all of it take here?

One batch.  A network that cannot learn eight small crops by heart will learn nothing from a thousand images: most often
the labels do not belong to the images (moved, turned, sorted in another way).  A network with a small receptive
field is slow to learn labels that have nothing to do with what it sees.  So it learns the crops twice more with their
labels exchanged: if that goes as well, something may be wrong.  Recipe: Karpathy, 2019, "A Recipe for Training Neural
Networks" (overfit one batch).

Minutes.  The learner trains a reference network, and the time is scaled by the pixels that each part of the notebook
sends through its networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from checks import IGNORE_INDEX, InputError
from imagesets.files import Sample
from learner import Learner, pick_device, set_seed
from losses import cross_entropy
from unet import UNet

SIDE, TRIES, STEPS, WIDTHS = 64, 8, 40, (8, 16)
LEARNT = 0.1  # share of the loss that is left: this can only be learnt from the images
# Measured: in nine sets the share is 0.07 … 0.87 of that with exchanged labels.  With labels of other images or
# upside down, 15 of 22 are above 0.93 (crops of 48²).
RATIO = 0.93

REFERENCE = (16, 32, 64, 128)
# Millions of pixels in training steps, as if through a U-Net of the widths `REFERENCE`, by part of the notebook
BUDGETS = ("quick", "standard", "full")
MEGAPIXELS: dict[str, tuple[float, float, float]] = {
    "Part 2 · The network": (1, 100, 2000),
    "Part 3 · Training": (4, 230, 9000),
    "Part 4 · Losses and metrics": (1, 65, 400),
    "Part 5 · Roads": (1, 335, 900),
    "Part 6 · Fully convolutional networks": (2, 325, 8000),
    "Part 7 · Pets": (1, 255, 9000),
}


class OneBatch(NamedTuple):
    """The loss late in training as a share of that of a constant guess: with the labels, and with exchanged ones."""

    share: float
    exchanged: float

    @property
    def fits(self) -> bool:
        """False if the labels may not belong to the images."""
        return not self.share >= max(LEARNT, RATIO * self.exchanged)


def one_batch(samples: Sequence[Sample], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cut one crop out of each sample: images (B, C, H, W) float32 of unit deviation, targets (B, H, W) int64.

    Of a few random places the one whose classes are most mixed is taken, H and W ≤ 64.  The samples have equal
    channels.  Raises `InputError` if there are fewer than two: nothing could be exchanged.
    """
    if len(samples) < 2:
        raise InputError(f"one_batch: {len(samples)} sample(s); expected two or more.")
    rng = np.random.default_rng(seed)
    H, W = (min(SIDE, *(sample.label.shape[axis] for sample in samples)) for axis in (0, 1))
    crops = [_mixed_crop(sample, H, W, rng) for sample in samples]
    images = np.stack([np.moveaxis(np.atleast_3d(image), -1, 0) for image, _ in crops]).astype(np.float64)
    mean, std = images.mean((0, 2, 3), keepdims=True), images.std((0, 2, 3), keepdims=True)
    images = (images - mean) / np.where(std > 0, std, 1)
    return torch.tensor(images, dtype=torch.float32), torch.tensor(np.stack([label for _, label in crops])).long()


def _mixed_crop(sample: Sample, H: int, W: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    height, width = sample.label.shape
    places = rng.integers(0, [height - H + 1, width - W + 1], (TRIES, 2))
    crops = [np.s_[top : top + H, left : left + W] for top, left in places]
    best = max(crops, key=lambda crop: _entropy(sample.label[crop]))
    return sample.image[best], sample.label[best].astype(np.int64)


def _entropy(label: np.ndarray) -> float:
    """Entropy in nats of the classes: the smallest cross-entropy of a guess that is the same for every pixel."""
    shares = np.unique(label[label != IGNORE_INDEX], return_counts=True)[1] / max((label != IGNORE_INDEX).sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def learn_one_batch(images: Tensor, targets: Tensor, num_classes: int, seed: int = 0) -> OneBatch:
    """Train a tiny network on one batch, and two more with the labels of other images in it.

    If the batch has one class only there is nothing to learn, and both shares are NaN.
    """
    chance = _entropy(targets.numpy())
    if chance == 0:
        return OneBatch(float("nan"), float("nan"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other
    try:
        losses = [_late_loss(images, targets.roll(k, 0), num_classes, seed) / chance for k in range(3)]
    finally:
        torch.set_num_threads(threads)
    return OneBatch(losses[0], (losses[1] + losses[2]) / 2)


def _late_loss(images: Tensor, targets: Tensor, num_classes: int, seed: int) -> float:
    set_seed(seed)
    device = pick_device()
    model = UNet(images.shape[1], num_classes, WIDTHS).to(device)
    images, targets = images.to(device), targets.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(STEPS):
        loss = cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses[STEPS // 2 :]))  # a mean of many steps: the last one alone differs much by chance


def seconds_per_megapixel(side: int = 128, batch: int = 8, steps: int = 2) -> float:
    """Time of the learner on this machine, for a million pixels through the reference network, in seconds."""
    set_seed(0)
    batches = [(torch.randn(batch, 1, side, side), torch.randint(2, (batch, side, side)))] * steps
    learner = Learner(UNet(1, 2, REFERENCE), cross_entropy, batches, verbose=False)
    history = learner.fit(2)  # the first epoch warms up
    return history[-1]["seconds"] / (batch * steps * side**2 / 1e6)


def minutes(seconds: float) -> dict[str, dict[str, float]]:
    """{part of the notebook: {budget: minutes}} if a million pixels take so many seconds.

    >>> minutes(6.0)["Part 4 · Losses and metrics"]
    {'quick': 0.1, 'standard': 6.5, 'full': 40.0}
    """
    return {
        part: {budget: round(amount * seconds / 60, 2) for budget, amount in zip(BUDGETS, amounts)}
        for part, amounts in MEGAPIXELS.items()
    }
