"""Find the fastest way to train a model on this machine: number format × memory layout × compiler.

No rule holds everywhere.  A CPU without units for bfloat16 emulates it slowly, a T4 says that it supports the format
and has no units for it either, and small nets gain nothing from what speeds up large ones.  So each way takes a few
steps with a copy of the model, in turns, for about a second, and the fastest one is chosen.  The choice is kept in a
file, by machine and model: a run that is continued, or trained again with another seed, goes the same way.

The compiler is asked on an NVIDIA GPU alone, and for long runs alone, because compiling takes about a minute.  On
a CPU it was tried and lost (`benchmarks/README.md`).
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import hashlib
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

MEMORY = "fastest_modes.json"
SECONDS = 1.0  # for all candidates together, without the warm-up; less before a short run
LONG_RUN = 600.0  # seconds of training from which on a minute of compiling may pay
LEAD = 0.97  # a candidate must need less than this share of the time of the one listed before it


@dataclass(frozen=True)
class Mode:
    """How a model is run: "float32", "bfloat16" or "float16"; channels last in memory or first; compiled or not.

    >>> print(Mode("bfloat16"))
    bfloat16, channels last
    """

    precision: str = "float32"
    channels_last: bool = True
    compiled: bool = False

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "channels first"
        return f"{self.precision}, {layout}{', compiled' if self.compiled else ''}"

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout as PyTorch names it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which the forward pass runs."""
        lower = self.precision != "float32"
        return torch.autocast(device.type, getattr(torch, self.precision) if lower else None, enabled=lower)


def candidates(device: torch.device, seconds_of_run: float = 0.0) -> list[Mode]:
    """The modes that are worth a trial on this device, the plainest first."""
    if device.type == "cuda":
        # A T4 (capability 7.5) says that it supports bfloat16, but emulates it.
        lower = "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"
        compiled = seconds_of_run > LONG_RUN and importlib.util.find_spec("triton") is not None
        extra = [Mode(lower, True, True)] if compiled else []
        return [Mode(), Mode("float32", False), Mode(lower), Mode(lower, False), *extra]
    if device.type == "cpu":
        return [Mode(), Mode("float32", False), Mode("bfloat16"), Mode("bfloat16", False)]
    return [Mode()]


def fastest(
    model: nn.Module, images: Tensor, *, steps: int = 0, memory: Path | None = None, among: list[Mode] | None = None
) -> Mode:
    """The mode in which a training step of `model` takes the least time here.

    Args:
        model: on its device; it is not changed.
        images: a batch (B, C, H, W) on the same device.
        steps: length of the coming run; for a long one the compiler is tried as well.
        memory: a .json file that keeps the choice; None keeps it for this process only.
        among: the modes to choose from; default `candidates`.
    """
    ways = among if among is not None else candidates(images.device)
    if len(ways) == 1:
        return ways[0]
    key = _key(model, images, ways)
    known = _read(memory)
    if key in known and (mode := Mode(**known[key])) in ways + candidates(images.device, float("inf")):
        return mode
    seconds = time_modes(model, images, ways, steps=steps)
    best = _first_with_a_lead(seconds)
    if among is None and (longer := candidates(images.device, steps * seconds[best])) != ways:
        best = _first_with_a_lead(time_modes(model, images, [best, *(way for way in longer if way not in ways)]))
    _remember(memory, key, best)
    return best


def time_modes(model: nn.Module, images: Tensor, ways: list[Mode], steps: int = 1000) -> dict[Mode, float]:
    """Seconds of a training step of the whole batch in each mode: the least of some rounds in which they take turns.

    It takes `SECONDS`, or 1 % of what a run of `steps` steps would need, if that is less.
    """
    state = torch.get_rng_state()  # dropout draws here too
    plain = copy.deepcopy(model).train()
    one_image = _Step(plain, Mode(), images[:1])
    one_image()
    cost = one_image()
    budget = min(SECONDS, max(0.1 * SECONDS, 0.01 * steps * len(images) * cost))
    share = min(len(images), max(1, round(0.15 * budget / cost)))  # some images of a large batch are enough
    trials = {way: _Step(plain, way, images[:share]) for way in ways}
    seconds = dict.fromkeys(ways, float("inf"))
    for step in trials.values():
        step()  # the first one allocates, chooses algorithms, compiles
    began = time.perf_counter()
    while time.perf_counter() - began < budget:
        for way, step in trials.items():
            if seconds[way] < 1.5 * min(seconds.values()) or seconds[way] == float("inf"):  # the rest has lost
                seconds[way] = min(seconds[way], step())
    torch.set_rng_state(state)
    return {way: value * len(images) / share for way, value in seconds.items()}


class _Step:
    """Forward and backward of a copy of the model in one mode; a call returns the seconds that it took."""

    def __init__(self, model: nn.Module, mode: Mode, images: Tensor) -> None:
        self.mode, self.images = mode, images.to(memory_format=mode.memory_format)
        self.model = copy.deepcopy(model).to(memory_format=mode.memory_format)  # type: ignore[call-overload]
        self.run: Callable[[Tensor], Tensor] = torch.compile(self.model) if mode.compiled else self.model

    def __call__(self) -> float:
        _wait(self.images.device)
        began = time.perf_counter()
        with self.mode.autocast(self.images.device):
            logits = self.run(self.images)
        logits.float().square().mean().backward()
        self.model.zero_grad(set_to_none=True)
        _wait(self.images.device)
        return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _first_with_a_lead(seconds: dict[Mode, float]) -> Mode:
    """The fastest mode; a plainer one is left only for a clear lead, or the noise of the timing would decide."""
    best = min(seconds, key=lambda mode: seconds[mode])
    return next(mode for mode in seconds if seconds[mode] * LEAD <= seconds[best])


def _key(model: nn.Module, images: Tensor, ways: list[Mode]) -> str:
    """Machine and model in one short text."""
    device = images.device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {_cpu_name()}"
    parts = [chip, torch.get_num_threads(), torch.__version__, repr(model), tuple(images.shape), ways]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "")
    except OSError:  # not a Linux machine
        return platform.processor()


_KNOWN: dict[str, dict[str, object]] = {}  # of this process


def _read(memory: Path | None) -> dict[str, dict]:
    if memory is None or not memory.exists():
        return dict(_KNOWN)
    try:
        return {**_KNOWN, **json.loads(memory.read_text(encoding="utf-8"))}
    except (OSError, ValueError):  # damaged: the choice is made anew
        return dict(_KNOWN)


def _remember(memory: Path | None, key: str, mode: Mode) -> None:
    _KNOWN[key] = asdict(mode)
    if memory is not None:
        memory.parent.mkdir(parents=True, exist_ok=True)
        part = memory.with_name(f"{memory.name}.{os.getpid()}")
        part.write_text(json.dumps(_read(memory) | {key: asdict(mode)}, indent=1), encoding="utf-8")
        os.replace(part, memory)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step instead of asking the system anew: 5 % faster on Linux."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: tensors up to 1 GiB come from the heap …
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: … which does not shrink
