"""High class imbalance: what losses and metrics do when only the prevalence of the foreground changes.

The images are discs of 21 pixels on Gaussian noise, always with the same contrast, from very many discs to a single
one.  So whatever differs between two prevalences is due to the prevalence.  `at_constant` asks each loss for its value
and its gradient before any training; `compare` trains a small U-Net for every prevalence, loss and seed, and judges
it on new images at p > ½ and at its own best threshold.

Sources of the losses: `losses.py`.  The metrics are read off one confusion matrix, see `metrics.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

import metrics
from learner import Learner, pick_device, set_seed
from losses import WeightedSum, cross_entropy, dice_loss, focal_loss
from unet import UNet

SIDE = 64
"""Side of an image in pixels."""
CONTRAST = 1.5
"""Difference of foreground and background, in standard deviations of the noise."""
THRESHOLDS = np.linspace(0.02, 0.98, 25)
"""Among these a network's own threshold on p is chosen."""
VALIDATION_IMAGES, TEST_IMAGES = 32, 64

Loss = Callable[..., Tensor]
Scores = dict[str, float]


def draw_discs(prevalence: float, images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw noisy images of discs at random places: (B, 1, 64, 64) float32, and their labels (B, 64, 64) int64.

    Discs may overlap, and leave the image on one side to enter on the other.  On average `prevalence` of the pixels
    is foreground: n discs of a pixels leave (1 − a / 64²)ⁿ of the image free.

    >>> image, label = draw_discs(0.05, images=8, seed=0)
    >>> image.shape, label.shape, round(label.float().mean().item(), 2)
    (torch.Size([8, 1, 64, 64]), torch.Size([8, 64, 64]), 0.05)
    """
    axis = torch.arange(-2, 3)
    disc = (axis[:, None] ** 2 + axis**2 <= 6).float()
    number = round(math.log(1 - prevalence) / math.log(1 - disc.sum().item() / SIDE**2))
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randint(SIDE**2, (images, number), generator=generator)
    points = torch.zeros(images, SIDE**2).scatter_(1, centres, 1.0).view(-1, 1, SIDE, SIDE)
    label = F.conv2d(F.pad(points, (2, 2, 2, 2), mode="circular"), disc[None, None]) > 0
    return CONTRAST * label + torch.randn(label.shape, generator=generator), label[:, 0].long()


def losses_at(prevalence: float) -> dict[str, Loss]:
    """The losses that are compared, by name; only the class weights depend on the prevalence."""
    class_weight = torch.tensor([0.5 / (1 - prevalence), 0.5 / prevalence], device=pick_device())
    return {
        "cross-entropy": cross_entropy,
        "weighted CE": functools.partial(cross_entropy, class_weight=class_weight),
        "Dice": dice_loss,
        "CE + Dice": WeightedSum((1.0, cross_entropy), (1.0, dice_loss)),
        "focal": focal_loss,
    }


def at_constant(loss: Loss, p: float, label: Tensor) -> tuple[float, float]:
    """Value of the loss where the network says p everywhere, and the foreground's part of all gradient.

    The gradient of a pixel is Σ|∂loss/∂logits| over the classes; its part is Σ(foreground) / Σ(all), from 0 to 1.
    """
    logits = torch.zeros(len(label), 2, *label.shape[1:], device=pick_device())
    logits[:, 1] = math.log(p / (1 - p))
    value = loss(logits.requires_grad_(), label.to(logits.device))
    (gradient,) = torch.autograd.grad(value, logits)
    size = gradient.abs().sum(dim=1).cpu()  # (B, H, W)
    return value.item(), (size[label == 1].sum() / size.sum()).item()


def train(loss: Loss, prevalence: float, seed: int, steps: int) -> Learner:
    """A small U-Net after `steps` steps on four new images each; the same weights and images for every loss."""
    batches = [draw_discs(prevalence, 4, 10_000 * seed + step) for step in range(steps)]
    set_seed(seed)
    model = UNet(1, 2, (4, 8))
    learner = Learner(model, loss, batches, lr=0.03, seed=seed, precision="float32", verbose=False)
    learner.fit(1)
    return learner


def judge(
    validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], threshold: float | None, candidates: ArrayLike
) -> Scores:
    """All scores of a map of numbers (B, H, W) on the test images, from pairs (numbers, label).

    They hold at `threshold`; with None, and for "F1, own threshold", at the candidate with the highest F1 of the
    foreground on the validation images.
    """
    own = max(np.asarray(candidates), key=lambda candidate: _f1(validation[0] > candidate, validation[1]))
    counts = metrics.confusion_matrix((test[0] > (own if threshold is None else threshold)).long(), test[1], 2)
    return {
        "accuracy": metrics.accuracy(counts),
        "mean IoU": metrics.mean_iou(counts),
        "F1 rare": metrics.f1_per_class(counts)[1].item(),
        "MCC": metrics.matthews(counts),
        "precision": metrics.precision_per_class(counts)[1].item(),
        "recall": metrics.recall_per_class(counts)[1].item(),
        "F1, own threshold": _f1(test[0] > own, test[1]),
    }


def judge_network(learner: Learner, prevalence: float, seed: int) -> Scores:
    """`judge` for the probability of the foreground, at ½, on images that no training of this seed has seen."""
    validation, test = ((learner.predict(image)[:, 1], label) for image, label in _new_images(prevalence, seed))
    return judge(validation, test, 0.5, THRESHOLDS)


def compare(prevalences: Iterable[float], seeds: Sequence[int], steps: int) -> dict[tuple[str, float, int], Scores]:
    """{(predictor, prevalence, seed): scores}: a training with each loss, and two predictors that learn nothing.

    "finding nothing" says 0 everywhere; "threshold" is the brightness threshold that is best on validation images.
    """
    found: dict[tuple[str, float, int], Scores] = {}
    for prevalence in prevalences:
        for seed in seeds:
            (image, label), (test_image, test_label) = _new_images(prevalence, seed)
            nothing, test_nothing = (torch.zeros(label.shape), label), (torch.zeros(test_label.shape), test_label)
            found["finding nothing", prevalence, seed] = judge(nothing, test_nothing, 0.5, [0.5])
            brightness, test_brightness = (image[:, 0], label), (test_image[:, 0], test_label)
            found["threshold", prevalence, seed] = judge(brightness, test_brightness, None, np.linspace(-1, 4, 51))
            for name, loss in losses_at(prevalence).items():
                learner = train(loss, prevalence, seed, steps)
                found[name, prevalence, seed] = judge_network(learner, prevalence, seed)
    return found


def _new_images(prevalence: float, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Validation and test images: their seeds lie above those of any training step."""
    first = 10_000 * seed + 9_998
    return draw_discs(prevalence, VALIDATION_IMAGES, first), draw_discs(prevalence, TEST_IMAGES, first + 1)


def _f1(guess: Tensor, label: Tensor) -> float:
    return metrics.f1_per_class(metrics.confusion_matrix(guess.long(), label, 2))[1].item()
