"""Synthetic streets, seen from a car, and cats and dogs, all with exact labels: for the parts on roads, FCNs and pets.

A street is laid out in metres and seen through a pinhole camera: a point at height h, x to the right and z ahead is
seen at the slopes x / z and (eye − h) / z.  Neither brightness nor place tells the classes apart, which are CamVid's
(Brostow et al., 2009, doi 10.1016/j.patrec.2008.04.005).  An animal, its classes as in the Oxford pets (Parkhi et al.,
2012, doi 10.1109/CVPR.2012.6248092), is a set of balls swept along lines, frayed by noise like fur; what lies around it
is made in the same way and of the same colours.  Pictures are float32 (H, W, 3), 0 … 1, until `photograph` makes bytes.
"""

import math
from collections import namedtuple
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

from checks import IGNORE_INDEX
from imagesets.yeast import Box, Scene, writer

VERSION = 4  # raise it when the pictures change, so that an older set on disk is not taken for this one
SKY, BUILDING, TREE, ROAD, PAVEMENT, CAR = range(6)  # TREE is all that is green; the own bonnet is void


def palette(codes: str) -> ndarray:
    """Read colours, float32 (n, 3) between 0 and 1, from their codes, as "FF0000 00FF00"."""
    return np.array([[*bytes.fromhex(code)] for code in codes.split()], dtype=np.float32) / 255


WALLS = palette("B8A88F 9E9991 807D7A 995E54 CCC4B3 8F857A B3946E 736661 A8ADB3")
LEAVES = palette("385C24 4D6B29 294A21 5C6626 80611F 475733")
GLASS = palette("29303B 404D5C 738599")
PAINTS = palette("141417 D9D9DB 7A7D82 4D4F54 991414 1A3373 9EA1A6 265240 BF9926")
FUR = palette("CC8542 734D30 2A2827 E6DED1 807D7D DBC294 AD855C 4D4540")
CLOTH = palette("8C332E 334D6B 9E8C6B 596B4D BFB8A8 6B4D38 807A80 D9B366 4D425C")
GREEN = palette("5F8038 7E8C45 4D6B2E 9C9960 6F8050")
# Something upright on the ground, in metres; `x` is its middle, `z` its near end
_Thing = namedtuple("_Thing", "kind x z width length height")


def street_scene(rng: Generator, height: int = 256, width: int = 256) -> Scene:
    """Draw a street: image (H, W, 3), label 0 sky, 1 building, 2 green, 3 road, 4 pavement, 5 car, 255 void."""
    street = _Street(rng, height, width)
    things = street.layout()
    street.paint_sky()
    street.paint_ground(things)
    painters = {BUILDING: street.paint_building, TREE: street.paint_tree, CAR: street.paint_car}
    for thing in sorted(things, key=lambda thing: (thing.kind != BUILDING, -thing.z)):  # the near ones last
        painters[thing.kind](thing)
    if rng.random() < 0.5:  # the bonnet of the own car
        y, x = np.ogrid[: 1 : height * 1j, -1 : 1 : width * 1j]
        deep = y - rng.uniform(0.88, 0.96) - rng.uniform(0.03, 0.1) * x**2
        colour = pick_colour(rng, PAINTS) * (0.55 + 6 * np.clip(deep, 0, 0.06))[..., None]
        street.paint(np.s_[:, :], deep > 0, colour, IGNORE_INDEX, 0)
    return Scene(photograph(rng, street.image), street.label)


def _road_scene(rng: Generator, height: int, width: int) -> Scene:
    """The pictures of `street_scene` with the labels 1 road, 0 all else, 255 void."""
    scene = street_scene(rng, height, width)
    return replace(scene, label=np.where(scene.label == IGNORE_INDEX, scene.label, scene.label == ROAD))


write_streets = writer("streets", VERSION, {"street_{:03}.png": street_scene}, 60)
write_roads = writer("roads", VERSION, {"road_{:03}.png": _road_scene}, 120)


