"""A slow oracle for receptive fields: change one pixel of the image after the other and see what changes."""

import copy

import numpy as np
import torch
from torch import nn


def dependence(model: nn.Module, height: int, width: int, channels: int = 1) -> np.ndarray:
    """Which output pixel depends on which pixel of the image: boolean (H', W', H, W).

    All weights are made positive, so nothing cancels and no ReLU hides a path, and the changed pixel becomes so large
    that it wins in every max pooling.
    """
    model = copy.deepcopy(model).double().eval()
    for parameter in model.parameters():
        parameter.data.abs_().add_(0.01)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, height, width, generator=generator, dtype=torch.float64)
    changed = image.repeat(height * width, 1, 1, 1)
    for number, (row, column) in enumerate(np.ndindex(height, width)):
        changed[number, :, row, column] += 1e4
    with torch.no_grad():
        before, after = model(image), model(changed)
    differs = (before != after).flatten(1, -3).any(dim=1) if before.ndim > 3 else before != after
    return differs.permute(1, 2, 0).unflatten(2, (height, width)).numpy()


def box_of(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """top, left, bottom, right of the True pixels of a mask (H, W)."""
    rows, columns = np.nonzero(pixels)
    return rows.min(), columns.min(), rows.max(), columns.max()
