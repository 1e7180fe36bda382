"""Name what a training run was made of, so that only the same run is continued and a changed one starts anew.

Names must be the same in every process: an address in memory may not be part of them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
from typing import Any

from torch import nn


def name_of(function: Any) -> str:
    """What a loss or augmentation is called, with its settings.

    >>> name_of(functools.partial(round, ndigits=2)), name_of(nn.Identity()), name_of(None)
    ('round(ndigits=2)', 'Identity()', 'NoneType')
    """
    if isinstance(function, functools.partial):
        settings = {**{str(i): value for i, value in enumerate(function.args)}, **function.keywords}
        return f"{name_of(function.func)}({', '.join(f'{k}={v}' for k, v in sorted(settings.items()))})"
    if getattr(function, "__module__", "") == "__main__" and inspect.isfunction(function):
        with contextlib.suppress(OSError):  # a function of the notebook may have been edited: its text counts
            text = inspect.getsource(function)
            return f"{function.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return getattr(function, "__name__", None) or (
        repr(function) if isinstance(function, nn.Module) else type(function).__name__
    )


def model_hash(model: nn.Module) -> str:
    """A short hash of the architecture as `print(model)` shows it."""
    return hashlib.sha256(repr(model).encode()).hexdigest()[:16]


def data_settings(loader: Any) -> dict[str, Any]:
    """What a loader yields and in which order: number of batches, sampling, transform, content."""
    dataset = getattr(loader, "dataset", None)
    sampler = getattr(loader, "batch_sampler", None)
    drawn = [getattr(sampler, name, None) for name in ("batch_size", "shuffle", "seed", "repeats")]
    drawn += [getattr(dataset, name, None) for name in ("part", "crop", "maps", "seed")]
    return {
        "batches": len(loader),
        "sampling": str(drawn),
        "transform": name_of(getattr(dataset, "transform", None)),
        "data": str(getattr(dataset, "fingerprint", None)),
    }


def image_names(loader: Any, step: int) -> list[str]:
    """The names of the images in batch number `step` of the loader's epoch; nothing where they have none."""
    names, batches = getattr(getattr(loader, "dataset", None), "names", None), getattr(loader, "batch_sampler", None)
    if names is None or batches is None:
        return []
    draws = list(batches)[step]
    return [names[draw[1] if isinstance(draw, tuple) else draw] for draw in draws]
