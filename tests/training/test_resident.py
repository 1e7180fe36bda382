"""A set on the GPU gives the batches of the loader that it replaces.  (Here its device is the CPU.)"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data import SegmentationDataset, make_loader
from tests.data_helpers import build_normalised, make_samples
from training import resident
from training.resident import ResidentLoader, on_device
from transforms import RandomRotate90

CPU = torch.device("cpu")


def sets(tmp_path, **settings):
    weights = np.random.default_rng(0).random((6, 8)).astype(np.float32)
    path = build_normalised(tmp_path, make_samples(9, weights=weights), fractions={"train": 1.0})
    return SegmentationDataset(path, "train", maps=("weights",), seed=3, **settings)


@pytest.mark.parametrize("crop", [None, 4, 7, 12])  # 7: higher than the images, 12: larger in both
def test_the_batches_are_those_of_the_loader(tmp_path, crop):
    loader = make_loader(sets(tmp_path, crop=crop), 4, shuffle=True, seed=5, repeats=2)
    fast = ResidentLoader(loader, CPU)
    assert len(fast) == len(loader)
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)
        for wanted, found in zip(list(loader), list(fast), strict=True):
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(wanted, found, strict=True))


def test_batches_are_copies(tmp_path):
    fast = ResidentLoader(make_loader(sets(tmp_path), 9), CPU)
    next(iter(fast))[0].zero_()
    assert next(iter(fast))[0].abs().sum() > 0


def test_only_what_can_lie_on_a_gpu_goes_there(tmp_path, monkeypatch):
    dataset = sets(tmp_path)
    loader, cuda = make_loader(dataset, 4), torch.device("cuda")
    monkeypatch.setattr(resident, "ResidentLoader", lambda loader, device: "resident")
    free = 4 * 9 * 6 * 8 * (4 + 8 + 4)  # four times what the set measures
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free + 1, free))
    assert on_device(loader, cuda) == "resident"
    assert on_device(loader, CPU) is loader
    assert on_device([1], cuda) == [1]
    assert on_device(workers := make_loader(dataset, 4, num_workers=1), cuda) is workers
    assert on_device(turned := make_loader(sets(tmp_path, transform=RandomRotate90()), 4), cuda) is turned
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 1, free))
    assert on_device(loader, cuda) is loader
