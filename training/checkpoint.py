"""Keep a training run on the disk so that no kill, power cut, full disk or second run costs a finished epoch.

A file is written beside the old one, brought to the disk (fsync), and only then renamed, which no system does by half;
the checkpoint before the last is kept.  PyTorch writes a zip file with a CRC-32 of each entry but does not compare them
when it loads, so they are compared here first, and loading runs no code that a file may bring (`weights_only`).
Source: Pillai et al., "All file systems are not created equal", OSDI 2014.
"""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import torch

from checks import InputError

LATEST, PREVIOUS, LOCK = "latest.ckpt", "previous.ckpt", "in-use.lock"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write; after the block it becomes `path`, or the old one stays and an `InputError` says why."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _sync(part, os.O_RDWR)
        os.replace(part, path)
        with contextlib.suppress(OSError):  # Windows and some network drives cannot: there the old name may return
            _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # after the rename there is nothing to remove
            part.unlink()


def _sync(path: Path, flags: int) -> None:
    number = os.open(path, flags)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _cannot_write(path: Path, error: OSError) -> InputError:
    what = f"{path} cannot be written: {error.strerror or error}. What was saved before stays."
    return InputError(f"{what}\nMake room, or choose a folder where you may write; then run the same cell again.")


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (nested tensors, numbers, texts) as the latest checkpoint of `folder`; the one there is kept."""
    latest, buffer = folder / LATEST, io.BytesIO()
    torch.save(state, buffer)  # in memory first: torch hides the reason why a disk refuses
    with replacing(latest) as part:
        part.write_bytes(buffer.getbuffer())
        if latest.exists() and not is_damaged(latest.read_bytes()):  # else it must not push out the one before
            os.replace(latest, folder / PREVIOUS)


def load(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the newest whole state in `folder` (None without any), on the CPU, and a sentence on what was damaged.

    `InputError` if a checkpoint cannot be read or loaded (rights, memory, code in it): it may be whole, and stays.
    """
    damaged = ""
    for path in (folder / LATEST, folder / PREVIOUS):
        try:
            content = path.read_bytes()
            if not is_damaged(content):
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), damaged
        except FileNotFoundError:
            continue
        except Exception as error:  # torch and pickle raise many kinds
            if "PytorchStreamReader" not in str(error):  # else it found damage, where the directory has no checksum
                reason = str(error).strip().partition("\n")[0]
                raise InputError(f"{path} cannot be loaded: {reason}\nMove it away to start over.") from error
        damaged += f"{path.name} is damaged. "
    return None, damaged and f"{damaged}There is no other checkpoint: started over. "


def is_damaged(content: bytes) -> bool:
    """True unless `content` is a zip file, such as `torch.save` writes, whose checksums are all right."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            is_folder = (entry.external_attr & 0x10 for entry in archive.infolist())  # torch would read such as nothing
            return archive.testzip() is not None or any(is_folder)
    except MemoryError:
        raise
    except Exception:  # a damaged directory raises nearly everything
        return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep `folder` for one run, until its process ends; `InputError` if another run is in it, or it is read-only."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(NotImplementedError):  # some network drives know no locks
            lock.acquire(timeout=0)
    except filelock.Timeout as error:
        advice = "Wait for it, stop it (or restart its kernel), or give this run another folder."
        raise InputError(f"Another run trains in {folder} at this moment.\n{advice}") from error
    except OSError as error:
        raise _cannot_write(folder / LOCK, error) from error
    try:
        yield
    finally:
        lock.release()
