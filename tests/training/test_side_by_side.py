"""Trainings side by side end as trainings one after the other do, whatever happens to a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training.side_by_side import fit_all

from checks import InputError
from learner import Learner
from losses import cross_entropy
from training import side_by_side
from unet import UNet

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they follow each other")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def learners(folder, n=3, **settings):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, 16, 16, generator=generator)
    batches = [(images, (images[:, 0] > 0).long())]
    made = []
    for seed in range(n):
        torch.manual_seed(seed)
        settings = {"lr": 0.02, "device": "cpu", "precision": "float32", "verbose": False} | settings
        model = UNet(widths=(2, 4), dropout=0.2)
        made.append(Learner(model, cross_entropy, batches, seed=seed, folder=folder and folder / str(seed), **settings))
    return made


def same(one, other):
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values())
    return all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def own_steps(learner):
    """Count the epochs that are trained in this very process."""
    epochs, train = [], learner._train_epoch

    def counted(epoch, *args):
        epochs.append(epoch)
        return train(epoch, *args)

    learner._train_epoch = counted
    return epochs


def compare(folder):
    """Train side by side and one after the other, in a new process."""
    torch.set_num_threads(2)
    together, alone = learners(folder / "a", verbose=True), learners(folder / "b")
    counts = [own_steps(one) for one in together]
    fit_all(together, 3)
    assert counts == [[], [], []]  # all was done in other processes
    assert torch.get_num_threads() == 2
    for one, other in zip(together, alone):
        other.fit(3)
        assert same(one, other) and len(one.history) == 3


def test_side_by_side_is_one_after_the_other(tmp_path):
    # In a new process: once PyTorch has started threads of its own for gradients, it refuses them in a fork, and
    # `fit_all` trains one after the other.  Some other tests bring that about.
    here = Path(__file__).parent
    code = "import sys, pathlib, test_side_by_side as t; t.compare(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "trainings, 2 at a time on one core each" in line]
    assert len(lines) <= 4 and "3 of 3" in lines[-1]


def test_learners_without_a_folder_are_trained_here():
    made = learners(None, 2)
    counts = [own_steps(one) for one in made]
    fit_all(made, 2)
    assert counts == [[0, 1], [0, 1]]


def test_one_core_trains_one_after_the_other(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(side_by_side, "_fork", lambda *args: pytest.fail("forked"))
    fit_all(learners(tmp_path), 1)


def test_a_process_that_is_killed_costs_time_only(tmp_path, monkeypatch):
    made, alone = learners(tmp_path / "a"), learners(tmp_path / "b")
    train, here = made[1]._train_epoch, os.getpid()

    def killed_in_the_second_epoch(epoch, *args):
        if os.getpid() != here and epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(epoch, *args)

    monkeypatch.setattr(made[1], "_train_epoch", killed_in_the_second_epoch)
    fit_all(made, 3)
    for one, other in zip(made, alone):
        other.fit(3)
        assert same(one, other)


def test_a_process_that_is_stuck_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "IDLE", 0.5)
    made = learners(tmp_path)
    train, here = made[0]._train_epoch, os.getpid()
    monkeypatch.setattr(made[0], "_train_epoch", lambda *args: train(*args) if os.getpid() == here else time.sleep(600))
    fit_all(made, 2)
    assert [len(one.history) for one in made] == [2, 2, 2]


def test_what_goes_wrong_is_said_here(tmp_path):
    made = learners(tmp_path)
    made[1].train_loader[0][1][0, 0, 0] = 9
    with pytest.raises(InputError, match="label"):
        fit_all(made, 1)


def test_stop_ends_the_other_processes(tmp_path, monkeypatch):
    started, fork = [], side_by_side._fork

    def noted(*args):
        started.append(fork(*args))
        return started[-1]

    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side, "_fork", noted)
    monkeypatch.setattr(side_by_side.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_all(learners(tmp_path), 10_000)
    assert len(started) == 2 and not any(process.is_alive() for process in started)


def test_each_learner_may_have_its_own_number_of_epochs(tmp_path):
    made = learners(tmp_path)
    fit_all(made, [1, 3, 2])
    assert [len(one.history) for one in made] == [1, 3, 2]
    with pytest.raises(InputError, match="3 learners and 2 numbers"):
        fit_all(made, [1, 2])
