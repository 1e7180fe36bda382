"""Keep a training set on the GPU and cut its batches there: nothing has to be copied while the network trains.

The batches are those of the `DataLoader` that they replace, number for number: both ask the data set where the crop of
a sample begins in an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SHARE = 0.25  # of the free memory of the GPU, at most


def on_device(loader: Any, device: torch.device) -> Any:
    """A loader of the same batches from the memory of a GPU; `loader` itself where that is no gain or not possible.

    Not possible: a transform that runs on the CPU, worker processes, a set too large, loaders of another kind.
    """
    dataset: Any = getattr(loader, "dataset", None)
    possible = hasattr(dataset, "corner") and dataset.transform is None and loader.num_workers == 0
    if device.type != "cuda" or not possible:
        return loader
    free, _ = torch.cuda.mem_get_info(device)
    return ResidentLoader(loader, device) if _size(dataset) < SHARE * free else loader


def _size(dataset: Any) -> int:
    """Bytes of all samples; what they measure before padding is near enough."""
    pixels = sum(H * W for H, W in dataset.shapes)
    return pixels * (4 * dataset.channels + 8 + 4 * len(dataset.maps))


class ResidentLoader:
    """Batches (images, target, *maps) on `device`, of a loader that `data.make_loader` made."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self.dataset, self.batch_sampler = loader.dataset, loader.batch_sampler
        self._samples = [
            [tensor.to(device) for tensor in self.dataset.whole(index)] for index in range(len(self.dataset))
        ]

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for draws in self.batch_sampler:
            samples = [self._cut(epoch, index) for epoch, index in draws]
            yield tuple(torch.stack(column) for column in zip(*samples))

    def _cut(self, epoch: int, index: int) -> list[Tensor]:
        tensors, crop = self._samples[index], self.dataset.crop
        if crop is None:
            return tensors
        top, left = self.dataset.corner(epoch, index)
        return [tensor[..., top : top + crop, left : left + crop] for tensor in tensors]
