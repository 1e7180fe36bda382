"""Write an .hdf5 file that proves that it is sound, and open no other one.

HDF5 does not check what it reads: of 3000 files with some flipped bits in their structure, four ended the process
(segmentation fault) and one kept it busy for seconds.  So the first 512 bytes, which HDF5 leaves to its users, hold the
SHA-256 of all the others, and it is compared before the library sees the file.  And because somebody may spoil a file
and stamp it anew, a file that this process has not written is first read in another one, with a limit of time.

Then the file may still hold links into other files of this computer, or declare an array of a million gigabytes that is
nowhere stored: nothing of that is followed or read.  And some drives (Google Drive in Colab, some networks) cannot lock
a file: there it is written without a lock, and read from a copy on the local disk, which no other kernel can change.

What our own files hold is checked in `hdf5.py`.  Source: HDF5, https://docs.hdfgroup.org/hdf5 (user block, links).
"""

from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from checks import InputError

STAMP_BYTES = 512  # the smallest user block
_MAGIC = b"segmentation, SHA-256 of all that follows this block: "
MAX_VALUES = 2**28  # of one array: 8192 × 8192 pixels of four channels
MAX_RATIO = 1100  # of bytes declared to bytes of the file: gzip packs 1032 : 1 at most
REBUILD = "Delete it and build it again."
PROBE = Path(__file__).with_name("hdf5probe.py")
SECONDS, BYTES_PER_SECOND = 20, 2**23  # so long HDF5 may take for a file from elsewhere, and more for a large one
_KNOWN: set[bytes] = set()  # checksums of files that this process has written, or has had read by another one


def one_line(error: Exception) -> str:
    """What a library says, in one line: HDF5 puts a line break into the time, and sizes and addresses after it.

    >>> one_line(OSError("Can't read (time = Thu Nov 20" + chr(10) + ", errno = 5)"))
    "Can't read (time = Thu Nov 20 , errno = 5)"
    """
    return " ".join(str(error).split())[:150]


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Open a file for reading and give its `h5py.File`, after `check_stamp`, `check_links` and `check_sizes`.

    Raises `InputError` if it does not exist, is damaged or of another kind, is being written by another process, or
    is not safe.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist. Build it with data.prepare or data.build_hdf5.")
    _check_in_a_child(path, check_stamp(path))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        try:
            file = _open(path, Path(scratch))
        except BlockingIOError as error:
            raise InputError(f"{path} is being written by another kernel. Close or restart that one.") from error
        except OSError as error:
            raise InputError(f"{path} cannot be opened. {REBUILD}\nFound: {one_line(error)}") from error
        with file:
            with said_plainly(path):
                check_links(file, path)
                check_sizes(file, path)
            yield file


