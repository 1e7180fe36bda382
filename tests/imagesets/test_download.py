"""Tests of download.py against a server on 127.0.0.1, well or badly behaved; none reaches the internet."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import http.client
import io
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from checks import InputError
from imagesets import download
from imagesets.download import faults, locate, reachable
from imagesets.sources import SOURCES, RemoteFile, Source

ROOT = Path(download.__file__).parents[1]
REAL_MIRROR = os.environ.get(download.MIRROR_VARIABLE, "")
TIF = b"II*\x00" + random.Random(0).randbytes(500_000)  # begins as a TIFF file does and does not pack well
HTML = b"<!DOCTYPE html><title>Please log in</title>"
Page = Callable[[BaseHTTPRequestHandler], None]
Register = Callable[..., Source]
Patch = pytest.MonkeyPatch


# A server with a page for each behaviour


class Site:
    """Answers with `pages[path]`: one page, or a list for the first, second, … request (the last repeats)."""

    def __init__(self) -> None:
        self.pages: dict[str, Page | list[Page]] = {}
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.release = threading.Event()  # ends all stalls
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.log.append((self.command, self.path, dict(self.headers)))
                page = site.pages.get(self.path, status(404))
                if isinstance(page, list):
                    page = page.pop(0) if len(page) > 1 else page[0]
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # some tests leave early
                    page(self)
                self.close_connection = True

            do_HEAD = do_GET

            def log_message(self, *ignored: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def ranges(self) -> list[str]:
        """The Range header of every request; "" where there was none."""
        return [headers.get("Range", "") for _, _, headers in self.log]


def head(handler: BaseHTTPRequestHandler, code: int, **fields: object) -> None:
    handler.send_response(code)
    for name, value in fields.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def status(code: int, **fields: object) -> Page:
    return lambda handler: head(handler, code, Content_Length=0, **fields)


def serve(data: bytes, *, etag: str = '"v1"', kind: str = "image/tiff", ranges: bool = True) -> Page:
    """A good server: knows Range and If-Range (RFC 9110) unless `ranges` is off."""

    def page(handler: BaseHTTPRequestHandler) -> None:
        fields = {"Content_Type": kind, **({"ETag": etag} if etag else {})}
        wanted = handler.headers.get("Range", "")
        if ranges and wanted and handler.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return head(handler, 416, Content_Length=0, Content_Range=f"bytes */{len(data)}")
            span = f"bytes {start}-{len(data) - 1}/{len(data)}"
            head(handler, 206, Content_Length=len(data) - start, Content_Range=span, **fields)
            body = data[start:]
        else:
            head(handler, 200, Content_Length=len(data), **fields)
            body = data
        if handler.command == "GET":
            handler.wfile.write(body)

    return page


def cut(data: bytes, after: int, *, etag: str = '"v1"') -> Page:
    """Promises all of `data` and closes the connection after `after` bytes."""

    def page(handler: BaseHTTPRequestHandler) -> None:
        fields = {"ETag": etag} if etag else {}
        head(handler, 200, Content_Length=len(data), Content_Type="image/tiff", **fields)
        handler.wfile.write(data[:after])

    return page


def stall(site: Site, data: bytes = b"", after: int = 0) -> Page:
    """Sends `after` bytes (or, without data, not even a header) and then nothing."""

    def page(handler: BaseHTTPRequestHandler) -> None:
        if data:
            head(handler, 200, Content_Length=len(data), ETag='"v1"')
            handler.wfile.write(data[:after])
            handler.wfile.flush()
        site.release.wait(20)

    return page


def raw(code: int, body: bytes, **fields: object) -> Page:
    """Exactly these header fields and this body, right or wrong."""

    def page(handler: BaseHTTPRequestHandler) -> None:
        head(handler, code, **fields)
        handler.wfile.write(body)

    return page


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.release.set()
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture(autouse=True)
def sealed(monkeypatch: Patch) -> None:
    """No pauses, no mirror, nothing said yet, and no way to the internet."""
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(download, "_SAID", set())
    monkeypatch.delenv(download.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    real = socket.getaddrinfo

    def only_here(host: str, *rest: object, **more: object) -> object:
        if host != "127.0.0.1":
            raise socket.gaierror(f"a test asked for {host}")
        return real(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", only_here)


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def quiet(line: str) -> None:
    pass


@pytest.fixture
def tiny(site: Site, monkeypatch: Patch) -> Source:
    """A set of one file with a checksum."""
    file = RemoteFile(f"{site.base}/a.tif", "im/a.tif", sha256(TIF))
    source = Source("tiny", "A test.", "none", "nobody", (file,), (("im/*.tif", 1),))
    monkeypatch.setitem(SOURCES, "tiny", source)
    site.pages["/a.tif"] = serve(TIF)
    return source


@pytest.fixture
def bare(site: Site, monkeypatch: Patch) -> Source:
    """A set of two files without checksums."""
    files = tuple(RemoteFile(f"{site.base}/{name}.tif", f"{name}.tif") for name in "ab")
    source = Source("bare", "A test.", "none", "nobody", files, (("?.tif", 2),))
    monkeypatch.setitem(SOURCES, "bare", source)
    site.pages.update({"/a.tif": serve(TIF), "/b.tif": serve(TIF)})
    return source


def pack(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as packed:
        for name, data in entries.items():
            packed.writestr(zipfile.ZipInfo(name) if compression == zipfile.ZIP_STORED else name, data)
    return stream.getvalue()


@pytest.fixture
def zipped(site: Site, monkeypatch: Patch) -> Register:
    """Register a set that comes as one archive with the given bytes."""

    def register(archive: bytes, checksum: str = "") -> Source:
        file = RemoteFile(f"{site.base}/z.zip", "z.zip", checksum)
        source = Source("boxed", "A test.", "none", "nobody", (file,), (("im/*.tif", 2),), archive_root="box")
        monkeypatch.setitem(SOURCES, "boxed", source)
        site.pages["/z.zip"] = serve(archive, kind="application/zip")
        return source

    return register


GOOD = {"box/im/a.tif": TIF, "box/im/b.tif": TIF, "__MACOSX/box/._a.tif": b"x"}


def refused(name: str, data_dir: Path) -> str:
    """Call `locate`, which must raise; return the message, which must be short."""
    with pytest.raises(InputError) as caught:
        locate(name, data_dir, say=quiet)
    message = str(caught.value)
    assert len(message.splitlines()) <= 4
    return message


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# The module


def test_only_the_standard_library_and_three_modules_are_imported() -> None:
    tree = ast.parse(Path(download.__file__).read_text(encoding="utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in found} <= {*sys.stdlib_module_names, "checks", "imagesets"}


def test_the_data_folder_is_no_package() -> None:
    assert not (ROOT / "data" / "__init__.py").exists()  # it would shadow data.py


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    assert "yeastcellseg" in refused("no such set", tmp_path)


# A good day


def test_a_file_is_fetched_once_and_the_terms_are_said_once(tiny: Source, site: Site, tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        assert locate("tiny", tmp_path, say=said.append) == tmp_path / "tiny"
    assert (tmp_path / "tiny/im/a.tif").read_bytes() == TIF
    assert names(tmp_path) == ["tiny/im/a.tif"]  # neither .part nor .etag is left
    assert len(site.log) == 1
    assert sum("Licence: none" in line and "cite: nobody" in line for line in said) == 1


def test_only_what_is_missing_is_fetched(bare: Source, site: Site, tmp_path: Path) -> None:
    locate("bare", tmp_path, say=quiet)
    (tmp_path / "bare/a.tif").unlink()
    site.log.clear()
    locate("bare", tmp_path, say=quiet)
    assert [path for _, path, _ in site.log] == ["/a.tif"]


def test_a_redirect_is_followed(tiny: Source, site: Site, tmp_path: Path) -> None:
    site.pages.update({"/a.tif": status(302, Location="/moved"), "/moved": serve(TIF)})
    locate("tiny", tmp_path, say=quiet)
    assert (tmp_path / "tiny/im/a.tif").read_bytes() == TIF


def test_an_archive_is_unpacked_without_its_outer_folder(zipped: Register, tmp_path: Path) -> None:
    archive = pack(GOOD)
    zipped(archive, sha256(archive))
    assert locate("boxed", tmp_path, say=quiet) == tmp_path / "boxed"
    assert names(tmp_path) == ["boxed/im/a.tif", "boxed/im/b.tif", "z.zip"]


# Names, numbers, first bytes


def test_faults_lists_every_problem(bare: Source, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(HTML)
    (tmp_path / "c.tif").write_bytes(b"")
    (tmp_path / "d.tif").write_bytes(TIF)
    (tmp_path / "e.tif").mkdir()  # a folder is no image, whatever its name
    assert faults(bare, tmp_path) == [
        "3 files ?.tif (expected 2)",
        "a.tif is not a .tif file (it begins with b'<!DOCTYP')",
        "c.tif is not a .tif file (it begins with b'')",
        "b.tif is missing",
    ]
    # the number and the names are those of the official set, so a mirror may differ there
    assert len(faults(bare, tmp_path, official=False)) == 2


def test_right_number_but_wrong_name_is_a_fault(bare: Source, tmp_path: Path) -> None:
    for name in "ac":
        (tmp_path / f"{name}.tif").write_bytes(TIF)
    assert faults(bare, tmp_path) == ["b.tif is missing"]


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("x.zip", b"PK\x03\x04"),
        ("x.tif", b"II*\x00"),
        ("x.tif", b"MM\x00*"),
        ("x.tif", b"II+\x00"),
        ("x.png", b"\x89PNG\r\n\x1a\n"),
        ("x.jpg", b"\xff\xd8\xff"),
        ("x.jpg", b"\x89PNG\r\n\x1a\n"),  # Abyssinian_5.jpg of the official pets
        ("x.jpg", b"GIF8"),  # Abyssinian_34.jpg
        ("x.tar.gz", b"\x1f\x8b"),
    ],
)
def test_fault_04_first_bytes_tell_the_kind_of_a_file(name: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    for content, good in ((start + b"rest", True), (HTML, False), (b"", False), (start[:-1], False)):
        path.write_bytes(content)
        assert (download._flaw(path) == "") is good
        assert (download._flaw(path.rename(f"{path}.part")) == "") is good  # judged before it has its name


def test_fault_18_what_cannot_be_read_is_a_flaw_not_a_crash(tmp_path: Path) -> None:
    assert "cannot be read" in download._flaw(tmp_path)  # opening a folder fails as a locked file does


def test_a_file_too_many_is_refused_and_kept(bare: Source, tmp_path: Path) -> None:
    locate("bare", tmp_path, say=quiet)
    (tmp_path / "bare/c.tif").write_bytes(TIF)
    assert "3 files ?.tif (expected 2)" in refused("bare", tmp_path)
    assert names(tmp_path / "bare") == ["a.tif", "b.tif", "c.tif"]


def test_hidden_files_do_not_count(bare: Source, tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        (tmp_path / name).write_bytes(TIF)
    hidden = Source("bare", "", "", "", bare.files, (("*.tif", 2),))
    (tmp_path / "._a.tif").write_bytes(b"written by macOS")
    assert faults(hidden, tmp_path) == []


def test_names_are_asked_for_where_nobody_publishes_a_checksum(zipped: Register, tmp_path: Path) -> None:
    source = replace(zipped(pack(GOOD)), names=("im/a.tif", "im/c.tif"))
    for name in "ab":
        (tmp_path / "im").mkdir(exist_ok=True)
        (tmp_path / "im" / f"{name}.tif").write_bytes(TIF)
    assert faults(source, tmp_path) == ["im/c.tif is missing"]
    assert faults(source, tmp_path, official=False) == []


def test_a_mirror_may_lack_what_the_table_says(bare: Source, tmp_path: Path) -> None:
    source = replace(bare, expected=(("a*.tif", 1), ("b*.tif", 1)), mirror_may_lack=("b*.tif",))
    (tmp_path / "a.tif").write_bytes(TIF)
    assert faults(source, tmp_path, official=False) == []
    assert faults(source, tmp_path) == ["0 files b*.tif (expected 1)", "b.tif is missing"]
    (tmp_path / "a.tif").rename(tmp_path / "b.tif")
    assert faults(source, tmp_path, official=False) == ["0 files a*.tif (expected one or more)"]
    (tmp_path / "b.tif").write_bytes(HTML)
    assert len(faults(source, tmp_path, official=False)) == 2  # what is there must still be sound


# 82: offline


def test_fault_82_offline_a_complete_copy_is_enough(tiny: Source, site: Site, tmp_path: Path) -> None:
    locate("tiny", tmp_path, say=quiet)
    site.server.shutdown()
    site.server.server_close()
    assert locate("tiny", tmp_path, say=quiet) == tmp_path / "tiny"


def test_fault_82_offline_says_what_to_do_by_hand(tiny: Source, site: Site, tmp_path: Path) -> None:
    site.server.shutdown()
    site.server.server_close()
    message = refused("tiny", tmp_path)
    place = tmp_path / "tiny/im/a.tif"
    assert f"{site.base}/a.tif" in message
    assert str(place) in message
    assert download.MIRROR_VARIABLE in message
    assert "(3 tries)" in message
    place.write_bytes(TIF)
    assert locate("tiny", tmp_path, say=quiet) == tmp_path / "tiny"


def test_fault_82_an_archive_put_there_by_hand_is_used(zipped: Register, site: Site, tmp_path: Path) -> None:
    archive = pack(GOOD)
    zipped(archive, sha256(archive))
    (tmp_path / "z.zip").write_bytes(archive)
    locate("boxed", tmp_path, say=quiet)
    assert site.log == []


def test_fault_82_a_wrong_file_put_there_by_hand_is_set_aside(zipped: Register, tmp_path: Path) -> None:
    archive = pack(GOOD)
    zipped(archive, sha256(archive))
    (tmp_path / "z.zip").write_bytes(archive + b"x")
    locate("boxed", tmp_path, say=quiet)
    assert (tmp_path / "z.zip").read_bytes() == archive
    assert (tmp_path / "z.zip.wrong").read_bytes() == archive + b"x"


# 83: cut connections


def test_fault_83_a_cut_leaves_a_part_that_the_next_run_continues(tiny: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = [cut(TIF, 1000), status(503)]
    assert "run this again" in refused("tiny", tmp_path)
    assert (tmp_path / "tiny/im/a.tif.part").read_bytes() == TIF[:1000]
    assert not (tmp_path / "tiny/im/a.tif").exists()
    site.pages["/a.tif"] = serve(TIF)
    site.log.clear()
    locate("tiny", tmp_path, say=quiet)
    assert names(tmp_path / "tiny") == ["im/a.tif"]
    assert (tmp_path / "tiny/im/a.tif").read_bytes() == TIF
    assert site.ranges() == ["bytes=1000-"]
    assert site.log[0][2]["If-Range"] == '"v1"'


def test_fault_83_a_cut_is_noticed_without_a_checksum(bare: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = cut(TIF, 1000, etag="")
    assert f"cut off after 1000 of {len(TIF)} bytes (3 tries)" in refused("bare", tmp_path)
    assert names(tmp_path / "bare") == ["a.tif.part", "a.tif.part.etag"]


def test_fault_83_the_second_try_of_one_run_continues(bare: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = [cut(TIF, 1000), serve(TIF)]
    locate("bare", tmp_path, say=quiet)
    assert site.ranges() == ["", "bytes=1000-", ""]
    assert (tmp_path / "bare/a.tif").read_bytes() == TIF


OTHER = b"MM\x00*" + bytes(len(TIF))  # another file in the same place, later


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(serve(OTHER, ranges=False), id="knows no ranges"),
        pytest.param(serve(OTHER, etag='"v2"'), id="the file has changed"),
        pytest.param(
            raw(206, OTHER[1000:], Content_Range=f"bytes 1000-{len(OTHER) - 1}/{len(OTHER)}", ETag='"v2"'),
            id="ignores If-Range",
        ),
        pytest.param(
            raw(206, OTHER[:1000], Content_Range=f"bytes 0-999/{len(OTHER)}", ETag='"v1"'),
            id="sends another range",
        ),
        pytest.param(raw(206, OTHER[:1000], ETag='"v1"'), id="does not say which range"),
        pytest.param(status(416), id="says that the part is too long"),
    ],
)
def test_fault_83_two_different_files_are_never_joined(second: Page, bare: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = [cut(TIF, 1000), second, serve(OTHER, etag='"v2"')]
    locate("bare", tmp_path, say=quiet)
    assert (tmp_path / "bare/a.tif").read_bytes() == OTHER


def test_fault_83_a_server_that_cannot_continue_is_asked_for_all(bare: Source, site: Site, tmp_path: Path) -> None:
    def page(handler: BaseHTTPRequestHandler) -> None:
        wrong = raw(206, OTHER[1000:], Content_Range=f"bytes 1000-{len(OTHER) - 1}/{len(OTHER)}", ETag='"v2"')
        (wrong if handler.headers.get("Range") else serve(OTHER))(handler)

    site.pages["/a.tif"] = [cut(TIF, 1000), page]
    locate("bare", tmp_path, say=quiet)
    assert site.ranges() == ["", "bytes=1000-", "", ""]
    assert (tmp_path / "bare/a.tif").read_bytes() == OTHER


def test_fault_83_a_broken_secure_connection_is_tried_again(
    bare: Source, site: Site, tmp_path: Path, monkeypatch: Patch
) -> None:
    real, broken = http.client.HTTPResponse.read1, [True]

    def read1(answer: http.client.HTTPResponse, size: int = -1) -> bytes:
        if broken.pop() if broken else False:
            raise ssl.SSLError("the connection ended in the middle")
        return real(answer, size)

    monkeypatch.setattr(http.client.HTTPResponse, "read1", read1)
    locate("bare", tmp_path, say=quiet)
    assert len(site.log) == 3


@pytest.mark.parametrize("etag", ["", 'W/"v1"'], ids=["no ETag", "weak ETag"])
def test_fault_83_without_proof_all_is_fetched_anew(etag: str, bare: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = [cut(TIF, 1000, etag=etag), serve(OTHER, etag=etag)]
    locate("bare", tmp_path, say=quiet)
    assert site.ranges()[:2] == ["", ""]
    assert (tmp_path / "bare/a.tif").read_bytes() == OTHER


def test_fault_83_a_part_that_is_too_long_is_dropped(bare: Source, site: Site, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/a.tif.part").write_bytes(TIF + b"more")
    (tmp_path / "bare/a.tif.part.etag").write_text('"v1"')
    locate("bare", tmp_path, say=quiet)
    assert (tmp_path / "bare/a.tif").read_bytes() == TIF


def test_fault_83_a_range_that_nobody_asked_for(bare: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = raw(206, TIF[:1000], Content_Range="bytes 0-999/1000", ETag='"v1"')
    assert "another file" in refused("bare", tmp_path)


def test_fault_83_no_length_and_no_checksum_is_refused(bare: Source, tiny: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = raw(200, TIF)
    assert "does not say how long" in refused("bare", tmp_path)
    locate("tiny", tmp_path, say=quiet)  # here the checksum proves that nothing is missing


def chunked(*blocks: bytes, end: bytes = b"0\r\n\r\n") -> Page:
    body = b"".join(b"%x\r\n%s\r\n" % (len(block), block) for block in blocks)

    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        raw(200, body + end, Transfer_Encoding="chunked", Connection="close")(handler)

    return page


def test_fault_83_chunks_have_an_end_mark_of_their_own(bare: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = [chunked(TIF[:1000], end=b""), chunked(TIF[:1000], TIF[1000:])]
    locate("bare", tmp_path, say=quiet)
    assert (tmp_path / "bare/a.tif").read_bytes() == TIF


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_fault_83_a_full_disk_leaves_no_final_name(call: str, tiny: Source, tmp_path: Path, monkeypatch: Patch) -> None:
    def full(*ignored: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as now:
        now.setattr(os, call, full)
        assert "No space left on device" in refused("tiny", tmp_path)
    assert not (tmp_path / "tiny/im/a.tif").exists()
    locate("tiny", tmp_path, say=quiet)
    assert (tmp_path / "tiny/im/a.tif").read_bytes() == TIF


def test_fault_83_on_the_disk_before_the_name_changes(tiny: Source, tmp_path: Path, monkeypatch: Patch) -> None:
    calls: list[str] = []

    def spy(call: str) -> Callable[..., None]:
        real = getattr(os, call)

        def record(*given: object) -> None:
            calls.append(call)
            real(*given)

        return record

    for call in ("fsync", "replace"):
        monkeypatch.setattr(os, call, spy(call))
    locate("tiny", tmp_path, say=quiet)
    assert calls == ["fsync", "replace"]


# A process that ends in the middle.  It gets a stand-in for `checks`: importing torch would take seconds.

CHILD = """
import os, signal, sys, types, zipfile
sys.modules["checks"] = types.SimpleNamespace(InputError=ValueError)
sys.path.insert(0, sys.argv[1])
from imagesets import download
from imagesets.download import RemoteFile, Source
file = RemoteFile(sys.argv[3], sys.argv[4])
download.SOURCES["killed"] = Source("killed", "", "", "", (file,), (("im/*.tif", 2),), "box")
extract = zipfile.ZipFile.extract
def extract_one_and_die(self, entry, folder):
    extract(self, entry, folder)
    os.kill(os.getpid(), signal.SIGKILL)
