"""A learner that trains nothing, a small plan, and a process that takes part in a search: for the tests of tuning."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.search import Factor

ROOT = Path(__file__).parent.parent
PLAN = [
    Factor("lr", "nuisance", (1e-4, 1.0), "step size", log=True),
    Factor("skip", "scientific", ("none", "concat"), "links"),
    Factor("loss", "fixed", ("ce",), "one loss"),
]
DEFAULT = {"lr": 0.01, "skip": "none"}


def quality(settings: dict[str, Any]) -> float:
    """Highest at lr = 0.1 with links."""
    return 0.9 - 0.1 * abs(math.log10(settings["lr"]) + 1) - 0.1 * (settings["skip"] == "none")


class Fake:  # behaves like a Learner that is trained in one go
    def __init__(self, settings: dict[str, Any], seed: int, folder: Path | None, pause: float = 0.0) -> None:
        self.settings, self.seed, self.pause = settings, seed, pause

    def score(self, epoch: int) -> float:
        return quality(self.settings) * (1 - 0.5**epoch)

    def fit(self, epochs: int, after_epoch: Any) -> None:
        for epoch in range(1, epochs + 1):
            time.sleep(self.pause)
            row = {"epoch": epoch, "val_mean_iou": self.score(epoch), "train_loss": 1 / epoch, "seconds": self.pause}
            after_epoch(row)


WORKER = """
from pathlib import Path
from experiments import search
from tests.tuning_helpers import DEFAULT, PLAN, Fake

search.HEARTBEAT = 1

def build(settings, seed, folder):
    print("trial", flush=True)
    return Fake(settings, seed, folder, pause={pause})

study = search.open_study(Path({storage!r}), "test")
search.tune(study, build, PLAN, epochs=3, minutes=1, trials={trials}, starts=[DEFAULT])
"""


def start_worker(storage: Path, trials: int, pause: float = 0.0) -> subprocess.Popen[str]:
    """A process that takes part in the search and prints a line for each of its trials."""
    code = WORKER.format(storage=str(storage), trials=trials, pause=pause)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
