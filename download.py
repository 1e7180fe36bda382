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

HTTP ranges and If-Range: RFC 9110, sections 13.1.5 and 14.  Zip bombs: Fifield, USENIX WOOT 2019.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import ssl
import stat
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from checks import InputError

MIRROR_VARIABLE = "SEGMENTATION_MIRROR"
TIMEOUT = 20.0  # seconds without a byte
PAUSES = (0.0, 2.0, 8.0)  # seconds before each of the three tries
# Limits for a whole archive.  A single label image may pack 400 : 1, a set of nuclei as a whole packs 8 : 1.
MAX_ENTRIES, MAX_BYTES, MAX_RATIO = 50_000, 8 * 2**30, 100
FIRST_BYTES = {
    ".zip": (b"PK\x03\x04",),
    ".tif": (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),  # little and big endian, classic and BigTIFF
    ".png": (b"\x89PNG\r\n\x1a\n",),
}
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_SAID: set[str] = set()  # lines that were said: once in a process, however often a cell runs


class RemoteFile(NamedTuple):
    """One file to fetch; `target` is its place in the set's folder (an archive lies beside that folder)."""

    address: str
    target: str
    sha256: str | None = None  # None where nobody publishes one


@dataclass(frozen=True)
class Source:
    """One data set: where it comes from, on which terms, and what must be there in the end.

    `expected` holds pairs (pattern of file names, official number of files).  `archive_root` is the folder
    inside the archive that becomes the folder of the set.
    """

    name: str
    what: str
    licence: str
    citation: str
    files: tuple[RemoteFile, ...]
    expected: tuple[tuple[str, int], ...]
    archive_root: str = ""

    def place(self, file: RemoteFile, data_dir: Path) -> Path:
        """Return the final path of `file`."""
        return data_dir / file.target if file.target.endswith(".zip") else data_dir / self.name / file.target


_YEASTVISION_COMMIT = "79cb3da2f759e03b9015fc939af1736a16f1f36b"  # fixes the content, too
_YEASTVISION = f"https://raw.githubusercontent.com/berkyalcinkaya/yeastvision/{_YEASTVISION_COMMIT}"
_MOVIE = "data/sample_movie_1"  # 20 single files, 11 MB; the archive would bring the whole repository
_ZENODO = "https://zenodo.org/records/344879/files"
_TOPOMORTAR_COMMIT = "f709b3c72f4f24f68239281292f854918707f95f"
_TOPOMORTAR = f"https://raw.githubusercontent.com/jmlipman/TopoMortar/{_TOPOMORTAR_COMMIT}/dataset"
_BRICK_WALLS = {"train": range(1, 51), "val": range(51, 71), "test": range(71, 121)}  # 121 … 420: other walls

