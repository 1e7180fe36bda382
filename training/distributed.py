"""Train one model in several processes, on one machine or many: each takes its share of every batch.

`torchrun --nproc-per-node 2 script.py` starts the script twice and tells each process its rank; `Learner.fit` does
the rest.  Every process reads the whole batch, augments it as a single process would, and keeps every W-th image of
it.  So W processes learn from the very same numbers as one.  Gradients are averaged (PyTorch's
DistributedDataParallel), BatchNorm takes its mean and variance over all processes, counts are summed, and rank 0
alone writes and prints.  What is left of a difference is the order of sums.

Source of the averaged gradients: Li et al., VLDB 2020 (arXiv:2006.15704).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from checks import InputError


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
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d  # the same parameters under the same names
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the images of all processes.  (PyTorch's own one runs on GPUs only.)"""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W); mean 0 and variance 1 of each channel over all images in training."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        values = x.float()
        n = total(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        mean = _Sum.apply(values.sum(dim=(0, 2, 3))) / n
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(dim=(0, 2, 3))) / n
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)  # type: ignore[union-attr, arg-type]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return total(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)
