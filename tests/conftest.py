"""What all tests share: figures without a screen, property tests without a stopwatch, all devices."""

import hypothesis
import matplotlib
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)  # the tensors here are tiny: more threads only wait for each other

# A slow machine is no fault, and a failure must come back on the next run: the same examples every time.
hypothesis.settings.register_profile("course", deadline=None, derandomize=True)
hypothesis.settings.load_profile("course")


@pytest.fixture(scope="session", params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine in turn."""
    return torch.device(request.param)
