"""Keep the state of a training run in a folder so that no kill, power cut, full disk or second run costs an epoch.

- A new checkpoint is written beside the last one and renamed only when it is whole and on the disk; the one before is
  kept.  At every moment one of the two can be loaded.
- A file ends with its format and the SHA-256 of all that comes before.  Without it a damaged checkpoint often loads
  without any error, only with other weights.
- Loading runs no code that a file may bring (`weights_only`).
- `locked` keeps a second run out of the folder, for as long as the process of the first one lives.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from checks import InputError
from training import locks
from training.atomic import cannot_write, require_writable, write_atomically

LATEST, PREVIOUS = "latest.ckpt", "previous.ckpt"
LOCK = "in-use.lock"
_FORMAT = b"\nsegmentation checkpoint, format 2\n"  # format 1 ended with the digest alone
_DIGEST = 64  # characters


class _Unusable(Exception):
    """Why a file cannot be taken, and the ending under which it is kept."""

    def __init__(self, reason: str, ending: str = ".corrupt"):
        super().__init__(reason)
        self.ending = ending


# ---- save and load --------------------------------------------------------------------------------------------------


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state` as the latest checkpoint of `folder`; the one that was the latest becomes the previous one.

    Args:
        folder: made if it is missing.
        state: tensors, numbers, texts, and lists and dicts of them.

    Raises:
        InputError: if the disk is full, the folder read-only, or the state holds something else.  One of the
            checkpoints on the disk stays whole.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(Path(folder), {"epoch": 3})
    ...     load(Path(folder))
    ({'epoch': 3}, '')
    """
    latest, buffer = folder / LATEST, io.BytesIO()
    try:
        torch.save(state, buffer)
        size = buffer.tell()
        buffer.seek(0)
        torch.load(buffer, map_location="meta", weights_only=True)  # what cannot be loaded is found now, not later
    except Exception as error:  # pickle and torch raise many kinds
        kind = re.search(r"GLOBAL (\S+)", str(error))  # torch hides it in a dozen lines about trust
        reason = f"it holds something of the kind {kind[1]}." if kind else str(error).partition("\n")[0]
        raise InputError(
            f"The state of the run cannot be saved: {reason}\n"
            "Keep only tensors, numbers, texts, lists and dicts in it, and in the state_dict of model and loss."
        ) from error
    buffer.seek(size)
    buffer.write(_FORMAT)
    buffer.write(_digest(buffer.getbuffer()))
    try:
        _read(latest)
        keep_as = folder / PREVIOUS
    except (FileNotFoundError, _Unusable):  # a damaged one must not push out the one before, which may be whole
        keep_as = None
    write_atomically(latest, buffer.getbuffer(), keep_as=keep_as)
    return latest


def load(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the newest whole state in `folder`, on the CPU, and a sentence on what was found wrong ("" if nothing).

    A file that is damaged, holds code, or comes from another version is set aside under another name.  The state is
    None where no checkpoint is left.

    Raises:
        InputError: if a checkpoint is there, but may not be read or renamed.
    """
    trouble = ""
    for name in (LATEST, PREVIOUS):
        try:
            return _decode(_read(folder / name)), trouble
        except FileNotFoundError:
            continue
        except _Unusable as reason:
            trouble += f"{name} {reason}; it is kept as {_set_aside(folder / name, reason.ending)}. "
    return None, trouble and f"{trouble}There is no other checkpoint: started over. "


def _read(path: Path) -> memoryview:
    """All bytes before the digest, if they are those that were written."""
    try:
        content = memoryview(path.read_bytes())
    except FileNotFoundError:
        raise
    except PermissionError as error:  # nothing is damaged, so nothing is given up
        raise InputError(
            f"{path} cannot be read: {error.strerror}.\nGet the right to read it, or move it away."
        ) from error
    except OSError as error:
        raise _Unusable(f"cannot be read ({error.strerror})") from error
    content, digest = content[:-_DIGEST], content[-_DIGEST:]
    if _digest(content) != digest:
        raise _Unusable("is damaged")
    return content


def _decode(content: memoryview) -> dict[str, Any]:
    if content[-len(_FORMAT) :] != _FORMAT:
        raise _Unusable("comes from another version of this course", ".other-version")
    try:
        state = torch.load(io.BytesIO(content[: -len(_FORMAT)]), map_location="cpu", weights_only=True)
    except Exception as error:  # the digest is right, so somebody made it like this; torch raises many kinds
        raise _Unusable("holds more than tensors, numbers and texts, so it could run a program: refused") from error
    if not isinstance(state, dict):
        raise _Unusable("does not hold the state of a run")
    return state


def _digest(content: memoryview) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _set_aside(path: Path, ending: str) -> str:
    """Rename a file to a name that is still free, and return that name."""
    names = itertools.chain([path.stem + ending], (f"{path.stem}-{n}{ending}" for n in itertools.count(2)))
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    try:
        os.replace(path, aside)
    except OSError as error:
        raise cannot_write(aside, 0, error) from error
    return aside.name


# ---- one run a folder -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Keep `folder` for one run; gives a sentence where the file system knows no locks, else "".

    The system itself drops the lock when the process ends, however it ends.  The file of the lock stays, because
    whoever removed it could remove that of the next run.

    Raises:
        InputError: if another run is in the folder (in this process or another), or if the folder is read-only.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = io.FileIO(folder / LOCK, "a")
    except OSError as error:
        raise cannot_write(folder / LOCK, 0, error) from error
    _locks.add(file)
    try:
        note = _lock(file, folder)
        require_writable(folder)
        yield note
    finally:
        _locks.discard(file)
        file.close()


_locks: set[io.FileIO] = set()


def _lock(file: io.FileIO, folder: Path) -> str:
    try:
        is_ours = locks.take(file, wait=False)
    except OSError:
        return f"{folder} lies on a drive without locks: take care that no second run uses it. "
    if not is_ours:
        raise InputError(
            f"Another run trains in {folder} at this moment.\n"
            "Wait for it, stop it (or restart its kernel), or give this run another folder."
        )
    return ""


def _leave_locks_to_parent() -> None:
    """In a forked process, such as a worker of a DataLoader: else it would go on holding the lock of a dead parent."""
    for file in _locks:
        file.close()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_parent)
