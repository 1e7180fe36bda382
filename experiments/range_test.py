"""Between which learning rates does a network learn at all?  One short training run with a rising rate tells.

The rate grows exponentially from step to step.  Far too small: the loss stays where it is.  Right: it falls.  Too
large: it rises, or becomes infinite.  This takes seconds, and no trial of a search is wasted outside of the range.

Source: Smith, 2017 (arXiv:1506.01186), section 3.3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from checks import InputError

Row = dict[str, float]


def range_test(
    model: nn.Module,
    loss: Callable[..., Tensor],
    loader: Any,
    *,
    augment: Any = None,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 80,
    weight_decay: float = 1e-4,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> list[Row]:
    """Train a copy of `model` with AdamW for `steps` steps at lr_t = low·(high / low)^(t / (steps − 1)).

    The model itself stays as it is.  The test ends early once the loss is not finite or three times what it was at the
    beginning.

    Returns: one row for each step with step, lr and train_loss, the loss before the step is made.

    Raises `InputError` if there are no batches, or not 0 < low < high, or fewer than ten steps.

    >>> data = [(torch.ones(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64))]
    >>> rows = range_test(nn.Conv2d(1, 2, 1), nn.functional.cross_entropy, data, low=0.001, high=0.1, steps=11)
    >>> [round(row["lr"], 4) for row in rows[::5]]
    [0.001, 0.01, 0.1]
    """
    if not 0 < low < high or steps < 10:
        raise InputError(
            f"range_test: low={low}, high={high}, steps={steps}; expected 0 < low < high, 10 steps or more."
        )
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
    """The batches of one epoch after the other, each in its own order."""
    epoch, found = 0, True
    while found:
        if hasattr(getattr(loader, "batch_sampler", None), "set_epoch"):
            loader.batch_sampler.set_epoch(epoch)
        epoch, found = epoch + 1, False
        for batch in loader:
            found = True
            yield batch
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
    outwards to one digit, and the range spans at least a factor of ten.

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
    """One digit that counts, rounded down or up; what is a hair off such a number is that number."""
    exponent = math.floor(math.log10(value) + 1e-9)
    return float(f"{towards(round(value / 10.0**exponent, 6))}e{exponent}")
