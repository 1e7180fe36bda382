"""Our metrics beside those of MONAI, scikit-image and torchmetrics: same numbers?  How fast?

Each metric is computed for every image of a realistic batch.  All take turns in one run; times are medians for one
image, values are means over the images.  Needs an environment with monai, torchmetrics, scikit-image and torch.

    python3 benchmarks/metrics_speed.py --size 8x256
    python3 benchmarks/metrics_speed.py --size 2x256 --repetitions 1 --slow   # also what takes seconds an image
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import torch
from batches import add_device, common_arguments, describe, interleaved, machine, print_table, realistic_batch
from skimage.measure import euler_number, label
from skimage.metrics import adapted_rand_error, variation_of_information
from skimage.morphology import skeletonize

from checks import IGNORE_INDEX
from geometry.objects import (
    boundary_distances,
    centre_lines,
    class_objects,
    match_objects,
    overlaps,
    partition,
    topology_counts,
)
from metrics import confusion_matrix

warnings.filterwarnings("ignore")  # the peers speak of deprecations when they are imported
from monai.metrics import compute_hausdorff_distance, compute_panoptic_quality, compute_surface_dice  # noqa: E402
from torchmetrics.functional.classification import multiclass_confusion_matrix  # noqa: E402
from torchmetrics.functional.detection import panoptic_quality  # noqa: E402
from torchmetrics.functional.segmentation import hausdorff_distance  # noqa: E402

TOLERANCE = 2.0
Metric = Callable[[np.ndarray, np.ndarray], Sequence[float]]


def our_boundary(pred: np.ndarray, target: np.ndarray) -> list[float]:
    distances = boundary_distances(pred, target)
    return [distances.within(TOLERANCE).surface_dice, distances.hausdorff(95), distances.hausdorff(100)]


def monai_surface_dice(pred: np.ndarray, target: np.ndarray, subvoxels: bool) -> list[float]:
    return [compute_surface_dice(_one_hot(pred), _one_hot(target), [TOLERANCE], use_subvoxels=subvoxels).item()]


def monai_hausdorff(pred: np.ndarray, target: np.ndarray) -> list[float]:
    return [compute_hausdorff_distance(_one_hot(pred), _one_hot(target), percentile=95).item()]


def torchmetrics_hausdorff(pred: np.ndarray, target: np.ndarray) -> list[float]:
    maps = (torch.from_numpy(labels)[None] for labels in (pred, target))
    return [hausdorff_distance(*maps, num_classes=2, input_format="index").item()]


def our_topology(pred: np.ndarray, target: np.ndarray) -> list[float]:
    counts = topology_counts(pred, target)
    return [counts.beta0_error, counts.beta1_error]


def scikit_topology(pred: np.ndarray, target: np.ndarray) -> list[float]:
    """|β0(P) − β0(G)| and the same of β1: with 8-connected objects, β1 = β0 − the Euler number."""
    objects = [label(labels, connectivity=2, return_num=True)[1] for labels in (pred, target)]
    holes = [n - euler_number(labels, connectivity=2) for n, labels in zip(objects, (pred, target))]
    return [abs(objects[0] - objects[1]), abs(holes[0] - holes[1])]


def our_centre_lines(pred: np.ndarray, target: np.ndarray) -> list[float]:
    return [centre_lines(pred, target).cl_dice]


def plain_centre_lines(pred: np.ndarray, target: np.ndarray) -> list[float]:
    """The formula of the paper, written with scikit-image's skeleton."""
    of_pred, of_target = skeletonize(pred > 0), skeletonize(target > 0)
    precision, sensitivity = of_pred[target > 0].sum() / of_pred.sum(), of_target[pred > 0].sum() / of_target.sum()
    return [2 * precision * sensitivity / (precision + sensitivity)]


def our_overlaps(pred: np.ndarray, target: np.ndarray) -> list[float]:
    """All three at once from one table, on instance maps."""
    table = overlaps(pred, target)
    parts = partition(table)
    return [parts.arand, parts.voi_split, parts.voi_merge, match_objects(table).panoptic_quality]


def scikit_arand(pred: np.ndarray, target: np.ndarray) -> list[float]:
    return [adapted_rand_error(target, pred)[0]]


def scikit_voi(pred: np.ndarray, target: np.ndarray) -> list[float]:
    """Returned as H(prediction | truth), H(truth | prediction): splits, then merges."""
    return list(variation_of_information(target, pred, ignore_labels=(0,)))


