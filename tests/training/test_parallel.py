"""Two processes learn what one learns, and trainings side by side end as trainings one after the other do."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from checks import InputError
from learner import Learner
from losses import cross_entropy
from training import parallel
from training.parallel import fit_all
from unet import UNet

ROOT = Path(__file__).parents[2]
LAUNCH = {1: [], 2: ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]}
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere trainings follow each other")


def train(processes: int, folder: Path) -> str:
    command = [sys.executable, *LAUNCH[processes], str(ROOT / "tests" / "distributed_run.py"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def distance(one: dict, other: dict) -> float:
    learnt = [name for name in one if name.endswith(("weight", "bias"))]
    return sum(float((one[name] - other[name]).square().sum()) for name in learnt) ** 0.5


@pytest.mark.skipif(sys.platform == "win32", reason="PyTorch for Windows lacks what torchrun meets at")
def test_two_processes_learn_what_one_learns_and_one_of_them_writes_and_prints(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    train(1, tmp_path / "one")
    printed = train(2, tmp_path / "two")
    names = ("one/result-0-of-1.pt", "two/result-0-of-2.pt", "two/result-1-of-2.pt")
    one, first, second = (torch.load(tmp_path / name) for name in names)
    # Adam divides by the size of the gradient, so sums in another order grow; 2 % of the way is what rounding leaves.
    assert distance(one["weights"], first["weights"]) < 0.02 * distance(one["weights"], one["start"])
    for row, other in zip(one["history"], first["history"], strict=True):
        for key in row.keys() - {"seconds"}:
            assert row[key] == pytest.approx(other[key], abs=0.01), key
    # Batches of one image leave the second process without any, and both know the scores all the same.
    assert first["single"] == second["single"]
    assert first["single"]["loss"] == pytest.approx(one["single"]["loss"], abs=0.01)
    assert distance(first["weights"], second["weights"]) == 0  # both processes hold the same model
    assert printed.count("epoch 3/3 ·") == 1  # and one of them prints


def test_on_gpus_batchnorm_counts_the_images_of_all_processes(monkeypatch):
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    monkeypatch.setattr(parallel, "DistributedDataParallel", lambda model, device_ids: (model, device_ids))
    net = UNet(widths=(2, 4), norm="batch")
    model, ids = parallel.together(net, torch.device("cuda", 1))
    kinds = {type(module) for module in net.modules()}
    assert ids == [1] and torch.nn.SyncBatchNorm in kinds and torch.nn.BatchNorm2d not in kinds


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def learners(folder, n=3, **settings):
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    batches = [(images, (images[:, 0] > 0).long())]
    settings = {"lr": 0.02, "device": "cpu", "precision": "float32", "verbose": False} | settings
    made = []
    for seed in range(n):
        torch.manual_seed(seed)
        model = UNet(widths=(2, 4), dropout=0.2)
        made.append(Learner(model, cross_entropy, batches, seed=seed, folder=folder and folder / str(seed), **settings))
    return made


def own_epochs(learner):
    epochs, train = [], learner._train_epoch
    learner._train_epoch = lambda epoch, *args: epochs.append(epoch) or train(epoch, *args)
    return epochs


SIDE_BY_SIDE = """
import pathlib, sys, torch
from tests.training.test_parallel import distance, fit_all, learners, own_epochs
torch.set_num_threads(2)
folder = pathlib.Path(sys.argv[1])
together, alone = learners(folder / "a", verbose=True), learners(folder / "b")
epochs = [own_epochs(one) for one in together]
fit_all(together, 3)
assert epochs == [[], [], []] and torch.get_num_threads() == 2  # all was done in other processes
for one, other in zip(together, alone):
    other.fit(3)
    assert distance(one.model.state_dict(), other.model.state_dict()) < 1e-4 and len(one.history) == 3
fit_all(learners(folder / "a", verbose=True), 3)
"""


@linux
def test_side_by_side_is_one_after_the_other(tmp_path):
    # In a new process: once PyTorch has started threads of its own for gradients, it refuses them in a fork, and
    # `fit_all` trains one after the other.  Some other tests bring that about.
    command = [sys.executable, "-c", SIDE_BY_SIDE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("found in its folder") == 6  # whoever trained them


def test_one_core_trains_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(parallel, "_fit_in_processes", lambda *args: pytest.fail("forked"))
    made = learners(tmp_path)
    fit_all(made, 2)
    assert [len(one.history) for one in made] == [2, 2, 2]


@pytest.mark.usefixtures("two_threads")
def test_what_goes_wrong_in_a_process_is_said_here(tmp_path):
    made = learners(tmp_path)
    made[1].train_loader[0][1][0, 0, 0] = 9
    with pytest.raises(InputError, match="label"):
        fit_all(made, 1)


@linux
@pytest.mark.usefixtures("two_threads")
def test_stop_ends_the_other_processes(tmp_path, monkeypatch):
    started = []

    def stop(sentinels, timeout):
        started.extend(multiprocessing.active_children())
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel, "wait", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_all(learners(tmp_path), 10_000)
    assert len(started) == 2 and not multiprocessing.active_children()


@linux
@pytest.mark.usefixtures("two_threads")
def test_a_fork_that_is_stuck_at_a_lock_does_not_hang_the_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "IDLE", 0.5)
    made, here, train = learners(tmp_path), os.getpid(), Learner.fit
    monkeypatch.setattr(Learner, "fit", lambda *args: train(*args) if os.getpid() == here else time.sleep(600))
    fit_all(made, 1)
    assert all(len(learner.history) == 1 for learner in made)
