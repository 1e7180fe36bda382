"""Unpack a .zip or .tar.gz that somebody else has packed: nothing lands outside the folder, and no bomb goes off.

An archive may name paths like `../../home`, hold links that lead out of the folder, or unpack to a million times its
size.  So each entry must be a plain file or folder below the target, and the archive as a whole has limits.

Zip bombs: Fifield, USENIX WOOT 2019.  Attacks with paths and links: PEP 706.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NoReturn

from checks import InputError

# Limits for a whole archive.  A single label image may pack 400 : 1, a set of nuclei as a whole packs 8 : 1.
MAX_ENTRIES, MAX_BYTES, MAX_RATIO = 50_000, 8 * 2**30, 100
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)
_MORE_DAMAGE = (RuntimeError, ValueError, OverflowError, struct.error)  # a password, numbers and names that cannot be
# What the system says to an archive, and not of the disk: a file and a folder of one name, a name that is none, a
# place before the beginning; None: of gzip
_NOT_THE_DISK = (None, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack `archive` (.zip or .tar.gz) into `folder`.

    Raises `InputError` if the archive is damaged or not safe.  What was written until then stays, always inside of
    `folder`: the caller unpacks into a temporary folder.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with zipfile.ZipFile(folder / "a.zip", "w") as packed: packed.writestr("b/c.txt", "hello")
    >>> unpack(folder / "a.zip", folder); (folder / "b/c.txt").read_text()
    'hello'
    """
    try:
        (_unpack_zip if archive.suffix == ".zip" else _unpack_tar)(archive, folder)
    except InputError:
        raise
    except (*_DAMAGE, *_MORE_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NOT_THE_DISK:
            raise
        reason = "it asks for a password" if "password" in str(error) else str(error)[:100] or "it is cut off"
        raise InputError(f"{archive} cannot be unpacked: {reason}.\nDelete it and run again.") from error


def _unpack_zip(archive: Path, folder: Path) -> None:
    """All entries are checked first, by their declared sizes: `zipfile` never writes more than an entry declares."""
    with zipfile.ZipFile(archive) as packed:
        entries = packed.infolist()
        _check_size(archive, sum(entry.file_size for entry in entries))
        for number, entry in enumerate(entries, 1):
            kind = stat.S_IFMT(entry.external_attr >> 16)
            _check_entry(archive, number, entry.filename, is_plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
        for entry in entries:
            place = Path(packed.extract(entry, folder))
            if (0 if place.is_dir() else place.stat().st_size) != entry.file_size:  # `zipfile` does not look at it
                raise zipfile.BadZipFile(f"{entry.filename!r} has not the size that it declares")


def _unpack_tar(archive: Path, folder: Path) -> None:
    """A .tar.gz has no directory, so it is checked on the way; only contents are taken, no owners and no modes."""
    with _LimitedGzip(archive) as unzipped:
        with tarfile.open(fileobj=unzipped, mode="r|", bufsize=2**20, tarinfo=_StrictInfo) as packed:
            for number, entry in enumerate(packed, 1):
                is_file = entry.isreg() and not entry.issparse()  # holes of a sparse file cost nothing in the archive
                _check_entry(archive, number, entry.name, is_plain=is_file or entry.isdir())
                place = folder / entry.name
                (place.parent if is_file else place).mkdir(parents=True, exist_ok=True)
                content = packed.extractfile(entry)
                if is_file and content:
                    with open(place, "wb") as stream:
                        shutil.copyfileobj(content, stream)
        while unzipped.read(2**20):  # at its end, gzip compares the checksum
            pass


class _StrictInfo(tarfile.TarInfo):
    """A header of a tar; one that is damaged is an error, where `tarfile` takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictInfo:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"an entry is damaged ({error})") from error


class _LimitedGzip(gzip.GzipFile):
    """A stream that never gives more than the limits allow, whatever the archive declares."""

    def __init__(self, archive: Path) -> None:
        super().__init__(archive, "rb")
        self.archive, self.given = archive, 0

    def read(self, size: int | None = -1) -> bytes:
        block = super().read(size)
        self.given += len(block)
        _check_size(self.archive, self.given)
        return block


def _check_size(archive: Path, unpacked: int) -> None:
    packed = archive.stat().st_size
    if unpacked > min(MAX_BYTES, MAX_RATIO * packed):
        reason = f"{packed} bytes would become {unpacked}; allowed are {MAX_RATIO} times as many, at most {MAX_BYTES}"
        _refuse(archive, reason)


def _check_entry(archive: Path, number: int, name: str, *, is_plain: bool) -> None:
    parts = name.replace("\\", "/").split("/")
    if number > MAX_ENTRIES:
        _refuse(archive, f"it has more than {MAX_ENTRIES} entries")
    if parts[0] == "" or ".." in parts or ":" in name:
        _refuse(archive, f"the entry {name!r} points outside the folder")
    if not is_plain:
        _refuse(archive, f"the entry {name!r} is a link or a device, not a file")


def _refuse(archive: Path, danger: str) -> NoReturn:
    raise InputError(f"{archive} is not safe: {danger}.\nNothing of it was kept. Delete it.")
