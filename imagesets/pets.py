"""Synthetic cats and dogs with exact labels, for the part on pets and their outlines.

An animal is a set of balls swept along lines: body, legs, tail, head, ears.  Noise frays its outline like fur.  What
lies around it is made in the same way and of the same colours, so neither colour nor shading gives it away.  Lengths
are about half its body; y points down, and it looks right.  Classes as in the Oxford pets (in another order):
O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, CVPR 2012, doi 10.1109/CVPR.2012.6248092.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from scipy import ndimage

from imagesets.streets import palette, photograph, pick_colour, soft_noise
from imagesets.yeast import Scene, write_set

VERSION = 2  # raise it when the pictures change, so that an older set on disk is not taken for this one
FUR = palette("CC8542 734D30 2A2827 E6DED1 807D7D DBC294 AD855C 4D4540")
CLOTH = palette("8C332E 334D6B 9E8C6B 596B4D BFB8A8 6B4D38 807A80 D9B366 4D425C")
GREEN = palette("5F8038 7E8C45 4D6B2E 9C9960 6F8050")
EYES = palette("BFAD33 73A659 598CBF")
MUZZLE = -3  # the last parts are skull, muzzle, ear, ear


class _Pose(NamedTuple):
    """The head of an animal: its place, size and turn."""

    head: tuple[float, float]  # y, x
    size: float  # radius of the head
    turn: float  # how far the head is turned to the right, −1 … 1


def write_pets(folder: Path, num_images: int = 160, seed: int = 0, height: int = 160, width: int = 160) -> Path:
    """Write `dog_000.png`, `cat_001.png`, `dog_002.png` … of `pet_scene`, as `write_yeast` does; return `folder`."""
    kinds = ("dog", "cat")
    scenes = {f"{kinds[i % 2]}_{i:03d}.png": partial(pet_scene, species=kinds[i % 2]) for i in range(num_images)}
    return write_set(folder, ("pets", VERSION, num_images, seed, height, width), scenes)


def pet_scene(rng: Generator, height: int = 160, width: int = 160, species: str | None = None) -> Scene:
    """Draw a "cat", a "dog" or any: image (height, width, 3); label 0 background, 1 pet, 2 a 5 pixel band between."""
    shape, light = (height, width), np.array((-0.75, rng.uniform(-0.5, 0.5), 0.62), dtype=np.float32)
    image = _background(rng, shape, light)
    cat = rng.random() < 0.5 if species is None else species == "cat"
    pose, parts = _pet(rng, cat)
    scale, (top, left), flip = _place(rng, pose, parts, shape)
    rows, columns = (axis.astype(np.float32) for axis in np.ogrid[:height, :width])
    y, x = (rows - top) / scale, flip * (columns - left) / scale
    fray = rng.uniform(0.2, 0.6) / scale
    furry_y, furry_x = (c + fray * (1.3 * soft_noise(rng, shape, 2) + soft_noise(rng, shape, 5)) for c in (y, x))
    owner, relief = swept_balls(furry_y, furry_x, parts)
    seen, fur = owner >= 0, _fur(rng, owner == len(parts) + MUZZLE, furry_y, furry_x)
    fur *= (0.32 + 0.82 * lit(scale * relief, seen, 0.03 * scale, light))[..., None]
    _paint_face(rng, pose, parts[MUZZLE, 2:4], cat, fur, y, x)
    shadow = np.exp(-(((y - parts[:, 2].max()) / 0.2) ** 2) - (x / 0.8) ** 2)
    image *= 1 - 0.5 * shadow[..., None]
    image[seen] = fur[seen]
    inside, outside = (ndimage.distance_transform_edt(where) for where in (seen, ~seen))
    label = np.select([inside > 2, outside > 3], [1, 0], 2).astype(np.uint8)
    return Scene(photograph(rng, image), label)


def swept_balls(y: ndarray, x: ndarray, parts: ndarray) -> tuple[ndarray, ndarray]:
    """Look at balls that are swept along lines: return the part seen at each point and its height to the viewer.

    `parts` (n, 7): y, x of one end, of the other, both radii, how much nearer it is.  No part is −1, its height −inf.
    """
    shape = np.broadcast_shapes(y.shape, x.shape)
    seen, highest = np.full(shape, -1), np.full(shape, -np.inf, dtype=np.float32)
    for number, (ay, ax, by, bx, radius, end_radius, nearer) in enumerate(parts.tolist()):
        dy, dx = by - ay, bx - ax
        t = np.clip(((y - ay) * dy + (x - ax) * dx) / max(dy * dy + dx * dx, 1e-6), 0, 1)  # where the nearest ball is
        squared = (radius + (end_radius - radius) * t) ** 2 - (y - ay - t * dy) ** 2 - (x - ax - t * dx) ** 2
        height = np.where(squared > 0, np.sqrt(np.maximum(squared, 0)) + nearer, -np.inf)
        seen[height > highest] = number
        highest = np.maximum(height, highest)
    return seen, highest


def lit(height: ndarray, seen: ndarray, sigma: float, light: ndarray) -> ndarray:
    """Return how bright a smoothed body is, 0 … 1; `light` (3,) points to the lamp: down, right, to the viewer."""
    weight = np.maximum(ndimage.gaussian_filter(seen.astype(np.float32), sigma, truncate=2.5), 0.01)
    smooth = ndimage.gaussian_filter(np.where(seen, height, 0), sigma, truncate=2.5) / weight
    slope_y, slope_x = np.gradient(smooth)
    facing = (light[2] - light[0] * slope_y - light[1] * slope_x) / np.sqrt(1 + slope_y**2 + slope_x**2)
    return np.clip(facing / np.linalg.norm(light), 0, None)


def _pet(rng: Generator, cat: bool) -> tuple[_Pose, ndarray]:
    """Put an animal together: a body in some pose, and its parts (n, 7) with a tail and a head of its kind."""
    kind, fat = rng.choice(3, p=(0.35, 0.4, 0.25)), rng.uniform(0.85, 1.15)
    parts: list[tuple]  # rows of `swept_balls`
    if kind == 0:  # standing, seen from its side
        parts = [(0, -0.5, -0.03, 0.42, 0.25 * fat, 0.28 * fat, 0), (-0.05, 0.45, -0.38, 0.72, 0.22, 0.17, 0)]
        foot_y = 0.64 + rng.uniform(0, 0.3)
        for x, near in ((0.4, 0.05), (0.52, -0.12), (-0.52, 0.05), (-0.4, -0.12)):
            foot = x + rng.normal(0, 0.08)
            parts += [(0.1, x, foot_y, foot, 0.13, 0.07, near)]
            parts += [(foot_y, foot, foot_y + 0.02, foot + 0.08, 0.065, 0.055, near)]
        pose, tail = _Pose((-0.5, 0.78), 0.28, rng.uniform(0.2, 0.7)), (-0.1, -0.7)
    elif kind == 1:  # sitting, seen from the front
        parts = [(0.55, 0, 0, 0, 0.38 * fat, 0.25 * fat, 0), (0, 0, -0.3, 0, 0.25, 0.2, 0.02)]
        for s in (-1, 1):
            parts += [(0.62, 0.27 * s * fat, 0.9, 0.38 * s * fat, 0.22, 0.09, 0.05)]
            parts += [(0.1, 0.14 * s, 0.88, 0.16 * s, 0.12, 0.085, 0.2)]
        turn = rng.uniform(-0.6, 0.6)
        pose, tail = _Pose((-0.52, 0.05 * turn), 0.32, turn), (0.75, 0.45 - 0.9 * rng.integers(2))
    else:  # lying on its belly, seen from its side
        parts = [(0.38, -0.55, 0.36, 0.3, 0.32 * fat, 0.27 * fat, 0), (0.45, -0.55, 0.5, -0.4, 0.27, 0.2, 0.08)]
        parts += [(0.3, 0.3, 0, 0.52, 0.24, 0.2, 0.05), (0.5, 0.3, 0.65, 0.9, 0.1, 0.07, 0.12)]
        pose, tail = _Pose((-0.16, 0.6), 0.28, rng.uniform(-0.2, 0.7)), (0.5, -0.8)
    body = np.array(parts + _tail(rng, tail, cat))
    body[:, :4] += rng.normal(0, 0.02, (len(body), 4))
    return pose, np.vstack([body, _head(rng, pose, cat)])


def _tail(rng: Generator, root: tuple[float, float], cat: bool) -> list[tuple]:
    """Chain short pieces away from the body, each turned a little further; a cat has more of them."""
    (y, x), parts = root, list[tuple]()
    angle, curl, thick = rng.uniform(-0.4, 1.1), rng.uniform(-0.1, 0.25), rng.uniform(0.045, 0.085)
    for _ in range(6 if cat else rng.integers(3, 6)):
        end_y, end_x = y - 0.14 * np.sin(angle), x + 0.14 * np.cos(angle) * np.sign(root[1])
        parts.append((y, x, end_y, end_x, thick, 0.93 * thick, -0.05))
        y, x, angle, thick = end_y, end_x, angle + curl, 0.93 * thick
    return parts


def _head(rng: Generator, pose: _Pose, cat: bool) -> ndarray:
    """Return skull, muzzle and ears (4, 7): a cat's are pointed, a dog's hang or stand, and its muzzle is long."""
    turn, long, low, hang = pose.turn, rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.7), rng.random() < 0.6
    if cat:
        muzzle = 0.3, 0.5 * turn - 0.18, 0.3, 0.5 * turn + 0.18, 0.36, 0.36, 0.75
        ear = -0.5, 0.6, -1.35, 0.85, 0.42, 0.06, -0.5
    else:
        muzzle = 0.2, 0.4 * turn, 0.25 + 0.4 * long, (0.5 + long) * turn, 0.5, 0.36, 0.8
        ear = (-0.55, 0.8, low, 1.12, 0.22, 0.3, 0.2) if hang else (-0.5, 0.6, -1.3, 0.75, 0.36, 0.08, -0.5)
    root, x, tip, tip_x, *rest = ear
    ears = [(root, s * x + 0.1 * turn, tip, s * tip_x + 0.1 * turn, *rest) for s in (-1, 1)]
    head = np.array([(0, -0.06, 0, 0.06, 1, 1, 0), muzzle, *ears])
    return pose.size * head + (*pose.head, *pose.head, 0, 0, 0.25)


def _place(rng: Generator, pose: _Pose, parts: ndarray, shape: tuple[int, int]) -> tuple[float, ndarray, int]:
    """Choose how many pixels a length is, where the origin lies (y, x), and if it looks right (1) or left (−1)."""
    flip = 1 - 2 * int(rng.integers(2))
    if rng.random() < 0.25:  # a portrait
        scale = rng.uniform(0.75, 1.1) * min(shape)
        return scale, rng.uniform(0.4, 0.55, 2) * shape - scale * np.array(pose.head) * (1, flip), flip
    ends, radius = parts[:, :4].reshape(-1, 2, 2), parts[:, 4:6, None]
    low, high = (ends - radius).min(axis=(0, 1)), (ends + radius).max(axis=(0, 1))
    scale = rng.uniform(0.72, 1.02) * min(shape / (high - low))
    return scale, rng.uniform(0.45, 0.57, 2) * shape - scale * (low + high) / 2 * (1, flip), flip


def _fur(rng: Generator, muzzle: ndarray, y: ndarray, x: ndarray) -> ndarray:
    """Return the colours of the fur: patches, stripes, a light belly, or nearly one colour."""
    one, two = pick_colour(rng, FUR), pick_colour(rng, FUR)
    spots, angle = soft_noise(rng, y.shape, rng.uniform(0.08, 0.2) * min(y.shape)), rng.uniform(-0.5, 0.5)
    kind = rng.integers(4)
    pattern = (spots > 0.3, None, (y > 0.3 - 0.12 * spots) | muzzle, 0.3 * np.clip(spots, 0, 1))[kind]
    if pattern is None:  # stripes
        two = one * rng.uniform(0.4, 0.65)
        pattern = np.sin((x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(22, 34) + 1.5 * spots) > 0.3
    soft = ndimage.gaussian_filter(pattern.astype(np.float32), 1)[..., None]
    hair = 0.7 * soft_noise(rng, y.shape, (3, 1.2)) + 0.5 * soft_noise(rng, y.shape, 1.5)
    return (one + (two - one) * soft) * (1 + rng.uniform(0.08, 0.2) * hair + 0.1 * muzzle)[..., None]


def _paint_face(rng: Generator, pose: _Pose, muzzle: ndarray, cat: bool, fur: ndarray, y: ndarray, x: ndarray) -> None:
    """Paint nose and eyes, each of ellipses; lengths are in radii of the head."""
    v, u = (y - pose.head[0]) / pose.size, (x - pose.head[1]) / pose.size
    tip = (muzzle - pose.head) / pose.size - (0.1, 0.18 * cat)
    iris = pick_colour(rng, EYES) if cat else palette("38210F")[0]
    ellipses: list[tuple] = [(*tip, 0.11, 0.14, (0.2, 0.12, 0.12))]  # v, u, half height, half width, colour
    for eye in (0.38 * pose.turn - 0.42, 0.38 * pose.turn + 0.42):
        ellipses += [(-0.1, eye, 0.17, 0.2, (0.08, 0.06, 0.05)), (-0.1, eye, 0.13, 0.15, iris)]
        ellipses += [(-0.1, eye, 0.12, 0.06, (0.03,) * 3), (-0.15, eye + 0.05, 0.045, 0.045, (1, 1, 1))]
    for at_v, at_u, high, wide, colour in ellipses:
        fur[((v - at_v) / high) ** 2 + ((u - at_u) / wide) ** 2 < 1] = colour


def _background(rng: Generator, shape: tuple[int, int], light: ndarray) -> ndarray:
    """Paint a garden with bushes and stones, or a room with a sofa and cushions (H, W, 3)."""
    side, garden = min(shape), rng.random() < 0.45
    edge, wide = int(shape[0] * rng.uniform(0.3, 0.65)), shape[1] / side  # where the ground begins
    ground = GREEN if garden else np.vstack([FUR, CLOTH, CLOTH])
    colours = np.vstack([GREEN, FUR]) if garden else ground
    image = cloth(rng, shape, colours, grown=garden)
    image[edge:] = rng.uniform(0.9, 1.2) * cloth(rng, shape, ground, grown=garden)[edge:]
    things = []  # 1 is the shorter side of the picture
    for x in rng.uniform(0, wide, rng.integers(1, 4)):  # bushes, or what is heaped on a sofa
        start = rng.normal((-0.03, x), (0.05, 0.1), (rng.integers(3, 8) if garden else 2, 2))
        end = start + ((0, 0.02) if garden else (0, rng.uniform(0.2, 0.6)))
        radius = rng.uniform(0.05, 0.13) * rng.uniform(0.6, 1.2, (len(start), 1))
        things.append(np.hstack([start, end, radius, radius, 0 * radius]))
    for _ in range(rng.integers(1, 5)):  # stones or cushions
        start, width = rng.uniform((-0.05, 0), (0.5, wide)), rng.uniform(0.04, 0.12)
        end = start + rng.normal(0, (0.04, 0.12))
        things.append(np.array([(*start, *end, width, width * rng.uniform(0.7, 1.1), 0)]))
    for parts in things:
        paint_balls(rng, image, side * parts + (edge, 0, edge, 0, 0, 0, 0), colours, light)
    return image if rng.random() < 0.3 else ndimage.gaussian_filter(image, (1, 1, 0), truncate=2)


def paint_balls(rng: Generator, image: ndarray, parts: ndarray, colours: ndarray, light: ndarray) -> None:
    """Paint swept balls (n, 7) in some cloth into an image (H, W, 3), together one body; lengths are in pixels."""
    ends, radius = parts[:, :4].reshape(-1, 2, 2), parts[:, 4:6, None]
    low = np.clip((ends - radius).min(axis=(0, 1)), 0, image.shape[:2]).astype(int)
    high = np.clip((ends + radius).max(axis=(0, 1)) + 1, 0, image.shape[:2]).astype(int)
    if (high - low).min() >= 2:  # else it is outside, or too small for a slope
        y, x = (axis.astype(np.float32) for axis in np.ogrid[low[0] : high[0], low[1] : high[1]])
        owner, height = swept_balls(y, x, parts)
        seen = owner >= 0
        colour = cloth(rng, seen.shape, colours) * (0.35 + 0.75 * lit(height, seen, 1.5, light))[..., None]
        image[low[0] : high[0], low[1] : high[1]][seen] = colour[seen]


def cloth(rng: Generator, shape: tuple[int, ...], colours: ndarray, grown: bool = False) -> ndarray:
    """Return a texture (H, W, 3) of two colours: stripes, checks, or (all that is `grown`) spots, fibres, plain."""
    one, two = pick_colour(rng, colours), pick_colour(rng, colours)
    y, x = np.ogrid[: shape[0], : shape[1]]
    wave, step, slant = soft_noise(rng, shape, 14), rng.uniform(8, 24), rng.uniform(-0.5, 0.5)
    kind = rng.integers(2 if grown else 0, 5)
    if kind == 0:
        mix = (x + slant * y + 1.5 * wave) / step % 1 < 0.4
    elif kind == 1:
        mix = 0.5 * ((x + wave) / step % 1 < 0.5) + 0.5 * ((y + wave) / step % 1 < 0.5)
    elif kind == 2:
        mix = np.clip(soft_noise(rng, shape, step / 2), 0, 1)
    else:
        mix = np.clip(0.4 + 0.5 * soft_noise(rng, shape, (5, 1.5)), 0, 1) * (kind == 3)
    grain = 1 + 0.07 * soft_noise(rng, shape, 1.3) + 0.1 * wave
    return ((one + (two - one) * (rng.uniform(0.3, 1) * mix)[..., None]) * grain[..., None]).astype(np.float32)
