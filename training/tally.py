"""What an epoch leaves behind: its loss, its counts and the first step that went wrong, on the device until the end.

Reading a number from a GPU makes the host wait for all that the GPU has been told to do.  So nothing is read within an
epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import metrics
from checks import IGNORE_INDEX, InputError
from training import distributed


class Watch:
    """Remembers on the device the first step whose loss was not finite, so that nobody has to wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), -1, device=device)

    def see(self, losses: Sequence[Tensor], step: int) -> None:
        """Note whether the losses of a step are finite."""
        bad = ~torch.stack([torch.isfinite(loss) for loss in losses]).all()
        if distributed.world_size() > 1:
            bad = distributed.total(bad.float()) > 0  # all processes leave out the same step
        self._first = torch.where(bad & (self._first < 0), step, self._first)

    def found(self) -> Tensor:
        """1.0 from the bad step on, as an optimizer of PyTorch understands it: leave the step out."""
        return (self._first >= 0).float()

    def first_step(self) -> int | None:
        """Ask the device."""
        step = int(self._first)
        return step if step >= 0 else None


class Tally:
    """Sums loss and confusion matrix over the batches of an epoch, on their device."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.pixels: list[Tensor] = []
        self.confusion: Tensor | None = None

    def add(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        """Count one batch: its mean loss, logits (B, K, H, W), target (B, H, W)."""
        confusion = metrics.confusion_matrix(logits, target)
        self.losses.append(loss.detach())
        self.pixels.append((target != IGNORE_INDEX).sum())
        self.confusion = confusion if self.confusion is None else self.confusion + confusion

    def scores(self) -> dict[str, float]:
        """The mean loss of a pixel and all scores of `metrics.scores`, over the batches of all processes."""
        if distributed.world_size() > 1:  # rank 0 has one image of each batch at least, the others may have none
            classes = distributed.from_rank_0(None if self.confusion is None else len(self.confusion))
            self.confusion = torch.zeros(classes, classes).long() if self.confusion is None else self.confusion
        if self.confusion is None:
            raise InputError("There is no batch to score: the loader is empty. Give one with at least one image.")
        # In float64 on the CPU: Apple's GPU has none.
        nothing = torch.zeros(0, dtype=torch.float64)
        losses, pixels = (torch.stack(v).cpu().double() if v else nothing for v in (self.losses, self.pixels))
        loss, pixels = distributed.total(torch.stack([(losses * pixels).sum(), pixels.sum()]))
        return {"loss": float(loss / pixels)} | metrics.scores(distributed.total(self.confusion))
