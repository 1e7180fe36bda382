"""Which loss keeps objects whole and apart?  The study of section A1.3e, resumable, a part at a time.

    python3 run.py study                                          # all that is not done yet
    python3 run.py study --sets nuclei --losses ce topology --seeds 0 1

A run is one network: a data set, a loss, a seed.  With one seed all losses share the first weights, crops, steps and
learning rate.  The test images are judged at 0.5 and at the threshold that is best on the validation images; as they
are and with the mean prediction for their 4 reflections (8 with transposition); and with and without small components
and holes, under sizes that are best on the validation images too.  Finished runs are kept in `runs/study`, their rows
in `figures`.  The sets `mortar…` are the walls at full resolution; each changes one thing of the first.
"""

import functools
import json
import re
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn

import data
import plots
import transforms
from checks import InputError
from experiments.statistics import collect, provenance, select
from geometry.objects import choose_threshold, dice, judge, topology_row
from geometry.topology import KINDS, CriticalRegions, critical_regions
from imagesets.changes import WeightMap, separate_cells
from imagesets.files import Sample
from imagesets.yeast import write_yeast
from learner import Learner, set_seed
from losses import TopologyLoss, WeightedSum, cross_entropy, cross_entropy_dice, dice_loss, soft_cldice_loss
from training.checkpoint import identity, replacing
from unet import UNet

RUNS, FIGURES, DATA = Path("runs/study"), Path("figures"), Path("data")
RULES = ("fixed", "validation")  # the threshold 0.5, or the one chosen; with "+cleaned" without small components
SIZES = (0, 30, 60, 100, 150, 250, 400, 700)  # pixels: what is smaller is removed, or filled
TABLES = {"rows": ("study", 5), "images": ("study_images", 6), "thresholds": ("study_thresholds", 5)}
CURVE = ("threshold", "dice", "all_errors", "merges", "splits", "beta0_error", "beta1_error")


def parts_of_yeast(sample: Sample) -> Sample:
    """Of the 72 numbered images the first 24 train, the next 8 validate, the others test."""
    number = int(sample.name.rpartition("_")[2])
    return replace(sample, part="train" if number < 24 else "val" if number < 32 else "test")


def ten_walls(sample: Sample) -> Sample | None:
    """Of the training images those ten stay that the authors use (their `splits_small.yaml`)."""
    ten = ("001", "009", "011", "024", "036", "041", "043", "045", "048", "049")
    return sample if sample.part != "train" or sample.name in ten else None


LOSSES = {
    "ce": "cross-entropy",
    "weighted_ce": "cross-entropy, both classes of equal weight",
    "border": "cross-entropy, weights by the distance to the border (b), stressed: w0 = 5, σ = 2",
    "forgive": "the same, forgiven: w0 = −1, σ = 1",
    "gaps": "cross-entropy, the U-Net paper's weights in the gaps between cells (b): w0 = 10, σ = 5",
    "ce_dice": "cross-entropy + Dice",
    "cldice": "cross-entropy + Dice + soft-clDice",
    "topology": "cross-entropy + Dice + topology (c)",
    "both": "the same, its cross-entropy with the weights of gaps, for walls of border (b and c)",
    "topology_cldice": "cross-entropy + Dice + topology (c) + soft-clDice of 3 iterations / 2",
}
# The weights of those with the distance to borders in them, made once for each mask and kept in the data set
MAPS = {"border": WeightMap(5, 2), "forgive": WeightMap(-1, 1), "gaps": WeightMap(10, 5, separation=True)}


@dataclass(frozen=True)
class StudySet:
    """A data set and how every network is trained on it; `shrink` is how many pixels become one, along each axis."""

    source: str
    object_class: int  # whose components are told apart in instance metrics: cells, or the bricks between mortar
    seeds: int
    repeats: int  # crops of each image in an epoch
    epochs: int
    changes: tuple[Callable[[Sample], Sample | None], ...] = ()
    widths: tuple[int, ...] = (8, 16, 32, 64)
    shrink: int = 1
    stem: int = 1  # of the U-Net
    zoom: float = 0.0  # of half of each batch: ± its logarithm, with turns of ± 20 degrees
    views: tuple[int, ...] = (1, 4)
    crop: int = 128
    batch: int = 16
    lr: float = 5e-3
    thickness: int = 12  # steps of the soft skeleton; what is more than twice as thick loses its centre line
    strength: float = 0.1  # λ of the topology loss, chosen on the validation images
    both: str = "gaps"  # the weights (of `MAPS`) that "both" joins with the topology loss
    losses: tuple[str, ...] = tuple(LOSSES)[:-1]


