"""Every draw is repeatable, batches stack, and `prepare` never uses an outdated file."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data import BUILT_IN, NAMES, EpochBatches, SegmentationDataset, extra_maps, make_loader, prepare, source_folder
from imagesets import yeast as synthetic
from imagesets.files import Sample
from imagesets.hdf5 import normalise_hdf5, open_hdf5
from tests.data_helpers import build, build_normalised, make_folder, make_samples, mask, picture, refused, save
from transforms import BasicTransform2D, Compose, DownscaleImage, RandomReflect, RandomRotate90


def quiet(line: str) -> None:
    """Say nothing."""


# --- the dataset ---


def test_items_have_the_promised_types_and_labels_keep_255(tmp_path):
    samples = make_samples(6, weights=np.full((6, 8), 0.5), instances=np.full((6, 8), 300, np.uint16))
    for sample in samples:
        sample.label[0, 0] = 255
    dataset = SegmentationDataset(build_normalised(tmp_path, samples), "train", maps=("weights", "instances"))
    image, target, weights, instances = dataset[0]
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (1, 6, 8))
    assert (target.dtype, tuple(target.shape)) == (torch.int64, (6, 8))
    assert (weights.dtype, instances.dtype) == (torch.float32, torch.int64)
    assert target[0, 0] == 255
    assert instances.max() == 300
    assert dataset.parts == {"train": 4, "val": 1, "test": 1}
    assert (len(dataset), dataset.num_classes, dataset.channels) == (4, 2, 1)
    assert len(list(dataset)) == 4  # a plain loop ends


def test_wrong_arguments_of_the_dataset_are_refused(tmp_path):
    raw = build(tmp_path)
    path = normalise_hdf5(raw, tmp_path / "n.hdf5")
    assert "not normalised" in refused(SegmentationDataset, raw, "train")
    assert "no sample in the part 'training'" in refused(SegmentationDataset, path, "training")
    assert "lacks the maps ['dead']" in refused(SegmentationDataset, path, "train", maps=("dead",))
    assert "does not exist" in refused(SegmentationDataset, tmp_path / "nowhere.hdf5", "train")


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 50))
@settings(max_examples=100)
def test_crops_and_padding_keep_image_label_and_map_together(height, width, crop, seed):
    pixel = np.arange(1, height * width + 1, dtype=np.float32).reshape(height, width)
    label = (pixel % 3).astype(np.uint8)
    arrays = [np.stack([pixel, -pixel]), label, pixel + 1]
    image, target, weight = data._cropped(arrays, crop, np.random.default_rng(seed))
    assert image.shape == (2, crop, crop)
    assert target.shape == weight.shape == (crop, crop)
    inside = target != 255
    assert inside.sum() == min(crop, height) * min(crop, width)
    assert np.array_equal(target[inside], image[0][inside] % 3)
    assert np.array_equal(weight[inside], image[0][inside] + 1)
    assert np.array_equal(image[1], -image[0])
    assert (weight[~inside] == 0).all()
    assert set(np.unique(image[0])) <= set(pixel.ravel())  # padding repeats pixels, it invents none
    ys, xs = (image[0][inside] - 1) // width, (image[0][inside] - 1) % width
    assert len(set(zip(ys, xs))) == inside.sum()  # no pixel twice
    assert np.ptp(ys) < crop
    assert np.ptp(xs) < crop


def test_padding_by_hand():
    image, label = np.array([[[1.0, 2.0, 3.0]]]), np.array([[0, 1, 1]], np.uint8)
    padded, target, weight = data._cropped([image, label, image[0]], 5, np.random.default_rng(0))
    assert padded[0].tolist() == [[1, 2, 3, 2, 1]] * 5  # mirrored; the single row is repeated
    assert target.tolist() == [[0, 1, 1, 255, 255], *[[255] * 5] * 4]
    assert weight.tolist() == [[1, 2, 3, 0, 0], *[[0] * 5] * 4]


def test_every_crop_position_is_drawn(tmp_path):
    dataset = SegmentationDataset(build_normalised(tmp_path, fractions={"train": 1.0}), "train", crop=5)
    whole = SegmentationDataset(dataset.path, "train")[0][0]
    found = set()
    for epoch in range(200):
        part = dataset[epoch, 0][0]
        positions = itertools.product(range(2), range(4))  # 6 × 8 pixels leave 2 × 4 places for 5 × 5
        found |= {(y, x) for y, x in positions if torch.equal(part, whole[:, y : y + 5, x : x + 5])}
    assert len(found) == 8


def test_epochs_and_samples_differ_and_a_rerun_is_equal(tmp_path):
    path = build_normalised(tmp_path, make_samples(6, (12, 12)))
    transform = Compose(RandomReflect(), RandomRotate90())
    first, again, other = (
        SegmentationDataset(path, "train", seed=seed, crop=8, transform=transform) for seed in (1, 1, 2)
    )
    items = [first[epoch, 0][0] for epoch in range(6)]
    assert all(torch.equal(item, again[epoch, 0][0]) for epoch, item in enumerate(items))
    assert len({item.numpy().tobytes() for item in items}) > 3
    assert any(not torch.equal(item, other[epoch, 0][0]) for epoch, item in enumerate(items))
    assert torch.equal(first[3][0], first[0, 3][0])  # a plain index is epoch 0
    assert torch.equal(first[-1][0], first[3][0])  # and may count from the end


def test_dataset_keeps_no_file_open_and_pickles_without_its_arrays(tmp_path):
    dataset = SegmentationDataset(build_normalised(tmp_path), "train")
    assert dataset._arrays is None  # nothing is read before the first access
    item = dataset[0]
    os.rename(dataset.path, tmp_path / "moved.hdf5")  # no file is needed any more
    assert torch.equal(dataset[0][0], item[0])
    os.rename(tmp_path / "moved.hdf5", dataset.path)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy._arrays is None
    assert torch.equal(copy[0][0], item[0])


def test_datasets_of_one_part_share_one_copy_of_the_arrays_and_free_it(tmp_path):
    path = build_normalised(tmp_path, make_samples(weights=np.ones((6, 8))))
    many = [SegmentationDataset(path, "train", crop=crop, seed=seed) for seed, crop in enumerate([None, 4, 4])]
    images = [dataset._load()[0][0] for dataset in many]
    assert all(np.shares_memory(images[0], image) for image in images)
    with pytest.raises(ValueError, match="read-only"):  # one dataset cannot spoil the data of another
        images[0][:] = 0
    others = [SegmentationDataset(path, "val"), SegmentationDataset(path, "train", maps=("weights",))]
    assert not any(np.shares_memory(images[0], dataset._load()[0][0]) for dataset in others)
    kept = weakref.ref(many[0]._load())
    del many, images
    gc.collect()
    assert kept() is None


def test_file_built_anew_under_a_dataset_is_noticed(tmp_path):
    dataset = SegmentationDataset(build_normalised(tmp_path), "train")
    build_normalised(tmp_path, make_samples(9))
    assert "has changed. Run the cell" in refused(lambda: dataset[0])


@pytest.mark.parametrize("part", ["val", "test"])
def test_validation_and_test_have_no_random_part(tmp_path, part):
    path = build_normalised(tmp_path)
    unknown = lambda *images, rng: images  # noqa: E731
    for random in ({"crop": 4}, {"transform": RandomReflect()}, {"transform": unknown}):
        assert "must have no random part" in refused(SegmentationDataset, path, part, **random)
    small = SegmentationDataset(path, part, transform=DownscaleImage(2))
    assert small[0][0].shape == (1, 3, 4)
    assert torch.equal(small[0, 0][0], small[5, 0][0])  # the same in every epoch


class Unchanged(BasicTransform2D):
    """A transform that gives its input back, not a copy."""

    def apply_transform_to_image(self, image):
        return image


@pytest.mark.parametrize("options", [{}, {"crop": 6}, {"crop": 9}, {"transform": Unchanged()}])
def test_changing_an_item_does_not_change_the_data_set(tmp_path, options):
    path = build_normalised(tmp_path, make_samples(6, weights=np.ones((6, 8), np.float32)))
    dataset = SegmentationDataset(path, "train", maps=("weights",), **options)
    before = [tensor.clone() for tensor in dataset[0]]
    for tensor in dataset[0]:
        tensor.fill_(7)
    assert all(torch.equal(a, b) for a, b in zip(before, dataset[0]))


# --- batches ---


class Shapes:
    """Only what EpochBatches asks of a data set."""

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
    """The batches of one epoch, as indices."""
    return [[index for _, index in batch] for batch in pairs_of(batches, epoch)]


def test_without_shuffle_samples_of_one_shape_share_batches_in_order():
    shapes = [(8, 8), (4, 4), (8, 8), (4, 4), (8, 8)]
    batches = EpochBatches(Shapes(shapes), 2)
    assert epoch_of(batches, 0) == [[1, 3], [0, 2], [4]]
    assert pairs_of(batches, 7) == [[(7, 1), (7, 3)], [(7, 0), (7, 2)], [(7, 4)]]
    assert batches.dropped == 0  # nothing is left out of an evaluation


@pytest.mark.parametrize("repeats", [1, 3])
def test_order_depends_on_seed_and_epoch_only(repeats):
    def shuffled(seed: int) -> EpochBatches:
        return EpochBatches(Shapes([(8, 8)] * 20), 4, True, seed, repeats)

    assert [pairs_of(shuffled(3), epoch) for epoch in (0, 1, 2)][2] == pairs_of(shuffled(3), 2)  # a resumed run
    assert epoch_of(shuffled(3), 0) != epoch_of(shuffled(3), 1)
    assert epoch_of(shuffled(3), 0) != epoch_of(shuffled(4), 0)
    in_order = sorted(itertools.chain(*epoch_of(shuffled(3), 0)))
    assert list(itertools.chain(*epoch_of(shuffled(3), 0))) != in_order


@given(
    st.lists(st.sampled_from([(4, 4), (4, 6), (8, 8)]), min_size=1, max_size=30),
    st.integers(1, 7),
    st.booleans(),
    st.integers(1, 4),
)
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
        assert all(len({shapes[index] for _, index in batch}) == 1 for batch in drawn)
        assert all(1 <= len(batch) <= batch_size for batch in drawn)
        assert len(set(pairs)) == len(pairs)  # the pair decides the crop
        assert not seen & set(pairs)
        seen |= set(pairs)


def test_repeats_by_hand():
    batches = EpochBatches(Shapes([(8, 8)] * 2), 3, repeats=2)
    assert pairs_of(batches, 0) == [[(0, 0), (0, 1), (1, 0)], [(1, 1)]]  # draws 0 and 1 of both samples
    assert pairs_of(batches, 5) == [[(10, 0), (10, 1), (11, 0)], [(11, 1)]]
    assert len(EpochBatches(Shapes([(8, 8)] * 2), 3, shuffle=True, repeats=2)) == 1  # a last one is dropped


def test_last_batch_of_one_is_dropped_in_training_and_said():
    batches = EpochBatches(Shapes([(8, 8)] * 9), 4, shuffle=True)
    seen = [epoch_of(batches, epoch) for epoch in range(40)]
    assert all(sorted(len(batch) for batch in epoch) == [4, 4] for epoch in seen)
    assert batches.dropped == 1
    left_out = {index for epoch in seen for index in set(range(9)) - set(sum(epoch, []))}
    assert len(left_out) > 5  # not always the same sample
    assert len(EpochBatches(Shapes([(8, 8)] * 9), 4)) == 3  # kept in an evaluation
    assert len(EpochBatches(Shapes([(8, 8)]), 4, shuffle=True)) == 1  # kept if it is all there is
    assert len(EpochBatches(Shapes([(8, 8)] * 3), 1, shuffle=True)) == 3  # batches of one were asked for


def test_lone_shape_is_never_left_out():
    batches = EpochBatches(Shapes([(8, 8)] * 4 + [(4, 4)]), 4, shuffle=True)
    assert batches.dropped == 0
    assert sorted(sum(epoch_of(batches, 0), [])) == [0, 1, 2, 3, 4]


# --- the loader ---


def batches_of(loader, epochs) -> list[list[torch.Tensor]]:
    result = []
    for epoch in epochs:
        loader.batch_sampler.set_epoch(epoch)
        result += [list(batch) for batch in loader]
    return result


def test_repeats_of_the_loader_draw_another_crop_each_time(tmp_path):
    samples = make_samples(1, (60, 60), place=np.arange(3600).reshape(60, 60))
    path = build_normalised(tmp_path, samples, fractions={"train": 1.0})
    dataset = SegmentationDataset(path, "train", crop=8, maps=("place",))
    loader = make_loader(dataset, 4, shuffle=True, repeats=10)
    assert len(loader) == 3  # ten crops of one image, in batches of 4, 4 and 2
    corners = [int(place) for *_, places in batches_of(loader, (0, 1)) for place in places[:, 0, 0]]
    assert len(corners) == 20
    assert len(set(corners)) > 15  # of 53 × 53 places
    seeded = [list(make_loader(dataset, 4, shuffle=True, repeats=10, seed=seed).batch_sampler) for seed in (0, 0, 1)]
    assert seeded[0] == seeded[1] != seeded[2]


def test_loader_stacks_maps_too_and_leaves_the_global_generator_alone(tmp_path):
    path = build_normalised(tmp_path, make_samples(7, weights=np.ones((6, 8))))
    loader = make_loader(SegmentationDataset(path, "train", maps=("weights",)), 3, shuffle=True)
    state = torch.get_rng_state()
    images, targets, weights = next(iter(loader))
    assert torch.equal(torch.get_rng_state(), state)
    assert [tuple(t.shape) for t in (images, targets, weights)] == [(3, 1, 6, 8), (3, 6, 8), (3, 6, 8)]
    assert len(loader) == 2


# --- all in one call ---


def test_prepare_builds_once_and_again_for_other_settings_or_files(tmp_path):
    folder = make_folder(tmp_path / "set")
    save(folder / "images" / "d.tif", picture(8))
    save(folder / "labels" / "d.png", mask(8))
    said: list[str] = []
    settings = {"data_dir": tmp_path / "data", "say": said.append}

    def lines() -> int:
        said.clear()
        prepare(folder, **settings)
        return len(said)

    path = prepare(folder, **settings)
    assert path == tmp_path / "data" / "set_normalised.hdf5"
    assert "does not exist yet" in said[0]
    stamp = path.stat().st_mtime_ns
    assert lines() == 0
    assert path.stat().st_mtime_ns == stamp  # used again

    settings["seed"] = 1
    assert lines() == 2  # other settings
    assert "built with other settings or from other files" in said[0]
    save(folder / "labels" / "a.png", 1 - mask(0))
    assert lines() == 2  # other source files
    with open_hdf5(path) as file:
        assert np.array_equal(file["label"]["00000"], 1 - mask(0))
    save(folder / "images" / "d.tif", picture(9))  # not packed, so the size of the file stays
    assert lines() == 2
    os.utime(folder / "images" / "a.png", (1, 1))
    assert lines() == 2  # the time of modification decides, not the content
    save(folder / ".junk" / "a.png", picture(9))
    assert lines() == 0  # junk is no source
    path.write_bytes(path.read_bytes()[:100])
    assert lines() == 1  # a damaged file is built again
    settings["num_classes"] = 3
    assert lines() == 2
    settings["label_map"] = {0: 1, 1: 0}
    assert lines() == 2


@pytest.mark.parametrize("name", ["Hefe ä", "細胞", "#1 & more %20", "x" * 200, "a.b.c"])
def test_unusual_names_work(tmp_path, name):
    folder = make_folder(tmp_path / f"folder of {name[:20]}", names=(name, "b", "c", "d"))
    path = prepare(folder, tmp_path / "out put #", say=quiet)
    with open_hdf5(path) as file:
        assert name in {image.attrs["name"] for image in file["image"].values()}


def test_prepare_takes_the_extra_maps_of_the_built_in_set(tmp_path, monkeypatch):
    def small(folder):
        return synthetic.write_yeast(folder, num_images=4, height=64, width=64)

    monkeypatch.setitem(data.BUILT_IN, "synthetic_yeast", small)
    path = prepare("synthetic_yeast", tmp_path, say=quiet)
    assert path == tmp_path / "synthetic_yeast_normalised.hdf5"
    assert set(extra_maps(tmp_path / "synthetic_yeast")) == {"instances", "dead"}
    image, target, instances, dead = SegmentationDataset(path, "train", maps=("instances", "dead"))[0]
    assert image.shape == (1, 64, 64)
    assert torch.equal(target == 1, instances > 0)
    assert not ((dead > 0) & (target == 1)).any()  # dead cells are background


def test_prepare_takes_named_sets_and_a_folder_that_is_called_like_one(tmp_path, monkeypatch):
    official = tmp_path / "official"
    for number in range(4):
        save(official / "train" / "images" / f"{number}.tif", picture(number))
        save(official / "train" / "masks" / f"{number}.tif", mask(number, classes=3).astype(np.uint16))
    monkeypatch.setattr(data, "locate", lambda name, data_dir, say: official)
    named = prepare("dsb2018", tmp_path / "data", say=quiet)
    assert named == tmp_path / "data" / "dsb2018_normalised.hdf5"
    assert SegmentationDataset(named, "train", maps=("instances",))[0][2].max() == 2
    own = prepare(make_folder(tmp_path / "dsb2018", "abcdef"), tmp_path / "own", say=quiet)
    assert SegmentationDataset(own, "train").parts == {"train": 4, "val": 1, "test": 1}


def make_camvid(root: Path) -> Path:
    for part, number in (("train", 3), ("val", 4)):
        for i in range(number):
            save(root / part / f"{part}_{i}.png", np.dstack([picture(i + 10 * len(part))] * 3))
            save(root / f"{part}annot" / f"{part}_{i}.png", mask(i, classes=12))
    return root


def make_many(folder: Path) -> Path:
    for i in range(4):
        save(folder / "images" / f"{i}.png", picture(i))
        save(folder / "labels" / f"{i}.png", mask(i, classes=6))
    return folder


def test_prepare_knows_how_many_classes_a_named_set_has(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "locate", lambda name, data_dir, say: make_camvid(tmp_path / "official"))
    monkeypatch.setitem(BUILT_IN, "synthetic_streets", make_many)
    camvid = SegmentationDataset(prepare("camvid", tmp_path, say=quiet), "train")
    assert (camvid.num_classes, camvid.channels, camvid.parts) == (11, 3, {"train": 3, "val": 2, "test": 2})
    assert 255 in np.unique(np.stack([label for _, label in camvid]))  # 11 in the files: void
    streets = prepare("synthetic_streets", tmp_path, say=quiet)
    assert streets == tmp_path / "synthetic_streets_normalised.hdf5"
    assert SegmentationDataset(streets, "train").num_classes == 6
    assert data.NUM_CLASSES.keys() == set(NAMES)
    assert [data.NUM_CLASSES[name] for name in BUILT_IN] == [2, 6, 2, 3]


def test_prepare_takes_two_classes_for_a_folder_and_a_number_that_is_given(tmp_path, monkeypatch):
    assert "not in 0 … 1" in refused(prepare, make_many(tmp_path / "six"), tmp_path, say=quiet)
    assert SegmentationDataset(prepare(tmp_path / "six", tmp_path, num_classes=7, say=quiet), "train").num_classes == 7
    assert SegmentationDataset(prepare(make_folder(tmp_path / "two"), tmp_path, say=quiet), "train").num_classes == 2
    assert "num_classes is 0" in refused(prepare, tmp_path / "two", tmp_path, num_classes=0, say=quiet)
    monkeypatch.setitem(BUILT_IN, "synthetic_pets", make_many)
    assert "not in 0 … 2" in refused(prepare, "synthetic_pets", tmp_path, say=quiet)
    assert SegmentationDataset(prepare("synthetic_pets", tmp_path, num_classes=6, say=quiet), "train").num_classes == 6


def test_source_is_drawn_or_fetched_or_a_folder_or_refused(tmp_path, monkeypatch):
    for name in BUILT_IN:
        monkeypatch.setitem(BUILT_IN, name, lambda folder: folder)
    monkeypatch.setattr(data, "locate", lambda name, data_dir, say: data_dir / "fetched" / name)
    assert tuple(BUILT_IN) == ("synthetic_yeast", "synthetic_streets", "synthetic_roads", "synthetic_pets")
    fetched = ("dsb2018", "yeast_phase", "yeastcellseg", "topomortar", "kitti_road", "oxford_pets", "camvid")
    assert (*BUILT_IN, *fetched) == NAMES
    assert [source_folder(name, tmp_path) for name in BUILT_IN] == [tmp_path / name for name in BUILT_IN]
    assert [source_folder(name, tmp_path) for name in fetched] == [tmp_path / "fetched" / name for name in fetched]
    assert source_folder(str(tmp_path)) == tmp_path
    message = refused(source_folder, tmp_path / "nowhere")
    assert "neither a folder nor a known data set" in message
    assert ", ".join(NAMES) in message


def first_version(sample: Sample) -> Sample:
    return sample


def other_version(sample: Sample) -> Sample | None:
    return None if sample.name == "h" else sample


def test_changes_are_made_once_and_known_again_by_their_text(tmp_path):
    folder, said = make_folder(tmp_path / "set", "abcdefgh"), []
    other_version.__qualname__ = first_version.__qualname__  # the same name, another text
    first, again, other = (
        prepare(folder, tmp_path, changes=[change], say=said.append)
        for change in (first_version, first_version, other_version)
    )
    assert first == again != other != prepare(folder, tmp_path, say=quiet)
    assert len(said) == 4  # two files for each change, built once
    assert sum(SegmentationDataset(other, "train").parts.values()) == 7  # "h" was left out
    message = refused(prepare, folder, tmp_path, changes=[lambda sample: sample], say=quiet)
    assert "use a function with a name" in message
