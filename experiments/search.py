"""Search for good hyper-parameters: a plan as data, a range test for the learning rate, and trials that compete.

A *scientific* factor is one whose effect we want to know.  A *nuisance* factor must be chosen well for every value of
the scientific ones, or their comparison is not fair.  A *fixed* factor has one value, and the results hold for this
value alone.  The table in the report and the search read the same list, so they cannot differ.

A *trial* is one training with its own values and its own seed.  The first trial has the default values, the next ones
are random, then TPE proposes values that resemble the better trials.  After 1, 3, 9, … epochs only the best third of
all trials that came so far goes on: successive halving.  Optuna keeps the search in a database, and every process that
opens it takes part.  A trial that fails is recorded with its reason; one whose process was killed is run once more.

Sources: the three roles, Godbole et al., 2023, "Deep Learning Tuning Playbook"; range test, Smith, 2017
(arXiv:1506.01186), section 3.3; TPE, Bergstra et al., 2011 (NeurIPS 24); successive halving without waiting (ASHA),
Li et al., 2020 (arXiv:1810.05934); Optuna, Akiba et al., 2019 (arXiv:1907.10902).
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import plots
from checks import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Optuna imports a progress bar that misses its widgets in a notebook
    import optuna
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from optuna.trial import TrialState

if TYPE_CHECKING:  # whoever builds a learner imports it anyway
    from learner import Learner

Row = dict[str, Any]
Settings = dict[str, Any]
Build = Callable[[Settings, int, "Path | None"], "Learner"]  # (settings, seed, folder) → a learner, not trained yet

KINDS = ("scientific", "nuisance", "fixed")
FIRST_SEED = 1000  # trial n trains with seed FIRST_SEED + n; the seeds below are left for the confirmation
REDUCTION = 3  # one of so many trials goes on at each rung
CATCH = (FloatingPointError, MemoryError, torch.OutOfMemoryError)  # what values can cause; any other error is a bug
HEARTBEAT = 30  # seconds between two signs of life of a trial; after two missed ones it counts as killed
COLUMNS = ("epoch", "lr", "train_loss", "val_loss", "seconds")  # kept of each epoch, beside the score


# ---- the plan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogRange:
    """All numbers from `low` to `high`; equal ratios are equally likely.

    >>> 0.01 in LogRange(0.001, 0.1), str(LogRange(0.001, 0.1))
    (True, '0.001 … 0.1')
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise InputError(f"LogRange: {self.low} … {self.high}; expected 0 < low < high.")

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g}"


@dataclass(frozen=True)
class Factor:
    """One hyper-parameter: its name, its role, its values (a tuple of them or a `LogRange`), and the reason.

    >>> Factor("batch", "nuisance", (8, 16), "noise of the gradient").spelled()
    '8, 16'
    """

    name: str
    kind: str
    values: tuple[Any, ...] | LogRange
    why: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"Factor {self.name}: kind={self.kind!r}; choose one of {', '.join(KINDS)}.")
        distinct = 2 if isinstance(self.values, LogRange) else len(set(self.values))
        repeated = isinstance(self.values, tuple) and distinct < len(self.values)
        if repeated or distinct == 0 or (distinct == 1) != (self.kind == "fixed"):
            raise InputError(
                f"Factor {self.name} is {self.kind} and has the values {self.values}.\n"
                "A fixed factor has one value, any other has two or more, all different."
            )

    def spelled(self) -> str:
        """The values as a text; two factors with the same text are searched alike."""
        return str(self.values) if isinstance(self.values, LogRange) else ", ".join(map(str, self.values))

    def suggest(self, trial: optuna.Trial) -> Any:
        """The value of this factor in an Optuna trial."""
        if isinstance(self.values, LogRange):
            return trial.suggest_float(self.name, self.values.low, self.values.high, log=True)
        return trial.suggest_categorical(self.name, self.values)


def searched(factors: Sequence[Factor]) -> list[Factor]:
    """The factors that are not fixed."""
    return [factor for factor in factors if factor.kind != "fixed"]


def with_fixed(factors: Sequence[Factor], chosen: Mapping[str, Any]) -> Settings:
    """The chosen values and those of the fixed factors, in the order of the plan.

    Raises `InputError` unless every searched factor has one of its values.

    >>> plan = [Factor("lr", "nuisance", LogRange(0.001, 0.1)), Factor("epochs", "fixed", (9,))]
    >>> with_fixed(plan, {"lr": 0.01})
    {'lr': 0.01, 'epochs': 9}
    """
    names = [factor.name for factor in searched(factors)]
    if wrong := sorted(set(names) ^ set(chosen)):
        raise InputError(f"Settings: missing or not in the plan: {', '.join(wrong)}. Expected just {', '.join(names)}.")
    for factor in searched(factors):
        if chosen[factor.name] not in factor.values:
            raise InputError(
                f"Settings: {factor.name}={chosen[factor.name]!r} is outside of the plan.\n"
                f"Expected one of {factor.spelled()}; or change the plan before the search."
            )
    return {f.name: chosen[f.name] if f.kind != "fixed" else f.values[0] for f in factors}  # type: ignore[index]


