"""Real data sets by name: the only code of the project that uses the network.

`locate("dsb2018")` returns the folder that holds the set in the layout of its authors.  The order is

1. the mirror: the folder that the environment variable `SEGMENTATION_MIRROR` names, if it holds the set.
   A person sets this variable on purpose, so it wins.  It is only read, nothing is copied;
2. the copy in `data/NAME`, if it is complete;
3. the official address.

Networks fail in many ways: no answer, a cut, a login page in place of the file, an archive that writes
outside its folder.  One rule covers them: nothing gets its final name before its content was checked.  Until
then it is called `.part` (the next run continues it) or `.unpacking` (the next run deletes it); a file that
fails the check is kept as `.wrong`.

What there is to fetch stands in `sources.py`.  HTTP ranges and If-Range: RFC 9110, sections 13.1.5 and 14.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from checks import InputError
from imagesets.archives import unpack
from imagesets.sources import SOURCES, RemoteFile, Source

MIRROR_VARIABLE = "SEGMENTATION_MIRROR"
TIMEOUT = 20.0  # seconds without a byte
PAUSES = (0.0, 2.0, 8.0)  # seconds before each of the three tries
FIRST_BYTES = {
    ".zip": (b"PK\x03\x04",),
    ".gz": (b"\x1f\x8b",),
    ".tif": (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),  # little and big endian, classic and BigTIFF
    ".png": (b"\x89PNG\r\n\x1a\n",),
    ".jpg": (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8"),  # some official pets are PNG or GIF under this name
}
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_SAID: set[str] = set()  # lines that were said: once in a process, however often a cell runs


def locate(name: str, data_dir: str | Path = Path("data"), *, say: Callable[[str], object] = print) -> Path:
    """Return the folder of the data set `name` in its official layout; fetch the set first where it must be.

    `say` is told the licence, the citation and the use of a mirror (once in a process), and a download.
    Raises `InputError` for an unknown name, for a damaged mirror or copy, and when a file cannot be fetched:
    the message then says what to do by hand.

    >>> locate("moon")
    Traceback (most recent call last):
    checks.InputError: 'moon' is not a known data set; known are camvid, dsb2018, ..., yeastcellseg.
    """
    source = _named(name)
    mirror = _in_mirror(source)
    folder = mirror or Path(data_dir) / name
    _say_once(f"{name}: {source.what} Licence: {source.licence}. Please cite: {source.citation}.", say)
    if mirror:  # its path is not said: it would stay in the output of a notebook
        _say_once(f"{name}: taken from the mirror; no check of official numbers and checksums.", say)
    elif faults(source, folder):
        _fetch(source, Path(data_dir), say)
    return folder


def reachable(name: str, data_dir: str | Path = Path("data"), timeout: float = 3.0) -> bool:
    """Tell within `timeout` seconds if `locate(name)` can work: by mirror, copy, or an address that answers.

    Raises `InputError` for an unknown name and for a mirror that is set but damaged.

    >>> reachable("moon")
    Traceback (most recent call last):
    checks.InputError: 'moon' is not a known data set; known are camvid, dsb2018, ..., yeastcellseg.
    """
    source = _named(name)
    if _in_mirror(source) or not faults(source, Path(data_dir) / name):
        return True
    missing = [file for file in source.files if not source.place(file, Path(data_dir)).exists()]
    return not missing or _answers((missing[0].address, *missing[0].also_at), timeout)


def faults(source: Source, folder: Path, *, official: bool = True) -> list[str]:
    """List what is missing or damaged in `folder`, judged by names, numbers and first bytes of the files.

    A mirror may hold fewer files: with `official=False` a pattern needs one file or more.  Hidden files do not count:
    macOS adds them, and some official archives hold them.

    >>> faults(SOURCES["dsb2018"], Path("no_such_folder"))[3]
    '0 files test/masks/*.tif (expected 50)'
    """
    wrong = []
    for pattern, number in source.expected:
        paths = [path for path in sorted(folder.glob(pattern)) if path.is_file() and path.name[0] != "."]
        is_enough = len(paths) == number if official else paths or pattern in source.mirror_may_lack
        if not is_enough:
            wrong.append(f"{len(paths)} files {pattern} (expected {number if official else 'one or more'})")
        wrong += [f"{path.relative_to(folder)} {flaw}" for path in paths if (flaw := _flaw(path))]
    if official:
        single = [file.target for file in source.files if not file.is_archive]
        wrong += [f"{name} is missing" for name in (*single, *source.names) if not (folder / name).is_file()]
    return wrong


def _named(name: str) -> Source:
    if name not in SOURCES:
        raise InputError(f"{name!r} is not a known data set; known are {', '.join(sorted(SOURCES))}.")
    return SOURCES[name]


def _say_once(line: str, say: Callable[[str], object]) -> None:
    if line not in _SAID:
        _SAID.add(line)
        say(line)


def _in_mirror(source: Source) -> Path | None:
    """Return the folder of the set in the mirror; None if no mirror is set or it does not hold this set."""
    root = os.environ.get(MIRROR_VARIABLE, "").strip()
    if not root:
        return None
    if not Path(root).expanduser().is_dir():
        raise InputError(f"{MIRROR_VARIABLE} is {root!r}: this is not a folder. Correct it or unset it.")
    folder = Path(root).expanduser() / source.name
    if not folder.is_dir():
        return None
    _require(source, folder, f"Repair the mirror, or unset {MIRROR_VARIABLE}.", official=False)
    return folder


def _require(source: Source, folder: Path, advice: str, *, official: bool = True) -> None:
    wrong = faults(source, folder, official=official)
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"{source.name}: {folder} is not complete.\n{'; '.join(wrong[:3])}{more}.\n{advice}")


def _flaw(path: Path, checksum: str = "") -> str:
    """Say why `path` is not the file that it should be; an empty string if nothing is wrong."""
    kind = Path(path.name.removesuffix(".part")).suffix
    algorithm, _, expected = checksum.partition(":")
    try:
        with open(path, "rb") as stream:
            start = stream.read(8)
            if not start.startswith(FIRST_BYTES.get(kind, (b"",))):
                return f"is not a {kind} file (it begins with {start!r})"
            digest = hashlib.new(algorithm, start, usedforsecurity=False) if algorithm else None
            while digest and (block := stream.read(2**20)):
                digest.update(block)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if digest and digest.hexdigest() != expected:
        return f"has the {algorithm} checksum {digest.hexdigest()[:12]}… (expected {expected[:12]}…)"
    return ""


# Fetching


class _RefusedError(Exception):
    """An answer that another try would not change."""


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to an address where anyone on the way can change the file."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise _RefusedError(f"it redirects from https to {newurl}, which is not secure")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(address: str, headers: dict[str, str], method: str = "GET", timeout: float | None = None) -> Any:
    """Return the open answer of a server; a web page is refused here, before a byte of it is stored."""
    headers = {"User-Agent": "semantic-segmentation-course", **headers}
    request = urllib.request.Request(address, headers=headers, method=method)
    try:
        answer = urllib.request.build_opener(_NoDowngrade).open(request, timeout=timeout or TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code < 500 and error.code not in (408, 416, 425, 429):
            raise _RefusedError(f"the server says {error.code} {error.reason}") from error
        raise
    if answer.headers.get_content_type() == "text/html":
        answer.close()
        raise _RefusedError("a web page (HTML) came in place of the file; does this network ask for a login?")
    return answer


def _answers(addresses: Sequence[str], timeout: float) -> bool:
    """Ask for the headers, in a thread: no socket timeout covers a name server that does not answer."""
    found: list[bool] = []

    def ask(address: str) -> bool:
        for method in ("HEAD", "GET"):  # storage behind GitHub refused HEAD: cavaliergopher/grab issue 43
            try:
                with _open(address, {}, method, timeout):
                    return True
            except _RefusedError:
                continue
            except _BROKEN:
                return False
        return False

    thread = threading.Thread(target=lambda: found.append(any(map(ask, addresses))), daemon=True)
    thread.start()
    thread.join(timeout)
    return any(found)


def _fetch(source: Source, data_dir: Path, say: Callable[[str], object]) -> None:
    folder = data_dir / source.name
    archives = [source.place(file, data_dir) for file in source.files if file.is_archive]
    if archives and folder.exists():  # it may hold somebody's work: never overwritten
        _require(source, folder, "Move this folder away or delete it, then run again.")
    host = urlsplit(source.files[0].address).hostname
    say(f"{source.name}: fetching {len(source.files)} file(s) from {host}")
    try:
        for file in source.files:
            _fetch_file(source, file, source.place(file, data_dir))
        if archives:
            _unpack(source, archives, folder)
    except OSError as error:
        raise InputError(
            f"{source.name}: cannot store the files under {data_dir}: {error.strerror or error}.\n"
            "Free some space or pass another data_dir, then run again. Nothing that was there is lost."
        ) from error
    _require(source, folder, "Move away what does not belong there, then run again.")


def _fetch_file(source: Source, file: RemoteFile, place: Path) -> None:
    """Bring one file to its final name, unless a right one is there (for example, put there by hand)."""
    wrong, part = place.with_name(place.name + ".wrong"), place.with_name(place.name + ".part")
    if place.exists():
        if not _flaw(place, file.checksum):
            return
        os.replace(place, wrong)
    place.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for address in (file.address, *file.also_at):
        reason = _try_thrice(address, file, part)
        if not reason and (flaw := _flaw(part, file.checksum)):
            os.replace(part, wrong)
            reason = f"what came {flaw} and is kept as {wrong.name}"
        if not reason:
            os.replace(part, place)
            return
        reasons.append(f"{address} cannot be fetched: {reason}")
    raise InputError(
        f"{source.name}: {'; '.join(reasons)}.\n"
        "With a network: run this again later; a file that was cut off is continued.\n"
        f"By hand: save the address as {place} (sources.SOURCES[{source.name!r}].files lists all),\n"
        f"or let {MIRROR_VARIABLE} name a folder that holds {source.name}/."
    )


def _try_thrice(address: str, file: RemoteFile, part: Path) -> str:
    """Fetch `file` from one of its addresses into `part`; return why it failed, or an empty string."""
    reason = ""
    for pause in PAUSES:
        time.sleep(pause)
        try:
            _receive(address, file, part)
            return ""
        except _RefusedError as error:
            return str(error)
        except _BROKEN as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
    return f"{reason} ({len(PAUSES)} tries)"


def _receive(address: str, file: RemoteFile, part: Path) -> None:
    """Write the file to `part`; continue an earlier part only if its ETag proves that it is the same file."""
    mark = part.with_name(part.name + ".etag")
    etag = mark.read_text() if part.exists() and mark.exists() else ""
    start = part.stat().st_size if etag else 0
    try:
        answer = _open(address, {"Range": f"bytes={start}-", "If-Range": etag} if start else {})
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is not shorter than the file
            part.unlink(missing_ok=True)
        raise
    with answer:
        size = _promised_size(answer, start, etag, part)
        if size is None and not file.checksum and not answer.chunked:  # chunks have an end mark of their own
            raise _RefusedError("the server does not say how long the file is, so a cut could not be noticed")
        with open(part, "ab" if answer.status == 206 else "wb") as stream:
            fresh = answer.headers.get("ETag", "")
            mark.write_text("" if fresh.startswith("W/") else fresh)  # W/ is weak: the bytes may differ
            while block := answer.read1(2**16):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
    if size is not None and part.stat().st_size != size:
        raise ConnectionError(f"cut off after {part.stat().st_size} of {size} bytes")
    mark.unlink()


def _promised_size(answer: Any, start: int, etag: str, part: Path) -> int | None:
    """Return the size of the whole file as the server states it; refuse to continue with another file."""
    size = answer.headers.get("Content-Length", "")
    if answer.status == 206:
        span, _, size = answer.headers.get("Content-Range", "").partition("/")
        if not span.startswith(f"bytes {start}-") or answer.headers.get("ETag") != etag:
            part.unlink(missing_ok=True)
            raise ConnectionError("the server continues with another file")
    return int(size) if size.isdigit() else None


# Unpacking


def _unpack(source: Source, archives: Sequence[Path], folder: Path) -> None:
    """Unpack into a temporary folder, check it there, then rename: a killed run leaves no half data set."""
    temporary = folder.with_name(folder.name + ".unpacking")
    if temporary.exists():  # a run was killed
        shutil.rmtree(temporary)
    try:
        for archive in archives:
            unpack(archive, temporary)
        _require(source, temporary / source.archive_root, f"Delete {archives[0]} and run again.")
        os.replace(temporary / source.archive_root, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
