"""A file holds what was given, damage never passes, and no number leaks from test to training."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from imagesets.files import PARTS, BadFiles, Problem, Sample
from imagesets.hdf5 import normalise_hdf5, normalise_image, open_hdf5
from tests.data_helpers import build, build_normalised, make_samples, mask, picture, refused


def read_all(path: Path) -> None:
    """Read every array of a file, as a data set does."""
    with open_hdf5(path) as file:
        for group in file.values():
            for dataset in group.values():
                dataset[()]


def train_statistics(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Mean, deviation, and the training images (C, H, W) by name of a normalised file."""
    with open_hdf5(path) as file:
        images = [image for image in file["image"].values() if image.attrs["part"] == "train"]
        return file.attrs["mean"], file.attrs["std"], {image.attrs["name"]: image[()] for image in images}


# --- building ---


def test_built_file_holds_what_was_given(tmp_path):
    samples = make_samples(5, instances=np.full((6, 8), 700, np.uint16))
    other_size = {"instances": np.ones((10, 3), int)}
    samples.append(Sample("other size", picture(9, 10, 3), mask(9, 10, 3), "test", other_size))
    with open_hdf5(build(tmp_path, samples)) as file:
        for key, sample in zip(sorted(file["image"]), samples):
            assert file["image"][key].attrs["name"] == sample.name
            assert np.array_equal(file["image"][key], sample.image)
            assert np.array_equal(file["label"][key], sample.label)
            assert np.array_equal(file["instances"][key], sample.extras["instances"])
            assert file["label"][key].dtype == np.uint8
        assert file["image"]["00005"].attrs["part"] == "test"
        assert file.attrs["num_classes"] == 2


@pytest.mark.parametrize(
    "view", [lambda a: a.T, lambda a: a[::2, 1::3], lambda a: a.astype(">f4"), lambda a: np.asfortranarray(a)]
)
def test_views_and_other_byte_orders_are_the_same_to_the_hash(tmp_path, view):
    samples = [Sample(s.name, view(s.image), view(s.label).astype(int), None) for s in make_samples(8, (30, 30))]
    path = build_normalised(tmp_path, samples)
    read_all(path)
    with open_hdf5(tmp_path / "set.hdf5") as file:
        assert np.array_equal(file["image/00000"][()], samples[0].image)
        assert np.array_equal(file["label/00000"][()], samples[0].label)


def test_other_dtypes_and_mixtures_are_refused(tmp_path):
    message = refused(build, tmp_path, [Sample("odd", picture(9).astype(np.int32), mask(9))])
    assert "odd has an image of dtype int32; expected uint8, uint16 or float" in message
    mixed = [*make_samples(3), Sample("odd", picture(9) / 255, mask(9))]
    assert "odd has an image (6, 8) float64, but the first is (6, 8) uint8" in refused(build, tmp_path, mixed)
    colour = [*make_samples(3), Sample("odd", np.dstack([picture(9)] * 3), mask(9))]
    assert "odd has an image (6, 8, 3) uint8, but the first" in refused(build, tmp_path, colour)


def test_all_problems_of_all_samples_at_once_and_nothing_left(tmp_path):
    def reader() -> Iterator[Sample]:
        yield from [
            *make_samples(2),
            replace(sample, name="size", label=mask(1, 5, 5)),
            replace(sample, name="label", label=mask(1).astype(float)),
            replace(sample, name="soft", label=np.where(mask(1), 90, 3)),
            replace(sample, name="negative", label=-mask(1).astype(np.int16)),
            replace(sample, name="part", part="training"),
            replace(sample, name="nan", image=np.full((6, 8), np.nan)),
            replace(sample, name="maps", extras={"weights": picture(1)}),
            Sample("flat", np.zeros(4, np.uint8), np.zeros(4, np.uint8)),
            Sample("empty", np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8)),
        ]
        raise BadFiles([Problem("b.png", "is empty")])  # a reader lists its problems at its end

    sample = make_samples(1)[0]
    message = refused(build, tmp_path, reader())
    for piece in (
        "size has an image of size (6, 8), label has (5, 5)",
        "label has a label of dtype float64",
        "soft has 48 label pixels that are not in 0 … 1 and not 255 (ignored): 2 different values, 3, 90",
        f"negative has {mask(1).sum()} label pixels",
        "part has the part 'training'",
        "nan has NaN or Inf in the image",
        "maps has the maps ['weights'], the first has []",
        "flat has an image of shape (4,)",
        "empty has an image of shape (0, 4)",
        "b.png is empty",
    ):
        assert piece in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_classes", [1, 256])  # 255 is the ignored value
