"""Two processes learn what one learns: weights, scores and checkpoints; only rank 0 writes and prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from checks import InputError
from training import distributed

SCRIPT = Path(__file__).with_name("distributed_run.py")
LAUNCH = {1: [], 2: ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]}


def train(processes: int, folder: Path) -> str:
    """Run the script; return what it printed."""
    command = [sys.executable, *LAUNCH[processes], str(SCRIPT), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def result(folder: Path, rank: int, processes: int) -> dict:
    return torch.load(folder / f"result-{rank}-of-{processes}.pt")


def distance(one: dict, other: dict) -> float:
    learnt = [name for name in one if name.endswith(("weight", "bias"))]
    return sum(float((one[name] - other[name]).square().sum()) for name in learnt) ** 0.5


@pytest.mark.skipif(sys.platform == "win32", reason="PyTorch for Windows lacks what torchrun meets at")
def test_two_processes_learn_what_one_learns(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    train(1, tmp_path / "one")
    printed = train(2, tmp_path / "two")
    one, first, second = (result(tmp_path / "one", 0, 1), *(result(tmp_path / "two", rank, 2) for rank in (0, 1)))
    # Adam divides by the size of the gradient, so sums in another order grow; 2 % of the way is what rounding leaves.
    way = distance(one["weights"], one["start"])
    assert distance(one["weights"], first["weights"]) < 0.02 * way
    for row, other in zip(one["history"], first["history"], strict=True):
        for key in row.keys() - {"seconds"}:
            assert row[key] == pytest.approx(other[key], abs=0.01), key
    # Batches of one image leave the second process without any, and both know the scores all the same.
    assert first["single"] == second["single"] and first["single"]["loss"] == pytest.approx(
        one["single"]["loss"], abs=0.01
    )
    assert distance(first["weights"], second["weights"]) == 0  # both processes hold the same model
    assert printed.count("epoch 3/3 ·") == 1  # and one of them prints
    printed = train(2, tmp_path / "two")  # both take up the finished run that one of them wrote
    again = [result(tmp_path / "two", rank, 2)["weights"] for rank in (0, 1)]
    assert "trained before" in printed and all(distance(first["weights"], weights) == 0 for weights in again)


def test_one_process_needs_no_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.start()
    values = torch.arange(3)
    assert distributed.world_size() == 1 and distributed.rank() == 0
    assert distributed.total(values) is values and distributed.from_rank_0("x") == "x"
    assert [t.tolist() for t in distributed.shared([values])] == [[0, 1, 2]]
    layer = torch.nn.BatchNorm2d(2)
    assert distributed.together(layer, torch.device("cpu")) is layer and type(layer) is torch.nn.BatchNorm2d


def test_shares_of_unequal_size_count_as_much_as_they_hold(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append((len(distributed.shared([torch.arange(5)])[0]), distributed.weight_of_share(5)))
    assert shares == [(3, 1.2), (2, 0.8)]
    with pytest.raises(InputError, match="batch of 1 cannot be shared by 2"):
        distributed.weight_of_share(1)


def test_synced_batchnorm_alone_is_batchnorm():
    torch.manual_seed(0)
    x, plain, synced = torch.randn(3, 2, 4, 5), torch.nn.BatchNorm2d(2), distributed.SyncedBatchNorm2d(2)
    assert torch.equal(plain(x), synced(x)) and torch.equal(plain.running_var, synced.running_var)