zipfile.ZipFile.extract = extract_one_and_die
download.locate("killed", sys.argv[2], say=str)
"""


def child(data_dir: Path, address: str, target: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CHILD, str(ROOT), str(data_dir), address, target]
    return subprocess.Popen(command, env={**os.environ, "no_proxy": "*", download.MIRROR_VARIABLE: ""})


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_fault_83_kill_9_while_fetching(site: Site, tmp_path: Path, monkeypatch: Patch) -> None:
    site.pages["/a.tif"] = stall(site, TIF, after=2**17)
    process, part = child(tmp_path, f"{site.base}/a.tif", "im/a.tif"), tmp_path / "killed/im/a.tif.part"
    give_up = time.monotonic() + 10
    while not (part.exists() and part.stat().st_size) and time.monotonic() < give_up:
        time.sleep(0.01)
    process.kill()
    process.wait()
    stored = part.stat().st_size
    assert 0 < stored <= 2**17
    assert not part.with_suffix("").exists()
    site.pages["/a.tif"] = serve(TIF)
    file = RemoteFile(f"{site.base}/a.tif", "im/a.tif", sha256(TIF))
    monkeypatch.setitem(SOURCES, "killed", Source("killed", "", "", "", (file,), (("im/*.tif", 1),)))
    locate("killed", tmp_path, say=quiet)
    assert site.ranges()[-1] == f"bytes={stored}-"
    assert part.with_suffix("").read_bytes() == TIF


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_fault_88_kill_9_while_unpacking(site: Site, zipped: Register, tmp_path: Path, monkeypatch: Patch) -> None:
    source = zipped(pack(GOOD))
    assert child(tmp_path, f"{site.base}/z.zip", "z.zip").wait() == -signal.SIGKILL
    assert names(tmp_path) == ["killed.unpacking/box/im/a.tif", "z.zip"]
    (tmp_path / "killed.unpacking/box/im/from_the_killed_run.tif").write_bytes(TIF)
    monkeypatch.setitem(SOURCES, "killed", Source("killed", "", "", "", source.files, source.expected, "box"))
    locate("killed", tmp_path, say=quiet)
    assert names(tmp_path) == ["killed/im/a.tif", "killed/im/b.tif", "z.zip"]


# 84: wrong content


@pytest.mark.parametrize("body", [TIF[:-1], TIF[:-1] + b"?", TIF + b"?"], ids=["short", "changed", "long"])
def test_fault_84_a_wrong_hash_is_set_aside(body: bytes, tiny: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = serve(body)
    assert "sha256 checksum" in refused("tiny", tmp_path)
    assert names(tmp_path) == ["tiny/im/a.tif.wrong"]
    assert (tmp_path / "tiny/im/a.tif.wrong").read_bytes() == body
    site.pages["/a.tif"] = serve(TIF)
    locate("tiny", tmp_path, say=quiet)
    assert (tmp_path / "tiny/im/a.tif").read_bytes() == TIF


def test_fault_84_a_length_that_is_too_small(tiny: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = raw(200, TIF, Content_Length=1000)
    assert "sha256 checksum" in refused("tiny", tmp_path)


def test_fault_04_a_web_page_is_refused_before_a_byte_is_stored(tiny: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = [cut(TIF, 1000), serve(HTML, etag="", kind="text/html; charset=utf-8")]
    assert "login" in refused("tiny", tmp_path)
    assert (tmp_path / "tiny/im/a.tif.part").read_bytes() == TIF[:1000]  # the good part is still there
    assert len(site.log) == 2  # refused at once, not tried again


def test_fault_04_a_web_page_under_a_false_type_is_set_aside(bare: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = serve(HTML, kind="image/tiff")
    assert "is not a .tif file" in refused("bare", tmp_path)
    assert names(tmp_path) == ["bare/a.tif.wrong"]


# 85: stalls, servers in trouble, redirects


@pytest.mark.parametrize("after", [0, 1000])
def test_fault_85_a_stall_ends_after_three_tries(
    after: int, tiny: Source, site: Site, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    site.pages["/a.tif"] = stall(site, TIF if after else b"", after)
    began = time.monotonic()
    assert "timed out (3 tries)" in refused("tiny", tmp_path)
    assert len(site.log) == 3
    assert 0.5 < time.monotonic() - began < 6  # 3 tries of 0.2 s; the server would wait for 20 s


def test_fault_85_a_pause_before_each_new_try(tiny: Source, site: Site, tmp_path: Path, monkeypatch: Patch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(download, "PAUSES", (0.0, 2.0, 8.0))
    monkeypatch.setattr(time, "sleep", waited.append)
    site.pages["/a.tif"] = [status(503), status(429), serve(TIF)]
    locate("tiny", tmp_path, say=quiet)
    assert waited == [0.0, 2.0, 8.0]


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_lasting_answer_is_not_asked_again(code: int, tiny: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = status(code)
    assert f"the server says {code}" in refused("tiny", tmp_path)
    assert len(site.log) == 1


class PlainHTTPS(http.client.HTTPConnection):
    """Speaks plain HTTP under the name https: a test needs no certificates then."""

    def __init__(self, host: str, *, timeout: float, **ignored: object) -> None:
        super().__init__(host, timeout=timeout)


def test_a_redirect_from_https_to_http_is_refused(site: Site, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(http.client, "HTTPSConnection", PlainHTTPS)
    secure = site.base.replace("http:", "https:")
    file = RemoteFile(f"{secure}/a.tif", "a.tif", sha256(TIF))
    monkeypatch.setitem(SOURCES, "tiny", Source("tiny", "", "", "", (file,), (("a.tif", 1),)))
    site.pages.update({"/a.tif": status(302, Location=f"{site.base}/b.tif"), "/b.tif": serve(TIF)})
    assert "not secure" in refused("tiny", tmp_path)
    assert [path for _, path, _ in site.log] == ["/a.tif"]
    site.pages["/a.tif"] = status(302, Location=f"{secure}/b.tif")
    locate("tiny", tmp_path, say=quiet)


# the second address


@pytest.fixture
def doubled(tiny: Source, site: Site, monkeypatch: Patch) -> Source:
    """`tiny`, whose file is also at /second.tif."""
    source = replace(tiny, files=(tiny.files[0]._replace(also_at=(f"{site.base}/second.tif",)),))
    monkeypatch.setitem(SOURCES, "tiny", source)
    site.pages["/second.tif"] = serve(TIF, etag='"second"')
    return source


@pytest.mark.parametrize("first", ["missing", "busy", "cut", "another file", "web page"])
def test_the_second_address_helps_where_the_first_fails(
    first: str, doubled: Source, site: Site, tmp_path: Path
) -> None:
    site.pages["/a.tif"] = {
        "missing": status(404),
        "busy": status(503),
        "cut": cut(TIF, 1000),
        "another file": serve(OTHER),
        "web page": serve(HTML, kind="text/html"),
    }[first]
    assert reachable("tiny", tmp_path)
    locate("tiny", tmp_path, say=quiet)
    assert (tmp_path / "tiny/im/a.tif").read_bytes() == TIF
    assert site.log[-1][1] == "/second.tif"


def test_the_second_address_is_not_asked_without_need(doubled: Source, site: Site, tmp_path: Path) -> None:
    assert reachable("tiny", tmp_path)
    locate("tiny", tmp_path, say=quiet)
    assert {path for _, path, _ in site.log} == {"/a.tif"}


def test_both_addresses_are_named_when_both_fail(doubled: Source, site: Site, tmp_path: Path) -> None:
    site.pages |= {"/a.tif": status(404), "/second.tif": status(503)}
    message = refused("tiny", tmp_path)
    assert f"{site.base}/a.tif cannot be fetched: the server says 404" in message
    assert f"{site.base}/second.tif cannot be fetched: " in message
    assert reachable("tiny", tmp_path) is False


# 86, 88: archives (what is refused, and why, is tested with archives.py)


def tar(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as packed:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def two(site: Site, monkeypatch: Patch) -> Register:
    """Register a set that comes as two .tar.gz without an outer folder, the first one with the given bytes."""

    def register(first: bytes) -> Source:
        archives = {"im.tar.gz": first, "gt.tar.gz": tar({"gt/a.tif": TIF, "gt/._a.tif": b"x"})}
        files = tuple(
            RemoteFile(f"{site.base}/{name}", f"two_{name}", f"md5:{hashlib.md5(data).hexdigest()}")
            for name, data in archives.items()
        )
        source = Source("two", "A test.", "none", "nobody", files, (("im/*.tif", 1), ("gt/*.tif", 1)))
        monkeypatch.setitem(SOURCES, "two", source)
        site.pages |= {f"/{name}": serve(data, kind="application/x-gzip") for name, data in archives.items()}
        return source

    return register


def test_two_archives_become_one_folder(two: Register, tmp_path: Path) -> None:
    two(tar({"im/a.tif": TIF, "im/about.mat": b"x"}))
    assert locate("two", tmp_path, say=quiet) == tmp_path / "two"
    found = ["two/gt/._a.tif", "two/gt/a.tif", "two/im/a.tif", "two/im/about.mat", "two_gt.tar.gz", "two_im.tar.gz"]
    assert names(tmp_path) == found  # macOS packed ._a.tif; it is no image and does not count


def test_fault_84_a_wrong_md5_is_set_aside(two: Register, site: Site, tmp_path: Path) -> None:
    two(tar({"im/a.tif": TIF}))
    site.pages["/im.tar.gz"] = serve(tar({"im/a.tif": TIF[::-1]}))
    assert "md5 checksum" in refused("two", tmp_path)
    assert names(tmp_path) == ["two_im.tar.gz.wrong"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_fault_86_an_archive_that_is_not_safe_leaves_nothing(
    kind: str, zipped: Register, two: Register, tmp_path: Path
) -> None:
    if kind == "zip":
        zipped(pack({"../evil.tif": TIF, **GOOD}))
        assert "points outside" in refused("boxed", tmp_path / "data")
        assert names(tmp_path) == ["data/z.zip"]
    else:
        two(tar({"im/a.tif": TIF, "im/../../evil.tif": TIF}))
        assert "points outside" in refused("two", tmp_path / "data")
        assert names(tmp_path) == ["data/two_gt.tar.gz", "data/two_im.tar.gz"]
    assert [path.name for path in (tmp_path / "data").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_fault_88_a_damaged_archive_leaves_nothing(kind: str, zipped: Register, two: Register, tmp_path: Path) -> None:
    archive = (pack if kind == "zip" else tar)({"box/im/a.tif": TIF, "box/im/b.tif": TIF})
    (zipped if kind == "zip" else two)(archive[: len(archive) // 2])
    assert "cannot be unpacked" in refused("boxed" if kind == "zip" else "two", tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


# The three sets of the later sheets, as their authors pack them, with tiny stand-ins for the files


def stand_in(start: bytes) -> bytes:
    return start + random.Random(1).randbytes(100)  # else it would pack like a bomb


PNG, JPG = stand_in(b"\x89PNG\r\n\x1a\n"), stand_in(b"\xff\xd8\xff")
PETS = 74  # a hundredth of the official number, which would take too long here
PET_LISTS = {f"annotations/{name}.txt": JPG for name in ("list", "trainval", "test", "README")}
PET_LABELS = {f"annotations/trimaps/{dot}pug_{i}.png": PNG for i in range(PETS) for dot in ("", "._")}


def official(name: str) -> list[bytes]:
    """The archives of a set: official names, and the official numbers but for the pets."""
    if name == "kitti_road":
        lanes = {f"data_road/training/gt_image_2/um_lane_{i:06d}.png": PNG for i in range(95)}
        other = {f"data_road/testing/image_2/um_{i:06d}.png": PNG for i in range(96)}
        return [pack({f"data_road/{path}": PNG for path in SOURCES[name].names} | lanes | other)]
    if name == "oxford_pets":
        return [tar({f"images/pug_{i}.jpg": JPG for i in range(PETS)}), tar(PET_LISTS | PET_LABELS)]
    root = SOURCES[name].archive_root
    files = {f"{root}/{part}/{i}.png": PNG for part, n in CAMVID.items() for i in range(n)}
    return [pack({f"{root.removesuffix('CamVid')}README.md": JPG, f"{root}/test.txt": JPG, **files})]


CAMVID = {"train": 367, "trainannot": 367, "val": 101, "valannot": 101, "test": 233, "testannot": 233}


@pytest.mark.parametrize(
    ("name", "number"),  # files: 2·289 + 95 lanes + 96 test images; 3·74 + 4 lists; 2·701 + a list
    [("kitti_road", 769), ("oxford_pets", 226), ("camvid", 1403)],
)
def test_official_layouts_arrive_whole(name: str, number: int, site: Site, tmp_path: Path, monkeypatch: Patch) -> None:
    files = []
    for file, data in zip(SOURCES[name].files, official(name)):
        checksum = f"md5:{hashlib.md5(data).hexdigest()}" if file.checksum else ""
        files.append(file._replace(address=f"{site.base}/{file.target}", also_at=(), checksum=checksum))
        site.pages[f"/{file.target}"] = serve(data, kind="application/octet-stream")
    expected = tuple((pattern, PETS if number == 7390 else number) for pattern, number in SOURCES[name].expected)
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], files=tuple(files), expected=expected))
    folder = locate(name, tmp_path, say=quiet)
    assert len(names(folder)) == number
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, *(file.target for file in files)])
    next(path for path in folder.glob("**/*[0-9].png") if path.name[0] != ".").unlink()
    assert "Move this folder away" in refused(name, tmp_path)


def test_fault_88_an_archive_with_other_content_is_refused(zipped: Register, tmp_path: Path) -> None:
    zipped(pack({"box/im/a.tif": TIF}))
    assert "1 files im/*.tif (expected 2)" in refused("boxed", tmp_path)
    assert names(tmp_path) == ["z.zip"]


def test_fault_88_a_folder_that_is_there_is_never_overwritten(zipped: Register, site: Site, tmp_path: Path) -> None:
    zipped(pack(GOOD))
    (tmp_path / "boxed/im").mkdir(parents=True)
    (tmp_path / "boxed/im/mine.tif").write_bytes(TIF)
    assert "Move this folder away" in refused("boxed", tmp_path)
    assert names(tmp_path) == ["boxed/im/mine.tif"]
    assert site.log == []


# The mirror


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A mirror that holds one of the two files of `bare`, and other bytes than the official ones."""
    folder = tmp_path / "mirror" / "bare"
    folder.mkdir(parents=True)
    (folder / "a.tif").write_bytes(OTHER)
    monkeypatch.setenv(download.MIRROR_VARIABLE, str(tmp_path / "mirror"))
    return folder


