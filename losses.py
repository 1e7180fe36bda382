"""Losses for semantic segmentation: what the network is told to make small.

Pixels: `cross_entropy`, `focal_loss`.  Regions: `dice_loss`, `tversky_loss`; thin lines: `soft_cldice_loss`.
Borders: `BoundaryWeightedLoss`, `boundary_loss`.  Objects and holes: `TopologyLoss`.  `WeightedSum` adds any of them.
All take `logits` (B, C, H, W), raw, and `target` (B, H, W), integer; `InputError` if these do not belong together.
Pixels labelled `IGNORE_INDEX` count in no term; where no pixel counts, the loss is 0 with zero gradient.  All compute
in float32 (float64 if the logits are), also inside autocast, and stay finite for logits of ±10⁴.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checks import IGNORE_INDEX, InputError, check_pair, two_or_more
from geometry.boundary import boundary_weights, find_cells, separation_weights, signed_distance
from geometry.topology import EXCESS, KINDS, critical_regions


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, class_weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy −log p_y in nats, averaged with the weights of the pixels: Σ w·(−log p_y) / Σ w.

    `weight` (B, H, W) ≥ 0 belongs to each pixel, `class_weight` (C,) ≥ 0 to each true class; both are 1 by default.

    >>> round(cross_entropy(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.int64)).item(), 4)  # log 2
    0.6931
    """
    logits, target = _prepare(logits, target, weight, class_weight)
    return _weighted_mean(_nats(logits, target), target, weight, class_weight)


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0, class_weight: Tensor | None = None) -> Tensor:
    """Focal loss −(1 − p_y)^γ · log p_y: cross-entropy in which pixels that are right already hardly count.

    γ ≥ 0; with γ = 0 it is the `cross_entropy`.  Lin et al., 2017 (arXiv:1708.02002).
    """
    logits, target = _prepare(logits, target, class_weight=class_weight)
    nats = _nats(logits, target)
    # 1 − p_y = −expm1(−nats); kept off 0, where the gradient of a power γ < 1 is infinite.
    missing = (-torch.expm1(-nats)).clamp_min(torch.finfo(nats.dtype).tiny)
    return _weighted_mean(missing**gamma * nats, target, None, class_weight)


