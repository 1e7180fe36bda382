"""Networks and recipes side by side, with several seeds: links, FCNs and U-Nets, roads, pets, heads; resumable.

    python3 run.py compare                                              # all that is not done yet
    python3 run.py compare --sets streets --arms FCN-8s "U-Net, sum" --seeds 0 1

With one seed all arms of a set share images, order, steps and number format.  Where an arm has no learning rate, short
runs of seed 0 choose it by the loss of the validation images: their mean IoU still scatters, as rare classes come late.
A test part is opened for the final runs alone.  Finished runs are kept in `runs/compare`, their rows in `figures`.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data import SegmentationDataset, make_loader, prepare, source_folder
from experiments.statistics import Row, collect, kept, provenance
from experiments.study import unet
from geometry.objects import boundary_distances, total
from imagesets.changes import PartsByName, Relabel, Resize, half_of_test_validates
from imagesets.files import Sample
from imagesets.yeast import write_yeast
from learner import Learner
from losses import cross_entropy
from networks.baselines import FCN, ImageClassifier, PatchClassifier
from networks.inspection import count_parameters, layer_table
from networks.upsampling import checkerboard
from training.checkpoint import identity
from transforms import augment, random_affine, random_hue, random_intensity
from unet import UNet

RUNS, FIGURES, DATA = Path("runs/compare"), Path("figures"), Path("data")
TABLES = {"rows": ("compare", 5), "history": ("compare_history", 6)}
SCORES, FOLDS, PRECISION = ("loss", "accuracy", "mean_iou", "iou_1"), 5, "bfloat16"
mirrored = partial(augment, symmetries=(0, 4), gain=0.2, hue=False)  # a street never stands on its head


def middle_pixel(images: Tensor, target: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
    """Patches of 126², and the class of the pixel in the middle of each, (B, 1, 1)."""
    images, target = mirrored(images, target, generator=generator)
    return images, target[:, 63:64, 63:64]


def roads(seed: int, side: int = 256, changes: Sequence[Callable[[Sample], Sample]] = (), block: int = 0) -> Path:
    """KITTI's roads by the course's split, 272 images and 15; or fold `seed` of five, in blocks of neighbours."""
    names = sorted(path.stem for path in source_folder("kitti_road", DATA).glob("training/image_2/*.png"))
    order = np.random.RandomState(123).permutation(names)[:287].tolist()  # noqa: NPY002 - the protocol
    val = [name for i, name in enumerate(sorted(order)) if i // block % FOLDS == seed] if block else order[272:]
    parts = PartsByName(tuple(name for name in order if name not in val), tuple(val))
    return prepare("kitti_road", DATA, changes=[parts, Resize(side, side), Relabel({255: 0}), *changes])


def much_road(sample: Sample) -> Sample:
    """One label for the whole image: is more than a sixth of it road?  (16.7 % is it in the median image.)"""
    return replace(sample, label=np.full_like(sample.label, sample.label.mean() > 1 / 6))


def pets(changes: Sequence[Callable[[Sample], Sample | None]], seed: int) -> Path:
    """The pets at 128², after more changes."""
    return prepare("oxford_pets", DATA, changes=[half_of_test_validates, Resize(128, 128), *changes])


def dogs_test(sample: Sample, only_cats: bool = False) -> Sample | None:
    """Of the test part the dogs, whose official names begin with a small letter; of other parts all, or the cats."""
    is_dog = sample.name[0].islower()
    return sample if (is_dog if sample.part == "test" else not (only_cats and is_dog)) else None


def change_photos(images: Tensor, *maps: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
    """Turn, zoom, move and mirror each image a little, and its maps with it; then hue, brightness and contrast."""
    images, *others = random_affine(images, *maps, generator=generator, degrees=10, zoom=0.2, stretch=0.1, shift=0.1)
    images = random_hue(images, 15, generator=generator)
    return random_intensity(images, gain=0.3, offset=0.3, generator=generator), *others


def paste_animals(images: Tensor, target: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
    """`change_photos`, then half of the images get the animal of the one before them (copy-paste, arXiv:2012.07177)."""
    images, target = change_photos(images, target, generator=generator)
    pasted = (torch.rand(len(images), 1, 1, generator=generator) < 0.5).to(target.device) & (target.roll(1, 0) > 0)
    return images.where(~pasted[:, None], images.roll(1, 0)), target.where(~pasted, target.roll(1, 0))


def head(train: SegmentationDataset) -> nn.Module:
    """A classifier of images of 64², its answer repeated for all pixels."""
    net = ImageClassifier(UNet(train.channels, 2, (8, 16, 32, 64)), 2)
    return nn.Sequential(net, nn.Unflatten(1, (2, 1, 1)), nn.Upsample(scale_factor=64))


def fcn(train: SegmentationDataset, stride: int) -> nn.Module:
    """An FCN with the weights of a classifier of patches, which is trained once for a seed, for all strides."""
    patches, K = SegmentationDataset(train.path, "train", crop=126, seed=train.seed), train.num_classes
    loader = make_loader(patches, 16, shuffle=True, seed=train.seed, repeats=4)
    net = PatchClassifier(train.channels, K, (26, 52, 104, 192, 192))  # about the multiply-adds of the U-Nets
    folder = RUNS / "streets/classifier" / str(train.seed)
    options: dict[str, Any] = {"lr": 3e-3, "augment": middle_pixel, "precision": PRECISION, "seed": train.seed}
    Learner(nn.Sequential(net, nn.Unflatten(1, (K, 1, 1))), cross_entropy, loader, folder=folder, **options).fit(4)
    return FCN.from_classifier(net, stride=stride)


@dataclass(frozen=True)
class Recipe:
    """A data set (of a seed), a network and its training; without `lr` it is searched for."""

    prepare: Callable[[int], Path]
    make: Callable[[SegmentationDataset], nn.Module]
    lr: float | None
    epochs: int
    batch: int
    repeats: int = 1
    crop: int | None = None
    augment: Callable[..., Sequence[Tensor]] | None = mirrored
    schedule: str = "cosine"
    best_epoch: bool = True  # or the last one
    seeds: int = 3


WIDE = (8, 16, 32, 64, 128)
STREETS = Recipe(lambda seed: prepare("camvid", DATA, changes=[Resize(128, 168)]), unet, None, epochs=20, batch=4)
PETS = Recipe(partial(pets, []), partial(unet, shrink=2), 1e-3, 16, batch=16, augment=None, schedule="constant")
OURS = partial(unet, widths=(16, *WIDE[2:], 256), stem=2)
OUR_PETS = Recipe(partial(pets, []), OURS, 4e-3, epochs=9, batch=8, augment=change_photos)
LINKS = Recipe(
    lambda seed: prepare(write_yeast(DATA / "yeast72", num_images=72, seed=1), DATA), unet, 5e-3,
    epochs=10, batch=8, repeats=2, crop=128, augment=partial(mirrored, symmetries=range(8)),
)  # fmt: skip
LINK_NETS: dict[str, dict[str, Any]] = {
    "none": {"skip": "none"}, "indices": {"skip": "none", "upsampling": "unpool"}, "sum": {"skip": "sum"},
    "concat": {}, "indices+concat": {"upsampling": "unpool"},
}  # fmt: skip
HEADS = Recipe(roads, head, 3e-3, epochs=25, batch=32, best_epoch=False, seeds=FOLDS)
SETS = {
    "streets": {
        **{f"FCN-{stride}s": replace(STREETS, make=partial(fcn, stride=stride)) for stride in (32, 16, 8)},
        "U-Net, concat": replace(STREETS, make=partial(unet, widths=WIDE)),
        "U-Net, sum": replace(STREETS, make=partial(unet, widths=(9, 18, 36, 72, 144), skip="sum")),
    },
    "roads": {s: Recipe(roads, partial(unet, skip=s, widths=WIDE), 5e-3, 6, batch=4) for s in ("concat", "none")},
    "pets": {
        "lr 1e-3": PETS,
        "lr 1e-4": replace(PETS, lr=1e-4),
        "ours, 120 views": replace(OUR_PETS, epochs=12, repeats=10),
        "ours, pasted, 480 views": replace(OUR_PETS, epochs=48, repeats=10, augment=paste_animals),
        "dogs train too": replace(OUR_PETS, prepare=partial(pets, [dogs_test]), repeats=4),
        "cats alone train": replace(OUR_PETS, prepare=partial(pets, [partial(dogs_test, only_cats=True)]), repeats=6),
    },
    "links": {name: replace(LINKS, make=partial(unet, widths=WIDE[:4], **s)) for name, s in LINK_NETS.items()},
    "heads": {
        name: replace(HEADS, prepare=partial(roads, side=64, changes=[much_road], block=block), augment=change)
        for name, block, change in (
            ("neighbours in training", 1, mirrored),
            ("neighbours left out", 12, mirrored),
            ("the same, as they are", 12, None),
        )
    },
}


@torch.no_grad()
def patterns(learner: Learner, channels: int) -> Row:
    """How much of the logits of a grey image depends only on the place in cells of 32² and 2²; the frame left out."""
    logits = learner.model.eval()(torch.zeros(1, channels, 512, 512, device=learner.device))[..., 192:320, 192:320]
    return {"checkerboard": checkerboard(logits, 32), "checkerboard_2": checkerboard(logits, 2)}


def judge(learner: Learner, path: Path, part: str) -> Row:
    """Scores of a part, with the F1 of borders within 2 pixels; nothing where it has no images."""
    if not SegmentationDataset(path, "train").parts[part]:
        return {}
    images: Any = SegmentationDataset(path, part)
    pairs = ((learner.predict(image[None])[0].argmax(dim=0), label) for image, label in images)
    borders = total(boundary_distances(*pair, instances=False).within(2) for pair in pairs)
    scores = learner.evaluate(make_loader(images, 8)) | {"images": len(images), "border_f1": borders.f1}
    return {f"{part}_{name}": scores[name] for name in ("images", *SCORES, "border_f1")}


def run_one(set_name: str, arm: str, seed: int, lr: float, stage: str = "final") -> Row:
    """Train and judge unless that was done; its row.  In the stage "rate" a quarter of the epochs, and no test part."""
    recipe, final = SETS[set_name][arm], stage == "final"
    path, epochs = recipe.prepare(seed), recipe.epochs if final else recipe.epochs // 4
    run = f"{seed}" if final else f"rate-{lr:g}"
    folder = RUNS / set_name / arm.replace(",", "").replace(" ", "-") / run
    train = SegmentationDataset(path, "train", crop=recipe.crop, seed=seed)
    loader = make_loader(train, recipe.batch, shuffle=True, seed=seed, repeats=recipe.repeats)
    val = make_loader(SegmentationDataset(path, "val"), 8) if recipe.best_epoch else None
    torch.manual_seed(seed)
    options: Any = {"augment": recipe.augment, "schedule": recipe.schedule, "folder": folder, "precision": PRECISION}
    learner = Learner(recipe.make(train), cross_entropy, loader, val, lr=lr, seed=seed, **options)
    settings = learner.settings() | identity(epochs=epochs, judged=[judge, patterns, final])

    def judged() -> Row:
        learner.fit(epochs)
        key: Row = {"set": set_name, "arm": arm, "stage": stage, "lr": lr, "seed": seed}
        layers, net = layer_table(learner.model, (1, train.channels, *train.shapes[0])), learner.model
        row = key | {"steps": epochs * len(loader), "batch": recipe.batch, "parameters": count_parameters(net)}
        row |= {"multiply_adds": sum(layer.multiply_adds for layer in layers)}
        row |= {"precision": learner.number_format, "seconds": sum(one["seconds"] for one in learner.history)}
        row |= provenance() | judge(learner, path, "val")
        row |= judge(learner, path, "test") | patterns(learner, train.channels) if final else {}
        names = ["epoch", *(f"{part}_{name}" for part in ("train", "val") for name in SCORES)]
        history = [key | {name: epoch.get(name, "") for name in names} for epoch in learner.history]
        return {"rows": [row], "history": history}

    return kept(folder.with_name(f"{run}.json"), settings, judged)["rows"][0]


def best_rate(set_name: str, arm: str) -> float:
    """The learning rate 10^(k/2) of lowest validation loss in short runs; both its neighbours were tried."""
    losses: dict[int, float] = {}
    wanted = {-6, -5, -4}
    while wanted:
        rates = {k: float(f"{10 ** (k / 2):.1g}") for k in {*losses, *wanted}}
        losses |= {k: run_one(set_name, arm, 0, rates[k], "rate")["val_loss"] for k in wanted}
        best = min(losses, key=lambda k: losses[k])
        wanted = {best - 1, best + 1} - {*losses}
    return rates[best]


def main(arguments: list[str]) -> None:
    """Do the runs that the command line asks for and that are not done yet."""
    parser = ArgumentParser("run.py compare", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="default: all of the set")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: as many as the set is worth")
    options = parser.parse_args(arguments)
    for set_name in options.sets:
        arms = {arm: one for arm, one in SETS[set_name].items() if arm in (options.arms or SETS[set_name])}
        for seed in options.seeds or range(max(recipe.seeds for recipe in arms.values())):
            for arm, recipe in arms.items():
                run_one(set_name, arm, seed, recipe.lr or best_rate(set_name, arm))
                collect(RUNS, FIGURES, TABLES)
