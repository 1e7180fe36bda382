"""The search: what its plan allows, which learning rates are worth it, what it finds, and what a kill or NaN costs."""

import copy
import math
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from torch import nn

from checks import InputError
from experiments import search
from learner import Learner
from tests import tuning_helpers
from tests.tuning_helpers import DEFAULT, PLAN, Fake, quality, start_worker

SHORT = {"epochs": 3, "minutes": 1.0}


def memory() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def rows_of(losses: list[float]) -> list[dict[str, float]]:
    """Nine steps for each loss, one loss for each decade of the learning rate from 1e-6 on."""
    return [{"lr": 10.0 ** (i - 6), "train_loss": loss} for i, loss in enumerate(losses) for _ in range(9)]


def learner_of(loss: Any = lambda output, target: (output - target).square().sum()) -> Learner:
    return Learner(nn.Linear(1, 1), loss, [(torch.ones(1), torch.zeros(1))] * 30, device="cpu", verbose=False)


def test_rates_rise_exponentially_and_the_model_stays_as_it_was() -> None:
    learner = learner_of()
    before = copy.deepcopy(learner.model.state_dict())
    rows = search.range_test(learner, steps=21, low=1e-4, high=1e-2)
    rates = [row["lr"] for row in rows]
    assert rates[0] == 1e-4 and math.isclose(rates[-1], 1e-2) and len(rows) == 21
    assert all(math.isclose(b / a, 10 ** (2 / 20)) for a, b in zip(rates, rates[1:]))
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())


@pytest.mark.parametrize("explosion", [1e3, math.nan, math.inf])
def test_the_range_test_ends_when_the_loss_explodes(explosion: float) -> None:
    losses = iter([1.0] * 12 + [explosion] * 9)
    assert len(search.range_test(learner_of(lambda output, target: output.sum() * 0 + next(losses)), steps=20)) == 13


def test_the_range_goes_from_the_first_tenth_of_the_fall_to_the_ninth() -> None:
    # the whole fall is 0.9: a tenth of it is 0.91, first met at 1e-3, nine tenths are 0.19, first met at 1e-2
    assert search.suggested_range(rows_of([1, 1, 0.95, 0.6, 0.15, 0.1, 3])) == (1e-3, 1e-2)
    assert search.suggested_range(rows_of([1, 1, 1, 1, 0.1, 3])) == (1e-3, 1e-2)  # at least a factor of ten
    rows = [row | {"lr": 3.3 * row["lr"]} for row in rows_of([1, 1, 0.95, 0.6, 0.1, 0.4, 3])]
    assert search.suggested_range(rows) == (3e-3, 4e-2)  # rounded outwards
    rows = rows_of([1, 1, 0.95, 0.6, 0.1, 0.4, 3])
    rows[12]["train_loss"] = 0.0  # a single lucky batch
    assert search.suggested_range(rows) == (1e-3, 1e-2) and search.smoothed(rows)[12] == 1
    with pytest.raises(InputError, match="did not fall"):
        search.suggested_range(rows_of([1, 1, 1.01, 2]))


def test_it_comes_close_to_the_optimum_and_records_everything() -> None:
    rows = search.tune(memory(), Fake, PLAN, trials=40, starts=[DEFAULT], **SHORT)
    assert len(rows) == 40 and {row["state"] for row in rows} == {"complete", "pruned"}
    assert {key: rows[0][key] for key in DEFAULT} == DEFAULT  # the default comes first
    best = search.best_trials(rows, 1)[0]
    assert quality(best) > 0.85 > quality(DEFAULT)
    for row in rows:
        assert row["seed"] == search.FIRST_SEED + row["trial"]
        assert row["epochs"] == 3 if row["state"] == "complete" else row["epochs"] in (1, 2)
        assert math.isclose(row["score"], Fake(row, 0, None).score(row["epochs"]))
    again = search.tune(memory(), Fake, PLAN, trials=12, starts=[DEFAULT], **SHORT)
    assert [(row["lr"], row["skip"]) for row in again] == [(row["lr"], row["skip"]) for row in rows[:12]]


