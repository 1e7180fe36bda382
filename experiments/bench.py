"""Two benches on drawn images: what do metrics and losses say under class imbalance, and about each kind of error?

Discs (A1.3a): 21 pixels each on noise of equal contrast, so whatever differs between two prevalences is due to them.
Defects (A1.3d): `geometry.defects`, each beside a neutral control with as many wrong pixels.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

import losses
import metrics
from geometry import boundary, defects, objects
from geometry.topology import critical_regions
from learner import Learner, pick_device
from losses import cross_entropy
from unet import UNet

Loss = Callable[..., Tensor]
Scores = dict[str, float]
Compared = dict[tuple[str, float, int], Scores]  # (predictor, prevalence, seed) → scores
Part = tuple[Tensor, Tensor]  # images and their labels

SIDE, CONTRAST = 64, 1.5  # pixels along each axis; foreground − background, in standard deviations of the noise


def draw_discs(prevalence: float, images: int, seed: int) -> Part:
    """Noisy images of discs at random places, (B, 1, 64, 64) float32, and their labels, (B, 64, 64) int64."""
    axis = torch.arange(-2, 3)
    disc = (axis[:, None] ** 2 + axis**2 <= 6).float()
    # they may overlap, and reappear on the other side: n discs of a pixels leave (1 − a / 64²)ⁿ free
    number = round(math.log(1 - prevalence) / math.log(1 - disc.sum().item() / SIDE**2))
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randint(SIDE**2, (images, number), generator=generator)
    points = torch.zeros(images, SIDE**2).scatter_(1, centres, 1.0).view(-1, 1, SIDE, SIDE)
    label = F.conv2d(F.pad(points, (2, 2, 2, 2), mode="circular"), disc[None, None]) > 0
    return CONTRAST * label + torch.randn(label.shape, generator=generator), label[:, 0].long()


def balanced(prevalence: float, device: str | torch.device = "cpu") -> Loss:
    """Cross-entropy with weights that give each class half of the loss."""
    return partial(cross_entropy, class_weight=torch.tensor([0.5 / (1 - prevalence), 0.5 / prevalence], device=device))


def losses_at(prevalence: float) -> dict[str, Loss]:
    """The losses compared on discs, by name; only the class weights depend on the prevalence."""
    both = losses.WeightedSum((1.0, cross_entropy), (1.0, losses.dice_loss))
    plain: dict[str, Loss] = {"cross-entropy": cross_entropy, "weighted CE": balanced(prevalence, pick_device())}
    return plain | {"Dice": losses.dice_loss, "CE + Dice": both, "focal": losses.focal_loss}


def at_constant(loss: Loss, p: float, label: Tensor) -> tuple[float, float]:
    """Value of the loss where the network says p everywhere, and the foreground's part of all Σ|∂loss/∂logits|."""
    logits = torch.zeros(len(label), 2, *label.shape[1:], device=pick_device())
    logits[:, 1] = math.log(p / (1 - p))
    value = loss(logits.requires_grad_(), label.to(logits.device))
    (gradient,) = torch.autograd.grad(value, logits)
    size = gradient.abs().sum(dim=1).cpu()  # (B, H, W)
    return value.item(), (size[label == 1].sum() / size.sum()).item()


def train_on_discs(loss: Loss, prevalence: float, seed: int, steps: int) -> Learner:
    """A small U-Net after `steps` steps on four new images each; the same weights and images for every loss."""
    batches = [draw_discs(prevalence, 4, 10_000 * seed + step) for step in range(steps)]
    torch.manual_seed(seed)
    learner = Learner(UNet(1, 2, (4, 8)), loss, batches, lr=0.03, seed=seed, precision="float32", verbose=False)
    learner.fit(1)
    return learner


