"""Train one model in several processes, or several models at once.

One model, by `torchrun run.py train`: each of W processes reads and augments the whole batch as a single one would and
keeps every W-th image.  Gradients are averaged (Li et al., VLDB 2020, arXiv:2006.15704), counts summed, BatchNorm on
GPUs counts the images of all, and rank 0 alone writes.  Several models: on a CPU, `fit_all` gives each small network a
core of its own, as cores that share one wait for each other after every layer: 1.6 times faster on two cores.
"""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from checks import InputError

IDLE = 30.0  # seconds without processor time after which a training beside others is taken for stuck


class LiveLine:
    """In a notebook one line that replaces itself and stays as the only output, elsewhere a printed line a step."""

    def __init__(self, active: bool) -> None:
        self._active = active
        self._handle: Any = None

    def show(self, text: str) -> None:
        if self._handle is not None:
            self._handle.update({"text/plain": text}, raw=True)
        elif self._active and "ipykernel" in sys.modules:
            from IPython.display import display

            self._handle = display({"text/plain": text}, raw=True, display_id=True)
        elif self._active:
            print(text)


def start() -> None:
    """Join the other processes if `torchrun` has started this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(minutes=30))


def world_size() -> int:
    """W, the number of processes that train together; 1 without `torchrun`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def shared(batch: Sequence[Tensor]) -> list[Tensor]:
    """The part of a batch that belongs to this process: every W-th image."""
    return [tensor[rank() :: world_size()] for tensor in batch]


def gathered(values: list[Any]) -> list[Any]:
    """The lists of all processes, one after the other."""
    lists: list[Any] = [values] * world_size()
    if world_size() > 1:
        dist.all_gather_object(lists, values)
    return [value for one in lists for value in one]


def from_rank_0(make: Callable[[], Any]) -> Any:
    """What `make` returns in rank 0, in every process; its `InputError` too, else the others would wait for ever."""
    try:
        answer = make() if rank() == 0 else None
    except InputError as error:
        answer = error
    answer = gathered([answer])[0]
    if isinstance(answer, InputError):
        raise answer
    return answer


def together(model: nn.Module, device: torch.device) -> nn.Module:
    """A model for the training steps whose gradients are those of the whole batch; `model` itself for one process."""
    if world_size() == 1:
        return model
    if device.type != "cuda":
        return DistributedDataParallel(model)
    return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model), device_ids=[device.index])


def fit_all(learners: Iterable[Any], epochs: int) -> None:
    """Call `fit` of every `Learner`; on a CPU under Linux side by side in forked processes, if they have folders."""
    learners, cores = list(learners), torch.get_num_threads()
    waiting = [learner for learner in learners if learner.folder is not None and learner.device.type == "cpu"]
    if sys.platform == "linux" and min(cores, len(waiting)) > 1:
        _fit_in_processes(waiting, epochs, cores)
    for learner in learners:
        learner.fit(epochs)  # takes up what was trained; a lost process costs time only


def _fit_in_processes(waiting: list[Any], epochs: int, cores: int) -> None:
    fork, running = multiprocessing.get_context("fork"), dict[BaseProcess, list[str]]()  # each with its processor time
    try:
        while waiting or running:
            while waiting and len(running) < cores:
                started = fork.Process(target=_fit, args=(waiting.pop(0), epochs), daemon=True)
                started.start()
                running[started] = []
            all_quiet = not wait([process.sentinel for process in running], timeout=IDLE)
            for process, before in list(running.items()):
                now = list[str]()  # ticks in user and in system mode; none once it has ended
                with contextlib.suppress(OSError):
                    now = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                if not process.is_alive() or all_quiet and now == before:  # a fork can get stuck at a lock of a thread
                    process.kill()
                    process.join()
                    del running[process]
                elif all_quiet:
                    running[process] = now
    finally:  # also when the student presses stop
        for process in running:
            process.kill()
            process.join()


def _fit(learner: Any, epochs: int) -> None:
    """In the new process: what goes wrong is not shown here, as it will happen again where it can be seen."""
    torch.set_num_threads(1)
    learner.verbose = False
    with contextlib.suppress(BaseException):
        learner.fit(epochs)
    os._exit(0)  # no clean-up of what belongs to the parent
