"""The search: what it finds, what it records, and that no failure or kill costs a finished trial."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from checks import InputError
from experiments import processes, tuning
from experiments.search_space import Factor, LogRange, digest, with_values
from experiments.tuning import open_study, recover, tune
from experiments.tuning_tables import epoch_rows, trial_rows
from learner import Learner, set_seed
from losses import cross_entropy
from tests.tuning_helpers import DEFAULT, PLAN, Fake, go, kill, quality, start_worker, wait_until
from unet import UNet

SHORT = {"epochs": 3, "minutes": 1.0, "startup": 4}


def settings_and_states(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["trial"], row["lr"], row["skip"], row["state"]) for row in rows]


# ---- what a search does ----


def test_it_comes_close_to_the_optimum_and_records_everything() -> None:
    study = open_study()
    rows = tune(study, Fake, PLAN, trials=40, default=DEFAULT, **SHORT)
    assert len(rows) == 40 and {row["state"] for row in rows} == {"complete", "pruned"}
    assert {key: rows[0][key] for key in DEFAULT} == DEFAULT  # the default comes first
    best = max(rows, key=lambda row: row["score"])
    assert quality(best) > 0.87 > quality(DEFAULT) and best["state"] == "complete"
    for row in rows:
        assert row["seed"] == tuning.FIRST_SEED + row["trial"]
        assert row["epochs"] == 3 if row["state"] == "complete" else row["epochs"] in (1, 2)
        assert math.isclose(row["score"], Fake(row, 0, None).score(row["epochs"]))
    epochs = epoch_rows(study)
    assert len(epochs) == sum(row["epochs"] for row in rows)
    assert set(epochs[0]) == {"trial", "epoch", "train_loss", "seconds", "val_mean_iou"}


def test_only_the_better_ones_go_on() -> None:
    rows = tune(open_study(), Fake, PLAN, trials=30, **SHORT)
    first = {row["trial"]: quality(row) for row in rows}
    for row in rows:  # a rung lets the best third of those that came so far pass
        so_far = sorted((first[t] for t in range(row["trial"] + 1)), reverse=True)
        passed = first[row["trial"]] >= so_far[max(len(so_far) // 3 - 1, 0)]
        assert (row["state"] == "complete") == passed


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = tune(open_study(), Fake, PLAN, trials=14, default=DEFAULT, **SHORT)
    for number in (3, 9, 14):
        parts = tune(open_study(tmp_path / "j"), Fake, PLAN, trials=number, default=DEFAULT, **SHORT)
    assert settings_and_states(parts) == settings_and_states(whole)
    other = tune(open_study(), Fake, PLAN, trials=14, default=DEFAULT, seed=1, **SHORT)
    assert settings_and_states(other) != settings_and_states(whole)


def test_fault_95_the_number_of_trials_is_the_total(tmp_path: Path) -> None:
    for _ in range(2):
        assert len(tune(open_study(tmp_path / "j"), Fake, PLAN, trials=5, **SHORT)) == 5
    assert len(tune(open_study(tmp_path / "j"), Fake, PLAN, trials=7, **SHORT)) == 7


def test_the_minutes_are_kept_and_what_was_used_counts(tmp_path: Path) -> None:
    def build(settings, seed, folder) -> Any:
        return Fake(settings, seed, folder, pause=0.05)

    began = time.monotonic()
    rows = tune(open_study(tmp_path / "j"), build, PLAN, epochs=3, minutes=1 / 60)
    assert 0.9 < time.monotonic() - began < 2.5 and len(rows) > 4
    assert len(tune(open_study(tmp_path / "j"), build, PLAN, epochs=3, minutes=1 / 60)) - len(rows) <= 1
    assert len(tune(open_study(tmp_path / "j"), build, PLAN, epochs=3, minutes=1.5 / 60)) > len(rows)


def test_a_trial_that_runs_out_of_time_goes_on_with_the_next_call(tmp_path: Path) -> None:
    learners = []

    def build(settings, seed, folder) -> Any:
        learners.append(Fake(settings, seed, folder, pause=0.4))
        return learners[-1]

    first = tune(open_study(tmp_path / "j"), build, PLAN, epochs=4, minutes=0.5 / 60, trials=1, folder=tmp_path / "t")
    assert [(row["state"], row["reason"], row["epochs"]) for row in first] == [("paused", "paused", 2)]
    rows = tune(open_study(tmp_path / "j"), build, PLAN, epochs=4, minutes=1, trials=1, folder=tmp_path / "t")
    assert [row["state"] for row in rows] == ["continued", "complete"]
    assert [learner.trained for learner in learners] == [[1, 2], [3, 4]]  # the checkpoint was used
    assert rows[0]["seed"] == rows[1]["seed"] and rows[1]["epochs"] == 4
    assert [row["epoch"] for row in epoch_rows(open_study(tmp_path / "j"))] == [1, 2, 3, 4]
    assert not list((tmp_path / "t").iterdir())  # the folder of a trial that has ended is removed


# ---- what goes wrong inside a trial ----


def failing(kind: str) -> Any:
    class Failing(Fake):
        def score(self, epoch: int) -> float:
            if self.seed % 2 or epoch < 2:
                return super().score(epoch)
            if kind == "nan":
                return float("nan")
            if kind == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nmore")
            if kind == "cpu":
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            raise {"memory": MemoryError(), "loss": FloatingPointError("The loss became inf"), "bug": KeyError("x")}[
                kind
            ]

    return Failing


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nan", "not finite: FloatingPointError: val_mean_iou is nan after epoch 2"),
        ("loss", "not finite: FloatingPointError: The loss became inf"),
        ("cuda", "out of memory: OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"),
        (
            "cpu",
            "out of memory: RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        ),
        ("memory", "out of memory: MemoryError: "),
        ("bug", "KeyError: 'x'"),
    ],
)
def test_fault_93_a_trial_that_fails_is_recorded_and_the_search_goes_on(kind: str, reason: str) -> None:
    rows = tune(open_study(), failing(kind), PLAN, epochs=2, minutes=1, trials=12)
    failed = [row for row in rows if row["state"] == "failed"]
    assert len(rows) == 12 and failed and {row["reason"] for row in failed} == {reason}
    assert all(row["state"] in ("complete", "pruned") for row in rows if row["trial"] % 2)
    assert max(rows, key=lambda row: -1 if math.isnan(row["score"]) else row["score"])["state"] == "complete"


@pytest.mark.parametrize("scores", [[math.nan, 0.5], [0.5, math.nan]])
def test_fault_93_an_epoch_before_a_kill_is_looked_at_too(scores: list[float]) -> None:
    class Finished(Fake):  # all its epochs are in the checkpoint, and none was reported
        def fit(self, epochs: int, after_epoch: Any = None) -> list[dict[str, float]]:
            self.history = [{"epoch": n, "val_mean_iou": score, "seconds": 0.0} for n, score in enumerate(scores, 1)]
            return self.history

    (row,) = tune(open_study(), Finished, PLAN, epochs=2, minutes=1, trials=1)
    assert row["state"] == "failed" and "val_mean_iou is not finite in one of the epochs" in row["reason"]


def test_a_plan_in_which_everything_fails_is_not_tried_for_ever() -> None:
    def build(settings, seed, folder) -> Any:
        raise InputError("widths are wrong\nand more")

    study = open_study()
    with pytest.raises(InputError, match="10 trials in a row.*\nInputError: widths are wrong\n"):
        tune(study, build, PLAN, **SHORT)
    assert len(trial_rows(study)) == 10


def test_stop_sets_the_trial_aside(tmp_path: Path) -> None:
    pressed = []

    class Stopped(Fake):
        def score(self, epoch: int) -> float:
            if epoch == 2 and not pressed:
                pressed.append(epoch)
                raise KeyboardInterrupt
            return super().score(epoch)

    study = open_study(tmp_path / "j")
    with pytest.raises(KeyboardInterrupt):
        tune(study, Stopped, PLAN, trials=1, folder=tmp_path / "t", **SHORT)
    rows = tune(study, Stopped, PLAN, trials=1, folder=tmp_path / "t", **SHORT)
    assert [(row["state"], row["epochs"]) for row in rows] == [("continued", 1), ("complete", 3)]


# ---- plans ----


def test_fault_94_another_plan_under_the_same_name_is_refused(tmp_path: Path) -> None:
    tune(open_study(tmp_path / "j"), Fake, PLAN, trials=2, **SHORT)
    wider = with_values(PLAN, "lr", LogRange(1e-5, 1.0))
    other_fixed = [*PLAN[:2], Factor("loss", "fixed", ("dice",))]
    more = [*PLAN, Factor("batch", "nuisance", (4, 8))]
    for plan, name in (
        (wider, "lr: found 0.0001 … 1, now 1e-05 … 1"),
        (other_fixed, "loss"),
        (more, "batch"),
        (PLAN[:2], "loss"),
    ):
        with pytest.raises(InputError, match=name):
            tune(open_study(tmp_path / "j"), Fake, plan, trials=4, **SHORT)
    with pytest.raises(InputError, match="epochs of a trial: found 3, now 4"):
        tune(open_study(tmp_path / "j"), Fake, PLAN, trials=4, epochs=4, minutes=1)
    assert len(trial_rows(open_study(tmp_path / "j"))) == 2
    assert len(tune(open_study(tmp_path / "j", "another name"), Fake, wider, trials=2, **SHORT)) == 2


def test_a_default_outside_of_the_plan_is_refused() -> None:
    with pytest.raises(InputError, match="lr=7.0 is outside of the plan"):
        tune(open_study(), Fake, PLAN, trials=2, default=DEFAULT | {"lr": 7.0}, **SHORT)


def test_the_first_note_is_kept() -> None:
    study = open_study()
    assert tuning.note(study, "range", lambda: [1, 2]) == tuning.note(study, "range", lambda: [3, 4]) == [1, 2]


# ---- several processes, and kills ----


def check_search(study: optuna.Study, wanted: int) -> list[dict[str, Any]]:
    """Exactly the wanted trials, each finished once, no two alike, with all their epochs."""
    rows = [row for row in trial_rows(study) if row["state"] != "continued"]
    assert len(rows) == wanted
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    assert len({(row["lr"], row["skip"]) for row in rows}) == wanted
    assert sum(row["lr"] == DEFAULT["lr"] for row in rows) == 1  # both queued it, one trial came of it
    assert len(epoch_rows(study)) == sum(row["epochs"] for row in rows)
    for row in rows:
        assert math.isclose(row["score"], Fake(row, 0, None).score(row["epochs"]))
    return rows


def test_fault_92_two_processes_on_one_journal_lose_and_double_nothing(tmp_path: Path) -> None:
    workers = [start_worker(tmp_path / "j", tmp_path / "t", trials=16) for _ in range(2)]
    go(*workers)
    shares = [worker.communicate(timeout=60)[0].count("trial") for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sum(shares) == 16 and min(shares) >= 3
    check_search(open_study(tmp_path / "j", "test"), 16)


def test_the_last_trial_goes_to_one_of_many_threads(tmp_path: Path) -> None:
    # The race for the last trial, without luck: all ask before any of them looks round.
    studies = [open_study(tmp_path / "j") for _ in range(4)]
    barrier, found = threading.Barrier(4), []

    def ask(study: optuna.Study) -> None:
        original = study.ask

        def ask_together(*arguments: Any) -> Any:
            barrier.wait()
            return original(*arguments)

        study.ask = ask_together  # type: ignore[method-assign]
        study.sampler = tuning._Sampler(PLAN, 0, 4)
        found.append(tuning._next_trial(study, PLAN, 2))

    threads = [threading.Thread(target=ask, args=[study]) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trial.number for trial in found if trial is not None) == [0, 1]
    assert len(trial_rows(studies[0])) == 2


def test_fault_89_a_killed_trial_fails_and_is_run_once_more_from_its_checkpoint(tmp_path: Path) -> None:
    journal, folder = tmp_path / "j", tmp_path / "t"
    worker = start_worker(journal, folder, trials=3, epochs=9, pause=0.15)
    go(worker)
    wait_until(lambda: any(len(json.loads(f.read_text() or "[]")) >= 3 for f in folder.glob("*/history.json")))
    kill(worker)
    learners = []

    def build(settings, seed, folder) -> Any:
        learners.append(Fake(settings, seed, folder))
        return learners[-1]

    study = open_study(journal, "test")
    rows = tune(study, build, PLAN, epochs=9, minutes=1, trials=3, default=DEFAULT, folder=folder, startup=4)
    assert rows[0]["state"] == "continued" and rows[0]["reason"] == "the process was killed"
    assert learners[0].settings == {**{k: rows[0][k] for k in DEFAULT}, "loss": "ce"}
    assert learners[0].seed == rows[0]["seed"] and learners[0].trained[0] >= 4  # not from the beginning
    check_search(study, 3)


def test_an_epoch_whose_report_was_cut_off_is_not_missing(tmp_path: Path) -> None:
    class Cut(Fake):
        def fit(self, epochs: int, after_epoch: Any = None) -> Any:
            def report(row: Any) -> None:
                if row["epoch"] == 2:  # its checkpoint is written
                    self.history = []  # and the process is gone
                    raise KeyboardInterrupt
                after_epoch(row)

            return super().fit(epochs, report)

    study, folder = open_study(), tmp_path / "t"
    with pytest.raises(KeyboardInterrupt):
        tune(study, Cut, PLAN, trials=1, folder=folder, **SHORT)
    assert [row["epoch"] for row in epoch_rows(study)] == [1]
    rows = tune(study, Fake, PLAN, trials=1, folder=folder, **SHORT)
    assert [row["epoch"] for row in epoch_rows(study)] == [1, 2, 3] and rows[-1]["epochs"] == 3


def test_a_trial_that_is_killed_twice_is_not_run_a_third_time(tmp_path: Path) -> None:
    study = open_study(tmp_path / "j", "test")
    for _ in range(2):
        worker = start_worker(tmp_path / "j", tmp_path / "t", trials=1, epochs=9, pause=30)
        go(worker)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "trial\n"
        kill(worker)
    recover(study)
    recover(study)
    assert [row["state"] for row in trial_rows(study)] == ["continued", "failed"]
    assert not study.get_trials(states=[TrialState.WAITING])


def test_the_other_process_takes_over_a_killed_trial(tmp_path: Path) -> None:
    slow = start_worker(tmp_path / "j", tmp_path / "t", trials=6, epochs=3, pause=30)
    go(slow)
    assert slow.stdout is not None
    assert slow.stdout.readline() == "trial\n"
    kill(slow)
    other = start_worker(tmp_path / "j", tmp_path / "t", trials=6)
    go(other)
    other.communicate(timeout=60)
    rows = check_search(open_study(tmp_path / "j", "test"), 6)
    assert any(row["lr"] == DEFAULT["lr"] for row in rows)


def test_kills_at_any_moment_cost_no_finished_trial(tmp_path: Path) -> None:
    finished: set[tuple[int, float]] = set()
    for number in range(4):
        worker = start_worker(tmp_path / "j", tmp_path / "t", trials=24, pause=0.002)
        go(worker)
        time.sleep(0.05 + 0.15 * number)
        kill(worker)
        rows = trial_rows(open_study(tmp_path / "j", "test"))
        done = {(row["trial"], row["score"]) for row in rows if row["state"] in ("complete", "pruned")}
        assert finished <= done
        finished = done
    study = open_study(tmp_path / "j", "test")
    tune(study, Fake, PLAN, trials=24, default=DEFAULT, folder=tmp_path / "t", silence=0, **SHORT)
    rows = [row for row in trial_rows(study) if row["state"] != "continued"]
    assert len(rows) == 24
    for row in rows:
        assert row["state"] in ("complete", "pruned") or study.trials[row["trial"]].user_attrs["was_killed"]  # twice


def test_a_living_process_elsewhere_is_left_alone_until_it_is_silent_for_long() -> None:
    study = open_study()
    trial = study.ask(tuning.distributions(PLAN))
    trial.set_user_attr("owner", "another-machine 17 5")
    trial.set_user_attr("began", time.time() - 100)
    recover(study, silence=200)
    assert study.trials[0].state == TrialState.RUNNING
    trial.set_user_attr("epoch 1", {"epoch": 1, "seconds": 60.0, "val_mean_iou": 0.5})
    recover(study, silence=60)  # 40 seconds after its last epoch
    assert study.trials[0].state == TrialState.RUNNING
    recover(study, silence=30)
    assert [t.state.name for t in study.trials] == ["FAIL", "WAITING"]
    tuning._finish(study, trial, TrialState.COMPLETE, 0.5)  # it was only slow: too late, and no error
    assert [t.state.name for t in study.trials] == ["FAIL", "WAITING"]


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot be asked")
def test_a_process_that_was_not_there_any_more_has_ended() -> None:
    mine = processes.signature()
    assert processes.is_here(mine) and processes.is_mine(mine) and processes.has_ended(mine) is False
    host, pid, _ = mine.split(" ")
    assert processes.has_ended(f"{host} {pid} 1") is (Path("/proc/self/stat").exists())  # the number was given again
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    signed = processes.signature(child.pid)
    assert signed and processes.has_ended(signed) is False
    child.kill()
    wait_until(lambda: processes.has_ended(signed))  # dead, though nobody has asked for its exit status
    child.communicate()
    assert processes.has_ended(signed) is True


# ---- with the real learner ----


def test_the_learner_of_a_cut_trial_continues_from_its_checkpoint(tmp_path: Path, tiny_batch: Any) -> None:
    began: list[list[int]] = []

    def build(settings, seed, folder) -> Learner:
        set_seed(seed)
        model = UNet(1, 2, (4, 8), skip=settings["skip"])
        options: dict[str, Any] = {"lr": settings["lr"], "seed": seed, "device": "cpu", "precision": "float32"}
        return Learner(model, cross_entropy, [tiny_batch], [tiny_batch], folder=folder, verbose=False, **options)

    class Killed(BaseException):
        pass

    def killed_build(settings, seed, folder) -> Learner:
        learner = build(settings, seed, folder)
        original = learner.fit

        def fit(epochs: int, after_epoch: Any = None) -> Any:
            def cut(row: Any) -> None:
                after_epoch(row)
                if row["epoch"] == 2:
                    raise Killed

            return original(epochs, after_epoch=cut)

        learner.fit = fit  # type: ignore[method-assign]
        return learner

    def noted_build(settings, seed, folder) -> Learner:
        learner = build(settings, seed, folder)
        train = learner._train_epoch

        def noted(epoch: int, *rest: Any) -> Any:
            began[-1].append(epoch + 1)
            return train(epoch, *rest)

        began.append([])
        learner._train_epoch = noted  # type: ignore[method-assign]
        return learner

    study, folder = open_study(tmp_path / "j"), tmp_path / "t"
    with pytest.raises(Killed):
        tune(study, killed_build, PLAN, epochs=4, minutes=1, trials=1, folder=folder)
    rows = tune(study, noted_build, PLAN, epochs=4, minutes=1, trials=1, folder=folder)
    assert began == [[3, 4]]
    whole = tune(open_study(), build, PLAN, epochs=4, minutes=1, trials=1)
    assert rows[-1]["state"] == whole[0]["state"] == "complete"
    assert rows[-1]["score"] == whole[0]["score"]  # bit for bit as if it had not been cut
    assert not (folder / digest({**{k: whole[0][k] for k in DEFAULT}, "loss": "ce"}, whole[0]["seed"])).exists()