SETS = {
    "yeast": StudySet("study_yeast", 1, seeds=5, repeats=18, epochs=20, changes=(parts_of_yeast, separate_cells)),
    "nuclei": StudySet("dsb2018", 1, seeds=3, repeats=2, epochs=16, changes=(separate_cells,)),
    "walls": StudySet(
        "topomortar", 0, seeds=3, repeats=24, epochs=8, widths=(8, 16, 32, 64, 128), shrink=2, crop=256, batch=8,
        thickness=10, strength=0.3, both="border",
        losses=("ce", "weighted_ce", "border", "ce_dice", "cldice", "topology", "both"),
    ),
    # 1 278 steps: a 47th of the pixels of the published trainings
    "mortar": StudySet(
        "topomortar", 0, seeds=3, repeats=34, epochs=6, widths=(16, 32, 48, 64, 64), stem=2, zoom=0.336, crop=256,
        batch=8, thickness=3, strength=0.3, views=(1, 4, 8),
        losses=("topology_cldice", "ce_dice", "cldice", "topology"),
    ),
}  # fmt: skip
SETS["walls10"] = replace(SETS["walls"], changes=(ten_walls,), repeats=80, epochs=6)
CHANGES: dict[str, dict[str, Any]] = {  # of "mortar", one at a time
    "mortar_narrow": {"widths": (8, 16, 32, 64, 64)}, "mortar_still": {"zoom": 0.0}, "mortar_long": {"repeats": 68},
}  # fmt: skip
SETS |= {name: replace(SETS["mortar"], losses=("topology_cldice",), **change) for name, change in CHANGES.items()}


def build(study_set: StudySet, weights: WeightMap | None = None) -> Path:
    """The normalised .hdf5 of a study set, with these weights in it."""
    source: str | Path = study_set.source
    if source == "study_yeast":  # more test images than the 18 of the course
        source = write_yeast(DATA / source, num_images=72, seed=1)
    return data.prepare(source, DATA, changes=study_set.changes + ((weights,) if weights else ()))


