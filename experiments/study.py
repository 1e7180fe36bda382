"""Which loss keeps objects whole and apart?  The study of section A1.3e, resumable, a part at a time.

    python3 run.py study                                          # all that is not done yet
    python3 run.py study --sets nuclei --losses ce topology --seeds 0 1

A run is one network: a data set, a loss, a seed.  With one seed all losses share the first weights, crops, steps and
learning rate.  Test images are judged at 0.5 and at a threshold, with 1, 4 and 8 views, with and without small parts;
threshold and sizes are the best on the validation images.  Finished runs are kept in `runs/study`, rows in `figures`.
"""

import re
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn

import data
from checks import InputError
from experiments.statistics import Row, collect, kept, provenance
from geometry.objects import choose_threshold, dice, judge, topology_row
from imagesets.changes import WeightMap, separate_cells
from imagesets.files import Sample
from imagesets.yeast import write_yeast
from learner import Learner
from losses import TopologyLoss, WeightedSum, cross_entropy, cross_entropy_dice, dice_loss, soft_cldice_loss
from training.checkpoint import identity
from transforms import augment
from unet import UNet

RUNS, FIGURES, DATA = Path("runs/study"), Path("figures"), Path("data")
SIZES = (0, 30, 60, 100, 150, 250, 400, 700)  # pixels: what is smaller is removed, or filled
TABLES = {"rows": ("study", 5), "images": ("study_images", 6)}
OF_IMAGE = ("dice", "all_errors", "merges", "splits", "beta0_error", "beta1_error")


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
    "topology_cldice": "cross-entropy + Dice + topology (c) + soft-clDice / 2",
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
    straight_through: bool = False  # its gradient
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
        batch=8, thickness=3, straight_through=True, strength=0.3, views=(1, 4, 8),
        losses=("topology_cldice", "ce_dice", "cldice", "topology"),
    ),
}  # fmt: skip
SETS["walls10"] = replace(SETS["walls"], changes=(ten_walls,), repeats=80, epochs=6)
_MORTAR = replace(SETS["mortar"], losses=("topology_cldice",))  # one thing is changed at a time
SETS["mortar_narrow"] = replace(_MORTAR, widths=(8, 16, 32, 64, 64))
SETS["mortar_still"] = replace(_MORTAR, zoom=0.0, losses=("topology_cldice", "topology"))
SETS["mortar_still_long"] = replace(_MORTAR, zoom=0.0, repeats=68)  # 2 550 steps
SETS["mortar_still_longer"] = replace(_MORTAR, zoom=0.0, repeats=102, losses=("topology", "ce_dice"))  # 3 828


def build(study_set: StudySet, weights: WeightMap | None = None) -> Path:
    """The normalised .hdf5 of a study set, with these weights in it."""
    source: str | Path = study_set.source
    if source == "study_yeast":  # more test images than the 18 of the course
        source = write_yeast(DATA / source, num_images=72, seed=1)
    return data.prepare(source, DATA, changes=study_set.changes + ((weights,) if weights else ()))


def unet(train: data.SegmentationDataset, shrink: int = 1, **settings: Any) -> nn.Module:
    """A U-Net with these settings, at full resolution or on averages of shrink² pixels."""
    net = UNet(train.channels, train.num_classes, **settings)
    if shrink == 1:
        return net
    return nn.Sequential(nn.AvgPool2d(shrink), net, nn.Upsample(scale_factor=shrink, mode="bilinear"))


def make_loss(name: str, study_set: StudySet, path: Path, steps: int) -> Callable[..., torch.Tensor]:
    """The loss of a name of `LOSSES`; "topology:3" and "both:3" have λ = 3, which rises from 0 over all steps."""
    if name not in LOSSES and not re.fullmatch(r"(topology|both):\d+(\.\d+)?", name):
        raise InputError(f"{name!r} is no loss of the study: {', '.join(LOSSES)}, topology:λ and both:λ (a number).")
    kind, _, strength = name.partition(":")
    cldice = partial(soft_cldice_loss, iterations=study_set.thickness, straight_through=study_set.straight_through)
    if kind in ("topology", "both", "topology_cldice"):
        topology = TopologyLoss(float(strength or study_set.strength), margin=1.0, warm_up=steps)
        return WeightedSum((1.0, topology), (1.0, dice_loss), *[(0.5, cldice)] * (kind == "topology_cldice"))
    if kind == "weighted_ce":
        labels = torch.from_numpy(np.concatenate([label.ravel() for label in labels_of(path, "train")]))
        weights = len(labels) / (2 * torch.bincount(labels, minlength=2)[:2])  # both classes get half of the loss
        return partial(cross_entropy, class_weight=weights)
    if kind == "cldice":
        return WeightedSum((1.0, cross_entropy_dice), (1.0, cldice))
    return cross_entropy_dice if kind == "ce_dice" else cross_entropy  # weighted, where the data hold weights


