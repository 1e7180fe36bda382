"""Train several small networks at the same time on a CPU, each on a core of its own.

Cores that share one small network wait for each other after every layer, and all wait whenever another program takes
one of them.  Cores that each train a network of their own never wait.  Two networks side by side on two cores took 1.6
times less time than one after the other where they were small, 1.05 times less where they were large; and seven times
less while other programs kept both cores busy.

Each training runs in a forked process and leaves its checkpoint in its folder, from which it is taken up here.  So a
process that is lost costs time and nothing else: that training is then done as if there had been no other process.  So
it is where a fork may not train: PyTorch refuses gradients there once it has started threads of its own for them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from checks import InputError
from training import progress

IDLE = 60.0  # seconds without any work after which a process counts as stuck


def fit_all(learners: Iterable[Any], epochs: int | Sequence[int]) -> None:
    """Call `fit` of every `Learner`; side by side where that is faster, one after the other elsewhere.

    Side by side: on a CPU with several cores, under Linux, learners that have a folder (their runs are kept there).
    """
    learners = list(learners)
    lengths = [epochs] * len(learners) if isinstance(epochs, int) else list(epochs)
    if len(lengths) != len(learners):
        raise InputError(f"fit_all: {len(learners)} learners and {len(lengths)} numbers of epochs; give one for each.")
    runs = list(zip(learners, lengths))
    cores = torch.get_num_threads()
    waiting = [run for run in runs if run[0].folder is not None and run[0].device.type == "cpu"]
    if sys.platform == "linux" and min(cores, len(waiting)) > 1 and "WORLD_SIZE" not in os.environ:
        _fit_in_processes(waiting, cores)
    for one, length in runs:
        one.fit(length)  # takes up what was trained; trains what was not


def _fit_in_processes(runs: list[tuple[Any, int]], cores: int) -> None:
    line = progress.LiveLine(runs[0][0].verbose)
    began, waiting, running, shown = time.monotonic(), list(runs), dict[BaseProcess, _Pulse](), -1
    try:
        while waiting or running:
            while waiting and len(running) < cores:
                process = _fork(*waiting.pop(0))
                running[process] = _Pulse(process)
            for process, pulse in list(running.items()):
                if not process.is_alive() or pulse.stopped():
                    process.kill()
                    process.join()
                    del running[process]
            done, seconds = len(runs) - len(waiting) - len(running), time.monotonic() - began
            if done != shown:
                line.show(f"{done} of {len(runs)} trainings, {cores} at a time on one core each: {seconds:.0f} s")
            shown = done
            time.sleep(0.05)
    finally:  # also when the student presses stop
        for process in running:
            process.kill()
            process.join()


def _fork(learner: Any, epochs: int) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=_fit, args=(learner, epochs), daemon=True)
    with warnings.catch_warnings():  # Python warns of a fork beside threads: as in a DataLoader, none is used there
        warnings.simplefilter("ignore")
        process.start()
    return process


def _fit(learner: Any, epochs: int) -> None:
    """In the new process: what goes wrong is not shown here, as it will happen again where it can be seen."""
    torch.set_num_threads(1)
    learner.verbose = False
    with contextlib.suppress(BaseException), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        learner.fit(epochs)
    os._exit(0)  # no clean-up of what belongs to the parent


class _Pulse:
    """Tells whether a process still works: a fork can get stuck at a lock that another thread had taken."""

    def __init__(self, process: BaseProcess) -> None:
        self._stat, self._used, self._seen = Path(f"/proc/{process.pid}/stat"), "", time.monotonic()

    def stopped(self) -> bool:
        """True if no processor time was used for `IDLE` seconds."""
        try:
            used = " ".join(self._stat.read_text().rpartition(")")[2].split()[11:13])  # in user and in system mode
        except OSError:
            return True
        if used != self._used:
            self._used, self._seen = used, time.monotonic()
        return time.monotonic() - self._seen > IDLE
