"""What all tests share: figures without a screen, property tests without a stopwatch, a tiny batch."""

import hypothesis
import matplotlib
import pytest
import torch
from torch import Tensor

matplotlib.use("Agg")
torch.set_num_threads(1)  # the tensors here are tiny: more threads only wait for each other

# A slow machine is no fault, and a failure must come back on the next run: the same examples every time.
hypothesis.settings.register_profile("course", deadline=None, derandomize=True)
hypothesis.settings.load_profile("course")


@pytest.fixture(scope="session", params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine in turn."""
    return torch.device(request.param)


@pytest.fixture
def tiny_batch() -> tuple[Tensor, Tensor]:
    """Four noisy images (4, 1, 32, 32) of one bright square each, and the squares as target (4, 32, 32)."""
    target = torch.zeros(4, 32, 32, dtype=torch.int64)
    for index, corner in enumerate((2, 6, 10, 14)):
        target[index, corner : corner + 12, 4:20] = 1
    noise = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return target[:, None] + 0.3 * noise, target
