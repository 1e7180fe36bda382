"""All scores of a set of predictions in one row, and the threshold that a set of validation images asks for.

Probabilities and labels are lists of arrays (H, W), one an image: class 1 against class 0, 255 is ignored.  Objects are
8-connected, background and holes 4-connected.  Counts of all images are added before any ratio is taken.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

import metrics
from geometry.boundary_metrics import boundary_distances
from geometry.instance_metrics import match_objects, partition
from geometry.objects import class_objects, overlaps
from geometry.structure_metrics import TopologyCounts, centre_lines, topology_counts

THRESHOLDS = tuple(k / 20 for k in range(1, 20))
Maps = Sequence[np.ndarray]
Row = dict[str, Any]
T = TypeVar("T")


def choose_threshold(probs: Maps, labels: Maps) -> tuple[float, list[Row]]:
    """The threshold with the fewest errors of objects and holes, in a tie the one next to 0.5; and a row for each.

    >>> probs, label = np.array([[0.9, 0.6, 0.9]]), np.array([[1, 0, 1]])  # a bridge that 0.6 and more removes
    >>> best, rows = choose_threshold([probs], [label])
    >>> best, len(rows)
    (0.6, 19)
    """
    rows = []
    for threshold in THRESHOLDS:
        guesses = [p > threshold for p in probs]
        rows.append({"threshold": threshold, "dice": dice(guesses, labels)} | topology_row(guesses, labels))
    best = min(rows, key=lambda row: (row["all_errors"], abs(row["threshold"] - 0.5)))
    return best["threshold"], rows


def judge(guesses: Maps, labels: Maps, object_class: int = 1) -> Row:
    """All scores of boolean maps; `object_class` is the class whose components are the objects of instance metrics.

    `hd95` is the median over the images, and counts of topology are per image; all others are of the whole set.
    """
    pairs = list(zip(guesses, labels))
    borders = [boundary_distances(guess, label, of_class=1) for guess, label in pairs]
    connectivity = 8 if object_class == 1 else 4
    objects = [class_objects(*_as_labels(*pair), object_class, connectivity=connectivity) for pair in pairs]
    tables = [overlaps(*pair) for pair in objects]
    parts, matches = total(map(partition, tables)), total(map(match_objects, tables))
    row = {"dice": dice(guesses, labels), "mean_iou": metrics.mean_iou(_confusion(guesses, labels))}
    row |= {
        "boundary_f1": total(d.within(2) for d in borders).f1,
        "hd95": np.median([d.hausdorff(95) for d in borders]),
    }
    row |= {"cl_dice": total(centre_lines(guess, label) for guess, label in pairs).cl_dice}
    row |= {"arand": parts.arand, "voi_split": parts.voi_split, "voi_merge": parts.voi_merge}
    row |= {"object_f1": matches.f1, "panoptic_quality": matches.panoptic_quality}
    return row | topology_row(guesses, labels)


def dice(guesses: Maps, labels: Maps) -> float:
    """Dice of class 1 over all pixels of all images, which is its F1; NaN if it occurs nowhere."""
    return float(metrics.f1_per_class(_confusion(guesses, labels))[1])


def topology_row(guesses: Maps, labels: Maps) -> Row:
    """All counts of topology, per image; `all_errors` are those of objects and of holes."""
    counts: TopologyCounts = total(topology_counts(guess, label) for guess, label in zip(guesses, labels))
    return {"all_errors": (counts.errors + counts.hole_errors) / counts.images} | counts.per_image()


def total(counts: Iterable[T]) -> T:
    """The sum of one or more counts; unlike `sum` it has no 0 to start with."""
    return functools.reduce(operator.add, counts)


def _confusion(guesses: Maps, labels: Maps) -> torch.Tensor:
    pairs = (map(torch.from_numpy, _as_labels(*pair)) for pair in zip(guesses, labels))
    return total(metrics.confusion_matrix(guess, label, 2) for guess, label in pairs)


def _as_labels(guess: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return guess.astype(np.int64), label.astype(np.int64)
