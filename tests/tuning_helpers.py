"""A learner that trains nothing, a small plan, and a process that takes part in a search: for the tests of tuning."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.search import Factor, LogRange

ROOT = Path(__file__).parent.parent
PLAN = [
    Factor("lr", "nuisance", LogRange(1e-4, 1.0), "step size"),
    Factor("skip", "scientific", ("none", "concat"), "links"),
    Factor("loss", "fixed", ("ce",), "one loss"),
]
DEFAULT = {"lr": 0.01, "skip": "none"}


def quality(settings: dict[str, Any]) -> float:
    """Highest at lr = 0.1 with links."""
    return 0.9 - 0.1 * abs(math.log10(settings["lr"]) + 1) - 0.1 * (settings["skip"] == "none")


class Fake:
    """Behaves like a Learner: `history` grows epoch by epoch; in a folder, it is taken up again."""

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
from pathlib import Path
from experiments import search
from tests.tuning_helpers import DEFAULT, PLAN, Fake

search.HEARTBEAT = 1

def build(settings, seed, folder):
    print("trial", flush=True)
    return Fake(settings, seed, folder, pause={pause})

study = search.open_study({storage!r}, "test")
search.tune(study, build, PLAN, epochs=3, minutes=1, trials={trials}, default=DEFAULT, seed=None)
"""


def start_worker(storage: Path, trials: int, pause: float = 0.0) -> subprocess.Popen[str]:
    """A process that takes part in the search and prints a line for each of its trials."""
    code = WORKER.format(storage=str(storage), trials=trials, pause=pause)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
