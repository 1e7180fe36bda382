"""Every draw is repeatable, batches stack, and `prepare` never uses an outdated file."""

import gc
import itertools
import os
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data import EpochBatches, SegmentationDataset, make_loader, prepare
from imagesets import hdf5
from imagesets.changes import Resize
from imagesets.files import Sample
from imagesets.hdf5 import normalise_image, open_hdf5
from tests.data_helpers import build_normalised, make_folder, make_samples, mask, picture, quiet, refused, save
from transforms import Compose, DownscaleImage, RandomReflect, RandomRotate90


def test_items_have_the_promised_types_and_labels_keep_255(tmp_path):
    samples = make_samples(6, weights=np.full((6, 8), 0.5), instances=np.full((6, 8), 300, np.uint16))
    for sample in samples:
        sample.label[0, 0] = 255
    dataset = SegmentationDataset(build_normalised(tmp_path, samples), "train", maps=("weights", "instances"))
    image, target, weights, instances = dataset[0]
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (1, 6, 8))
    assert (target.dtype, tuple(target.shape)) == (torch.int64, (6, 8))
    assert (weights.dtype, instances.dtype) == (torch.float32, torch.int64)
    assert target[0, 0] == 255 and instances.max() == 300
    assert (dataset.parts, dataset.num_classes, dataset.channels) == ({"train": 4, "val": 1, "test": 1}, 2, 1)
    assert len(list(dataset)) == len(dataset) == 4  # a plain loop ends


def test_wrong_arguments_of_the_dataset_are_refused(tmp_path):
    path, raw = build_normalised(tmp_path), tmp_path / "set.hdf5"
    assert "not normalised" in refused(SegmentationDataset, raw, "train")
    assert "no sample in the part 'training'" in refused(SegmentationDataset, path, "training")
    assert "does not exist" in refused(SegmentationDataset, tmp_path / "nowhere.hdf5", "train")


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 50))
@settings(max_examples=100)
def test_crops_and_padding_keep_image_label_and_map_together(height, width, crop, seed):
    pixel = np.arange(1, height * width + 1, dtype=np.float32).reshape(height, width)
    label = (pixel % 3).astype(np.uint8)
    arrays = [np.stack([pixel, -pixel]), label, pixel + 1]
    image, target, weight = data._cropped(arrays, crop, np.random.default_rng(seed))
    assert image.shape == (2, crop, crop) and target.shape == weight.shape == (crop, crop)
    inside = target != 255
    assert np.array_equal(target[inside], image[0][inside] % 3) and np.array_equal(image[1], -image[0])
    assert np.array_equal(weight[inside], image[0][inside] + 1) and (weight[~inside] == 0).all()
    assert set(np.unique(image[0])) <= set(pixel.ravel())  # padding repeats pixels, it invents none
    assert len(set(image[0][inside])) == inside.sum() == min(crop, height) * min(crop, width)  # no pixel twice


def test_padding_by_hand():
    image, label = np.array([[[1.0, 2.0, 3.0]]]), np.array([[0, 1, 1]], np.uint8)
    padded, target, weight = data._cropped([image, label, image[0]], 5, np.random.default_rng(0))
    assert padded[0].tolist() == [[1, 2, 3, 2, 1]] * 5  # mirrored; the single row is repeated
    assert target.tolist() == [[0, 1, 1, 255, 255], *[[255] * 5] * 4]
    assert weight.tolist() == [[1, 2, 3, 0, 0], *[[0] * 5] * 4]


def test_epochs_and_samples_differ_and_a_rerun_is_equal(tmp_path):
    path = build_normalised(tmp_path, make_samples(6, (12, 12)))
    options = {"crop": 8, "transform": Compose(RandomReflect(), RandomRotate90())}
    first, again, other = (SegmentationDataset(path, "train", seed=seed, **options) for seed in (1, 1, 2))
    items = [first[epoch, 0][0] for epoch in range(6)]
    assert all(torch.equal(item, again[epoch, 0][0]) for epoch, item in enumerate(items))
    assert len({item.numpy().tobytes() for item in items}) > 3
    assert any(not torch.equal(item, other[epoch, 0][0]) for epoch, item in enumerate(items))
    assert torch.equal(first[3][0], first[0, 3][0])  # a plain index is epoch 0
    assert torch.equal(first[-1][0], first[3][0])  # and may count from the end


