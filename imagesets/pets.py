"""Synthetic cats and dogs with exact labels, for the part on pets and their outlines.

An animal is a set of balls swept along lines: body, legs, tail, head, ears.  Noise frays its outline like fur.  What
lies around it is made in the same way and of the same colours, so neither colour nor shading gives it away.  Lengths
are about half its body; y points down, and it looks right.  Classes as in the Oxford pets (in another order):
O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, CVPR 2012, doi 10.1109/CVPR.2012.6248092.
"""

from functools import partial

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from scipy import ndimage

from imagesets.streets import palette, photograph, pick_colour, soft_noise
from imagesets.yeast import Scene, writer

VERSION = 3  # raise it when the pictures change, so that an older set on disk is not taken for this one
FUR = palette("CC8542 734D30 2A2827 E6DED1 807D7D DBC294 AD855C 4D4540")
CLOTH = palette("8C332E 334D6B 9E8C6B 596B4D BFB8A8 6B4D38 807A80 D9B366 4D425C")
GREEN = palette("5F8038 7E8C45 4D6B2E 9C9960 6F8050")
EYES = palette("BFAD33 73A659 598CBF")
Head = tuple[float, float, float, float]  # y, x, radius, and how far it is turned to the right, −1 … 1


def pet_scene(rng: Generator, height: int = 160, width: int = 160, species: str | None = None) -> Scene:
    """Draw a "cat", a "dog" or any: image (height, width, 3); label 0 background, 1 pet, 2 a 5 pixel band between."""
    shape, light = (height, width), np.array((-0.75, rng.uniform(-0.5, 0.5), 0.62), dtype=np.float32)
    image = _background(rng, shape, light)
    cat = rng.random() < 0.5 if species is None else species == "cat"
    head, parts = _pet(rng, cat)
    ends, radius, flip = parts[:, :4].reshape(-1, 2, 2), parts[:, 4:6, None], 1 - 2 * int(rng.integers(2))
    low, high = (ends - radius).min(axis=(0, 1)), (ends + radius).max(axis=(0, 1))
    scale = rng.uniform(0.7, 1.25) * min(shape / (high - low))  # pixels a length; a large one is not all in the picture
    top, left = rng.uniform(0.43, 0.57, 2) * shape - scale * (low + high) / 2 * (1, flip)  # of the origin
    y, x = ((np.arange(height)[:, None] - top) / scale, flip * (np.arange(width) - left) / scale)
    fray = rng.uniform(0.3, 0.9) / scale
    furry_y, furry_x = (c + fray * (soft_noise(rng, shape, 2) + soft_noise(rng, shape, 5)) for c in (y, x))
    seen, fur = body(rng, furry_y, furry_x, parts, FUR, light, scale)
    _paint_face(rng, head, parts[-3, 2:4], cat, fur, y, x)
    image *= 1 - 0.5 * np.exp(-(((y - parts[:, 2].max()) / 0.2) ** 2) - (x / 0.8) ** 2)[..., None]  # its shadow
    image[seen] = fur[seen]
    inside, outside = (ndimage.distance_transform_edt(where) for where in (seen, ~seen))
    label = np.select([inside > 2, outside > 3], [1, 0], 2).astype(np.uint8)
    return Scene(photograph(rng, image), label)


write_pets = writer(
    "pets", VERSION, {f"{name}_{{:03}}.png": partial(pet_scene, species=name) for name in ("dog", "cat")}, 160, 160
)


def body(
    rng: Generator, y: ndarray, x: ndarray, parts: ndarray, colours: ndarray, light: ndarray, scale: float = 1
) -> tuple[ndarray, ndarray]:
    """Return where `parts` of one body are seen (H, W), and their colours in the light (H, W, 3)."""
    owner, height = swept_balls(y, x, parts)
    seen = owner >= 0
    return seen, _surface(rng, seen.shape, colours) * (0.32 + 0.8 * lit(scale * height, seen, 2, light))[..., None]


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


def _pet(rng: Generator, cat: bool) -> tuple[Head, ndarray]:
    """Put an animal together, standing or sitting: its head, and its parts (n, 7), the last skull, muzzle, ear, ear."""
    fat, head, tail = rng.uniform(0.85, 1.15), (0.0,) * 4, (0.0, 0.0)
    parts: list[tuple]  # rows of `swept_balls`
    if rng.random() < 0.5:  # standing, seen from its side
        head, tail = (-0.5, 0.78, 0.28, rng.uniform(0.2, 0.7)), (-0.1, -0.7)
        parts = [(0, -0.5, -0.03, 0.42, 0.25 * fat, 0.28 * fat, 0), (-0.05, 0.45, -0.38, 0.72, 0.22, 0.17, 0)]
        foot = rng.uniform(0.4, 0.9)
        for x, near in ((0.4, 0.05), (0.52, -0.12), (-0.52, 0.05), (-0.4, -0.12)):
            parts += [(0.1, x, foot, x + rng.normal(0.03, 0.1), 0.13, 0.07, near)]
    else:  # sitting, seen from the front
        turn = rng.uniform(-0.6, 0.6)
        head, tail = (-0.52, 0.05 * turn, 0.32, turn), (0.75, 0.45 - 0.9 * rng.integers(2))
        parts = [(0.55, 0, 0, 0, 0.38 * fat, 0.25 * fat, 0), (0, 0, -0.3, 0, 0.25, 0.2, 0.02)]
        for s in (-1, 1):
            parts += [(0.62, 0.27 * s * fat, 0.9, 0.38 * s * fat, 0.22, 0.09, 0.05)]
            parts += [(0.1, 0.14 * s, 0.88, 0.16 * s, 0.12, 0.085, 0.2)]
    moved = np.array(parts + _tail(rng, tail, cat))
    moved[:, :4] += rng.normal(0, 0.02, (len(moved), 4))
    return head, np.vstack([moved, _head(rng, head, cat)])


