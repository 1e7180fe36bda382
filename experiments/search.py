"""Search for good hyper-parameters: a plan as data, a range test for the learning rate, and trials that compete.

A *scientific* factor is one whose effect we want to know, a *nuisance* factor must be chosen well for every value of
the scientific ones, a *fixed* factor has one value (Godbole et al., 2023, "Deep Learning Tuning Playbook").
A *trial* is one training with its own values and seed: given ones, then random ones, then those of TPE (Bergstra et
al., 2011, NeurIPS 24).  After 1, 3, 9, … epochs the best third goes on (ASHA, Li et al., 2020, arXiv:1810.05934).
"""

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checks import InputError
from experiments.statistics import Row
from learner import Learner

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Optuna imports a progress bar that misses its widgets in a notebook
    import optuna
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from optuna.trial import TrialState

Settings = dict[str, Any]
Build = Callable[[Settings, int, Path | None], Learner]  # (settings, seed, folder) → a learner, not trained yet

FIRST_SEED = 1000  # trial n trains with seed FIRST_SEED + n; the seeds below are left for the confirmation
HEARTBEAT = 30  # seconds between two signs of life of a trial; after two missed ones it counts as killed
SCORE = "val_mean_iou"  # a trial has the best of its epochs, whose weights the learner keeps
ENDED = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class Factor:
    """One hyper-parameter: its name, its role, its values (or `log`: the ends of a logarithmic range), the reason."""

    name: str
    kind: str
    values: tuple[Any, ...]
    why: str = ""
    log: bool = False

    def __str__(self) -> str:
        return "{:g} … {:g}".format(*self.values) if self.log else ", ".join(map(str, self.values))

    def suggest(self, trial: optuna.Trial) -> Any:
        """The value of this factor in an Optuna trial."""
        if self.log:
            return trial.suggest_float(self.name, *self.values, log=True)
        return trial.suggest_categorical(self.name, self.values)


def searched(factors: Sequence[Factor]) -> list[Factor]:
    """The factors that are not fixed."""
    return [factor for factor in factors if factor.kind != "fixed"]


def with_fixed(factors: Sequence[Factor], chosen: Mapping[str, Any]) -> Settings:
    """The chosen values and those of the fixed factors, in the order of the plan."""
    return {f.name: chosen[f.name] if f.kind != "fixed" else f.values[0] for f in factors}


def range_test(learner: Learner, steps: int = 80, low: float = 1e-6, high: float = 1.0) -> list[Row]:
    """Train a copy of the network with AdamW at lr_t = low·(high / low)^(t / (steps − 1)) (Smith, arXiv:1506.01186).

    One row for each step, on one batch of the training, until the loss is not finite or three times what it was.
    """
    model, generator = copy.deepcopy(learner.model).train(), torch.Generator().manual_seed(learner.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=low, weight_decay=learner.weight_decay)
    torch.manual_seed(learner.seed)  # dropout
    rows: list[Row] = []
    for lr, batch in zip(np.geomspace(low, high, steps).tolist(), learner.train_loader):
        tensors = [tensor.to(learner.device) for tensor in batch]
        images, target, *maps = learner.augment(*tensors, generator=generator) if learner.augment else tensors
        loss = learner.loss(model(images), target, *maps)
        rows.append({"step": len(rows) + 1, "lr": lr, "train_loss": loss.item()})
        if not loss.item() <= 3 * rows[0]["train_loss"]:
            break
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rows


