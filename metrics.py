"""Metrics for semantic segmentation: what the reader is told about the result.

All pixels of a data set are counted into one confusion matrix, and every score is read off it: the batch size cannot
matter.  A class without pixels in truth and prediction has no score (NaN), in no mean; one in only one of them has 0.
"""

import warnings

import torch
from torch import Tensor

from checks import IGNORE_INDEX, InputError, check_labels, check_pair

NAN = 2**40  # more than pixels can be counted


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int | None = None, *, threshold: float | None = None
) -> Tensor:
    """Count the pixels of true class i that were predicted as class j.

    `prediction` is logits or probabilities (B, C, H, W) float, or labels (B, H, W) integer together with the number K
    of classes (with logits K = C, and 2 where C = 1); `target` is (B, H, W) integer, `IGNORE_INDEX` is not counted.
    Where C = 1, class 1 is what exceeds the `threshold`, 0 for logits and 0.5 for probabilities; without it, numbers
    that all lie in 0 … 1 are refused, as they may be either.
    Returns int64 (K, K), rows = truth, columns = prediction; raises `InputError` for what does not belong together, and
    for NaN (on a GPU `scores` does, as the counts of such a batch are negative).

    >>> confusion_matrix(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]), num_classes=2).tolist()
    [[1, 1], [0, 1]]
    """
    nan = torch.zeros((), dtype=torch.bool, device=target.device)
    if prediction.is_floating_point():
        check_pair(prediction, target, labels=False)  # the counts will tell
        if prediction.shape[1] == 1 and threshold is None and prediction.numel():
            low, high = prediction.aminmax()
            if low >= 0 and high <= 1:
                advice = "give threshold=0.0 for logits, threshold=0.5 for probabilities"
                raise InputError(f"The one channel lies in {low:.3g} … {high:.3g}: {advice}.")
        nan, num_classes = prediction.sum().isnan(), max(prediction.shape[1], 2)  # true for ∞ − ∞, too
        if target.device.type == "cpu" and nan and prediction.isnan().any():
            raise InputError("The prediction holds NaN, which is no class: has the training gone wrong?")
        if prediction.shape[1] == 1:
            labels = prediction[:, 0] > (threshold or 0.0)
        else:  # the first maximum, as by `argmax`, which takes ten times as long across an outer axis
            labels = prediction[:, 1] > prediction[:, 0] if num_classes == 2 else prediction.max(dim=1).indices
    elif num_classes is None or prediction.shape != target.shape:
        shapes = f"prediction has shape {tuple(prediction.shape)}, target {tuple(target.shape)}, {num_classes=}"
        raise InputError(f"{shapes}; expected logits (B, C, H, W), or labels (B, H, W) together with num_classes.")
    else:
        labels, target = prediction.long(), target.long()  # compared with 255 as integers of one width
        if target.device.type == "cpu":
            check_labels(labels.where(target != IGNORE_INDEX, IGNORE_INDEX), num_classes)
    if target.device.type == "cpu":
        return _count(labels, target, num_classes)
    return _count_without_waiting(labels, target, num_classes) - NAN * nan


