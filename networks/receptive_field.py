"""Which pixels of the image can change an output pixel: its receptive field, by formula, measured, and effective.

By formula.  While one image runs through the model, `record.py` notes each operation with its `Window`: along one
axis, output position o reads the input positions

    ⌈(step·o + first) / parts⌉ … ⌊(step·o + last) / parts⌋ .

For a convolution of kernel k, stride s, padding p and dilation d this is o·s − p … o·s − p + (k−1)·d; a transposed one
reads the i with i·s − p ≤ o ≤ i·s − p + (k−1)·d.  Pooling, resizing, padding and cropping are windows as well.
The record is walked backwards, from output pixels to the image; where branches meet, their ranges are joined.

The result is an upper bound: an operation that is not in the lists of `windows.py` is taken to read everything.  Two
things are left out on purpose.  Normalisation counts as pixel by pixel, although GroupNorm averages over the
image, and BatchNorm in training over the batch.  Which pixel won a pooling (its index) is not followed.

Sources: Dumoulin and Visin, 2016 (arXiv:1603.07285); Araujo, Norris and Sim, 2019 (doi:10.23915/distill.00021);
effective receptive field: Luo, Li, Urtasun and Zemel, 2016 (arXiv:1701.04128).
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from checks import InputError, check_images
from networks.record import Record, in_eval_mode, tensors_in
from networks.windows import is_norm, sizes

ERF_SHARE = 1 - 0.9545
"""A pixel belongs to the effective field if its share is above this part of the largest (Luo et al., 2016)."""


class Box(NamedTuple):
    """A rectangle of pixels, first and last ones included; it may reach beyond the image, into the padding."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top + 1, self.right - self.left + 1


# ---- by formula -----------------------------------------------------------------------------------------------------