def pick_colour(rng: Generator, colours: ndarray) -> ndarray:
    """Return one colour (3,) of a palette (n, 3), made a little lighter or darker, warmer or colder."""
    colour = colours[rng.integers(len(colours))] * rng.uniform(0.85, 1.12)
    return np.clip(colour + rng.normal(0, 0.015, 3), 0.02, 0.98).astype(np.float32)


def soft_noise(rng: Generator, shape: tuple[int, ...], cell: float | tuple[float, float]) -> ndarray:
    """Return smooth float32 noise (H, W), mean 0, standard deviation 0.7, with spots about `cell` pixels wide."""
    cells = np.broadcast_to(np.asarray(cell, dtype=float), 2)
    counts = (shape / cells).astype(int) + 3
    numbers = Image.fromarray(rng.standard_normal(counts, dtype=np.float32))
    height, width = np.ceil(counts * cells).astype(int).tolist()
    return np.asarray(numbers.resize((width, height), Image.Resampling.BICUBIC))[: shape[0], : shape[1]]


def photograph(rng: Generator, image: ndarray) -> ndarray:
    """Return the picture as uint8: exposed more or less, in warmer or colder light, slightly blurred, with noise."""
    tint = rng.uniform(0.85, 1.15) * (1 + rng.normal(0, 0.04) * np.array((1, 0, -1)))
    blurred = ndimage.gaussian_filter(image * tint.astype(np.float32), (0.55, 0.55, 0), truncate=2)
    blurred += rng.uniform(0.006, 0.018) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.rint(255 * np.clip(blurred, 0, 1)).astype(np.uint8)


