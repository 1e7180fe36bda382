"""Synthetic streets, seen from a car, and cats and dogs, all with exact labels: for the parts on roads, FCNs and pets.

A street is laid out in metres and seen through a pinhole camera: a point at height h, x to the right and z ahead is
seen at the slopes x / z and (eye − h) / z.  Neither brightness nor place tells the classes apart, which are CamVid's
(Brostow et al., 2009, doi 10.1016/j.patrec.2008.04.005).  An animal, its classes as in the Oxford pets (Parkhi et al.,
2012, doi 10.1109/CVPR.2012.6248092), is a set of balls swept along lines, frayed by noise like fur; what lies around it
is made in the same way and of the same colours.  Pictures are floats (H, W, 3), 0 … 1, until `photograph` makes bytes.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from scipy import ndimage

from checks import IGNORE_INDEX
from imagesets.yeast import Box, Scene, smooth_noise, writer

VERSION = 5  # raise it when the pictures change, so that an older set on disk is not taken for this one
SKY, BUILDING, TREE, ROAD, PAVEMENT, CAR = range(6)  # TREE is all that is green; the own bonnet is void
WALLS = "B8A88F 9E9991 807D7A 995E54 CCC4B3 8F857A B3946E 736661 A8ADB3"
LEAVES = "385C24 4D6B29 294A21 5C6626 80611F 475733"
PAINTS = "141417 D9D9DB 7A7D82 4D4F54 991414 1A3373 9EA1A6 265240 BF9926"
FUR = "CC8542 734D30 2A2827 E6DED1 807D7D DBC294 AD855C 4D4540"
CLOTH = "8C332E 334D6B 9E8C6B 596B4D BFB8A8 6B4D38 807A80 D9B366 4D425C"


def pick_colour(rng: Generator, colours: str) -> ndarray:
    """Return one of the colours, as "FF0000 00FF00", made a little lighter or darker: (3,), 0 … 1."""
    return np.array([*bytes.fromhex(rng.choice(colours.split()))]) / 255 * rng.uniform(0.85, 1.1)


def photograph(rng: Generator, image: ndarray) -> ndarray:
    """Return the picture as uint8: exposed more or less, in warmer or colder light, slightly blurred, with noise."""
    tint = rng.uniform(0.85, 1.15) * (1 + rng.normal(0, 0.04) * np.array((1, 0, -1)))
    blurred = ndimage.gaussian_filter(image * tint, (0.55, 0.55, 0), truncate=2)
    blurred += rng.uniform(0.006, 0.018) * rng.standard_normal(image.shape)
    return np.rint(255 * np.clip(blurred, 0, 1)).astype(np.uint8)


def street_scene(rng: Generator, height: int = 256, width: int = 256) -> Scene:
    """Draw a street: image (H, W, 3), label 0 sky, 1 building, 2 green, 3 road, 4 pavement, 5 car, 255 void."""
    street = _Street(rng, height, width)
    street.paint_sky()
    street.paint_ground()
    street.paint_things()
    if rng.random() < 0.5:  # the bonnet of the own car
        y, x = np.ogrid[: 1 : height * 1j, -1 : 1 : width * 1j]
        bonnet = y - rng.uniform(0.03, 0.1) * x**2 > rng.uniform(0.88, 0.96)
        street.paint(np.s_[:, :], bonnet, pick_colour(rng, PAINTS) * (0.6 + y[..., None] / 4), IGNORE_INDEX, 0)
    return Scene(photograph(rng, street.image), street.label)


def _road_scene(rng: Generator, height: int, width: int) -> Scene:
    """The pictures of `street_scene` with the labels 1 road, 0 all else, 255 void."""
    scene = street_scene(rng, height, width)
    return replace(scene, label=np.where(scene.label == IGNORE_INDEX, scene.label, scene.label == ROAD))


write_streets = writer("streets", VERSION, {"street_{:03}.png": street_scene}, 60)
write_roads = writer("roads", VERSION, {"road_{:03}.png": _road_scene}, 120)


class _Street:
    """The road and the camera, chosen at random, and the picture that is being painted."""

    def __init__(self, rng: Generator, height: int, width: int) -> None:
        self.rng, shape = rng, (height, width)
        self.wide = rng.uniform(4, 9)  # the road, in metres
        self.walks = rng.uniform(1.5, 4, 2) * (rng.random(2) < 0.7)  # left, right pavement
        # the road swings so far to both sides, over 2π · reach metres, and begins at the phase
        self.bend, self.reach, self.phase = 0.3 + 6 * rng.random() ** 2, *rng.uniform((10, 0), (30, 6.3))
        self.start = -rng.uniform(-0.1, 0.4) * self.wide - self.bend * np.sin(4 / self.reach + self.phase)
        self.eye = rng.uniform(1.3, 2.8)  # height of the camera
        focal, horizon, middle = rng.uniform((0.5, 0.28, 0.22), (0.9, 0.55, 0.78)) * (min(shape), *shape)
        self.x = (np.arange(width) + 0.5 - middle) / focal  # (W,) slopes to the right
        self.y = (np.arange(height)[:, None] + 0.5 - horizon) / focal  # (H, 1) and downwards
        self.image, self.label = np.zeros((*shape, 3)), np.full(shape, SKY, dtype=np.uint8)
        self.rough = 0.7 * smooth_noise(rng, shape, 0.9) + smooth_noise(rng, shape, 2.5)  # for leaves and plaster

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

    def paint(self, box: Box, where: ndarray, colour: ndarray, number: int | ndarray, z: ndarray | float) -> None:
        """Colour and label the pixels `where` of a box; haze hides them the more, the farther they are."""
        clear = np.exp(-np.asarray(z) / 350)[..., None]
        self.image[box] = np.where(where[..., None], 0.75 + (colour - 0.75) * clear, self.image[box])
        self.label[box] = np.where(where, number, self.label[box])

    def paint_sky(self) -> None:
        rng, (H, W) = self.rng, self.label.shape
        rise = np.clip(self.y / self.y[0], 0, 1)[..., None]  # 0 at the horizon … 1
        self.image[:] = 0.86 - rise * rng.random() * np.array((0.54, 0.34, 0.02))
        cloud = np.clip(smooth_noise(rng, (H, W), (H / 40, W / 20)) + rng.uniform(-1, 0.4), 0, 1)[..., None]
        self.image += 0.8 * cloud * (rng.uniform(0.8, 0.98) - self.image)

    def paint_ground(self) -> None:
        rng, top = self.rng, int(np.searchsorted(self.y[:, 0], 0.004))  # a row above would be half a kilometre away
        box, z = np.s_[top:, :], self.eye / self.y[top:]  # (h, 1)
        off = z * self.x - self.centre(z)  # (h, W): metres to the right of the middle of the road
        out = np.abs(off) - self.wide / 2  # and beside the road
        number = np.select([out < 0, out < np.where(off < 0, *self.walks)], [ROAD, PAVEMENT], TREE)
        half = 0.07 + 0.0008 * z  # far lines are drawn wider, or they would vanish
        dashes = (np.abs(off) < half) & (z / rng.uniform(6, 10) % 1 < 0.5)
        marks = dashes | (np.abs(out + 0.35) < half * rng.integers(2))
        asphalt = rng.uniform(0.32, 0.54) + rng.normal(0, 0.012, 3)
        slabs = asphalt * rng.uniform(0.8, 1.2) + rng.normal(0, 0.02, 3)
        colours = np.array([1.2 * pick_colour(rng, LEAVES), asphalt, slabs])[number - TREE]
        shade = np.clip(smooth_noise(rng, off.shape, (4, 30)), 0, 1) * rng.uniform(0, 0.8)  # of clouds and trees
        gain = (1 + np.where(number == TREE, 0.1, 0.05) * self.rough[box]) * (1.1 - shade)
        colours = np.where(marks[..., None], rng.uniform(0.7, 0.95), colours) * gain[..., None]
        self.paint(box, np.ones_like(marks), colours, number, z)

    def paint_things(self) -> None:
        """Paint houses, trees and cars along both sides of the road, the near ones last."""
        rng, things = self.rng, list[Any]()
        for side, walk in zip((-1, 1), self.walks):
            facade = self.wide / 2 + walk + self.bend + rng.uniform(0.3, 5) + side * self.start
            for z in np.arange(98, 0, -12)[rng.random(9) < rng.uniform(0.2, 1)]:
                self.paint_house(side * (facade + rng.uniform(0, 1.5)), z, 12 * side)
            for z in rng.uniform(6, 70, rng.poisson(5)):
                x = side * self.centre(z) + self.wide / 2 + rng.uniform(0.8, 8)
                things.append((z, side * min(x, facade), self.paint_tree))
            for z in rng.uniform(7, 16) + 11 * np.arange(rng.integers(1, 6)):
                beside = self.wide / 4 if rng.random() < 0.5 else self.wide / 2 + rng.uniform(-0.6, 0.7)
                things.append((z, self.centre(z) + side * beside, self.paint_car))
        for z, x, paint in sorted(things, key=lambda thing: -thing[0]):
            paint(x, z)

    def paint_house(self, x: float, z: float, deep: float) -> None:
        """Paint the wall that looks along the street and the one that looks across it, with rows of windows."""
        rng, wall = self.rng, pick_colour(self.rng, WALLS)
        top, (bay, storey) = rng.uniform(4, 14), rng.uniform((1.6, 2.7), (3.2, 3.5))
        walls = ((x, x + deep), (z, z)), ((x, x), (z, z + rng.uniform(7, 12)))
        for (xs, zs), light in zip(walls, rng.uniform(0.7, 1.2, 2)):
            box, across, ahead, height = self.face(xs, zs, top)
            pane = (np.abs((across + ahead) / bay % 1 - 0.5) < 0.25) & (np.abs(height / storey % 1 - 0.55) < 0.25)
            colour = np.where(pane[..., None], (0.2, 0.24, 0.3), wall) * light * (1 + 0.05 * self.rough[box])[..., None]
            self.paint(box, (height > 0) & (height < top), colour, BUILDING, ahead)

    def paint_tree(self, x: float, z: float) -> None:
        rng, top = self.rng, self.rng.uniform(2.5, 8)
        low, half = top * rng.uniform((0.05, 0.2), (0.35, 0.4))  # of the crown
        box, across, _, height = self.face((x - 1.5 * half, x + 1.5 * half), (z, z), 1.2 * top)
        u, v = (across - x) / half, (2 * height - top - low) / (top - low)
        crown, trunk = np.hypot(u, v) + 0.12 * self.rough[box] < 1, (np.abs(u) < 0.15) & (v < 0)
        light = np.clip(0.95 + 0.3 * v + 0.15 * self.rough[box], 0.25, 2)[..., None]
        colour = np.where(crown[..., None], pick_colour(rng, LEAVES) * light, (0.24, 0.18, 0.13))
        self.paint(box, (crown | trunk) & (height > 0), colour, TREE, z)

    def paint_car(self, x: float, z: float) -> None:
        """Paint the side of a car and, before it, the end that we see: body, window, and dark what is below."""
        top, inner = self.rng.uniform(1.4, 1.9), x - np.sign(x) * 0.9
        colours = np.array([pick_colour(self.rng, PAINTS), (0.16, 0.19, 0.23), (0.06, 0.06, 0.06)])
        box, _, ahead, height = self.face((inner, inner), (z, z + 4), 0.6 * top)
        self.paint(box, height > 0, colours[np.where(height > 0.2, 0, 2)] * 0.7, CAR, ahead)
        box, across, _, height = self.face((x - 0.9, x + 0.9), (z, z), top)
        s, h = np.abs(across - x) / 0.9, height / top
        outline = 1 - 0.4 * np.clip(h - 0.55, 0, 1)
        code = np.select([(h > 0.6) & (h < 0.9) & (s < outline - 0.14), h < 0.12], [1, 2], 0)
        self.paint(box, (s < outline) & (h > 0), colours[code] * (0.75 + 0.35 * h)[..., None], CAR, z)


def pet_scene(rng: Generator, height: int = 160, width: int = 160, species: str | None = None) -> Scene:
    """Draw a "cat", a "dog" or any: image (height, width, 3); label 0 background, 1 pet, 2 a 5 pixel band between."""
    image, parts = _background(rng, height, width), _pet(rng, species or rng.choice(("cat", "dog")))
    parts *= rng.uniform(0.33, 0.6) * min(height, width)  # in pixels; a large one is not all in the picture
    parts[:, :4] += np.tile(rng.uniform(0.4, 0.6, 2) * (height, width), 2)
    seen = _paint_body(rng, image, parts, FUR)
    (head_y, head_x, _, _, size, *_), (y, x) = parts[0], np.ogrid[:height, :width]
    for up, side in ((-0.1, -0.42), (-0.1, 0.42), (0.25, 0)):  # eyes and nose
        image[np.hypot(y - head_y - up * size, x - head_x - side * size) < 0.13 * size] = 0.05
    inside, outside = (ndimage.distance_transform_edt(where) for where in (seen, ~seen))
    return Scene(photograph(rng, image), np.select([inside > 2, outside > 3], [1, 0], 2).astype(np.uint8))


_DOG_AND_CAT = {f"{name}_{{:03}}.png": partial(pet_scene, species=name) for name in ("dog", "cat")}
write_pets = writer("pets", VERSION, _DOG_AND_CAT, 160, 160)

# An animal as `_paint_body` takes it: skull and muzzle, legs, body, neck, tail; y points down, half its body is about 1
_STANDING = [(-0.5, 0.74, -0.5, 0.82, 0.28, 0.28, 0.25), (-0.42, 0.95, -0.4, 1.0, 0.15, 0.1, 0.45)]
_STANDING += [(0.1, x, 0.65, x, 0.13, 0.07, near) for x, near in ((0.4, 0), (0.55, -0.1), (-0.55, 0), (-0.4, -0.1))]
_STANDING += [(0, -0.5, 0, 0.4, 0.25, 0.28, 0), (0, 0.4, -0.4, 0.7, 0.2, 0.2, 0), (-0.1, -0.7, -0.8, -1, 0.08, 0.05, 0)]
_SITTING = [(-0.5, -0.03, -0.5, 0.03, 0.32, 0.32, 0.25), (-0.4, 0, -0.37, 0.05, 0.15, 0.1, 0.5)]
_SITTING += [(0.1, x, 0.88, x, 0.12, 0.09, 0.2) for x in (-0.15, 0.15)] + [(0.72, -0.3, 0.72, 0.3, 0.2, 0.2, 0.05)]
_SITTING += [(0.55, 0, 0, 0, 0.38, 0.25, 0), (0, 0, -0.3, 0, 0.25, 0.2, 0), (0.75, 0.35, 0.5, 0.85, 0.08, 0.05, 0)]
_EAR = {"cat": (-0.5, 0.6, -1.35, 0.85, 0.42, 0.06, 0), "dog": (-0.55, 0.8, -0.1, 1.1, 0.25, 0.3, 0.5)}  # skull: 1


def _pet(rng: Generator, species: str) -> ndarray:
    """Return the parts of an animal that stands, seen from its side, or sits, seen from the front."""
    parts = np.array(_STANDING if rng.random() < 0.5 else _SITTING)
    parts[:, :4] += rng.normal(0, 0.03, (len(parts), 4))
    y, x, _, _, size, *_ = parts[0]
    ears = [size * np.array(_EAR[species]) * (1, side, 1, side, 1, 1, 1) + (y, x, y, x, 0, 0, 0) for side in (-1, 1)]
    return np.vstack([parts, ears]) * (1, side := rng.choice((-1, 1)), 1, side, 1, 1, 1)  # it looks left or right


def _background(rng: Generator, height: int, width: int) -> ndarray:
    """Return a wall, a floor, and bushes or cushions that stand about (H, W, 3)."""
    colours, shape = f"{FUR} {CLOTH if rng.random() < 0.5 else LEAVES}", (height, width)
    side, edge = min(shape), int(height * rng.uniform(0.3, 0.65))  # where the ground begins
    image = np.vstack([_surface(rng, shape, colours)[:edge], _surface(rng, shape, colours)[edge:]])
    for row in np.sort(rng.uniform(edge - 0.1 * side, 0.9 * height, rng.integers(3, 8))):
        start = rng.normal((row, rng.uniform(0, width)), 0.07 * side, (rng.integers(1, 5), 2))
        end, radius = start + side * rng.normal(0, (0.02, 0.15), start.shape), rng.uniform(0.04, 0.12, (len(start), 1))
        _paint_body(rng, image, np.hstack([start, end, side * radius, side * radius, 0 * radius]), colours)
    return image


def _paint_body(rng: Generator, image: ndarray, parts: ndarray, colours: str) -> ndarray:
    """Paint balls that are swept along lines, with frayed outlines, and return where they are seen, bool (H, W).

    `parts` (n, 7), in pixels: y, x of one end, of the other, both radii, how much nearer it is.
    """
    shape = image.shape[:2]
    y, x = (axis + 0.7 * smooth_noise(rng, shape, 1.2) for axis in np.ogrid[: shape[0], : shape[1]])
    surface, light = np.full(shape, -np.inf), np.zeros(shape)  # height of what is seen, if anything
    for ay, ax, by, bx, radius, end_radius, nearer in parts.tolist():
        dy, dx = by - ay, bx - ax
        t = np.clip(((y - ay) * dy + (x - ax) * dx) / max(dy * dy + dx * dx, 1e-6), 0, 1)  # where the nearest ball is
        r, down, right = radius + (end_radius - radius) * t, y - ay - t * dy, x - ax - t * dx
        height = np.sqrt(np.maximum(r**2 - down**2 - right**2, 0))  # of the ball
        front = (height > 0) & (height + nearer > surface)
        surface[front] = (height + nearer)[front]
        light[front] = ((0.6 * height - 0.7 * down + 0.3 * right) / r)[front]  # the lamp is above, at the right
    seen = surface > -np.inf
    image[seen] = (_surface(rng, shape, colours) * (0.35 + 0.8 * np.clip(light, 0, 1))[..., None])[seen]
    return seen


def _surface(rng: Generator, shape: tuple[int, int], colours: str) -> ndarray:
    """Return hair or cloth (H, W, 3) of two colours: in stripes, in patches, or mingled."""
    one, two = pick_colour(rng, colours), pick_colour(rng, colours)
    hair, wave = smooth_noise(rng, shape, (1.2, 0.5)), smooth_noise(rng, shape, 6)
    stripes = (np.arange(shape[1]) + 2 * wave) / rng.uniform(8, 24) % 1 < 0.4
    mix = np.clip((stripes, 2 * wave, 0.4 + 0.35 * hair)[rng.integers(3)], 0, 1) * rng.uniform(0.3, 1)
    return (one + (two - one) * mix[..., None]) * (1 + rng.uniform(0.04, 0.14) * hair + 0.07 * wave)[..., None]