def test_number_of_classes_must_leave_room_for_the_ignored_value(tmp_path, num_classes):
    assert "expected 2 … 255" in refused(build, tmp_path, num_classes=num_classes)


def test_one_image_in_two_given_parts(tmp_path):
    samples = [replace(s, part=part) for s, part in zip(make_samples(3), PARTS)]
    samples[2] = replace(samples[2], image=picture(0))
    assert "s0 (train) and s2 (test) are the same image" in refused(build, tmp_path, samples)
    assert not list(tmp_path.iterdir())


def test_copies_of_one_image_land_in_one_part(tmp_path):
    samples = [Sample(f"s{i}", picture(i % 5), mask(i)) for i in range(20)]
    contents: dict[str, set[bytes]] = {part: set() for part in PARTS}
    with open_hdf5(build(tmp_path, samples)) as file:
        for image in file["image"].values():
            contents[image.attrs["part"]].add(image[()].tobytes())
    assert all(contents.values())
    assert not any(contents[one] & contents[other] for one, other in itertools.combinations(PARTS, 2))


def test_every_setting_is_kept(tmp_path):
    def kept(**settings) -> str:
        with open_hdf5(build(tmp_path, **settings)) as file:
            return str(file.attrs["settings"])

    other = [{"num_classes": 3}, {"seed": 1}, {"fractions": {"train": 0.5, "val": 0.5}}, {"source": "x"}]
    assert len({kept(), *(kept(**settings) for settings in other)}) == 5
    assert kept() == kept()


def test_failed_build_leaves_the_old_file(tmp_path):
    def broken():
        yield from make_samples(2)
        raise KeyboardInterrupt

    before = build(tmp_path).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, broken())
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("set.hdf5", before)]


def test_target_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused(build, tmp_path / "file")
    (tmp_path / "set.hdf5").mkdir()
    assert "cannot be written" in refused(build, tmp_path)
    assert not list(tmp_path.glob("*.part"))


# --- damaged and foreign files ---


def test_not_an_hdf5_file(tmp_path):
    (tmp_path / "x.hdf5").write_bytes(b"<html>not found</html>")
    assert "is of another kind or version: it begins with b'<html>not foun'" in refused(read_all, tmp_path / "x.hdf5")
    assert "does not exist" in refused(read_all, tmp_path / "y.hdf5")


def test_truncated_anywhere(tmp_path):
    path = build_normalised(tmp_path, make_samples(4))
    whole = path.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:length])
        refused(read_all, path)


def test_no_samples_at_all(tmp_path):
    assert "there is no sample" in refused(build, tmp_path, [])


def test_flipped_bits_never_pass_nor_reach_the_library(tmp_path, monkeypatch):
    path = build_normalised(tmp_path, make_samples(4))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    monkeypatch.setattr(h5py, "File", lambda *arguments, **options: pytest.fail("h5py has opened it"))
    for _ in range(2000):
        raw = bytearray(whole)
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        path.write_bytes(raw)
        message = refused(read_all, path)
        assert "damaged or was cut off (SHA-256)" in message or "another kind or version" in message


def test_file_of_an_older_version_is_named(tmp_path):
    path = build(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"segmentation 3", b"segmentation 2"))
    assert "is of another kind or version" in refused(read_all, path)


