"""Checkpoints: nothing that can happen while saving costs the checkpoint that was there, and no damage loads."""

import errno
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from checks import InputError
from tests.disk_helpers import AtCall, in_a_child, kill_myself, send_through
from training import checkpoint, locks

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which this system does not have")


def epoch_in(folder):
    state, _ = checkpoint.load(folder)
    return state and state["epoch"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- save and load --------------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back(tmp_path):
    state = {"model": OrderedDict(w=torch.arange(3.0)), "epoch": 2, "history": [{"loss": 0.5}], "scaler": None}
    checkpoint.save(tmp_path, state)
    found, trouble = checkpoint.load(tmp_path)
    assert torch.equal(found["model"]["w"], torch.arange(3.0)) and found["history"] == [{"loss": 0.5}] and trouble == ""


def test_an_empty_folder_holds_no_state(tmp_path):
    assert checkpoint.load(tmp_path / "nothing") == (None, "")


def test_the_one_before_is_kept(tmp_path):
    for epoch in (1, 2, 3):
        checkpoint.save(tmp_path, {"epoch": epoch})
    assert names(tmp_path) == [checkpoint.LATEST, checkpoint.PREVIOUS]
    (tmp_path / checkpoint.LATEST).unlink()
    assert epoch_in(tmp_path) == 2


@pytest.mark.parametrize("value", [lambda: 0, OSError("a"), Path("a"), threading.Lock()])
def test_a_state_that_could_not_be_loaded_is_refused_when_it_is_saved(tmp_path, value):
    checkpoint.save(tmp_path, {"epoch": 1})
    with pytest.raises(InputError, match=r"cannot be saved: .*(kind pathlib|kind \w+\.OSError|function|lock)"):
        checkpoint.save(tmp_path, {"epoch": 2, "odd": value})
    assert epoch_in(tmp_path) == 1


# ---- 65: failures and kills while saving ----------------------------------------------------------------------------

CALLS = 9  # open, two halves, flush, fsync, latest → previous, part → latest; open the folder, fsync it


def fail():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("k", range(1, CALLS + 2))
def test_fault_65_the_kth_call_fails(tmp_path, monkeypatch, k):
    for epoch in (1, 2):
        checkpoint.save(tmp_path, {"epoch": epoch})
    with monkeypatch.context() as patch:
        step = AtCall(k, fail)
        send_through(step, lambda *a: patch.setattr(*a, raising=False))
        try:
            checkpoint.save(tmp_path, {"epoch": 3})
            saved = True
        except InputError:
            saved = False
    assert saved == (k > CALLS - 2)  # that a folder has no fsync is no failure
    assert epoch_in(tmp_path) == (3 if saved else 2) and checkpoint.load(tmp_path)[1] == ""
    assert set(names(tmp_path)) <= {checkpoint.LATEST, checkpoint.PREVIOUS}
    checkpoint.save(tmp_path, {"epoch": 4})  # and it goes on
    assert epoch_in(tmp_path) == 4
    assert k <= CALLS or step.calls == CALLS  # all calls were tried


@needs_fork
@pytest.mark.parametrize("already", [0, 1, 2])
@pytest.mark.parametrize("k", range(1, CALLS + 1))
def test_fault_65_killed_in_place_of_the_kth_call(tmp_path, k, already):
    for epoch in range(1, already + 1):
        checkpoint.save(tmp_path, {"epoch": epoch})

    def save_and_die():
        send_through(AtCall(k, kill_myself))
        checkpoint.save(tmp_path, {"epoch": 3})
        return "alive"

    assert in_a_child(save_and_die) in (None, "alive")
    assert epoch_in(tmp_path) in (already or None, 3) and checkpoint.load(tmp_path)[1] == ""
    checkpoint.save(tmp_path, {"epoch": 4})
    assert epoch_in(tmp_path) == 4


@needs_fork
@pytest.mark.parametrize("k", range(1, CALLS + 1))
def test_fault_65_killed_over_a_damaged_latest_one(tmp_path, k):
    # The damaged one must not become the previous one: between the two renames nothing whole would be left.
    for epoch in (1, 2):
        checkpoint.save(tmp_path, {"epoch": epoch})
    (tmp_path / checkpoint.LATEST).write_bytes(b"damaged")

    def save_and_die():
        send_through(AtCall(k, kill_myself))
        checkpoint.save(tmp_path, {"epoch": 3})
        return "alive"

    in_a_child(save_and_die)
    assert epoch_in(tmp_path) in (1, 3)


# ---- 66: damage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """A folder with the checkpoints of epochs 1 and 2."""
    for epoch in (1, 2):
        checkpoint.save(tmp_path, {"epoch": epoch})
    return tmp_path


def test_fault_66_cut_at_every_byte(tmp_path):
    latest = checkpoint.save(tmp_path, {"epoch": 2, "w": torch.arange(4.0)})
    content = latest.read_bytes()
    for length in range(len(content)):
        latest.write_bytes(content[:length])
        state, trouble = checkpoint.load(tmp_path)
        assert state is None and "latest.ckpt is damaged; it is kept as latest.corrupt." in trouble
        (tmp_path / "latest.corrupt").unlink()


def test_fault_66_every_single_bit_flipped(tmp_path):
    latest = checkpoint.save(tmp_path, {"epoch": 2, "w": torch.arange(4.0)})
    content = bytearray(latest.read_bytes())
    assert 8 * len(content) >= 10_000
    for position in range(8 * len(content)):
        byte, bit = divmod(position, 8)
        content[byte] ^= 1 << bit
        latest.write_bytes(content)
        assert checkpoint.load(tmp_path)[0] is None
        content[byte] ^= 1 << bit
        (tmp_path / "latest.corrupt").unlink()
    latest.write_bytes(content)
    assert epoch_in(tmp_path) == 2


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 63, b"x" * 64, b"x" * 65, b"PK\x03\x04" + bytes(500)])
def test_fault_66_a_damaged_file_falls_back_says_so_and_is_kept(two, content):
    (two / checkpoint.LATEST).write_bytes(content)
    state, trouble = checkpoint.load(two)
    assert state == {"epoch": 1} and trouble == "latest.ckpt is damaged; it is kept as latest.corrupt. "
    assert (two / "latest.corrupt").read_bytes() == content
    assert checkpoint.load(two) == ({"epoch": 1}, "")
    checkpoint.save(two, {"epoch": 2})
    assert epoch_in(two) == 2