_TABLE = (
    Source(
        name="yeast_phase",
        what="10 frames of a phase-contrast movie of budding yeast (520 x 692, 16 bit), each cell labelled.",
        licence="BSD style, North Carolina State University",
        citation="Yeastvision, Mol. Biol. Cell, doi 10.1091/mbc.E25-01-0009",
        files=tuple(
            RemoteFile(f"{_YEASTVISION}/{path}", path)
            for frame in range(10)
            for path in (f"{_MOVIE}/im{frame:03d}_channel1_phase.tif", f"{_MOVIE}/im{frame:03d}_mask1.tif")
        ),
        expected=((f"{_MOVIE}/im???_channel1_phase.tif", 10), (f"{_MOVIE}/im???_mask1.tif", 10)),
    ),
    Source(
        name="dsb2018",
        what="Fluorescent nuclei, each labelled: the part of the 2018 Data Science Bowl that StarDist used.",
        licence="CC0 1.0",
        citation="Caicedo et al., Nature Methods 2019, doi 10.1038/s41592-019-0612-7",
        files=(
            RemoteFile(
                "https://github.com/stardist/stardist/releases/download/0.1.0/dsb2018.zip",
                "dsb2018.zip",
                "e44921950edce378063aa4457e625581ba35b4c2dbd9a07c19d48900129f386f",
            ),
        ),
        expected=(  # 497 images, 90 % and 10 %: Schmidt et al., MICCAI 2018, arXiv 1806.03535
            ("train/images/*.tif", 447),
            ("train/masks/*.tif", 447),
            ("test/images/*.tif", 50),
            ("test/masks/*.tif", 50),
        ),
        archive_root="dsb2018",
    ),
    Source(
        name="yeastcellseg",
        what="15 bright-field images of yeast (1024 x 1024); a pixel is cell where its label is above 0.",
        licence="see https://zenodo.org/records/344879",
        citation="Zhang et al., ISBI 2014, doi 10.1109/ISBI.2014.6868107",
        files=tuple(
            RemoteFile(f"{_ZENODO}/{path}", path)
            for image in range(1, 16)
            for path in (f"DS01_{image:02d}.tif", f"DS01_{image:02d}_gt.tif")
        ),
        expected=(("DS01_[0-9][0-9].tif", 15), ("DS01_[0-9][0-9]_gt.tif", 15)),
    ),
    Source(
        name="topomortar",
        what="120 photographs of brick walls (512 x 512), the mortar between the bricks labelled.",
        licence="MIT",
        citation="Valverde et al., TopoMortar, BMVC 2025, doi 10.48550/arXiv.2503.03365",
        files=tuple(
            RemoteFile(f"{_TOPOMORTAR}/{path}", path)
            for part, numbers in _BRICK_WALLS.items()
            for number in numbers
            for path in (f"{part}/images/{number:03d}.png", f"{part}/accurate/{number:03d}.png")
        ),
        expected=tuple(
            (f"{part}/{layer}/*.png", len(numbers))
            for part, numbers in _BRICK_WALLS.items()
            for layer in ("images", "accurate")
        ),
    ),
)
SOURCES: dict[str, Source] = {source.name: source for source in _TABLE}


def locate(name: str, data_dir: str | Path = Path("data"), *, say: Callable[[str], object] = print) -> Path:
    """Return the folder of the data set `name` in its official layout; fetch the set first where it must be.

    `say` is told the licence, the citation and the use of a mirror (once in a process), and a download.
    Raises `InputError` for an unknown name, for a damaged mirror or copy, and when a file cannot be fetched:
    the message then says what to do by hand.

    >>> locate("moon")
    Traceback (most recent call last):
    checks.InputError: 'moon' is not a known data set; known are dsb2018, topomortar, yeast_phase, yeastcellseg.
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
    checks.InputError: 'moon' is not a known data set; known are dsb2018, topomortar, yeast_phase, yeastcellseg.
    """
    source = _named(name)
    if _in_mirror(source) or not faults(source, Path(data_dir) / name):
        return True
    missing = [file for file in source.files if not source.place(file, Path(data_dir)).exists()]
    return not missing or _answers(missing[0].address, timeout)


def faults(source: Source, folder: Path, *, official: bool = True) -> list[str]:
    """List what is missing or damaged in `folder`, judged by names, numbers and first bytes of the files.

    A mirror may hold fewer files: with `official=False` every pattern needs one file or more.

    >>> faults(SOURCES["dsb2018"], Path("no_such_folder"))[3]
    '0 files test/masks/*.tif (expected 50)'
    """
    wrong = []
    for pattern, number in source.expected:
        paths = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
        if (len(paths) != number) if official else not paths:
            wrong.append(f"{len(paths)} files {pattern} (expected {number if official else 'one or more'})")
        wrong += [f"{path.relative_to(folder)} {flaw}" for path in paths if (flaw := _flaw(path))]
    if official:
        single = [file.target for file in source.files if not file.target.endswith(".zip")]
        wrong += [f"{target} is missing" for target in single if not (folder / target).is_file()]
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


def _flaw(path: Path, sha256: str | None = None) -> str:
    """Say why `path` is not the file that it should be; an empty string if nothing is wrong."""
    kind = Path(path.name.removesuffix(".part")).suffix
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            start = stream.read(2**20)
            if not start.startswith(FIRST_BYTES.get(kind, (b"",))):
                return f"is not a {kind} file (it begins with {start[:8]!r})"
            while sha256 and start:
                digest.update(start)
                start = stream.read(2**20)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if sha256 and digest.hexdigest() != sha256:
        return f"has the SHA-256 {digest.hexdigest()[:12]}… (expected {sha256[:12]}…)"
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


