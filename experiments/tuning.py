"""Search for good hyper-parameters within a number of minutes, in as many processes as there are, whatever is killed.

A *trial* is one training run with its own values and its own seed.  The first trial has the default values; the next
ones follow a quasi-random sequence; then TPE proposes values that resemble the better trials.  After each epoch of a
rung (1, 3, 9, …) only the best third of all trials that came so far goes on: successive halving.  A search is kept by
Optuna in a journal file or a database, and every process that opens it takes part.

What can go wrong, and what then happens:

- A trial fails (the loss is not finite, the memory is full, any error): it is recorded with its reason, and skipped.
- A process is killed: its trial counts as failed and is queued once more, with the same seed and the same folder, so
  that the learner continues from its checkpoint.  The other processes see that, or the next one that starts.
- The time is over: the trial is set aside in the same way and goes on with the next call.

Sources: TPE, Bergstra et al., 2011 (NeurIPS 24); successive halving without waiting (ASHA), Li et al., 2020
(arXiv:1810.05934); Optuna, Akiba et al., 2019 (arXiv:1907.10902).
"""

from __future__ import annotations

import contextlib
import gc
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checks import InputError
from experiments import processes
from experiments.search_space import Factor, LogRange, Settings, digest, quasi_random, searched, spelled, with_fixed
from experiments.tuning_journal import open_storage
from experiments.tuning_tables import PAUSED, SURPLUS, counted, recorded_epochs, trial_rows

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Optuna imports a progress bar that misses its widgets in a notebook
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:  # whoever builds a learner imports it anyway
    from learner import Learner

Row = dict[str, Any]
Build = Callable[[Settings, int, "Path | None"], "Learner"]  # (settings, seed, folder) → a learner, not trained yet

FIRST_SEED = 1000  # trial n trains with seed FIRST_SEED + n; the seeds below are left for the confirmation
REDUCTION = 3  # one of so many trials is promoted to the next rung
FAILURES = 10  # so many in a row are no accident
SILENCE = 3600.0  # seconds without an epoch after which a process on another machine is taken for dead
COLUMNS = ("epoch", "lr", "train_loss", "val_loss", "seconds")  # kept of each epoch, beside the score


# ---- the study and where it is kept ---------------------------------------------------------------------------------


def open_study(storage: str | Path | None = None, name: str = "tuning") -> optuna.Study:
    """The study of this name, new or as it was left; its score is to be maximised.

    Args:
        storage: None keeps it in memory.  A path is a journal file, for processes of one machine.  An address like
            "postgresql://user:password@host/database" is a database, for several machines.

    Raises:
        InputError: if the database cannot be reached, its driver is not installed, or the journal is damaged.

    >>> study = open_study()
    >>> len(study.trials), study.direction.name
    (0, 'MAXIMIZE')
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        storage=open_storage(storage), study_name=name, direction="maximize", load_if_exists=True
    )


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


def _check_space(study: optuna.Study, factors: Sequence[Factor], epochs: int) -> None:
    """Raise `InputError` if the study was begun with another plan: its trials would not be comparable."""
    space = spelled(factors) | {"epochs of a trial": str(epochs)}
    known = note(study, "plan", lambda: space)
    if changed := [name for name in {**known, **space} if known.get(name) != space.get(name)]:
        name = changed[0]
        raise InputError(
            f"The study {study.study_name!r} was begun with another plan; entries that differ: {len(changed)}.\n"
            f"{name}: found {known.get(name, 'nothing')}, now {space.get(name, 'nothing')}.\n"
            "Give the new plan another study name or storage, or go back to the old plan."
        )


def distributions(factors: Sequence[Factor]) -> dict[str, BaseDistribution]:
    """The searched factors in Optuna's words."""
    found: dict[str, BaseDistribution] = {}
    for f in searched(factors):
        if isinstance(f.values, LogRange):
            found[f.name] = FloatDistribution(f.values.low, f.values.high, log=True)
        else:
            found[f.name] = CategoricalDistribution(f.values)
    return found


class _Sampler(optuna.samplers.BaseSampler):
    """Quasi-random values until `startup` trials are done, then TPE; all draws follow from (seed, trial number).

    So a search that was cut off goes on as it would have gone on, and two processes never draw the same numbers.
    """

    def __init__(self, factors: Sequence[Factor], seed: int, startup: int) -> None:
        self.factors, self.seed, self.startup = factors, seed, startup

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self.factors)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        if len(done) < self.startup:
            return quasi_random(self.factors, trial.number, self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in Optuna 4 both options are called experimental
            # constant_liar: a place where another process is trying something is not proposed again
            seed = (self.seed * 100_003 + trial.number) % 2**32
            tpe = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, n_startup_trials=1, seed=seed)
        return tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return quasi_random(self.factors, trial.number, self.seed)[param_name]


# ---- the search -----------------------------------------------------------------------------------------------------


