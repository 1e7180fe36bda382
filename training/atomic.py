"""Write a file so that it is there whole or not at all: the old content or the new one, never something in between.

The content goes into a temporary file beside the old one and down to the disk (fsync); only then does it take the name,
by a rename, which no system does by half.  So neither a killed process nor a full disk costs the file that was there.
Why each of these calls is needed: Pillai et al., "All file systems are not created equal", OSDI 2014.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from checks import InputError

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows knows no quota


def write_atomically(path: Path, content: bytes | memoryview, *, keep_as: Path | None = None) -> None:
    """Give the file `path` the bytes `content`, all or none of them; `keep_as` is a second name, for the old file.

    Two writers of one path need a lock between them: the temporary file `<name>.part` has one name, so that killed
    processes leave one such file and not hundreds.

    Raises:
        InputError: if the disk is full or the folder read-only; what was saved before is still there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder, "a"), b"first")
    ...     write_atomically(Path(folder, "a"), b"second", keep_as=Path(folder, "b"))
    ...     [(file.name, file.read_text()) for file in sorted(Path(folder).iterdir())]
    [('a', 'second'), ('b', 'first')]
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        try:
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if keep_as is not None:
                with contextlib.suppress(FileNotFoundError):  # the first time there is no old file
                    os.replace(path, keep_as)
            os.replace(part, path)
        finally:
            with contextlib.suppress(OSError):  # after the rename there is nothing to remove
                part.unlink()
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, len(content), error) from error


def require_writable(folder: Path) -> None:
    """Raise `InputError` unless files can be written to `folder`: at the start of a long work, not at its end."""
    trial = folder / "trial-of-writing"
    write_atomically(trial, b"")
    trial.unlink()


def cannot_write(path: Path, size: int, error: OSError) -> InputError:
    """The error to raise when `size` bytes could not be written to `path`: what is wrong, and what to do."""
    reason, advice = error.strerror or error, "Choose another folder, or get the right to write there."
    if error.errno in _NO_ROOM:
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        free = shutil.disk_usage(existing).free
        advice = f"Needed: {size / 1e6:.2f} MB, free: {free / 1e6:.2f} MB. Make room, then run the same cell again."
    return InputError(f"{path} cannot be written: {reason}.\nWhat was saved before is still there.\n{advice}")


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk too; Windows and some network drives cannot, and there the old name may return."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
