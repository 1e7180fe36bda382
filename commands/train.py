"""Train a U-Net on a data set or a folder of your own from the command line, in one process or in many.

    python3 run.py train synthetic_yeast --output runs/yeast
    torchrun --nproc-per-node 4 run.py train dsb2018                 # four GPUs of this machine (or four CPU processes)
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 run.py train NAME

The recipe is that of the notebook.  A run that is cut off goes on when the command is repeated.  At the end the test
part is scored once and the model is written as model.pt2, for `predict`.  Several machines need the same data.
"""

from argparse import ArgumentParser, Namespace, RawTextHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import data
from learner import Learner, set_seed
from losses import cross_entropy
from training import modelfile, parallel
from transforms import random_intensity, random_symmetries
from unet import UNet


def augment(*tensors: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
    """One of the eight symmetries for each image and its maps; gain and offset of the image vary."""
    images, *maps = random_symmetries(*tensors, generator=generator)
    return random_intensity(images, gain=0.3, offset=0.3, generator=generator), *maps


def make_learner(options: Namespace, path: Path) -> Learner:
    """The learner that the options describe, for a normalised .hdf5."""
    part = data.SegmentationDataset(path, "train", crop=options.crop, seed=options.seed)
    loader = data.make_loader(part, options.batch, shuffle=True, seed=options.seed, repeats=options.repeats)
    val = data.make_loader(data.SegmentationDataset(path, "val"), batch_size=options.batch)
    set_seed(options.seed)
    model = UNet(part.channels, part.num_classes, options.widths)
    folder = options.output / "checkpoints"
    return Learner(model, cross_entropy, loader, val, lr=options.lr, augment=augment, folder=folder, seed=options.seed)


def main(arguments: list[str]) -> int:
    """What `run.py train` does; `InputError` if something is wrong with the data."""
    parser = ArgumentParser("run.py train", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("source", help=f"a folder with images and labels, or one of {', '.join(data.NAMES)}")
    parser.add_argument("--output", type=Path, help="gets checkpoints and model.pt2; default: runs/NAME")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the .hdf5 files are kept; default: data")
    parser.add_argument("--classes", type=int, help="number of classes of a folder of your own, default 2")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=4, help="crops of each image in an epoch, default 4")
    parser.add_argument("--crop", type=int, default=256, help="side of the crops in pixels, default 256")
    parser.add_argument("--batch", type=int, default=16, help="images in a batch of all processes, default 16")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.output = options.output or Path("runs") / Path(options.source).resolve().name
    parallel.start()
    try:
        path = parallel.from_rank_0(lambda: data.prepare(options.source, options.data, num_classes=options.classes))
        learner = make_learner(options, path)
        learner.fit(options.epochs)
        dataset = learner.train_loader.dataset
        tests = data.SegmentationDataset(dataset.path, "test") if dataset.parts["test"] else None
        scores = learner.evaluate(data.make_loader(tests, options.batch)) if tests else {}
        if parallel.rank() == 0:
            print("".join(f"test {name} {scores[name]:.4f}\n" for name in ("mean_iou", "accuracy") if scores), end="")
            modelfile.save(learner.model, options.output / "model.pt2", mean=dataset.mean, std=dataset.std)
    finally:
        parallel.stop()
    return 0