def test_fault_66_both_damaged_starts_over_and_says_so(two):
    for name in (checkpoint.LATEST, checkpoint.PREVIOUS):
        (two / name).write_bytes(b"?")
    state, trouble = checkpoint.load(two)
    assert state is None and trouble.endswith("started over. ")
    assert names(two) == ["latest.corrupt", "previous.corrupt"]


def test_fault_66_an_older_damaged_file_is_not_overwritten(tmp_path):
    for text in (b"first", b"second", b"third"):
        (tmp_path / checkpoint.LATEST).write_bytes(text)
        checkpoint.load(tmp_path)
    found = [(tmp_path / f"latest{number}.corrupt").read_bytes() for number in ("", "-2", "-3")]
    assert found == [b"first", b"second", b"third"]


@pytest.mark.skipif(os.name == "nt", reason="Windows reads a folder as a file without rights")
def test_fault_66_a_folder_in_the_place_of_the_file(two):
    (two / checkpoint.LATEST).unlink()
    (two / checkpoint.LATEST / "inside").mkdir(parents=True)
    state, trouble = checkpoint.load(two)
    assert state == {"epoch": 1} and "cannot be read" in trouble and (two / "latest.corrupt" / "inside").is_dir()


def test_fault_66_a_disk_that_cannot_read_the_file_any_more(two, monkeypatch):
    real = Path.read_bytes

    def fail_for_latest(path):
        if path.name == checkpoint.LATEST:
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", fail_for_latest)
    state, trouble = checkpoint.load(two)
    assert state == {"epoch": 1} and "cannot be read (Input/output error)" in trouble


