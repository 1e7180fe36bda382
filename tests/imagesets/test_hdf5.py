"""A file holds what was given, damage never passes, and no number leaks from test to training."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from imagesets import hdf5
from imagesets.files import BadFiles, Problem, Sample
from imagesets.hdf5 import normalise_hdf5, normalise_image, open_hdf5
from imagesets.layouts import read_folder
from tests.data_helpers import build, build_normalised, make_samples, mask, picture, refused, save


def read_all(path: Path) -> int:
    """Read every array of a file, as a data set does; return the number of images."""
    with open_hdf5(path) as file:
        return len([dataset[()] for group in file.values() for dataset in group.values()]) // len(file)


def train_statistics(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Mean, deviation, and the training images (C, H, W) by name of a normalised file."""
    with open_hdf5(path) as file:
        images = [image for image in file["image"].values() if image.attrs["part"] == "train"]
        return file.attrs["mean"], file.attrs["std"], {image.attrs["name"]: image[()] for image in images}


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[::2, 1::3], lambda a: a.astype(">f4"), np.asfortranarray])
def test_built_file_holds_what_was_given(tmp_path, view):
    samples = [replace(s, image=view(s.image), label=view(s.label).astype(int)) for s in make_samples(5)]
    samples = [replace(s, extras={"instances": np.full(s.label.shape, 700, np.uint16)}) for s in samples]
    other = picture(9, 10, 3).astype(samples[0].image.dtype)
    samples.append(Sample("other size", other, mask(9, 10, 3), "test", {"instances": np.ones((10, 3), int)}))
    with open_hdf5(build(tmp_path, samples)) as file:
        for key, sample in zip(sorted(file["image"]), samples):
            assert file["image"][key].attrs["name"] == sample.name and np.array_equal(file["image"][key], sample.image)
            assert np.array_equal(file["label"][key], sample.label)
            assert np.array_equal(file["instances"][key], sample.extras["instances"])
            assert file["label"][key].dtype == np.uint8
        assert file["image"]["00005"].attrs["part"] == "test"
        assert file.attrs["num_classes"] == 2


def test_all_problems_of_all_samples_at_once_and_nothing_left(tmp_path):
    wrong = {
        "has an image of size (6, 8), label has (5, 5)": {"label": mask(1, 5, 5)},
        "has a label of dtype float64": {"label": mask(1).astype(float)},
        "has 48 label pixels that are not in 0 … 1 and not 255: 3, 90": {"label": np.where(mask(1), 90, 3)},
        f"has {mask(1).sum()} label pixels": {"label": -mask(1).astype(np.int16)},
        "has NaN or Inf in the image": {"image": np.full((6, 8), np.nan)},
        "has an image (6, 8) int32; expected (H, W) or (H, W, C), uint8,": {"image": picture(9).astype(np.int32)},
        "has an image (6, 8) float64, but the first is (6, 8) uint8": {"image": picture(9) / 255},
        "has an image (6, 8, 3) uint8, but the first is (6, 8) uint8": {"image": np.dstack([picture(9)] * 3)},
        "has NaN, Inf or negative numbers in weights": {"extras": {"weights": np.full((6, 8), -1)}},
        "has NaN, Inf or negative numbers in gaps": {"extras": {"gaps": np.full((6, 8), np.inf)}},
        "has the maps ['weights'], but the first has []": {"extras": {"weights": picture(1)}},
    }

    def reader() -> Iterator[Sample]:
        first, *others = make_samples(2)
        yield from [first, *(replace(first, name=f"w{i}", **new) for i, new in enumerate(wrong.values())), *others]
        raise BadFiles([Problem("b.png", "is empty")])  # a reader lists its problems at its end

    message = refused(build, tmp_path, reader())
    assert all(f"w{i} {found}" in message for i, found in enumerate(wrong)) and "b.png is empty" in message
    assert "there is no sound sample" in refused(build, tmp_path, [])
    assert "expected 2 … 255" in refused(build, tmp_path, num_classes=256)  # 255 is the ignored value
    assert not list(tmp_path.iterdir())


