"""Real data sets: fetched from a server on 127.0.0.1, read from small fakes of each layout and from a set mirror."""

import gc
import hashlib
import io
import itertools
import random
import re
import shutil
import socket
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.measure import regionprops

from imagesets import real
from imagesets.files import PARTS
from imagesets.real import SOURCES, RemoteFile, Source, locate, pet_species, reachable, read_dataset
from tests.data_helpers import MIRROR, colour_picture, mask, needs_mirror, picture, quiet, refused, save

README = (Path(__file__).parents[2] / "data" / "README.md").read_text(encoding="utf-8")
TIF = b"II*\x00" + random.Random(0).randbytes(100_000)  # begins as a TIFF file does
Patch = pytest.MonkeyPatch
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in.*socket:pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_set_says_its_terms_and_the_readme_of_the_data_folder_tells_of_it(name: str) -> None:
    source = SOURCES[name]
    assert name in SOURCES and source.licence and "doi 10." in source.citation
    assert README.count(f"| `{name}` |") == 2  # its terms, and where to put it by hand
    assert source.citation.split("doi ")[1] in README or "10.48550" in source.citation
    for file in source.files:
        assert file.address.startswith("https://")
        assert re.fullmatch(r"(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})", file.checksum or "md5:" + 32 * "0")
        assert file.target in README or file.target.startswith(f"{name}/")


def test_single_files_match_the_expected_names_and_numbers() -> None:
    # yeast_phase: 10 frames + 10 labels = 20 files; topomortar: 2·(50 + 20 + 50) = 240
    for name, total in (("yeast_phase", 20), ("topomortar", 240)):
        targets = {file.target for file in SOURCES[name].files}
        assert targets == {f"{name}/{path}" for path in SOURCES[name].expected} and len(targets) == total
    roads = list(SOURCES["kitti_road"].expected)[1]
    assert PurePath("training/gt_image_2/umm_road_000000.png").match(roads)
    assert not PurePath("training/gt_image_2/um_lane_000000.png").match(roads)  # the lane of the car


class Page(NamedTuple):  # promises all of `data`, and leaves out the last `missing` bytes
    data: bytes = b""
    code: int = 200
    missing: int = 0