def test_datasets_of_one_part_share_one_copy_of_the_arrays_and_free_it(tmp_path):
    path = build_normalised(tmp_path, make_samples(weights=np.ones((6, 8))))
    many = [SegmentationDataset(path, "train", crop=crop, seed=seed) for seed, crop in enumerate([None, 4, 4])]
    images = [dataset._arrays[0][0] for dataset in many]
    assert all(np.shares_memory(images[0], image) for image in images)
    del many[-1], images[-1]  # the last one made goes first: the next shares with those that stay
    assert np.shares_memory(images[0], SegmentationDataset(path, "train")._arrays[0][0])
    with pytest.raises(ValueError, match="read-only"):  # one dataset cannot spoil the data of another
        images[0][:] = 0
    others = [SegmentationDataset(path, "val"), SegmentationDataset(path, "train", maps=("weights",))]
    assert not any(np.shares_memory(images[0], dataset._arrays[0][0]) for dataset in others)
    kept = weakref.ref(images[0])
    del many, images
    gc.collect()
    assert kept() is None


def test_validation_has_no_random_part(tmp_path):
    path, part = build_normalised(tmp_path), "val"
    for random in ({"crop": 4}, {"transform": RandomReflect()}, {"transform": lambda *images, rng: images}):
        assert "must have no random part" in refused(SegmentationDataset, path, part, **random)
    small = SegmentationDataset(path, part, transform=DownscaleImage(2))
    assert small[0][0].shape == (1, 3, 4)
    assert torch.equal(small[0, 0][0], small[5, 0][0])  # the same in every epoch


@pytest.mark.parametrize("options", [{}, {"crop": 6}, {"crop": 9}, {"transform": Compose()}])
def test_changing_an_item_does_not_change_the_data_set(tmp_path, options):
    path = build_normalised(tmp_path, make_samples(6, weights=np.ones((6, 8), np.float32)))
    dataset = SegmentationDataset(path, "train", maps=("weights",), **options)
    before = [tensor.clone() for tensor in dataset[0]]
    for tensor in dataset[0]:
        tensor.fill_(7)
    assert all(torch.equal(a, b) for a, b in zip(before, dataset[0]))


class Shapes:  # all that EpochBatches asks of a data set
    def __init__(self, shapes, crop=None):
        self.shapes, self.crop = shapes, crop

    def __len__(self):
        return len(self.shapes)


def pairs_of(batches: EpochBatches, epoch: int) -> list[list[tuple[int, int]]]:
    """The batches of one epoch, as pairs (number of the draw, index)."""
    batches.set_epoch(epoch)
    result = list(batches)
    assert len(result) == len(batches)
    return result


def epoch_of(batches: EpochBatches, epoch: int) -> list[list[int]]:
    return [[index for _, index in batch] for batch in pairs_of(batches, epoch)]


def test_without_shuffle_samples_of_one_shape_share_batches_in_order():
    shapes = [(8, 8), (4, 4), (8, 8), (4, 4), (8, 8)]
    batches = EpochBatches(Shapes(shapes), 2)
    assert pairs_of(batches, 7) == [[(7, 1), (7, 3)], [(7, 0), (7, 2)], [(7, 4)]]
    assert batches.dropped == 0  # nothing is left out of an evaluation


@pytest.mark.parametrize("repeats", [1, 3])
def test_order_depends_on_seed_and_epoch_only(repeats):
    first, again, other = (EpochBatches(Shapes([(8, 8)] * 20), 4, True, seed, repeats) for seed in (3, 3, 4))
    epochs = [epoch_of(first, epoch) for epoch in (0, 1, 2)]
    assert pairs_of(first, 2) == pairs_of(again, 2)  # a resumed run
    assert epochs[0] != epochs[1] and epochs[0] != epoch_of(other, 0)
    drawn = list(itertools.chain(*epochs[0]))
    assert drawn != sorted(drawn)


@given(st.lists(st.sampled_from([(4, 4), (4, 6)]), min_size=1), st.integers(1, 7), st.booleans(), st.integers(1, 4))
@settings(max_examples=100)
def test_each_sample_comes_so_often_and_batches_stack_and_no_draw_comes_twice(shapes, batch_size, shuffle, repeats):
    batches = EpochBatches(Shapes(shapes), batch_size, shuffle, repeats=repeats)
    seen: set[tuple[int, int]] = set()
    for epoch in range(3):
        drawn = pairs_of(batches, epoch)
        pairs = list(itertools.chain(*drawn))
        counts = Counter(index for _, index in pairs)
        assert counts.total() == len(shapes) * repeats - batches.dropped
        assert max(counts.values()) <= repeats
        assert all(len({shapes[index] for _, index in batch}) == 1 <= len(batch) <= batch_size for batch in drawn)
        assert len(set(pairs)) == len(pairs) and not seen & set(pairs)  # the pair decides the crop
        seen |= set(pairs)