def test_killed_builder_leaves_a_temporary_file_only(tmp_path):
    code = (
        "import os, pathlib, sys\nfrom tests.data_helpers import build, make_samples\n"
        "build(pathlib.Path(sys.argv[1]), (s if i < 3 else os._exit(9) for i, s in enumerate(make_samples())))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".part"
    read_all(build(tmp_path))


def test_two_builders_of_one_file_do_not_harm_each_other(tmp_path):
    def reader():
        yield from make_samples(4)
        read_all(build(tmp_path, make_samples(9)))  # a second one, while the first is at work
        yield from make_samples(8)[4:]

    path = build(tmp_path, reader())
    read_all(path)
    with open_hdf5(path) as file:
        assert len(file["image"]) == 8  # the last one to end gives the file


def test_fingerprint_is_that_of_the_content_and_not_of_the_file(tmp_path):
    def fingerprint(samples=None, **settings) -> str:
        with open_hdf5(build_normalised(tmp_path, samples, **settings)) as file:
            return str(file.attrs["contents"])

    samples = make_samples()
    assert fingerprint() == fingerprint(source="copied, so that its times of modification are new")
    other = [replace(s, label=1 - s.label) for s in samples], [replace(s, name="x") for s in samples], samples[:-1]
    assert len({fingerprint(), *map(fingerprint, other), fingerprint(seed=1), fingerprint(num_classes=3)}) == 6


# --- normalising ---


@pytest.mark.parametrize("image", [np.uint8([[255]]), np.uint16([[65535]]), np.float32([[1.0]]), np.uint8([[[255]]])])
def test_bit_depths_are_scaled_by_their_dtype(image):
    assert normalise_image(image, np.array([0.0]), np.array([1.0])).tolist() == [[[1.0]]]


def test_training_part_has_zero_mean_and_unit_deviation_per_channel(tmp_path):
    rng = np.random.default_rng(0)
    scale = np.array([10, 60, 200])
    images = [(rng.random((5 + i, 7, 3)) * scale).astype(np.uint8) for i in range(10)]
    samples = [Sample(f"s{i}", image, mask(i, 5 + i, 7)) for i, image in enumerate(images)]
    mean, std, train = train_statistics(build_normalised(tmp_path, samples))
    pixels = np.concatenate([image.reshape(3, -1) for image in train.values()], axis=1).astype(float)
    assert np.allclose(pixels.mean(axis=1), 0, atol=1e-6)
    assert np.allclose(pixels.std(axis=1), 1, atol=1e-6)
    raw = {sample.name: sample.image for sample in samples if sample.name in train}
    whole = np.concatenate([image.reshape(-1, 3) for image in raw.values()]) / 255
    assert np.allclose(mean, whole.mean(axis=0), rtol=1e-12)  # an independent way to the same numbers
    assert np.allclose(std, whole.std(axis=0), rtol=1e-12)
    assert all(np.array_equal(normalise_image(raw[name], mean, std), train[name]) for name in train)


def test_statistics_stay_exact_for_a_large_mean(tmp_path):
    samples = [Sample(f"s{i}", 1e6 + picture(i) / 255.0, mask(i)) for i in range(4)]
    _, std, _ = train_statistics(build_normalised(tmp_path, samples, fractions={"train": 1.0}))
    whole = np.concatenate([picture(i).ravel() for i in range(4)]) / 255.0
    assert std[0] == pytest.approx(whole.std(), rel=1e-6)  # E[x²] − E[x]² is wrong in digit four


def test_no_leak_statistics_do_not_change_with_validation_and_test_images(tmp_path):
    parts = ["train", "train", "val", "test"]
    results = []
    for seed in (0, 50):
        images = [picture(i if part == "train" else i + seed) for i, part in enumerate(parts)]
        samples = [Sample(f"s{i}", images[i], mask(i), parts[i]) for i in range(4)]
        results.append(train_statistics(build_normalised(tmp_path, samples)))
    (mean, std, train), (other_mean, other_std, other_train) = results
    assert np.array_equal(mean, other_mean)
    assert np.array_equal(std, other_std)
    assert all(np.array_equal(train[name], other_train[name]) for name in ("s0", "s1"))


def test_constant_channel_becomes_zero_and_constant_images_are_refused(tmp_path):
    constant = np.full((6, 8), 7, np.uint8)
    samples = [Sample(f"s{i}", np.dstack([picture(i), constant]), mask(i)) for i in range(6)]
    _, std, train = train_statistics(build_normalised(tmp_path, samples))
    assert std[1] == 1.0
    assert all((image[1] == 0).all() and (image[0] != 0).any() for image in train.values())
    flat = [Sample(f"s{i}", np.full((6, 8 + i), 7, np.uint8), mask(i, 6, 8 + i)) for i in range(6)]
    assert "all training pixels have one value" in refused(build_normalised, tmp_path, flat)


def test_normalising_carries_labels_maps_names_and_parts_over(tmp_path):
    weights = np.random.default_rng(0).random((6, 8))
    source = build(tmp_path, make_samples(6, weights=weights))
    with open_hdf5(normalise_hdf5(source, tmp_path / "n.hdf5")) as new, open_hdf5(source) as old:
        for key in old["image"]:
            assert new["image"][key].dtype == np.float32
            assert new["image"][key].shape == (1, 6, 8)
            for name in ("name", "part"):
                assert new["image"][key].attrs[name] == old["image"][key].attrs[name]
            assert np.array_equal(new["label"][key], old["label"][key])
            assert np.array_equal(new["weights"][key][()], weights)
        assert new.attrs["settings"] == old.attrs["settings"]


def test_normalising_twice_or_onto_itself_or_without_training_part_is_refused(tmp_path):
    path = build_normalised(tmp_path)
    assert "normalised already" in refused(normalise_hdf5, path, tmp_path / "again.hdf5")
    assert "new name" in refused(normalise_hdf5, path, path)
    samples = [replace(sample, part="test") for sample in make_samples(2)]
    assert "no training part" in refused(build_normalised, tmp_path, samples)