def test_the_mirror_is_used_and_the_run_says_so(bare: Source, mirror: Path, site: Site, tmp_path: Path) -> None:
    said: list[str] = []
    before = names(tmp_path)
    for _ in range(2):
        assert locate("bare", tmp_path / "data", say=said.append) == mirror
    assert names(tmp_path) == before
    assert site.log == []
    assert len(said) == 2
    assert "Licence" in said[0]
    assert "mirror" in said[1]
    assert str(tmp_path) not in "".join(said)  # no path of this machine in a notebook


def test_the_mirror_wins_over_a_complete_copy(bare: Source, tmp_path: Path, monkeypatch: Patch) -> None:
    locate("bare", tmp_path / "data", say=quiet)
    (tmp_path / "mirror/bare").mkdir(parents=True)
    (tmp_path / "mirror/bare/a.tif").write_bytes(TIF)
    monkeypatch.setenv(download.MIRROR_VARIABLE, str(tmp_path / "mirror"))
    assert locate("bare", tmp_path / "data", say=quiet) == tmp_path / "mirror/bare"


def test_a_mirror_without_this_set_is_passed_over(tiny: Source, mirror: Path, tmp_path: Path) -> None:
    assert locate("tiny", tmp_path / "data", say=quiet) == tmp_path / "data/tiny"