def _answers(address: str, timeout: float) -> bool:
    """Ask for the headers, in a thread: no socket timeout covers a name server that does not answer."""
    found: list[bool] = []

    def ask() -> None:
        for method in ("HEAD", "GET"):  # storage behind GitHub refused HEAD: cavaliergopher/grab issue 43
            try:
                with _open(address, {}, method, timeout):
                    found.append(True)
                    return
            except _RefusedError:
                continue
            except _BROKEN:
                return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(found)


def _fetch(source: Source, data_dir: Path, say: Callable[[str], object]) -> None:
    folder = data_dir / source.name
    archives = [source.place(file, data_dir) for file in source.files if file.target.endswith(".zip")]
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
        if not _flaw(place, file.sha256):
            return
        os.replace(place, wrong)
    place.parent.mkdir(parents=True, exist_ok=True)
    reason = _try_thrice(file, part)
    if not reason and (flaw := _flaw(part, file.sha256)):
        os.replace(part, wrong)
        reason = f"what came {flaw} and is kept as {wrong.name}"
    if reason:
        raise InputError(
            f"{source.name}: {file.address} cannot be fetched: {reason}.\n"
            "With a network: run this again later; a file that was cut off is continued.\n"
            f"By hand: save the address as {place} (download.SOURCES[{source.name!r}].files lists all),\n"
            f"or let {MIRROR_VARIABLE} name a folder that holds {source.name}/."
        )
    os.replace(part, place)


def _try_thrice(file: RemoteFile, part: Path) -> str:
    """Fetch `file` into `part`; return why it failed, or an empty string."""
    reason = ""
    for pause in PAUSES:
        time.sleep(pause)
        try:
            _receive(file, part)
            return ""
        except _RefusedError as error:
            return str(error)
        except _BROKEN as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
    return f"{reason} ({len(PAUSES)} tries)"


def _receive(file: RemoteFile, part: Path) -> None:
    """Write the file to `part`; continue an earlier part only if its ETag proves that it is the same file."""
    mark = part.with_name(part.name + ".etag")
    etag = mark.read_text() if part.exists() and mark.exists() else ""
    start = part.stat().st_size if etag else 0
    try:
        answer = _open(file.address, {"Range": f"bytes={start}-", "If-Range": etag} if start else {})
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is not shorter than the file
            part.unlink(missing_ok=True)
        raise
    with answer:
        size = _promised_size(answer, start, etag, part)
        if size is None and not file.sha256 and not answer.chunked:  # chunks have an end mark of their own
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
            _extract(archive, temporary)
        _require(source, temporary / source.archive_root, f"{archives[0]} has another layout than expected.")
        os.replace(temporary / source.archive_root, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as packed:
            danger = _danger(packed.infolist(), archive.stat().st_size)
            if danger:
                raise InputError(f"{archive} is not safe: {danger}.\nNothing was unpacked. Delete it.")
            packed.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last: needs a password
        raise InputError(f"{archive} cannot be unpacked: {error}.\nDelete it and run again.") from error


def _danger(entries: Sequence[zipfile.ZipInfo], packed_size: int) -> str:
    """Say why this archive must not be unpacked; an empty string if it may.

    The sizes are the declared ones.  That is enough: `zipfile` never writes more than an entry declares.
    """
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES:
        return f"it has {len(entries)} entries (at most {MAX_ENTRIES})"
    if total > min(MAX_BYTES, MAX_RATIO * packed_size):
        return f"{packed_size} bytes would become {total} (at most {MAX_RATIO} times as many and {MAX_BYTES})"
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if parts[0] == "" or ".." in parts or ":" in entry.filename:
            return f"the entry {entry.filename!r} points outside the folder"
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            return f"the entry {entry.filename!r} is a link, not a file"
    return ""