def spelled(factors: Sequence[Factor]) -> dict[str, str]:
    """Every factor with its values as text: what must be the same for a search to be continued."""
    return {factor.name: factor.spelled() for factor in factors}


def plan_table(factors: Sequence[Factor]) -> plots.Table:
    """The plan as a table, in the order scientific, nuisance, fixed."""
    rows = sorted(factors, key=lambda factor: KINDS.index(factor.kind))
    return plots.table([(f.name, f.kind, f.spelled(), f.why) for f in rows], ("factor", "role", "values", "why"))


# ---- the range of learning rates ------------------------------------------------------------------------------------


def range_test(
    model: nn.Module, loss: Callable[..., Tensor], loader: Any, *, augment: Any = None, low: float = 1e-6,
    high: float = 1.0, steps: int = 80, weight_decay: float = 1e-4, seed: int = 0,
    device: torch.device | str | None = None,
) -> list[Row]:  # fmt: skip
    """Train a copy of `model` with AdamW for `steps` steps at lr_t = low·(high / low)^(t / (steps − 1)).

    Far too small a rate leaves the loss where it is, a good one makes it fall, too large a one makes it rise.  The test
    ends early once the loss is not finite or three times what it was at the beginning.

    Returns: one row for each step with step, lr and train_loss, the loss before the step is made.

    >>> data = [(torch.ones(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64))]
    >>> rows = range_test(nn.Conv2d(1, 2, 1), nn.functional.cross_entropy, data, low=0.001, high=0.1, steps=11)
    >>> [round(row["lr"], 4) for row in rows[::5]]
    [0.001, 0.01, 0.1]
    """
    device = device if device is not None else next(model.parameters()).device
    model = copy.deepcopy(model).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=low, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    rows: list[Row] = []
    for step, batch in zip(range(steps), _endless(loader)):
        lr = low * (high / low) ** (step / (steps - 1))
        tensors = [tensor.to(device) for tensor in batch]
        images, target, *maps = augment(*tensors, generator=generator) if augment is not None else tensors
        value = loss(model(images), target, *maps)
        rows.append({"step": step + 1, "lr": lr, "train_loss": float(value.detach())})
        if not math.isfinite(rows[-1]["train_loss"]) or rows[-1]["train_loss"] > 3 * rows[0]["train_loss"]:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
    return rows


def _endless(loader: Any) -> Iterator[Sequence[Tensor]]:
    """The batches of one epoch after the other, each epoch in its own order."""
    epoch = 0
    while len(loader):
        if hasattr(getattr(loader, "batch_sampler", None), "set_epoch"):
            loader.batch_sampler.set_epoch(epoch)
        yield from loader
        epoch += 1
    raise InputError("range_test: the loader has no batch; give one with training images.")


def smoothed(rows: Sequence[Row], width: int = 9) -> list[float]:
    """The median of the loss over `width` neighbouring steps (fewer at the ends), which a single batch cannot move.

    >>> smoothed([{"train_loss": loss} for loss in (1.0, 9.0, 2.0, 3.0)], width=3)
    [5.0, 2.0, 3.0, 2.5]
    """
    losses, half = [row["train_loss"] for row in rows], width // 2
    return [float(np.median(losses[max(i - half, 0) : i + half + 1])) for i in range(len(losses))]


def suggested_range(rows: Sequence[Row]) -> tuple[float, float]:
    """The learning rates worth a search: from where the loss begins to fall to where it falls no more.

    That is: where a tenth and nine tenths of the whole fall of the smoothed loss are made.  Both ends are rounded
    outwards to one significant digit, and the range spans at least a factor of ten.

    Raises `InputError` if the loss never fell.

    >>> rows = [{"lr": 10.0**e, "train_loss": loss} for e, loss in zip(range(-6, 1), (1, 1, 1, 0.5, 0.1, 0.3, 3.0))]
    >>> suggested_range([row for row in rows for _ in range(9)])
    (0.001, 0.01)
    """
    curve = np.array(smoothed(rows))
    start, lowest = curve[0], np.nanmin(curve)
    if not lowest < 0.98 * start:
        raise InputError(
            f"The loss did not fall in the range test: {start:.3g} at the beginning, {lowest:.3g} at the best.\n"
            "Test more steps or larger rates (high=…), and look whether images and labels belong together."
        )
    begins, ends = (int(np.argmax(curve <= start - share * (start - lowest))) for share in (0.1, 0.9))
    high = _rounded(rows[ends]["lr"], math.ceil)
    low = _rounded(min(rows[begins]["lr"], high / 10), math.floor)
    return low, high


