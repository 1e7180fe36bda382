"""Upsampling as signal processing: transposed convolution = put zeros between the values, then filter.

A transposed convolution of stride s has the transposed matrix of a convolution of stride s.  By its columns, each input
value paints one copy of the kernel, s pixels after the one before.  By its rows, it is a filter over the input with
s − 1 zeros between its values.  The zeros add copies of the spectrum at the frequencies k/s; what the filter leaves of
them is the checkerboard.  The kernel of bilinear interpolation has a zero at each k/s.
Sources: Dumoulin and Visin, 2016 (arXiv:1603.07285), chapter 4; Odena, Dumoulin and Olah, 2016
(doi:10.23915/distill.00003); Long, Shelhamer and Darrell, 2015 (arXiv:1411.4038).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolution_matrix(kernel: Tensor, stride: int, length: int) -> Tensor:
    """The matrix (⌊(length − k)/s⌋ + 1, length) of a 1-D convolution without padding: row o holds the kernel from o·s.

    >>> convolution_matrix(torch.tensor([1.0, 2.0]), stride=2, length=4).tolist()
    [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0]]
    """
    free = length - len(kernel)
    return torch.stack([F.pad(kernel, (before, free - before)) for before in range(0, free + 1, stride)])


def transposed_matrix(kernel: Tensor, stride: int, length: int) -> Tensor:
    """The matrix ((n − 1)·s + k, n) of a 1-D transposed convolution: column i holds the kernel from row i·s on."""
    return convolution_matrix(kernel, stride, (length - 1) * stride + len(kernel)).T


def insert_zeros(x: Tensor, stride: int) -> Tensor:
    """Put s − 1 zeros between neighbours of the last axis: (…, n) → (…, (n − 1)·s + 1)."""
    spread = x.new_zeros(*x.shape[:-1], (x.shape[-1] - 1) * stride + 1)
    spread[..., ::stride] = x
    return spread


def zeros_then_filter(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Transposed convolution of x (n,) by a kernel (k,): zero insertion, then the filter y[o] = Σ_j k[j]·z[o−j].

    >>> zeros_then_filter(torch.tensor([1.0, 10.0]), torch.tensor([1.0, 2.0, 3.0]), stride=2).tolist()
    [1.0, 2.0, 13.0, 20.0, 30.0]
    """
    return F.conv1d(insert_zeros(x, stride)[None, None], kernel.flip(0)[None, None], padding=len(kernel) - 1)[0, 0]


def linear_kernel(factor: int) -> Tensor:
    """The triangle of linear interpolation, k[i] = 1 − |i − c|/f around its middle c: (2f − f mod 2,) float32.

    >>> linear_kernel(2).tolist(), [round(value, 3) for value in linear_kernel(3).tolist()]
    ([0.25, 0.75, 0.75, 0.25], [0.333, 0.667, 1.0, 0.667, 0.333])
    """
    size = 2 * factor - factor % 2
    return 1 - (torch.arange(size) - (size - 1) / 2).abs() / factor


def bilinear_kernel(factor: int) -> Tensor:
    """The kernel of bilinear interpolation, float32 (2f − f mod 2, 2f − f mod 2): `linear_kernel` both ways."""
    return torch.outer(linear_kernel(factor), linear_kernel(factor))


def bilinear_upsampling(channels: int, factor: int, *, padding: int | None = None) -> nn.ConvTranspose2d:
    """A transposed convolution, a kernel each channel, that starts as interpolation: (B, C, H, W) → (B, C, f·H, f·W).

    Equal to `F.interpolate(x, scale_factor=f, mode="bilinear")` but in the outer ⌈(f − 1)/2⌉ pixels, where that repeats
    the value at the frame.  `padding` is cut off at each side; default ⌈(f − 1)/2⌉, which leaves f·H.
    """
    kernel, padding = bilinear_kernel(factor), factor // 2 if padding is None else padding
    layer = nn.ConvTranspose2d(channels, channels, len(kernel), factor, padding, groups=channels, bias=False)
    layer.weight.data.copy_(kernel.expand_as(layer.weight))
    return layer


def interpolate_by_convolution(x: Tensor, factor: int) -> Tensor:
    """Bilinear interpolation (B, C, H, W) → (B, C, f·H, f·W) as a transposed convolution of a repeated frame."""
    layer = bilinear_upsampling(x.shape[1], factor, padding=factor // 2 + factor).requires_grad_(False)
    return layer.to(x.device, x.dtype)(F.pad(x, (1, 1, 1, 1), mode="replicate"))


def overlap_counts(kernel: int, stride: int, length: int) -> Tensor:
    """How many taps of a 1-D transposed convolution reach each output pixel; all alike inside if s divides k.

    >>> overlap_counts(3, 2, length=4).tolist(), overlap_counts(4, 2, length=4).tolist()
    ([1, 1, 2, 1, 2, 1, 2, 1, 1], [1, 1, 2, 2, 2, 2, 2, 2, 1, 1])
    """
    return transposed_matrix(torch.ones(kernel), stride, length).sum(dim=1).long()


def checkerboard(x: Tensor, stride: int) -> float:
    """How much of a map (B, C, H, W) only depends on where a pixel lies in its s×s cell: 0 nothing, 1 all of it.

    std(m_p) / rms(x), m_p the mean over the pixels of phase p = (row mod s, column mod s), for each channel over the
    batch.  For a transposed convolution of a constant map it is the part of the kernel's response on the copies of the
    spectrum, √(Σ_{k≠0} |K(k/s)|² / Σ_k |K(k/s)|²).

    >>> checkerboard(torch.tensor([[[[1.0, 0.0, 1.0, 0.0]]]]).expand(1, 1, 4, 4), stride=2)  # half of its energy
    0.707...
    """
    H, W = x.shape[2:]
    x = x[..., : H // stride * stride, : W // stride * stride].double()
    phases = x.unflatten(3, (-1, stride)).unflatten(2, (-1, stride)).mean(dim=(0, 2, 4))  # (C, s, s)
    spread, rms = phases - phases.mean(dim=(1, 2), keepdim=True), x.square().mean().sqrt()
    return float(spread.square().mean().sqrt() / rms) if rms > 0 else 0.0
