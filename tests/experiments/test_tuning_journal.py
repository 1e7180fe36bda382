"""The memory of a search: torn lines, locks of dead processes, damaged files; and a real PostgreSQL server."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks import InputError
from experiments.tuning import open_study
from experiments.tuning_journal import Journal, locked, open_storage
from experiments.tuning_tables import trial_rows
from tests.experiments.test_tuning import check_search
from tests.tuning_helpers import ROOT, go, kill, start_worker, wait_until


def records(path: Path) -> list[dict]:
    return list(Journal(path).read_logs(0))


def test_what_is_appended_is_read_from_any_number_on(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    for number in range(5):
        (journal, other)[number % 2].append_logs([{"n": number}])
    assert list(journal.read_logs(0)) == [{"n": n} for n in range(5)]
    assert list(journal.read_logs(3)) == [{"n": 3}, {"n": 4}]
    other.append_logs([{"n": 5}, {"n": 6}])
    assert list(journal.read_logs(5)) == [{"n": 5}, {"n": 6}]
    assert list(journal.read_logs(7)) == []
    assert list(journal.read_logs(1))[0] == {"n": 1}  # back again


def test_fault_90_a_torn_last_line_is_cut_off_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "j"
    Journal(path).append_logs([{"n": 0}, {"n": 1, "text": "ä"}])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):  # at every byte
        path.write_bytes(whole[:cut])
        kept = whole[:cut].count(b"\n")
        journal = Journal(path)
        assert len(list(journal.read_logs(0))) == kept
        journal.append_logs([{"n": 9}])
        assert [record["n"] for record in records(path)] == [0, 1][:kept] + [9]
        torn = whole[:cut][(0, first, len(whole))[kept] :]
        assert [file.read_bytes() for file in tmp_path.glob("j.torn-*")] == [torn][: bool(torn)]
        for file in tmp_path.glob("j.torn-*"):
            file.unlink()


def test_fault_90_a_line_that_another_process_tears_meanwhile_is_cut_too(tmp_path: Path) -> None:
    first, reader = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    first.append_logs([{"n": 0}])
    with open(tmp_path / "j", "ab") as file:
        file.write(b'{"n": 1, "te')  # killed here
    assert list(reader.read_logs(0)) == [{"n": 0}]
    first.append_logs([{"n": 2}])
    assert list(reader.read_logs(1)) == [{"n": 2}]


def test_fault_90_a_study_with_a_torn_line_opens(tmp_path: Path) -> None:
    study = open_study(tmp_path / "j")
    study.tell(study.ask(), 0.5)
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(whole[:-20])
    study = open_study(tmp_path / "j")
    study.tell(study.ask(), 0.7)
    assert [trial.value for trial in open_study(tmp_path / "j").trials] == [None, 0.7]


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j"
    Journal(path).append_logs([{"n": n} for n in range(3)])
    path.write_bytes(path.read_bytes().replace(b'{"n":1}', b'{"n"\0\0\0'))
    with pytest.raises(InputError, match="line 2 of the journal is damaged"):
        Journal(path)


HOLDER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from experiments.tuning_journal import locked
print("asks", flush=True)
with locked(Path({path!r})):
    print("inside", flush=True)
    sys.stdin.readline()
"""


def test_fault_91_the_lock_of_a_dead_process_is_taken_at_once(tmp_path: Path) -> None:
    code = HOLDER.format(root=str(ROOT), path=str(tmp_path / "j"))
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert [holder.stdout.readline() for _ in range(2)] == ["asks\n", "inside\n"]
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "asks\n"
    assert not select.select([writer.stdout], [], [], 0.3)[0]  # one at a time
    began = time.monotonic()
    kill(holder)
    assert writer.stdout.readline() == "inside\n"
    assert time.monotonic() - began < 5  # Optuna's own lock waits for 30 s
    kill(writer)
    began = time.monotonic()
    with locked(tmp_path / "j"):
        assert time.monotonic() - began < 1


@pytest.mark.skipif(os.name != "posix", reason="flock is replaced")
def test_a_drive_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: object, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(InputError, match="cannot lock files"):
        Journal(tmp_path / "j")


def test_no_storage_is_the_memory_and_an_address_a_database(tmp_path: Path) -> None:
    assert open_storage(None) is None
    study = open_study(f"sqlite:///{tmp_path / 'study.db'}")
    study.tell(study.ask(), 0.5)
    assert open_study(f"sqlite:///{tmp_path / 'study.db'}").best_value == 0.5


def test_a_wrong_address_is_one_clear_error_without_the_password() -> None:
    driver = importlib.util.find_spec("psycopg2") is not None
    address = "postgresql://me:secret@127.0.0.1:9/none" if driver else "postgresql://me:secret@host/none"
    with pytest.raises(InputError, match="cannot be used|driver") as caught:
        open_study(address)
    assert "secret" not in str(caught.value) and len(str(caught.value).splitlines()) <= 4
    with pytest.raises(InputError):
        open_study("nonsense://host/none")


def test_a_driver_that_is_missing_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for driver in ("psycopg2", "psycopg"):
        monkeypatch.setitem(sys.modules, driver, None)  # as if it were not installed
    with pytest.raises(InputError, match=r"driver.* is missing[^\n]*\n.*pip install psycopg2-binary"):
        open_storage("postgresql://me:secret@host/none")


# ---- PostgreSQL ----


def as_other_user(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root; then the user nobody runs it."""
    if os.getuid() != 0:
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and setpriv is not there to become another user")
    import pwd

    nobody = pwd.getpwnam("nobody")
    return ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", *command]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of a database on a server that runs for these tests alone."""
    if os.name != "posix" or shutil.which("initdb") is None or shutil.which("postgres") is None:
        pytest.skip("there is no PostgreSQL server on this machine (initdb, postgres)")
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("the driver psycopg2 is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if os.getuid() == 0:
        shutil.chown(folder, "nobody")
    try:
        initdb = ["initdb", "-D", str(folder / "db"), "-A", "trust", "-U", "course", "-N", "--locale=C", "-E", "UTF8"]
        subprocess.run(as_other_user(initdb), check=True, capture_output=True, cwd=folder)
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(folder),
            "port": port,
            "fsync": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = as_other_user(["postgres", "-D", str(folder / "db"), *options])
        with open(folder / "log", "wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            wait_until(lambda: server.poll() is not None or b"ready to accept" in (folder / "log").read_bytes())
            assert server.poll() is None, (folder / "log").read_text()
            yield f"postgresql://course@127.0.0.1:{port}/postgres"
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.send_signal(signal.SIGINT)  # the fast shutdown
            server.wait(timeout=20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_fault_92_two_processes_on_a_postgresql_server_and_one_is_killed(postgres: str, tmp_path: Path) -> None:
    workers = [start_worker(postgres, tmp_path / "t", trials=14, pause=0.05) for _ in range(2)]
    go(*workers)
    assert workers[0].stdout is not None
    for _ in range(2):
        assert workers[0].stdout.readline() == "trial\n"
    kill(workers[0])
    output, _ = workers[1].communicate(timeout=90)
    assert workers[1].returncode == 0
    study = open_study(postgres, "test")
    check_search(study, 14)
    assert output.count("trial") >= 10
    cut = [row for row in trial_rows(study) if row["state"] == "continued"]
    assert [row["reason"] for row in cut] == ["the process was killed"]