class Site(ThreadingHTTPServer):
    """Answers with `pages[path]`, the first, second, … request with the first, second, … (the last repeats)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server_port}"
        self.pages: dict[str, list[Page]] = {}
        self.log: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.log.append(self.path)
        pages = self.server.pages[self.path]
        data, code, missing = pages.pop(0) if len(pages) > 1 else pages[0]
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) - missing])

    do_HEAD = do_GET


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.shutdown()
    site.server_close()


def teardown_module() -> None:
    gc.collect()  # it warns of the sockets of downloads that failed: let it do so here


@pytest.fixture(autouse=True)
def sealed(monkeypatch: Patch) -> None:
    """No pauses between tries, no mirror, nothing said yet, and every name is that of this machine."""
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    monkeypatch.setattr(real, "_SAID", set())
    monkeypatch.delenv(real.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    lookup = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: lookup("127.0.0.1", *rest, **more))


def register(monkeypatch: Patch, name: str, *files: RemoteFile, expected: dict[str, int], root: str = "") -> None:
    monkeypatch.setitem(SOURCES, name, Source("none", "nobody", files, expected, archive_root=root))


@pytest.fixture
def tiny(site: Site, monkeypatch: Patch) -> None:
    """A set of one file, with its checksum and as `bare` without."""
    site.pages["/a.tif"] = [Page(TIF)]
    for name, checksum in (("tiny", f"sha256:{hashlib.sha256(TIF).hexdigest()}"), ("bare", None)):
        file = RemoteFile(f"{site.base}/a.tif", f"{name}/im/a.tif", checksum)
        register(monkeypatch, name, file, expected={"im/*.tif": 1})


def pack(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, data in entries.items():
            packed.writestr(name, data)
    return stream.getvalue()


GOOD = pack({"box/im/a.tif": TIF, "box/im/b.tif": TIF, "__MACOSX/box/._a.tif": b"x"})


@pytest.fixture
def boxed(site: Site, monkeypatch: Patch) -> None:
    site.pages["/z.zip"] = [Page(GOOD)]
    register(monkeypatch, "boxed", RemoteFile(f"{site.base}/z.zip", "z.zip"), expected={"im/*.tif": 2}, root="box")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_file_is_fetched_once_if_need_be_in_three_tries(tiny: None, site: Site, tmp_path: Path) -> None:
    site.pages["/a.tif"] = [Page(TIF, missing=5000), Page(code=503), Page(TIF)]
    said: list[str] = []
    for _ in range(2):
        assert locate("tiny", tmp_path, say=said.append) == tmp_path / "tiny"
    assert names(tmp_path) == ["tiny/im/a.tif"] and site.log == ["/a.tif"] * 3
    assert (tmp_path / "tiny/im/a.tif").read_bytes() == TIF
    assert len(said) == 2 and "licence none; please cite nobody" in said[0]
    assert said[1] == "tiny: fetching 1 file(s) from 127.0.0.1"


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        pytest.param("tiny", Page(TIF[:-1] + b"?"), "does not match the known hash", id="wrong hash"),
        pytest.param("tiny", Page(code=404), "404", id="404"),
        pytest.param("tiny", Page(code=503), "503", id="503"),
        pytest.param("bare", Page(TIF, missing=5000), "IncompleteRead", id="cut off"),
    ],
)
def test_a_file_that_is_not_the_right_one_in_three_tries_never_gets_its_name(name, bad, reason, tiny, site, tmp_path):
    site.pages["/a.tif"] = [bad]
    message = refused(locate, name, tmp_path, say=quiet)
    assert reason in message and f"{site.base}/a.tif cannot be fetched" in message
    assert f"By hand: save the address as {tmp_path / name / 'im/a.tif'}" in message
    assert names(tmp_path) == [] and site.log == ["/a.tif"] * 3


def test_offline_a_file_put_there_by_hand_is_enough(tiny: None, site: Site, tmp_path: Path) -> None:
    assert reachable("tiny", tmp_path)
    site.server_close()
    assert not reachable("tiny", tmp_path)
    assert "By hand: save" in refused(locate, "tiny", tmp_path, say=quiet)
    (tmp_path / "tiny/im/a.tif").write_bytes(TIF)  # the folder is there already
    assert reachable("tiny", tmp_path) and locate("tiny", tmp_path, say=quiet) == tmp_path / "tiny"


def test_a_wrong_file_put_by_hand_is_neither_taken_nor_overwritten(tiny: None, site: Site, tmp_path: Path) -> None:
    for name in "ab":  # one too many, so that the folder is not taken for complete
        save(tmp_path / f"tiny/im/{name}.tif", picture())
    before = (tmp_path / "tiny/im/a.tif").read_bytes()
    assert "updates are disallowed" in refused(locate, "tiny", tmp_path, say=quiet)
    assert (tmp_path / "tiny/im/a.tif").read_bytes() == before and site.log == []


def test_an_archive_is_unpacked_without_its_outer_folder(boxed: None, tmp_path: Path) -> None:
    (tmp_path / "boxed.unpacking/box/im").mkdir(parents=True)
    (tmp_path / "boxed.unpacking/box/im/of_a_killed_run.tif").write_bytes(TIF)
    assert locate("boxed", tmp_path, say=quiet) == tmp_path / "boxed"
    assert names(tmp_path) == ["boxed/im/a.tif", "boxed/im/b.tif", "z.zip"]


def test_two_archives_become_one_folder(site: Site, tmp_path: Path, monkeypatch: Patch) -> None:
    files = []
    for name in ("im", "gt"):
        save(tmp_path / name / name / "a.tif", picture())
        (tmp_path / name / name / "._a.tif").write_bytes(b"junk")
        data = Path(shutil.make_archive(str(tmp_path / name), "gztar", tmp_path / name)).read_bytes()
        site.pages[f"/{name}"] = [Page(data)]
        files.append(RemoteFile(f"{site.base}/{name}", f"two_{name}.tar.gz", f"md5:{hashlib.md5(data).hexdigest()}"))
    register(monkeypatch, "two", *files, expected={"im/*.tif": 1, "gt/*.tif": 1})
    assert names(locate("two", tmp_path / "data", say=quiet)) == ["gt/._a.tif", "gt/a.tif", "im/._a.tif", "im/a.tif"]


def test_a_folder_that_is_there_is_never_overwritten(boxed: None, site: Site, tmp_path: Path) -> None:
    save(tmp_path / "boxed/im/mine.tif", picture())
    assert "Move this folder away" in refused(locate, "boxed", tmp_path, say=quiet)
    assert names(tmp_path) == ["boxed/im/mine.tif"] and site.log == []


WRONG = [
    pytest.param(pack({"box/im/a.tif": TIF}), "1 files im/*.tif (expected 2)", id="other content"),
    pytest.param(pack({"../im/a.tif": TIF, "box/im/b.tif": TIF}), "1 files im/*.tif (expected 2)", id="outside"),
    pytest.param(GOOD[:-1000], "cannot be unpacked", id="damaged"),
]


@pytest.mark.parametrize(("archive", "reason"), WRONG)
def test_a_wrong_archive_leaves_no_folder(archive: bytes, reason: str, boxed: None, site: Site, tmp_path: Path) -> None:
    site.pages["/z.zip"] = [Page(archive)]
    assert reason in refused(locate, "boxed", tmp_path / "data", say=quiet) and names(tmp_path) == ["data/z.zip"]


def test_the_mirror_wins_and_is_only_read(tiny: None, site: Site, tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "mirror" / "tiny").mkdir(parents=True)  # it may hold less than the official number of files
    monkeypatch.setenv(real.MIRROR_VARIABLE, str(tmp_path / "mirror"))
    said: list[str] = []
    for _ in range(2):
        assert locate("tiny", tmp_path / "data", say=said.append) == tmp_path / "mirror" / "tiny"
    assert reachable("tiny", tmp_path / "data")
    assert names(tmp_path) == site.log == []
    assert len(said) == 2 and "licence" in said[0] and "mirror" in said[1]
    assert str(tmp_path) not in "".join(said)  # no path of this machine in a notebook


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


def fake_camvid(root: Path, suffix: str = ".png", **parts: int) -> Path:
    for part, number in parts.items():
        for i in range(number):
            save(root / part / f"0016E5_{i:05d}{suffix}", colour_picture(i))
            save(root / f"{part}annot" / f"0016E5_{i:05d}.png", mask(i, classes=12))
    return root


def test_a_name_that_nobody_knows_is_said_with_those_that_are_known() -> None:
    for function, rest in ((locate, []), (reachable, []), (read_dataset, [""])):
        assert "'moon' is not a known data set; known are camvid" in refused(function, "moon", *rest)


def test_dsb2018_has_instances_and_its_own_test_part(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / part / "images" / "a.tif", picture())
        save(tmp_path / part / "masks" / "a.tif", mask(classes=4).astype(np.uint16))
    samples = list(read_dataset("dsb2018", tmp_path))
    assert [sample.part for sample in samples] == [None, "test"]
    assert np.array_equal(samples[0].extras["instances"], mask(classes=4))
    assert np.array_equal(samples[0].label, mask(classes=4) > 0)


def test_topomortar_is_mortar_or_not_in_its_official_parts(tmp_path: Path) -> None:
    for part, number in (("train", "001"), ("val", "051"), ("test", "071")):
        save(tmp_path / part / "images" / f"{number}.png", colour_picture())
        save(tmp_path / part / "accurate" / f"{number}.png", mask() * 255)
    samples = list(read_dataset("topomortar", tmp_path))
    assert [(s.name, s.part) for s in samples] == [("001", "train"), ("051", "val"), ("071", "test")]
    assert all(np.array_equal(sample.label, mask()) for sample in samples)


def test_yeast_phase_gives_one_sample_a_region(tmp_path: Path) -> None:
    movie = tmp_path / "data" / "sample_movie_1"
    save(movie / "im007_channel1_phase.tif", np.tile(np.arange(692, dtype=np.uint16), (5, 1)))
    save(movie / "im007_mask1.tif", mask(0, 5, 692).astype(np.uint16) * 9)
    samples = list(read_dataset("yeast_phase", tmp_path))
    assert [(sample.name, sample.part) for sample in samples] == [(f"im007_{part}", part) for part in PARTS]
    assert [(s.image.min(), s.image.max() + 1) for s in samples] == [(0, 416), (452, 516), (552, 692)]
    for sample in samples:
        assert np.array_equal(sample.label, mask(0, 5, 692)[:, slice(*real.YEAST_COLUMNS[str(sample.part)])])
        assert np.array_equal(sample.extras["instances"], sample.label * 9)


def test_kitti_road_has_roads_and_pixels_that_nobody_judged(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [255, 0, 255], [0, 0, 0], [0, 0, 255]], np.uint8)
    for seed, kind in enumerate(("um", "umm", "uu")):
        save(tmp_path / f"training/image_2/{kind}_00000{seed}.png", colour_picture(seed))
        save(tmp_path / f"training/gt_image_2/{kind}_road_00000{seed}.png", colours[mask(seed, classes=4)])
        save(tmp_path / f"training/gt_image_2/{kind}_lane_00000{seed}.png", colours[mask(9, classes=2)])  # not ours
    samples = list(read_dataset("kitti_road", tmp_path))
    assert [sample.name for sample in samples] == ["um_000000", "umm_000001", "uu_000002"]
    for seed, sample in enumerate(samples):
        # red: not road, red and blue: road, black: ignored, blue alone: a road that is ignored
        assert np.array_equal(sample.label, np.array([0, 1, 255, 255])[mask(seed, classes=4)])


def test_camvid_has_eleven_classes_void_and_its_official_parts(tmp_path: Path) -> None:
    samples = list(read_dataset("camvid", fake_camvid(tmp_path / "official", train=3, val=2, test=2)))
    assert Counter(sample.part for sample in samples) == {"train": 3, "val": 2, "test": 2}
    assert np.array_equal(samples[0].label, np.array([*range(11), 255])[mask(0, classes=12)])
    # a mirror has no test part: 5 // 2 = 2 of its validation film are left to validate, the others are one block
    samples = list(read_dataset("camvid", fake_camvid(tmp_path / "mirror", ".jpg", train=2, val=5)))
    assert "".join(f"{sample.name[-1]}{str(sample.part)[:2]} " for sample in samples) == "0tr 1tr 0va 1va 2te 3te 4te "


def test_partners_that_are_missing_are_named_and_junk_is_not(tmp_path: Path) -> None:
    fake_camvid(tmp_path, train=3, val=2, test=2)
    for folder, junk in itertools.product(("val", "valannot"), ("._0016E5_00001.png", ".DS_Store", "notes.mat")):
        (tmp_path / folder / junk).write_bytes(b"junk")
    assert sum(1 for _ in read_dataset("camvid", tmp_path)) == 7
    (tmp_path / "valannot/0016E5_00001.png").unlink()
    (tmp_path / "val/0016E5_00000.png").unlink()
    message = refused(read_dataset, "camvid", tmp_path)
    assert "val/0016E5_00001.png has no label" in message and "valannot/0016E5_00000.png has no image" in message


def test_pets_keep_the_official_test_part_and_a_fixed_share_of_each_breed_validates(tmp_path: Path) -> None:
    samples = {sample.name: sample for sample in read_dataset("oxford_pets", fake_pets(tmp_path))}
    pet, background, border = 1, 0, 2  # in the order of the numbers 1, 2, 3 of the official trimaps
    assert np.array_equal(samples["Abyssinian_1"].label, np.array([pet, background, border])[mask(1, classes=3)])
    assert Counter(sample.part for sample in samples.values()) == {"train": 25, "val": 5, "test": 6}
    assert pet_species(tmp_path)["Abyssinian_1"] == "cat" and pet_species(tmp_path, "test")["great_dane_11"] == "dog"
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
    (tmp_path / "images" / "pug_1.jpg").write_bytes(b"no picture, and in no list")
    assert before.keys() - {sample.name for sample in read_dataset("oxford_pets", tmp_path)} == {trained}


def test_every_pet_has_three_colours(tmp_path: Path) -> None:
    fake_pets(tmp_path, cats=2, dogs=0, tests=0)
    see_through = Image.fromarray(np.dstack([colour_picture(8), picture(9)]))
    see_through.save(tmp_path / "images/Abyssinian_1.jpg", format="PNG")  # as Abyssinian_5.jpg of the official set
    save(tmp_path / "images/Abyssinian_2.jpg", picture())
    images = {sample.name: sample.image for sample in read_dataset("oxford_pets", tmp_path)}
    assert np.array_equal(images["Abyssinian_1"], colour_picture(8)) and images["Abyssinian_2"].shape == (6, 8, 3)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_real_mirror_is_complete(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    if not MIRROR or not Path(MIRROR, name).is_dir():
        pytest.skip(f"{real.MIRROR_VARIABLE} names no folder that holds {name}/")
    monkeypatch.setenv(real.MIRROR_VARIABLE, MIRROR)
    assert reachable(name, tmp_path) and locate(name, tmp_path, say=quiet) == Path(MIRROR, name)
    for sample in itertools.islice(read_dataset(name, Path(MIRROR, name)), 6):
        assert sample.image.shape[:2] == sample.label.shape
        assert set(np.unique(sample.label)) <= {*range(SOURCES[name].num_classes), 255}


@needs_mirror
def test_real_yeast_phase_is_split_by_region_with_a_gap_wider_than_a_cell() -> None:
    train, val, test = (real.YEAST_COLUMNS[part] for part in PARTS)
    label = tifffile.imread(Path(MIRROR, "yeast_phase", "data", "sample_movie_1", "im009_mask1.tif"))
    assert test[1] == label.shape[1] == 692
    widest = max(cell.bbox[3] - cell.bbox[1] for cell in regionprops(label))
    assert min(val[0] - train[1], test[0] - val[1]) > widest
    for sample in itertools.islice(read_dataset("yeast_phase", Path(MIRROR, "yeast_phase")), 3):
        assert 0.02 < sample.label.mean() < 0.5  # there are cells in every region
