"""Checkpoints: nothing that can happen while saving costs the checkpoint that was there, and no damage loads."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from checks import InputError
from data import SegmentationDataset
from imagesets.files import Sample
from tests.data_helpers import build_normalised, make_folder
from training import checkpoint
from training.checkpoint import changed, identity, replacing

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which this system does not have")
ROOT = Path(__file__).parents[2]
# PyTorch 2.11 under Python 3.13
pytestmark = pytest.mark.filterwarnings("ignore:.*BytesIO:pytest.PytestUnraisableExceptionWarning")


def epoch_in(folder):
    state, _ = checkpoint.load(folder)
    return state and state["epoch"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class AtCall:
    """Does `action` in place of call number `stop` of those that bring a file to the disk; `calls` counts."""

    def __init__(self, stop, action, patch):
        self.stop, self.action, self.calls = stop, action, 0
        for owner, name in ((Path, "write_bytes"), (os, "replace"), (os, "open"), (os, "fsync")):
            patch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, call):
        def counting(*arguments):
            self.calls += 1
            if self.calls != self.stop:
                return call(*arguments)
            if call.__name__ == "write_bytes":  # it fails in the middle
                path, content = arguments
                call(path, bytes(content)[: len(content) // 2])
            return self.action()

        return counting


def in_a_child(action):
    """What `action` returns in a forked process; None if that process was killed or failed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, action().encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        answer = pipe.read()
    return answer if os.waitpid(child, 0)[1] == 0 else None


def full_disk():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_arrives_whole_or_the_old_one_stays_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    for text in ("one, and longer", "two"):
        with replacing(path) as part:
            part.write_text(text)
    with pytest.raises(ZeroDivisionError), replacing(path) as part:  # an error of others is not renamed
        part.write_text(f"new {1 / 0}")
    assert path.read_text() == "two" and names(path.parent) == ["a.txt"]


def test_what_is_saved_comes_back(tmp_path, device):
    model = OrderedDict(w=torch.arange(3.0, device=device))
    checkpoint.save(tmp_path, {"model": model, "epoch": 2, "history": [{"loss": 0.5}], "scaler": None})
    found, damaged = checkpoint.load(tmp_path)
    assert torch.equal(found["model"]["w"], torch.arange(3.0)) and found["history"] == [{"loss": 0.5}]
    assert damaged == "" and checkpoint.load(tmp_path / "nothing") == (None, "")


CALLS = 7  # write; latest → previous; open and fsync the new file; part → latest; open and fsync the folder


@pytest.mark.parametrize("k", range(1, CALLS + 2))
def test_whichever_call_fails_no_epoch_is_lost(tmp_path, k):
    for epoch in (1, 2):
        checkpoint.save(tmp_path, {"epoch": epoch})
    with pytest.MonkeyPatch.context() as patch:
        step = AtCall(k, full_disk, patch)
        try:
            checkpoint.save(tmp_path, {"epoch": 3})
            saved = True
        except InputError:
            saved = False
    assert saved == (k > CALLS - 2)  # that a folder has no fsync is no failure
    assert checkpoint.load(tmp_path) == ({"epoch": 3 if saved else 2}, "")
    assert set(names(tmp_path)) <= {checkpoint.LATEST, checkpoint.PREVIOUS}
    assert k <= CALLS or step.calls == CALLS  # all calls were tried


@needs_fork
@pytest.mark.parametrize("damaged", [False, True])
def test_killed_in_place_of_any_call_no_epoch_is_lost(tmp_path, damaged):
    for k in range(1, CALLS + 1):
        folder = tmp_path / str(k)
        for epoch in (1, 2):
            checkpoint.save(folder, {"epoch": epoch})
        if damaged:
            (folder / checkpoint.LATEST).write_bytes(b"damaged")
        before = epoch_in(folder)

        def save_and_die(k=k, folder=folder):
            AtCall(k, lambda: os.kill(os.getpid(), signal.SIGKILL), pytest.MonkeyPatch())
            checkpoint.save(folder, {"epoch": 3})
            return "alive"

        in_a_child(save_and_die)
        assert epoch_in(folder) in (before, 3)
        checkpoint.save(folder, {"epoch": 4})
        assert epoch_in(folder) == 4


@pytest.fixture
def two(tmp_path):
    for epoch in (1, 2):
        checkpoint.save(tmp_path, {"epoch": epoch, "w": torch.arange(64.0)})
    return tmp_path