@pytest.mark.parametrize("content", [None, b"", HTML], ids=["no file", "empty file", "web page"])
def test_a_damaged_mirror_is_refused(
    content: bytes | None, bare: Source, mirror: Path, site: Site, tmp_path: Path
) -> None:
    (mirror / "a.tif").unlink()
    if content is not None:
        (mirror / "a.tif").write_bytes(content)
    assert download.MIRROR_VARIABLE in refused("bare", tmp_path / "data")
    with pytest.raises(InputError):
        reachable("bare", tmp_path / "data")
    assert site.log == []


def test_a_mirror_that_is_not_there_is_refused(bare: Source, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv(download.MIRROR_VARIABLE, str(tmp_path / "typing mistake"))
    assert "typing mistake" in refused("bare", tmp_path)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_real_mirror(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    folder = Path(REAL_MIRROR).expanduser() / name
    if not REAL_MIRROR or not folder.is_dir():
        pytest.skip(f"{download.MIRROR_VARIABLE} names no folder that holds {name}/")
    monkeypatch.setenv(download.MIRROR_VARIABLE, REAL_MIRROR)
    said: list[str] = []
    assert reachable(name, tmp_path)
    assert locate(name, tmp_path, say=said.append) == folder
    needed = {pattern for pattern, _ in SOURCES[name].expected} - set(SOURCES[name].mirror_may_lack)
    assert all(list(folder.glob(pattern)) for pattern in needed)
    assert names(tmp_path) == []
    assert len(said) == 2


# reachable


def test_reachable_needs_no_network_for_what_is_there(
    bare: Source, zipped: Register, site: Site, tmp_path: Path, monkeypatch: Patch
) -> None:
    zipped(pack(GOOD))
    (tmp_path / "bare").mkdir()
    for path in ("bare/a.tif", "bare/b.tif"):
        (tmp_path / path).write_bytes(TIF)
    (tmp_path / "z.zip").write_bytes(pack(GOOD))
    assert reachable("bare", tmp_path)
    assert reachable("boxed", tmp_path)
    monkeypatch.setenv(download.MIRROR_VARIABLE, str(tmp_path))
    assert reachable("bare", tmp_path / "elsewhere")
    assert site.log == []


def test_reachable_asks_for_the_headers_of_the_first_missing_file(bare: Source, site: Site, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/a.tif").write_bytes(TIF)
    assert reachable("bare", tmp_path)
    assert [(method, path) for method, path, _ in site.log] == [("HEAD", "/b.tif")]
    assert names(tmp_path) == ["bare/a.tif"]


def test_reachable_asks_again_with_get_where_head_is_refused(tiny: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = [status(403), serve(TIF)]
    assert reachable("tiny", tmp_path)
    assert [method for method, _, _ in site.log] == ["HEAD", "GET"]


@pytest.mark.parametrize(
    "page", [status(404), status(503), serve(HTML, kind="text/html")], ids=["404", "503", "login page"]
)
def test_reachable_says_no_to_another_answer(page: Page, tiny: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = page
    assert reachable("tiny", tmp_path) is False


def test_reachable_is_fast_when_nobody_answers(tiny: Source, site: Site, tmp_path: Path, monkeypatch: Patch) -> None:
    def silent_name_server(*ignored: object) -> None:
        site.release.wait(20)
        raise socket.gaierror("too late")

    began = time.monotonic()
    site.pages["/a.tif"] = stall(site)
    assert reachable("tiny", tmp_path, timeout=0.2) is False
    monkeypatch.setattr(socket, "getaddrinfo", silent_name_server)
    assert reachable("tiny", tmp_path, timeout=0.2) is False
    assert time.monotonic() - began < 6  # both would wait for 20 s


def test_reachable_says_no_when_the_connection_is_refused(tiny: Source, site: Site, tmp_path: Path) -> None:
    site.server.shutdown()
    site.server.server_close()
    assert reachable("tiny", tmp_path) is False