def smoothed(rows: Sequence[Row], width: int = 9) -> list[float]:
    """The median of the loss over `width` neighbouring steps (fewer at the ends), which a single batch cannot move."""
    losses = [row["train_loss"] for row in rows]
    return [float(np.median(losses[max(i - width // 2, 0) : i + width // 2 + 1])) for i in range(len(losses))]


def suggested_range(rows: Sequence[Row]) -> tuple[float, float]:
    """The learning rates where a tenth and nine tenths of the whole fall of the smoothed loss are made.

    Both are rounded outwards to one digit, and at least a factor of ten apart.  `InputError` if the loss never fell.
    """
    curve = np.array(smoothed(rows))
    start, lowest = curve[0], np.nanmin(curve)
    if not lowest < 0.98 * start:
        raise InputError(f"The loss did not fall in the range test: from {start:.3g} to {lowest:.3g} at best.")
    begins, ends = (int(np.argmax(curve <= start - share * (start - lowest))) for share in (0.1, 0.9))
    high = _rounded(rows[ends]["lr"], math.ceil)
    return _rounded(min(rows[begins]["lr"], high / 10), math.floor), high


def _rounded(value: float, towards: Callable[[float], int]) -> float:
    # to one significant digit; what is a hair off such a number is that number
    exponent = math.floor(math.log10(value) + 1e-9)
    return float(f"{towards(round(value / 10.0**exponent, 6))}e{exponent}")


def open_study(storage: Path, name: str) -> optuna.Study:
    """The study of this name in an SQLite file, new or as it was left."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # failures stand in the rows
    storage.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls the heartbeat experimental
        retry = RetryHeartbeatStaleTrialCallback(max_retry=1)
        kept = RDBStorage(f"sqlite:///{storage}", heartbeat_interval=HEARTBEAT, heartbeat_stale_trial_callback=retry)
    return optuna.create_study(storage=kept, study_name=name, direction="maximize", load_if_exists=True)


def note(study: optuna.Study, key: str, make: Callable[[], Any]) -> Any:
    """What the study knows under this key, made in the first run and read in all later ones."""
    if key not in study.user_attrs:
        study.set_user_attr(key, make())
    return study.user_attrs[key]


def tune(
    study: optuna.Study, build: Build, factors: Sequence[Factor], *, epochs: int, minutes: float,
    trials: int = 1_000_000, starts: Sequence[Settings] = (), seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Search until the minutes are over or all trials are done; return `trial_rows` of all so far.

    Minutes (of training) and trials of earlier calls count; a trial that runs at the end is pruned.
    `InputError` if the plan has changed.  A trial without a finite loss, or without memory, is recorded as failed.
    """
    new = {f.name: str(f) for f in factors} | {"epochs of a trial": str(epochs)}
    old = note(study, "plan", lambda: new)
    if changed := [f"{key}: {old.get(key)}, now {new.get(key)}" for key in old | new if old.get(key) != new.get(key)]:
        raise InputError(f"Study {study.study_name!r} was begun with another plan ({changed[0]}); give another name.")
    for start in starts:  # the first trials
        study.enqueue_trial(start, skip_if_exists=True)
    known = trial_rows(study)
    left = trials - sum(row["state"] in ENDED.values() for row in known)
    seconds = max(60 * minutes - sum(row["seconds"] for row in known), 0)
    deadline = time.monotonic() + seconds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental in Optuna 4; a search that goes on draws other numbers
        study.sampler = optuna.samplers.TPESampler(multivariate=True, seed=seed + len(known))
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    options: dict[str, Any] = {"catch": (FloatingPointError, MemoryError, torch.OutOfMemoryError)}  # others are bugs
    options |= {"n_trials": max(left, 0), "timeout": seconds, "gc_after_trial": True}
    study.optimize(lambda trial: _train(trial, build, factors, epochs, deadline), **options)
    return trial_rows(study)


def _train(trial: optuna.Trial, build: Build, factors: Sequence[Factor], epochs: int, deadline: float) -> float:
    seed, rows = FIRST_SEED + trial.number, list[Row]()
    trial.set_user_attr("seed", seed)
    trial.set_user_attr("epochs", rows)  # a trial that is run once more begins anew
    settings = with_fixed(factors, {factor.name: factor.suggest(trial) for factor in searched(factors)})

    def after_epoch(row: Mapping[str, Any]) -> None:
        epoch, value = int(row["epoch"]), float(row[SCORE])
        rows.append({"seconds": float(row["seconds"]), SCORE: value})
        trial.set_user_attr("epochs", rows)
        if not math.isfinite(value):
            raise FloatingPointError(f"{SCORE} is {value} after epoch {epoch}")
        trial.report(value, epoch)
        if epoch < epochs and (trial.should_prune() or time.monotonic() >= deadline):
            raise optuna.TrialPruned

    try:
        build(settings, seed, None).fit(epochs, after_epoch=after_epoch)
    except Exception as error:
        trial.set_user_attr("reason", f"{type(error).__name__}: {error}".partition("\n")[0])
        raise
    return max(row[SCORE] for row in rows)


def trial_rows(study: optuna.Study) -> list[Row]:
    """One row for each trial that has begun: number, state, score (of its best epoch), first_score, …, its values."""
    rows = []
    for trial in study.get_trials(deepcopy=False, states=(*ENDED, TrialState.RUNNING)):
        epochs = trial.user_attrs.get("epochs", [])
        scores = [row[SCORE] for row in epochs] or [math.nan]
        reason = trial.user_attrs.get("reason", "the process was killed") if trial.state == TrialState.FAIL else ""
        row = {"trial": trial.number, "state": ENDED.get(trial.state, "running"), "score": max(scores)}
        row |= {"first_score": scores[0], "epochs": len(epochs), "seconds": sum(row["seconds"] for row in epochs)}
        rows.append(row | {"seed": trial.user_attrs.get("seed", -1), "reason": reason} | trial.params)
    return rows


def best_trials(rows: Sequence[Row], number: int) -> list[Row]:
    """The complete trials of highest score, best first."""
    return sorted((row for row in rows if row["state"] == "complete"), key=lambda row: -row["score"])[:number]