def test_a_search_goes_on_where_it_stopped_and_the_number_of_trials_is_the_total(tmp_path: Path) -> None:
    for number in (3, 3, 7):
        rows = search.tune(
            search.open_study(tmp_path / "a.db", "tuning"), Fake, PLAN, trials=number, starts=[DEFAULT], **SHORT
        )
        assert len(rows) == number
    assert len({row["lr"] for row in rows}) == 7  # the later calls drew other values


def test_the_minutes_are_kept_and_those_of_earlier_calls_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(search, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(tuning_helpers, "time", SimpleNamespace(sleep=lambda s: clock.__setitem__(0, clock[0] + s)))

    study = memory()
    for seconds, trials, wanted in ((2, 1, [2]), (2, 5, [2]), (3, 2, [2, 1])):
        rows = search.tune(study, partial(Fake, pause=1.0), PLAN, epochs=4, minutes=seconds / 60, trials=trials)
        assert [row["epochs"] for row in rows] == wanted and {row["state"] for row in rows} == {"pruned"}


class Failing(Fake):  # every second trial fails in its second epoch
    error: Exception | None = None

    def score(self, epoch: int) -> float:
        if self.seed % 2 or epoch < 2:
            return super().score(epoch)
        if self.error is not None:
            raise self.error
        return math.nan


MEMORY = torch.OutOfMemoryError("CUDA out of memory.\nmore"), "OutOfMemoryError: CUDA out of memory."


@pytest.mark.parametrize("error, reason", [(None, "FloatingPointError: val_mean_iou is nan after epoch 2"), MEMORY])
def test_a_trial_with_nan_or_too_little_memory_fails_and_the_search_goes_on(error, reason, monkeypatch):
    monkeypatch.setattr(Failing, "error", error)
    rows = search.tune(memory(), Failing, PLAN, epochs=2, minutes=1, trials=12)
    failed = [row for row in rows if row["state"] == "failed"]
    assert len(rows) == 12 and failed and {row["reason"] for row in failed} == {reason}
    assert all(row["state"] in ("complete", "pruned") for row in rows if row["trial"] % 2)


def test_another_plan_under_the_same_name_is_refused(tmp_path: Path) -> None:
    search.tune(search.open_study(tmp_path / "a.db", "tuning"), Fake, PLAN, trials=2, **SHORT)
    wider = [search.Factor("lr", "nuisance", (1e-5, 1.0), log=True), *PLAN[1:]]
    with pytest.raises(InputError, match="lr: 0.0001 … 1, now 1e-05 … 1"):
        search.tune(search.open_study(tmp_path / "a.db", "tuning"), Fake, wider, trials=4, **SHORT)
    with pytest.raises(InputError, match="epochs of a trial: 3, now 4"):
        search.tune(search.open_study(tmp_path / "a.db", "tuning"), Fake, PLAN, trials=4, epochs=4, minutes=1)
    assert len(search.trial_rows(search.open_study(tmp_path / "a.db", "tuning"))) == 2
    assert len(search.tune(search.open_study(tmp_path / "a.db", "another name"), Fake, wider, trials=2, **SHORT)) == 2


def test_the_trial_of_a_killed_process_fails_and_is_run_once_more(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "HEARTBEAT", 1)
    worker = start_worker(tmp_path / "a.db", trials=3, pause=30)
    assert worker.stdout is not None and worker.stdout.readline() == "trial\n"
    time.sleep(2)  # it has shown that it lives
    worker.kill()
    worker.communicate()
    time.sleep(3.1)  # two heartbeats are missing
    study = search.open_study(tmp_path / "a.db", "test")
    rows = search.tune(study, Fake, PLAN, trials=3, starts=[DEFAULT], **SHORT)
    assert (rows[0]["state"], rows[0]["reason"], rows[0]["epochs"]) == ("failed", "the process was killed", 0)
    retried = [row for row in rows[1:] if row["lr"] == DEFAULT["lr"]]
    assert len(retried) == 1 and retried[0]["state"] == "complete" and retried[0]["epochs"] == 3
