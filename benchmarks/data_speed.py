"""What does the loader cost, compared with the training step that waits for it?

Three ways to bring the same batches: our `SegmentationDataset` and `make_loader` (the set is read once and held in
memory), the usual per-item way (each item opens the .hdf5 and reads its image and label, PyTorch's `DataLoader`), the
same with two worker processes, and all images as one tensor, indexed.  Whole epochs take turns; times are medians of
one batch.  The step is that of our U-Net in the number format that is fastest here.

    python3 benchmarks/data_speed.py                                    # batches of 8 × 256²
    python3 benchmarks/data_speed.py --size 2x64 --images 16 --repetitions 2
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from batches import add_device, common_arguments, interleaved, machine, print_table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from training_speed import WIDTHS, Candidate

from data import SegmentationDataset, make_loader
from imagesets.files import Sample
from imagesets.hdf5 import build_hdf5, normalise_hdf5
from imagesets.yeast import yeast_scene
from learner import Learner
from losses import cross_entropy
from unet import UNet


class PerItem(Dataset[tuple[Tensor, Tensor]]):
    """As tutorials have it: the file is opened once in each process, an item is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: Any = None
        with h5py.File(path) as file:
            self.keys = [key for key in file["image"] if file["image"][key].attrs["part"] == "train"]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.file is None:
            self.file = h5py.File(self.path)
        image, label = (self.file[group][self.keys[index]][()] for group in ("image", "label"))
        return torch.from_numpy(image), torch.from_numpy(label).long()


def make_file(folder: Path, images: int, side: int) -> Path:
    """A normalised .hdf5 of yeast, all images in the training part."""
    rng = np.random.default_rng(0)
    scenes = [yeast_scene(rng, side, side) for _ in range(images)]
    samples = [
        Sample(f"s{i}", scene.image, (scene.instances > 0).astype(np.uint8), "train") for i, scene in enumerate(scenes)
    ]
    return normalise_hdf5(build_hdf5(samples, folder / "raw.hdf5", num_classes=2), folder / "normalised.hdf5")


def through(loader: Iterable[Any], device: torch.device) -> None:
    """A whole epoch, each batch brought to the device."""
    for batch in loader:
        for tensor in batch:
            tensor.to(device, non_blocking=True)


def indexed(images: Tensor, target: Tensor, batch: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of a set that lies on the device as one tensor, in random order."""
    for chosen in torch.randperm(len(images), device=images.device).split(batch):
        yield images[chosen], target[chosen]


def main() -> None:
    parser = add_device(common_arguments(__doc__))
    parser.add_argument("--images", type=int, default=64, help="of the set, default 64")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    batch, side = arguments.size
    device = torch.device(arguments.device)
    print(f"{machine()}, {arguments.device}; {arguments.images} images of {side}², batches of {batch}\n")
    with tempfile.TemporaryDirectory() as scratch:
        path = make_file(Path(scratch), arguments.images, side)
        ours, plain = SegmentationDataset(path, "train"), PerItem(path)
        whole = [torch.stack(tensors).to(device) for tensors in zip(*(ours[i] for i in range(len(ours))))]
        images, target = whole[0][:batch], whole[1][:batch]
        unet = UNet(1, 2, WIDTHS).to(device)
        precision = Learner(unet, cross_entropy, [(images.cpu(), target.cpu())], device=device).fastest_precision()
        step = Candidate(unet, cross_entropy, images, target, precision, torch.optim.AdamW)
        loaders = {
            "**ours**: in memory": make_loader(ours, batch, shuffle=True, seed=0),
            "per item from h5py, DataLoader": DataLoader(plain, batch, shuffle=True),
            "per item, 2 workers": DataLoader(plain, batch, shuffle=True, num_workers=2, persistent_workers=True),
        }
        works: dict[str, Any] = {
            name: (lambda loader=loader: through(loader, device)) for name, loader in loaders.items()
        }
        works[f"one tensor on the {device.type}"] = lambda: through(indexed(*whole, batch), device)
        works["training step"] = step
        spent = interleaved(works, arguments.repetitions, arguments.clock)
        batches = -(-arguments.images // batch)
        rows = []
        for name, value in spent.items():
            one = value if name == "training step" else value / batches
            rows.append([name, f"{one:.2f}", f"{100 * one / spent['training step']:.2f} %"])
        print_table(["one batch", "ms", "of the step"], rows)


if __name__ == "__main__":
    main()
