"""Transposed convolution: three ways to the same numbers, bilinear kernels, checkerboards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from networks import upsampling
from networks.inspection import count_parameters

ROUNDING = {"rtol": 1e-6, "atol": 1e-6}  # the taps of a kernel are float32
lengths, kernels, strides = st.integers(1, 9), st.integers(1, 7), st.integers(1, 5)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(lengths, kernels, strides, st.integers(0, 2**31))
def test_three_ways_and_pytorch_agree(n, k, s, seed):
    x, kernel = random(n, seed=seed), random(k, seed=seed + 1)
    by_matrix = upsampling.transposed_matrix(kernel, s, n) @ x
    by_filter = upsampling.zeros_then_filter(x, kernel, s)
    by_pytorch = F.conv_transpose1d(x[None, None], kernel[None, None], stride=s)[0, 0]
    assert len(by_matrix) == (n - 1) * s + k
    torch.testing.assert_close(by_matrix, by_pytorch)
    torch.testing.assert_close(by_filter, by_pytorch)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 8, 16, 32])
def test_bilinear_upsampling_equals_interpolation_away_from_the_frame(factor):
    x, layer = random(2, 3, 4, 5), upsampling.bilinear_upsampling(3, factor).double()
    expected, frame = F.interpolate(x, scale_factor=factor, mode="bilinear"), factor // 2
    inside = (..., slice(frame, 4 * factor - frame), slice(frame, 5 * factor - frame))
    torch.testing.assert_close(layer(x)[inside], expected[inside], **ROUNDING)
    assert layer(x).shape == expected.shape
    if factor > 1:
        assert not torch.allclose(layer(x), expected)  # at the frame it lacks the neighbours


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_repeating_the_frame_makes_the_whole_map_equal(factor, height, width, seed):
    x = random(1, 2, height, width, seed=seed)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear")
    torch.testing.assert_close(upsampling.interpolate_by_convolution(x, factor), expected, **ROUNDING)


def test_bilinear_upsampling_is_trainable():
    assert count_parameters(upsampling.bilinear_upsampling(3, 4)) == 3 * 8 * 8
    layer = upsampling.bilinear_upsampling(2, 2)
    layer(torch.ones(1, 2, 3, 3)).sum().backward()
    assert (layer.weight.grad > 0).all()


@given(kernels, strides)
def test_overlap_is_even_if_and_only_if_the_stride_divides_the_kernel(k, s):
    counts = upsampling.overlap_counts(k, s, length=20)[k:-k]
    assert (counts.unique().numel() == 1) == (k % s == 0)


def constant_through(kernel, stride):
    """What a transposed convolution makes of a constant map, away from the frame."""
    k = len(kernel)
    kernel = torch.outer(kernel, kernel)[None, None]
    out = F.conv_transpose2d(torch.ones(1, 1, 12, 12, dtype=kernel.dtype), kernel, stride=stride)
    start = -(-k // stride) * stride  # the first phase, where all taps meet a value
    return out[..., start : 12 * stride - k, start : 12 * stride - k]


@pytest.mark.parametrize(("kernel", "stride", "expected"), [(3, 2, 0.4359), (4, 2, 0), (6, 3, 0)])
def test_checkerboard_of_kernels_of_ones(kernel, stride, expected):
    # 3/2: counts 2, 1 in each direction, phases 4 2 2 1: variance 19/16 of a mean square 100/16
    shown = constant_through(torch.ones(kernel), stride)
    assert upsampling.checkerboard(shown, stride) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("k", [2, 3, 4, 6])
@pytest.mark.parametrize("s", [2, 3, 4])
def test_checkerboard_is_the_response_at_the_copies_of_the_spectrum(k, s):
    kernel = random(k, seed=k * s)
    turns = torch.outer(torch.arange(s), torch.arange(k)).double() / s
    at = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns) @ kernel.to(torch.complex128)
    energy = torch.outer(at.abs().square(), at.abs().square())  # of the two-dimensional kernel
    expected = (1 - energy[0, 0] / energy.sum()).sqrt().item()
    assert upsampling.checkerboard(constant_through(kernel, s), s) == pytest.approx(expected)


def test_checkerboard_does_not_take_content_for_a_pattern():
    assert upsampling.checkerboard(random(4, 2, 64, 64), 2) < 0.05
    assert upsampling.checkerboard(torch.zeros(1, 1, 4, 4), 2) == 0
    channels = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    assert upsampling.checkerboard(channels, 2) == 0  # channels differ, phases do not
