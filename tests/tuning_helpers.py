"""A learner that trains nothing, a small plan, and processes that take part in a search: for the tests of tuning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.search_space import Factor, LogRange

ROOT = Path(__file__).parent.parent
PLAN = [
    Factor("lr", "nuisance", LogRange(1e-4, 1.0), "step size"),
    Factor("skip", "scientific", ("none", "concat"), "links"),
    Factor("loss", "fixed", ("ce",), "one loss"),
]
DEFAULT = {"lr": 0.01, "skip": "none"}


def quality(settings: dict[str, Any]) -> float:
    """Highest at lr = 0.1 with links."""
    import math

    return 0.9 - 0.1 * abs(math.log10(settings["lr"]) + 1) - 0.1 * (settings["skip"] == "none")


class Fake:
    """Behaves like a Learner with a folder: `history` grows epoch by epoch, and is taken up again after a kill."""

    def __init__(self, settings: dict[str, Any], seed: int, folder: Path | None, pause: float = 0.0) -> None:
        self.settings, self.seed, self.folder, self.pause = settings, seed, folder, pause
        self.history: list[dict[str, float]] = []
        self.trained: list[int] = []  # epochs that this object has trained itself

    def score(self, epoch: int) -> float:
        return quality(self.settings) * (1 - 0.5**epoch)

    def fit(self, epochs: int, after_epoch: Any = None) -> list[dict[str, float]]:
        file = self.folder / "history.json" if self.folder is not None else None
        if file is not None and file.exists():
            self.history = json.loads(file.read_text())
        for epoch in range(len(self.history) + 1, epochs + 1):
            time.sleep(self.pause)
            row = {"epoch": epoch, "val_mean_iou": self.score(epoch), "train_loss": 1 / epoch, "seconds": self.pause}
            self.history.append(row)
            self.trained.append(epoch)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(self.history))
            if after_epoch is not None:
                after_epoch(row)
        return self.history


WORKER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from experiments import tuning
from tests.tuning_helpers import DEFAULT, PLAN, Fake

def build(settings, seed, folder):
    print("trial", flush=True)
    return Fake(settings, seed, folder, pause={pause})

study = tuning.open_study({storage!r}, "test")
print("ready", flush=True)
sys.stdin.readline()
options = dict(epochs={epochs}, minutes=1, trials={trials}, default=DEFAULT, folder={folder!r}, startup=4)
tuning.tune(study, build, PLAN, **options)
"""


def start_worker(
    storage: str | Path, folder: Path, trials: int, epochs: int = 3, pause: float = 0.01
) -> subprocess.Popen[str]:
    """A process that has opened the study and waits for a line on its standard input before it takes part."""
    code = WORKER.format(
        root=str(ROOT), tests=str(ROOT / "tests"), storage=str(storage), folder=str(folder),
        trials=trials, epochs=epochs, pause=pause,
    )  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(*processes: subprocess.Popen[str]) -> None:
    """Let all of them begin."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def kill(process: subprocess.Popen[str]) -> None:
    """Kill −9, and wait until it is gone."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Fail if the condition does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
