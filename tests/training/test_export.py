"""Tests of export.py and modelfile.py: a file gives what the model gives, or there is no file."""

from __future__ import annotations

import importlib.util
import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from networks.baselines import Shrunk
from networks.fcn import FCN
from tests.data_helpers import refused
from tests.net_helpers import random, trained_looking
from training import export, modelfile
from unet import UNet

NEEDS_ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in export.ONNX_PACKAGES), reason="no ONNX packages"
)


def small_net(**settings):
    torch.manual_seed(0)
    return trained_looking(UNet(1, 2, **{"widths": (2, 3), **settings}))


def save(model, path, **settings):
    settings = {"mean": [0.4], "std": [0.2], "onnx": False, "say": lambda line: None, **settings}
    return export.save(model, path, **settings)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save(small_net(), tmp_path_factory.mktemp("model") / "model.pt2", class_names=["background", "cell"])


LINKS = {
    "none": {"skip": "none"},
    "indices": {"upsampling": "unpool", "skip": "none"},
    "sum": {"skip": "sum"},
    "concat": {"widths": (2, 3, 4)},
    "both": {"upsampling": "unpool", "skip": "concat"},
    "bilinear": {"upsampling": "bilinear", "norm": "group"},
}


# ---- the round trip ----


@pytest.mark.parametrize("name", LINKS)
@torch.no_grad()
def test_every_link_gives_the_same_for_every_size(tmp_path, name):
    model = small_net(**LINKS[name])
    loaded = modelfile.load(save(model, tmp_path / "model.pt2"))
    for size in [(64, 64), (63, 65), (17, 31), (80, 6), (3, 2), (1, 1), (1, 127)]:
        images = random(2, 1, *size)
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "model", [Shrunk(UNet(1, 1, (2, 3)), 2), pytest.param(FCN(1, 3, (2, 2, 2, 2, 2)), marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_other_networks(tmp_path, model):
    images = random(1, 1, 40, 77)
    loaded = modelfile.load(save(model, tmp_path / "model.pt2"))
    torch.testing.assert_close(loaded(images), model.eval()(images), rtol=1e-4, atol=1e-4)
    assert len(loaded.card.class_names) == max(2, model(images).shape[1])


@NEEDS_ONNX
@pytest.mark.parametrize(
    "name", ["both", *(pytest.param(name, marks=pytest.mark.slow) for name in LINKS if name != "both")]
)
def test_onnx_gives_the_same_for_every_size_index_links_too(tmp_path, name):
    model, lines = small_net(**LINKS[name]), []
    save(model, tmp_path / "model.pt2", onnx=True, say=lines.append)
    assert [line.split(":")[0] for line in lines] == ["model.pt2", "model.onnx"] and "checked" in lines[1]
    network = export._OnnxModel((tmp_path / "model.onnx").read_bytes())
    for size in [(63, 65), (16, 31), (1, 1)]:
        images = random(2, 1, *size)
        with torch.no_grad():
            torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-4)
    stored = network._session.get_modelmeta().custom_metadata_map
    assert json.loads(stored["segmentation.json"])["mean"] == [0.4]


def test_the_card_says_what_prediction_needs(saved):
    card = modelfile.load(saved).card
    assert card.class_names == ("background", "cell") and (card.mean, card.std) == ((0.4,), (0.2,))
    assert card.channels == 1 and card.torch == torch.__version__
    # Four convolutions at full size reach 4 pixels, two on the lower level 2 · 2, and the pooling window has one more
    assert card.margin == 9


def test_the_model_stays_as_it_is(tmp_path):
    model = small_net().train().to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save(model, tmp_path / "model.pt2")
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- what must not become a file ----


class FixedBySize(nn.Module):
    """Its branch is chosen by the size of the traced image."""

    def forward(self, x):
        return torch.cat([x, x], 1) * (2 if x.shape[2] == 193 else 3)


class Wrong(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


def test_a_file_that_differs_from_the_model_is_refused_and_the_old_one_stays(tmp_path, monkeypatch):
    path = save(small_net(), tmp_path / "model.pt2")
    before = path.read_bytes()
    monkeypatch.setattr(export, "unpack", lambda content, name: lambda images: torch.zeros(len(images), 2, 1, 1))
    message = refused(save, small_net(skip="sum"), path)
    assert "model.pt2 gives other logits than the model for images (1, 1, 64, 96)" in message
    assert message.count("\n") < 4 and path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (FixedBySize(), "cannot trace"),
        (Wrong(lambda x: torch.cat([x, x], 1) if x.sum() > 0 else x.repeat(1, 2, 1, 1)), "cannot trace"),
        (Wrong(lambda x: x[..., ::2, ::2]), "expected (1, K, H, W)|not (1, K, H, W)"),
        (Wrong(lambda x: {"out": x}), "dict"),
        (nn.Conv2d(3, 2, 1), "cannot take an image of 1 channel"),
    ],
)
def test_models_that_cannot_be_exported(tmp_path, model, words):
    message = refused(save, model, tmp_path / "model.pt2")
    assert any(word in message for word in words.split("|")) and message.count("\n") < 4
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = small_net()
    model.head.bias.data.fill_(float("nan"))
    assert "nan" in refused(save, model, tmp_path / "model.pt2")


