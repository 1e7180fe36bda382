"""Does a run survive being killed?  Kills `Learner.fit` again and again with SIGKILL and counts what was lost.

One warm process forks a child for every attempt; the child trains a tiny U-Net with a `folder` and tells through a pipe
when it begins a save and which epoch is announced as finished.  Every second child is killed from outside at a random
moment; the others end themselves at a random call (open, either half of a write, flush, fsync, rename) inside a save.
The next child goes on in the same folder.  After each kill the folder is loaded and compared with a run that nobody
disturbed, bit for bit.

    python3 benchmarks/kill_loop.py --kills 1000
"""

from __future__ import annotations

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
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # our modules lie one folder up
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from learner import Learner
from losses import cross_entropy
from tests.disk_helpers import AtCall, kill_myself, send_through
from training import checkpoint
from unet import UNet

EPOCHS = 12
CALLS = 9  # that bring one checkpoint to the disk
Tell = Callable[[str], None]
COUNTS = ("kills", "kills inside a save", "runs finished", "epochs announced", "epochs lost", "wrong loads")
COUNTS += ("wrong final weights", "corrupt files", "sentences of trouble", "failures")


class Batch:
    """A loader of one batch: two images of 8 × 8 pixels."""

    def __init__(self) -> None:
        images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        self.batch = images, (images[:, 0] > 0).long()

    def __len__(self) -> int:
        return 1

    def __iter__(self):
        yield self.batch


def fingerprint(value: Any) -> str:
    """One hash over all tensors in a nested state."""
    digest = hashlib.sha256()

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                visit(value[key])
        elif isinstance(value, (list, tuple)):
            for entry in value:
                visit(entry)

    visit(value)
    return digest.hexdigest()


def train(folder: Path, tell: Tell, kill_at: int = 0) -> None:
    """What each child does: build the same learner, go on with the run in `folder`, to the end."""
    save, step = checkpoint.save, AtCall(kill_at, kill_myself)

    def told_save(*arguments: Any) -> Path:
        tell("begin save")
        if kill_at and step.calls == 0:  # from here on, so that all calls that count are those of saves
            send_through(step)
        path = save(*arguments)
        tell("end save")
        return path

    checkpoint.save = told_save
    torch.manual_seed(1)
    model = UNet(widths=(4, 8), dropout=0.2)
    settings = {"lr": 0.02, "device": "cpu", "precision": "float32", "verbose": False}
    learner = Learner(model, cross_entropy, Batch(), Batch(), folder=folder, **settings)
    learner.fit(EPOCHS, after_epoch=lambda row: tell(f"epoch {row['epoch']}"))
    tell(f"final {fingerprint(model.state_dict())}")


def fork(work: Callable[[Tell], None]) -> tuple[int, int]:
    """Start `work(tell)` in a child; returns its number and the reading end of the pipe that it tells through."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    _work_and_exit(work, writing)


def _work_and_exit(work: Callable[[Tell], None], writing: int) -> NoReturn:
    code = 1
    try:
        with open(writing, "w", encoding="utf-8") as pipe:
            work(lambda line: print(line, file=pipe, flush=True))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(child: int, reading: int) -> tuple[bool, int, list[str]]:
    """Wait for a child: was it killed, with which code did it end, and what did it tell?"""
    _, status = os.waitpid(child, 0)
    with open(reading, encoding="utf-8") as pipe:
        lines = pipe.read().splitlines()
    return os.WIFSIGNALED(status), os.waitstatus_to_exitcode(status), lines


def undisturbed(folder: Path) -> tuple[dict[int, str], str, float]:
    """A run that nobody kills: the fingerprint of each epoch's checkpoint, of the final weights, and its seconds."""

    def work(tell: Tell) -> None:
        save = checkpoint.save

        def saved(folder: Path, state: dict[str, Any]) -> Path:
            path = save(folder, state)
            tell(f"state {state['epoch']} {fingerprint(state)}")
            return path

        checkpoint.save = saved
        train(folder, tell)

    began = time.perf_counter()
    killed, code, lines = finish(*fork(work))
    if killed or code:
        raise SystemExit("The run that nobody disturbs failed.")
    words = [line.split() for line in lines]
    states = {int(word[1]): word[2] for word in words if word[0] == "state"}
    assert len(states) == EPOCHS
    return states, words[-1][1], time.perf_counter() - began


def attempt(folder: Path, inside: bool, seconds: float, chance: random.Random) -> tuple[bool, int, list[str]]:
    """One child, killed inside a save, or from outside at a random moment (if it is not done before)."""
    kill_at = chance.randrange(1, 2 * CALLS + 1) if inside else 0
    child, reading = fork(lambda tell: train(folder, tell, kill_at))
    if not inside:
        time.sleep(chance.uniform(0, seconds / 3))
        os.kill(child, signal.SIGKILL)
    return finish(child, reading)


def kill_loop(kills: int, seed: int, base: Path) -> Counter[str]:
    """Kill until `kills` processes were killed, run after run; returns the counts."""
    chance, counts = random.Random(seed), Counter(dict.fromkeys(COUNTS, 0))
    states, final, seconds = undisturbed(base / "undisturbed")
    number, safe = 0, 0  # the run, and its last epoch that was announced as finished or once loaded
    attempts = 0
    while counts["kills"] < kills:
        folder = base / f"run-{number}"
        attempts += 1
        killed, code, lines = attempt(folder, attempts % 2 == 0, seconds, chance)
        epochs = [int(line.split()[1]) for line in lines if line.startswith("epoch")]
        safe = max([safe, *epochs])
        counts["kills"] += killed
        counts["kills inside a save"] += killed and bool(lines) and lines[-1] == "begin save"
        counts["epochs announced"] += len(epochs)
        counts["failures"] += not killed and code != 0
        state, trouble = checkpoint.load(folder)
        epoch = state["epoch"] if state else 0
        counts["epochs lost"] += max(safe - epoch, 0)
        counts["wrong loads"] += epoch > safe + 1 or (state is not None and fingerprint(state) != states.get(epoch))
        counts["sentences of trouble"] += bool(trouble)
        safe = max(safe, epoch)
        if not killed:
            counts["runs finished"] += code == 0
            counts["wrong final weights"] += code == 0 and lines[-1] != f"final {final}"
            counts["corrupt files"] += len(list(folder.glob("*.corrupt")))
            shutil.rmtree(folder)
            number, safe = number + 1, 0
    counts["corrupt files"] += len(list(folder.glob("*.corrupt")))  # of the run that is not finished
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="on which disk; default: that of temporary files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads must not fork
    torch.optim.AdamW([torch.zeros(1)])  # imports what every child would import, which takes seconds
    with tempfile.TemporaryDirectory(dir=arguments.folder) as base:
        began = time.perf_counter()
        counts = kill_loop(arguments.kills, arguments.seed, Path(base))
        print(json.dumps({**counts, "seconds": round(time.perf_counter() - began, 1)}, indent=2))


if __name__ == "__main__":
    main()
