"""A model file gives what the model gives, or there is no file; pieces of an image put together equal the whole."""

import itertools
import random as chances
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from checks import InputError
from networks.baselines import FCN, DilatedNet, RoadNet
from tests.data_helpers import refused
from tests.net_helpers import random, trained_looking
from training import modelfile
from training.modelfile import GRID, margin_of, predict_tiled
from unet import UNet


def small_net(**settings):
    torch.manual_seed(0)
    return trained_looking(UNet(1, 2, **{"widths": (2, 3), **settings}))


def save(model, path, **settings):
    return modelfile.save(model, path, **{"mean": [0.4], "std": [0.2], **settings})


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save(small_net(), tmp_path_factory.mktemp("model") / "model.pt2", class_names=["background", "cell"])


LINKS = {"none": {"skip": "none"}, "sum": {"skip": "sum"}, "concat": {"widths": (2, 3, 4)}, "stem": {"stem": 2}}
LINKS |= {"both": {"upsampling": "unpool"}, "bilinear": {"upsampling": "bilinear", "norm": "group"}}


@pytest.mark.parametrize("name", [*LINKS, "one output"])
@torch.no_grad()
def test_every_link_gives_the_same_for_every_size(tmp_path, name):
    model = small_net(**LINKS[name]) if name in LINKS else UNet(1, 1, (2, 3)).eval()
    loaded = modelfile.load(save(model, tmp_path / "model.pt2"))
    assert loaded.card.class_names == ("background", "class 1")
    for size in [(64, 64), (63, 65), (17, 31), (3, 2), (1, 1), (1, 127)]:
        images = random(2, 1, *size)
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-4, atol=1e-4)


def test_the_card_says_what_prediction_needs(saved):
    card = modelfile.load(saved).card
    assert card.class_names == ("background", "cell") and (card.mean, card.std) == ((0.4,), (0.2,))
    # Four convolutions at full size reach 4 pixels, two on the lower level 2 · 2, and the pooling window has one more
    assert card.margin == 9