def test_a_network_with_a_least_size_of_its_own_is_compared_from_there_on(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReflectionPad2d(4), nn.Conv2d(2, 2, 9))
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 1, 1, 1))
    assert save(model, tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"mean": []},
        {"mean": [0.1, 0.2]},
        {"std": [0.0]},
        {"mean": [float("nan")]},
        {"class_names": ["only one"]},
        {"class_names": "abc"},
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings):
    message = refused(save, small_net(), tmp_path / "model.pt2", **settings)
    assert "export.save" in message and not list(tmp_path.iterdir())


def test_another_ending_is_refused(tmp_path):
    assert "ends in .pt2" in refused(save, small_net(), tmp_path / "model.pth")


def test_without_the_onnx_packages_there_is_one_sentence_and_no_old_model(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"of an older model")
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("no_such_package",))
    lines: list[str] = []
    save(small_net(), tmp_path / "model.pt2", onnx=None, say=lines.append)
    assert lines[1] == "model.onnx is not written: it needs more packages. pip install no_such_package"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert "no_such_package" in refused(save, small_net(), tmp_path / "other.pt2", onnx=True)
    assert not (tmp_path / "other.pt2").exists()


def test_an_exporter_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no opset\nand a long story")

    monkeypatch.setattr(export, "ONNX_PACKAGES", ())
    monkeypatch.setattr(torch.onnx, "export", fail)
    message = refused(save, small_net(), tmp_path / "model.pt2", onnx=True)
    assert "RuntimeError: no opset" in message and "long story" not in message


# ---- reading ----


def test_fault_66_a_flipped_bit_is_found(saved):
    content = bytearray(saved.read_bytes())
    for place in range(len(content) // 40, len(content), len(content) // 20):
        changed = content.copy()
        changed[place] ^= 4
        try:
            loaded = modelfile.unpack(bytes(changed), "model.pt2")
        except modelfile.InputError:
            continue
        images = random(1, 1, 20, 20)  # the bit was in the gap between two parts: nothing is changed
        assert torch.equal(loaded(images), modelfile.load(saved)(images))


def test_fault_66_a_flipped_bit_in_a_weight_is_named(saved):
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        name = next(name for name in archive.namelist() if name.endswith("weight_0"))
        place = content.index(archive.read(name))
    content[place] ^= 4  # torch.export would load it, with another weight
    message = refused(modelfile.unpack, bytes(content), "model.pt2")
    assert "is damaged: the checksum of" in message and "weight_0" in message


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_cut_off_file_is_refused(saved, share):
    content = saved.read_bytes()
    message = refused(modelfile.unpack, content[: int(share * len(content))], "model.pt2")
    assert "is no model file, or it is damaged" in message and message.count("\n") < 4


def test_other_files_are_refused(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "latest.ckpt")
    assert "a checkpoint is none" in refused(modelfile.load, tmp_path / "latest.ckpt")
    assert "No such file" in refused(modelfile.load, tmp_path / "nothing.pt2")
    assert "cannot be read" in refused(modelfile.load, tmp_path)


def archive_with(card) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("extra/segmentation.json", json.dumps(card))
    return buffer.getvalue()


def test_another_version_is_refused():
    card = {
        "format": modelfile.FORMAT,
        "class_names": [],
        "mean": [],
        "std": [],
        "smallest": 1,
        "margin": 1,
        "torch": "",
    }
    assert "version 99" in refused(modelfile.unpack, archive_with({**card, "version": 99}), "model.pt2")
    assert "no model file" in refused(modelfile.unpack, archive_with({"format": "?"}), "model.pt2")
    # all as it should be, but PyTorch finds no graph in it
    message = refused(modelfile.unpack, archive_with({**card, "version": modelfile.VERSION, "torch": "9.9"}), "m.pt2")
    assert "cannot be loaded by torch" in message and "torch 9.9 wrote it" in message


def test_other_channels_are_refused(saved):
    assert "takes images (B, 1, H, W)" in refused(modelfile.load(saved), torch.zeros(1, 3, 8, 8))