def tune(
    study: optuna.Study,
    build: Build,
    factors: Sequence[Factor],
    *,
    epochs: int,
    minutes: float,
    trials: int = 1_000_000,
    default: Settings | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    startup: int = 10,
    score: str = "val_mean_iou",
    silence: float = SILENCE,
) -> list[Row]:
    """Take part in the search until the minutes are over or all trials are done.

    Args:
        study: from `open_study`.
        build: makes the learner of a trial from its settings (those of the plan), seed and folder.
        factors: the plan.
        epochs: of a trial that nothing stops.
        minutes: for this machine, what its finished runs have used already included.
        trials: how many trials are wanted in all, over all processes and all calls; retries do not count.
        default: values of the searched factors for the first trial.
        folder: where learners keep their checkpoints, each trial in a folder of its own, until it has ended.
        seed: of the quasi-random sequence and of TPE.
        startup: trials before TPE begins.
        score: the column of the learner's history to maximise; a trial has the best of its epochs, whose weights the
            learner keeps.
        silence: seconds after which a trial of another machine that finished no epoch is taken for dead.

    Returns: `trial_rows` of all trials so far.

    Raises:
        InputError: if the study was begun with another plan, or ten trials in a row fail.
    """
    if default is not None:
        with_fixed(factors, default)
    _check_space(study, factors, epochs)
    study.sampler = _Sampler(factors, seed, startup)
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
    if default is not None:
        _queue(study, "default", default, {})
    deadline = time.monotonic() + 60 * minutes - _seconds_used_here(study)
    runner = _Runner(build, factors, epochs, score, Path(folder) if folder is not None else None, deadline)
    while (began := time.monotonic()) < deadline:
        recover(study, silence)
        trial = _next_trial(study, factors, trials)
        if trial is None:
            break
        runner.run(study, trial, began)
    return trial_rows(study, score)