def problems_of(*samples: Sample) -> list[str]:
    comparison = hdf5.Comparison(2)
    return [str(problem) for sample in samples for problem in comparison.problems(sample)]


def test_masks_whose_colours_disagree_are_named(tmp_path):
    """Where two masks exchange their palettes, or black and white, their classes are exchanged."""
    for name, palette in (("a", [0, 0, 0, 255, 0, 0]), ("b", [255, 0, 0, 0, 0, 0])):
        image = Image.frombytes("P", (8, 6), mask().tobytes())
        image.putpalette(palette)
        save(tmp_path / "labels" / f"{name}.png", image)
        save(tmp_path / "images" / f"{name}.png", picture(ord(name)))
    a, b = read_folder(tmp_path)
    (message,) = problems_of(a, b)
    assert message.startswith("b shows 0 in its mask as (255, 0, 0), but a as (0, 0, 0); if one colour is one class")
    assert "b shows 0 in its mask" in refused(build, tmp_path, [a, b])
    other = {0: a.colours[0], 2: (0, 0, 9)}, {0: "black"}  # in a number that `a` does not use; a mask without a palette
    assert problems_of(a, *(replace(b, colours=colours) for colours in other)) == []
    assert problems_of(*read_folder(tmp_path, {(0, 0, 0): 0, (255, 0, 0): 1})) == []
    for name, photometric in (("a", "minisblack"), ("b", "miniswhite")):
        (tmp_path / "labels" / f"{name}.png").unlink()
        save(tmp_path / "labels" / f"{name}.tif", mask(), photometric=photometric)
    assert "b shows 0 in its mask as white, but a as black" in problems_of(*read_folder(tmp_path))[0]


@pytest.mark.parametrize("fill", [-9999, -3.4028235e38, 3.4028235e38, 9.96921e36, -500])
def test_numbers_that_stand_for_no_data_are_named(fill):
    sound = picture(height=30, width=40) / np.float32(16)  # 0 … 16
    image = np.where(np.arange(40) < 5, np.float32(fill), sound)
    (message,) = problems_of(Sample("a", image, mask(0, 30, 40)))
    assert f"a has {np.float32(fill):g} in the image, which seems to stand for 'no data'" in message
    ordinary = [sound, np.float32(mask(0, 30, 40)), np.where(mask(0, 30, 40), sound, 40), np.zeros((30, 40))]
    assert problems_of(*(Sample("a", image.astype(np.float32), mask(0, 30, 40)) for image in ordinary)) == []


def test_numbers_of_cells_get_an_advice_of_their_own():
    cells = np.kron(np.arange(40, dtype=np.uint16).reshape(5, 8), np.ones((6, 6), np.uint16))
    soft = np.uint16(cells > 20) * 255
    soft[:, 24:29] = np.arange(40, 240, 40)[:, None].repeat(6, 1).ravel()[:, None] + np.arange(5) * 7
    cell, edge = (problems_of(Sample("a", picture(0, 30, 48), label))[0] for label in (cells, soft))
    assert "label_map={0: 0, '*': 1} makes one class of them" in cell and "named instances/" in cell
    assert "'*'" not in edge and "soft edges?" in edge


def test_file_names_that_are_no_text_can_be_kept(tmp_path):
    names = [os.fsdecode(b"n\xe4me"), "a\nb", "$x^{", "ü"]
    with open_hdf5(build(tmp_path, [Sample(name, picture(i), mask(i)) for i, name in enumerate(names)])) as file:
        assert [file["image"][key].attrs["name"] for key in file["image"]] == ["n?me", "a?b", "$x^{", "ü"]