def test_last_batch_of_one_is_dropped_in_training_and_said():
    batches = EpochBatches(Shapes([(8, 8)] * 9), 4, shuffle=True)
    seen = [epoch_of(batches, epoch) for epoch in range(40)]
    assert all(sorted(len(batch) for batch in epoch) == [4, 4] for epoch in seen) and batches.dropped == 1
    assert len(EpochBatches(Shapes([(8, 8)] * 9), 4)) == 3  # kept in an evaluation
    assert len(EpochBatches(Shapes([(8, 8)]), 4, shuffle=True)) == 1  # kept if it is all there is
    assert len(EpochBatches(Shapes([(8, 8)] * 3), 1, shuffle=True)) == 3  # batches of one were asked for


def test_loader_stacks_maps_too_and_leaves_the_global_generator_alone(tmp_path):
    path = build_normalised(tmp_path, make_samples(7, weights=np.ones((6, 8))))
    loader = make_loader(SegmentationDataset(path, "train", maps=("weights",)), 3, shuffle=True)
    state = torch.get_rng_state()
    images, targets, weights = next(iter(loader))
    assert torch.equal(torch.get_rng_state(), state)
    assert [tuple(t.shape) for t in (images, targets, weights)] == [(3, 1, 6, 8), (3, 6, 8), (3, 6, 8)]
    assert len(loader) == 2


def test_prepare_builds_once_and_again_for_other_settings_or_files(tmp_path):
    folder = make_folder(tmp_path / "set", "abcd")
    said: list[str] = []
    settings = {"data_dir": tmp_path / "data", "say": said.append}

    def is_built() -> bool:
        before = len(said)
        assert prepare(folder, **settings) == path
        return len(said) > before

    path = prepare(folder, **settings)
    (plain,) = set((tmp_path / "data").iterdir()) - {path}
    path.unlink()
    plain.unlink()

    assert is_built()
    assert not is_built()
    for changed in ({"seed": 1}, {"num_classes": 3}, {"label_map": {0: 1, 1: 0}}):
        settings |= changed
        assert is_built() and not is_built()
    save(folder / "labels" / "a.png", 0 * mask(0))
    assert is_built()
    with open_hdf5(path) as file:
        assert np.array_equal(file["label"]["00000"], 0 * mask(0) + 1)
    os.utime(folder / "images" / "a.png", (1, 1))
    assert is_built()  # the time of modification decides, not the content
    save(folder / ".junk" / "a.png", picture(9))
    assert not is_built()
    for content in (plain.read_bytes()[:-1], b""):  # nothing: a power cut before the content was on the disk
        plain.write_bytes(content)
        assert is_built()


@pytest.mark.parametrize("name", ["Hefe ä", "細胞 #1 & %20", "a.b.c"])
def test_unusual_names_work(tmp_path, name):
    folder = make_folder(tmp_path / f"folder of {name[:20]}", names=(name, "b", "c", "d"))
    path = prepare(folder, tmp_path / "out put #", say=quiet)
    with open_hdf5(path) as file:
        assert name in {image.attrs["name"] for image in file["image"].values()}


def test_prepare_takes_named_sets_and_a_folder_that_is_called_like_one(tmp_path, monkeypatch):
    official = tmp_path / "official"
    for number in range(4):
        save(official / "train" / "images" / f"{number}.tif", picture(number))
        save(official / "train" / "masks" / f"{number}.tif", mask(number, classes=3).astype(np.uint16))
    monkeypatch.setattr(data, "locate", lambda name, data_dir, say: official)
    named = prepare("dsb2018", tmp_path / "data", say=quiet)
    assert named == tmp_path / "data" / "dsb2018_normalised.hdf5"
    assert SegmentationDataset(named, "train", maps=("instances",))[0][2].max() == 2
    folders = [make_folder(tmp_path / place, "abcdef") for place in ("dsb2018", "A/cells", "B/cells")]
    made = [prepare(folder, tmp_path / "data", say=quiet) for folder in folders]
    assert len({named, *made}) == 4
    assert SegmentationDataset(made[0], "train").parts == {"train": 4, "val": 1, "test": 1}


def test_a_file_of_another_program_is_never_overwritten(tmp_path):
    folder = make_folder(tmp_path / "cells", "abcd")
    normalised = prepare(folder, tmp_path, say=quiet)
    for path in (normalised, normalised.with_name(normalised.name.replace("_normalised", ""))):
        path.write_bytes(b"\x89HDF\r\n\x1a\n of another program")
        for seed in (0, 1):
            assert "was not written by this course" in refused(prepare, folder, tmp_path, seed=seed, say=quiet)
        assert path.read_bytes().endswith(b"of another program")
        path.unlink()
        prepare(folder, tmp_path, say=quiet)


