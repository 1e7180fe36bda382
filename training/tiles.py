"""Predict a large image in pieces, so that memory stays bounded and the result is that of the whole image.

A piece is a square of the image, its *core*, with a *margin* around it.  Inside the core no pixel can tell that the
image was cut, if the margin is as wide as the receptive field reaches: `margin_of`.  The margin is thrown away.

Pieces begin at multiples of `GRID` pixels, so that the windows of pooling lie in them as in the whole image.  Each
result is written into one output that is made once, so nothing is kept twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from checks import InputError
from networks.inspection import Record, is_norm, reach

GRID = 64
"""Pieces begin at multiples of this: enough for six poolings by 2."""


def predict_tiled(forward: Callable[[Tensor], Tensor], images: Tensor, *, tile: int, margin: int | None) -> Tensor:
    """Call `forward` on pieces of `images` (B, C, H, W) and put the results together: (B, K, H, W).

    `forward` maps images (B, C, h, w) to (B, K, h, w) of any dtype and device; the output has both.  For labels in
    place of probabilities let it take the argmax: one number a pixel, and not K.

    Args:
        forward: called once if the image is not larger than `tile`, else once for each piece.
        images: of any size.
        tile: side of a piece with its margins, in pixels.  Where the margins take more than half of that, the core is
            half a tile and the piece is larger: else nearly all would be computed to be thrown away.
        margin: how far the field reaches, in pixels, rounded up to the `GRID` here; None: never cut.

    Raises:
        InputError: if `tile` or `margin` is no size, or the output of `forward` has not the size of its input.

    >>> import torch
    >>> blur = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    >>> images = torch.arange(300.0).reshape(1, 1, 1, 300)
    >>> torch.equal(predict_tiled(blur, images, tile=256, margin=1), blur(images))
    True
    """
    if tile < 1 or (margin is not None and margin < 0):
        raise InputError(f"predict_tiled: tile={tile}, margin={margin}; expected tile ≥ 1 and margin ≥ 0 (or None).")
    H, W = images.shape[-2:]
    if margin is None or max(H, W) <= tile:
        return _checked(forward, images)
    margin = -(-margin // GRID) * GRID
    core = max((tile - 2 * margin) // GRID, tile // 2 // GRID, 1) * GRID
    output: Tensor | None = None
    for (top, bottom), (above, below) in _pieces(H, core, margin):
        for (left, right), (before, after) in _pieces(W, core, margin):
            piece = _checked(forward, images[..., above:below, before:after])
            if output is None:
                output = piece.new_empty((*piece.shape[:2], H, W))
            inside = piece[..., top - above : bottom - above, left - before : right - before]
            output[..., top:bottom, left:right] = inside
    assert output is not None
    return output


def _pieces(size: int, core: int, margin: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """First and last position + 1 of each core along one axis, and of the same with its margins."""
    for first in range(0, size, core):
        last = min(first + core, size)
        yield (first, last), (max(first - margin, 0), min(last + margin, size))


def _checked(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    result = forward(images)
    if result.ndim != 4 or result.shape[-2:] != images.shape[-2:]:
        raise InputError(
            f"predict_tiled: the model maps {tuple(images.shape)} to {tuple(result.shape)}.\n"
            "Expected (B, K, H, W) with the height and width of the images."
        )
    return result


def margin_of(model: nn.Module, channels: int) -> int | None:
    """How far, in pixels, the model's receptive field reaches; None if it has no bound, so the image must stay whole.

    None: a normalisation over the image (GroupNorm, InstanceNorm, …), an operation that reads the whole image (its
    reach grows with the image), one that `receptive_field.py` cannot read, or steps that the `GRID` does not hold.

    Args:
        channels: C of the images.

    >>> margin_of(nn.Conv2d(1, 1, 3, padding=1), 1), margin_of(nn.GroupNorm(1, 4), 4)
    (1, None)
    """
    if any(_averages_over_the_image(module) for module in model.modules()):
        return None
    try:
        small, large = (reach(model, (1, channels, side, side)) for side in (2 * GRID, 3 * GRID))
        strides = [stride for step in Record(model, (1, channels, 2 * GRID, 2 * GRID)).steps for stride in step.stride]
    except (InputError, RuntimeError):  # PyTorch's own, if the model cannot take so small an image
        return None
    fits = all(stride > 0 and (GRID / stride).denominator == 1 for stride in strides)
    return small if fits and small == large else None


def _averages_over_the_image(module: nn.Module) -> bool:
    """A normalisation with numbers of the image itself; BatchNorm in eval mode has those of the training."""
    is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return is_norm(module) and not (is_batch_norm and module.running_mean is not None)