class _Street:
    """The road, the weather and the camera, chosen at random, and the picture that is being painted."""

    def __init__(self, rng: Generator, height: int, width: int) -> None:
        self.rng, shape, side = rng, (height, width), math.sqrt(height * width)
        self.town = bool(rng.random() < 0.65)
        self.wide = rng.uniform(4, 9)  # the road, in metres
        self.walks = rng.uniform(1.5, 4, 2) * (rng.random(2) < (0.92 if self.town else 0.5))  # left, right pavement
        self.bend = rng.uniform(0.3, 2.5 if self.town else 9)  # the road swings so far to both sides …
        self.reach, self.phase = rng.uniform(10, 30), rng.uniform(0, 6.3)  # … over 2π · reach metres, starting here …
        self.start = -rng.uniform(-0.1, 0.4) * self.wide - self.bend * math.sin(4 / self.reach + self.phase)  # … at x
        self.sun = rng.uniform(0.4, 1) * (rng.random() < 0.65)  # 0 behind clouds … 1
        self.side = 1 - 2 * int(rng.integers(2))  # where shadows fall: −1 left, 1 right
        self.sight = 100 * rng.uniform(1, 3) ** 2  # metres after which haze leaves 1 / e of a colour
        self.eye = rng.uniform(1.3, 2.8)  # height of the camera
        focal, horizon, middle = rng.uniform((0.5, 0.28, 0.22), (0.9, 0.55, 0.78)) * (side, height, width)
        self.x = ((np.arange(width) + 0.5 - middle) / focal).astype(np.float32)  # (W,) slopes to the right
        self.y = ((np.arange(height)[:, None] + 0.5 - horizon) / focal).astype(np.float32)  # (H, 1) and downwards
        self.image, self.label = np.zeros((*shape, 3), dtype=np.float32), np.zeros(shape, dtype=np.uint8)
        self.rough = soft_noise(rng, shape, 2.2) + 1.5 * soft_noise(rng, shape, 6)  # for leaves and plaster

    def centre(self, z: Any) -> Any:  # x of the middle of the road
        return self.start + self.bend * np.sin(z / self.reach + self.phase)

    def face(self, x: tuple[float, float], z: tuple[float, float], top: float) -> tuple[Box, ndarray, ndarray, ndarray]:
        """Return the box of a standing rectangle (both x or both z equal), and x, z, height of its pixels."""
        columns = slice(*np.searchsorted(self.x, sorted((x[0] / z[0], x[1] / z[1]))))
        rows = slice(*np.searchsorted(self.y[:, 0], ((self.eye - top) / z[0], self.eye / z[0])))
        slope = self.x[columns]
        depth = x[0] / slope if x[0] == x[1] else np.full_like(slope, z[0])
        x_seen, z_seen, height = np.broadcast_arrays(slope * depth, depth, self.eye - self.y[rows] * depth)
        return (rows, columns), x_seen, z_seen, height

    def paint(self, box: Box, where: ndarray, colour: ndarray, number: int, z: ndarray | float) -> None:
        """Colour and label the pixels `where` of a box; haze hides them the more, the farther they are."""
        clear = np.broadcast_to(np.exp(-np.asarray(z, dtype=np.float32) / self.sight), where.shape)[where][:, None]
        haze = 0.65 + 0.15 * self.sun
        self.image[box][where] = haze + (np.broadcast_to(colour, (*where.shape, 3))[where] - haze) * clear
        self.label[box][where] = number

    def layout(self) -> list[_Thing]:
        """Place houses, trees and cars along both sides of the road."""
        rng, wide, town, things = self.rng, self.wide, self.town, []
        for side, walk in zip((-1, 1), self.walks):
            facade = wide / 2 + walk + self.bend + rng.uniform(0.3, 3 if town else 12) + side * self.start
            z = 2.0
            while z < 110:
                length = rng.uniform(7, 18)
                if rng.random() < (0.8 if town else 0.3):
                    x, high = side * (facade + 6 + rng.uniform(0, 1.5)), rng.uniform(4, 15 if town else 7)
                    things.append(_Thing(BUILDING, x, z, 12, length, high))
                z += length + rng.integers(2) * rng.uniform(0, 6)
            for z in rng.uniform(6, 70, rng.poisson(3 if town else 7)):
                x, high = side * self.centre(z) + wide / 2 + rng.uniform(0.8, 3 if town else 14), rng.uniform(2.5, 8)
                things.append(_Thing(TREE, side * min(x, facade), z, high * rng.uniform(0.4, 0.75), 0, high))
            for z in rng.uniform(5, 14) + 11 * np.arange(rng.integers(1, 6)):
                x = self.centre(z) + side * (wide / 4 if rng.random() < 0.5 else wide / 2 + rng.uniform(-0.6, 0.7))
                things.append(_Thing(CAR, x, z, 1.8, 4, rng.uniform(1.4, 1.9)))
        return things

    def paint_sky(self) -> None:
        rng, shape = self.rng, self.label.shape
        rise = np.clip(self.y / self.y[0], 0, 1)[..., None]  # 0 at the horizon … 1
        self.image[:] = 0.86 - rise * self.sun * np.array((0.54, 0.34, 0.02))
        cloud = np.clip(1.2 * soft_noise(rng, shape, (shape[0] / 15, shape[1] / 8)) + rng.uniform(-1, 0.4), 0, 1)
        self.image += 0.8 * cloud[..., None] * (rng.uniform(0.8, 0.98) - self.image)
        ridge = rng.uniform(0.01, 0.08) * (1 + 0.6 * soft_noise(rng, (1, shape[1]), (1, shape[1] / 15)))
        self.paint(np.s_[:, :], self.y > -ridge, pick_colour(rng, LEAVES), TREE, 100)  # woods far away

    def paint_ground(self, things: list[_Thing]) -> None:
        rng, top = self.rng, int(np.searchsorted(self.y[:, 0], 0.004))  # a row above would be half a kilometre away
        box, z = np.s_[top:, :], self.eye / self.y[top:]  # (h, 1)
        x = z * self.x  # (h, W)
        off = x - self.centre(z)  # metres to the right of the middle of the road
        out = np.abs(off) - self.wide / 2  # and beside the road
        road, paved = out < 0, out < np.where(off < 0, *self.walks)
        half = 0.07 + 0.0008 * z  # far lines are drawn wider, or they would vanish
        dashes = (np.abs(off) < half) & (z / rng.uniform(6, 10) % 1 < 0.5) & (rng.random() < 0.75)
        marks = dashes | (np.abs(out + 0.35) < half) & (rng.random() < 0.5)
        asphalt = rng.uniform(0.32, 0.54) + rng.normal(0, 0.012, 3)
        slabs = asphalt * rng.choice((0.75, 1.3)) + rng.normal(0, 0.02, 3)
        colours = np.array([asphalt, [rng.uniform(0.7, 0.95)] * 3, slabs, 1.2 * pick_colour(rng, LEAVES)], np.float32)
        joints = ((off % 0.8 < 0.07) | (z % 0.8 < 0.05)) & (z < 22)
        blades = 0.2 * soft_noise(rng, x.shape, (3, 1.3))
        gain = 1 + 0.03 * self.rough[box] + np.select([road, paved], [0, -0.25 * joints], blades)
        gain *= (1 + 0.2 * self.sun) * (1 - self._shadows(things, x, z))
        colour = colours[np.select([marks, road, paved], [1, 0, 2], 3)] * gain[..., None]
        self.paint(box, np.ones(x.shape, dtype=bool), colour, ROAD, z)
        self.label[box] = np.select([road, paved], [ROAD, PAVEMENT], TREE)

    def _shadows(self, things: list[_Thing], x: ndarray, z: ndarray) -> ndarray:
        """Return how dark the shadows on the ground are: ellipses, as wide and long as what throws them."""
        dark, reach = np.zeros_like(x), self.rng.uniform(0.4, 1.2)
        for thing in things:
            strength, move = (0.85, 0.2) if thing.kind == CAR else (0.55 * (self.sun > 0), reach * thing.height)
            wide, deep = (thing.width + move) / 2, 0.1 + max(0.6 * thing.length, 0.3 * thing.width)
            q = ((x - thing.x - 0.6 * self.side * move) / wide) ** 2 + ((z - thing.z - thing.length / 2) / deep) ** 2
            dark = np.maximum(dark, strength * np.clip(3 - 3 * q, 0, 1))
        return dark

    def paint_building(self, thing: _Thing) -> None:
        """Paint the wall that looks along the street and the one that looks across it, with rows of windows."""
        rng, inner = self.rng, thing.x - np.sign(thing.x) * thing.width / 2
        wall, glass = pick_colour(rng, WALLS), pick_colour(rng, GLASS)
        storey, bay = rng.uniform((2.7, 1.6), (3.5, 3.2))
        ends, sides = (thing.z, thing.z + thing.length), (thing.x - thing.width / 2, thing.x + thing.width / 2)
        lit = 1.2 if np.sign(inner) == self.side else 0.7  # a wall on this side looks to the sun
        for xs, zs, light in ((sides, ends[:1] * 2, 0.88), ((inner, inner), ends, lit)):
            box, x, z, height = self.face(xs, zs, thing.height)
            pane = (np.abs((x + z) / bay % 1 - 0.5) < 0.25) & (np.abs(height / storey % 1 - 0.55) < 0.25)
            gain = (1 + 0.05 * self.rough[box]) * (1 + self.sun * (light - 1))
            colour = np.where(pane[..., None], glass, wall) * gain[..., None]
            self.paint(box, (height > 0) & (height < thing.height), colour, BUILDING, z)

    def paint_tree(self, thing: _Thing) -> None:
        rng, high = self.rng, thing.height
        leaf, low = pick_colour(rng, LEAVES), rng.uniform(0.05, 0.35) * high
        sides = thing.x - 0.8 * thing.width, thing.x + 0.8 * thing.width
        box, x, _, height = self.face(sides, (thing.z, thing.z), 1.2 * high)
        trunk = (np.abs(x - thing.x) < 0.035 * high) & (height < (high + low) / 2) & (height > 0)
        self.paint(box, trunk, np.array((0.24, 0.18, 0.13), np.float32), TREE, thing.z)
        u, v = (x - thing.x) / thing.width * 1.8, (2 * height - high - low) / (high - low)
        crown = (np.hypot(u, v) + 0.12 * self.rough[box] < 1) & (height > 0)
        light = 0.85 + 0.3 * v - 0.22 * self.sun * self.side * u + 0.15 * self.rough[box]
        self.paint(box, crown, leaf * np.clip(light, 0.25, 2)[..., None] * (1 + 0.3 * self.sun), TREE, thing.z)

    def paint_car(self, thing: _Thing) -> None:
        """Paint the side of a car and, before it, the end that we see."""
        lamp = (0.75, 0.08, 0.06) if thing.x > self.centre(thing.z) else (0.95, 0.93, 0.8)  # tail or head lamps
        colours = np.array([pick_colour(self.rng, PAINTS), GLASS[0], lamp, (0.06, 0.06, 0.06)], np.float32)  # 3 tyre
        inner, sides = thing.x - np.sign(thing.x) * 0.9, (thing.x - 0.9, thing.x + 0.9)
        box, _, z, height = self.face((inner, inner), (thing.z, thing.z + thing.length), 0.6 * thing.height)
        self.paint(box, height > 0.2, 0.7 * colours[0], CAR, z)
        box, x, _, height = self.face(sides, (thing.z, thing.z), thing.height)
        s, h = np.abs(x - thing.x) / 0.9, height / thing.height
        outline = 1 - 0.4 * np.clip(h - 0.55, 0, 1)
        tyres, lamps = (h < 0.16) & (s > 0.7), (h > 0.42) & (h < 0.56) & (s > 0.7)
        code = np.select([(h > 0.6) & (h < 0.9) & (s < outline - 0.14), lamps, tyres], [1, 2, 3], 0)
        where = (s < outline) & ((h > 0.14) | tyres) & (h > 0)
        self.paint(box, where, colours[code] * (0.75 + 0.35 * h)[..., None], CAR, thing.z)