@pytest.mark.parametrize("error", [MemoryError(), OSError("Can't synchronously read data (filter returned failure)")])
def test_where_the_memory_is_full_the_file_is_not_damaged_and_stays(tmp_path, monkeypatch, error):
    def fail(self, args, **options):
        raise error

    folder = make_folder(tmp_path / "cells", "abcd")
    path = prepare(folder, tmp_path, say=quiet)
    before = {file: file.read_bytes() for file in tmp_path.glob("*.hdf5")}
    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    assert "cannot be read: the memory is full" in refused(SegmentationDataset, path, "train")
    monkeypatch.undo()
    monkeypatch.setattr(h5py, "File", lambda *arguments, **options: fail(None, None))
    assert "cannot be read: the memory is full" in refused(prepare, folder, tmp_path, say=quiet)
    assert {file: file.read_bytes() for file in tmp_path.glob("*.hdf5")} == before


def test_prepare_reads_the_number_of_classes_off_the_labels_and_says_so(tmp_path):
    folder, said = make_folder(tmp_path / "six", "abcd"), []
    save(folder / "labels" / "a.png", mask(0, classes=6))
    assert SegmentationDataset(prepare(folder, tmp_path, say=said.append), "train").num_classes == 6
    assert said[0].endswith("\nsix: images and labels, 4 pairs; 6 classes")
    assert SegmentationDataset(prepare(folder, tmp_path, num_classes=7, say=quiet), "train").num_classes == 7
    assert "num_classes is 0" in refused(prepare, folder, tmp_path, num_classes=0, say=quiet)
    save(folder / "labels" / "b.png", mask(0) * 9)  # what are 6, 7 and 8?
    assert "not in 0 … 1" in refused(prepare, folder, tmp_path, say=quiet)


def brighter(step: int) -> Callable[[Sample], Sample]:
    return lambda sample: replace(sample, image=sample.image // 2 + np.uint8(step))


class Brighter:
    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, sample: Sample) -> Sample:
        return brighter(self.step)(sample)


def test_changes_are_made_once_and_known_again_by_what_they_do(tmp_path):
    folder, said = make_folder(tmp_path / "set", "abcdefgh"), []
    without_h = lambda sample: None if sample.name == "h" else sample  # noqa: E731
    ways = [[without_h], [Resize(3, 4)], [Resize(4, 4)], []]
    ways += [[make(step)] for make in (brighter, Brighter) for step in (0, 60)]
    paths = [prepare(folder, tmp_path, changes=changes, say=said.append) for changes in ways]
    again = [prepare(folder, tmp_path, changes=changes, say=said.append) for changes in ways[:4] + [[brighter(0)]]]
    assert paths[:5] == again and len(set(paths)) == len(said) == 8
    assert sum(SegmentationDataset(paths[0], "train").parts.values()) == 7  # "h" was left out
    dark, light = (SegmentationDataset(path, "train").mean for path in paths[4:6])
    assert light - dark == pytest.approx(60 / 255, abs=0.01)  # not the very same images train


def test_standardised_and_normalised_images_of_a_set_lie_side_by_side(tmp_path):
    folder, said = make_folder(tmp_path / "set", "abcd"), []
    ways = [
        SegmentationDataset(prepare(folder, tmp_path, standardise=way, say=said.append), "train") for way in (0, 1, 0)
    ]
    assert len(said) == 1 and [bool(np.isnan(part.mean).any()) for part in ways] == [False, True, False]
    assert ways[0].fingerprint == ways[2].fingerprint != ways[1].fingerprint
    assert abs(ways[1][0][0].mean()) < 1e-6


def test_a_set_is_built_again_where_the_reading_or_the_change_cannot_be_the_same(tmp_path, monkeypatch):
    folder, said = make_folder(tmp_path / "set", "abcd"), []
    unknown = partial(lambda stream, sample: sample, (number for number in range(3)))  # no one can compare a generator
    for _ in range(2):
        path = prepare(folder, tmp_path, changes=[unknown], say=said.append)
    assert len(said) == 2 and len(list(tmp_path.glob("*.hdf5"))) == 2  # in the same place: the disk does not fill up
    monkeypatch.setattr(hdf5, "normalise_image", lambda image, mean, std: normalise_image(image, mean, std))
    for _ in range(2):
        prepare(folder, tmp_path, say=said.append)
    monkeypatch.undo()
    prepare(folder, tmp_path, say=said.append)
    assert len(said) == 4 and path.exists()
