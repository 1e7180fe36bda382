"""predict: every image of a folder gets its mask, and no file that was there is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import plots
from commands import predict
from imagesets.files import read_image, read_label
from imagesets.hdf5 import normalise_image
from tests.data_helpers import colour_picture, picture, refused, save
from tests.net_helpers import trained_looking
from training import modelfile
from training.modelfile import Card, ExportedModel
from unet import UNet


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.pt2"
    names = ["background", "cell", "bud"]
    return modelfile.save(
        trained_looking(UNet(1, 3, (2, 3))), path, mean=[0.4], std=[0.2], class_names=names
    )


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    save(folder / "one.png", picture(0, 30, 41))
    save(folder / "two with spaces.tif", picture(1, 17, 200).astype(np.uint16) * 257)
    save(folder / "Ünï.jpg", picture(2, 64, 64))
    return folder


def brightness(threshold: float, channels: int = 1, margin: int | None = 0) -> ExportedModel:
    """A model by hand: class 1 where the first channel, in multiples of the deviation, is above the threshold."""

    def network(x):
        return torch.stack([torch.full_like(x[:, 0], threshold), x[:, 0]], dim=1)

    return ExportedModel(Card(("background", "bright"), (0.5,) * channels, (0.25,) * channels, margin), network)


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_image_gets_a_mask_and_an_overlay_of_its_name(model_file, images, tmp_path, capsys):
    before = read_all(images)
    masks = predict.predict_folder(model_file, images, tmp_path / "out")
    stems = ["one", "two with spaces", "Ünï"]
    assert [path.stem for path in masks] == stems and {path.parent for path in masks} == {tmp_path / "out" / "masks"}
    for mask, stem in zip(masks, stems):
        image = read_image(next(images.glob(f"{stem}.*")))
        label = read_label(mask)
        assert label.shape == image.shape and label.dtype == np.uint8 and label.max() <= 2
        overlay = read_image(tmp_path / "out" / "overlays" / f"{stem}.png")
        assert (overlay == plots.overlay(image, label)).all()
    assert read_all(images) == before and "3 of 3" in capsys.readouterr().out.splitlines()[-1]


def test_the_mask_is_that_of_the_model(model_file, images, tmp_path):
    torch.manual_seed(0)
    model = trained_looking(UNet(1, 3, (2, 3)))
    image = read_image(images / "one.png")
    tensor = torch.from_numpy(normalise_image(image, np.array([0.4]), np.array([0.2])))[None]
    (mask, *_) = predict.predict_folder(model_file, images, tmp_path / "out")
    with torch.no_grad():
        assert (read_label(mask) == model(tensor)[0].argmax(0).numpy()).all()


def test_normalised_as_in_training():
    # 153 / 255 = 0.6, (0.6 − 0.5) / 0.25 = 0.4; 179 / 255 ≈ 0.702 → 0.81
    image = np.array([[153, 179]], np.uint8)
    assert predict.predict_image(brightness(0.5), image).tolist() == [[0, 1]]
    assert predict.predict_image(brightness(0.5), image.astype(np.uint16) * 257).tolist() == [[0, 1]]


@pytest.mark.parametrize("margin", [0, None])
def test_large_images_are_cut_into_tiles(margin):
    seen = []

    def network(x):
        seen.append(tuple(x.shape[2:]))
        return torch.cat([-x, x], 1)

    image = picture(3, 200, 150)
    model = ExportedModel(Card(("background", "bright"), (0.5,), (0.25,), margin), network)
    assert (predict.predict_image(model, image, tile=64) == (image > 127.5)).all()
    assert len(seen) == (1 if margin is None else 4 * 3) and (margin is None or max(map(max, seen)) == 64)


# ---- bad input ----


def test_all_problems_are_listed_and_the_good_images_are_done(model_file, images, tmp_path):
    (images / "broken.png").write_bytes(b"not an image")
    (images / "notes.txt").write_text("shopping list")
    (images / ".DS_Store").write_text("junk")
    (images / "masks").mkdir()
    save(images / "colour.png", colour_picture())
    save(images / "ONE.tif", picture())
    message = refused(predict.predict_folder, model_file, images, tmp_path / "out")
    assert "4 problems" in message and "DS_Store" not in message
    for words in (
        "images/broken.png cannot be read as an image",
        "images/notes.txt is none of .png",
        "images/colour.png: the image has 3 channels, but the model was trained on images with 1",
        "images/one.png and ONE.tif have one name",
    ):
        assert words in message
    done = {path.stem for path in (tmp_path / "out" / "masks").iterdir()}
    assert done == {"ONE", "two with spaces", "Ünï"}


def test_nan_is_refused():
    assert "NaN" in refused(predict.predict_image, brightness(0), np.full((2, 2), np.nan, np.float32))


def test_an_empty_folder_is_one_sentence(model_file, tmp_path):
    assert "holds no image" in refused(predict.predict_folder, model_file, tmp_path)
    (tmp_path / "images").mkdir()
    assert "folders inside are not looked at" in refused(predict.predict_folder, model_file, tmp_path)
    assert "is no folder" in refused(predict.predict_folder, model_file, tmp_path / "no")


@pytest.mark.parametrize("settings", [{"tile": 0}, {"device": "cuda"}])
def test_settings_that_cannot_be_are_refused(model_file, images, settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "tile must be at least 1" in refused(predict.predict_folder, model_file, images, **settings)


def test_images_are_never_overwritten(model_file, images, tmp_path):
    images = images.rename(tmp_path / "masks")
    before = read_all(images)
    assert "would overwrite the images" in refused(predict.predict_folder, model_file, images, tmp_path)
    assert read_all(tmp_path) == before


def test_masks_of_someone_else_are_never_overwritten(model_file, images, tmp_path):
    save(tmp_path / "masks" / "one.png", picture())
    before = read_all(tmp_path)
    assert "was not made here" in refused(predict.predict_folder, model_file, images, tmp_path)
    assert read_all(tmp_path) == before


# ---- the command ----


def test_the_command_works_in_the_folder_where_it_was_typed(model_file, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert predict.main([str(model_file), "images"]) == 0
    assert Path.cwd() == tmp_path
    assert len(list((tmp_path / "images_predicted" / "masks").iterdir())) == 3
    out = capsys.readouterr().out
    assert "[1/3] one.png: " in out and "%" in out