def _tail(rng: Generator, root: tuple[float, float], cat: bool) -> list[tuple]:
    """Chain short pieces away from the body, each turned a little further; a cat has more of them."""
    (y, x), parts = root, list[tuple]()
    angle, curl, thick = rng.uniform(-0.4, 1.1), rng.uniform(-0.1, 0.25), rng.uniform(0.045, 0.085)
    for _ in range(6 if cat else rng.integers(3, 6)):
        end_y, end_x = y - 0.14 * np.sin(angle), x + 0.14 * np.cos(angle) * np.sign(root[1])
        parts.append((y, x, end_y, end_x, thick, 0.93 * thick, -0.05))
        y, x, angle, thick = end_y, end_x, angle + curl, 0.93 * thick
    return parts


def _head(rng: Generator, head: Head, cat: bool) -> ndarray:
    """Return skull, muzzle and ears (4, 7): a cat's are pointed, a dog's hang or stand, and its muzzle is long."""
    (y, x, size, turn), long, low, hang = head, rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.7), rng.random() < 0.6
    if cat:
        muzzle = 0.3, 0.5 * turn - 0.18, 0.3, 0.5 * turn + 0.18, 0.36, 0.36, 0.75
        ear = -0.5, 0.6, -1.35, 0.85, 0.42, 0.06, -0.5
    else:
        muzzle = 0.2, 0.4 * turn, 0.25 + 0.4 * long, (0.5 + long) * turn, 0.5, 0.36, 0.8
        ear = (-0.55, 0.8, low, 1.12, 0.22, 0.3, 0.2) if hang else (-0.5, 0.6, -1.3, 0.75, 0.36, 0.08, -0.5)
    ears = [np.array(ear) * (1, side, 1, side, 1, 1, 1) + (0, 0.1 * turn, 0, 0.1 * turn, 0, 0, 0) for side in (-1, 1)]
    return size * np.array([(0, -0.06, 0, 0.06, 1, 1, 0), muzzle, *ears]) + (y, x, y, x, 0, 0, 0.25)


def _paint_face(rng: Generator, head: Head, muzzle: ndarray, cat: bool, fur: ndarray, y: ndarray, x: ndarray) -> None:
    """Paint nose and eyes, each of ellipses; lengths are in radii of the head."""
    v, u = (y - head[0]) / head[2], (x - head[1]) / head[2]
    nose_v, nose_u = (muzzle - head[:2]) / head[2] - (0.1, 0.18 * cat)
    iris, black = pick_colour(rng, EYES) if cat else palette("38210F")[0], np.full(3, 0.05)
    ellipses = [(nose_v, nose_u, 0.11, 0.14, black)]  # v, u, half height, half width, colour
    for eye in (0.38 * head[3] - 0.42, 0.38 * head[3] + 0.42):
        ellipses += [(-0.1, eye, 0.15, 0.18, iris), (-0.1, eye, 0.13, 0.07, black)]
    for at_v, at_u, high, wide, colour in ellipses:
        fur[((v - at_v) / high) ** 2 + ((u - at_u) / wide) ** 2 < 1] = colour


def _background(rng: Generator, shape: tuple[int, int], light: ndarray) -> ndarray:
    """Paint a wall, a floor, and bushes or cushions that stand about (H, W, 3)."""
    colours = np.vstack([FUR, CLOTH if rng.random() < 0.5 else GREEN])
    side, edge = min(shape), int(shape[0] * rng.uniform(0.3, 0.65))  # where the ground begins
    image = _surface(rng, shape, colours)
    image[edge:] = _surface(rng, shape, colours)[edge:]
    y, x = (axis.astype(np.float32) for axis in np.ogrid[: shape[0], : shape[1]])
    for row in np.sort(rng.uniform(edge - 0.1 * side, 0.9 * shape[0], rng.integers(3, 8))):
        start = rng.normal((row, rng.uniform(0, shape[1])), 0.07 * side, (rng.integers(1, 5), 2))
        end, radius = start + side * rng.normal(0, (0.02, 0.15), start.shape), rng.uniform(0.04, 0.12, (len(start), 1))
        balls = np.hstack([start, end, side * radius, side * radius, 0 * radius])
        seen, colour = body(rng, y, x, balls, colours, light)
        image[seen] = colour[seen]
    return ndimage.gaussian_filter(image, (0.8, 0.8, 0), truncate=2)


def _surface(rng: Generator, shape: tuple[int, ...], colours: ndarray) -> ndarray:
    """Return hair or cloth (H, W, 3) of two colours: in stripes, in patches, mingled, or nearly plain."""
    one, two = pick_colour(rng, colours), pick_colour(rng, colours)
    y, x = np.ogrid[: shape[0], : shape[1]]
    wave, step, slant = soft_noise(rng, shape, 14), rng.uniform(8, 24), rng.uniform(-0.5, 0.5)
    stripes, patches = (x + slant * y + 3 * wave) / step % 1 < 0.4, 3 * soft_noise(rng, shape, step)
    hair = soft_noise(rng, shape, (3, 1.2))
    mix = np.clip((stripes, patches, 0.4 + 0.5 * hair, 0.2 + 0.2 * wave)[rng.integers(4)], 0, 1) * rng.uniform(0.3, 1)
    mixed = one + (two - one) * mix[..., None]
    return (mixed * (1 + rng.uniform(0.05, 0.2) * hair + 0.1 * wave)[..., None]).astype(np.float32)