def make_learner(set_name: str, loss_name: str, seed: int) -> tuple[Learner, Path]:
    """The learner of one run, not trained yet, and the file of its data."""
    study_set, kind = SETS[set_name], loss_name.partition(":")[0]
    weights = MAPS.get(study_set.both if kind == "both" else kind)  # by the distance to borders
    path, maps = build(study_set, weights), ("weights",) if weights else ()
    dataset = data.SegmentationDataset(path, "train", crop=study_set.crop, maps=maps, seed=seed)
    loader = data.make_loader(dataset, study_set.batch, shuffle=True, seed=seed, repeats=study_set.repeats)
    loss = make_loss(loss_name, study_set, path, study_set.epochs * len(loader))
    torch.manual_seed(seed)
    model = unet(dataset, study_set.shrink, widths=study_set.widths, stem=study_set.stem)
    options: dict[str, Any] = {"augment": partial(augment, zoom=study_set.zoom), "precision": "bfloat16"}
    options |= {"folder": file_of(set_name, loss_name, seed).with_suffix("")}
    return Learner(model, loss, loader, lr=study_set.lr, seed=seed, **options), path


def file_of(set_name: str, loss_name: str, seed: int) -> Path:
    """Where the results of a run are kept; its checkpoints lie in the folder of the same name."""
    return RUNS / set_name / loss_name.replace(":", "_") / f"{seed}.json"


def predict(learner: Learner, path: Path, part: str, views: int) -> list[np.ndarray]:
    """Probability of class 1 of each image of a part; with 4 views the mean over its reflections, with 8 transposed."""
    images: Any = data.SegmentationDataset(path, part)
    seen = ([image] if views < 8 else [image, image.mT] for image, _ in images)
    probs = ([learner.predict(view[None], flips=views > 1)[0, 1].numpy() for view in of_one] for of_one in seen)
    return [np.mean([first, *(second.T for second in others)], axis=0) for first, *others in probs]


def labels_of(path: Path, part: str) -> list[np.ndarray]:
    """The labels of all images of a part."""
    images: Any = data.SegmentationDataset(path, part)
    return [label.numpy() for _, label in images]


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


def run_one(set_name: str, loss_name: str, seed: int) -> Row:
    """Train, choose threshold and sizes, judge, and keep the rows of `TABLES`, unless they are there already."""
    study_set, (learner, path) = SETS[set_name], make_learner(set_name, loss_name, seed)
    judging = [predict, choose_threshold, choose_sizes, cleaned, judge, dice, topology_row]
    settings = learner.settings() | identity(epochs=study_set.epochs, views=study_set.views, judged=judging)

    def judged() -> Row:
        learner.fit(study_set.epochs)
        names = data.SegmentationDataset(path, "test").names
        truth, known = labels_of(path, "test"), labels_of(path, "val")
        cost: Row = {"steps": len(learner.history) * len(learner.train_loader)}
        cost |= {"seconds": sum(row["seconds"] for row in learner.history)}
        cost |= {"precision": learner.number_format} | provenance()
        done: Row = {kind: [] for kind in TABLES}
        for views in study_set.views:
            key = {"set": set_name, "loss": loss_name, "seed": seed, "views": views}
            seen, probs = (predict(learner, path, part, views) for part in ("val", "test"))
            best = choose_threshold(seen, known)
            for rule, threshold in (("fixed", 0.5), ("validation", best)):
                guesses, chosen = [p > threshold for p in probs], choose_sizes([p > threshold for p in seen], known)
                for name, sizes in ((rule, (0, 0)), (f"{rule}+cleaned", chosen)):
                    clean = [cleaned(guess, *sizes) for guess in guesses]
                    scores = judge(clean, truth, study_set.object_class)
                    del scores["hd95_images"]  # all of them: no test image of the study is without a border
                    tried = {"rule": name, "threshold": threshold} | dict(zip(("pieces", "holes_filled"), sizes))
                    held = [cleaned(p > threshold, *sizes) for p in seen]
                    tried["val_errors"] = topology_row(held, known)["all_errors"]  # by which recipes are chosen
                    done["rows"].append(key | tried | scores | cost)
                    for image, guess, label in zip(names, clean, truth) if rule == "validation" else ():
                        scores = {"dice": dice([guess], [label])} | topology_row([guess], [label])
                        own = {column: scores[column] for column in OF_IMAGE}
                        done["images"].append(key | {"rule": name, "image": image} | own)
        return done

    return kept(file_of(set_name, loss_name, seed), settings, judged)


def main(arguments: list[str]) -> None:
    """Do the runs that the command line asks for and that are not done yet."""
    parser = ArgumentParser("run.py study", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--losses", nargs="+", metavar="NAME", help=f"default: those of the set; {', '.join(LOSSES)}")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: as many as the set is worth")
    options = parser.parse_args(arguments)
    for set_name in options.sets:
        for seed in options.seeds or range(SETS[set_name].seeds):
            for loss_name in options.losses or SETS[set_name].losses:
                run_one(set_name, loss_name, seed)
                collect(RUNS, FIGURES, TABLES)
