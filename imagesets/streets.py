"""Made-up streets, seen from a car, with exact labels: for the parts on roads and on many classes.

A street is laid out in metres and seen through a pinhole camera: a point at height h, x to the right and z ahead is
seen at the slopes x / z and (eye − h) / z.  Neither brightness nor place tells the classes apart: road, pavement and
walls share their greys, shadows and lane marks change them, and the road bends, widens and crosses others.

Classes as in CamVid: G. J. Brostow, J. Fauqueur, R. Cipolla, Pattern Recognit. Lett. 30 (2009) 88,
doi 10.1016/j.patrec.2008.04.005.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray
from numpy.random import Generator

from checks import IGNORE_INDEX
from imagesets.painting import palette, photograph, pick_colour, soft_noise
from imagesets.yeast import Scene, check_whole_numbers

SKY, BUILDING, TREE, ROAD, PAVEMENT, CAR = range(6)  # TREE is all that is green: grass too

WALLS = palette("B8A88F 9E9991 807D7A 995E54 CCC4B3 8F857A B3946E 736661 A8ADB3")
LEAVES = palette("385C24 4D6B29 294A21 5C6626 80611F 475733")
ROOFS = palette("59382E 47474D 734D38")
GLASS = palette("29303B 404D5C 738599")
PAINTS = palette("141417 D9D9DB 7A7D82 4D4F54 991414 1A3373 9EA1A6 265240 BF9926")
SIGNS = palette("B31A1A 1A3399")

Box = tuple[slice, slice]


class _Thing(NamedTuple):
    """Something upright on the ground, in metres: its middle x, its near end z, its size."""

    kind: int
    x: float
    z: float
    width: float
    length: float
    height: float


@dataclass
class _Street:
    """The road, the weather, the camera, and the picture that is being painted."""

    rng: Generator
    town: bool
    wide: float  # the road, in metres
    walks: ndarray  # (2,) the pavements, left and right
    bend: float  # the road swings so far to both sides …
    reach: float  # … over 2π · reach metres …
    phase: float  # … starting here …
    start: float  # … around this x
    sun: float  # 0 behind clouds … 1
    side: int  # where shadows fall: −1 left, 1 right
    sight: float  # metres after which haze leaves 1 / e of a colour
    eye: float  # height of the camera
    x: ndarray  # (W,) slope of each column, to the right
    y: ndarray  # (H, 1) slope of each row, downwards
    image: ndarray  # (H, W, 3) float32
    label: ndarray  # (H, W) uint8
    fine: ndarray  # (H, W) noise for leaves and plaster
    coarse: ndarray

    def centre(self, z: Any) -> Any:
        """Return x of the middle of the road at z."""
        return self.start + self.bend * np.sin(z / self.reach + self.phase)

    def face(self, x: tuple[float, float], z: tuple[float, float], top: float) -> tuple[Box, ndarray, ndarray, ndarray]:
        """Find a standing rectangle in the picture, its box; and x, z and height of every pixel of the box there.

        It faces the camera (both z equal) or lies along the street (both x equal).
        """
        columns = slice(*np.searchsorted(self.x, sorted((x[0] / z[0], x[1] / z[1]))))
        rows = slice(*np.searchsorted(self.y[:, 0], ((self.eye - top) / z[0], self.eye / z[0])))
        slope = self.x[columns]
        depth = x[0] / slope if x[0] == x[1] else np.full_like(slope, z[0])
        height = self.eye - self.y[rows] * depth
        x_seen, z_seen, height = np.broadcast_arrays(slope * depth, depth, height)
        return (rows, columns), x_seen, z_seen, height

    def paint(self, box: Box, where: ndarray, colour: ndarray, number: int, z: ndarray | float) -> None:
        """Colour and label the pixels `where` of a box; haze hides them the more, the farther they are."""
        clear = np.broadcast_to(np.exp(-np.asarray(z, dtype=np.float32) / self.sight), where.shape)[where][:, None]
        haze = 0.65 + 0.15 * self.sun
        self.image[box][where] = haze + (np.broadcast_to(colour, (*where.shape, 3))[where] - haze) * clear
        self.label[box][where] = number


def street_scene(rng: Generator, height: int = 256, width: int = 256) -> Scene:
    """Draw one street: image (height, width, 3), label (height, width).

    Classes: 0 sky, 1 building, 2 tree or grass, 3 road, 4 pavement, 5 car; 255 for poles, signs and the own bonnet.
    Raises `InputError` when a side is shorter than 64 pixels.

    >>> scene = street_scene(np.random.default_rng(0))
    >>> scene.image.shape, str(scene.image.dtype), scene.label.shape
    ((256, 256, 3), 'uint8', (256, 256))
    """
    check_whole_numbers(height=(height, 64), width=(width, 64))
    street = _empty_street(rng, height, width)
    things = _layout(street)
    _paint_sky(street)
    _paint_ground(street, things)
    painters = {BUILDING: _paint_building, TREE: _paint_tree, CAR: _paint_car, IGNORE_INDEX: _paint_pole}
    for thing in sorted(things, key=lambda thing: (thing.kind != BUILDING, -thing.z)):  # the near ones last
        painters[thing.kind](street, thing)
    if rng.random() < 0.5:
        _paint_bonnet(street)
    return Scene(photograph(rng, street.image), street.label)


def _empty_street(rng: Generator, height: int, width: int) -> _Street:
    """Choose road, weather and camera."""
    town, shape = bool(rng.random() < 0.65), (height, width)
    wide, walks = rng.uniform(4, 9), rng.uniform(1.5, 4, 2) * (rng.random(2) < (0.92 if town else 0.3))
    bend, reach, phase = rng.uniform(0.3, 2.5 if town else 9), rng.uniform(10, 30), rng.uniform(0, 6.3)
    start = -rng.uniform(-0.1, 0.4) * wide - bend * math.sin(4 / reach + phase)  # we mostly drive on the right
    sun, shadow = rng.uniform(0.4, 1) * (rng.random() < 0.65), 1 - 2 * int(rng.integers(2))
    sight, eye = 100 * rng.uniform(1, 3) ** 2, rng.uniform(1.3, 2.8)
    side = math.sqrt(height * width)
    focal, horizon, middle = rng.uniform((0.5, 0.28, 0.22), (0.9, 0.55, 0.78)) * (side, height, width)
    x = ((np.arange(width) + 0.5 - middle) / focal).astype(np.float32)
    y = ((np.arange(height)[:, None] + 0.5 - horizon) / focal).astype(np.float32)
    image, label = np.zeros((*shape, 3), dtype=np.float32), np.zeros(shape, dtype=np.uint8)
    noise = [soft_noise(rng, shape, cell) for cell in (2.2, 6)]
    route = wide, walks, bend, reach, phase, start
    return _Street(rng, town, *route, sun, shadow, sight, eye, x, y, image, label, *noise)


def _layout(street: _Street) -> list[_Thing]:
    """Place houses, trees, poles and cars along both sides of the road."""
    rng, wide, town, things = street.rng, street.wide, street.town, []
    for side, walk in zip((-1, 1), street.walks):
        facade = wide / 2 + walk + street.bend + rng.uniform(0.3, 3 if town else 12) + side * street.start
        z = rng.uniform(-6, 4)
        while z < 110:
            length, near = rng.uniform(7, 18), max(z, 2.0)
            if rng.random() < (0.8 if town else 0.12) and z + length > 4:
                x, high = side * (facade + 6 + rng.uniform(0, 1.5)), rng.uniform(4, 15 if town else 7)
                things.append(_Thing(BUILDING, x, near, 12, z + length - near, high))
            z += length + rng.integers(2) * rng.uniform(0, 6)
        for z in rng.uniform(6, 70, rng.poisson(3 if town else 7)):
            x = side * street.centre(z) + wide / 2 + rng.uniform(0.8, 3 if town else 14)
            high = rng.uniform(2.5, 8)
            things.append(_Thing(TREE, side * min(x, facade), z, high * rng.uniform(0.4, 0.75), 0, high))
        for z in rng.uniform(7, 45, rng.poisson(1.2)):
            x = street.centre(z) + side * (wide / 2 + 0.5)
            things.append(_Thing(IGNORE_INDEX, x, z, rng.uniform(0.1, 0.2), 0, rng.uniform(2.5, 6)))
        z = rng.uniform(5, 14)
        while z < 60 and rng.random() < 0.88:
            x = street.centre(z) + side * (wide / 4 if rng.random() < 0.5 else wide / 2 + rng.uniform(-0.6, 0.7))
            things.append(_Thing(CAR, x, z, rng.uniform(1.7, 1.9), rng.uniform(3.6, 4.8), rng.uniform(1.4, 1.9)))
            z += rng.uniform(5.5, 22)
    return things


def _paint_sky(street: _Street) -> None:
    """Paint the sky with its clouds, and hills, woods and roofs far away."""
    rng, (H, W) = street.rng, street.label.shape
    horizon = int(np.searchsorted(street.y[:, 0], 0))
    low, high = np.array([(0.95, 0.84, 0.70) if rng.random() < 0.25 else (0.78, 0.86, 0.93), (0.30, 0.50, 0.82)])
    low, high = (0.84 + street.sun * (colour.astype(np.float32) - 0.84) for colour in (low, high))
    rise = np.clip(1 - np.arange(H, dtype=np.float32) / horizon, 0, 1)[:, None, None] ** rng.uniform(0.6, 1.3)
    street.image[:] = low + (high - low) * rise
    cloud = sum(8 / n * soft_noise(rng, (H, W), (H / n, 2 * W / n)) for n in (12, 30, 60)) + rng.uniform(-1, 0.4)
    street.image += 0.8 * np.clip(cloud, 0, 1)[..., None] * (rng.uniform(0.8, 0.98) - street.image)
    for kind, colours in ((TREE, LEAVES), (BUILDING, WALLS), (TREE, LEAVES)):
        ridge = 1 + 0.6 * soft_noise(rng, (1, W), (1, rng.uniform(W / 25, W / 6)))
        if kind == BUILDING:
            ridge = np.repeat(ridge[:, ::9], 9, axis=1)[:, :W]
        else:
            ridge = ridge + 0.15 * soft_noise(rng, (1, W), (1, 3))
        if rng.random() < 0.65:
            where = np.arange(H)[:, None] > horizon - H * rng.uniform(0.01, 0.06) * ridge
            street.paint((slice(H), slice(W)), where, pick_colour(rng, colours), kind, 100)


def _paint_ground(street: _Street, things: list[_Thing]) -> None:
    """Paint road, pavement, grass, the marks on the road, and the shadows."""
    rng, (H, W) = street.rng, street.label.shape
    top = int(np.searchsorted(street.y[:, 0], 0.004))  # a row above would be half a kilometre away
    z = street.eye / street.y[top:]  # (h, 1)
    x, near = z * street.x, np.exp(-z / 25)  # (h, W), (h, 1)
    off, aside = x - street.centre(z), np.abs(z - rng.uniform(8, 18) * (1 if rng.random() < 0.3 else np.inf))
    out = np.abs(off) - street.wide / 2 * (1 + 0.08 * np.sin(z / 9 + street.phase))  # metres beside the road
    road = (out < 0) | (aside < 3)  # the road, and another one that crosses it
    walk = ~road & (out < np.where(off < 0, *street.walks))
    yard = rng.random() < (0.5 if street.town else 0.1)
    fine, wide = street.fine[top:], soft_noise(rng, x.shape, (9, 30))
    marks = _marks(street, off, out, z) & (aside > 3) & (wide + 0.6 * fine < 1.4)
    asphalt = (0.4 * rng.uniform(0.8, 1.35) + rng.normal(0, 0.012, 3)).astype(np.float32)
    slabs = asphalt * rng.uniform(0.9, 1.1) * (0.9, 1.2)[rng.integers(2)] + rng.normal(0, 0.02, 3).astype(np.float32)
    grass = 1.2 * pick_colour(rng, LEAVES)
    colours = np.array([asphalt, np.full(3, rng.uniform(0.7, 0.95)), slabs, 1.25 * slabs, slabs if yard else grass])
    code = np.select([marks, road, walk & ((out < 0.2) | (aside < 3.3)), walk], [1, 0, 3, 2], 4)
    joints = ((off % 0.8 < 0.07) | (z % 0.8 < 0.05)) & (z < 22)
    blades = 0.22 * soft_noise(rng, x.shape, (3, 1.3)) * (0.4 + 0.6 * near) + 0.1 * wide
    tracks = 0.06 * near * np.cos(8 * np.pi * off / street.wide)
    for across, ahead in rng.uniform((-4, 4), (4, 30), (rng.poisson(3), 2)):
        patch = (np.abs(off - across) < rng.uniform(0.4, 1.6)) & (np.abs(z - ahead) < rng.uniform(0.5, 5))
        tracks[patch] += rng.uniform(-0.2, 0.15)
    paved = walk | yard
    gain = 1 + 0.05 * fine * (0.4 + near) + 0.05 * wide
    gain += np.where(road, tracks, np.where(paved, -0.25 * joints, blades))
    dark = _shadows(street, things, x, z, 0.25 * fine + 0.4 * wide)[..., None] * np.array((1, 0.95, 0.85), np.float32)
    light = 1 + street.sun * np.array((0.2, 0.18, 0.14), np.float32)
    box = slice(top, H), slice(W)
    street.paint(box, np.ones(x.shape, dtype=bool), colours[code] * gain[..., None] * light * (1 - dark), ROAD, z)
    street.label[box] = np.where(road, ROAD, np.where(paved, PAVEMENT, TREE))


def _marks(street: _Street, off: ndarray, out: ndarray, z: ndarray) -> ndarray:
    """Choose the white marks: a line in the middle, lines along the edges, a zebra crossing."""
    rng, half = street.rng, 0.07 + 0.0008 * z  # far lines are drawn wider, or they would vanish
    middle = (np.abs(off) < half) & (z / rng.uniform(6, 10) % 1 < (0.45, 1)[rng.integers(2)])
    edges = np.abs(out + 0.35) < half
    zebra = (np.abs(z - rng.uniform(6, 22)) < 1.6) & (off % 1.1 < 0.55)
    chosen = rng.random(3) < (0.75, 0.5, 0.2)
    return (middle & chosen[0] | edges & chosen[1] | zebra & chosen[2]) & (out < -0.2)


def _shadows(street: _Street, things: list[_Thing], x: ndarray, z: ndarray, rough: ndarray) -> ndarray:
    """Return how dark the shadows on the ground are: rectangles of houses, poles and cars, rough discs of trees."""
    dark, reach = np.zeros_like(x), street.rng.uniform(0.4, 1.2)
    for thing in things:
        tree, strength = thing.kind == TREE, 0.85 if thing.kind == CAR else 0.55 * (street.sun > 0)
        move = street.side * (0.2 if thing.kind == CAR else reach * thing.height)
        at = thing.x + move * (0.7 if tree else 0.5), thing.z + thing.length / 2
        size = (0.6 * thing.width,) * 2 if tree else ((thing.width + abs(move)) / 2, 0.1 + 0.52 * thing.length)
        rows = slice(*np.searchsorted(-z[:, 0], (-at[1] - 2 * size[1], -at[1] + 2 * size[1])))
        squared = ((x[rows] - at[0]) / size[0]) ** 2, ((z[rows] - at[1]) / size[1]) ** 2
        q = sum(squared) + rough[rows] if tree else sum(s**4 for s in squared)
        dark[rows] = np.maximum(dark[rows], strength * np.clip(3 - 3 * q, 0, 1))
    return dark


def _paint_building(street: _Street, thing: _Thing) -> None:
    """Paint the front and the side along the street: storeys, bays with windows, a roof or none."""
    rng, inner = street.rng, thing.x - np.sign(thing.x) * thing.width / 2
    wall, roof, glass = (pick_colour(rng, colours) for colours in (WALLS, ROOFS, GLASS))
    colours = np.array([wall, wall * rng.uniform(0.6, 1.1), np.minimum(1.25 * wall, 1), glass, roof])
    storey, bay = rng.uniform(2.7, 3.5), rng.uniform(1.6, 3.2)
    left, right, sill, lintel = rng.uniform((0.12, 0.6, 0.25, 0.7), (0.3, 0.85, 0.4, 0.88))
    eaves, bricks = thing.height * (1, 0.8)[rng.integers(2)], rng.random() < 0.4
    ends, sides = (thing.z, thing.z + thing.length), (thing.x - thing.width / 2, thing.x + thing.width / 2)
    lit = 1.2 if np.sign(inner) == street.side else 0.7  # a wall on this side looks to the sun
    for xs, zs, light in ((sides, ends[:1] * 2, 0.88), ((inner, inner), ends, lit)):
        box, x, z, height = street.face(xs, zs, thing.height)
        p, q = (x - sides[0] + z - thing.z) / bay % 1, height / storey % 1
        away = np.maximum(np.maximum(left - p, p - right), np.maximum(sill - q, q - lintel))  # < 0 in a window
        away = np.where((height > 0.5) & (height < eaves - 0.3), away, 1)
        code = np.select([height > eaves, away < 0, away < 0.05, height < storey], [4, 3, 2, 1], 0)
        gain = 1 + 0.04 * street.fine[box] + 0.06 * street.coarse[box] * (1 + 3 * (code == 3))
        gain -= 0.12 * ((q < 0.05) | bricks & (z < 25) & (height * 4 % 1 < 0.25)) * (code < 2)
        colour = colours[code] * (gain * (1 + street.sun * (light - 1)))[..., None]
        street.paint(box, (height > 0) & (height < thing.height), colour, BUILDING, z)


def _paint_tree(street: _Street, thing: _Thing) -> None:
    """Paint a trunk and a crown, round or pointed, with a leafy outline."""
    rng, high, reach = street.rng, thing.height, 0.8 * thing.width
    leaf, low, cone = pick_colour(rng, LEAVES), rng.uniform(0.05, 0.35) * high, rng.random() < 0.3
    box, x, _, height = street.face((thing.x - reach, thing.x + reach), (thing.z, thing.z), 1.2 * high)
    fine, coarse, blotch = street.fine[box], street.coarse[box], soft_noise(rng, x.shape, 16)
    pixels = thing.width / 2 / thing.z / (street.x[1] - street.x[0])  # radius of the crown
    u, v = (x - thing.x) / thing.width * 1.8, (2 * height - high - low) / (high - low)
    q = np.hypot(u / np.clip(0.55 - 0.5 * v, 0.05, 1) if cone else u, v)  # < 1 in the crown
    q += min(3 / pixels, 0.15) * fine + min(5 / pixels, 0.25) * coarse + min(9 / pixels, 0.25) * blotch
    trunk = (np.abs(x - thing.x) < 0.035 * high) & (height < (high + low) / 2) & (height > 0)
    bark = np.array((0.24, 0.18, 0.13), np.float32) * (1 + 0.2 * fine)[..., None]
    street.paint(box, trunk, bark, TREE, thing.z)
    light = 0.85 + 0.3 * v - 0.22 * street.sun * street.side * np.clip(u, -1, 1)
    light = np.clip(light + 0.22 * fine + 0.18 * coarse + 0.1 * blotch, 0.25, 2) * (1 + 0.3 * street.sun)
    street.paint(box, (q < 1) & (height > 0), leaf * light[..., None], TREE, thing.z)


def _paint_pole(street: _Street, thing: _Thing) -> None:
    """Paint a pole, at least a pixel wide, half of them with a round sign."""
    rng, half = street.rng, max(thing.width / 2, 0.6 * thing.z * float(street.x[1] - street.x[0]))
    box, _, _, height = street.face((thing.x - half, thing.x + half), (thing.z, thing.z), thing.height)
    street.paint(box, height > 0, pick_colour(rng, PAINTS[2:4]), IGNORE_INDEX, thing.z)
    ring, radius = pick_colour(rng, SIGNS), rng.uniform(0.3, 0.45)
    if rng.random() < 0.5:
        top = thing.height + radius
        box, x, _, height = street.face((thing.x - radius, thing.x + radius), (thing.z, thing.z), top)
        q = np.hypot(x - thing.x, height - thing.height) / radius
        street.paint(box, q < 1, np.where(q[..., None] < 0.7, np.float32(0.9), ring), IGNORE_INDEX, thing.z)


def _paint_car(street: _Street, thing: _Thing) -> None:
    """Paint the end of a car that we see, before it the side, if we see one."""
    ours = thing.x > street.centre(thing.z)  # on our side we see the tail, on the other one the front
    lamp = (0.75, 0.08, 0.06) if ours else (0.95, 0.93, 0.8)
    body, tyre, glass = pick_colour(street.rng, PAINTS), np.full(3, 0.06), np.array((0.12, 0.15, 0.19))
    colours = np.array([body, 0.7 * body, glass, lamp, (0.9, 0.9, 0.85), tyre], np.float32)
    inner = thing.x - np.sign(thing.x) * thing.width / 2
    if inner * thing.x > 0:
        box, _, z, height = street.face((inner, inner), (thing.z, thing.z + thing.length), thing.height)
        s, h = (z - thing.z) / thing.length, height / thing.height
        top = np.interp(s, [0, 0.1, 0.5, 0.72, 1], [0.9, 1, 1, 0.6, 0.5])
        wheel = np.hypot(np.minimum(np.abs(s - 0.2), np.abs(s - 0.8)) * thing.length, height - 0.32) < 0.33
        window = (h > 0.6) & (h < top - 0.08) & (s > 0.06) & (s < 0.66) & (np.abs(s - 0.36) > 0.015)
        code = np.select([wheel, window, h < 0.3], [5, 2, 1], 0)
        light = np.where(h > 0.5, 1.05, 0.8) + 0.1 * street.sun * np.sign(inner) * street.side
        street.paint(box, (h < top) & (wheel | (h > 0.14)) & (h > 0), colours[code] * light[..., None], CAR, z)
    sides = thing.x - thing.width / 2, thing.x + thing.width / 2
    box, x, _, height = street.face(sides, (thing.z, thing.z), thing.height)
    s, h = np.abs(x - thing.x) / thing.width * 2, height / thing.height
    outline = 1 - 0.18 * np.clip((h - 0.55) / 0.45, 0, 1) - 0.25 * np.clip((h - 0.93) / 0.07, 0, 1)
    tyres = (h < 0.3) & (s > 0.7) & (s < 0.98)
    pane, lamps = (h > 0.6) & (h < 0.9) & (s < outline - 0.14), (h > 0.42) & (h < 0.56) & (s > 0.7)
    plate = (h > 0.3) & (h < 0.4) & (s < 0.28)
    code = np.select([pane, lamps, plate, tyres & (h < 0.16), h < 0.28], [2, 3, 4, 5, 1], 0)
    where = (s < outline) & ((h > 0.14) | tyres) & (h > 0)
    street.paint(box, where, colours[code] * (0.75 + 0.35 * h)[..., None], CAR, thing.z)


def _paint_bonnet(street: _Street) -> None:
    """Paint the own bonnet along the lower edge."""
    rng, (H, W) = street.rng, street.label.shape
    y, x = np.arange(H)[:, None] / H, np.linspace(-1, 1, W)
    deep = y - 1 + rng.uniform(0.04, 0.12) - rng.uniform(0.03, 0.1) * (x - rng.normal(0, 0.1)) ** 2
    colour = pick_colour(rng, PAINTS) * (0.55 + 6 * np.clip(deep, 0, 0.06))[..., None]
    street.paint((slice(H), slice(W)), deep > 0, colour, IGNORE_INDEX, 0)
