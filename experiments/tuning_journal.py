"""Where a search is kept: a journal file that several processes write and that no kill can spoil, or a database.

Each line of a journal is one record in JSON, as Optuna's `JournalStorage` wants it.  Three things are done
otherwise than in Optuna's own file backend:

- A process that is killed while it writes leaves half a line.  Whatever is then appended to it can never be read again.
  Here the half line is cut off before the next one is written, under the lock, and a copy of it is kept.
- A process that is killed while it holds the lock leaves a lock file, and others wait for half a minute.  Here the lock
  belongs to the operating system, which takes it back in the moment the process ends.
- A damaged line in the middle, which no kill can make, is named by its number.

Sources: flock(2), POSIX.1 rename and fsync; Optuna, Akiba et al., 2019 (arXiv:1907.10902).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from checks import InputError
from training import locks

Record = dict[str, Any]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process is inside for this path, and keep others out.

    The lock is held on the file `NAME.lock` beside it, which stays; it is free as soon as its holder ends or dies.

    Raises `InputError` if the folder's file system knows no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "ab") as file:
        try:
            locks.take(file, wait=True)
        except OSError as error:
            raise InputError(
                f"{path.parent} cannot lock files ({error.strerror}), so two processes would spoil the journal.\n"
                "Put the journal on a disk of this machine, or use the address of a database as storage."
            ) from error
        try:
            yield
        finally:
            locks.release(file)


class Journal:
    """The backend of an `optuna.storages.JournalStorage`: records are appended, never changed.

    Args:
        path: the file; it is made if it does not exist, and repaired if its last line is torn.

    Raises:
        InputError: if a line before the last one is damaged, or the folder cannot be locked.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._read_so_far = (0, 0)  # records, and the byte after the last of them
        with locked(self.path):
            with open(self.path, "ab"):
                pass
            _check_lines(self.path)
            self._cut_torn_line()

    def read_logs(self, log_number_from: int) -> Iterator[Record]:
        """All whole records from this number on; one that is being written now is left for the next time."""
        number, position = self._read_so_far if self._read_so_far[0] <= log_number_from else (0, 0)
        with open(self.path, "rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                number, position = number + 1, position + len(line)
                if number > log_number_from:
                    record = json.loads(line)
                    self._read_so_far = (number, position)
                    yield record

    def append_logs(self, logs: list[Record]) -> None:
        """Add records behind the last whole one; when this returns they are on the disk."""
        text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in logs)
        with locked(self.path):
            self._cut_torn_line()
            with open(self.path, "ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())

    def _cut_torn_line(self) -> None:
        """Take half a line off the end, if there is one; it is kept as `NAME.torn-NUMBER`."""
        with open(self.path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end == 0 or _ends_well(file, end):
                return
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.seek(whole)
            torn = file.read()
            backups = len(list(self.path.parent.glob(f"{self.path.name}.torn-*")))
            self.path.with_name(f"{self.path.name}.torn-{backups + 1}").write_bytes(torn)
            file.truncate(whole)
            os.fsync(file.fileno())


def _ends_well(file: BinaryIO, end: int) -> bool:
    file.seek(end - 1)
    return file.read(1) == b"\n"


def _check_lines(path: Path) -> None:
    """Raise `InputError` if a line that ends is no record: such damage is not the work of a kill."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                fine = not line.endswith(b"\n") or isinstance(json.loads(line), dict)
            except ValueError:
                fine = False
            if not fine:
                raise InputError(
                    f"{path}: line {number} of the journal is damaged ({line[:30]!r}).\n"
                    "Copy the file, then delete this line and all below it; what they tell is lost. Or take a new file."
                )


def open_storage(storage: str | Path | None) -> Any:
    """What Optuna keeps a study in: None for the memory, a journal file, or a database with an address "…://…".

    Raises:
        InputError: if the database cannot be reached, its driver is not installed, or the journal is damaged.
    """
    from optuna.storages import JournalStorage, RDBStorage

    if storage is None:
        return None
    if "://" not in str(storage):
        return JournalStorage(Journal(storage))  # type: ignore[arg-type]  # it has the two methods that count
    try:  # pool_pre_ping: a trial may last longer than the server keeps a silent connection
        return RDBStorage(_with_driver(str(storage)), engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        raise InputError(
            f"The driver of this database is missing: {str(error.__cause__ or error).rstrip('.')}.\n"
            "For PostgreSQL: pip install psycopg2-binary. Or use a journal file: storage='runs/search.journal'."
        ) from error
    except Exception as error:  # of SQLAlchemy or of the driver; the address may hold a password, so it is not shown
        reason = str(getattr(error, "orig", error)).strip().partition("\n")[0]
        raise InputError(f"The database cannot be used: {reason}.\nCheck its address, and that it runs.") from error


def _with_driver(address: str) -> str:
    """The address with the driver that is installed: SQLAlchemy's own choice for PostgreSQL changed in version 2.1."""
    kind, mark, rest = address.partition("://")
    if kind in ("postgresql", "postgres"):
        for driver in ("psycopg2", "psycopg"):
            if importlib.util.find_spec(driver) is not None:
                return f"postgresql+{driver}{mark}{rest}"
    return address