def test_damaged_anywhere_the_one_before_is_loaded(two):
    latest, chance = two / checkpoint.LATEST, random.Random(0)
    content = bytearray(latest.read_bytes())
    passed_over = 0
    for position in chance.sample(range(8 * len(content)), 700):
        content[position // 8] ^= 1 << position % 8
        latest.write_bytes(content)
        content[position // 8] ^= 1 << position % 8
        state, damaged = checkpoint.load(two)
        assert state["epoch"] == (1 if damaged else 2) and torch.equal(state["w"], torch.arange(64.0))
        passed_over += bool(damaged)
    assert passed_over > 175  # of the others, most lie in the gaps between entries, which hold nothing
    for length in range(0, len(content), 50):  # cut off
        latest.write_bytes(content[:length])
        assert checkpoint.load(two)[1] == "latest.ckpt is damaged. "


def test_both_damaged_starts_over_and_says_so(two):
    for name in (checkpoint.LATEST, checkpoint.PREVIOUS):
        (two / name).write_bytes(b"PK\x03\x04" + bytes(500))
    assert checkpoint.load(two)[0] is None and checkpoint.load(two)[1].endswith("no other checkpoint: started over. ")
    checkpoint.save(two, {"epoch": 3})
    assert epoch_in(two) == 3


def test_a_disk_that_cannot_read_ends_the_run_and_renames_nothing(two, monkeypatch):
    # The file may be whole: to start over would lose the run.
    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(InputError, match=r"latest.ckpt cannot be loaded: .*Input/output error"):
        checkpoint.load(two)
    with pytest.raises(InputError, match="Input/output error"):
        checkpoint.save(two, {"epoch": 3})
    monkeypatch.undo()
    assert epoch_in(two) == 2 and names(two) == [checkpoint.LATEST, checkpoint.PREVIOUS]


def told_in_a_full_memory(folder):
    """As JSON, for each action what it says with little and with more and more memory."""
    import resource

    def with_room_for(megabytes, action):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
        try:
            return str(action())
        except InputError as error:
            return str(error)

    large = {"w": torch.rand(9_000_000)}
    actions = [lambda: checkpoint.load(folder)[0]["epoch"], lambda: checkpoint.save(folder / "new", large)]
    actions += [lambda: len(SegmentationDataset(folder / "set.hdf5", "train"))]
    room = (4, 8, 12, 20, 35, 600)
    return json.dumps([[in_a_child(lambda n=n, a=action: with_room_for(n, a)) for n in room] for action in actions])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_in_a_full_memory_nothing_is_taken_for_damaged(tmp_path):
    noise = np.random.default_rng(0)
    samples = [Sample(str(i), noise.random((900, 900)).astype("f4"), np.eye(900, dtype=np.uint8)) for i in range(4)]
    build_normalised(tmp_path, samples).rename(tmp_path / "set.hdf5")
    for epoch in (1, 2):
        checkpoint.save(tmp_path, {"epoch": epoch, "w": torch.rand(4_000_000)})
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    code = "from tests.training.test_checkpoint import *\nprint(told_in_a_full_memory(Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(tmp_path)]  # a new process, whose heap holds nothing that is free
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for texts, whole in zip(json.loads(told), ("2", "None", "2"), strict=True):
        assert "the memory is full" in texts[0] and texts[-1] == whole
        assert all(text == whole or "the memory is full" in text for text in texts)
    assert before.items() <= {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}.items()


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_a_file_with_code_in_it_is_refused_and_runs_nothing(two):
    mark = two / "evil-was-here"
    torch.save({"epoch": Evil(str(mark))}, two / checkpoint.LATEST)
    with pytest.raises(InputError, match="latest.ckpt cannot be loaded"):
        checkpoint.load(two)
    assert not mark.exists()


@needs_fork
def test_a_read_only_folder_fails_at_the_start_and_not_after_an_epoch(tmp_path):
    tmp_path.chmod(0o555)

    def as_another_user():
        os.chdir(tmp_path)  # the folders above may be closed to the other user
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write everywhere
        with pytest.raises(InputError, match="cannot be written: Permission denied"), checkpoint.locked(Path()):
            return "entered"
        return "refused"

    assert in_a_child(as_another_user) == "refused"
    tmp_path.chmod(0o755)


def test_a_second_run_is_refused_until_the_first_one_ends_even_by_an_error(tmp_path):
    with (
        checkpoint.locked(tmp_path),
        checkpoint.locked(tmp_path / "other"),
        pytest.raises(InputError, match="Another run trains in"),
        checkpoint.locked(tmp_path),
    ):
        pass
    with pytest.raises(KeyboardInterrupt), checkpoint.locked(tmp_path):
        raise KeyboardInterrupt
    with checkpoint.locked(tmp_path):
        pass


LOSS = """
import torch
from functools import partial
NAMES, step, FACTOR = {"a", "b"}, 0, 2

def helper(x, shift=1):
    return FACTOR * x + shift

class Base:
    def scale(self, x):
        return helper(x) if "a" in NAMES else x

class Loss(Base):
    rate: float = 3.0

    def __init__(self):
        self.step, self.other = partial(helper, shift=5), self

    @property
    def double(self):
        return [2 * y for y in (1, 2)]

    @staticmethod
    @torch.no_grad()
    def half(x):
        return x / 4

    def __call__(self, x):
        return self.scale(x)

loss = Loss()
"""


def described(source, **others):
    scope = {"__name__": "__main__"}
    exec(source, scope)
    return identity(loss=scope["loss"], **others)


CHANGES = [
    ("    return FACTOR", "\n    # why\n    'What it is.'\n    return FACTOR", ""),
    ("class Base:", 'class Base:\n    """What it is."""\n', ""),
    ('"a", "b"}, 0', '"b", "a"}, 9', ""),  # the global `step` is not read, though an attribute is called so
    ("2 * y", "3 * y", "Loss.double"),
    ("0, 2", "0, 7", "helper"),
    ("shift=1", "shift=2", "helper"),
    ("shift=5", "shift=6", "loss.step, Loss.__init__"),
    ("x / 4", "x / 5", "Loss.half"),
    ("= 3.0", "= 4.0", "Loss"),
    ("else x", "else -x", "Base.scale"),
    ('{"a", "b"}', '{"a", "c"}', "Base.scale"),
]


@pytest.mark.parametrize("old, new, named", CHANGES)
def test_code_counts_and_not_its_text(old, new, named):
    assert old in LOSS and changed(described(LOSS), described(LOSS.replace(old, new))) == named


def test_values_count_by_what_they_hold(tmp_path):
    (tmp_path / "list.csv").write_text("a")
    bad = nn.Linear(2, 2)
    bad.register_forward_hook(lambda module, given, result: result)

    def alike(make):
        return changed(identity(value=make()), identity(value=make())) == ""

    same = [lambda: np.arange(3), lambda: torch.ones(2, dtype=torch.bfloat16), lambda: {"b": {1, "x"}, 2: range(3)}]
    same += [lambda: np.random.default_rng(0), lambda: torch.Generator().manual_seed(1), lambda: tmp_path / "list.csv"]
    same += [lambda: np.array([None, len, torch.relu], object), lambda: [bad, np.add, np.unique, torch.nn.functional]]
    assert all(map(alike, same))
    assert not alike(lambda: (n for n in range(3)))  # no one can tell
    different = [np.arange(3), np.arange(3.0), np.arange(3)[::-1], np.arange(3)[None], [0, 1], (0, 1), {0: 1}, {0, 1}]
    different += [0, False, "0", np.add, np.unique, np.random.default_rng(0), np.random.default_rng(1)]
    different += [torch.zeros(1), torch.zeros(1, dtype=torch.float64), torch.Generator().manual_seed(2)]
    different += [bad, nn.Linear(2, 2), nn.Linear(2, 2)]
    assert all(changed(identity(value=a), identity(value=b)) for a, b in itertools.combinations(different, 2))
    before = identity(value=str(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_text("ab")
    assert changed(before, identity(value=str(tmp_path / "list.csv"))) == "value"
    many = (identity(**dict.fromkeys("abcdefgh", n)) for n in (1, 2))
    assert changed(*many) == "a, b, c, d, e and 3 more"


def test_weights_of_the_trained_model_are_a_value_of_their_own_but_those_of_a_teacher_count():
    one, two = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    two.weight.data += 1
    assert changed(identity(one, model=one.eval()), identity(two, model=two)) == ""
    assert "teacher.weight" in changed(identity(teacher=one), identity(teacher=two))
    assert "model.weight" in changed(identity(one, model=one), identity(one, model=one.requires_grad_(False)))


def test_an_edited_module_is_trained_anew_by_the_next_process(tmp_path):
    course, folder = tmp_path / "course", make_folder(tmp_path / "cells", "abcdef")
    skipped = shutil.ignore_patterns("data", "figures", "tests", "runs", "benchmarks", ".*", "*.ipynb")
    shutil.copytree(ROOT, course, ignore=skipped)
    options = ["--epochs", "1", "--repeats", "1", "--crop", "8", "--batch", "2", "--widths", "2", "2"]
    command = "import sys, commands.train; commands.train.main(sys.argv[1:])"

    def run(old, new, *more):
        path = course / "losses.py"
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
        call = [sys.executable, "-c", command, str(folder), "--output", str(tmp_path / "run"), *options, *more]
        ran = subprocess.run(call, cwd=course, capture_output=True, text=True, encoding="utf-8")
        return ran.stdout + ran.stderr

    text = '    """−log p_y of each pixel, (B, H, W); 0 where ignored."""\n'
    assert "1 epochs in" in run(text, text)
    assert "found in its folder" in run(text, "    # Another text\n    '''For all.'''\n\n")
    assert "holds another run, which differs in losses._nats:" in run("return F.cross", "return 10 * F.cross")
    assert "changed since then: losses._nats: started over" in run(text, text, "--overwrite")


def test_a_library_that_was_imported_meanwhile_makes_no_other_function(monkeypatch):
    def function():
        import wave_of_the_library

        return wave_of_the_library

    before, module = identity(x=function), types.ModuleType("wave_of_the_library")
    module.__file__ = "/usr/lib/site-packages/wave_of_the_library.py"
    monkeypatch.setitem(sys.modules, "wave_of_the_library", module)
    assert changed(before, identity(x=function)) == ""