def test_remarks_on_a_set(tmp_path):
    said: list[str] = []
    deep = [Sample(f"s{i}", picture(i).astype(np.uint16) * 16 ** (i < 5), mask(i)) for i in range(8)]
    build(tmp_path, [*deep, Sample("b", picture(9), mask())], say=said.append)
    assert " (uint16, uint8): are 8, 12 and 16 bits mixed" in said[0]
    build(tmp_path, deep, say=said.append)
    assert " reaches 2" in said[1] and " (uint16): are 8, 12 and 16 bits mixed" in said[1] and len(said) == 2
    said.clear()
    tiles = [Sample(f"scene{i // 4}_r{i // 2 % 2}_c{i % 2}", picture(i), mask(i)) for i in range(12)]
    build(tmp_path, tiles, say=said.append)
    scenes = "set: 12 images seem to be cut from scene0_r0, scene0_r1, scene1_r0, …: sort what"
    assert said.pop().startswith(scenes) and not said
    build(tmp_path, [replace(tile, part="train") for tile in tiles], say=said.append)
    build(tmp_path, [Sample(f"cell_{i}", picture(i), mask(i)) for i in range(9)], say=said.append)
    assert said == []


def test_fingerprint_is_that_of_the_content_and_not_of_the_file(tmp_path):
    def fingerprint(samples=None, **settings) -> str:
        with open_hdf5(build(tmp_path, samples, **settings)) as file:
            return str(file.attrs["contents"])

    samples = make_samples()
    assert fingerprint() == fingerprint(source="copied, so that its times of modification are new")
    other = [replace(s, label=1 - s.label) for s in samples], samples[:-1]
    assert len({fingerprint(), *map(fingerprint, other), fingerprint(seed=1), fingerprint(num_classes=3)}) == 5


def test_failed_build_leaves_the_old_file(tmp_path):
    def broken():
        yield from make_samples(2)
        raise KeyboardInterrupt

    before = build(tmp_path).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, broken())
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("set.hdf5", before)]


def test_copies_of_one_image_land_in_one_part(tmp_path):
    samples = [Sample(f"s{i}", picture(i % 5), mask(i)) for i in range(20)]
    with open_hdf5(build(tmp_path, samples)) as file:
        parts = [file["image"][key].attrs["part"] for key in sorted(file["image"])]
    assert parts == parts[:5] * 4 and set(parts) == {"train", "val", "test"}


