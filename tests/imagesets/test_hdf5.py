"""Tests of hdf5.py: a file holds what was given, damage never passes, and no number leaks from test to training."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from tests.data_helpers import build, build_normalised, edited, make_samples, mask, picture, refused

from checks import InputError
from imagesets.hdf5 import normalise_hdf5, normalise_image, open_hdf5, read_array
from imagesets.hdf5 import seal as stamp
from imagesets.files import PARTS, Sample


def read_all(path: Path) -> None:
    """Read every array of a file, as a data set does."""
    with open_hdf5(path) as file:
        for group in file.values():
            for dataset in group.values():
                read_array(dataset)


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
        assert np.array_equal(read_array(file["image/00000"]), samples[0].image)
        assert np.array_equal(read_array(file["label/00000"]), samples[0].label)


def test_fault_11_other_dtypes_and_mixtures_are_refused(tmp_path):
    message = refused(build, tmp_path, [Sample("odd", picture(9).astype(np.int32), mask(9))])
    assert "odd: the image has dtype int32; expected uint8, uint16 or float" in message
    mixed = [*make_samples(3), Sample("odd", picture(9) / 255, mask(9))]
    assert "odd: image (6, 8) float64, but the first (6, 8) uint8" in refused(build, tmp_path, mixed)
    colour = [*make_samples(3), Sample("odd", np.dstack([picture(9)] * 3), mask(9))]
    assert "odd: image (6, 8, 3) uint8, but the first" in refused(build, tmp_path, colour)


def test_fault_12_to_39_all_problems_of_all_samples_at_once_and_nothing_left(tmp_path):
    def reader() -> Iterator[Sample]:
        yield from [
            *make_samples(2),
            replace(sample, name="size", label=mask(1, 5, 5)),
            replace(sample, name="label", label=mask(1).astype(float)),
            replace(sample, name="soft", label=np.where(mask(1), 90, 3)),  # fault 13
            replace(sample, name="negative", label=-mask(1).astype(np.int16)),
            replace(sample, name="part", part="training"),
            replace(sample, name="nan", image=np.full((6, 8), np.nan)),
            replace(sample, name="maps", extras={"weights": picture(1)}),
            Sample("flat", np.zeros(4, np.uint8), np.zeros(4, np.uint8)),
            Sample("empty", np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8)),
        ]
        raise InputError("b.png is empty")  # a reader lists its problems at its end

    sample = make_samples(1)[0]
    message = refused(build, tmp_path, reader())
    for piece in (
        "size: the image has size (6, 8), label has (5, 5)",
        "label: the label has dtype float64; expected integers",
        "soft: 48 label pixels are not in 0 … 1 and not 255 (ignored), with 2 different values, 3, 90",
        f"negative: {mask(1).sum()} label pixels",
        "part: the part is 'training'",
        "nan: the image holds NaN or Inf",
        "maps: it has the maps ['weights'], the first has []",
        "flat: the image has shape (4,)",
        "empty: the image has shape (0, 4)",
        "b.png is empty",
    ):
        assert piece in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_classes", [1, 256])  # 255 is the ignored value
def test_number_of_classes_must_leave_room_for_the_ignored_value(tmp_path, num_classes):
    assert "expected 2 … 255" in refused(build, tmp_path, num_classes=num_classes)


def test_fault_19_one_image_in_two_given_parts(tmp_path):
    samples = [replace(s, part=part) for s, part in zip(make_samples(3), PARTS)]
    samples[2] = replace(samples[2], image=picture(0))
    assert "s0 (train) and s2 (test) are the same image" in refused(build, tmp_path, samples)
    assert not list(tmp_path.iterdir())


def test_fault_19_copies_of_one_image_land_in_one_part(tmp_path):
    samples = [Sample(f"s{i}", picture(i % 5), mask(i)) for i in range(20)]
    contents: dict[str, set[bytes]] = {part: set() for part in PARTS}
    with open_hdf5(build(tmp_path, samples)) as file:
        for image in file["image"].values():
            contents[image.attrs["part"]].add(image[()].tobytes())
    assert all(contents.values())
    assert not any(contents[one] & contents[other] for one, other in itertools.combinations(PARTS, 2))


def test_fault_29_every_setting_is_kept(tmp_path):
    def kept(**settings) -> str:
        with open_hdf5(build(tmp_path, **settings)) as file:
            return str(file.attrs["settings"])

    other = [{"num_classes": 3}, {"seed": 1}, {"fractions": {"train": 0.5, "val": 0.5}}, {"source": "x"}]
    assert len({kept(), *(kept(**settings) for settings in other)}) == 5
    assert kept() == kept()


def test_fault_24_failed_build_leaves_the_old_file(tmp_path):
    def broken():
        yield from make_samples(2)
        raise KeyboardInterrupt

    before = build(tmp_path).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, broken())
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("set.hdf5", before)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fault_24_killed_builder_leaves_a_temporary_file_only(tmp_path):
    def killed():
        yield from make_samples(2)
        os._exit(9)  # as after kill -9: no clean-up runs

    child = os.fork()
    if child == 0:
        build(tmp_path, killed())
    os.waitpid(child, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["set.hdf5.part"]
    build(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["set.hdf5"]


def test_target_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused(build, tmp_path / "file")
    (tmp_path / "set.hdf5").mkdir()
    assert "cannot be written" in refused(build, tmp_path)
    assert not (tmp_path / "set.hdf5.part").exists()


# --- damaged and foreign files ---


def test_fault_21_not_an_hdf5_file(tmp_path):
    (tmp_path / "x.hdf5").write_bytes(b"<html>not found</html>")
    assert "is of another kind or version: it begins with b'<html>not fo'" in refused(read_all, tmp_path / "x.hdf5")
    assert "does not exist" in refused(read_all, tmp_path / "y.hdf5")


def test_fault_22_truncated_anywhere(tmp_path):
    path = build_normalised(tmp_path, make_samples(4))
    whole = path.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:length])
        refused(read_all, path)


def test_fault_23_flipped_bits_in_the_pixels_never_pass(tmp_path):
    path = build_normalised(tmp_path, make_samples(4))
    whole = path.read_bytes()
    with h5py.File(path) as file:
        chunks = [array.id.get_chunk_info(0) for group in file.values() for array in group.values()]
    rng = np.random.default_rng(0)
    for _ in range(60):
        chunk = chunks[rng.integers(len(chunks))]
        raw = bytearray(whole)
        raw[chunk.byte_offset + rng.integers(chunk.size)] ^= 1 << rng.integers(8)
        path.write_bytes(raw)
        assert "the file is damaged" in refused(read_all, path)
        stamp(path)  # and by its own hash if the file were changed before it was stamped
        assert "the file is damaged" in refused(read_all, path)


def test_fault_23_flipped_bits_anywhere_never_reach_the_library(tmp_path, monkeypatch):
    path = build_normalised(tmp_path, make_samples(4))
    whole = path.read_bytes()
    monkeypatch.setattr(h5py, "File", lambda *arguments, **options: pytest.fail("h5py has opened it"))
    for place in np.random.default_rng(0).integers(0, len(whole), 300):
        raw = bytearray(whole)
        raw[place] ^= 1 << int(place) % 8
        path.write_bytes(raw)
        message = refused(read_all, path)
        assert "damaged or was cut off (SHA-256)" in message or "another kind or version" in message


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file["label"]["00000"].write_direct(np.ones((6, 8), np.uint8)),
        lambda file: file["image"]["00001"].attrs.update(part="other"),
        lambda file: file["image"]["00001"].attrs.update(name="other"),
        lambda file: file.attrs.update(num_classes=3),
        lambda file: file.attrs.update(mean=[0.0]),
    ],
)
def test_fault_23_changed_content_is_noticed_by_its_hash(tmp_path, change):
    path = build_normalised(tmp_path)
    read_all(path)
    with edited(path) as file:
        change(file)
    assert "damaged" in refused(read_all, path)


@pytest.mark.parametrize("name", ["image", "label", "num_classes", "contents", "mean", "std", "settings", "normalised"])
def test_fault_25_missing_group_or_attribute_is_named(tmp_path, name):
    path = build_normalised(tmp_path)
    with edited(path) as file:
        del (file if name in file else file.attrs)[name]
    assert f"['{name}']; it has [" in refused(read_all, path)


def test_fault_25_missing_attribute_of_one_sample_is_named(tmp_path):
    path = build(tmp_path)
    with edited(path) as file:
        del file["image"]["00003"].attrs["part"]
    assert "image/00003 lacks the attributes ['part']; it has ['name', 'sha256']" in refused(read_all, path)


def test_fault_25_array_in_place_of_a_group(tmp_path):
    path = build(tmp_path)
    with edited(path) as file:
        del file["image"]
        file["image"] = np.zeros(8)
    assert "is damaged" in refused(read_all, path)


def test_fault_26_numbers_of_arrays_that_disagree(tmp_path):
    path = build(tmp_path)
    with edited(path) as file:
        del file["label"]["00003"]
    assert "label has 7 arrays, image has 8" in refused(read_all, path)


@pytest.mark.parametrize("wrong", [np.zeros((6, 8), "f4"), np.zeros((6, 9), "u1"), np.zeros(48, "u1")])
def test_fault_26_ranks_and_dtypes_that_disagree(tmp_path, wrong):
    zeros = [replace(sample, label=np.zeros((6, 8), np.uint8)) for sample in make_samples()]
    path = build(tmp_path, zeros)
    with edited(path) as file:
        sha256 = file["label"]["00000"].attrs["sha256"]
        del file["label"]["00000"]
        file["label"]["00000"] = wrong  # the same bytes in another shape, or the same values in another dtype
        file["label"]["00000"].attrs["sha256"] = sha256
    assert "label/00000 is not what was written" in refused(read_all, path)


def test_fault_27_zero_samples(tmp_path):
    assert "there is no sample" in refused(build, tmp_path, [])
    path = build(tmp_path)
    with edited(path) as file:
        for group in ("image", "label"):
            del file[group]
            file.create_group(group)
    assert "holds no sample" in refused(read_all, path)


@pytest.mark.parametrize("name, value", [("version", 3), ("format", "other")])
def test_fault_28_other_format_version(tmp_path, name, value):
    path = build(tmp_path)
    with edited(path) as file:
        file.attrs[name] = value
    message = refused(read_all, path)
    assert str(value) in message
    assert "expected ('segmentation', 2)" in message


def test_fault_30_file_open_for_writing_in_another_process(tmp_path):
    path = build(tmp_path)
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], text=True, **pipes) as writer:
        assert writer.stdout.readline() == "open\n"
        message = refused(read_all, path)
        writer.communicate("\n")
    assert "another kernel is changing it" in message and "Close or restart" in message


def test_fault_30_file_that_another_process_has_locked(tmp_path):
    fcntl = pytest.importorskip("fcntl")  # Windows has none
    path = build(tmp_path)
    with open(path, "rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert "is being written by another kernel. Close or restart that one" in refused(read_all, path)
    read_all(path)


def test_fault_30_two_builders_of_one_file_do_not_harm_each_other(tmp_path):
    def reader():
        yield from make_samples(4)
        assert "cannot be written" in refused(build, tmp_path)  # a second one, while the first is at work
        yield from make_samples(8)[4:]

    read_all(build(tmp_path, reader()))


# --- normalising ---


@pytest.mark.parametrize("image", [np.uint8([[255]]), np.uint16([[65535]]), np.float32([[1.0]]), np.uint8([[[255]]])])
def test_fault_11_bit_depths_are_scaled_by_their_dtype(image):
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
            assert np.array_equal(read_array(new["weights"][key]), weights)
        assert new.attrs["settings"] == old.attrs["settings"]


def test_normalising_twice_or_onto_itself_or_without_training_part_is_refused(tmp_path):
    path = build_normalised(tmp_path)
    assert "normalised already" in refused(normalise_hdf5, path, tmp_path / "again.hdf5")
    assert "new name" in refused(normalise_hdf5, path, path)
    samples = [replace(sample, part="test") for sample in make_samples(2)]
    assert "no training part" in refused(build_normalised, tmp_path, samples)