def pet_scene(rng: Generator, height: int = 160, width: int = 160, species: str | None = None) -> Scene:
    """Draw a "cat", a "dog" or any: image (height, width, 3); label 0 background, 1 pet, 2 a 5 pixel band between."""
    shape, light = (height, width), np.array((-0.75, rng.uniform(-0.5, 0.5), 0.62), dtype=np.float32)
    image = _background(rng, shape, light)
    parts = _pet(rng, rng.random() < 0.5 if species is None else species == "cat")
    ends, radius, flip = parts[:, :4].reshape(-1, 2, 2), parts[:, 4:6, None], 1 - 2 * int(rng.integers(2))
    low, high = (ends - radius).min(axis=(0, 1)), (ends + radius).max(axis=(0, 1))
    scale = rng.uniform(0.7, 1.25) * min(shape / (high - low))  # pixels a length; a large one is not all in the picture
    top, left = rng.uniform(0.43, 0.57, 2) * shape - scale * (low + high) / 2 * (1, flip)  # of the origin
    y, x = ((np.arange(height)[:, None] - top) / scale, flip * (np.arange(width) - left) / scale)
    fray = rng.uniform(0.3, 0.9) / scale
    furry_y, furry_x = (c + fray * (soft_noise(rng, shape, 2) + soft_noise(rng, shape, 5)) for c in (y, x))
    seen, fur = _body(rng, furry_y, furry_x, parts, FUR, light, scale)
    head_y, head_x, _, _, size, *_ = parts[0]
    for up, side in ((-0.1, -0.42), (-0.1, 0.42), (0.25, 0)):  # eyes and nose
        fur[np.hypot(y - head_y - up * size, x - head_x - (side + 0.2) * size) < 0.13 * size] = 0.05
    image *= 1 - 0.5 * np.exp(-(((y - parts[:, 2].max()) / 0.2) ** 2) - (x / 0.8) ** 2)[..., None]  # its shadow
    image[seen] = fur[seen]
    inside, outside = (ndimage.distance_transform_edt(where) for where in (seen, ~seen))
    label = np.select([inside > 2, outside > 3], [1, 0], 2).astype(np.uint8)
    return Scene(photograph(rng, image), label)


