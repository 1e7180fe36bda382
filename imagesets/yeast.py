"""Synthetic phase-contrast pictures of yeast with exact labels: the data set that is there when no other is.

The picture is computed from the cells, a function a step, in the order of the light.  A dead cell is dark, has almost
no halo, and is background.  Buds are dark too and the light is uneven, so no threshold separates living from dead.
Lengths are in pixels.  Sources: Zernike, 1942 (doi 10.1016/S0031-8914(42)80035-X), phase contrast; Yin et al., 2012
(doi 10.1016/j.media.2011.12.006), its optics as filters; Anscombe, 1948 (doi 10.1093/biomet/35.3-4.246), photon noise.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import scipy.fft
from numpy import ndarray
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

from checks import InputError

VERSION = 1  # raise it when the pictures change, so that an older set on disk is not taken for this one
MARGIN = 24  # drawn around the frame and cut off at the end, so that cells and halos may cross the frame
Box = tuple[slice, slice]
Cells = tuple[ndarray, ndarray, ndarray]  # centre (n + 1, 2), radius and alive (n + 1,); entry 0 is the medium


@dataclass(frozen=True)
class Scene:
    """One picture and its exact label."""

    image: ndarray  # (H, W) or (H, W, 3) uint8
    label: ndarray  # (H, W) uint8; yeast: 0 background (dead cells included), 1 living cell


@dataclass(frozen=True)
class YeastScene(Scene):
    """A picture of yeast and all that is known about it."""

    instances: ndarray  # (H, W) uint16: 0 background, 1 … n living cells; mother and bud are two
    dead: ndarray  # (H, W) bool: pixels of dead cells


def yeast_scene(rng: Generator, height: int = 256, width: int = 256) -> YeastScene:
    """Draw one phase-contrast picture (height, width) of budding yeast; some cells live, some are dead."""
    shape = (height + 2 * MARGIN, width + 2 * MARGIN)
    _, radius, alive = cells = _colonies(rng, height, width)
    owner, depth = _regions(rng, cells, shape)
    density = np.where(alive, rng.uniform(0.26, 0.34, len(alive)), rng.uniform(0.04, 0.09, len(alive)))
    # cells swell from their outline inwards; the dead have leaked and are thin
    phase = (density / radius**1.1)[owner] * depth * (2 * radius[owner] - depth)
    phase += _debris(rng, shape) * (owner == 0)
    interior, cover = _interior(rng, cells, owner, depth)
    amplitude = (1 - cover) * _phase_contrast(phase, defocus=rng.uniform(-8, 8)) + cover * interior
    image, owner = (array[MARGIN:-MARGIN, MARGIN:-MARGIN] for array in (_camera(rng, amplitude), owner))
    seen = alive & (np.bincount(owner.ravel(), minlength=len(alive)) >= 10)  # the frame leaves slivers
    living = np.unique(owner * seen[owner], return_inverse=True)[1].reshape(height, width)  # no gaps in 0 … n
    label, dead = (living > 0).astype(np.uint8), (owner > 0) & ~alive[owner]
    return YeastScene(image, label, living.astype(np.uint16), dead)


def writer(kind: str, version: int, scenes: dict[str, Any], number: int, side: int = 256) -> Callable[..., Path]:
    """Return what writes a set as PNG into a folder, which is kept if it holds this very set, and refused otherwise.

    `scenes` {name with {} for the number: what draws it (rng, height, width)} take turns, by (seed, number) alone.
    """

    def write(folder: Path, num_images: int = number, seed: int = 0, height: int = side, width: int = side) -> Path:
        sizes = {"num_images": num_images, "seed": seed, "height": height, "width": width}
        note, place = json.dumps({"set": kind, "version": version, **sizes}), folder / "settings.json"
        if folder.exists():
            if place.is_file() and place.read_text(encoding="utf-8") == note:
                return folder
            raise InputError(f"{folder} exists and does not hold {note}.\nDelete the folder or choose another one.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # written beside and renamed at the end: a killed run leaves no half set under that name
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            part = Path(temporary, "set")
            for i, (name, draw) in zip(range(num_images), itertools.cycle(scenes.items())):
                for field, array in vars(draw(np.random.default_rng([seed, i]), height, width)).items():
                    layer = part / {"image": "images", "label": "labels"}.get(field, field)
                    layer.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array + np.uint8(0)).save(layer / name.format(i))  # bool → 0, 1
            (part / place.name).write_text(note, encoding="utf-8")
            part.rename(folder)
        return folder

    return write


write_yeast = writer("yeast", VERSION, {"yeast_{:02}.png": yeast_scene}, 18)


def _colonies(rng: Generator, height: int, width: int) -> Cells:
    area = height * width / 256**2
    num_dead, num_colonies = (max(1, round(area * rng.uniform(1, most))) for most in (3.6, 4))
    count = num_dead + max(5, round(area * rng.uniform(12, 25)))
    index = np.arange(count)
    alive, bud = index >= num_dead, (index >= num_dead + num_colonies) & (rng.random(count) < 0.3)
    radius = np.where(alive, np.clip(rng.normal(11.5, 2.2, count), 8, 17), rng.uniform(8, 12, count))
    radius[bud] = rng.uniform(4, 7.5, bud.sum())
    alone = (index < num_dead + num_colonies) & (alive | (rng.random(count) < 0.65))
    # each is drawn to its target until they touch: a bud to its mother, others to the first cell of their colony
    target = np.where(alone, index, num_dead + rng.integers(num_colonies, size=count))
    target[bud] = np.resize(rng.permutation(index[alive & ~bud]), bud.sum())  # one bud each, while they last
    position = rng.uniform(0.12, 0.88, (count, 2)) * (height, width)
    position = np.where(alone[:, None], position, position[target[target]] + rng.normal(0, 12, (count, 2)))
    inside = alone | ~alive  # these stay in the frame, so that every picture has living and dead cells
    for step in range(140):
        apart = position[:, None] - position  # (n, n, 2)
        distance = np.hypot(apart[..., 0], apart[..., 1]) + 1e-6
        apart /= distance[..., None]
        gap = distance - (radius[:, None] + radius - 1.8)  # neighbours overlap a little: their labels touch
        np.fill_diagonal(gap, 0)
        position += 0.45 * (apart * np.clip(-gap, 0, None)[..., None]).sum(axis=1)
        if step < 110:  # later, overlaps are undone only
            position -= 0.6 * apart[index, target] * np.clip(gap[index, target], 0, 1)[:, None]
        position[inside] = np.clip(position[inside], 6, (height - 6, width - 6))
    return np.vstack([(0, 0), position + MARGIN]), np.array([1, *radius]), np.array([False, *alive])


def _disc(rng: Generator, centre: ndarray, radius: float, rough: float, shape: tuple[int, ...]) -> tuple[Box, ndarray]:
    """Draw a disc with a wavy outline: the box around it, and in there the distance to it, < 0 inside."""
    reach = 1.4 * radius + 3
    rows, columns = (np.clip([c - reach, c + reach + 2], 0, n).astype(int) for c, n in zip(centre, shape))
    y, x = np.arange(*rows)[:, None] - centre[0], np.arange(*columns) - centre[1]
    turn, waves = np.arctan2(y, x), rough * rng.normal(0, (0.055, 0.02, 0.01), (2, 3))
    outline = 1 + sum(a * np.cos(k * turn) + b * np.sin(k * turn) for k, a, b in zip((2, 3, 4), *waves))
    return (slice(*rows), slice(*columns)), np.hypot(y, x) - radius * outline


def _regions(rng: Generator, cells: Cells, shape: tuple[int, int]) -> tuple[ndarray, ndarray]:
    """Give each pixel to the nearest cell: `owner` (its number, 0 outside) and `depth` below its surface."""
    nearest, second, owner = np.full(shape, 99.0), np.full(shape, 99.0), np.zeros(shape, dtype=np.int64)
    centre, radius, alive = cells
    for number in range(1, len(alive)):
        box, distance = _disc(rng, centre[number], radius[number], 1.0 if alive[number] else 1.4, shape)
        second[box] = np.minimum(second[box], np.maximum(nearest[box], distance))
        owner[box][distance < nearest[box]] = number
        nearest[box] = np.minimum(nearest[box], distance)
    depth = np.minimum(-nearest, 0.8 * (second - nearest))  # a wall between two pressed cells is steeper
    return np.where(nearest < 0, owner, 0), np.clip(depth, 0, None)


def _interior(rng: Generator, cells: Cells, owner: ndarray, depth: ndarray) -> tuple[ndarray, ndarray]:
    """Paint plasma, vacuoles and granules as amplitude (medium = 1); `cover` (0 … 1) says how far they are seen."""
    centre, radius, alive = cells
    fine, coarse = smooth_noise(rng, owner.shape, 1.1), smooth_noise(rng, owner.shape, 2.4)
    living = np.minimum(1, 0.2 + radius / 15) * rng.uniform(0.8, 1.15, len(alive))
    interior = np.where(alive, living, rng.uniform(0.36, 0.56, len(alive)))[owner] * (1 + 0.1 * fine + 0.22 * coarse)
    for number in np.flatnonzero(alive & (radius > 7.5)):
        for _ in range(rng.choice(3, p=(0.25, 0.62, 0.13))):
            size, turn = radius[number] * rng.uniform(0.3, 0.6), rng.uniform(0, 2 * np.pi)
            shift = rng.uniform(0, max(0.0, 0.72 * radius[number] - size))
            middle = centre[number] + shift * np.array([np.sin(turn), np.cos(turn)])
            box, distance = _disc(rng, middle, size, 1.0, owner.shape)
            inside, rim = np.clip(0.5 - distance / 1.5, 0, 1), np.exp(-(((distance - 1.5) / 2) ** 2))
            bright = rng.uniform(1.15, 1.65) * (1 + 0.07 * fine[box])
            filled = (1 - inside) * (1 - 0.35 * rim) * interior[box] + inside * bright
            interior[box] = np.where(owner[box] == number, filled, interior[box])
    granules, where = np.zeros(owner.shape), rng.choice(np.flatnonzero(owner), 3 * len(alive))
    granules.flat[where] = rng.uniform(-2, 3.5, len(where))
    interior -= ndimage.gaussian_filter(granules, 0.9)
    cover = ndimage.gaussian_filter(np.clip(depth / np.where(alive[owner], 4.0, 2.5), 0, 1), 0.5)
    return np.clip(interior, 0.1, None), cover


def _debris(rng: Generator, shape: tuple[int, int]) -> ndarray:
    """Return the optical phase of small specks in the medium, about four in 256 × 256 pixels."""
    phase = np.zeros(shape)
    for centre in rng.uniform(0, shape, size=(rng.poisson(shape[0] * shape[1] / 15000), 2)):
        radius = rng.uniform(0.8, 2.4)
        box, distance = _disc(rng, centre, radius, 4.0, shape)
        phase[box] += rng.uniform(-0.3, 0.5) * np.exp(-1.5 * np.clip(distance / radius + 1, 0, None) ** 2)
    return phase


def _phase_contrast(phase: ndarray, defocus: float) -> ndarray:
    """Return the amplitude |wave| behind Zernike's microscope, 1 in the empty medium.

    The direct light (low frequencies of exp(i phase)) is dimmed and shifted by a quarter wave, then meets the rest:
    thick parts turn dark, the blur of the direct light is the halo.
    """
    halo_width, sharpness, transmission = 5.1, 0.234, 0.07  # pixels, cycles a pixel, fraction: fitted
    squared = scipy.fft.fftfreq(phase.shape[0])[:, None] ** 2 + scipy.fft.fftfreq(phase.shape[1]) ** 2
    direct = np.exp(-2 * (np.pi * halo_width) ** 2 * squared)
    pupil = np.exp(-squared / (2 * sharpness**2) + 1j * np.pi * defocus * squared)
    pupil *= 1 - direct - 1j * np.sqrt(transmission) * direct
    return np.abs(scipy.fft.ifft2(scipy.fft.fft2(np.exp(1j * phase)) * pupil)) / np.sqrt(transmission)


def smooth_noise(rng: Generator, shape: tuple[int, ...], sigma: float | tuple[float, float]) -> ndarray:
    """Return smooth noise (H, W) of mean 0 and standard deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap", truncate=3)
    return noise / noise.std()


def _camera(rng: Generator, amplitude: ndarray) -> ndarray:
    """Return 8-bit grey values under an uneven lamp: the root of the intensity, so photon noise is equal everywhere."""
    y, x = (np.linspace(-1, 1, side) for side in amplitude.shape)
    (slope_y, slope_x), (centre_y, centre_x) = rng.normal(0, 0.25, 2), rng.normal(0, 0.4, 2)
    fall = rng.uniform(0, 0.3) * ((y[:, None] - centre_y) ** 2 + (x - centre_x) ** 2)
    amplitude = amplitude * np.sqrt(np.exp(slope_y * y[:, None] + slope_x * x - fall))
    noise = rng.uniform(3, 5.5) * smooth_noise(rng, amplitude.shape, 0.7) + 1.5 * rng.standard_normal(amplitude.shape)
    return np.clip(np.rint(rng.uniform(70, 95) * amplitude + noise), 0, 255).astype(np.uint8)