def judge_discs(parts: Sequence[Part], threshold: float | None, candidates: Iterable[float]) -> Scores:
    """Scores of the test images at `threshold`, or (None) at the candidate of highest foreground F1 in validation."""
    validation, test = parts  # of each the numbers to be cut, (B, H, W), and the labels

    def counts(part: Part, cut: float) -> Tensor:
        return metrics.confusion_matrix((part[0] > cut).long(), part[1], 2)

    own = max(candidates, key=lambda cut: metrics.f1_per_class(counts(validation, cut))[1].item())
    found = counts(test, own if threshold is None else threshold)
    one_class = {"F1 rare": metrics.f1_per_class, "precision": metrics.precision_per_class}
    one_class |= {"recall": metrics.recall_per_class}
    scores = {"accuracy": metrics.accuracy(found), "mean IoU": metrics.mean_iou(found), "MCC": metrics.matthews(found)}
    scores |= {name: score(found)[1].item() for name, score in one_class.items()}
    return scores | {"F1, own threshold": metrics.f1_per_class(counts(test, own))[1].item()}


def judge_network(learner: Learner, prevalence: float, seed: int) -> Scores:
    """`judge_discs` for the probability of the foreground, at ½, on images that no training of this seed has seen."""
    guesses = [(learner.predict(image)[:, 1], label) for image, label in _new_images(prevalence, seed)]
    return judge_discs(guesses, 0.5, np.linspace(0.02, 0.98, 25))


def compare_on_discs(prevalences: Iterable[float], seeds: Sequence[int], steps: int) -> Compared:
    """Scores of a training with each loss, of the empty answer, and of the best threshold of brightness."""
    found: Compared = {}
    for prevalence, seed in itertools.product(prevalences, seeds):
        images = _new_images(prevalence, seed)
        nothing, brightness = ([(number * image[:, 0], label) for image, label in images] for number in (0, 1))
        found["finding nothing", prevalence, seed] = judge_discs(nothing, 0.5, [0.5])
        found["threshold", prevalence, seed] = judge_discs(brightness, None, np.linspace(-1, 4, 51))
        for name, loss in losses_at(prevalence).items():
            learner = train_on_discs(loss, prevalence, seed, steps)
            found[name, prevalence, seed] = judge_network(learner, prevalence, seed)
    return found


def _new_images(prevalence: float, seed: int) -> list[Part]:
    """32 images for validation and 64 for the test, from seeds above those of any training step."""
    return [draw_discs(prevalence, images, 10_000 * seed + last) for images, last in ((32, 9_998), (64, 9_999))]


TRUTH = defects.truth()
TARGET = torch.from_numpy(TRUTH)[None].long()  # (1, H, W)
LARGEST = defects.control(24, 24)  # 24 false and 24 missed pixels, all neutral
NEUTRAL = LARGEST != TRUTH
NEAR, FORGIVING = boundary.boundary_weights(TRUTH), boundary.boundary_weights(TRUTH, w0=-0.8)  # border stressed or not
GAPS = boundary.separation_weights(boundary.find_cells(TRUTH))  # the U-Net paper: narrow gaps between two cells
STRENGTH = 0.3  # λ of the topology losses
TOPOLOGY = losses.TopologyLoss(strength=STRENGTH)
SHOWN = {name: pred for name, pred in defects.predictions().items() if name != "nothing wrong"}  # with a defect
BROKEN = {name: pred for name, pred in SHOWN.items() if not name.startswith("shift")}  # with room for neutral errors
STARTS = np.stack([np.where(NEUTRAL, LARGEST, pred) for pred in BROKEN.values()])  # beside 48 neutral ones, (B, H, W)


def judge(pred: defects.Map) -> dict[str, float]:
    """All metrics of a prediction (H, W) of the truth, by name: pixels, borders, centre lines, objects, counts."""
    confusion = metrics.confusion_matrix(torch.from_numpy(pred)[None], TARGET, 2)
    borders, table = objects.boundary_distances(pred, TRUTH), objects.overlaps(*objects.class_objects(pred, TRUTH))
    match, parts = objects.match_objects(table), objects.partition(table)
    counts = objects.topology_counts(pred, TRUTH)
    return {
        "pixel accuracy": metrics.accuracy(confusion), "mean IoU": metrics.mean_iou(confusion),
        "Dice = F1 of the pixels": metrics.f1_per_class(confusion)[1].item(),
        "boundary F1 within 1 px": borders.within(1).f1, "Hausdorff 95 %, px": borders.hausdorff(),
        "clDice": objects.centre_lines(pred, TRUTH).cl_dice,
        "F1 of the objects": match.f1, "panoptic quality": match.panoptic_quality,
        "ARAND": parts.arand, "VOI split, bits": parts.voi_split, "VOI merge, bits": parts.voi_merge,
        **{kind: getattr(counts, kind) for kind in ("merges", "splits", "spurious", "missed")},
        "β0 error": counts.beta0_error, "β1 error": counts.beta1_error,
    }  # fmt: skip