def monai_panoptic(pred: np.ndarray, target: np.ndarray) -> list[float]:
    return [compute_panoptic_quality(torch.from_numpy(pred), torch.from_numpy(target)).item()]


def torchmetrics_panoptic(pred: np.ndarray, target: np.ndarray) -> list[float]:
    """One "thing", the cells, and one "stuff", the background; the score of the cells."""
    pairs = (torch.from_numpy(np.stack([np.minimum(labels, 1), labels], axis=-1))[None] for labels in (pred, target))
    return [panoptic_quality(*pairs, things={1}, stuffs={0}, return_per_class=True)[0, 0].item()]


def compare_confusion(size: tuple[int, int], classes: int, device: str, repetitions: int, clock: str) -> list[str]:
    """One row: the confusion matrix of a batch of logits by both, after a look whether they are equal."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size[0], classes, size[1], size[1], generator=generator).to(device)
    target = torch.randint(0, classes, (size[0], size[1], size[1]), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.05] = IGNORE_INDEX
    target = target.to(device)
    settings = {"num_classes": classes, "ignore_index": IGNORE_INDEX}
    works = {
        "ours": lambda: confusion_matrix(logits, target),
        "peer": lambda: multiclass_confusion_matrix(logits, target, **settings),
    }
    equal = bool((works["ours"]() == works["peer"]()).all())
    spent = interleaved(works, repetitions, clock, twice=True)
    ratio = f"{spent['peer'] / spent['ours']:.1f}"
    return [f"{classes} classes, {device}", f"{spent['ours']:.2f}", f"{spent['peer']:.2f}", ratio, str(equal)]


def _one_hot(labels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([labels == 0, labels == 1]))[None]


MASK_METRICS: dict[str, Metric] = {
    "**ours**: NSD, HD95, HD": our_boundary,
    "MONAI: NSD, border of pixels": functools.partial(monai_surface_dice, subvoxels=False),
    "MONAI: NSD, border of subvoxels": functools.partial(monai_surface_dice, subvoxels=True),
    "MONAI: HD95": monai_hausdorff,
    "**ours**: errors of β0, β1 (and 8 kinds of errors)": our_topology,
    "scikit-image: label and euler_number": scikit_topology,
    "**ours**: clDice": our_centre_lines,
    "clDice by the formula, scikit-image": plain_centre_lines,
}
SLOW: dict[str, Metric] = {"torchmetrics: HD": torchmetrics_hausdorff}
INSTANCE_METRICS: dict[str, Metric] = {
    "**ours**: ARAND, VOI split, VOI merge, PQ": our_overlaps,
    "scikit-image: ARAND": scikit_arand,
    "scikit-image: VOI split, VOI merge": scikit_voi,
    "MONAI: PQ": monai_panoptic,
    "torchmetrics: PQ": torchmetrics_panoptic,
}


def main() -> None:
    parser = add_device(common_arguments(__doc__))
    parser.add_argument("--slow", action="store_true", help="also what takes seconds an image")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    packages = ", ".join(f"{name} {version(name)}" for name in ("monai", "torchmetrics", "scikit-image"))
    print(f"{machine()}, {packages}\n")

    logits, target = realistic_batch(*arguments.size)
    print(f"{arguments.size[0]} × {arguments.size[1]}², {describe(logits, target)}.\n")
    masks = list(zip(logits.argmax(1).numpy(), target.numpy()))
    instances = [class_objects(*pair) for pair in masks]
    chosen = MASK_METRICS | (SLOW if arguments.slow else {})
    metrics = {name: (metric, masks) for name, metric in chosen.items()}
    metrics |= {name: (metric, instances) for name, metric in INSTANCE_METRICS.items()}
    works = {name: functools.partial(_for_each, metric, pairs) for name, (metric, pairs) in metrics.items()}
    spent = interleaved(works, arguments.repetitions, arguments.clock)
    rows = [
        [name, f"{spent[name] / len(masks):.2f}", ", ".join(f"{value:.6g}" for value in np.mean(work(), axis=0))]
        for name, work in works.items()
    ]
    print_table(["metric", "ms an image", "values, mean of all images"], rows)
    rows = [
        compare_confusion(arguments.size, classes, arguments.device, arguments.repetitions, arguments.clock)
        for classes in (2, 5, 21)
    ]
    print_table(["confusion matrix of a batch of logits", "ours, ms", "torchmetrics, ms", "÷ ours", "equal"], rows)


def _for_each(metric: Metric, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[Sequence[float]]:
    return [metric(*pair) for pair in pairs]


if __name__ == "__main__":
    main()
