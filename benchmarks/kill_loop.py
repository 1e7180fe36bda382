"""Does a run survive being killed?  Kills `Learner.fit` again and again with SIGKILL and counts what was lost.

A warm process forks a child for every attempt; the child trains a tiny U-Net with a `folder`, and announces each
finished epoch through a pipe.  It is killed at a random moment, and the next child goes on in the same folder.  After
each kill the folder must hold every epoch that was announced; each finished run must end with the very weights of a run
that nobody disturbed.

    python3 benchmarks/kill_loop.py --kills 200
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # our modules lie one folder up

from learner import Learner
from losses import cross_entropy
from training import checkpoint
from unet import UNet

EPOCHS = 12
COUNTS = ("kills", "kills in a save", "runs finished")
FAULTS = ("epochs lost", "wrong final weights", "damaged files", "failures")


def train(folder: Path, pipe: int) -> None:
    """What each child does: build the same learner, go on with the run in `folder`, to the end."""
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loader = [(images, (images[:, 0] > 0).long())]
    torch.manual_seed(1)
    model = UNet(widths=(4, 8), dropout=0.2)
    settings = {"lr": 0.02, "device": "cpu", "precision": "float32", "verbose": False}
    learner = Learner(model, cross_entropy, loader, loader, folder=folder, **settings)
    learner.fit(EPOCHS, after_epoch=lambda row: os.write(pipe, f"epoch {row['epoch']}\n".encode()))
    weights = b"".join(value.contiguous().numpy().tobytes() for value in model.state_dict().values())
    os.write(pipe, f"weights {hashlib.sha256(weights).hexdigest()}\n".encode())


def attempt(folder: Path, kill_after: float | None) -> tuple[int, list[str]]:
    """Train in a child, killed after so many seconds; returns its exit code (−9: killed) and what it told."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(folder, writing)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with open(reading, encoding="utf-8") as pipe:
        lines = pipe.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), lines


def kill_loop(kills: int, seed: int, base: Path) -> Counter[str]:
    """Kill until `kills` processes were killed, run after run; returns the counts."""
    chance, counts = random.Random(seed), Counter(dict.fromkeys(COUNTS + FAULTS, 0))
    began = time.perf_counter()
    _, undisturbed = attempt(base / "undisturbed", None)
    seconds, number, announced = time.perf_counter() - began, 0, 0
    while counts["kills"] < kills:
        folder = base / f"run-{number}"
        code, lines = attempt(folder, chance.uniform(0, seconds))
        announced = max([announced, *(int(line.split()[1]) for line in lines if line.startswith("epoch"))])
        counts["kills"] += code == -signal.SIGKILL
        counts["kills in a save"] += any(folder.glob("*.part"))
        counts["failures"] += code not in (0, -signal.SIGKILL)
        state, damaged = checkpoint.load(folder)
        counts["epochs lost"] += max(announced - (state["epoch"] if state else 0), 0)
        counts["damaged files"] += bool(damaged)
        if code == 0:
            counts["runs finished"] += 1
            counts["wrong final weights"] += lines[-1] != undisturbed[-1]
            shutil.rmtree(folder)
            number, announced = number + 1, 0
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="on which disk; default: that of temporary files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads must not fork
    torch.optim.AdamW([torch.zeros(1)])  # imports what every child would import, which takes seconds
    with tempfile.TemporaryDirectory(dir=arguments.folder) as base:
        print(json.dumps(kill_loop(arguments.kills, arguments.seed, Path(base)), indent=2))


if __name__ == "__main__":
    main()
