"""Tests of tiles.py: pieces that are put together equal the whole image, at bounded memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training.tiles import GRID, margin_of, predict_tiled

from checks import InputError
from networks.baselines import DilatedNet, RoadNet, Shrunk
from networks.fcn import FCN
from tests.net_helpers import random, trained_looking
from unet import UNet

MODELS = {
    "transposed": UNet(widths=(2, 4, 4)),
    "bilinear": UNet(widths=(2, 4, 4), upsampling="bilinear"),
    "unpool": UNet(widths=(2, 4, 4), upsampling="unpool", skip="none"),
    "shrunk": Shrunk(UNet(widths=(2, 4)), 2),
    "road": RoadNet(1, 2),
    "dilated": DilatedNet(1, 2, (2, 2, 2, 2, 2)),
    "fcn": FCN(1, 2, (2, 2, 2, 2, 2)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(200, 333), (129, 400), (7, 300)])
@torch.no_grad()
def test_fault_46_tiles_equal_the_whole(name, size):
    model, image = trained_looking(MODELS[name]).double(), random(1, 1, *size).double()
    tiled = predict_tiled(model, image, tile=128, margin=margin_of(model, 1))
    torch.testing.assert_close(tiled, model(image), rtol=0, atol=1e-10)


@given(H=st.integers(1, 300), W=st.integers(1, 300), tile=st.integers(1, 300), margin=st.integers(0, 9))
@settings(max_examples=60)
def test_any_size_and_any_tile(H, W, tile, margin):
    # A box filter of the reach r is right in every pixel of a core with a margin of at least r.
    blur = nn.AvgPool2d(2 * margin + 1, 1, margin)
    image = torch.arange(float(H * W)).reshape(1, 1, H, W).remainder(1009).double()
    torch.testing.assert_close(predict_tiled(blur, image, tile=tile, margin=margin), blur(image))


def test_a_margin_that_is_too_narrow_is_seen():
    # So the tests above can fail: a field of 100 pixels and no margin.
    blur, image = nn.AvgPool2d(101, 1, 50), random(1, 1, 40, 400)
    assert not torch.allclose(predict_tiled(blur, image, tile=128, margin=0), blur(image), atol=1e-3)


def test_memory_is_bounded_by_the_tile():
    sizes = []

    def forward(images):
        sizes.append(tuple(images.shape[-2:]))
        return images[:, :1]

    image = random(1, 3, 700, 1000)
    assert torch.equal(predict_tiled(forward, image, tile=320, margin=20), image[:, :1])
    # margin 20 → 64, core 320 − 2 · 64 = 192: 4 rows and 6 columns of pieces, none larger than the tile
    assert len(sizes) == 4 * 6 and max(itertools.chain(*sizes)) == 320


def test_a_wide_margin_still_leaves_half_a_tile():
    sizes = []

    def forward(images):
        sizes.append(images.shape[-1])
        return images

    predict_tiled(forward, random(1, 1, 1, 3000), tile=256, margin=500)
    # margin 500 → 512, core 128 and not 64: ⌈3000 / 128⌉ = 24 pieces, at most 128 + 2 · 512 wide
    assert len(sizes) == 24 and max(sizes) == 1152


def test_the_output_is_made_once_and_holds_what_forward_gives():
    label = predict_tiled(lambda x: (x > 0).to(torch.uint8), random(2, 1, 150, 70), tile=64, margin=0)
    assert label.dtype == torch.uint8 and torch.equal(label, (random(2, 1, 150, 70) > 0).to(torch.uint8))


@pytest.mark.parametrize("margin", [0, None])
def test_small_images_and_models_without_a_margin_are_not_cut(margin):
    calls = []
    image = random(1, 1, 300, 20)
    predict_tiled(lambda x: calls.append(x.shape) or x, image, tile=300 if margin == 0 else 64, margin=margin)
    assert calls == [image.shape]


@pytest.mark.parametrize(("tile", "margin"), [(0, 1), (64, -1)])
def test_sizes_that_are_none_are_refused(tile, margin):
    with pytest.raises(InputError, match="predict_tiled: tile="):
        predict_tiled(nn.Identity(), random(1, 1, 8, 8), tile=tile, margin=margin)


def test_a_model_that_changes_the_size_is_refused():
    with pytest.raises(InputError, match="height and width of the images"):
        predict_tiled(nn.MaxPool2d(2), random(1, 1, 100, 100), tile=64, margin=0)


# ---- how wide the margin must be ----


def test_margin_by_hand():
    # 5×5 after 2×2 pooling: two steps of 2 pixels on both sides, and the pixel beside it in the pooled window
    model = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 1, 5, padding=2), nn.Upsample(scale_factor=2))
    assert margin_of(model, 1) == 5


class Mean(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=(2, 3), keepdim=True)


WHOLE = {
    "GroupNorm": UNet(widths=(4, 4), norm="group"),
    "InstanceNorm": nn.InstanceNorm2d(1),
    "BatchNorm without statistics": nn.BatchNorm2d(1, track_running_stats=False),
    "mean of the image": Mean(),
    "mean after layers": nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), Mean()),
    "pooling by 3": nn.Sequential(nn.MaxPool2d(3), nn.Upsample(scale_factor=3)),
    "pooling by more than the grid": nn.Sequential(nn.AvgPool2d(2 * GRID), nn.Upsample(scale_factor=2 * GRID)),
    "32 in a network and 8 before it": Shrunk(UNet(widths=(2,) * 6), 8),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_sees_the_whole_image_or_fits_no_grid_has_no_margin(name):
    assert margin_of(WHOLE[name], 1) is None


def test_a_model_that_cannot_be_read_has_no_margin():
    class Functional(nn.Module):
        def forward(self, x):
            return nn.functional.max_pool2d(x, 3, 1, 1)

    assert margin_of(Functional(), 1) is None


def test_the_model_stays_in_its_mode():
    model = UNet(widths=(2, 2)).train()
    margin_of(model, 1)
    assert all(module.training for module in model.modules())