def test_damage_never_passes_nor_reaches_the_library(tmp_path, monkeypatch):
    path = build_normalised(tmp_path, make_samples(4))
    with monkeypatch.context() as later:
        later.setattr(hdf5, "VERSION", hdf5.VERSION + 1)
        assert "of another version" in refused(read_all, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    monkeypatch.setattr(h5py, "File", lambda *arguments, **options: pytest.fail("h5py has opened it"))
    for content in [b"", whole[:300], whole[:-1]]:
        path.write_bytes(content)
        assert "is damaged, cut off, or of another version" in refused(read_all, path)
    path.write_bytes(b"<html>not found</html>")
    assert "was not written by this course" in refused(read_all, path)
    for _ in range(300):
        raw = bytearray(whole)
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        path.write_bytes(raw)
        refused(read_all, path)
    assert "does not exist" in refused(read_all, tmp_path / "nowhere.hdf5")


@pytest.mark.parametrize("image", [np.uint8([[255]]), np.uint16([[65535]]), np.float32([[1.0]]), np.uint8([[[255]]])])
def test_bit_depths_are_scaled_by_their_dtype(image):
    assert normalise_image(image, np.array([0.0]), np.array([1.0])).tolist() == [[[1.0]]]


def test_training_part_has_zero_mean_and_unit_deviation_per_channel(tmp_path):
    rng = np.random.default_rng(0)
    images = [(rng.random((5 + i, 7, 3)) * [10, 60, 200]).astype(np.uint8) for i in range(10)]
    samples = [Sample(f"s{i}", image, mask(i, 5 + i, 7)) for i, image in enumerate(images)]
    mean, std, train = train_statistics(build_normalised(tmp_path, samples))
    pixels = np.concatenate([image.reshape(3, -1) for image in train.values()], axis=1).astype(float)
    assert np.allclose([pixels.mean(axis=1), pixels.std(axis=1)], [[0] * 3, [1] * 3], atol=1e-6)
    raw = {sample.name: sample.image for sample in samples if sample.name in train}
    whole = np.concatenate([image.reshape(-1, 3) for image in raw.values()]) / 255
    assert np.allclose([mean, std], [whole.mean(axis=0), whole.std(axis=0)], rtol=1e-12)  # another way to the numbers
    assert all(np.array_equal(normalise_image(raw[name], mean, std), train[name]) for name in train)


def test_standardised_images_have_their_own_mean_and_deviation_whatever_their_light(tmp_path):
    own, image = [np.nan], picture(0, 40, 30)
    dim = (40 + 9 * (image / 255)).astype(np.float32)  # another gain and offset
    assert np.allclose(normalise_image(dim, own, own), normalise_image(image, own, own), atol=1e-4)
    assert np.allclose(normalise_image(np.full((40, 30), 9, np.uint8), own, own), 0)  # no division by 0
    source = build(tmp_path, make_samples(6))
    with open_hdf5(normalise_hdf5(source, tmp_path / "s.hdf5", standardise=True)) as file:
        assert np.isnan([file.attrs["mean"], file.attrs["std"]]).all()
        found = np.array([[image[()].mean(), image[()].std()] for image in file["image"].values()])
    assert np.allclose(found, [0, 1], atol=1e-6)


def test_statistics_stay_exact_for_a_large_mean(tmp_path):
    images = [1e6 + picture(i) / 255.0 for i in range(4)]
    samples = [Sample(f"s{i}", image, mask(i), "train") for i, image in enumerate(images)]
    _, std, _ = train_statistics(build_normalised(tmp_path, samples))
    assert std[0] == pytest.approx(np.std(images), rel=1e-6)  # E[x²] − E[x]² is wrong in digit four


def test_no_leak_statistics_do_not_change_with_validation_and_test_images(tmp_path):
    parts = ["train", "train", "val", "test"]
    results = []
    for seed in (0, 50):
        images = [picture(i if part == "train" else i + seed) for i, part in enumerate(parts)]
        samples = [Sample(f"s{i}", images[i], mask(i), parts[i]) for i in range(4)]
        results.append(train_statistics(build_normalised(tmp_path, samples)))
    (mean, std, train), (other_mean, other_std, other_train) = results
    assert mean == other_mean and std == other_std
    assert all(np.array_equal(train[name], other_train[name]) for name in ("s0", "s1"))


def test_constant_channel_becomes_zero(tmp_path):
    samples = [Sample(f"s{i}", np.dstack([picture(i), np.full((6, 8), 7, np.uint8)]), mask(i)) for i in range(6)]
    _, std, train = train_statistics(build_normalised(tmp_path, samples))
    assert std[1] == 1 and all(np.allclose(image[1], 0) and image[0].any() for image in train.values())


def test_normalising_carries_labels_maps_names_and_parts_over(tmp_path):
    weights = np.random.default_rng(0).random((6, 8))
    source = build(tmp_path, make_samples(6, weights=weights))
    with open_hdf5(normalise_hdf5(source, tmp_path / "n.hdf5")) as new, open_hdf5(source) as old:
        for key in old["image"]:
            assert new["image"][key].dtype == np.float32 and new["image"][key].shape == (1, 6, 8)
            assert dict(new["image"][key].attrs) == dict(old["image"][key].attrs)
            assert np.array_equal(new["label"][key], old["label"][key])
            assert np.array_equal(new["weights"][key][()], weights)
        assert new.attrs["source"] == old.attrs["source"]


def test_normalising_twice_or_without_training_part_is_refused(tmp_path):
    assert "normalised already" in refused(normalise_hdf5, build_normalised(tmp_path), tmp_path / "again.hdf5")
    samples = [replace(sample, part="test") for sample in make_samples(2)]
    assert "no training part" in refused(build_normalised, tmp_path, samples)
