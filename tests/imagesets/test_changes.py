"""Cells kept apart and weight maps, against definitions in loops."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy import ndimage

import data
from checks import InputError
from geometry.boundary import boundary_weights, separation_weights
from imagesets.changes import HalfOfTestValidates, PartsByName, Relabel, Resize, WeightMap, separate_cells
from imagesets.files import Sample
from imagesets.yeast import yeast_scene
from losses import BoundaryWeightedLoss, cross_entropy
from tests.data_helpers import make_folder, mask, refused, save
from transforms import apply_symmetry


def sample_of(instances: np.ndarray) -> Sample:
    return Sample("a", np.zeros(instances.shape), (instances > 0).astype(np.uint8), None, {"instances": instances})


def touches_another(ids: np.ndarray, y: int, x: int) -> bool:
    around = ids[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
    return bool(ids[y, x] and ((around > 0) & (around != ids[y, x])).any())


def test_touching_pixels_become_background_and_nothing_else() -> None:
    ids = np.random.default_rng(0).integers(0, 4, (9, 11))
    separated = separate_cells(sample_of(ids))
    wanted = [[0 if touches_another(ids, y, x) else ids[y, x] for x in range(11)] for y in range(9)]
    assert separated.extras["instances"].tolist() == wanted
    assert np.array_equal(separated.label, np.array(wanted) > 0)


def test_drawn_cells_are_one_object_each_afterwards() -> None:
    scene = yeast_scene(np.random.default_rng(3), 128, 128)
    sample = Sample("a", scene.image, scene.label, None, {"instances": scene.instances})
    before = ndimage.label(sample.label, np.ones((3, 3)))[1]
    after = separate_cells(sample)
    ids = after.extras["instances"]
    assert before < len(np.unique(ids)) - 1  # some touched
    assert ndimage.label(after.label, np.ones((3, 3)))[1] >= len(np.unique(ids)) - 1
    assert np.array_equal(scene.label, sample.label)  # the input stays as it is


def test_separation_commutes_with_the_symmetries() -> None:
    ids = np.random.default_rng(1).integers(0, 3, (8, 8))
    for k in range(8):
        turned = apply_symmetry(torch.from_numpy(ids), k).numpy()
        there = separate_cells(sample_of(turned)).label
        assert np.array_equal(there, apply_symmetry(torch.from_numpy(separate_cells(sample_of(ids)).label), k))


def test_cells_without_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="only if the map `instances`"):
        separate_cells(Sample("a", np.zeros((2, 2)), np.zeros((2, 2), np.uint8)))


def test_weight_maps_are_those_of_boundary() -> None:
    ids = np.zeros((12, 12), np.int64)
    ids[2:5, 2:10], ids[7:10, 2:10] = 1, 2
    sample = sample_of(ids)
    border = WeightMap(3, 1.5)(sample).extras["weights"]
    assert np.array_equal(border, boundary_weights(sample.label.astype(np.int64), 3, 1.5))
    gaps = WeightMap(3, 1.5, separation=True)
    assert np.array_equal(gaps(sample).extras["weights"], separation_weights(ids, 3, 1.5))
    components = gaps(Sample("a", sample.image, sample.label)).extras["weights"]  # no numbers: the same two objects
    assert np.array_equal(components, separation_weights(ids, 3, 1.5))


def test_stored_maps_travel_with_the_image_and_give_the_loss_of_fresh_ones(tmp_path) -> None:
    folder = make_folder(tmp_path / "set", "abcdefgh")
    path = data.prepare(folder, tmp_path, changes=[WeightMap(5, 2)], say=lambda line: None)
    dataset = data.SegmentationDataset(path, "train", maps=("weights",))
    logits = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    for index in range(len(dataset)):
        _, label, weights = (tensor[None] for tensor in dataset[index])
        assert torch.equal(weights[0], torch.from_numpy(boundary_weights(label[0].numpy(), 5, 2)))
        loss = BoundaryWeightedLoss(5, 2)
        assert torch.allclose(loss(logits, label, weights), loss(logits, label))
        for k in range(8):  # the map of the turned label is the turned map, to the last bit
            turned = apply_symmetry(label[0], k).numpy()
            assert np.array_equal(boundary_weights(turned, 5, 2), apply_symmetry(weights[0], k).numpy())
        assert not torch.allclose(loss(logits, label), cross_entropy(logits, label))


def test_changes_are_made_once_and_known_again(tmp_path) -> None:
    folder, lines, calls = make_folder(tmp_path / "set", "abcdefgh"), [], []

    def count(sample: Sample) -> Sample | None:
        calls.append(sample.name)
        return None if sample.name == "h" else sample

    for _ in range(2):
        path = data.prepare(folder, tmp_path, changes=[count], say=lines.append)
    assert sorted(calls) == list("abcdefgh")  # not in the second call
    assert len(lines) == 2  # two files, built once
    assert sum(data.SegmentationDataset(path, "train").parts.values()) == 7  # "h" was left out
    assert path != data.prepare(folder, tmp_path, say=lines.append)
    assert path != data.prepare(folder, tmp_path, changes=[count, WeightMap()], say=lines.append)


def test_an_older_file_of_another_mask_is_built_again(tmp_path) -> None:
    folder, lines = make_folder(tmp_path / "set", "abcdefgh"), []
    first = data.prepare(folder, tmp_path, changes=[WeightMap()], say=lines.append)
    before = data.SegmentationDataset(first, "train").fingerprint
    save(folder / "labels" / "a.png", mask(99))
    second = data.prepare(folder, tmp_path, changes=[WeightMap()], say=lines.append)
    assert first == second
    assert data.SegmentationDataset(second, "train").fingerprint != before
    assert "other settings or from other files" in lines[-1]


def test_problems_of_a_change_name_the_sample(tmp_path) -> None:
    folder = make_folder(tmp_path / "set", "abcd")
    assert "instances" in refused(data.prepare, folder, tmp_path, changes=[separate_cells], say=lambda line: None)


def first_version(sample: Sample) -> Sample:
    return sample


def other_version(sample: Sample) -> Sample | None:
    return sample if sample.name else None


def test_an_edited_change_is_another_one(tmp_path) -> None:
    folder = make_folder(tmp_path / "set", "abcdefgh")
    other_version.__qualname__ = first_version.__qualname__  # the same name, another text
    paths = {data.prepare(folder, tmp_path, changes=[f], say=lambda line: None) for f in (first_version, other_version)}
    assert len(paths) == 2


def test_changes_that_could_not_be_known_again_are_refused(tmp_path) -> None:
    folder = make_folder(tmp_path / "set", "abcd")
    for change in (lambda sample: sample, functools.partial(separate_cells)):
        assert "could not tell" in refused(data.prepare, folder, tmp_path, changes=[change], say=lambda line: None)


def test_resize_keeps_types_and_invents_no_class() -> None:
    rng = np.random.default_rng(0)
    label = rng.choice([0, 3, 255], (30, 41)).astype(np.uint8)
    image = rng.integers(0, 256, (30, 41, 3)).astype(np.uint8)
    sample = Sample("a", image, label, "val", {"weights": rng.random((30, 41)).astype(np.float32)})
    small = Resize(16, 20)(sample)
    assert (small.image.shape, small.image.dtype, small.part) == ((16, 20, 3), np.uint8, "val")
    assert small.label.shape == small.extras["weights"].shape == (16, 20)
    assert set(np.unique(small.label)) <= {0, 3, 255}
    assert abs(small.image.mean() - image.mean()) < 3  # averaged, not picked
    assert small.image.std() < image.std()
    same = Resize(30, 41)(sample)
    assert np.array_equal(same.image, image)
    assert np.array_equal(same.label, label)


def test_resize_keeps_image_and_label_together() -> None:
    label = np.zeros((40, 60), np.uint8)
    label[10:30, 15:45] = 1
    for size in ((20, 30), (80, 120), (33, 47)):
        sample = Resize(*size)(Sample("a", label * 200, label))
        off = (sample.image > 100) != (sample.label == 1)
        assert off.mean() < 0.05
        assert sample.label.mean() == pytest.approx(0.25, abs=0.03)


def test_relabel_swaps_without_chaining() -> None:
    sample = Sample("a", np.zeros((1, 3)), np.array([[0, 1, 2]], np.uint8))
    assert Relabel({0: 1, 1: 0})(sample).label.tolist() == [[1, 0, 2]]
    assert sample.label.tolist() == [[0, 1, 2]]


def test_parts_by_name_come_out_of_the_file(tmp_path) -> None:
    folder = make_folder(tmp_path / "set", "abcd")
    path = data.prepare(folder, tmp_path, changes=[PartsByName(train=("d", "a"), val=("c",))])
    assert data.SegmentationDataset(path, "train").parts == {"train": 2, "val": 1, "test": 0}
    assert data.SegmentationDataset(path, "train").names == ["a", "d"]
    assert data.SegmentationDataset(path, "val").names == ["c"]


def test_no_test_image_trains_and_about_half_of_them_validate() -> None:
    moved = {
        name: [HalfOfTestValidates()(Sample("a", np.full(4, i), np.zeros(4), name)).part for i in range(400)]
        for name in ("train", "val", "test")
    }
    assert set(moved["train"]) == set(moved["val"]) == {"train"}
    assert set(moved["test"]) == {"val", "test"}
    assert 160 < moved["test"].count("val") < 240


def test_two_copies_of_a_test_image_stay_together() -> None:
    parts = {HalfOfTestValidates()(Sample(name, np.arange(9), np.zeros(9), "test")).part for name in "abcdefghij"}
    assert len(parts) == 1


def test_sizes_and_classes_that_make_no_sense_are_refused() -> None:
    for wrong in (lambda: Resize(0, 5), lambda: Relabel({0: 300}), lambda: Relabel({0: -1})):
        with pytest.raises(InputError, match="Resize|Relabel"):
            wrong()
