"""Writing whole or not at all: whichever call fails, the file is the old one or the new one."""

import errno
import os

import pytest
from training.atomic import cannot_write, require_writable, write_atomically

from checks import InputError
from tests.disk_helpers import AtCall, in_a_child, send_through

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which this system does not have")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_content_arrives_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    write_atomically(path, b"one")
    write_atomically(path, memoryview(b"two"))
    assert path.read_bytes() == b"two" and names(path.parent) == ["a.txt"]


def test_the_old_file_gets_its_second_name(tmp_path):
    for text in (b"1", b"2", b"3"):
        write_atomically(tmp_path / "a", text, keep_as=tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == b"3" and (tmp_path / "b").read_bytes() == b"2"


def test_a_temporary_file_that_a_killed_process_left_is_no_hindrance(tmp_path):
    (tmp_path / "a.part").write_bytes(b"torn, and longer than the new content")
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new" and names(tmp_path) == ["a"]


def fail_with(number):
    def fail():
        raise OSError(number, os.strerror(number))

    return fail


def test_fault_65_the_kth_call_fails_for_every_k(tmp_path, monkeypatch):
    path = tmp_path / "a"
    for k in range(1, 100):
        path.write_bytes(b"old content")
        with monkeypatch.context() as patch:
            step = AtCall(k, fail_with(errno.EIO))
            send_through(step, lambda *a: patch.setattr(*a, raising=False))
            try:
                write_atomically(path, b"new content")
                failed = False
            except InputError:
                failed = True
        assert path.read_bytes() == (b"old content" if failed else b"new content") and names(tmp_path) == ["a"]
        if step.calls < k:  # no call number k any more: all were tried
            break
    # open, two halves, flush, fsync, replace; open the folder, fsync it
    assert k - 1 == 8


def test_the_content_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    calls = []

    def step(call, *arguments, **named):
        calls.append(getattr(call, "__name__", ""))
        return call(*arguments, **named)

    send_through(step, lambda *a: monkeypatch.setattr(*a, raising=False))
    write_atomically(tmp_path / "a", b"content")
    # The second open and fsync are those of the folder: without them a power cut could bring the old name back.
    assert calls == ["open", "write", "write", "flush", "fsync", "replace", "open", "fsync"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_fault_67_a_full_disk_says_how_much_is_needed(tmp_path, monkeypatch, number):
    send_through(AtCall(3, fail_with(number)), lambda *a: monkeypatch.setattr(*a, raising=False))
    with pytest.raises(InputError, match=r"Needed: 2\.00 MB, free: [\d.]+ MB") as caught:
        write_atomically(tmp_path / "a", bytes(2_000_000))
    assert str(caught.value).count("\n") < 4 and names(tmp_path) == []


def test_fault_67_a_disk_too_full_for_a_folder(tmp_path):
    message = str(cannot_write(tmp_path / "not" / "there" / "a", 5_000_000, OSError(errno.ENOSPC, "full")))
    assert "Needed: 5.00 MB, free: " in message


@needs_fork
def test_fault_68_a_read_only_folder_is_refused(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    folder.chmod(0o555)

    def try_it():
        os.chdir(folder)  # the folders above may be closed to the other user
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write everywhere
        with pytest.raises(InputError, match="trial-of-writing cannot be written: Permission denied") as caught:
            require_writable(tmp_path.__class__())
        return str(caught.value)

    assert "Choose another folder" in (in_a_child(try_it) or "")


def test_a_writable_folder_stays_as_it_is(tmp_path):
    require_writable(tmp_path)
    assert names(tmp_path) == []


def test_a_folder_in_the_place_of_the_file_is_told(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_atomically(tmp_path / "a", b"content")
    assert names(tmp_path) == ["a"]
