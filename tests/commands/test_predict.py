"""predict: every image of a folder gets its mask, and no file that was there is changed."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import plots
from commands import predict
from imagesets.files import read_image, read_label
from imagesets.hdf5 import normalise_image
from tests.data_helpers import colour_picture, content, picture, refused, save
from tests.net_helpers import trained_looking
from training import modelfile
from training.modelfile import Card, ExportedModel
from unet import UNet


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.pt2"
    names = ["background", "cell", "bud"]
    return modelfile.save(trained_looking(UNet(1, 3, (2, 3))), path, mean=[0.4], std=[0.2], class_names=names)


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    save(folder / "one.png", picture(0, 30, 41))
    save(folder / "two with spaces.tif", picture(1, 17, 200).astype(np.uint16) * 257)
    save(folder / "Ünï.jpg", picture(2, 64, 64))
    return folder


def test_each_image_gets_the_mask_of_the_model_and_an_overlay_of_its_name(model_file, images, tmp_path, capsys):
    torch.manual_seed(0)
    model, before = trained_looking(UNet(1, 3, (2, 3))), content(images)
    masks = predict.predict_folder(model_file, images, tmp_path / "out")
    assert masks == [tmp_path / "out" / "masks" / f"{stem}.png" for stem in ("one", "two with spaces", "Ünï")]
    for mask in masks:
        image, label = read_image(next(images.glob(f"{mask.stem}.*"))), read_label(mask)
        normalised = torch.from_numpy(normalise_image(image, np.array([0.4]), np.array([0.2])))[None]
        assert (label == model(normalised)[0].argmax(0).numpy()).all() and label.dtype == np.uint8
        assert (read_image(tmp_path / "out" / "overlays" / mask.name) == plots.overlay(image, label)).all()
    assert content(images) == before and "3 of 3" in capsys.readouterr().out.splitlines()[-1]


def test_a_large_image_is_normalised_as_in_training_and_cut_into_tiles():
    seen = []

    def network(x):
        seen.append(tuple(x.shape[2:]))
        return torch.stack([torch.full_like(x[:, 0], 0.5), x[:, 0]], dim=1)  # class 1 above 0.5 deviations

    image = picture(3, 200, 150)  # 159 / 255 = 0.6235, (0.6235 − 0.5) / 0.25 = 0.494; 160 → 0.51
    model = ExportedModel(Card(("background", "bright"), (0.5,), (0.25,), 0), network)
    assert (predict.predict_image(model, image, tile=64) == (image >= 160)).all()
    assert len(seen) == 4 * 3 and max(map(max, seen)) == 64


def test_an_image_is_standardised_as_a_whole_before_it_is_cut_into_tiles():
    image = np.where(np.arange(150) < 75, 10, 14) + np.zeros((200, 1), int)  # mean 12, deviation 2
    image[:, 70:80] = 13  # a tile of its own has other numbers
    model = ExportedModel(
        Card(("background", "bright"), (np.nan,), (np.nan,), 0), lambda x: torch.cat([0 * x + 0.6, x], 1)
    )
    bright = image > image.mean() + 0.6 * image.std()
    for stored in (image.astype(np.uint8), (image * 300).astype(np.uint16)):  # of another brightness and depth
        assert (predict.predict_image(model, stored, tile=64) == bright).all()


def test_all_problems_are_listed_and_the_good_images_are_done(model_file, images, tmp_path):
    (images / "broken.png").write_bytes(b"not an image")
    (images / ".DS_Store").write_text("junk")
    (images / "masks").mkdir()
    save(images / "colour.png", colour_picture())
    save(images / "one.tif", picture())
    save(images / "nan.tif", np.full((2, 2), np.nan, np.float32))
    message = refused(predict.predict_folder, model_file, images, tmp_path / "out")
    assert "4 problems" in message and "DS_Store" not in message
    assert "images/broken.png cannot be read as an image" in message and "nan.tif: the image holds NaN" in message
    assert "images/colour.png: the image has 3 channels, but the model was trained on images with 1" in message
    assert "images/one.tif: another file has this name before the suffix" in message
    assert {path.stem for path in (tmp_path / "out" / "masks").iterdir()} == {"one", "two with spaces", "Ünï"}


def test_a_bad_image_or_name_does_not_stop_the_others(model_file, images, tmp_path, monkeypatch):
    long = "x" * 251
    for name in (long, os.fsdecode(b"n\xe4me"), "-o", "=1+1", "$a\nb"):
        save(images / f"{name}.png", picture(0, 9, 9))
    whole = predict.predict_tiled

    def full(classes, pieces, **options):
        if pieces.shape[-1] == 41:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return whole(classes, pieces, **options)

    monkeypatch.setattr(predict, "predict_tiled", full)
    message = refused(predict.predict_folder, model_file, images, tmp_path / "out")
    assert "1 problem\n- images/one.png: the memory is full" in message
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 7
    assert (tmp_path / "out" / "masks" / f"{long}.png").exists()


def test_masks_of_a_data_set_or_of_one_image_lie_beside_and_not_in_it(model_file, images, tmp_path):
    (tmp_path / "labels").mkdir()
    beside = tmp_path.with_name(f"{tmp_path.name}_predicted")
    for source, number in ((images, 3), (tmp_path, 3), (images / "one.png", 1)):
        assert [mask.parent for mask in predict.predict_folder(model_file, source)] == [beside / "masks"] * number
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]


def test_images_that_the_training_did_not_know_are_named(tmp_path, capsys):
    torch.manual_seed(0)
    deep = [16 * picture(i, 32, 32).astype(np.uint16) for i in range(6)]  # 12 of 16 bits
    scaled = np.stack(deep) / 65535
    mean, std = [scaled.mean()], [scaled.std()]
    known = [(torch.tensor((image[None] - mean) / std),) for image in scaled[:4]]
    model = trained_looking(UNet(1, 2, (2, 3)))
    modelfile.save(model, tmp_path / "new.pt2", mean=mean, std=std, dataset=known)
    modelfile.save(model, tmp_path / "8-bit.pt2", mean=[0.5], std=[0.29])
    assert modelfile.load(tmp_path / "new.pt2").card.light == pytest.approx((0, 0, 1, 1), abs=0.1)
    for i in range(4, 6):
        save(tmp_path / "deep" / f"{i}.tif", deep[i])
        save(tmp_path / "export" / f"{i}.tif", (deep[i] // 16).astype(np.uint8))
    bright, dull = "26 deviations brighter", "16 times poorer in contrast"
    for name, folder, words in zip(["new", "8-bit"] * 2, ["export", "deep", "deep", "export"], [bright, dull, "", ""]):
        predict.predict_folder(tmp_path / f"{name}.pt2", tmp_path / folder)
        warning = f"WARNING: 2 of 2 images are unlike those of the training, the first {words}"
        out = capsys.readouterr().out
        assert warning in out if words else "WARNING" not in out


def test_labels_that_lie_beside_the_images_are_never_overwritten(model_file, images, tmp_path):
    for file in ("images/one.png", "images/one.png/new"):
        message = refused(predict.predict_folder, model_file, images, tmp_path / file)
        assert "one.png" in message and "cannot be written" in message and "Choose another --output" in message
    save(tmp_path / "masks" / "one.png", picture())
    before = content(tmp_path)
    assert "was not made here" in refused(predict.predict_folder, model_file, images, tmp_path)
    assert content(tmp_path) == before


def test_the_command_works_in_the_folder_where_it_was_typed(model_file, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert predict.main([str(model_file), "images"]) == 0
    assert len(list((tmp_path / "images_predicted" / "masks").iterdir())) == 3
    out = capsys.readouterr().out
    assert "[1/3] one.png: " in out and "%" in out
    (tmp_path / "empty").mkdir()
    assert "folders inside are not looked at" in refused(predict.main, [str(model_file), "empty"])
