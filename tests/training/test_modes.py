"""Choosing the fastest way to train: the choice follows the clock, is remembered, and changes nothing of the model."""

import itertools
import json

import pytest
import torch
from torch import nn
from training.modes import Mode, candidates, fastest, time_modes

from training import modes
from unet import UNet

CPU = torch.device("cpu")
PLAIN, LOWER = Mode(), Mode("bfloat16")


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(modes, "_KNOWN", {})
    monkeypatch.setattr(modes, "SECONDS", 0.02)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UNet(widths=(2, 4), dropout=0.5)


def pretend(monkeypatch, seconds):
    """Let each mode take these seconds; return a list that notes which ones were timed."""
    timed = []

    def time_modes(model, images, ways, steps=1000):
        timed.append(list(ways))
        return {way: seconds.get(way, 9.0) for way in ways}

    monkeypatch.setattr(modes, "time_modes", time_modes)
    return timed


@pytest.mark.parametrize(("lower", "chosen"), [(0.5, LOWER), (0.96, LOWER), (0.98, PLAIN), (1.5, PLAIN)])
def test_the_plainer_mode_is_left_for_a_clear_lead_only(monkeypatch, model, lower, chosen):
    pretend(monkeypatch, {PLAIN: 1.0, LOWER: lower})
    assert fastest(model, torch.zeros(1, 1, 8, 8)) == chosen


def test_the_choice_is_remembered_by_machine_and_model(monkeypatch, model, tmp_path):
    timed, images, memory = (
        pretend(monkeypatch, {LOWER: 1.0}),
        torch.zeros(1, 1, 8, 8),
        tmp_path / "runs" / "modes.json",
    )
    assert fastest(model, images, memory=memory) == LOWER == fastest(model, images, memory=memory)
    assert len(timed) == 1
    monkeypatch.setattr(modes, "_KNOWN", {})  # a new process
    assert fastest(model, images, memory=memory) == LOWER and len(timed) == 1
    assert list(json.loads(memory.read_text()).values()) == [
        {"precision": "bfloat16", "channels_last": True, "compiled": False}
    ]
    fastest(UNet(widths=(2,)), images, memory=memory)
    fastest(model, torch.zeros(1, 1, 8, 9), memory=memory)
    torch.set_num_threads(threads := torch.get_num_threads())
    monkeypatch.setattr(modes.torch, "get_num_threads", lambda: threads + 1)
    fastest(model, images, memory=memory)
    assert len(timed) == 4 and len(json.loads(memory.read_text())) == 4


@pytest.mark.parametrize("content", ["", "[", '{"x": 1}'])
def test_a_damaged_memory_is_made_anew(monkeypatch, model, tmp_path, content):
    pretend(monkeypatch, {LOWER: 1.0})
    (tmp_path / "m.json").write_text(content)
    assert fastest(model, torch.zeros(1, 1, 8, 8), memory=tmp_path / "m.json") == LOWER
    assert "bfloat16" in (tmp_path / "m.json").read_text()


def test_real_timing_changes_neither_the_model_nor_the_random_numbers(model):
    images, before = torch.randn(3, 1, 16, 16), {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    seconds = time_modes(model, images, candidates(CPU))
    assert set(seconds) == set(candidates(CPU)) and all(0 < value < 60 for value in seconds.values())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_hopeless_mode_is_timed_once_and_the_others_again(monkeypatch, model):
    calls = []

    class Step:
        def __init__(self, model, mode, images):
            self.mode = mode

        def __call__(self):
            calls.append(self.mode)
            return 3.0 if self.mode.precision == "float32" else 1.0

    clock = itertools.count(step=0.004)
    monkeypatch.setattr(modes, "_Step", Step)
    monkeypatch.setattr(modes.time, "perf_counter", lambda: next(clock))
    seconds = time_modes(model, torch.zeros(2, 1, 8, 8), [LOWER, PLAIN])
    assert seconds == {LOWER: 2.0, PLAIN: 6.0}  # one of two images was timed
    assert calls.count(LOWER) > calls.count(PLAIN) - 2 == 2  # first, warm-up, once


def test_the_compiler_is_asked_for_long_runs_on_a_gpu_only(monkeypatch):
    monkeypatch.setattr(modes.torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(modes.importlib.util, "find_spec", lambda name: name)
    cuda = torch.device("cuda")
    assert not any(mode.compiled for mode in candidates(cuda, 60) + candidates(CPU, 1e6))
    assert [mode for mode in candidates(cuda, 1e4) if mode.compiled] == [Mode("bfloat16", True, True)]
    monkeypatch.setattr(modes.torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert {mode.precision for mode in candidates(cuda)} == {"float32", "float16"}
    assert candidates(torch.device("mps")) == [Mode()]


def test_a_mode_runs_a_model_in_its_format():
    layer, x = nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 4, 4)
    for mode, dtype in ((PLAIN, torch.float32), (LOWER, torch.bfloat16)):
        with mode.autocast(CPU):
            assert layer(x).dtype == dtype
    assert Mode(channels_last=False).memory_format == torch.contiguous_format
    assert str(Mode("float16", False, True)) == "float16, channels first, compiled"