def dice_loss(logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss 1 − (2·Σ p·g + s) / (Σ p + Σ g + s), averaged over classes and images; 0 … 1.

    With s > 0, in pixels, a class absent from an image costs 0 if nothing is predicted, towards 1 the more is.
    Milletari et al., 2016 (arXiv:1606.04797).
    """
    return tversky_loss(logits, target, alpha=0.5, beta=0.5, smooth=smooth / 2)


def cross_entropy_dice(logits: Tensor, target: Tensor) -> Tensor:
    """`cross_entropy` + `dice_loss`; two classes in one pass over z₁ − z₀, in half of the time."""
    logits, target = _prepare(logits, target)
    if logits.shape[1] > 2:
        return cross_entropy(logits, target) + dice_loss(logits, target)
    counts, lead = (target != IGNORE_INDEX).to(logits.dtype), logits[:, 1] - logits[:, 0]  # (B, H, W) each
    truth = (target == 1).to(logits.dtype)
    nats = (F.softplus(lead) - lead * truth) * counts
    p, dice = lead.sigmoid() * counts, torch.zeros((), device=logits.device)
    for probs, is_class in ((p, truth), (counts - p, counts - truth)):
        overlap, total = (x.sum(dim=(1, 2)) for x in (probs * is_class, probs + is_class))
        dice = dice + (1 - (2 * overlap + 1) / (total + 1)).mean() / 2
    return nats.sum() / counts.sum().clamp_min(1) + dice


def tversky_loss(
    logits: Tensor, target: Tensor, *, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0
) -> Tensor:
    """Tversky loss 1 − (TP + s) / (TP + α·FP + β·FN + s), averaged over classes and images; 0 … 1.

    TP = Σ p·g, FP = Σ p·(1 − g), FN = Σ (1 − p)·g.  β > α fears misses more than false alarms; α = β = ½ is Dice,
    with half of its s > 0.  Salehi et al., 2017 (arXiv:1706.05721).
    """
    probs, truth = _probs_and_one_hot(logits, target)  # (B, C, H, W) each, 0 on ignored pixels
    hits = (probs * truth).sum(dim=(2, 3))  # (B, C)
    false_alarms, misses = probs.sum(dim=(2, 3)) - hits, truth.sum(dim=(2, 3)) - hits
    return (1 - (hits + smooth) / (hits + alpha * false_alarms + beta * misses + smooth)).mean()


def soft_cldice_loss(
    logits: Tensor, target: Tensor, *, iterations: int = 5, smooth: float = 1.0, straight_through: bool = False
) -> Tensor:
    """Soft centre-line Dice loss 1 − 2·P·S / (P + S), averaged over images and over all classes but 0; 0 … 1.

    P = (Σ skel(p)·g + s) / (Σ skel(p) + s): how much of the predicted centre line lies in the true structure.
    S = (Σ skel(g)·p + s) / (Σ skel(g) + s): how much of the true centre line is predicted.
    skel is a soft skeleton by min- and max-pooling; what is wider than 2·`iterations` loses its centre line.
    `straight_through` takes skel(p) / p for constant: the same value in a fifth of the time, and a gradient that points
    the same way (cosine with the exact one .6 … .98 for a usable prediction, .3 for a random one).
    The loss does not see how wide a line is: add it to another one.  Shit et al., 2021 (arXiv:2003.07311), algorithm 1.
    """
    probs, truth = (x[:, 1:].contiguous() for x in _probs_and_one_hot(logits, target))  # (B, C−1, H, W)
    line = _soft_skeleton(probs.detach() if straight_through else probs, iterations)
    if straight_through:
        line = probs * (line / probs.detach().clamp_min(torch.finfo(probs.dtype).tiny))
    true_line = _soft_skeleton(truth, iterations)
    precision = ((line * truth).sum(dim=(2, 3)) + smooth) / (line.sum(dim=(2, 3)) + smooth)
    sensitivity = ((true_line * probs).sum(dim=(2, 3)) + smooth) / (true_line.sum(dim=(2, 3)) + smooth)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean()


def _soft_skeleton(x: Tensor, iterations: int) -> Tensor:
    """What an opening takes away, collected while x shrinks by one pixel, of its four neighbours, a step."""
    skeleton = torch.zeros_like(x)
    for _ in range(iterations + 1):
        eroded = -torch.maximum(_largest_of_three(-x, 2), _largest_of_three(-x, 3))
        ridge = F.relu(x - _largest_of_three(_largest_of_three(eroded, 3), 2))
        skeleton, x = skeleton + F.relu(ridge - skeleton * ridge), eroded
    return skeleton


def _largest_of_three(x: Tensor, axis: int) -> Tensor:
    if x.requires_grad:  # of equal pixels the first gets the gradient
        return F.max_pool2d(x, (3, 1), 1, (1, 0)) if axis == 2 else F.max_pool2d(x, (1, 3), 1, (0, 1))
    n = x.shape[axis] - 1  # eight times as fast
    pairs = torch.maximum(x.narrow(axis, 0, n), x.narrow(axis, 1, n))
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, n, 1)
    return torch.maximum(torch.cat([first, pairs], axis), torch.cat([pairs, last], axis))


def boundary_loss(logits: Tensor, target: Tensor, distance: Tensor | None = None) -> Tensor:
    """Boundary loss: mean over pixels of φ_k·(p_k − g_k) = |φ_k|·|p_k − g_k| in pixels, over all classes but 0.

    The gradient is small near the border: add it to another loss.  `distance` (B, C, H, W) holds the signed distance φ
    of `boundary.signed_distance`, or (B, H, W) that of class 1 of two; by default it is worked out here, on the CPU.
    Kervadec et al., 2021 (doi:10.1016/j.media.2020.101851), equations 4 and 5, plus a constant that makes the best 0.
    """
    (probs, truth), target = _probs_and_one_hot(logits, target), target.long()
    if distance is None:
        distance = _map_of_each(target, functools.partial(signed_distance, num_classes=probs.shape[1]))
    signed = distance[:, None] if distance.ndim == 3 else distance[:, 1:]
    wrong = (probs - truth)[:, 1:]  # (B, C−1, H, W)
    if signed.shape != wrong.shape:
        raise InputError(f"distance has shape {tuple(distance.shape)}; expected {tuple(probs.shape)}, as of logits.")
    return (signed.to(probs.dtype) * wrong).sum() / ((target != IGNORE_INDEX).sum().clamp_min(1) * wrong.shape[1])


class BoundaryWeightedLoss(nn.Module):
    """Cross-entropy Σ w·(−log p_y) / Σ w with a weight w that depends on the distance d to the nearest border.

    w = w_class + w0·exp(−d² / 2σ²) (`boundary.boundary_weights`, σ in pixels), or with `separation` the weights of the
    U-Net paper (`boundary.separation_weights`; there w0 = 10, σ = 5).  loss(logits, target) works w out on the CPU in
    each step; loss(logits, target, w) takes maps (B, H, W).  Ronneberger et al., 2015 (arXiv:1505.04597), equation 2.
    """

    def __init__(self, w0: float = 5.0, sigma: float = 2.0, *, class_weight: Any = None, separation: bool = False):
        super().__init__()
        self.w0, self.sigma, self.separation = w0, sigma, separation
        self.class_weight: Any = class_weight and tuple(class_weight)  # (K,)
        self._map(np.zeros((1, 1), np.int64))  # wrong settings are refused here, not in the first step

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        logits, target = _prepare(logits, target, weight)
        weight = _map_of_each(target, self._map) if weight is None else weight
        return _weighted_mean(_nats(logits, target), target, weight)

    def _map(self, label: np.ndarray) -> np.ndarray:
        make, label = (separation_weights, find_cells(label)) if self.separation else (boundary_weights, label)
        return make(label, self.w0, self.sigma, class_weight=self.class_weight)


class TopologyLoss(nn.Module):
    """Cross-entropy, plus the same again in the regions where objects or holes are merged, split, invented or missed.

    loss = CE + λ/N · Σ_c severity(c) · mean_{p in c} (−log p_y)

    c runs over the critical regions of the predicted labels (see `topology`), found on the CPU and held fixed for the
    gradient.  N is the number of true objects (and `holes`, if they count) in the batch, at least 1: a bridge of three
    pixels weighs as much as a missed cell.  A `weight` belongs to the CE alone.  `strength` is λ ≥ 0; in the first
    `warm_up` training steps it rises from 0 along a line: the speckle of an untrained network is hundreds of errors,
    and without a warm-up the loss begins at 10 … 40.  By default all `classes` but 0 count; `connectivity` and `strict`
    are those of `topology.critical_regions`.  With a `margin` m > 0 what is falsely predicted is looked for
    where the logit of the class exceeds the highest other one by more than −m, what is missing where by less than m
    (m = 1: p = 0.27 and 0.73).

    >>> cells = torch.tensor([[[1, 1, 0, 0, 0, 1, 1]]])  # N = 2 cells, that a bridge of three pixels merges
    >>> z = torch.tensor([[[[9.0, 9.0, 1.0, 1.0, 1.0, 9.0, 9.0]]]])  # logits of one channel
    >>> round((TopologyLoss(strength=1)(z, cells) - cross_entropy(z, cells)).item(), 4)  # log(1 + e) / 2
    0.6566
    """

    step: Tensor

    def __init__(
        self, strength: float = 0.3, *, classes: Sequence[int] | None = None, connectivity: int = 8,
        holes: bool = True, strict: bool = False, margin: float = 0.0, warm_up: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.strength, self.connectivity, self.holes, self.strict = strength, connectivity, holes, strict
        self.classes, self.margin, self.warm_up = classes and tuple(classes), margin, warm_up
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        logits, target = _prepare(logits, target, weight)
        nats, strength = _nats(logits, target), self.strength
        if self.training and torch.is_grad_enabled() and logits.requires_grad:  # a training step; others: full λ
            self.step += 1
            strength *= min(1.0, (int(self.step) - 1) / self.warm_up) if self.warm_up else 1.0
        loss = _weighted_mean(nats, target, weight)
        return loss + strength * (nats * self.region_weights(logits, target)).sum() if strength else loss

    def region_weights(self, logits: Tensor, target: Tensor) -> Tensor:
        """Weight of each pixel in the sum of the term, Σ_c severity(c) / (N·|c|): (B, H, W) float32, no gradient."""
        logits = two_or_more(logits.detach())
        B, C, H, W = logits.shape
        classes = tuple(range(1, C)) if self.classes is None else self.classes
        if not set(classes) <= set(range(C)):
            raise InputError(f"TopologyLoss: classes={classes}, but the logits have only the classes 0 … {C - 1}.")
        kinds = KINDS if self.holes else KINDS[:4]
        search = functools.partial(critical_regions, connectivity=self.connectivity, strict=self.strict)
        if self.margin:  # two searches, each class against the rest: maps (K·B, H, W)
            lead = torch.cat([logits[:, k] - logits[:, [j for j in range(C) if j != k]].amax(dim=1) for k in classes])
            one = torch.cat([torch.where(target == IGNORE_INDEX, IGNORE_INDEX, target == k) for k in classes])
            maps = [m.to(torch.uint8) for m in (lead > -self.margin, lead > self.margin, one)]
            generous, careful, truth = torch.stack(maps).cpu().numpy()  # one transfer
            regions = search(generous, truth)
            weights = regions.weights([kind for kind in kinds if kind in EXCESS])
            weights += search(careful, truth).weights([kind for kind in kinds if kind not in EXCESS])
            weights = weights.reshape(-1, B, H, W).sum(axis=0)
        else:
            label = logits[:, 1] > logits[:, 0] if C == 2 else logits.argmax(dim=1)  # the same, faster
            pred, truth = torch.stack([label.to(torch.uint8), target.to(torch.uint8)]).cpu().numpy()
            regions = search(pred, truth, classes=classes)
            weights = regions.weights(kinds)
        objects = regions.betti_target[..., : 1 + self.holes].sum()
        return torch.from_numpy(weights / np.float32(max(objects, 1))).to(logits.device)


class WeightedSum(nn.Module):
    """Σ a_i · loss_i of pairs (a_i, loss_i).  Further maps of a call, such as pixel weights, go to the first loss."""

    def __init__(self, *terms: tuple[float, Callable[..., Tensor]]):
        super().__init__()
        self.terms = terms
        self.parts = nn.ModuleList(loss for _, loss in terms if isinstance(loss, nn.Module))  # for their state

    def forward(self, logits: Tensor, target: Tensor, *maps: Tensor) -> Tensor:
        (factor, first), *others = self.terms
        return sum((a * loss(logits, target) for a, loss in others), start=factor * first(logits, target, *maps))


def _map_of_each(target: Tensor, make: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """A map made by numpy from each label map of the batch, on the device of `target`."""
    return torch.from_numpy(np.stack([make(label) for label in target.cpu().numpy()])).to(target.device)


def _prepare(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, class_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The one door: all is checked; the logits become at least two classes and float32, the labels int64."""
    check_pair(logits, target, weight)
    logits = two_or_more(logits).to(torch.promote_types(logits.dtype, torch.float32))
    if class_weight is not None:
        C, (low, high) = logits.shape[1], class_weight.aminmax()
        if class_weight.shape != (C,) or not 0 <= low <= high < torch.inf:
            raise InputError(f"class_weight is {class_weight}; expected {C} finite numbers ≥ 0, one for each class.")
    return logits, target.long()


def _nats(logits: Tensor, target: Tensor) -> Tensor:
    """−log p_y of each pixel, (B, H, W); 0 where ignored."""
    return F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="none")


def _probs_and_one_hot(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and 0-1 truth, (B, C, H, W) each; 0 where ignored."""
    logits, target = _prepare(logits, target)
    counts = (target != IGNORE_INDEX)[:, None]  # (B, 1, H, W)
    truth = torch.stack([target == k for k in range(logits.shape[1])], dim=1).to(logits.dtype)
    return logits.contiguous().softmax(dim=1) * counts, truth  # channels last would take twice as long


def _weighted_mean(values: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None = None) -> Tensor:
    """Σ w·v / Σ w, w pixel weight times class weight, 0 where ignored; and 0, with a graph, where all w are 0."""
    counts = target != IGNORE_INDEX
    weights = counts.to(values.dtype) if weight is None else weight.to(values.dtype) * counts
    if class_weight is not None:
        weights = weights * class_weight.to(target.device, values.dtype, non_blocking=True)[target.where(counts, 0)]
    total = weights.sum()
    return (values * weights).sum() / total.where(total > 0, 1)
