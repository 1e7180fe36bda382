"""The bench of defects: what do metrics and losses say about each kind of error, and does a gradient mend it?

`geometry/defects.py` draws one truth, predictions with exactly one defect each, and for each defect a neutral control:
as many wrong pixels, but along straight borders of thick cells, where they change no object and no hole.  Here they are
judged by all metrics (`judge`) and given to all losses (`bench_losses`):

- `selectivity`: the cost of a wrong pixel of the defect over that of a wrong pixel of its control;
- `repair`: steps of equal length down the gradient, on free logits, until the topology is right;
- `pushes`: how hard the gradient pushes the defect, the neutral wrong pixels, and the pixels that are right.

A prediction has the logits +2 on objects and −2 outside; maps are (H, W), logits (B, 1, H, W).  Neutral controls are
an idea of Reinke et al., 2024 (doi:10.1038/s41592-023-02150-0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import losses
import metrics
from geometry import boundary, defects, objects
from geometry.topology import critical_regions

Loss = Callable[[Tensor, Tensor], Tensor]
Map = NDArray[np.uint8]

TRUTH = defects.truth()
TARGET = torch.from_numpy(TRUTH)[None].long()
"""The truth as a target, (1, H, W)."""
LARGEST = defects.control(24, 24)
"""The largest control: 24 false and 24 missed pixels, all neutral."""
NEUTRAL = LARGEST != TRUTH
STRENGTH = 0.3
"""λ of the topology losses."""
NEAR, FORGIVING = boundary.boundary_weights(TRUTH), boundary.boundary_weights(TRUTH, w0=-0.8)
"""Weight maps of the truth: the border stressed, and forgiven."""
GAPS = boundary.separation_weights(boundary.find_cells(TRUTH))
"""The weights of the U-Net paper, for narrow gaps between two cells."""
TOPOLOGY = losses.TopologyLoss(strength=STRENGTH)


def shown() -> dict[str, Map]:
    """The eight predictions with a defect, by name."""
    return {name: pred for name, pred in defects.predictions().items() if name != "nothing wrong"}


def broken() -> dict[str, Map]:
    """Those of them whose defect is not a shift: each leaves room for the neutral wrong pixels beside it."""
    return {name: pred for name, pred in shown().items() if not name.startswith("shift")}


def judge(pred: Map) -> dict[str, float]:
    """All metrics of a prediction (H, W) of the truth, by name: pixels, borders, centre lines, objects, counts."""
    confusion = metrics.confusion_matrix(torch.from_numpy(pred)[None], TARGET, 2)
    borders = objects.boundary_distances(pred, TRUTH)
    table = objects.overlaps(*objects.class_objects(pred, TRUTH))
    match, parts = objects.match_objects(table), objects.partition(table)
    counts = objects.topology_counts(pred, TRUTH)
    return {
        "pixel accuracy": metrics.accuracy(confusion),
        "mean IoU": metrics.mean_iou(confusion),
        "Dice = F1 of the pixels": metrics.f1_per_class(confusion)[1].item(),
        "boundary F1 within 1 px": borders.within(1).f1,
        "Hausdorff 95 %, px": borders.hausdorff(),
        "clDice": objects.centre_lines(pred, TRUTH).cl_dice,
        "F1 of the objects": match.f1,
        "panoptic quality": match.panoptic_quality,
        "ARAND": parts.arand,
        "VOI split, bits": parts.voi_split,
        "VOI merge, bits": parts.voi_merge,
        "merges": counts.merges,
        "splits": counts.splits,
        "spurious": counts.spurious,
        "missed": counts.missed,
        "β0 error": counts.beta0_error,
        "β1 error": counts.beta1_error,
    }


def with_map(loss: Callable[[Tensor, Tensor, Tensor], Tensor], array: NDArray[np.floating]) -> Loss:
    """The loss with a map (H, W) made once for the mask, as a data set would hand it over."""
    stored = torch.as_tensor(array, dtype=torch.float32)
    return lambda logits, target: loss(logits, target, stored.expand_as(target))


def bench_losses() -> dict[str, Loss]:
    """The losses on the bench, by name; add one of your own to see what it cares for."""
    cross_entropy, foreground = losses.cross_entropy, float(TRUTH.mean())
    balance = torch.tensor([0.5 / (1 - foreground), 0.5 / foreground])  # each class has half of the weight
    depth = with_map(losses.boundary_loss, boundary.signed_distance(TRUTH)[1])
    centre_line = partial(losses.soft_cldice_loss, iterations=8)  # half the width of the closed ring
    border = losses.BoundaryWeightedLoss()
    return {
        "cross-entropy (CE)": cross_entropy,
        "class-weighted CE": partial(cross_entropy, class_weight=balance),
        "focal": losses.focal_loss,
        "Dice": losses.dice_loss,
        "Tversky": losses.tversky_loss,
        "border, stressed": with_map(border, NEAR),
        "border, forgiven": with_map(border, FORGIVING),
        "U-Net's gap weights": with_map(border, GAPS),
        "CE + Kervadec": losses.WeightedSum((1.0, cross_entropy), (0.1, depth)),
        "CE + soft-clDice": losses.WeightedSum((1.0, cross_entropy), (0.5, centre_line)),
        "topology": TOPOLOGY,
        "topology, strict": losses.TopologyLoss(strength=STRENGTH, strict=True),
        "topology, margin 1": losses.TopologyLoss(strength=STRENGTH, margin=1.0),
        "border + topology": with_map(TOPOLOGY, NEAR),
    }


def as_logits(*maps: Map) -> Tensor:
    """Predictions (H, W) as logits (B, 1, H, W): +2 on objects, −2 outside.

    >>> as_logits(np.array([[0, 1]])).tolist()
    [[[[-2.0, 2.0]]]]
    """
    return torch.from_numpy(4.0 * np.stack(maps) - 2).float()[:, None]


def selectivity(loss: Loss, pred: Map) -> float:
    """Cost of a wrong pixel of the prediction over that of a wrong pixel of its control.

    The cost is (loss − loss of the truth) / number of wrong pixels; 1 is the answer of a loss that only counts them.
    """

    def cost(wrong: Map) -> float:
        above = loss(as_logits(wrong), TARGET) - loss(as_logits(TRUTH), TARGET)
        return above.item() / np.count_nonzero(wrong != TRUTH)

    return cost(pred) / cost(defects.control_for(pred))


def starts() -> NDArray[np.uint8]:
    """Each `broken` prediction with the largest control in it: a defect beside 48 neutral wrong pixels, (B, H, W)."""
    return np.stack([np.where(NEUTRAL, LARGEST, pred) for pred in broken().values()])


def descend(loss: Loss, start: Tensor, steps: int, length: float = 0.5) -> NDArray[np.bool_]:
    """Go down the gradient on free logits (B, 1, H, W): the predicted masks, (steps + 1, B, H, W).

    Every step has the same Euclidean length in each picture, so no loss wins by being larger.
    """
    logits, target = start.clone().requires_grad_(), TARGET.expand(len(start), -1, -1)
    masks = [logits.detach()[:, 0] > 0]
    for _ in range(steps):
        (slope,) = torch.autograd.grad(loss(logits, target), logits)
        norm = slope.flatten(1).norm(dim=1)[:, None, None, None]
        logits.data -= length * slope / norm.clamp_min(1e-12)
        masks.append(logits.detach()[:, 0] > 0)
    return torch.stack(masks).numpy()


class Repair(NamedTuple):
    """When each picture was mended, in steps (infinite: never); `harmed`: most right pixels that were wrong at once."""

    topology: NDArray[np.float64]
    neutral: NDArray[np.float64]
    harmed: int


def repair(loss: Loss, steps: int) -> Repair:
    """From `starts`, the steps until no region is critical (strictly), and until the neutral pixels are right."""
    masks = descend(loss, as_logits(*starts()), steps)
    truths = np.broadcast_to(TRUTH, masks.shape).reshape(-1, *TRUTH.shape)
    regions = critical_regions(masks.reshape(truths.shape), truths, strict=True)
    critical = regions.counts().sum(axis=(1, 2)).reshape(masks.shape[:2])  # (steps + 1, B)
    right = masks == (TRUTH > 0)
    harmed = (right[0] & ~right).sum(axis=(2, 3)).max()
    return Repair(_first(critical == 0), _first(right[:, :, NEUTRAL].all(axis=2)), int(harmed))


def pushes(loss: Loss, pred: Map) -> Sequence[float]:
    """Norm of the gradient, and its mean size on the defect, on neutral wrong pixels, and on right pixels."""
    logits = as_logits(pred).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, TARGET), logits)
    size, wrong = gradient[0, 0].abs().numpy(), pred != TRUTH
    return [float(np.linalg.norm(size)), *(float(size[part].mean()) for part in (wrong & ~NEUTRAL, NEUTRAL, ~wrong))]


def _first(done: NDArray[np.bool_]) -> NDArray[np.float64]:
    """First step, along axis 0, at which it is done; infinite if never."""
    return np.where(done.any(axis=0), done.argmax(axis=0), np.inf)
