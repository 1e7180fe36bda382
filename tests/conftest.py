"""What all tests share: figures without a screen, property tests without a stopwatch, a tiny batch."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import matplotlib
import pytest
import torch
from torch import Tensor

from checks import InputError

matplotlib.use("Agg")
torch.set_num_threads(1)  # the tensors here are tiny: more threads only wait for each other

# A slow machine is no fault, and a failure must come back on the next run: the same examples every time.
hypothesis.settings.register_profile("course", deadline=None, derandomize=True)
hypothesis.settings.load_profile("course")


_messages: list[str] = []


def _noted(error: InputError, *arguments: object) -> None:
    ValueError.__init__(error, *arguments)
    _messages.append(str(error).rpartition("checks.InputError: ")[2])  # a worker of torch puts its traceback before it


InputError.__init__ = _noted  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail each test in which an `InputError` begins with an empty line, or has more than four, one of a list aside."""
    _messages.clear()
    yield
    for text in _messages:
        first, *others = text.rstrip().split("\n")
        lines = [line for line in others if not line.startswith("- ")]  # `raise_problems` gives each problem a line
        assert first.strip() and len(lines) < 4, f"{item.name}: a message has at most four lines:\n{text}"


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