def _rounded(value: float, towards: Callable[[float], int]) -> float:
    """One significant digit, rounded down or up; what is a hair off such a number is that number."""
    exponent = math.floor(math.log10(value) + 1e-9)
    return float(f"{towards(round(value / 10.0**exponent, 6))}e{exponent}")


# ---- the study and its trials ---------------------------------------------------------------------------------------


def open_study(storage: str | Path | None = None, name: str = "tuning") -> optuna.Study:
    """The study of this name, new or as it was left; its score is to be maximised.

    Args:
        storage: None keeps it in memory.  A path is an SQLite file, for processes of one machine.  An address like
            "postgresql+psycopg://user:password@host/database" is a database, for several machines.

    Raises:
        InputError: if the database cannot be reached or read, or its driver is not installed.

    >>> study = open_study()
    >>> len(study.trials), study.direction.name
    (0, 'MAXIMIZE')
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # failures stand in the rows
    try:
        kept = _database(str(storage)) if storage is not None else None
        return optuna.create_study(storage=kept, study_name=name, direction="maximize", load_if_exists=True)
    except Exception as error:  # of SQLAlchemy or of a driver; the address may hold a password, so it is not shown
        reason = str(getattr(error, "orig", None) or error.__cause__ or error).strip().partition("\n")[0]
        raise InputError(
            f"The storage of the study {name!r} cannot be used: {reason.rstrip('.')}.\n"
            "Check its address, that the database runs, and that its driver is installed; or give a new file."
        ) from error


def _database(address: str) -> RDBStorage:
    """Optuna's database, in which a trial without a sign of life fails and is queued once more."""
    options: dict[str, Any] = {"pool_pre_ping": True}  # a trial may outlast the server's patience with a connection
    if "://" not in address:
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        address, options = f"sqlite:///{address}", {"connect_args": {"timeout": 60}}  # while another process writes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls the heartbeat experimental
        return RDBStorage(
            address, engine_kwargs=options, heartbeat_interval=HEARTBEAT,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=1),
        )  # fmt: skip


def note(study: optuna.Study, key: str, make: Callable[[], Any]) -> Any:
    """What the study knows under this key; the first process makes it, all others and all later runs read it.

    >>> study = open_study()
    >>> note(study, "range", lambda: [0.001, 0.1]), note(study, "range", lambda: [0.5, 0.6])
    ([0.001, 0.1], [0.001, 0.1])
    """
    if key not in study.user_attrs:
        value = make()
        if key not in study.user_attrs:  # another process may have been faster
            study.set_user_attr(key, value)
    return study.user_attrs[key]