@needs_fork
@pytest.mark.parametrize("action", [checkpoint.load, lambda folder: checkpoint.save(folder, {"epoch": 3})])
def test_fault_66_a_file_without_the_right_to_read_it_is_left_alone(two, action):
    # It is whole: to set it aside and to start over would lose the run.
    (two / checkpoint.LATEST).chmod(0)
    two.chmod(0o777)

    def as_another_user():
        os.chdir(two)
        if os.geteuid() == 0:
            os.setuid(65534)
        with pytest.raises(InputError, match="cannot be read: Permission denied"):
            action(Path())
        return "refused"

    assert in_a_child(as_another_user) == "refused"
    assert names(two) == [checkpoint.LATEST, checkpoint.PREVIOUS]


def test_fault_66_a_damaged_file_that_cannot_be_renamed_is_told(two, monkeypatch):
    (two / checkpoint.LATEST).write_bytes(b"?")
    monkeypatch.setattr(os, "replace", lambda *_: fail())
    with pytest.raises(InputError, match="latest.corrupt cannot be written"):
        checkpoint.load(two)


# ---- other versions -------------------------------------------------------------------------------------------------


def as_of_today(content, format_line=checkpoint._FORMAT):
    content += format_line
    return content + checkpoint._digest(memoryview(content))


