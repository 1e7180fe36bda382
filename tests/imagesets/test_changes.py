"""Cells kept apart, weight maps, sizes and parts, against definitions in loops."""

import numpy as np
import pytest
import torch

import data
from geometry.boundary import boundary_weights, separation_weights
from imagesets.changes import PartsByName, Relabel, Resize, WeightMap, half_of_test_validates, separate_cells
from imagesets.files import Sample
from losses import BoundaryWeightedLoss, cross_entropy
from tests.data_helpers import make_folder, refused
from transforms import apply_symmetry


def sample_of(instances: np.ndarray) -> Sample:
    return Sample("a", np.zeros(instances.shape), (instances > 0).astype(np.uint8), None, {"instances": instances})


def touches_another(ids: np.ndarray, y: int, x: int) -> bool:
    around = ids[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
    return bool(ids[y, x] and ((around > 0) & (around != ids[y, x])).any())


@pytest.mark.parametrize("number", [1, 3, 30])
def test_touching_pixels_become_background_and_nothing_else(number) -> None:
    ids = np.random.default_rng(0).integers(0, number + 1, (9, 11)).astype(np.uint16)
    separated = separate_cells(sample_of(ids))
    wanted = [[0 if touches_another(ids, y, x) else ids[y, x] for x in range(11)] for y in range(9)]
    assert separated.extras["instances"].tolist() == wanted and np.array_equal(separated.label, np.array(wanted) > 0)


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
    message = refused(data.prepare, folder, tmp_path, changes=[separate_cells], say=lambda line: None)
    assert message.startswith("a: ") and "in a folder instances/" in message
    path = data.prepare(folder, tmp_path, changes=[WeightMap(5, 2)], say=lambda line: None)
    dataset = data.SegmentationDataset(path, "train", maps=("weights",))
    logits = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    for _, label, weights in dataset:
        assert torch.equal(weights, torch.from_numpy(boundary_weights(label.numpy(), 5, 2)))
        loss = BoundaryWeightedLoss(5, 2)(logits, label[None])
        assert torch.allclose(BoundaryWeightedLoss(5, 2)(logits, label[None], weights[None]), loss)
        assert not torch.allclose(loss, cross_entropy(logits, label[None]))
        for k in range(8):  # the map of the turned label is the turned map, to the last bit
            turned = apply_symmetry(label, k).numpy()
            assert np.array_equal(boundary_weights(turned, 5, 2), apply_symmetry(weights, k).numpy())


def test_resize_keeps_types_and_invents_no_class() -> None:
    rng = np.random.default_rng(0)
    label = rng.choice([0, 3, 255], (30, 41)).astype(np.uint8)
    image = rng.integers(0, 256, (30, 41, 3)).astype(np.uint8)
    sample = Sample("a", image, label, "val", {"weights": rng.random((30, 41)).astype(np.float32)})
    small = Resize(16, 20)(sample)
    assert (small.image.shape, small.image.dtype, small.part) == ((16, 20, 3), np.uint8, "val")
    assert small.label.shape == small.extras["weights"].shape == (16, 20) and set(np.unique(small.label)) <= {0, 3, 255}
    assert abs(small.image.mean() - image.mean()) < 3  # averaged, not picked
    assert small.image.std() < image.std()
    same = Resize(30, 41)(sample)
    assert np.array_equal(same.image, image) and np.array_equal(same.label, label)


def test_relabel_swaps_without_chaining() -> None:
    sample = Sample("a", np.zeros((1, 3)), np.array([[0, 1, 2]], np.uint8))
    assert Relabel({0: 1, 1: 0})(sample).label.tolist() == [[1, 0, 2]] and sample.label.tolist() == [[0, 1, 2]]


def test_parts_by_name_come_out_of_the_file(tmp_path) -> None:
    folder = make_folder(tmp_path / "set", "abcd")
    path = data.prepare(folder, tmp_path, changes=[PartsByName(train=("d", "a"), val=("c",))], say=lambda line: None)
    assert data.SegmentationDataset(path, "train").parts == {"train": 2, "val": 1, "test": 0}
    assert data.SegmentationDataset(path, "train").names == ["a", "d"]


def test_no_test_image_trains_about_half_of_them_validate_and_copies_stay_together() -> None:
    def part(i: int, given: str, name: str = "a") -> str | None:
        return half_of_test_validates(Sample(name, np.full(4, i), np.zeros(4), given)).part

    assert {part(i, given) for i in range(40) for given in ("train", "val")} == {"train"}
    parts = [part(i, "test") for i in range(400)]
    assert set(parts) == {"val", "test"} and 160 < parts.count("val") < 240
    assert parts == [part(i, "test", "b") for i in range(400)]