@contextmanager
def said_plainly(path: Path) -> Iterator[None]:
    """Turn whatever h5py raises on a damaged file, which is nearly everything, into one `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is damaged. {REBUILD}\nFound: {one_line(error)}") from error


def _open(path: Path, scratch: Path) -> Any:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if not _cannot_lock(error):
            raise
    return h5py.File(shutil.copyfile(path, scratch / path.name), "r")


def create_file(path: Path) -> Any:
    """A new `h5py.File` for writing, without a lock where the drive knows none; when it is closed, `stamp` it."""
    try:
        return h5py.File(path, "w", userblock_size=STAMP_BYTES)
    except OSError as error:
        if not _cannot_lock(error):
            raise
    return h5py.File(path, "w", userblock_size=STAMP_BYTES, locking=False)


def stamp(path: Path) -> None:
    """Write the SHA-256 of a closed file into its first block."""
    checksum = _sha256_of_rest(path)
    with open(path, "r+b") as stream:
        stream.write((_MAGIC + checksum).ljust(STAMP_BYTES, b"\0"))
    _KNOWN.add(checksum)


def check_stamp(path: Path) -> bytes:
    """Return the SHA-256 of a file; raise `InputError` unless it is what `stamp` has seen, bit for bit."""
    try:
        with open(path, "rb") as stream:
            block = stream.read(STAMP_BYTES)
        found = _sha256_of_rest(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}.\nGet the right to read it, or move it away."
        ) from error
    if not block.startswith(_MAGIC):
        raise InputError(f"{path} is of another kind or version: it begins with {block[:12]!r}.\n{REBUILD}")
    if block != (_MAGIC + found).ljust(STAMP_BYTES, b"\0"):
        raise InputError(
            f"{path}: the file is damaged or was cut off (SHA-256), or another kernel is changing it.\n"
            f"Close or restart such a kernel. Else: {REBUILD[0].lower()}{REBUILD[1:]}"
        )
    return found


def _check_in_a_child(path: Path, checksum: bytes) -> None:
    """Let another process read a file from elsewhere; raise `InputError` if that one crashes or does not end.

    A stamp is no secret: whoever spoils a file on purpose can stamp it, too.
    """
    if checksum in _KNOWN or not sys.executable:
        return
    limit = SECONDS + path.stat().st_size / BYTES_PER_SECOND
    nowhere = subprocess.DEVNULL
    try:
        command = [sys.executable, str(PROBE), str(path)]
        code = subprocess.run(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        code = -1
    if code < 0 or code > 255:  # ended by a signal; the large numbers are those of Windows
        raise InputError(f"{path} is damaged: HDF5 crashes on it, or does not come to an end.\n{REBUILD}")
    _KNOWN.add(checksum)


def _sha256_of_rest(path: Path) -> bytes:
    """The hexadecimal SHA-256 of all after the first block."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        stream.seek(STAMP_BYTES)
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest().encode()


def _cannot_lock(error: OSError) -> bool:
    """True if the drive has no locks; False if another process holds the lock, or for any other error."""
    return "unable to lock file" in str(error) and not isinstance(error, BlockingIOError)


def check_links(file: Any, path: Path) -> None:
    """Raise `InputError` unless all groups and arrays, two levels deep, are stored in this very file.

    Links are looked at and not followed; an array may also have its bytes in a foreign file without any link.
    """
    for name in file:
        _check_link(file, name, path)
        if isinstance(file[name], h5py.Group):
            for key in file[name]:
                _check_link(file[name], key, path)


def _check_link(group: Any, name: str, path: Path) -> None:
    place = f"{group.name.rstrip('/')}/{name}"
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        where = f"to {link.path}" + (f" in {link.filename}" if isinstance(link, h5py.ExternalLink) else "")
        raise InputError(f"{path}: {place} is a link {where}; it was not followed.\nUse a file that holds its arrays.")
    found = group[name]
    if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
        raise InputError(
            f"{path}: {place} takes its values from another file; it was not read.\nUse a file that holds its arrays."
        )


def check_sizes(file: Any, path: Path) -> None:
    """Raise `InputError` if an array, or all arrays together, declare more than such a file can hold."""
    arrays = [array for array in _members(file) if isinstance(array, h5py.Dataset)]
    for array in arrays:
        values = max(array.size or 0, math.prod(array.chunks or ()))
        if values > MAX_VALUES:
            raise InputError(
                f"{path}: {array.name} declares the shape {array.shape}, {values:.2g} values; at most {MAX_VALUES}\n"
                "are read. Cut such an image into tiles, or delete the file if it is not yours."
            )
        if array.dtype.kind not in "biuf":
            raise InputError(f"{path}: {array.name} has dtype {array.dtype}; expected integers or floats.\n{REBUILD}")
    declared, stored = sum(array.nbytes for array in arrays), path.stat().st_size
    if declared > MAX_RATIO * stored:
        raise InputError(
            f"{path}: its arrays declare {declared} bytes, but the file has only {stored}.\n"
            "No packing does that: delete the file and build it again."
        )


def _members(file: Any) -> Iterator[Any]:
    """All that stands in the file, two levels deep."""
    for member in file.values():
        yield member
        if isinstance(member, h5py.Group):
            yield from member.values()