def torch_bytes(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("format_line", [b"", checkpoint._FORMAT.replace(b"2", b"3")])
def test_a_file_of_another_version_starts_over_and_is_kept(tmp_path, format_line):
    content = as_of_today(torch_bytes({"epoch": 5}), format_line)
    (tmp_path / checkpoint.LATEST).write_bytes(content)
    state, trouble = checkpoint.load(tmp_path)
    assert state is None and "another version of this course" in trouble and "started over" in trouble
    assert (tmp_path / "latest.other-version").read_bytes() == content


# ---- 67, 68: disk full, read-only -----------------------------------------------------------------------------------


@needs_fork
def test_fault_67_a_limit_on_the_size_of_files(tmp_path):
    resource = pytest.importorskip("resource", reason="limits on the size of files exist on POSIX systems only")
    checkpoint.save(tmp_path, {"epoch": 1})

    def save_too_much():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(InputError, match="Needed: 4.00 MB, free: "):
            checkpoint.save(tmp_path, {"epoch": 2, "w": torch.zeros(1_000_000)})
        return "refused"

    assert in_a_child(save_too_much) == "refused"
    assert epoch_in(tmp_path) == 1 and names(tmp_path) == [checkpoint.LATEST]


FILL = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
import torch, checkpoint
from checks import InputError
folder, saved = Path({folder!r}), 0
try:
    for epoch in range(1, 100):
        checkpoint.save(folder, {{"epoch": epoch, "w": torch.full((epoch * 20_000,), float(epoch))}})
        saved = epoch
except InputError as error:
    message = str(error)
state, trouble = checkpoint.load(folder)
assert 2 < saved < 99 and state["epoch"] == saved and (state["w"] == saved).all() and trouble == "", (saved, trouble)
print(message)
"""


@pytest.mark.slow
def test_fault_67_a_disk_of_2_megabytes(tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare to mount a disk of its own")
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    command = f'mount -t tmpfs -o size=2m none "{tmp_path}" && exec "$0" "$@"'
    if subprocess.run([*mount, command, "true"], capture_output=True).returncode:
        pytest.skip("this system does not let a user mount a small disk")
    program = FILL.format(root=str(Path(checkpoint.__file__).parent), folder=str(tmp_path))
    result = subprocess.run([*mount, command, sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "No space left on device" in result.stdout and "Needed: " in result.stdout


@needs_fork
@pytest.mark.parametrize("with_lock_file", [False, True])
def test_fault_68_a_read_only_folder_fails_at_the_start(tmp_path, with_lock_file):
    if with_lock_file:  # the folder became read-only later: the lock can be had, but nothing written
        (tmp_path / checkpoint.LOCK).touch()
        (tmp_path / checkpoint.LOCK).chmod(0o666)
    tmp_path.chmod(0o555)

    def as_another_user():
        os.chdir(tmp_path)
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write everywhere
        with pytest.raises(InputError, match="cannot be written: Permission denied"), checkpoint.locked(Path()):
            return "entered"
        return "refused"

    assert in_a_child(as_another_user) == "refused"
    tmp_path.chmod(0o755)


def test_fault_68_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="cannot be written"), checkpoint.locked(tmp_path / "run"):
        pass


# ---- 72, 74: from elsewhere -----------------------------------------------------------------------------------------


def test_fault_72_the_checkpoint_of_a_gpu_loads_on_the_cpu(tmp_path, monkeypatch):
    # Each tensor in the file says where it was; here they all say that it was the first GPU.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
    checkpoint.save(tmp_path, {"w": torch.arange(3.0)})
    monkeypatch.undo()
    assert b"cuda:0" in (tmp_path / checkpoint.LATEST).read_bytes()
    found, trouble = checkpoint.load(tmp_path)
    assert torch.equal(found["w"], torch.arange(3.0)) and found["w"].device.type == "cpu" and trouble == ""


def test_fault_72_a_checkpoint_from_this_device(tmp_path, device):
    checkpoint.save(tmp_path, {"w": torch.arange(3.0, device=device)})
    assert torch.equal(checkpoint.load(tmp_path)[0]["w"], torch.arange(3.0))


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("kind", ["torch", "plain pickle", "torch, old layout", "not a dict"])
def test_fault_74_a_file_with_code_in_it_is_refused_though_its_digest_is_right(two, kind):
    mark = two / "evil-was-here"
    contents = {
        "torch": torch_bytes({"epoch": Evil(str(mark))}),
        "plain pickle": pickle.dumps({"epoch": Evil(str(mark))}),
        "not a dict": torch_bytes([1, 2]),
        "torch, old layout": pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps({"epoch": Evil(str(mark))}),
    }
    (two / checkpoint.LATEST).write_bytes(as_of_today(contents[kind]))
    state, trouble = checkpoint.load(two)
    assert state == {"epoch": 1} and not mark.exists()
    assert ("refused" in trouble) == (kind != "not a dict") and (two / "latest.corrupt").exists()


# ---- 73: one run a folder -------------------------------------------------------------------------------------------


def test_fault_73_a_second_run_is_refused_in_one_process(tmp_path):
    with checkpoint.locked(tmp_path) as note:
        assert note == ""
        with pytest.raises(InputError, match="Another run trains in"), checkpoint.locked(tmp_path):
            pass
        refused = []

        def enter():
            try:
                with checkpoint.locked(tmp_path):
                    pass
            except InputError:
                refused.append(True)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert refused == [True]
        with checkpoint.locked(tmp_path / "other"):
            pass
    with checkpoint.locked(tmp_path):
        pass


def test_fault_73_an_error_gives_the_folder_free(tmp_path):
    with pytest.raises(KeyboardInterrupt), checkpoint.locked(tmp_path):
        raise KeyboardInterrupt
    with checkpoint.locked(tmp_path):
        pass


def enter(folder):
    try:
        with checkpoint.locked(folder):
            return "entered"
    except InputError as error:
        return str(error)


@needs_fork
def test_fault_73_a_second_process_is_refused(tmp_path):
    with checkpoint.locked(tmp_path):
        assert in_a_child(lambda: enter(tmp_path)).startswith("Another run trains in")
        # The end of that process has not given the folder free.
        assert in_a_child(lambda: enter(tmp_path)).startswith("Another run trains in")
    assert in_a_child(lambda: enter(tmp_path)) == "entered"


@needs_fork
def test_fault_73_the_lock_goes_with_its_process_though_its_workers_live_on(tmp_path):
    # A worker of a DataLoader is a fork of the process that trains, and can outlive it for seconds.
    reading, writing = os.pipe()
    trainer = os.fork()
    if trainer == 0:
        with checkpoint.locked(tmp_path):
            worker = os.fork()
            if worker:
                os.write(writing, str(worker).encode())
            while True:
                signal.pause()
    worker = int(os.read(reading, 20))
    try:
        assert enter(tmp_path).startswith("Another run trains in")
        os.kill(trainer, signal.SIGKILL)
        os.waitpid(trainer, 0)
        os.kill(worker, 0)  # it is there
        assert enter(tmp_path) == "entered"
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


@pytest.mark.skipif(os.name == "nt", reason="Windows has locks everywhere")
def test_fault_31_a_drive_without_locks_is_used_and_told(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with checkpoint.locked(tmp_path) as note:
        assert "without locks" in note