def test_the_model_stays_as_it_is(tmp_path):
    model = small_net().train().to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save(model, tmp_path / "model.pt2")
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Wrong(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


BAD = [
    (Wrong(lambda x: torch.cat([x, x], 1) * (2 if x.shape[2] == 193 else 3)), "cannot trace"),
    (Wrong(lambda x: torch.cat([x, x], 1) if x.sum() > 0 else x.repeat(1, 2, 1, 1)), "cannot trace"),
    (Wrong(lambda x: x[..., ::2, ::2]), "193×129 pixels become"),
    (nn.Conv2d(1, 3, 1), "class_names=('a', 'b')"),
    (nn.Conv2d(3, 2, 1), "one number for each channel"),
]


@pytest.mark.parametrize("model, words", BAD)
def test_models_that_cannot_be_exported(tmp_path, model, words):
    assert words in refused(save, model, tmp_path / "model.pt2", class_names="ab") and not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused_and_the_old_file_stays(tmp_path):
    path, model = tmp_path / "model.pt2", small_net()
    before = save(model, path).read_bytes()
    model.head.bias.data.fill_(float("nan"))
    assert "nan" in refused(save, model, path) and path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_flipped_bit_never_gives_another_model(saved, tmp_path):
    content, chance = bytearray(saved.read_bytes()), chances.Random(0)
    images, refusals = random(1, 1, 20, 20), 0
    wanted = modelfile.load(saved)(images)
    for place in chance.sample(range(len(content)), 40):
        changed = content.copy()
        changed[place] ^= 4
        try:
            (tmp_path / "model.pt2").write_bytes(changed)
            assert torch.equal(modelfile.load(tmp_path / "model.pt2")(images), wanted)
        except InputError:
            refusals += 1
    assert refusals > 20  # in the gaps between entries a bit changes nothing


def test_other_files_and_a_cut_off_one_are_refused(tmp_path, saved):
    (tmp_path / "model.pt2").write_bytes(saved.read_bytes()[:-9])
    assert "or it is damaged" in refused(modelfile.load, tmp_path / "model.pt2")
    torch.save({"a": torch.zeros(3)}, tmp_path / "latest.ckpt")
    assert "a checkpoint is none" in refused(modelfile.load, tmp_path / "latest.ckpt")
    assert "No such file" in refused(modelfile.load, tmp_path / "nothing.pt2")


MODELS = {
    "transposed": UNet(widths=(2, 4, 4)),
    "bilinear": UNet(widths=(2, 4, 4), upsampling="bilinear"),
    "unpool": UNet(widths=(2, 4, 4), upsampling="unpool", skip="none"),
    "stem": UNet(widths=(2, 4), stem=4),
    "road": RoadNet(1, 2),
    "dilated": DilatedNet(1, 2, (2, 2, 2, 2, 2)),
    "fcn": FCN(1, 2, (2, 2, 2, 2, 2)),
    # Sees 100 pixels up, none down: a margin of half of its 101 pixels would be too narrow.
    "lopsided": nn.Sequential(nn.ZeroPad2d((0, 0, 100, 0)), nn.Conv2d(1, 2, (101, 1), bias=False)),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_tiles_equal_the_whole(name):
    model = trained_looking(MODELS[name]).double()
    for size in [(200, 129), (7, 300)]:
        image = random(1, 1, *size).double()
        tiled = predict_tiled(model, image, tile=128, margin=margin_of(model, 1))
        torch.testing.assert_close(tiled, model(image), rtol=0, atol=1e-10)


@given(H=st.integers(1, 300), W=st.integers(1, 300), tile=st.integers(1, 300), margin=st.integers(0, 9))
@settings(max_examples=60)
def test_any_size_and_any_tile(H, W, tile, margin):
    # A box filter of the reach r is right in every pixel of a core with a margin of at least r.
    blur = nn.AvgPool2d(2 * margin + 1, 1, margin)
    image = torch.arange(float(H * W)).reshape(1, 1, H, W).remainder(1009).double()
    torch.testing.assert_close(predict_tiled(blur, image, tile=tile, margin=margin), blur(image))


def test_memory_is_bounded_by_the_tile():
    sizes, image = [], random(1, 3, 700, 1000)
    label = predict_tiled(lambda x: sizes.append(x.shape[-2:]) or (x[:, :1] > 0).byte(), image, tile=320, margin=20)
    # margin 20 → 64, core 320 − 2 · 64 = 192: 4 rows and 6 columns of pieces, none larger than the tile
    assert len(sizes) == 4 * 6 and max(itertools.chain(*sizes)) == 320
    assert label.dtype == torch.uint8 and torch.equal(label, (image[:, :1] > 0).byte())  # what forward gives, no more


def test_margin_by_hand():
    # 5×5 after 2×2 pooling: two steps of 2 pixels on both sides, and the pixel beside it in the pooled window
    model = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 1, 5, padding=2), nn.Upsample(scale_factor=2)).train()
    assert margin_of(model, 1) == 5 and model.training


WHOLE = {
    "GroupNorm": UNet(widths=(4, 4), norm="group"),
    "InstanceNorm": UNet(widths=(4, 4), norm="instance"),
    "BatchNorm without statistics": nn.BatchNorm2d(1, track_running_stats=False),
    "mean of the image": Wrong(lambda x: x - x.mean(dim=(2, 3), keepdim=True)),
    "pooling by 3": nn.Sequential(nn.MaxPool2d(3), nn.Upsample(scale_factor=3)),
    "pooling by more than the grid": nn.Sequential(nn.AvgPool2d(2 * GRID), nn.Upsample(scale_factor=2 * GRID)),
    "32 in a network and 8 before it": UNet(widths=(2,) * 6, stem=8),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_sees_the_whole_image_or_fits_no_grid_has_no_margin(name):
    assert margin_of(WHOLE[name], 1) is None
