"""Tests of rehearsal.py: labels that belong to their images are told from labels that do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from commands import rehearsal
from commands.rehearsal import OneBatch, learn_one_batch, minutes, one_batch, seconds_per_megapixel
from imagesets.files import Sample
from tests.data_helpers import refused


def blobs(number: int = 8, side: int = 64, channels: int = 1) -> list[Sample]:
    """Noisy images of bright squares at random places, with their labels."""
    rng, samples = np.random.default_rng(0), []
    for index in range(number):
        label = np.zeros((side, side), np.uint8)
        for top, left in rng.integers(0, side - 12, (4, 2)):
            label[top : top + 12, left : left + 12] = 1
        image = np.clip(60 + 120 * label[..., None] + rng.normal(0, 20, (side, side, channels)), 0, 255)
        samples.append(Sample(f"s{index}", image.astype(np.uint8).squeeze(), label))
    return samples


@pytest.mark.parametrize("channels", [1, 3])
def test_right_labels_are_learnt(channels):
    right = learn_one_batch(*one_batch(blobs(channels=channels)), 2)
    assert right.fits and right.share < 0.1 < right.exchanged


def test_labels_of_other_images_are_noticed():
    samples = blobs()
    wrong = [replace(sample, label=other.label) for sample, other in zip(samples, samples[1:] + samples[:1])]
    assert not learn_one_batch(*one_batch(wrong), 2).fits


def test_what_counts_as_learnt():
    assert OneBatch(0.05, 0.05).fits  # learnt, if easily
    assert OneBatch(0.5, 0.6).fits  # a hard set, but exchanged labels are harder
    assert not OneBatch(0.4, 0.4).fits
    assert not OneBatch(0.95, 1.0).fits


def test_the_batch_has_unit_deviation_one_size_and_both_classes():
    samples = blobs(4)
    small = Sample("small", np.full((20, 90), 9, np.uint16), np.eye(20, 90, dtype=np.uint8))
    images, targets = one_batch([*samples, small])
    assert images.shape == (5, 1, 20, 64) and targets.shape == (5, 20, 64)
    assert images.dtype == torch.float32 and targets.dtype == torch.int64
    assert abs(images.mean()) < 1e-6 and images.std(unbiased=False) == pytest.approx(1)
    assert all(set(target.unique().tolist()) == {0, 1} for target in targets)
    flat, _ = one_batch([replace(sample, image=np.zeros((64, 64), np.uint8)) for sample in samples])
    assert (flat == 0).all()  # and not NaN
    assert "expected two or more" in refused(one_batch, samples[:1])


def test_one_class_only_leaves_nothing_to_learn():
    samples = [replace(sample, label=np.zeros((64, 64), np.uint8)) for sample in blobs(3)]
    result = learn_one_batch(*one_batch(samples), 2)
    assert np.isnan(result.share) and result.fits


def test_threads_and_ignored_pixels_are_left_as_they_are():
    before = torch.get_num_threads()
    samples = [replace(s, label=np.where(np.arange(64) < 8, 255, s.label).astype(np.uint8)) for s in blobs(4)]
    assert learn_one_batch(*one_batch(samples), 2).fits
    assert torch.get_num_threads() == before


def test_times_scale_with_the_table_and_every_part_has_all_budgets(monkeypatch):
    for part, row in minutes(1.0).items():
        assert list(row) == list(rehearsal.BUDGETS) and part.startswith("Part ")
        assert row["quick"] <= row["standard"] <= row["full"]
    monkeypatch.setattr(rehearsal, "MEGAPIXELS", {"Part 9": (1, 10, 100)})
    assert minutes(30.0) == {"Part 9": {"quick": 0.5, "standard": 5.0, "full": 50.0}}


def test_a_million_pixels_take_some_time():
    assert 0 < seconds_per_megapixel(side=16, batch=2, steps=1) < 1000
