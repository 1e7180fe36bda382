"""The built-in sets of colour images: streets with many classes, the same streets as road or not, and pets.

They stand in for CamVid, KITTI Road and the Oxford pets where nothing was downloaded.  Each set is a folder of PNG
files, `images/` and `labels/`, with a `settings.json` that tells what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy import ndarray

from checks import IGNORE_INDEX
from imagesets.pets import SPECIES, pet_scene
from imagesets.streets import ROAD, street_scene
from imagesets.yeast import Scene, check_whole_numbers, write_set

__all__ = ["pet_scene", "road_label", "street_scene", "write_pets", "write_roads", "write_streets"]

VERSION = 1  # raise it when the pictures change, so that an older set on disk is not taken for this one
LAYERS = {"images": "image", "labels": "label"}


def write_streets(folder: Path, num_images: int = 60, seed: int = 0, height: int = 256, width: int = 256) -> Path:
    """Write `images/street_000.png` … and `labels/` (0 … 5, and 255 void; see `street_scene`); return `folder`.

    Image i depends on `seed`, i and the size only.  A folder that holds this very set is kept; `InputError` when it
    holds anything else, or when the settings make no set.

    >>> import tempfile
    >>> folder = write_streets(Path(tempfile.mkdtemp()) / "streets", num_images=2, height=64, width=64)
    >>> sorted(path.name for path in (folder / "labels").iterdir())
    ['street_000.png', 'street_001.png']
    """

    def draw(i: int) -> Scene:
        return street_scene(np.random.default_rng([seed, i]), height, width)

    return _write(folder, "streets", "street_{:03d}.png".format, draw, num_images, seed, height, width)


def write_roads(folder: Path, num_images: int = 120, seed: int = 0, height: int = 256, width: int = 256) -> Path:
    """Write the pictures of `write_streets` as `road_000.png` …, labels 1 road, 0 all else, 255 void.

    The rest is as in `write_streets`.

    >>> import tempfile
    >>> folder = write_roads(Path(tempfile.mkdtemp()) / "roads", num_images=1, height=64, width=64)
    >>> [path.name for path in (folder / "images").iterdir()]
    ['road_000.png']
    """

    def draw(i: int) -> Scene:
        scene = street_scene(np.random.default_rng([seed, i]), height, width)
        return replace(scene, label=road_label(scene.label))

    return _write(folder, "roads", "road_{:03d}.png".format, draw, num_images, seed, height, width)


def write_pets(folder: Path, num_images: int = 160, seed: int = 0, height: int = 160, width: int = 160) -> Path:
    """Write `dog_000.png`, `cat_001.png`, `dog_002.png` …, labels 0 background, 1 pet, 2 border (see `pet_scene`).

    The rest is as in `write_streets`.

    >>> import tempfile
    >>> folder = write_pets(Path(tempfile.mkdtemp()) / "pets", num_images=2, height=64, width=64)
    >>> sorted(path.name for path in (folder / "images").iterdir())
    ['cat_001.png', 'dog_000.png']
    """

    def draw(i: int) -> Scene:
        return pet_scene(np.random.default_rng([seed, i]), height, width, species=SPECIES[i % 2])

    def name(i: int) -> str:
        return f"{SPECIES[i % 2]}_{i:03d}.png"

    return _write(folder, "pets", name, draw, num_images, seed, height, width)


def road_label(label: ndarray) -> ndarray:
    """Turn a label of streets into 1 road, 0 all else; 255 stays.

    >>> road_label(np.array([[0, 3, 4, 255]], dtype=np.uint8)).tolist()
    [[0, 1, 0, 255]]
    """
    return np.where(label == IGNORE_INDEX, label, label == ROAD).astype(np.uint8)


def _write(
    folder: Path,
    kind: str,
    name: Callable[[int], str],
    draw: Callable[[int], Scene],
    num_images: int,
    seed: int,
    height: int,
    width: int,
) -> Path:
    """Check and note the settings, then write what `draw` gives for each number."""
    check_whole_numbers(num_images=(num_images, 1), seed=(seed, 0), height=(height, 64), width=(width, 64))
    numbers = {"version": VERSION, "num_images": num_images, "seed": seed, "height": height, "width": width}
    settings = json.dumps({"set": kind} | {name: int(number) for name, number in numbers.items()})
    names = [name(i) for i in range(num_images)]
    return write_set(Path(folder), settings, names, LAYERS, (draw(i) for i in range(num_images)))
