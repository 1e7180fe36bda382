"""Scores of probabilities that no threshold spoils: the precision-recall curve, MaxF and average precision.

Pixels of all images are ranked together by the probability of class 1, and every threshold that changes something is
tried.  The threshold of MaxF is chosen on the pixels that are judged: a best case, and the rule of the KITTI road
benchmark (Fritsch, Kühnl and Geiger, 2013, doi:10.1109/ITSC.2013.6728473).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from checks import IGNORE_INDEX, InputError


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of "probability ≥ threshold", one entry a threshold, from the highest threshold down."""

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """2·P·R / (P + R) at each threshold."""
        added = self.precision + self.recall
        return 2 * self.precision * self.recall / np.where(added > 0, added, 1)

    @property
    def best(self) -> int:
        """The entry of the highest F1."""
        return int(self.f1.argmax())

    @property
    def max_f(self) -> float:
        """MaxF: the highest F1 of all thresholds."""
        return float(self.f1[self.best])

    @property
    def average_precision(self) -> float:
        """Area below the curve as a sum of steps, Σ (R_n − R_{n−1}) · P_n."""
        return float((np.diff(self.recall, prepend=0) * self.precision).sum())

    @property
    def average_precision_11(self) -> float:
        """Mean over the recalls 0, 0.1 … 1 of the best precision at this recall or above: KITTI's and PASCAL's AP."""
        from_here_on = np.maximum.accumulate(self.precision[::-1])[::-1]
        entries = np.searchsorted(self.recall, np.linspace(0, 1, 11) - 1e-12)
        return float(from_here_on[entries].mean())


def precision_recall(probs: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> PrecisionRecall:
    """The curve over all pixels of all images: `probs` (H, W) of class 1, `labels` (H, W) of 0, 1 and 255 (ignored).

    Raises:
        InputError: if shapes differ, a probability is not finite, a label is something else, or none is 1.

    >>> curve = precision_recall([np.array([[0.9, 0.8, 0.3, 0.1]])], [np.array([[1, 0, 1, 0]])])
    >>> [round(float(p), 2) for p in curve.precision], [float(r) for r in curve.recall], curve.max_f
    ([1.0, 0.5, 0.67, 0.5], [0.5, 0.5, 1.0, 1.0], 0.8)
    """
    shapes = [[np.shape(x) for x in arrays] for arrays in (probs, labels)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise InputError(
            f"precision_recall: {len(shapes[0])} probs of the shapes {shapes[0][:4]}, "
            f"{len(shapes[1])} labels of the shapes {shapes[1][:4]}.\n"
            "Expected at least one image, and for each image one shape (H, W) of both."
        )
    score, label = (np.concatenate([np.ravel(x) for x in arrays]) for arrays in (probs, labels))
    score, label = score[label != IGNORE_INDEX].astype(np.float64), label[label != IGNORE_INDEX]
    if not np.isfinite(score).all() or not np.isin(label, (0, 1)).all() or not (label == 1).any():
        raise InputError(
            "precision_recall: expected finite probabilities, labels of 0, 1 and 255, and at least one pixel of 1."
        )
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(label[order])
    last = np.flatnonzero(np.diff(score, append=-np.inf))  # equal probabilities pass a threshold together
    return PrecisionRecall(score[last], hits[last] / (last + 1), hits[last] / hits[-1])
