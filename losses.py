"""Losses for semantic segmentation: what the network is told to make small.

- Pixels: `cross_entropy`, `focal_loss`.  Regions: `dice_loss`, `tversky_loss`, `soft_cldice_loss` for thin structures.
- Borders: `BoundaryWeightedLoss`, `boundary_loss`.  Objects and holes: `TopologyLoss`.
- `WeightedSum` adds any of them.

All take `logits` (B, C, H, W), raw, and `target` (B, H, W), integer; pixels labelled `IGNORE_INDEX` count in no term.
All compute in float32 (float64 if the logits are), also inside autocast, and stay finite for logits of ±10⁴.  Their
settings show in their `repr`, by which the learner knows a run again.

Sources: focal loss, Lin et al., 2017 (arXiv:1708.02002); Dice loss, Milletari et al., 2016 (arXiv:1606.04797); Tversky
loss, Salehi et al., 2017 (arXiv:1706.05721); soft-clDice, Shit et al., 2021 (arXiv:2003.07311); boundary loss, Kervadec
et al., 2021 (doi:10.1016/j.media.2020.101851).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checks import IGNORE_INDEX, InputError, check_pair, two_or_more
from geometry.boundary import boundary_weights, find_cells, separation_weights, signed_distance
from geometry.topology import EXCESS, KINDS, CriticalRegions, critical_regions


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
    logits, target = _prepare(logits, target, weight)
    weights = _pixel_weights(logits, target, weight, class_weight)
    nats = _nats(logits, target)
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
    if gamma < 0:
        raise InputError(f"focal_loss: gamma={gamma}; expected a number ≥ 0.")
    logits, target = _prepare(logits, target, weight)
    weights = _pixel_weights(logits, target, weight, class_weight)
    nats = _nats(logits, target)
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
    if not smooth > 0:
        raise InputError(f"dice_loss: smooth={smooth}; expected a number of pixels > 0.")
    probs, truth = _probs_and_one_hot(logits, target)  # (B, C, H, W) each, 0 on ignored pixels
    overlap = (probs * truth).sum(dim=(2, 3))  # (B, C)
    total = (probs + truth).sum(dim=(2, 3))
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def tversky_loss(
    logits: Tensor, target: Tensor, *, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0
) -> Tensor:
    """Tversky loss 1 − (TP + s) / (TP + α·FP + β·FN + s), averaged over classes and images.

    TP = Σ p·g, FP = Σ p·(1 − g), FN = Σ (1 − p)·g.  β > α fears misses more than false alarms.  α = β = ½ is Dice,
    with half of its s.  Shapes and the use of s as in `dice_loss`.

    Args:
        logits: (B, C, H, W) float.
        target: (B, H, W) integer.
        alpha: price of a false alarm, ≥ 0.
        beta: price of a miss, ≥ 0.
        smooth: s > 0, in pixels.

    Returns:
        Scalar in 0 … 1; 0 where no pixel counts.

    Raises:
        InputError: see `check_pair`; wrong settings.

    Reference: Salehi et al., 2017 (arXiv:1706.05721).

    >>> even, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])  # TP = FP = FN = 1/2, s = 1
    >>> round(tversky_loss(even, target, alpha=1, beta=2).item(), 3)  # 1 − 1.5/3
    0.5
    """
    if not (alpha >= 0 and beta >= 0 and smooth > 0):
        raise InputError(
            f"tversky_loss: alpha={alpha}, beta={beta}, smooth={smooth}; expected alpha ≥ 0, beta ≥ 0, smooth > 0."
        )
    probs, truth = _probs_and_one_hot(logits, target)
    hits = (probs * truth).sum(dim=(2, 3))  # (B, C)
    false_alarms, misses = probs.sum(dim=(2, 3)) - hits, truth.sum(dim=(2, 3)) - hits
    return (1 - (hits + smooth) / (hits + alpha * false_alarms + beta * misses + smooth)).mean()


def soft_cldice_loss(logits: Tensor, target: Tensor, *, iterations: int = 5, smooth: float = 1.0) -> Tensor:
    """Soft centre-line Dice loss 1 − 2·P·S / (P + S), averaged over images and over all classes but 0.

    P = (Σ skel(p)·g + s) / (Σ skel(p) + s): how much of the predicted centre line lies in the true structure.
    S = (Σ skel(g)·p + s) / (Σ skel(g) + s): how much of the true centre line is predicted.
    skel is a soft skeleton by min- and max-pooling.  It is exact for lines of one pixel, and needs `iterations` of at
    least half the width of the thickest structure: what is thicker loses its centre line.  Made for networks of thin
    lines; it hardly sees splits and merges of thick cells.

    Args:
        logits: (B, C, H, W) float.
        target: (B, H, W) integer.
        iterations: steps of the skeleton, one pixel from each side; ≥ 0.
        smooth: s > 0, in pixels; as in `dice_loss`.

    Returns:
        Scalar in 0 … 1; 0 where no pixel counts.  Add it to another loss, it does not see the width of a line.

    Raises:
        InputError: see `check_pair`; wrong settings.

    Reference: Shit et al., 2021 (arXiv:2003.07311), algorithms 1 and 2.

    >>> line = torch.tensor([[[0, 0, 0], [1, 1, 1], [0, 0, 0]]])
    >>> soft_cldice_loss(99.0 * (2 * line[:, None] - 1), line).item()  # one output channel
    0.0
    """
    if not (iterations >= 0 and smooth > 0):
        raise InputError(
            f"soft_cldice_loss: iterations={iterations}, smooth={smooth}; expected iterations ≥ 0, smooth > 0."
        )
    probs, truth = (x[:, 1:] for x in _probs_and_one_hot(logits, target))  # (B, C−1, H, W)
    line, true_line = _soft_skeleton(probs, iterations), _soft_skeleton(truth, iterations)
    precision = ((line * truth).sum(dim=(2, 3)) + smooth) / (line.sum(dim=(2, 3)) + smooth)
    sensitivity = ((true_line * probs).sum(dim=(2, 3)) + smooth) / (true_line.sum(dim=(2, 3)) + smooth)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean()


def _soft_skeleton(x: Tensor, iterations: int) -> Tensor:
    """What an opening takes away, collected while x shrinks by one pixel a step."""
    skeleton = torch.zeros_like(x)
    for _ in range(iterations + 1):
        eroded = _erode(x)
        ridge = F.relu(x - F.max_pool2d(eroded, 3, 1, 1))
        skeleton, x = skeleton + F.relu(ridge - skeleton * ridge), eroded
    return skeleton


def _erode(x: Tensor) -> Tensor:
    """Minimum over a pixel and its four neighbours; what lies outside of the image does not count."""
    return -torch.maximum(F.max_pool2d(-x, (3, 1), 1, (1, 0)), F.max_pool2d(-x, (1, 3), 1, (0, 1)))


def boundary_loss(logits: Tensor, target: Tensor, distance: Tensor | None = None) -> Tensor:
    """Boundary loss: mean over pixels of φ_k·(p_k − g_k) = |φ_k|·|p_k − g_k|, averaged over all classes but 0.

    φ_k is the signed distance to the border of class k, negative inside, so a pixel that is wrong costs its distance
    to the border.  (The paper drops the constant −Σ φ·g: same gradient, but a value that has no zero.)  The gradient
    is small near the border and for absent classes: add it to another loss.

    Args:
        logits: (B, C, H, W) float.
        target: (B, H, W) integer.
        distance: (B, C, H, W) float from `boundary.signed_distance`, or (B, H, W), that of class 1 of two.  Default:
            worked out here, on the CPU.

    Returns:
        Scalar ≥ 0, in pixels; 0 where no pixel counts.

    Raises:
        InputError: see `check_pair`; a distance of the wrong shape.

    Reference: Kervadec et al., 2021 (doi:10.1016/j.media.2020.101851), equations 4 and 5.

    >>> target = torch.tensor([[[0, 0, 1, 1]]])  # distances 1.5, 0.5, −0.5, −1.5; each pixel is half wrong
    >>> boundary_loss(torch.zeros(1, 2, 1, 4), target).item()
    0.5
    """
    probs, truth = _probs_and_one_hot(logits, target)
    if distance is None:
        distance = _map_of_each(target, functools.partial(signed_distance, num_classes=probs.shape[1]))
    wanted = probs[:, 1:].shape
    signed = distance[:, None] if distance.ndim == 3 else distance[:, 1:]
    if signed.shape != wanted or distance.device != logits.device:
        raise InputError(
            f"distance has shape {tuple(distance.shape)} on {distance.device}; expected {tuple(probs.shape)}, or for "
            f"two classes\n{tuple(target.shape)}, on {logits.device}.  Use boundary.signed_distance for each mask."
        )
    pixels = (target != IGNORE_INDEX).sum().clamp_min(1) * wanted[1]
    return (signed.to(probs.dtype) * (probs - truth)[:, 1:]).sum() / pixels


class BoundaryWeightedLoss(nn.Module):
    """Cross-entropy Σ w·(−log p_y) / Σ w with a weight w that depends on the distance d to the nearest border.

    w = w_class + w0·exp(−d² / 2σ²) (`boundary.boundary_weights`), or with `separation` the two distances of the U-Net
    paper (`boundary.separation_weights`) from the connected components of each class.  w0 > 0 stresses the border:
    cells are kept apart.  −1 ≤ w0 < 0 forgives it: where the label is not sure, being wrong costs little.

    Call it as loss(logits, target), and the weights are worked out on the CPU in each step (some ms an image, and on a
    GPU one wait for it).  Or as loss(logits, target, weight), with maps (B, H, W) made once for each mask, for example
    from drawn instances, and stored in the data set: then the settings here are not used.

    A mask of one class has no border, and the loss is exactly the cross-entropy.  Ignored pixels have weight 0.

    Args:
        w0: height of the bump at the border, relative to a class weight of 1; at least −1.
        sigma: its width in pixels.
        class_weight: a weight for each class; default 1.
        separation: the weights of the U-Net paper; there w0 = 10 and sigma = 5.

    Raises:
        InputError: when called, see `check_pair` and `boundary_weights`.

    Reference: Ronneberger et al., 2015 (arXiv:1505.04597), equation 2.

    >>> loss, target = BoundaryWeightedLoss(w0=4.0, sigma=0.5), torch.tensor([[[0, 0, 1, 1]]])
    >>> logits = torch.tensor([[[[9.0, 0.0, 0.0, -9.0]], [[-9.0, 0.0, 0.0, 9.0]]]])  # not sure at the border
    >>> loss, round((loss(logits, target) / cross_entropy(logits, target)).item(), 2)
    (BoundaryWeightedLoss(w0=4.0, sigma=0.5, class_weight=None, separation=False), 1.53)
    """

    def __init__(
        self,
        w0: float = 5.0,
        sigma: float = 2.0,
        *,
        class_weight: Sequence[float] | None = None,
        separation: bool = False,
    ):
        super().__init__()
        self.w0, self.sigma, self.separation = w0, sigma, separation
        self.class_weight = None if class_weight is None else tuple(class_weight)
        self._map(np.zeros((1, 1), np.int64))  # wrong settings are refused here, not in the first step

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        check_pair(logits, target, weight)
        return cross_entropy(logits, target, _map_of_each(target, self._map) if weight is None else weight)

    def _map(self, label: np.ndarray) -> np.ndarray:
        class_weight = None if self.class_weight is None else np.array(self.class_weight)
        if self.separation:
            return separation_weights(find_cells(label), self.w0, self.sigma, class_weight=class_weight)
        return boundary_weights(label, self.w0, self.sigma, class_weight=class_weight)

    def extra_repr(self) -> str:
        return _settings(self, "w0", "sigma", "class_weight", "separation")


class TopologyLoss(nn.Module):
    """Cross-entropy, plus the same again in the regions where objects or holes are merged, split, invented or missed.

    loss = CE + λ/N · Σ_c severity(c) · mean_{p in c} (−log p_y)

    c runs over the critical regions of the predicted labels (see `topology`), N is the number of true objects (and
    holes, if they count) in the batch, at least 1.  So a bridge of three pixels between two cells weighs as much as a
    missed cell.  The regions are held fixed for the gradient, which is that of a weighted cross-entropy: w·(p − g).
    Without critical regions the term is 0.

    With a margin m > 0 objects must be apart and whole with some safety: what is falsely predicted is looked for where
    the logit of the class exceeds the highest other one by more than −m, what is missing where by less than m.  For
    two classes and m = 1 these are the thresholds 0.27 and 0.73.  The search is done twice then.

    The regions are found on the CPU, in time nearly linear in the number of pixels.  On a GPU each step waits twice:
    for the predicted and true labels (two bytes a pixel) to come, and for the weights to go back.

    Args:
        strength: λ ≥ 0.
        classes: the classes whose objects count; default all but 0.
        connectivity: 4 or 8, that of the objects; the background has the other.
        holes: whether errors of the background count as well.
        strict: see `topology.critical_regions`.
        margin: m ≥ 0.
        warm_up: number of training steps in which λ rises from 0 along a line; random networks show thousands of
            regions that mean nothing.
        every: the term counts in every k-th training step only, there k times as strong.

    `step` counts the training steps, and is part of the `state_dict`.  A call counts if the module is in training mode
    and the logits need a gradient; in any other call, such as validation, the term has its full strength λ, so that
    the values of all epochs can be compared.

    Call it as loss(logits, target) or loss(logits, target, weight); the weight of a pixel belongs to the CE alone.

    Raises:
        InputError: wrong settings, at once; when called, see `check_pair`.

    >>> cells = torch.tensor([[[1, 1, 0, 0, 0, 1, 1]]])  # two cells, that a bridge of three pixels merges
    >>> z = torch.tensor([[[[9.0, 9.0, 1.0, 1.0, 1.0, 9.0, 9.0]]]])  # logits of one channel
    >>> term = TopologyLoss(strength=1)(z, cells) - cross_entropy(z, cells)
    >>> round(term.item(), 4), round(0.5 * math.log(1 + math.exp(1)), 4)  # severity 1, N = 2
    (0.6566, 0.6566)
    """

    step: Tensor

    def __init__(
        self,
        strength: float = 0.3,
        *,
        classes: Sequence[int] | None = None,
        connectivity: int = 8,
        holes: bool = True,
        strict: bool = False,
        margin: float = 0.0,
        warm_up: int = 0,
        every: int = 1,
    ):
        super().__init__()
        sound = 0 <= strength < math.inf and 0 <= margin < math.inf
        if not (sound and connectivity in (4, 8) and warm_up >= 0 and every >= 1):
            raise InputError(
                f"TopologyLoss: strength={strength}, connectivity={connectivity}, margin={margin}, "
                f"warm_up={warm_up}, every={every};\n"
                "expected strength ≥ 0, connectivity 4 or 8, margin ≥ 0, warm_up ≥ 0 steps, every ≥ 1 step."
            )
        self.strength, self.connectivity, self.holes, self.strict = strength, connectivity, holes, strict
        self.classes, self.margin = None if classes is None else tuple(classes), margin
        self.warm_up, self.every = warm_up, every
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        logits, target = _prepare(logits, target, weight)
        nats, strength = _nats(logits, target), self._advance(logits)
        loss = _weighted_mean(nats, _pixel_weights(logits, target, weight, None))
        return loss + strength * (nats * self.region_weights(logits, target)).sum() if strength else loss

    def region_weights(self, logits: Tensor, target: Tensor) -> Tensor:
        """Weight of each pixel in the sum of the term, Σ_c severity(c) / (N·|c|): (B, H, W) float32, no gradient."""
        logits = two_or_more(logits.detach())
        C = logits.shape[1]
        classes = tuple(range(1, C)) if self.classes is None else self.classes
        if not all(0 <= number < C for number in classes):
            raise InputError(f"TopologyLoss: classes={classes}, but the logits have only the classes 0 … {C - 1}.")
        kinds = KINDS if self.holes else KINDS[:4]
        if self.margin:
            weights, true = self._regions_with_margin(logits, target, classes, kinds)
        else:
            label = logits[:, 1] > logits[:, 0] if C == 2 else logits.argmax(dim=1)  # the same, faster
            pred, truth = torch.stack([label.to(torch.uint8), target.to(torch.uint8)]).cpu().numpy()  # one transfer
            regions = self._regions(pred, truth, classes)
            weights, true = regions.weights(kinds), regions.betti_target[..., : 1 + self.holes].sum()
        return torch.from_numpy(weights / np.float32(max(true, 1))).to(logits.device)

    def _regions(self, pred: np.ndarray, target: np.ndarray, classes: Sequence[int]) -> CriticalRegions:
        options: dict[str, Any] = {"connectivity": self.connectivity, "strict": self.strict}
        return critical_regions(pred, target, classes=classes, **options)

    def _regions_with_margin(
        self, logits: Tensor, target: Tensor, classes: Sequence[int], kinds: Sequence[str]
    ) -> tuple[np.ndarray, int]:
        """Weights (B, H, W) before they are divided by the number of true objects, and this number."""
        B, C, H, W = logits.shape
        lead = torch.stack([logits[:, k] - logits[:, [j for j in range(C) if j != k]].amax(dim=1) for k in classes])
        true_class = torch.stack([torch.where(target == IGNORE_INDEX, IGNORE_INDEX, target == k) for k in classes])
        maps = torch.stack([m.to(torch.uint8) for m in (lead > -self.margin, lead > self.margin, true_class)])
        generous, careful, truth = maps.flatten(1, 2).cpu().numpy()  # one transfer; (K·B, H, W) each
        false, missing = self._regions(generous, truth, (1,)), self._regions(careful, truth, (1,))
        weights = false.weights([kind for kind in kinds if kind in EXCESS])
        weights += missing.weights([kind for kind in kinds if kind not in EXCESS])
        true = false.betti_target[..., : 1 + self.holes].sum()
        return weights.reshape(-1, B, H, W).sum(axis=0), true

    def _advance(self, logits: Tensor) -> float:
        """Strength of the term in this call, and one step further."""
        if not (self.training and torch.is_grad_enabled() and logits.requires_grad):
            return self.strength
        step = int(self.step)
        self.step += 1
        if step % self.every:
            return 0.0
        return self.strength * self.every * (min(1.0, step / self.warm_up) if self.warm_up else 1.0)

    def extra_repr(self) -> str:
        return _settings(self, "strength", "classes", "connectivity", "holes", "strict", "margin", "warm_up", "every")


class WeightedSum(nn.Module):
    """Several losses in one: Σ a_i · loss_i.  Further maps of a call, such as pixel weights, go to the first loss.

    Args:
        terms: pairs (a_i, loss_i); a loss is a function, a `functools.partial` of one, or a module.

    >>> both = WeightedSum((1.0, cross_entropy), (0.5, functools.partial(dice_loss, smooth=2.0)))
    >>> both
    WeightedSum(1.0 * cross_entropy + 0.5 * dice_loss(smooth=2.0))
    """

    def __init__(self, *terms: tuple[float, Callable[..., Tensor]]):
        super().__init__()
        if not terms:
            raise InputError("WeightedSum: no terms; expected pairs like (1.0, cross_entropy), (0.5, dice_loss).")
        self.terms = terms
        self.parts = nn.ModuleList(loss for _, loss in terms if isinstance(loss, nn.Module))  # for their state

    def forward(self, logits: Tensor, target: Tensor, *maps: Tensor) -> Tensor:
        (first_factor, first), *others = self.terms
        total = first_factor * first(logits, target, *maps)
        for factor, loss in others:
            total = total + factor * loss(logits, target)
        return total

    def __repr__(self) -> str:
        return f"WeightedSum({' + '.join(f'{factor} * {_spelled(loss)}' for factor, loss in self.terms)})"


def _spelled(loss: Any) -> str:
    """Name and settings of a loss, without the address in memory that Python would show."""
    if isinstance(loss, functools.partial):
        return f"{_spelled(loss.func)}({', '.join(f'{key}={value}' for key, value in sorted(loss.keywords.items()))})"
    return getattr(loss, "__name__", None) or repr(loss)


def _settings(module: nn.Module, *names: str) -> str:
    return ", ".join(f"{name}={getattr(module, name)!r}" for name in names)


def _map_of_each(target: Tensor, make: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """A map made by numpy from each label map of the batch, back on the device of `target`."""
    maps = [make(label) for label in target.cpu().numpy()]
    return torch.from_numpy(np.stack(maps)).to(target.device)


def _prepare(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The one door: both are checked, and become logits of at least two classes and float32, and int64 labels."""
    check_pair(logits, target, weight)
    return two_or_more(logits).to(torch.promote_types(logits.dtype, torch.float32)), target.long()


def _nats(logits: Tensor, target: Tensor) -> Tensor:
    """−log p_y of each pixel, (B, H, W); 0 where ignored."""
    return F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="none")


def _probs_and_one_hot(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits, target = _prepare(logits, target)
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
            shown = class_weight.tolist() if class_weight.numel() <= 16 else f"of shape {tuple(class_weight.shape)}"
            raise InputError(f"class_weight is {shown}; expected {C} finite numbers ≥ 0, one for each class.")
        weights = weights * class_weight.to(logits.device, non_blocking=True)[target.where(counts, 0)]
    return weights


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ w·v / Σ w; and 0, still attached to the graph, where all weights are 0."""
    total = weights.sum()
    return (values * weights).sum() / total.where(total > 0, 1)