def augment(*tensors: torch.Tensor, generator: torch.Generator, zoom: float = 0.0) -> tuple[torch.Tensor, ...]:
    """The eight symmetries, brightness and contrast, the hue of colour images; half of the batch turned and zoomed."""
    if zoom:
        half, rest = zip(*(tensor.tensor_split([len(tensor) // 2]) for tensor in tensors))
        moved = transforms.random_affine(*half, generator=generator, zoom=zoom, stretch=0, shift=0.1)
        tensors = tuple(map(torch.cat, zip(moved, rest)))
    images, *others = transforms.random_symmetries(*tensors, generator=generator)
    if images.shape[1] == 3:
        images = transforms.random_hue(images, generator=generator)
    return transforms.random_intensity(images, gain=0.3, offset=0.3, generator=generator), *others


def make_loss(name: str, study_set: StudySet, path: Path, steps: int) -> Callable[..., torch.Tensor]:
    """The loss of a name of `LOSSES`; "topology:3" and "both:3" have λ = 3, which rises from 0 over all steps."""
    if name not in LOSSES and not re.fullmatch(r"(topology|both):\d+(\.\d+)?", name):
        raise InputError(f"{name!r} is no loss of the study: {', '.join(LOSSES)}, topology:λ and both:λ (a number).")
    kind, _, strength = name.partition(":")
    if kind in ("topology", "both", "topology_cldice"):
        topology = TopologyLoss(float(strength or study_set.strength), margin=1.0, warm_up=steps)
        terms = [(0.5, functools.partial(soft_cldice_loss, iterations=3))] * (kind == "topology_cldice")
        return WeightedSum((1.0, topology), (1.0, dice_loss), *terms)
    if kind == "weighted_ce":
        labels = torch.from_numpy(np.concatenate([label.ravel() for label in labels_of(path, "train")]))
        weights = len(labels) / (2 * torch.bincount(labels, minlength=2)[:2])  # both classes get half of the loss
        return functools.partial(cross_entropy, class_weight=weights)
    if kind == "ce_dice":
        return cross_entropy_dice
    if kind == "cldice":
        cldice = functools.partial(soft_cldice_loss, iterations=study_set.thickness)
        return WeightedSum((1.0, cross_entropy_dice), (1.0, cldice))
    return cross_entropy  # weighted, where the data hold weights


def make_learner(set_name: str, loss_name: str, seed: int) -> tuple[Learner, Path]:
    """The learner of one run, not trained yet, and the file of its data."""
    study_set, kind = SETS[set_name], loss_name.partition(":")[0]
    weights = MAPS.get(study_set.both if kind == "both" else kind)  # by the distance to borders
    path, maps = build(study_set, weights), ("weights",) if weights else ()
    dataset = data.SegmentationDataset(path, "train", crop=study_set.crop, maps=maps, seed=seed)
    loader = data.make_loader(dataset, study_set.batch, shuffle=True, seed=seed, repeats=study_set.repeats)
    loss = make_loss(loss_name, study_set, path, study_set.epochs * len(loader))
    set_seed(seed)
    model: nn.Module = UNet(dataset.channels, 2, study_set.widths, stem=study_set.stem)
    if (s := study_set.shrink) > 1:
        model = nn.Sequential(nn.AvgPool2d(s), model, nn.Upsample(scale_factor=s, mode="bilinear"))
    learner = Learner(
        model, loss, loader, lr=study_set.lr, augment=functools.partial(augment, zoom=study_set.zoom), seed=seed,
        precision="bfloat16",  # one for all losses
        folder=file_of(set_name, loss_name, seed).with_suffix(""),
    )  # fmt: skip
    return learner, path


def file_of(set_name: str, loss_name: str, seed: int) -> Path:
    """Where the results of a run are kept; its checkpoints lie in the folder of the same name."""
    return RUNS / set_name / loss_name.replace(":", "_") / f"{seed}.json"


def predict(learner: Learner, path: Path, part: str, views: int) -> list[np.ndarray]:
    """Probability of class 1 of each image of a part; with 4 views the mean over its reflections, with 8 transposed."""
    dataset = data.SegmentationDataset(path, part)
    images = (dataset[i][0][None] for i in range(len(dataset)))
    seen = ([image] if views < 8 else [image, image.mT] for image in images)
    probs = ([learner.predict(view, flips=views > 1)[0, 1].numpy() for view in of_one] for of_one in seen)
    return [np.mean([first, *(second.T for second in others)], axis=0) for first, *others in probs]


def labels_of(path: Path, part: str) -> list[np.ndarray]:
    """The labels of all images of a part."""
    images = data.SegmentationDataset(path, part)
    return [images[i][1].numpy() for i in range(len(images))]


def cleaned(mask: np.ndarray, pieces: int, holes: int) -> np.ndarray:
    """A boolean mask without its components of fewer than `pieces` pixels, its holes of fewer than `holes` filled."""
    for value, size, neighbours in ((True, pieces, np.ones((3, 3))), (False, holes, None)):
        labels, _ = ndimage.label(mask == value, neighbours)
        small = np.bincount(labels.ravel()) < size
        small[0] = False
        mask = mask ^ small[labels]
    return mask


def choose_sizes(guesses: list[np.ndarray], labels: list[np.ndarray]) -> tuple[int, int]:
    """The sizes for `cleaned` with the fewest errors of topology, the smaller in a tie; pieces first."""

    def errors(pieces: int, holes: int) -> float:
        return topology_row([cleaned(guess, pieces, holes) for guess in guesses], labels)["all_errors"]

    pieces = min(SIZES, key=lambda size: errors(size, 0))
    return pieces, min(SIZES, key=lambda size: errors(pieces, size))


def _by_image(names: list[str], guesses: list[np.ndarray], truth: list[np.ndarray]) -> Iterator[dict[str, Any]]:
    """The scores of `CURVE` of each image."""
    for name, guess, label in zip(names, guesses, truth):
        scores = {"dice": dice([guess], [label])} | topology_row([guess], [label])
        yield {"image": name} | {column: scores[column] for column in CURVE[1:]}


def run_one(set_name: str, loss_name: str, seed: int) -> None:
    """Train, choose threshold and sizes, judge, and keep the rows, unless they are there already."""
    study_set, file = SETS[set_name], file_of(set_name, loss_name, seed)
    learner, path = make_learner(set_name, loss_name, seed)
    judging = [predict, choose_threshold, choose_sizes, cleaned, judge, dice, topology_row]
    settings = learner.settings() | identity(epochs=study_set.epochs, views=study_set.views, judged=judging)
    if file.exists() and json.loads(file.read_text())["settings"] == settings:
        return
    learner.fit(study_set.epochs)
    images = data.SegmentationDataset(path, "test").names
    truth, known = labels_of(path, "test"), labels_of(path, "val")
    seconds, steps = sum(row["seconds"] for row in learner.history), len(learner.history) * len(learner.train_loader)
    cost = {"steps": steps, "seconds": seconds, "precision": learner.number_format} | provenance()
    done: dict[str, Any] = {"settings": settings, "rows": [], "images": [], "thresholds": []}
    for views in study_set.views:
        key = {"set": set_name, "loss": loss_name, "seed": seed, "views": views}
        seen, probs = (predict(learner, path, part, views) for part in ("val", "test"))
        best, curve = choose_threshold(seen, known)
        done["thresholds"] += [key | {name: row[name] for name in CURVE} for row in curve]
        for rule, threshold in zip(RULES, (0.5, best)):
            guesses, chosen = [p > threshold for p in probs], choose_sizes([p > threshold for p in seen], known)
            for name, sizes in ((rule, (0, 0)), (f"{rule}+cleaned", chosen)):
                clean = [cleaned(guess, *sizes) for guess in guesses]
                scores = judge(clean, truth, study_set.object_class)
                del scores["hd95_images"]  # all of them: no test image of the study is without a border
                tried = {"rule": name, "threshold": threshold} | dict(zip(("pieces", "holes_filled"), sizes))
                done["rows"].append(key | tried | scores | cost)
                if rule == "validation":
                    done["images"] += [key | {"rule": name} | row for row in _by_image(images, clean, truth)]
    with replacing(file) as part:
        part.write_text(json.dumps(done), encoding="utf-8")


def draw_examples(set_name: str, losses: tuple[str, str], seed: int = 0, side: int = 256) -> None:
    """Three test images, cropped: the second loss lowered the errors of the first most, like the median, least.

    Both at their own threshold; the runs must have been done here.
    """
    shown: dict[str, list[CriticalRegions]] = {}
    for loss in losses:
        learner, path = make_learner(set_name, loss, seed)
        learner.fit(SETS[set_name].epochs)  # a finished run is only read
        run = json.loads(file_of(set_name, loss, seed).read_text())
        threshold = select(run["rows"], views=1, rule="validation")[0]["threshold"]
        images = data.SegmentationDataset(path, "test")
        labels = [label[:side, :side] for label in labels_of(path, "test")]
        guesses = [probs[:side, :side] > threshold for probs in predict(learner, path, "test", views=1)]
        shown[loss] = [critical_regions(guess[None], label[None]) for guess, label in zip(guesses, labels)]
    first, second = (np.array([found.severity.sum() for found in shown[loss]]) for loss in losses)
    order = np.argsort(second - first, kind="stable")
    plots.use_style()
    axes = plots.grid(3, 3, size=2.6)
    for row, place, index in zip(axes, ("most", "like the median", "least"), order[[0, len(order) // 2, -1]]):
        photo = plots.photo(images[index][0].numpy(), images)[:, :side, :side]
        plots.draw_contours(plots.show_image(row[0], photo, f"lowered {place}"), labels[index], plots.SKY, width=0.7)
        for ax, loss in zip(row[1:], losses):
            kinds = {kind: shown[loss][index].mask([kind])[0] for kind in KINDS}
            text = f"{loss}: {shown[loss][index].severity.sum()} errors"
            plots.show_regions(ax, photo, kinds, text)
    plots.legend(axes[0, 0], plots.REGION_COLOURS, plots.LABEL_LINE)
    plots.save(FIGURES / f"study_{set_name}.png")


def main(arguments: list[str]) -> None:
    """Do the runs that the command line asks for and that are not done yet."""
    parser = ArgumentParser("run.py study", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--losses", nargs="+", metavar="NAME", help=f"default: those of the set; {', '.join(LOSSES)}")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: as many as the set is worth")
    parser.add_argument("--draw", nargs=2, metavar="LOSS", help="draw examples of two losses whose runs are here")
    options = parser.parse_args(arguments)
    for set_name in options.sets:
        for seed in options.seeds or range(SETS[set_name].seeds):
            for loss_name in options.losses or SETS[set_name].losses:
                run_one(set_name, loss_name, seed)
                collect(RUNS, FIGURES, TABLES)
        if options.draw:
            draw_examples(set_name, tuple(options.draw))
