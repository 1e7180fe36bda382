"""What made-up photographs share: colours, soft noise, cloth, rounded bodies in the light, and the camera.

Pictures are float32 arrays (H, W, 3) between 0 (black) and 1 until `photograph` turns them into bytes.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from PIL import Image
from scipy import ndimage


def palette(codes: str) -> ndarray:
    """Read colours, float32 (n, 3), from their codes.

    >>> palette("FF0000 00FF00").tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    return np.array([[*bytes.fromhex(code)] for code in codes.split()], dtype=np.float32) / 255


def pick_colour(rng: Generator, colours: ndarray) -> ndarray:
    """Return one colour (3,) of a palette (n, 3), made a little lighter or darker, warmer or colder."""
    colour = colours[rng.integers(len(colours))] * rng.uniform(0.85, 1.12)
    return np.clip(colour + rng.normal(0, 0.015, 3), 0.02, 0.98).astype(np.float32)


def soft_noise(rng: Generator, shape: tuple[int, ...], cell: float | tuple[float, float]) -> ndarray:
    """Return float32 noise (H, W), mean 0, with spots about `cell` pixels wide: random numbers, enlarged smoothly.

    It costs the same for every `cell`; a Gaussian filter takes longer for larger spots.  `cell` may be a pair,
    (height, width).  The standard deviation is about 0.7.

    >>> soft_noise(np.random.default_rng(0), (40, 60), cell=8).shape
    (40, 60)
    """
    cells = np.broadcast_to(np.asarray(cell, dtype=float), 2)
    counts = (shape / cells).astype(int) + 3
    numbers = Image.fromarray(rng.standard_normal(counts, dtype=np.float32))
    height, width = np.ceil(counts * cells).astype(int).tolist()
    return np.asarray(numbers.resize((width, height), Image.Resampling.BICUBIC))[: shape[0], : shape[1]]


def cloth(rng: Generator, shape: tuple[int, ...], colours: ndarray, grown: bool = False) -> ndarray:
    """Return a texture (H, W, 3) of two colours: stripes, checks, planks, spots, fibres or plain.

    With `grown` only the last three, which are found on grass and leaves, too.
    """
    one, two = pick_colour(rng, colours), pick_colour(rng, colours)
    y, x = np.ogrid[: shape[0], : shape[1]]
    wave, step, slant = soft_noise(rng, shape, 14), rng.uniform(8, 24), rng.uniform(-0.5, 0.5)
    kind = rng.integers(3 if grown else 0, 6)
    if kind == 0:
        mix = (x + slant * y + 1.5 * wave) / step % 1 < 0.4
    elif kind == 1:
        mix = 0.5 * ((x + wave) / step % 1 < 0.5) + 0.5 * ((y + wave) / step % 1 < 0.5)
    elif kind == 2:
        mix = np.broadcast_to(y / step % 1 < 0.08, shape)
    elif kind == 3:
        mix = np.clip(soft_noise(rng, shape, step / 2), 0, 1)
    else:
        mix = np.clip(0.4 + 0.5 * soft_noise(rng, shape, (5, 1.5)), 0, 1) * (kind == 4)
    grain = 1 + 0.07 * soft_noise(rng, shape, 1.3) + 0.1 * wave
    return ((one + (two - one) * (rng.uniform(0.3, 1) * mix)[..., None]) * grain[..., None]).astype(np.float32)


def swept_balls(y: ndarray, x: ndarray, parts: ndarray) -> tuple[ndarray, ndarray]:
    """Look at balls that are swept along lines: return the part seen at each point and its height to the viewer.

    `parts` (n, 7): y and x of one end, y and x of the other, the radius here and there, and how much nearer the part
    is.  Where none is seen, the part is −1 and the height −inf.

    >>> part, height = swept_balls(np.array([[0], [5]]), np.array([[0, 3]]), np.array([[0, 0, 0, 3, 1, 2, 0]]))
    >>> part.tolist(), height.tolist()
    ([[0, 0], [-1, -1]], [[1.0, 2.0], [-inf, -inf]])
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
    """Return how bright each point of a body is, 0 … 1; its height is smoothed, so that its parts grow together.

    `light` (3,) points to the lamp: down, right, to the viewer.
    """
    weight = np.maximum(ndimage.gaussian_filter(seen.astype(np.float32), sigma, truncate=2.5), 0.01)
    smooth = ndimage.gaussian_filter(np.where(seen, height, 0), sigma, truncate=2.5) / weight
    slope_y, slope_x = np.gradient(smooth)
    facing = (light[2] - light[0] * slope_y - light[1] * slope_x) / np.sqrt(1 + slope_y**2 + slope_x**2)
    return np.clip(facing / np.linalg.norm(light), 0, None)


def paint_balls(rng: Generator, image: ndarray, parts: ndarray, colours: ndarray, light: ndarray) -> None:
    """Paint swept balls in some cloth into an image (H, W, 3), together one body; lengths are in pixels."""
    ends, radius = parts[:, :4].reshape(-1, 2, 2), parts[:, 4:6, None]
    low = np.clip((ends - radius).min(axis=(0, 1)), 0, image.shape[:2]).astype(int)
    high = np.clip((ends + radius).max(axis=(0, 1)) + 1, 0, image.shape[:2]).astype(int)
    if (high - low).min() >= 2:  # else it is outside, or too small for a slope
        y, x = (axis.astype(np.float32) for axis in np.ogrid[low[0] : high[0], low[1] : high[1]])
        owner, height = swept_balls(y, x, parts)
        seen = owner >= 0
        colour = cloth(rng, seen.shape, colours) * (0.35 + 0.75 * lit(height, seen, 1.5, light))[..., None]
        image[low[0] : high[0], low[1] : high[1]][seen] = colour[seen]


def photograph(rng: Generator, image: ndarray) -> ndarray:
    """Return the picture as uint8: exposed more or less, in warmer or colder light, slightly blurred, with noise."""
    tint = rng.uniform(0.85, 1.15) * (1 + rng.normal(0, 0.04) * np.array((1, 0, -1)))
    blurred = ndimage.gaussian_filter(image * tint.astype(np.float32), (0.55, 0.55, 0), truncate=2)
    blurred += rng.uniform(0.006, 0.018) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.rint(255 * np.clip(blurred, 0, 1)).astype(np.uint8)