def _queue(study: optuna.Study, key: str, values: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Queue a trial with these values, unless one of the same key is there."""
    if key not in [trial.user_attrs.get("key") for trial in study.get_trials(deepcopy=False)]:
        study.enqueue_trial(dict(values), user_attrs={**attributes, "key": key})


def _next_trial(study: optuna.Study, factors: Sequence[Factor], wanted: int) -> optuna.Trial | None:
    """A trial of our own; None if all that are wanted are done or taken.

    Two processes may ask at the same moment for the last one, or queue the same one.  The storage gives them different
    numbers, and the lower number has it; the other trial is marked and never shown.
    """
    while True:
        known = study.get_trials(deepcopy=False)
        if len(counted(known)) >= wanted and not any(t.state == TrialState.WAITING for t in known):
            return None
        trial = study.ask(distributions(factors))
        trial.set_user_attr("owner", processes.signature())
        trial.set_user_attr("began", time.time())
        known, key = study.get_trials(deepcopy=False), trial.user_attrs.get("key")
        twin = key is not None and key in [t.user_attrs.get("key") for t in known[: trial.number]]
        if not twin and sum(t.number < trial.number for t in counted(known)) < wanted:
            return trial
        _finish(study, trial, TrialState.FAIL, end=SURPLUS)


class _Runner:
    """Runs trials one by one and writes down what comes of them."""

    def __init__(
        self, build: Build, factors: Sequence[Factor], epochs: int, score: str, folder: Path | None, deadline: float
    ) -> None:
        self.build, self.factors, self.epochs, self.score = build, factors, epochs, score
        self.folder, self.deadline, self.failures = folder, deadline, 0

    def run(self, study: optuna.Study, trial: optuna.Trial, began: float) -> None:
        """Train, report each epoch, and finish the trial, which began at this time, in one of its states."""
        settings = with_fixed(self.factors, trial.params)
        seed = trial.user_attrs.get("seed", FIRST_SEED + trial.number)
        trial.set_user_attr("seed", seed)
        folder = None
        if self.folder is not None:  # named after the parameters, so that a retry finds it
            folder = self.folder / digest(settings, seed)
        value, state, end = None, TrialState.FAIL, ""
        for row in recorded_epochs(trial):  # of the run that was cut off
            trial.report(row[self.score], row["epoch"])
            trial.should_prune()  # enters the rungs that were passed
        try:
            value = self._train(trial, self.build(settings, seed, folder))
            state = TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except _OutOfTime:
            end = PAUSED
        except Exception as error:
            end = _reason(error)
        except BaseException:  # the student pressed stop
            _finish(study, trial, TrialState.FAIL, end=PAUSED, seconds=time.monotonic() - began)
            raise
        _finish(study, trial, state, value, end, seconds=time.monotonic() - began)
        if folder is not None and end != PAUSED:
            shutil.rmtree(folder, ignore_errors=True)
        self._count_failures(state, end)

    def _train(self, trial: optuna.Trial, learner: Learner) -> float:
        def after_epoch(row: Mapping[str, Any]) -> None:
            epoch, value = int(row["epoch"]), float(row[self.score])
            _record(trial, row, self.score)
            if not math.isfinite(value):
                raise FloatingPointError(f"{self.score} is {value} after epoch {epoch}")
            trial.report(value, epoch)
            if epoch < self.epochs and trial.should_prune():
                raise optuna.TrialPruned
            if epoch < self.epochs and time.monotonic() >= self.deadline:
                raise _OutOfTime

        try:
            learner.fit(self.epochs, after_epoch=after_epoch)
        finally:  # a kill may have come between a checkpoint and its report
            known = {row["epoch"] for row in recorded_epochs(trial)}
            for row in learner.history:
                if int(row["epoch"]) not in known:
                    _record(trial, row, self.score)
        scores = [float(row[self.score]) for row in learner.history]
        if not all(map(math.isfinite, scores)):  # a kill came between a checkpoint and the look at its epoch
            raise FloatingPointError(f"{self.score} is not finite in one of the epochs: {scores}")
        return max(scores)

    def _count_failures(self, state: TrialState, end: str) -> None:
        self.failures = self.failures + 1 if state == TrialState.FAIL and end != PAUSED else 0
        if end.startswith("out of memory"):
            import torch

            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if self.failures >= FAILURES:
            raise InputError(
                f"tune: {FAILURES} trials in a row have failed, the last one with this:\n{end}\n"
                "All are recorded. If the plan itself is the reason, change it and give the study another name."
            )


class _OutOfTime(Exception):
    """The minutes are over; the trial goes on with the next call."""


def _record(trial: optuna.Trial, row: Mapping[str, Any], score: str) -> None:
    kept = {name: float(row[name]) for name in (*COLUMNS, score) if name in row}
    trial.set_user_attr(f"epoch {int(row['epoch'])}", kept | {"epoch": int(row["epoch"])})


def _reason(error: Exception) -> str:
    """Why a trial failed, in one line."""
    text = f"{type(error).__name__}: {error}".partition("\n")[0]
    full = isinstance(error, MemoryError) or any(s in str(error) for s in ("out of memory", "can't allocate memory"))
    return (
        f"out of memory: {text}" if full else f"not finite: {text}" if isinstance(error, FloatingPointError) else text
    )


def _finish(
    study: optuna.Study,
    trial: optuna.Trial,
    state: TrialState,
    value: float | None = None,
    end: str = "",
    seconds: float | None = None,
) -> None:
    """Tell the study how a trial has ended, unless another process has declared it dead meanwhile."""
    try:
        if seconds is not None:
            trial.set_user_attr("wall_seconds", seconds)
        if end:
            trial.set_user_attr("end", end)
        study.tell(trial.number, value, state=state)
    except (ValueError, RuntimeError):
        if not study.get_trials(deepcopy=False)[trial.number].state.is_finished():
            raise


# ---- after a kill ---------------------------------------------------------------------------------------------------


def recover(study: optuna.Study, silence: float = SILENCE) -> None:
    """Let trials of dead processes fail, and queue what was cut off once more: killed trials once, paused ones always.

    A trial is dead if its process on this machine has ended, or if a process elsewhere has finished no epoch for
    `silence` seconds.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_dead(trial, silence):
            with contextlib.suppress(ValueError, RuntimeError):  # another process was faster
                study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    for trial in counted(trials):
        attributes = dict(trial.user_attrs)
        killed = trial.state == TrialState.FAIL and not attributes.get("end") and not attributes.get("was_killed")
        if killed or (trial.state == TrialState.FAIL and attributes.get("end") == PAUSED):
            kept = {key: value for key, value in attributes.items() if key.startswith("epoch ")}
            kept["inherited"] = len(kept)
            kept |= {"seed": attributes.get("seed", FIRST_SEED + trial.number), "goes_on_from": trial.number}
            kept |= {"was_killed": bool(killed or attributes.get("was_killed"))}
            _queue(study, f"goes on from {trial.number}", trial.params, kept)


def _is_dead(trial: FrozenTrial, silence: float) -> bool:
    owner, began = trial.user_attrs.get("owner", ""), trial.user_attrs.get("began", 0.0)
    if not owner:  # killed in the moment between asking and signing
        began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return time.time() - began > min(60.0, silence)
    if (ended := processes.has_ended(owner)) is not None:
        return ended or processes.is_mine(owner)  # this process runs one trial at a time, and now none
    seen = began + sum(row["seconds"] for row in recorded_epochs(trial))
    return time.time() - seen > silence


def _seconds_used_here(study: optuna.Study) -> float:
    """Seconds that trials of this machine took in processes that have ended, and in earlier calls of this one."""
    total = 0.0
    for trial in study.get_trials(deepcopy=False):
        owner = trial.user_attrs.get("owner", "")
        if processes.is_here(owner) and (processes.is_mine(owner) or processes.has_ended(owner)):
            epochs = recorded_epochs(trial)[trial.user_attrs.get("inherited", 0) :]
            total += trial.user_attrs.get("wall_seconds", sum(row["seconds"] for row in epochs))
    return total
