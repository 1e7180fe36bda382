"""Random changes of a whole batch that are not exact: brightness, colours, turns by any angle, zoom.

Each sample gets its own draw, and its label and maps move with it.  Random numbers come from a CPU generator that is
handed in, so a second run draws the same and nothing waits for a GPU; the images stay on their device.  The exact
symmetries are in `transforms.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from checks import InputError
from transforms import memory_format


def random_intensity(
    images: Tensor, gain: float = 0.2, offset: float = 0.2, noise: float = 0.0, *, generator: torch.Generator
) -> Tensor:
    """Change brightness and contrast of each image of a batch: x · (1 + g) + o + noise · n.

    g is uniform in ±gain, o in ±offset, one of each a sample; n is standard normal, one a value.  `images` is
    (B, C, H, W) float, normalised to unit deviation: offset and noise are in units of that deviation.
    `generator` is a CPU generator.  Labels need no change.  Raises `InputError` for other shapes or dtypes.

    >>> random_intensity(torch.zeros(1, 1, 2, 2), 0.2, 0.0, generator=torch.Generator()).tolist()
    [[[[0.0, 0.0], [0.0, 0.0]]]]
    """
    _check_images("random_intensity", images)
    drawn = torch.rand(2, images.shape[0], 1, 1, 1, generator=generator) * 2 - 1
    seed = int(torch.randint(2**62, (1,), generator=generator))  # always drawn: gain, offset ignore `noise`
    if images.device.type == "cuda":
        drawn = drawn.pin_memory()  # only a copy from pinned memory does not wait for the GPU
    g, o = drawn.to(images.device, images.dtype, non_blocking=True)
    result = images * (1 + gain * g) + offset * o
    if noise > 0:
        own = torch.Generator(images.device).manual_seed(seed)  # noise is drawn where the images are
        result += noise * torch.randn(images.shape, generator=own, device=images.device, dtype=images.dtype)
    return result


def random_hue(images: Tensor, degrees: float = 180.0, *, generator: torch.Generator) -> Tensor:
    """Turn the colours of each image of a batch by its own angle round the grey axis; grey stays grey.

    The angle is uniform in ±degrees, one a sample: with 180 what an object is must be learnt from shape and brightness,
    not from its colour.  `images` is (B, 3, H, W) float, red, green, blue, in any common scale (also normalised by
    channel: then the axis is that of equal deviations).  `generator` is a CPU generator.
    Raises `InputError` for other shapes or dtypes.

    >>> grey = torch.full((2, 3, 4, 4), 0.7)
    >>> torch.allclose(random_hue(grey, generator=torch.Generator()), grey)
    True
    """
    _check_images("random_hue", images, channels=3)
    angle = (torch.rand(images.shape[0], 1, 1, generator=generator) * 2 - 1) * degrees * torch.pi / 180
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5  # axis × colour
    # Rodrigues' formula for the axis (1, 1, 1)/√3: (B, 3, 3)
    turn = angle.cos() * torch.eye(3) + angle.sin() * across + (1 - angle.cos()) / 3
    if images.device.type == "cuda":
        turn = turn.pin_memory()
    turn = turn.to(images.device, images.dtype, non_blocking=True)
    return torch.einsum("bij,bjhw->bihw", turn, images).contiguous(memory_format=memory_format(images))


def random_affine(
    images: Tensor,
    *maps: Tensor,
    generator: torch.Generator,
    degrees: float = 20.0,
    zoom: float = 0.3,
    stretch: float = 0.15,
    shift: float = 0.15,
    mirror: bool = True,
) -> tuple[Tensor, ...]:
    """Turn, zoom, stretch, move and mirror each sample of a batch by its own draw; its maps move with it.

    The angle is uniform in ±degrees, the logarithm of the zoom in ±zoom and that of width over height in ±2·stretch,
    the shift in ±shift of the side; a mirror left-right comes with probability ½.  What lies outside of the image is
    its mirror image.  Images (B, C, H, W) float are interpolated; maps (B, H, W) take the nearest pixel, so that no
    class is invented.  `generator` is a CPU generator.  Raises `InputError` for other shapes or dtypes.

    >>> images, labels = torch.rand(2, 3, 8, 8), torch.randint(0, 2, (2, 8, 8))
    >>> moved, moved_labels = random_affine(images, labels, generator=torch.Generator().manual_seed(0))
    >>> moved.shape, moved_labels.dtype
    (torch.Size([2, 3, 8, 8]), torch.int64)
    """
    _check_images("random_affine", images)
    B, _, H, W = images.shape
    if wrong := [tuple(m.shape) for m in maps if m.shape != (B, H, W)]:
        raise InputError(f"random_affine: a map has shape {wrong[0]}; expected {(B, H, W)}, that of the images.")
    angle, larger, wider, right, down, side = torch.rand(6, B, generator=generator) * 2 - 1
    angle, scale, aspect = angle * degrees * torch.pi / 180, (-zoom * larger).exp(), (stretch * wider).exp()
    flip = torch.where(side < 0, -1.0, 1.0) if mirror else torch.ones(B)
    # Coordinates of an output pixel, in units of half a side, to those of the input; H/W keeps a turn a turn
    x = torch.stack([scale * aspect * flip * angle.cos(), -scale * aspect * angle.sin() * H / W, 2 * shift * right], 1)
    y = torch.stack([scale / aspect * flip * angle.sin() * W / H, scale / aspect * angle.cos(), 2 * shift * down], 1)
    theta = torch.stack([x, y], dim=1)  # (B, 2, 3)
    if images.device.type == "cuda":
        theta = theta.pin_memory()
    grid = F.affine_grid(theta.to(images.device, non_blocking=True), [B, 1, H, W], align_corners=False)
    moved = _sample(images.float(), grid, "bilinear").to(images.dtype)
    # Where each pixel comes from, as a number: so maps of every type are only picked from, never calculated with
    places = torch.arange(H * W, device=images.device, dtype=torch.float32).expand(B, 1, -1).reshape(B, 1, H, W)
    origin = _sample(places, grid, "nearest").long().flatten(1)  # (B, H·W)
    picked = (m.flatten(1).gather(1, origin).reshape(m.shape) for m in maps)
    return moved.contiguous(memory_format=memory_format(images)), *picked


def _sample(x: Tensor, grid: Tensor, mode: str) -> Tensor:
    return F.grid_sample(x, grid, mode=mode, padding_mode="reflection", align_corners=False)


def _check_images(function: str, images: Tensor, channels: int | None = None) -> None:
    """Raise `InputError` unless images are a float tensor (B, C, H, W)."""
    if images.ndim != 4 or not images.is_floating_point() or channels not in (None, images.shape[1]):
        found = f"{images.dtype} {tuple(images.shape)}"
        raise InputError(f"{function}: images is {found}; expected a float tensor (B, {channels or 'C'}, H, W).")