def with_map(loss: Loss, array: NDArray[np.floating]) -> Loss:
    """The loss with a map (H, W) made once for the mask, as a data set would hand it over."""
    return lambda logits, target: loss(logits, target, torch.from_numpy(array).float().expand_as(target))


def bench_losses() -> dict[str, Loss]:
    """The losses on the bench, by name; add one of your own to see what it cares for."""
    depth = with_map(losses.boundary_loss, boundary.signed_distance(TRUTH)[1])
    centre_line = partial(losses.soft_cldice_loss, iterations=8)  # half the width of the closed ring
    border, topology = losses.BoundaryWeightedLoss(), partial(losses.TopologyLoss, strength=STRENGTH)
    return {
        "cross-entropy (CE)": cross_entropy, "class-weighted CE": balanced(float(TRUTH.mean())),
        "focal": losses.focal_loss, "Dice": losses.dice_loss, "Tversky": losses.tversky_loss,
        "border, stressed": with_map(border, NEAR), "border, forgiven": with_map(border, FORGIVING),
        "U-Net's gap weights": with_map(border, GAPS),
        "CE + Kervadec": losses.WeightedSum((1.0, cross_entropy), (0.1, depth)),
        "CE + soft-clDice": losses.WeightedSum((1.0, cross_entropy), (0.5, centre_line)),
        "topology": TOPOLOGY, "topology, strict": topology(strict=True), "topology, margin 1": topology(margin=1.0),
        "border + topology": with_map(TOPOLOGY, NEAR),
    }  # fmt: skip


def as_logits(*maps: defects.Map) -> Tensor:
    """Predictions (H, W) as logits (B, 1, H, W): +2 on objects, −2 outside."""
    return torch.from_numpy(4.0 * np.stack(maps) - 2).float()[:, None]


def selectivity(loss: Loss, pred: defects.Map) -> float:
    """Cost of a wrong pixel, (loss − loss of the truth) / number of wrong pixels, over that of the control's."""
    costs = []
    for wrong in (pred, defects.control_for(pred)):
        above = loss(as_logits(wrong), TARGET) - loss(as_logits(TRUTH), TARGET)
        costs.append(above.item() / np.count_nonzero(wrong != TRUTH))
    return costs[0] / costs[1]


def repair(loss: Loss, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Down the gradient on free logits, from `STARTS`, in steps of length ½.

    Per picture: steps until no region is critical, and until neutral pixels are right (or ∞); right pixels harmed.
    """
    logits, steps_taken = as_logits(*STARTS).requires_grad_(), []
    for _ in range(steps + 1):
        steps_taken.append(logits.detach()[:, 0].numpy() > 0)
        (slope,) = torch.autograd.grad(loss(logits, TARGET.expand(len(logits), -1, -1)), logits)
        logits.data -= 0.5 * F.normalize(slope.flatten(1)).view_as(slope)
    masks = np.stack(steps_taken)  # (steps + 1, B, H, W)
    truths = np.broadcast_to(TRUTH, masks.shape).reshape(-1, *TRUTH.shape)
    critical = critical_regions(masks.reshape(truths.shape), truths, strict=True).counts().sum(axis=(1, 2))
    right = masks == (TRUTH > 0)
    done = critical.reshape(masks.shape[:2]) == 0, right[:, :, NEUTRAL].all(axis=2)
    topology, neutral = (np.where(ok.any(axis=0), ok.argmax(axis=0), np.inf) for ok in done)
    return topology, neutral, int((right[0] & ~right).sum(axis=(2, 3)).max())