def _count(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    # A row for each value of a label: 0 … K−1, then those that must not occur, then the ignored 255.
    pairs = (target.long() * num_classes + prediction.long().clamp_max(num_classes - 1)).flatten()
    try:
        counts = torch.bincount(pairs, minlength=(IGNORE_INDEX + 1) * num_classes).view(-1, num_classes)
    except RuntimeError:  # a negative label
        check_labels(target, num_classes)
        raise
    if len(counts) > IGNORE_INDEX + 1 or counts[num_classes:IGNORE_INDEX].any():
        check_labels(target, num_classes)
    return counts[:num_classes].contiguous()


def _count_without_waiting(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The same as a product of 0 and 1, for a GPU: `bincount` would make the host wait for it."""
    classes = torch.arange(num_classes, device=target.device)[:, None]
    truth, predicted = ((labels.flatten(1)[:, None] == classes).float() for labels in (target, prediction))
    return (truth @ predicted.transpose(1, 2)).long().sum(dim=0)  # exact up to 2²⁴ pixels in an image


def accuracy(confusion: Tensor) -> float:
    """Correctly classified pixels divided by all pixels; NaN where no pixel was counted."""
    return _ratio(confusion.diagonal().sum(), confusion.sum()).item()


def iou_per_class(confusion: Tensor) -> Tensor:
    """Intersection over union (Jaccard index) TP / (TP + FP + FN) of each class, float64 (K,).

    >>> iou_per_class(torch.tensor([[3, 1], [0, 4]])).tolist()
    [0.75, 0.8]
    """
    hits, truth, predicted = _hits_truth_predicted(confusion)
    return _ratio(hits, truth + predicted - hits)


def mean_iou(confusion: Tensor) -> float:
    """IoU averaged over the classes that occur."""
    return iou_per_class(confusion).nanmean().item()


def precision_per_class(confusion: Tensor) -> Tensor:
    """TP / (TP + FP): how much of what is predicted is right, float64 (K,)."""
    hits, truth, predicted = _hits_truth_predicted(confusion)
    return _ratio(hits, predicted.where(truth == 0, predicted.clamp_min(1)))  # truth, but nothing predicted: 0


def recall_per_class(confusion: Tensor) -> Tensor:
    """TP / (TP + FN): how much of what is true was found, float64 (K,)."""
    hits, truth, predicted = _hits_truth_predicted(confusion)
    return _ratio(hits, truth.where(predicted == 0, truth.clamp_min(1)))  # prediction, but no truth: 0


def f1_per_class(confusion: Tensor) -> Tensor:
    """F1 = Dice coefficient 2·TP / (2·TP + FP + FN) of each class, float64 (K,)."""
    hits, truth, predicted = _hits_truth_predicted(confusion)
    return _ratio(2 * hits, truth + predicted)


def matthews(confusion: Tensor) -> float:
    """Matthews correlation coefficient, −1 … 1, for any number of classes; 0 for a constant prediction.

    (n·Σ TP − Σ t_k·p_k) / √((n² − Σ p_k²)·(n² − Σ t_k²)), with t_k true and p_k predicted pixels of class k; Gorodkin,
    2004 (doi:10.1016/j.compbiolchem.2004.09.006).

    >>> matthews(torch.tensor([[5, 0], [0, 3]])), matthews(torch.tensor([[5, 0], [3, 0]]))
    (1.0, 0.0)
    """
    hits, truth, predicted = _hits_truth_predicted(confusion)
    n = truth.sum()
    spread = ((n**2 - (predicted**2).sum()) * (n**2 - (truth**2).sum())).sqrt()
    if n == 0 or spread == 0:
        return 0.0 if n else float("nan")
    return ((n * hits.sum() - (truth * predicted).sum()) / spread).item()


def scores(confusion: Tensor) -> dict[str, float]:
    """All scores of a confusion matrix by name, means over the classes that occur.

    `classes` tells how many do, and `iou_k` is the IoU of class k.  Warns, and gives NaN, where no pixel was counted.

    >>> scores(torch.tensor([[3, 1], [0, 4]]))["mean_iou"]
    0.775
    """
    confusion = confusion.cpu()  # one transfer for all scores
    if (confusion < 0).any():
        raise InputError("A prediction held NaN, which is no class: has the training gone wrong?")
    if confusion.sum() == 0:
        warnings.warn("No pixel was counted: all are ignored, or the set is empty. All scores are NaN.", stacklevel=2)
    return {
        "accuracy": accuracy(confusion),
        "mean_iou": mean_iou(confusion),
        "precision": precision_per_class(confusion).nanmean().item(),
        "recall": recall_per_class(confusion).nanmean().item(),
        "f1": f1_per_class(confusion).nanmean().item(),
        "mcc": matthews(confusion),
        "classes": int(iou_per_class(confusion).isfinite().sum()),
    } | {f"iou_{k}": value for k, value in enumerate(iou_per_class(confusion).tolist())}


def _hits_truth_predicted(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts = confusion.double()
    return counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part.double() / whole.double()  # 0/0 is NaN: nothing to score