def tune(
    study: optuna.Study, build: Build, factors: Sequence[Factor], *, epochs: int, minutes: float,
    trials: int = 1_000_000, default: Settings | None = None, seed: int | None = 0, startup: int = 10,
    score: str = "val_mean_iou",
) -> list[Row]:  # fmt: skip
    """Take part in the search until the minutes are over or all trials are done.

    Args:
        study: from `open_study`.
        build: makes the learner of a trial from its settings (those of the plan) and its seed; the folder is None.
        factors: the plan.
        epochs: of a trial that nothing stops.
        minutes: of training; those of earlier calls count.  The trial that runs at their end is pruned.
        trials: how many are wanted in all, over all processes and all calls.
        default: values of the searched factors for the first trial.
        seed: of the proposals; None for a process that joins others, so that each proposes its own.
        startup: random trials before TPE begins.
        score: the column of the learner's history to maximise; a trial has the best of its epochs, whose weights the
            learner keeps.

    Returns: `trial_rows` of all trials so far.

    Raises:
        InputError: if the study was begun with another plan.  A trial whose loss is not finite, or that needs more
            memory than there is, fails and is recorded; any other error of `build` or `fit` is raised.
    """
    _check_plan(study, factors, epochs)
    if default is not None:
        with_fixed(factors, default)
        study.enqueue_trial(default, skip_if_exists=True)
    known = trial_rows(study, score)
    seconds = 60 * minutes - sum(row["seconds"] for row in known)
    left = trials - sum(row["state"] in ("complete", "pruned", "failed") for row in known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna 4 calls two of the options experimental
        study.sampler = optuna.samplers.TPESampler(  # constant_liar: what another process tries is not proposed again
            n_startup_trials=startup, multivariate=True, constant_liar=True,
            seed=None if seed is None else seed + len(known),  # a search that goes on draws other numbers
        )  # fmt: skip
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
    ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    study.optimize(
        _objective(build, factors, epochs, score, deadline=time.monotonic() + seconds),
        n_trials=max(left, 0), timeout=max(seconds, 0), catch=CATCH,
        gc_after_trial=torch.cuda.is_available(),  # the memory of a learner is free before the next one
        callbacks=[optuna.study.MaxTrialsCallback(trials, states=ended)],
    )  # fmt: skip
    return trial_rows(study, score)


def _check_plan(study: optuna.Study, factors: Sequence[Factor], epochs: int) -> None:
    """Raise `InputError` if the study was begun with another plan: its trials would not be comparable."""
    plan = spelled(factors) | {"epochs of a trial": str(epochs)}
    known = note(study, "plan", lambda: plan)
    if changed := [name for name in {**known, **plan} if known.get(name) != plan.get(name)]:
        name = changed[0]
        raise InputError(
            f"The study {study.study_name!r} was begun with another plan; entries that differ: {len(changed)}.\n"
            f"{name}: found {known.get(name, 'nothing')}, now {plan.get(name, 'nothing')}.\n"
            "Give the new plan another study name or storage, or go back to the old plan."
        )


def _objective(
    build: Build, factors: Sequence[Factor], epochs: int, score: str, deadline: float
) -> Callable[[optuna.Trial], float]:
    """The training of one trial, as Optuna wants it: its score comes back, its epochs are kept with it."""

    def train(trial: optuna.Trial) -> float:
        seed, rows = FIRST_SEED + trial.number, list[Row]()
        trial.set_user_attr("seed", seed)
        trial.set_user_attr("epochs", rows)  # a trial that is run once more begins anew
        settings = with_fixed(factors, {factor.name: factor.suggest(trial) for factor in searched(factors)})

        def after_epoch(row: Mapping[str, Any]) -> None:
            epoch, value = int(row["epoch"]), float(row[score])
            rows.append({name: float(row[name]) for name in (*COLUMNS, score) if name in row} | {"epoch": epoch})
            trial.set_user_attr("epochs", rows)
            if not math.isfinite(value):
                raise FloatingPointError(f"{score} is {value} after epoch {epoch}")
            trial.report(value, epoch)
            if epoch < epochs and (trial.should_prune() or time.monotonic() >= deadline):
                raise optuna.TrialPruned

        try:
            build(settings, seed, None).fit(epochs, after_epoch=after_epoch)
        except optuna.TrialPruned:
            raise
        except Exception as error:
            trial.set_user_attr("reason", f"{type(error).__name__}: {error}".partition("\n")[0])
            raise
        return max(row[score] for row in rows)

    return train


# ---- what was found -------------------------------------------------------------------------------------------------

_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


def trial_rows(study: optuna.Study, score: str = "val_mean_iou") -> list[Row]:
    """One row for each trial of a study that has begun.

    Columns: trial, state (complete, pruned, failed, running), score (the best of its epochs, nan without any),
    first_score (after its first epoch), epochs, seconds (of training), seed, reason (of a failure), and the values.
    """
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.WAITING:
            continue
        epochs = trial.user_attrs.get("epochs", [])
        scores = [row[score] for row in epochs] or [math.nan]
        reason = trial.user_attrs.get("reason", "the process was killed") if trial.state == TrialState.FAIL else ""
        row = {"trial": trial.number, "state": _STATES[trial.state.name], "score": max(scores)}
        row |= {"first_score": scores[0], "epochs": len(epochs), "seconds": sum(row["seconds"] for row in epochs)}
        rows.append(row | {"seed": trial.user_attrs.get("seed", -1), "reason": reason} | trial.params)
    return rows


def epoch_rows(study: optuna.Study) -> list[Row]:
    """One row for each epoch of each trial."""
    return [
        {"trial": t.number} | row for t in study.get_trials(deepcopy=False) for row in t.user_attrs.get("epochs", [])
    ]


def best_trials(rows: Sequence[Row], number: int) -> list[Row]:
    """The complete trials of highest score, best first.

    >>> rows = [{"state": "complete", "score": s} for s in (0.1, 0.3, 0.2)] + [{"state": "pruned", "score": 0.9}]
    >>> [row["score"] for row in best_trials(rows, 2)]
    [0.3, 0.2]
    """
    return sorted((row for row in rows if row["state"] == "complete"), key=lambda row: -row["score"])[:number]


def best_so_far(rows: Sequence[Row]) -> list[float]:
    """After each trial, in their order: the highest score of a complete one; nan before the first.

    >>> best_so_far([{"state": "complete", "score": 0.2}, {"state": "pruned", "score": 0.9}])
    [0.2, 0.2]
    """
    scores = [row["score"] if row["state"] == "complete" else math.nan for row in rows]
    return [float(value) for value in np.fmax.accumulate(scores)] if scores else []
