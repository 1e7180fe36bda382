"""Small images, folders, samples and files for the tests of files.py, hdf5.py and data.py."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from checks import InputError
from imagesets.files import Sample
from imagesets.hdf5 import build_hdf5, normalise_hdf5

MIRROR = os.environ.get("SEGMENTATION_MIRROR", "")
needs_mirror = pytest.mark.skipif(not Path(MIRROR, "yeast_phase").is_dir(), reason="no SEGMENTATION_MIRROR")


def picture(seed: int = 0, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def colour_picture(seed: int = 0) -> np.ndarray:
    return np.dstack([picture(seed), picture(seed + 1), picture(seed + 2)])


def mask(seed: int = 0, height: int = 6, width: int = 8, classes: int = 2) -> np.ndarray:
    label = np.random.default_rng(seed + 1000).integers(0, classes, (height, width), dtype=np.uint8)
    label.flat[:classes] = np.arange(classes)
    return label


def save(path: Path, array: Any, **options: Any) -> Path:
    """Write an array, or an image of Pillow, with all the folders of its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, array, **options)
    else:
        (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_folder(folder: Path, names: Iterable[str] = "abc", labels: str = "labels") -> Path:
    for seed, name in enumerate(names):
        save(folder / "images" / f"{name}.png", picture(seed))
        save(folder / labels / f"{name}.png", mask(seed))
    return folder


def make_samples(number: int = 8, size: tuple[int, int] = (6, 8), **extras: np.ndarray) -> list[Sample]:
    return [Sample(f"s{i}", picture(i, *size), mask(i, *size), None, dict(extras)) for i in range(number)]


def blobs(number: int = 8, side: int = 48, channels: int = 1) -> list[Sample]:
    """Noisy images of bright squares at random places, with their labels."""
    rng, samples = np.random.default_rng(0), []
    for index in range(number):
        label = np.zeros((side, side), np.uint8)
        for top, left in rng.integers(0, side - 12, (4, 2)):
            label[top : top + 12, left : left + 12] = 1
        image = np.clip(60 + 120 * label[..., None] + rng.normal(0, 20, (side, side, channels)), 0, 255)
        samples.append(Sample(f"s{index}", image.astype(np.uint8).squeeze(), label))
    return samples


def build(folder: Path, samples: Iterable[Sample] | None = None, name: str = "set", **settings: Any) -> Path:
    settings = {"num_classes": 2, **settings}
    return build_hdf5(make_samples() if samples is None else samples, folder / f"{name}.hdf5", **settings)


def build_normalised(folder: Path, samples: Iterable[Sample] | None = None, **settings: Any) -> Path:
    return normalise_hdf5(build(folder, samples, **settings), folder / "normalised.hdf5")


def quiet(line: str) -> None:
    """Say nothing."""


def refused(function: Callable[..., Any], *arguments: Any, **settings: Any) -> str:
    """Call `function`, which must raise one InputError, and return its message."""

    def run() -> None:
        result = function(*arguments, **settings)
        if isinstance(result, Iterator):
            list(result)  # a reader says what is wrong at its end

    with pytest.raises(InputError) as caught:
        run()
    return str(caught.value)