_DOG_AND_CAT = {f"{name}_{{:03}}.png": partial(pet_scene, species=name) for name in ("dog", "cat")}
write_pets = writer("pets", VERSION, _DOG_AND_CAT, 160, 160)


def _body(
    rng: Generator, y: ndarray, x: ndarray, parts: ndarray, colours: ndarray, light: ndarray, scale: float = 1
) -> tuple[ndarray, ndarray]:
    """Return where balls that are swept along lines are seen (H, W), and their colours in the light (H, W, 3).

    `parts` (n, 7): y, x of one end, of the other, both radii, how much nearer it is.  `light` (3,) points to the lamp:
    down, right, to the viewer.  A length is `scale` pixels.
    """
    height = np.full(np.broadcast_shapes(y.shape, x.shape), -np.inf, dtype=np.float32)  # of what is seen, if anything
    for ay, ax, by, bx, radius, end_radius, nearer in parts.tolist():
        dy, dx = by - ay, bx - ax
        t = np.clip(((y - ay) * dy + (x - ax) * dx) / max(dy * dy + dx * dx, 1e-6), 0, 1)  # where the nearest ball is
        squared = (radius + (end_radius - radius) * t) ** 2 - (y - ay - t * dy) ** 2 - (x - ax - t * dx) ** 2
        height = np.maximum(np.where(squared > 0, np.sqrt(np.maximum(squared, 0)) + nearer, -np.inf), height)
    seen, smooth = height > -np.inf, partial(ndimage.gaussian_filter, sigma=2, truncate=2.5)
    surface = smooth(np.where(seen, scale * height, 0)) / np.maximum(smooth(seen.astype(np.float32)), 0.01)
    slope_y, slope_x = np.gradient(surface)
    facing = (light[2] - light[0] * slope_y - light[1] * slope_x) / np.sqrt(1 + slope_y**2 + slope_x**2)
    bright = 0.32 + 0.8 * np.clip(facing / np.linalg.norm(light), 0, None)
    return seen, _surface(rng, seen.shape, colours) * bright[..., None]


