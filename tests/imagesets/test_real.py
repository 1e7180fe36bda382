"""Real data sets: fetched from a server on 127.0.0.1, well or badly behaved, and read from small fakes of each layout.

No test reaches the internet.  Where a mirror is set, its real files are read too.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import itertools
import random
import socket
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.measure import regionprops

from imagesets import real
from imagesets.files import PARTS, Sample
from imagesets.real import READERS, YEAST_COLUMNS, faults, locate, pet_species, reachable, read_dataset, unpack
from imagesets.sources import SOURCES, RemoteFile, Source
from tests.data_helpers import MIRROR, colour_picture, mask, picture, refused, save

TIF = b"II*\x00" + random.Random(0).randbytes(100_000)  # begins as a TIFF file does
HTML = b"<!DOCTYPE html><title>Please log in</title>"
Page = Callable[[BaseHTTPRequestHandler], None]
Patch = pytest.MonkeyPatch
Boxed = Callable[[bytes], Source]
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in.*socket:pytest.PytestUnraisableExceptionWarning")


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not MIRROR or not Path(MIRROR, name).is_dir(), reason=f"no mirror with {name}/")


# --- a server with a page for each behaviour ---


class Site:
    """Answers with `pages[path]`: one page, or a list for the first, second, … request (the last repeats)."""

    def __init__(self) -> None:
        self.pages: dict[str, Page | list[Page]] = {}
        self.log: list[str] = []
        self.release = threading.Event()  # ends all stalls
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                site.log.append(self.path)
                page = site.pages.get(self.path, status(404))
                if isinstance(page, list):
                    page = page.pop(0) if len(page) > 1 else page[0]
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # some clients leave early
                    page(self)
                self.close_connection = True

            def log_message(self, *ignored: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


def serve(data: bytes, kind: str = "image/tiff", code: int = 200, missing: int = 0) -> Page:
    """Promise all of `data`, and leave out the last `missing` bytes."""

    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) - missing])

    return page


def status(code: int) -> Page:
    return serve(b"", code=code)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """The socket of a download that failed is left to the garbage collector, which warns: let it do so here."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def sealed(monkeypatch: Patch) -> None:
    """No pauses between tries, no mirror, nothing said yet, and no way to the internet."""
    monkeypatch.setattr(real, "WAITS", (0, 0))
    monkeypatch.setattr(real, "_SAID", set())
    monkeypatch.delenv(real.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    lookup = socket.getaddrinfo

    def only_here(host: str, *rest: object, **more: object) -> object:
        if host != "127.0.0.1":
            raise socket.gaierror(f"a test asked for {host}")
        return lookup(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", only_here)


def register(monkeypatch: Patch, name: str, *files: RemoteFile, expected: tuple = (), root: str = "") -> Source:
    source = Source(name, "A test.", "none", "nobody", files, expected, archive_root=root)
    monkeypatch.setitem(SOURCES, name, source)
    return source


@pytest.fixture
def tiny(site: Site, monkeypatch: Patch) -> Source:
    """A set of one file with a checksum."""
    site.pages["/a.tif"] = serve(TIF)
    file = RemoteFile(f"{site.base}/a.tif", "im/a.tif", f"sha256:{hashlib.sha256(TIF).hexdigest()}")
    return register(monkeypatch, "tiny", file, expected=(("im/*.tif", 1),))


@pytest.fixture
def bare(site: Site, monkeypatch: Patch) -> Source:
    """A set of two files without checksums."""
    site.pages.update({"/a.tif": serve(TIF), "/b.tif": serve(TIF)})
    files = (RemoteFile(f"{site.base}/{name}.tif", f"{name}.tif") for name in "ab")
    return register(monkeypatch, "bare", *files, expected=(("?.tif", 2),))


def pack_zip(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, data in entries.items():
            packed.writestr(name, data)
    return stream.getvalue()


def pack_tar(entries: dict[str, bytes], *special: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as packed:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
        for info in special:
            packed.addfile(info)
    return stream.getvalue()


GOOD = {"box/im/a.tif": TIF, "box/im/b.tif": TIF, "__MACOSX/box/._a.tif": b"x"}


@pytest.fixture
def boxed(site: Site, monkeypatch: Patch) -> Boxed:
    """Register a set that comes as one .zip with the given bytes."""

    def make(archive: bytes) -> Source:
        site.pages["/z.zip"] = serve(archive, kind="application/zip")
        file = RemoteFile(f"{site.base}/z.zip", "z.zip")
        return register(monkeypatch, "boxed", file, expected=(("im/*.tif", 2),), root="box")

    return make


def quiet(line: str) -> None:
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- fetching ---


def test_a_file_is_fetched_once_and_the_terms_are_said_once(tiny: Source, site: Site, tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        assert locate("tiny", tmp_path, say=said.append) == tmp_path / "tiny"
    assert names(tmp_path) == ["tiny/im/a.tif"]
    assert (tmp_path / "tiny/im/a.tif").read_bytes() == TIF
    assert site.log == ["/a.tif"]
    assert len(said) == 2 and "Licence: none" in said[0] and "cite: nobody" in said[0]
    assert said[1] == "tiny: fetching 1 file(s) from 127.0.0.1"


@pytest.mark.parametrize(
    "bad",
    [serve(TIF, missing=5000), status(503)],
    ids=["cut off", "busy"],
)
def test_what_goes_wrong_once_is_tried_again(bad: Page, tiny: Source, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = [bad, bad, serve(TIF)]
    locate("tiny", tmp_path, say=quiet)
    assert (tmp_path / "tiny/im/a.tif").read_bytes() == TIF
    assert names(tmp_path) == ["tiny/im/a.tif"]


@pytest.mark.parametrize(
    ("name", "bad", "reason", "tries"),
    [
        ("tiny", serve(TIF[:-1] + b"?"), "does not match the known hash", 1),
        ("tiny", status(404), "404", 1),
        ("bare", serve(TIF, missing=5000), "IncompleteRead", 3),
        ("bare", serve(HTML), "is not a .tif file", 1),
    ],
    ids=["wrong hash", "404", "cut off", "login page"],
)
def test_a_file_that_is_not_the_right_one_never_gets_its_name_and_is_not_fetched_again_in_vain(
    name: str, bad: Page, reason: str, tries: int, tiny: Source, bare: Source, site: Site, tmp_path: Path
) -> None:
    site.pages["/a.tif"] = bad
    message = refused(locate, name, tmp_path, say=quiet)
    place = tmp_path / name / SOURCES[name].files[0].target
    assert reason in message and f"{site.base}/a.tif cannot be fetched" in message
    assert f"By hand: save the address as {place}" in message and real.MIRROR_VARIABLE in message
    assert names(tmp_path) == []
    assert len(site.log) == tries


def test_offline_a_file_put_there_by_hand_is_enough(tiny: Source, site: Site, tmp_path: Path) -> None:
    site.close()
    assert not reachable("tiny", tmp_path)
    assert "By hand: save" in refused(locate, "tiny", tmp_path, say=quiet)
    (tmp_path / "tiny/im/a.tif").write_bytes(TIF)  # the folder is there already
    assert reachable("tiny", tmp_path)
    assert locate("tiny", tmp_path, say=quiet) == tmp_path / "tiny"


@pytest.mark.parametrize(("name", "content"), [("bare", HTML), ("tiny", TIF + b"x")])  # first bytes, checksum
def test_a_wrong_file_put_there_by_hand_is_neither_taken_nor_overwritten(
    name: str, content: bytes, bare: Source, tiny: Source, site: Site, tmp_path: Path
) -> None:
    place = tmp_path / name / SOURCES[name].files[0].target
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    if name == "tiny":
        (place.parent / "b.tif").write_bytes(TIF)  # one too many, so that the folder is not taken for complete
    assert f"{place} is not" in refused(locate, name, tmp_path, say=quiet)
    assert place.read_bytes() == content and site.log == []


def test_a_full_disk_is_said_and_leaves_no_half_file(tiny: Source, tmp_path: Path, monkeypatch: Patch) -> None:
    def full(*ignored: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pooch.core.shutil.move", full)
    message = refused(locate, "tiny", tmp_path, say=quiet)
    assert "cannot be fetched or stored" in message and "No space left on device" in message
    assert names(tmp_path) == []


@pytest.mark.parametrize("page", [status(404), status(503)], ids=["404", "503"])
def test_reachable_says_no_to_another_answer(page: Page, tiny: Source, site: Site, tmp_path: Path) -> None:
    assert reachable("tiny", tmp_path)
    site.pages["/a.tif"] = page
    assert not reachable("tiny", tmp_path)


def test_reachable_does_not_wait_for_a_name_server_that_is_silent(
    tiny: Source, site: Site, tmp_path: Path, monkeypatch: Patch
) -> None:
    answered: list[str] = []

    def silent(host: str, *ignored: object, **more: object) -> None:
        site.release.wait(3)
        answered.append(host)
        raise socket.gaierror("too late")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    assert not reachable("tiny", tmp_path, timeout=0.1)
    assert answered == []
    site.release.set()


# --- names, numbers, first bytes ---


def test_faults_lists_every_problem(bare: Source, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(HTML)
    (tmp_path / "c.tif").write_bytes(b"")
    (tmp_path / "d.tif").write_bytes(TIF)
    (tmp_path / "e.tif").mkdir()  # a folder is no image, whatever its name
    (tmp_path / ".f.tif").write_bytes(b"written by macOS")
    assert [fault.partition(" (it begins")[0] for fault in faults(bare, tmp_path)] == [
        "3 files ?.tif (expected 2)",
        "a.tif is not a .tif file",
        "c.tif is not a .tif file",
        "b.tif is missing",
    ]
    assert len(faults(bare, tmp_path, official=False)) == 2  # number and names are those of the official set
    source = replace(bare, files=(), expected=(("d*.tif", 1), ("z*.tif", 1)), names=("d.tif", "g.tif"))
    assert faults(source, tmp_path) == ["0 files z*.tif (expected 1)", "g.tif is missing"]
    assert faults(source, tmp_path, official=False) == ["0 files z*.tif (expected one or more)"]
    assert faults(replace(source, mirror_may_lack=("z*.tif",)), tmp_path, official=False) == []


# --- archives ---


def test_an_archive_is_unpacked_without_its_outer_folder(boxed: Boxed, tmp_path: Path) -> None:
    boxed(pack_zip(GOOD))
    (tmp_path / "boxed.unpacking/box/im").mkdir(parents=True)
    (tmp_path / "boxed.unpacking/box/im/of_a_killed_run.tif").write_bytes(TIF)
    assert locate("boxed", tmp_path, say=quiet) == tmp_path / "boxed"
    assert names(tmp_path) == ["boxed/im/a.tif", "boxed/im/b.tif", "z.zip"]


def test_two_archives_become_one_folder(site: Site, tmp_path: Path, monkeypatch: Patch) -> None:
    archives = {"im": pack_tar({"im/a.tif": TIF, "im/._a.tif": b"x"}), "gt": pack_tar({"./gt/a.tif": TIF})}
    files = []
    for name, data in archives.items():
        site.pages[f"/{name}"] = serve(data, kind="application/x-gzip")
        md5 = f"md5:{hashlib.md5(data).hexdigest()}"
        files.append(RemoteFile(f"{site.base}/{name}", f"two_{name}.tar.gz", md5))
    register(monkeypatch, "two", *files, expected=(("im/*.tif", 1), ("gt/*.tif", 1)))
    assert names(locate("two", tmp_path, say=quiet)) == ["gt/a.tif", "im/._a.tif", "im/a.tif"]


def test_a_folder_that_is_there_is_never_overwritten(boxed: Boxed, site: Site, tmp_path: Path) -> None:
    boxed(pack_zip(GOOD))
    (tmp_path / "boxed/im").mkdir(parents=True)
    (tmp_path / "boxed/im/mine.tif").write_bytes(TIF)
    assert "Move this folder away" in refused(locate, "boxed", tmp_path, say=quiet)
    assert names(tmp_path) == ["boxed/im/mine.tif"]
    assert site.log == []


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (pack_zip({"box/im/a.tif": TIF}), "1 files im/*.tif (expected 2)"),
        (pack_zip(GOOD)[:-1000], "cannot be unpacked"),
        (pack_zip({"../evil.tif": TIF, **GOOD}), "leads outside the folder"),
    ],
    ids=["other content", "damaged", "outside"],
)
def test_an_archive_that_is_not_the_right_one_leaves_no_folder(
    archive: bytes, reason: str, boxed: Boxed, tmp_path: Path
) -> None:
    boxed(archive)
    assert reason in refused(locate, "boxed", tmp_path / "data", say=quiet)
    assert names(tmp_path) == ["data/z.zip"]


@pytest.mark.parametrize("pack", [pack_zip, pack_tar])
@pytest.mark.parametrize("name", ["../evil", "box/../../evil", "/evil", "..\\evil", "C:\\evil", "C:evil"])
def test_no_entry_leads_outside(name: str, pack: Callable[..., bytes], tmp_path: Path) -> None:
    archive = tmp_path / ("a.zip" if pack is pack_zip else "a.tar.gz")
    archive.write_bytes(pack({name: b"evil"}))
    assert "leads outside" in refused(unpack, archive, tmp_path / "in" / "out")
    assert names(tmp_path) == [archive.name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("box/link")
    info.type, info.linkname = kind, str(tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(pack_tar({"box/a": b"x"}, info))
    assert "is a link or a device" in refused(unpack, tmp_path / "a.tar.gz", tmp_path / "out")
    assert names(tmp_path / "out") == ["box/a"]


# --- the mirror ---


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A mirror that holds one of the two files of `bare`."""
    folder = tmp_path / "mirror" / "bare"
    folder.mkdir(parents=True)
    (folder / "a.tif").write_bytes(TIF[:1000])
    monkeypatch.setenv(real.MIRROR_VARIABLE, str(tmp_path / "mirror"))
    return folder


def test_the_mirror_wins_is_only_read_and_is_said_once(bare: Source, mirror: Path, site: Site, tmp_path: Path) -> None:
    said: list[str] = []
    before = names(tmp_path)
    for _ in range(2):
        assert locate("bare", tmp_path / "data", say=said.append) == mirror
    assert reachable("bare", tmp_path / "data")
    assert (names(tmp_path), site.log) == (before, [])
    assert len(said) == 2 and "Licence" in said[0] and "mirror" in said[1]
    assert str(tmp_path) not in "".join(said)  # no path of this machine in a notebook


@pytest.mark.parametrize("content", [None, b"", HTML], ids=["no file", "empty file", "web page"])
def test_a_damaged_mirror_is_refused(content: bytes | None, bare: Source, mirror: Path, tmp_path: Path) -> None:
    (mirror / "a.tif").unlink()
    if content is not None:
        (mirror / "a.tif").write_bytes(content)
    assert real.MIRROR_VARIABLE in refused(locate, "bare", tmp_path / "data", say=quiet)
    assert "is not complete" in refused(reachable, "bare", tmp_path / "data")


# --- small fakes of the layouts ---


def fake_kitti(root: Path) -> Path:
    """Three frames of 6 × 8 pixels; `road` holds the official colours, the lanes must be left alone."""
    colours = np.array([[255, 0, 0], [255, 0, 255], [0, 0, 0], [0, 0, 255]], np.uint8)
    for seed, kind in enumerate(("um", "umm", "uu")):
        save(root / "training" / "image_2" / f"{kind}_00000{seed}.png", colour_picture(seed))
        save(root / "training" / "gt_image_2" / f"{kind}_road_00000{seed}.png", colours[mask(seed, classes=4)])
        save(root / "training" / "gt_image_2" / f"{kind}_lane_00000{seed}.png", colours[mask(9, classes=2)])
    return root


def fake_pets(root: Path, cats: int = 20, dogs: int = 10, tests: int = 3) -> Path:
    """Cats Abyssinian_1 … and dogs great_dane_1 …, then `tests` more of each for the official test list."""
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for breed, number, ids, first in (("Abyssinian", cats, "1 1 1", 0), ("great_dane", dogs, "2 2 1", 100)):
        for i in range(1, number + tests + 1):
            lists["trainval" if i <= number else "test"].append(f"{breed}_{i} {ids}")
            save(root / "images" / f"{breed}_{i}.jpg", colour_picture(first + i))
            save(root / "annotations" / "trimaps" / f"{breed}_{i}.png", mask(first + i, classes=3) + 1)
    lists["list"] = ["#Image CLASS-ID SPECIES BREED ID", *lists["trainval"], *lists["test"]]
    for name, lines in lists.items():
        (root / "annotations" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


def fake_camvid(root: Path, suffix: str = ".png", **numbers: int) -> Path:
    for part, number in (numbers or {"train": 3, "val": 2, "test": 2}).items():
        for i in range(number):
            save(root / part / f"0016E5_{i:05d}{suffix}", colour_picture(i))
            save(root / f"{part}annot" / f"0016E5_{i:05d}.png", mask(i, classes=12))
    return root


FAKES = {"kitti_road": fake_kitti, "oxford_pets": fake_pets, "camvid": fake_camvid}
FILES = {  # an image of each fake, and its label
    "kitti_road": ("training/image_2/um_000000.png", "training/gt_image_2/um_road_000000.png"),
    "oxford_pets": ("images/Abyssinian_2.jpg", "annotations/trimaps/Abyssinian_2.png"),
    "camvid": ("val/0016E5_00001.png", "valannot/0016E5_00001.png"),
}
colour_sets = pytest.mark.parametrize("name", FAKES)


def parts_of(samples: list[Sample]) -> dict[str | None, int]:
    return {part: [sample.part for sample in samples].count(part) for part in {sample.part for sample in samples}}


def test_every_source_has_a_reader() -> None:
    assert set(READERS) == set(SOURCES)
    for function in (locate, reachable):
        assert "'moon' is not a known data set; known are camvid" in refused(function, "moon")
    assert "'moon' is not a known data set" in refused(read_dataset, "moon", "")


def test_dsb2018_has_instances_and_its_own_test_part(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / part / "images" / "a.tif", picture())
        save(tmp_path / part / "masks" / "a.tif", mask(classes=4).astype(np.uint16))
    samples = list(read_dataset("dsb2018", tmp_path))
    assert [sample.part for sample in samples] == [None, "test"]
    assert np.array_equal(samples[0].extras["instances"], mask(classes=4))
    assert np.array_equal(samples[0].label, mask(classes=4) > 0)


def test_yeastcellseg_and_topomortar_are_foreground_or_not(tmp_path: Path) -> None:
    save(tmp_path / "DS01_01.tif", picture())
    save(tmp_path / "DS01_01_gt.tif", mask() * 255)
    (sample,) = read_dataset("yeastcellseg", tmp_path)
    assert sample.name == "DS01_01"
    assert np.array_equal(sample.label, mask())
    for part, number in (("train", "001"), ("val", "051"), ("test", "071")):
        save(tmp_path / part / "images" / f"{number}.png", colour_picture())
        save(tmp_path / part / "accurate" / f"{number}.png", mask() * 255)
        save(tmp_path / part / "noisy" / f"{number}.png", mask(1) * 255)  # not ours
    samples = list(read_dataset("topomortar", tmp_path))
    assert [(sample.name, sample.part) for sample in samples] == [("001", "train"), ("051", "val"), ("071", "test")]
    assert all(np.array_equal(sample.label, mask()) for sample in samples)


def test_yeast_phase_gives_one_sample_a_region(tmp_path: Path) -> None:
    movie = tmp_path / "data" / "sample_movie_1"
    save(movie / "im007_channel1_phase.tif", np.tile(np.arange(692, dtype=np.uint16), (5, 1)))
    save(movie / "im007_mask1.tif", mask(0, 5, 692).astype(np.uint16) * 9)
    samples = list(read_dataset("yeast_phase", tmp_path))
    assert [sample.name for sample in samples] == ["im007_train", "im007_val", "im007_test"]
    assert [sample.part for sample in samples] == list(PARTS)
    assert [(s.image.min(), s.image.max() + 1) for s in samples] == [(0, 416), (452, 516), (552, 692)]
    for sample in samples:
        assert np.array_equal(sample.label, mask(0, 5, 692)[:, slice(*YEAST_COLUMNS[str(sample.part)])])
        assert np.array_equal(sample.extras["instances"], sample.label * 9)


def test_kitti_road_has_roads_and_pixels_that_nobody_judged(tmp_path: Path) -> None:
    samples = list(read_dataset("kitti_road", fake_kitti(tmp_path)))
    assert {sample.part for sample in samples} == {None}
    assert [sample.name for sample in samples] == ["um_000000", "umm_000001", "uu_000002"]
    for seed, sample in enumerate(samples):
        assert np.array_equal(sample.image, colour_picture(seed))
        # red: not road, red and blue: road, black: ignored, blue alone: a road that is ignored
        assert np.array_equal(sample.label, np.array([0, 1, 255, 255])[mask(seed, classes=4)])


def test_camvid_has_eleven_classes_void_and_its_official_parts(tmp_path: Path) -> None:
    samples = list(read_dataset("camvid", fake_camvid(tmp_path, train=5, val=3, test=2)))
    assert parts_of(samples) == {"train": 5, "val": 3, "test": 2}
    raw = mask(0, classes=12)
    assert np.array_equal(samples[0].label, np.where(raw == 11, 255, raw))


def test_camvid_of_a_mirror_gives_the_second_half_of_its_validation_film_for_the_test_part(tmp_path: Path) -> None:
    samples = list(read_dataset("camvid", fake_camvid(tmp_path, ".jpg", train=2, val=5)))
    # 5 // 2 = 2 are left to validate; the others are one block
    assert "".join(f"{sample.name[-1]}{str(sample.part)[:2]} " for sample in samples) == "0tr 1tr 0va 1va 2te 3te 4te "


@colour_sets
def test_partners_that_are_missing_are_named_and_junk_is_not(name: str, tmp_path: Path) -> None:
    image, label = (FAKES[name](tmp_path) / path for path in FILES[name])
    number = sum(1 for _ in read_dataset(name, tmp_path))
    for path in (image, label):
        for junk in (f"._{path.name}", ".DS_Store", "Thumbs.db", "notes.mat"):
            (path.parent / junk).write_bytes(b"junk")
    assert sum(1 for _ in read_dataset(name, tmp_path)) == number
    label.rename(tmp_path / "kept.png")
    assert f"{image.parent.name}/{image.name} has no label" in refused(read_dataset, name, tmp_path)
    (tmp_path / "kept.png").rename(label)
    image.unlink()
    assert f"{label.parent.name}/{label.name} has no image" in refused(read_dataset, name, tmp_path)


# --- pets ---


def test_pets_keep_the_official_test_part_and_a_fixed_share_of_each_breed_validates(tmp_path: Path) -> None:
    samples = {sample.name: sample for sample in read_dataset("oxford_pets", fake_pets(tmp_path))}
    raw = mask(1, classes=3) + 1
    assert np.array_equal(samples["Abyssinian_1"].label, np.array([9, 1, 0, 2])[raw])  # 1 pet, 2 background, 3 border
    assert parts_of(list(samples.values())) == {"train": 25, "val": 5, "test": 6}
    assert {name for name in samples if samples[name].part == "test"} == {
        *(f"Abyssinian_{i}" for i in (21, 22, 23)),
        *(f"great_dane_{i}" for i in (11, 12, 13)),
    }
    # worked out with the command sha256sum: of Abyssinian_1 … 20 and great_dane_1 … 10, these are the smallest;
    # 15 % of 20 are 3, of 10 they are 1.5, rounded to the even 2
    chosen = {"Abyssinian_16", "Abyssinian_7", "Abyssinian_18", "great_dane_9", "great_dane_3"}
    assert {name for name in samples if samples[name].part == "val"} == chosen
    for i in range(1, 11):  # a mirror holds half of the cats: the part of the others is the same
        (tmp_path / "images" / f"Abyssinian_{i}.jpg").unlink()
        (tmp_path / "annotations" / "trimaps" / f"Abyssinian_{i}.png").unlink()
    left = {sample.name for sample in read_dataset("oxford_pets", tmp_path) if sample.part == "val"}
    assert left == chosen - {"Abyssinian_7"}


def test_a_copy_of_a_test_image_is_not_trained_on(tmp_path: Path) -> None:
    before = {sample.name: sample.part for sample in read_dataset("oxford_pets", fake_pets(tmp_path))}
    trained = next(name for name in before if before[name] == "train")
    for place in ("images/{}.jpg", "annotations/trimaps/{}.png"):
        (tmp_path / place.format(trained)).write_bytes((tmp_path / place.format("Abyssinian_21")).read_bytes())
    with open(tmp_path / "annotations" / "test.txt", "a") as stream:
        stream.write("Abyssinian_1 1 1 1\n")  # in both lists: a test image
    (tmp_path / "images" / "pug_1.jpg").write_bytes(b"no picture, and in no list")
    after = {sample.name: sample.part for sample in read_dataset("oxford_pets", tmp_path)}
    assert before.keys() - after.keys() == {trained} - {"Abyssinian_1"}
    assert after["Abyssinian_1"] == "test"


def test_every_pet_has_three_colours(tmp_path: Path) -> None:
    fake_pets(tmp_path, cats=4, dogs=0, tests=0)
    colours, see_through = Image.fromarray(colour_picture(7)), Image.fromarray(colour_picture(8))
    see_through.putalpha(Image.fromarray(picture(9)))
    stored = {
        1: (colours.convert("L"), "JPEG"),
        2: (colours.convert("CMYK"), "JPEG"),
        3: (see_through, "PNG"),  # as Abyssinian_5.jpg of the official set
        4: (colours.convert("P"), "GIF"),  # as Abyssinian_34.jpg
    }
    for i, (image, kind) in stored.items():
        image.save(tmp_path / "images" / f"Abyssinian_{i}.jpg", format=kind)
    images = {sample.name: sample.image for sample in read_dataset("oxford_pets", tmp_path)}
    assert {image.shape for image in images.values()} == {(6, 8, 3)}
    assert np.array_equal(images["Abyssinian_3"], colour_picture(8))
    assert (images["Abyssinian_1"][..., 0] == images["Abyssinian_1"][..., 2]).all()


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"pug_1 1 3 1\n", b"pug_1 1 2\n"])
def test_a_list_that_is_none_is_said(content: bytes | None, tmp_path: Path) -> None:
    for name in ("list", "test"):
        fake_pets(tmp_path)
        (tmp_path / "annotations" / f"{name}.txt").unlink()
        if content:
            (tmp_path / "annotations" / f"{name}.txt").write_bytes(content)
        message = refused(pet_species, tmp_path) if name == "list" else refused(read_dataset, "oxford_pets", tmp_path)
        assert f"annotations/{name}.txt cannot be read" in message
        assert "name class-id species breed-id" in message


# --- the real files ---


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_real_mirror_is_complete(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    if not MIRROR or not Path(MIRROR, name).is_dir():
        pytest.skip(f"{real.MIRROR_VARIABLE} names no folder that holds {name}/")
    monkeypatch.setenv(real.MIRROR_VARIABLE, MIRROR)
    assert reachable(name, tmp_path)
    assert locate(name, tmp_path, say=quiet) == Path(MIRROR, name)
    samples = list(itertools.islice(read_dataset(name, Path(MIRROR, name)), 6))
    for sample in samples:
        assert sample.image.shape[:2] == sample.label.shape
        assert set(np.unique(sample.label)) <= {*range(READERS[name].num_classes), 255}


@needs("yeast_phase")
def test_real_yeast_phase_is_split_by_region_with_a_gap_wider_than_a_cell() -> None:
    gaps = [YEAST_COLUMNS["val"][0] - YEAST_COLUMNS["train"][1], YEAST_COLUMNS["test"][0] - YEAST_COLUMNS["val"][1]]
    root = Path(MIRROR, "yeast_phase")
    label = tifffile.imread(root / "data" / "sample_movie_1" / "im009_mask1.tif")
    assert min(gaps) > max(cell.bbox[3] - cell.bbox[1] for cell in regionprops(label))
    samples = list(itertools.islice(read_dataset("yeast_phase", root), 3))
    assert sum(sample.image.shape[1] for sample in samples) + sum(gaps) == 692
    assert all(0.02 < sample.label.mean() < 0.5 for sample in samples)  # there are cells in every region
