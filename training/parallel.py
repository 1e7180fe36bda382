"""Train one model in several processes, or several models at once.

One model: `torchrun --nproc-per-node 2 run.py train FOLDER` tells each process its rank; `Learner.fit` does the rest.
Every process reads the whole batch, augments it as a single process would, and keeps every W-th image of it, so W
processes learn from the very same numbers as one.  Gradients are averaged, counts are summed, and rank 0 alone writes.
On GPUs BatchNorm counts the images of all processes; on CPUs, where PyTorch has no such layer, those of its own.

Several models: on a CPU, `fit_all` gives each small network a core of its own: cores that share one wait for each other
after every layer.  Two networks on two cores took 1.6 times less time than one after the other.

Source of the averaged gradients: Li et al., VLDB 2020 (arXiv:2006.15704).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import warnings
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
        self._handle: Any = None
        self._display: Callable[..., Any] | None = None
        self._active = active
        if active and "ipykernel" in sys.modules:
            from IPython import get_ipython
            from IPython.display import display

            self._display = display if get_ipython() is not None else None

    def show(self, text: str) -> None:
        """Put `text` in the place of the line before."""
        if not self._active:
            return
        if self._display is None:
            print(text)
        elif self._handle is None:
            self._handle = self._display({"text/plain": text}, raw=True, display_id=True)
        else:
            self._handle.update({"text/plain": text}, raw=True)


# ---- one model in several processes ---------------------------------------------------------------------------------


def start() -> None:
    """Join the other processes if `torchrun` has started this one; without it nothing happens."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))


def stop() -> None:
    """Leave together with the other processes; without them nothing happens."""
    if world_size() > 1:
        dist.barrier()
        dist.destroy_process_group()


def world_size() -> int:
    """The number of processes that train together; 1 without `torchrun`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def local_device(device: torch.device) -> torch.device:
    """The GPU that belongs to this process, where there are several."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device == torch.device("cuda") else device


def shared(batch: Sequence[Tensor]) -> list[Tensor]:
    """The images of this process: every W-th one of the batch."""
    return [tensor[rank() :: world_size()] for tensor in batch]


def weight_of_share(size: int) -> float:
    """What the mean over this process's images of a batch counts for in the mean over processes: 1 if all have as many.

    Raises:
        InputError: if a batch of `size` images leaves a process without any.
    """
    if size < world_size():
        raise InputError(f"A batch of {size} cannot be shared by {world_size()} processes; take larger batches.")
    return len(range(rank(), size, world_size())) * world_size() / size


def total(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if world_size() == 1:
        return values
    values = values.to("cuda" if dist.get_backend() == "nccl" else "cpu", copy=True)
    dist.all_reduce(values)
    return values


def from_rank_0(value: Any) -> Any:
    """What rank 0 has in `value`, in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def together(model: nn.Module, device: torch.device) -> nn.Module:
    """A model for the training steps whose gradients are those of the whole batch; `model` itself for one process."""
    if world_size() == 1:
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


# ---- several models at once -----------------------------------------------------------------------------------------


def fit_all(learners: Iterable[Any], epochs: int | Sequence[int]) -> None:
    """Call `fit` of every `Learner`; side by side where that is faster, one after the other elsewhere.

    Side by side: on a CPU with several cores, under Linux, learners that have a folder.  Each trains in a forked
    process and leaves its checkpoint in its folder, from which it is taken up here; a lost process costs time only.
    """
    learners = list(learners)
    runs = list(zip(learners, [epochs] * len(learners) if isinstance(epochs, int) else epochs, strict=True))
    cores = torch.get_num_threads()
    waiting = [run for run in runs if run[0].folder is not None and run[0].device.type == "cpu"]
    if sys.platform == "linux" and min(cores, len(waiting)) > 1 and "WORLD_SIZE" not in os.environ:
        _fit_in_processes(waiting, cores)
    for one, length in runs:
        one.fit(length)  # takes up what was trained; trains what was not


def _fit_in_processes(runs: list[tuple[Any, int]], cores: int) -> None:
    """Start the runs one by one, as many at a time as there are cores, and wait for all of them."""
    waiting, running = list(runs), dict[BaseProcess, list[str]]()  # each with its processor time
    try:
        while waiting or running:
            while waiting and len(running) < cores:
                running[_fork(*waiting.pop(0))] = []
            all_quiet = not wait([process.sentinel for process in running], timeout=IDLE)
            for process in list(running):
                before, now = running[process], _processor_time(process)
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


def _processor_time(process: BaseProcess) -> list[str]:
    """The ticks that a process has used in user and in system mode; nothing once it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return []


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