# Parts of an animal as `_body` takes them, first the skull; y points down, it looks right, half its body is about 1
_STANDING = [(-0.5, 0.74, -0.5, 0.82, 0.28, 0.28, 0.25), (-0.42, 0.95, -0.4, 1.0, 0.15, 0.1, 0.45)]  # and the muzzle
_STANDING += [(0, -0.5, -0.03, 0.42, 0.25, 0.28, 0), (-0.05, 0.45, -0.38, 0.72, 0.22, 0.17, 0)]  # belly and neck
_STANDING += [(0.1, x, 0.65, x, 0.13, 0.07, near) for x, near in ((0.4, 0), (0.55, -0.1), (-0.55, 0), (-0.4, -0.1))]
_STANDING += [(-0.1, -0.7, -0.4, -1, 0.08, 0.07, 0), (-0.4, -1, -0.8, -1.1, 0.07, 0.05, 0)]  # the tail
_SITTING = [(-0.5, -0.03, -0.5, 0.03, 0.32, 0.32, 0.25), (-0.4, 0, -0.37, 0.05, 0.15, 0.1, 0.5)]
_SITTING += [(0.55, 0, 0, 0, 0.38, 0.25, 0), (0, 0, -0.3, 0, 0.25, 0.2, 0)]
_SITTING += [(0.1, 0.14 * side, 0.88, 0.16 * side, 0.12, 0.09, 0.2) for side in (-1, 1)]
_SITTING += [(0.62, 0.27 * side, 0.9, 0.38 * side, 0.22, 0.09, 0.05) for side in (-1, 1)]
_SITTING += [(0.75, 0.35, 0.7, 0.7, 0.08, 0.07, 0), (0.7, 0.7, 0.4, 0.9, 0.07, 0.05, 0)]


def _pet(rng: Generator, cat: bool) -> ndarray:
    """Return the parts of an animal that stands, seen from its side, or sits, seen from the front; cats' ears point."""
    parts = np.array(_STANDING if rng.random() < 0.5 else _SITTING)
    parts[:, :4] += rng.normal(0, 0.03, (len(parts), 4))
    y, x, _, _, size, *_ = parts[0]
    ear = (-0.5, 0.6, -1.35, 0.85, 0.42, 0.06, 0) if cat else (-0.55, 0.8, rng.uniform(-1, 0.7), 1.1, 0.25, 0.3, 0.5)
    ears = [size * np.array(ear) * (1, side, 1, side, 1, 1, 1) + (y, x, y, x, 0, 0, 0) for side in (-1, 1)]
    return np.vstack([parts, ears])


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
        seen, colour = _body(rng, y, x, balls, colours, light)
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
