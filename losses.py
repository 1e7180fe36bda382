"""Losses for semantic segmentation: what the network is told to make small.

All take `logits` (B, C, H, W), raw, and `target` (B, H, W), integer; pixels labelled `IGNORE_INDEX` count in no term.
All compute in float32, also inside autocast, and stay finite for logits of ±10⁴.  Sources: focal loss, Lin et al., 2017
(arXiv:1708.02002); Dice loss, Milletari et al., 2016 (arXiv:1606.04797).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from checks import IGNORE_INDEX, InputError, check_pair, two_or_more


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, class_weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy −log p_y, averaged with the weights of the pixels: Σ w·(−log p_y) / Σ w.

    Args:
        logits: (B, C, H, W) float.
        target: (B, H, W) integer.
        weight: (B, H, W) float ≥ 0, a weight for each pixel; default 1.
        class_weight: (C,) float ≥ 0, a weight for each true class; default 1.

    Returns:
        Scalar, in nats.  0 with zero gradient where no pixel counts (PyTorch's own gives NaN there).

    Raises:
        InputError: see `check_pair`; class weights of wrong number, negative, or not finite.

    >>> round(cross_entropy(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.int64)).item(), 4)  # log 2
    0.6931
    """
    check_pair(logits, target, weight)
    logits, target = two_or_more(logits).float(), target.long()
    weights = _pixel_weights(logits, target, weight, class_weight)
    nats = F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="none")
    return _weighted_mean(nats, weights)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    gamma: float = 2.0,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Focal loss −(1 − p_y)^γ · log p_y: cross-entropy in which pixels that are right already hardly count.

    Shapes, weights and errors as in `cross_entropy`, to which γ = 0 leads back.

    >>> logits, target = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    >>> torch.allclose(focal_loss(logits, target, gamma=0), cross_entropy(logits, target))
    True
    """
    check_pair(logits, target, weight)
    if gamma < 0:
        raise InputError(f"focal_loss: gamma={gamma}; expected a number ≥ 0.")
    logits, target = two_or_more(logits).float(), target.long()
    weights = _pixel_weights(logits, target, weight, class_weight)
    nats = F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="none")
    # 1 − p_y = −expm1(−nats); kept off 0, where the gradient of a power γ < 1 is infinite.
    missing = (-torch.expm1(-nats)).clamp_min(torch.finfo(nats.dtype).tiny)
    return _weighted_mean(missing**gamma * nats, weights)


def dice_loss(logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss 1 − (2·Σ p·g + s) / (Σ p + Σ g + s), averaged over classes and images.

    The smoothing s, in pixels, gives a class that an image does not contain a useful value: 0 if nothing is predicted
    there, towards 1 the more is predicted.  (Leaving absent classes out, as some libraries do, hides false alarms.)

    Args:
        logits: (B, C, H, W) float.
        target: (B, H, W) integer.
        smooth: s > 0, in pixels.

    Returns:
        Scalar in 0 … 1; 0 where no pixel counts.

    >>> perfect = torch.tensor([[[[99.]], [[-99.]]]])  # one pixel, class 0 for sure
    >>> dice_loss(perfect, torch.zeros(1, 1, 1, dtype=torch.int64)).item()
    0.0
    """
    check_pair(logits, target)
    if not smooth > 0:
        raise InputError(f"dice_loss: smooth={smooth}; expected a number of pixels > 0.")
    probs, truth = _probs_and_one_hot(logits, target)  # (B, C, H, W) each, 0 on ignored pixels
    overlap = (probs * truth).sum(dim=(2, 3))  # (B, C)
    total = (probs + truth).sum(dim=(2, 3))
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def _probs_and_one_hot(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits, target = two_or_more(logits).float(), target.long()
    counts = (target != IGNORE_INDEX)[:, None]  # (B, 1, H, W)
    truth = torch.zeros_like(logits).scatter_(1, target.where(counts[:, 0], 0)[:, None], 1.0)
    return logits.softmax(dim=1) * counts, truth * counts


def _pixel_weights(logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None) -> Tensor:
    """Weight of each pixel, (B, H, W): pixel weight times class weight, 0 where ignored."""
    counts = target != IGNORE_INDEX
    weights = counts.to(logits.dtype) if weight is None else weight.to(logits.dtype) * counts
    if class_weight is not None:
        class_weight = torch.as_tensor(class_weight, dtype=logits.dtype)
        C = logits.shape[1]
        if class_weight.shape != (C,) or not torch.isfinite(class_weight).all() or (class_weight < 0).any():
            raise InputError(
                f"class_weight is {class_weight.tolist()}; expected {C} finite numbers ≥ 0, one for each class."
            )
        weights = weights * class_weight.to(logits.device)[target.where(counts, 0)]
    return weights


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ w·v / Σ w; and 0, still attached to the graph, where all weights are 0."""
    total = weights.sum()
    return (values * weights).sum() / total.where(total > 0, 1)