def receptive_field(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width, in pixels of the image, of the largest receptive field of all output pixels, by formula.

    Padding counts, so it may be larger than the image.

    Args:
        model: any module that takes images (B, C, H, W); of a tuple or dict of outputs, the first counts.
        input_shape: (B, C, H, W), large enough for the model.

    Raises:
        InputError: if the model calls a convolution or pooling as a function, so that its kernel is not visible.

    >>> receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3)), (1, 1, 32, 32))
    (8, 8)
    """
    record = Record(model, input_shape)
    return record.field(record.last)


def reach(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """How far, in pixels, an output pixel can lie from an image pixel that it depends on, by formula.

    For models whose output has the size of the image.  It is about half of the receptive field, or more where the
    field does not lie symmetrically: so wide a margin makes a tile right.

    >>> reach(nn.Conv2d(1, 1, 3, padding=1, dilation=1), (1, 1, 8, 8)), reach(nn.ConvTranspose2d(1, 1, 4), (1, 1, 8, 8))
    (1, 3)
    """
    record = Record(model, input_shape)
    outputs = [np.arange(size) for size in record.steps[record.last].output_size]
    ranges = [record.ranges(record.last, axis) for axis in (0, 1)]
    return max(int(max((o - low).max(), (high - o).max())) for o, (low, high) in zip(outputs, ranges))


def output_stride(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[float, float]:
    """By how many pixels of the image (rows, columns) the field moves from one output pixel to the next.

    The strides of all operations multiply, j ← j·s; going up by s divides.  So a U-Net has 1, and an output that is
    finer than the image less than 1.  It is 0 where all output pixels see the same, as after a dense layer.

    >>> output_stride(nn.Sequential(nn.Conv2d(1, 1, 3, stride=2), nn.MaxPool2d(2)), (1, 1, 32, 32))
    (4.0, 4.0)
    """
    record = Record(model, input_shape)
    return record.stride(record.last)


def pixel_field(model: nn.Module, input_shape: tuple[int, ...], pixel: tuple[int, int] | None = None) -> Box:
    """The pixels of the image that one output pixel can depend on, by formula.

    Args:
        pixel: row and column of the output pixel; default the middle one, (height // 2, width // 2).

    >>> pixel_field(nn.Conv2d(1, 1, 3, stride=2, padding=1), (1, 1, 32, 32), (0, 5))
    Box(top=-1, left=9, bottom=1, right=11)
    """
    record = Record(model, input_shape)
    place = pixel or _middle(record.steps[record.last].output_size)
    (top, bottom), (left, right) = (record.ranges(record.last, axis, np.array([place[axis]])) for axis in (0, 1))
    return Box(int(top[0]), int(left[0]), int(bottom[0]), int(right[0]))


# ---- measured -------------------------------------------------------------------------------------------------------


def receptive_field_measured(
    model: nn.Module, input_shape: tuple[int, ...], *, trials: int = 8, seed: int = 0
) -> tuple[int, int]:
    """Height and width of the region that `pixel_field_measured` finds for the middle output pixel.

    >>> receptive_field_measured(nn.Conv2d(1, 1, 3, padding=2, dilation=2), (1, 1, 32, 32))
    (5, 5)
    """
    return pixel_field_measured(model, input_shape, trials=trials, seed=seed).size


def pixel_field_measured(
    model: nn.Module,
    input_shape: tuple[int, ...],
    pixel: tuple[int, int] | None = None,
    *,
    trials: int = 8,
    seed: int = 0,
) -> Box:
    """The smallest box around the pixels of the image whose gradient at one output pixel is not zero.

    In a copy of the model all weights are random and positive and normalisation is left out, so that no ReLU hides a
    path; pooling shows only the winner of a window, so the region is collected over `trials` random images.  What is
    found lies inside the image, and is a lower bound.

    >>> pixel_field_measured(nn.Conv2d(1, 1, 3, stride=2, padding=1), (1, 1, 32, 32), (0, 5))
    Box(top=0, left=9, bottom=1, right=11)
    """
    generator = torch.Generator().manual_seed(seed)
    model = _positive_copy(model, generator)
    seen = torch.zeros(input_shape[-2:], dtype=torch.bool)
    for _ in range(trials):
        images = torch.rand(input_shape, generator=generator, dtype=torch.float64)
        seen |= (_gradient(model, images, pixel, generator) != 0).flatten(0, -3).any(dim=0)
    if not seen.any():
        raise InputError(
            "No pixel of the image has a gradient: the output does not depend on the image.\n"
            "Look for detach or argmax in the forward of the model."
        )
    rows, columns = torch.nonzero(seen.any(dim=1)).flatten(), torch.nonzero(seen.any(dim=0)).flatten()
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1]))


# ---- effective ------------------------------------------------------------------------------------------------------


def effective_receptive_field(model: nn.Module, images: Tensor) -> Tensor:
    """How much each pixel of the image counts for the middle output pixel y: the mean of |∂y / ∂x|, with sum 1.

    y is the sum over the channels of the output.  Give the raw output: after a softmax this sum is always 1, and with
    two logits under a softmax it is never trained, so give such a model one output channel.  The model runs in eval
    mode and is left as it was.

    Args:
        images: (B, C, H, W) float, as the model gets them; gradients are averaged over them and added over C.

    Returns:
        Tensor (H, W), float, on the CPU.

    Raises:
        InputError: if the images are no images, or no pixel has a gradient.

    Reference: Luo et al., 2016 (arXiv:1701.04128).

    >>> effective_receptive_field(nn.AvgPool2d(3, 1, 1), torch.zeros(2, 1, 3, 3)).sum().item()
    1.0
    """
    check_images(images)
    device = next((p.device for p in model.parameters()), images.device)
    gradient = _gradient(model, images.to(device))
    field = gradient.abs().sum(dim=1).mean(dim=0)  # (H, W)
    if not field.sum() > 0:
        raise InputError(
            "No pixel has a gradient: the middle output pixel is the same for all images.\n"
            "If the weights are random, its ReLUs may all give 0: try another seed, or more channels."
        )
    return (field / field.sum()).cpu()


def effective_size(field: Tensor) -> float:
    """Side of the square with as many pixels as `field` (H, W) has above 1 − 95.45 % of its largest value.

    Luo et al. take the value at the centre instead of the largest; after max pooling the centre need not be a high one.

    >>> effective_size(torch.tensor([[0.0, 0.5, 0.02], [0.5, 1.0, 0.5]]))
    2.0
    """
    return float((field > ERF_SHARE * field.max()).sum()) ** 0.5


def _gradient(
    model: nn.Module, images: Tensor, pixel: tuple[int, int] | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Gradient (B, C, H, W) of one output pixel, its channels added up (by random weights if there is a generator)."""
    images = images.detach().requires_grad_()
    with in_eval_mode(model), torch.enable_grad():
        output = next(tensors_in(model(images.clone())))  # a clone: the model may change its input in place
        if output.ndim > 2:
            row, column = pixel or _middle(sizes(output))
            output = output[..., row, column]
        if generator is not None:
            output = output * torch.rand(output.shape, generator=generator, dtype=output.dtype)
        if not output.requires_grad:  # nothing in it comes from the image or a weight
            return torch.zeros_like(images)
        return torch.autograd.grad(output.sum(), images, allow_unused=True, materialize_grads=True)[0]


def _positive_copy(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in float64 whose layers take weighted means: all weights > 0, of a size that keeps values near 1."""
    model = copy.deepcopy(model).cpu().double()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_norm(child):
                setattr(parent, name, nn.Identity())
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 100  # small biases: else they add up over the layers
        parameter.data.uniform_(0.5, 1.5, generator=generator).div_(fan)
    return model


def _middle(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 2, size[1] // 2
