"""Real data sets by name: brought here in the layout of their authors, then read as samples.

`locate` looks in the mirror (the folder that the environment variable `SEGMENTATION_MIRROR` names; only read), in
`data/NAME`, and then at the official address, which `sources.py` names.  Nothing gets its final name before its content
was checked, and nothing that is there is overwritten.  `read_dataset` turns the folder into samples.

pooch: Uieda et al., JOSS 5 (2020) 1943, doi 10.21105/joss.01943.  Attacks with the paths in archives: PEP 706.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import shutil
import tarfile
import threading
import time
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
from imagesets.files import (
    PARTS,
    TIFF_STARTS,
    BadFiles,
    LabelMap,
    Problem,
    Sample,
    decode,
    is_junk,
    picture_of,
    raise_problems,
    read_image,
    read_sample,
    short_name,
)
from imagesets.sources import SOURCES, RemoteFile, Source

MIRROR_VARIABLE = "SEGMENTATION_MIRROR"
TIMEOUT = 20.0  # seconds without a byte
WAITS = (1, 3)  # seconds before the second and the third try
FIRST_BYTES = {
    ".zip": (b"PK\x03\x04",),
    ".gz": (b"\x1f\x8b",),
    ".tif": TIFF_STARTS,
    ".png": (b"\x89PNG\r\n\x1a\n",),
    ".jpg": (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8"),  # some official pets are PNG or GIF under this name
}
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)
_SAID: set[str] = set()  # sets whose terms were said: once in a process, however often a cell runs


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


def reachable(name: str, data_dir: str | Path = Path("data"), timeout: float = 3.0) -> bool:
    """Tell within `timeout` seconds if `locate(name)` can work: by mirror, copy, or an address that answers."""
    source = _named(name)
    if _in_mirror(source) or not faults(source, Path(data_dir) / name):
        return True
    missing = [file for file in source.files if not source.place(file, Path(data_dir)).exists()]
    return not missing or _answers(missing[0].address, timeout)


def faults(source: Source, folder: Path, *, official: bool = True) -> list[str]:
    """List what is missing or damaged in `folder`; a mirror (`official=False`) may hold fewer files of each pattern."""
    wrong = []
    for pattern, number in source.expected:
        paths = [path for path in sorted(folder.glob(pattern)) if path.is_file() and not is_junk(path.name)]
        is_enough = len(paths) == number if official else paths or pattern in source.mirror_may_lack
        if not is_enough:
            wrong.append(f"{len(paths)} files {pattern} (expected {number if official else 'one or more'})")
        wrong += [f"{path.relative_to(folder)} {flaw}" for path in paths if (flaw := _flaw(path, path.suffix))]
    if official:
        single = [file.target for file in source.files if not file.is_archive]
        wrong += [f"{name} is missing" for name in (*single, *source.names) if not (folder / name).is_file()]
    return wrong


def _named(name: str) -> Source:
    if name not in SOURCES:
        raise InputError(f"{name!r} is not a known data set; known are {', '.join(sorted(SOURCES))}.")
    return SOURCES[name]


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


def _flaw(path: Path, suffix: str) -> str:
    """Say why `path` is no file of this kind; an empty string if nothing is wrong."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(8)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    is_right = start.startswith(FIRST_BYTES.get(suffix, (b"",)))
    return "" if is_right else f"is not a {suffix} file (it begins with {start!r}: a login page?)"


# --- fetching ---


def _answers(address: str, timeout: float) -> bool:
    """Ask for the headers, in a thread: no timeout of a connection covers a name server that does not answer."""
    import pooch  # late: it brings tqdm, which warns in a notebook without widgets

    found: list[bool] = []

    def ask() -> None:
        with contextlib.suppress(OSError):
            found.append(pooch.HTTPDownloader(timeout=timeout)(address, None, None, check_only=True))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return any(found)


def _fetch(source: Source, data_dir: Path, say: Callable[[str], object]) -> None:
    folder = data_dir / source.name
    archives = [source.place(file, data_dir) for file in source.files if file.is_archive]
    if archives and folder.exists():  # it may hold somebody's work: never overwritten
        _require(source, folder, "Move this folder away or delete it, then run again.")
    say(f"{source.name}: fetching {len(source.files)} file(s) from {urlsplit(source.files[0].address).hostname}")
    for file in source.files:
        _fetch_file(source, file, source.place(file, data_dir))
    if archives:
        _unpack_all(source, archives, folder)
    _require(source, folder, "Move away what does not belong there, then run again.")


def _fetch_file(source: Source, file: RemoteFile, place: Path) -> None:
    """Bring one file to its final name, unless a right one is there (for example, put there by hand)."""
    import pooch

    if place.exists():
        name, _, digest = file.checksum.partition(":")
        other = file.checksum and pooch.file_hash(str(place), name) != digest
        if flaw := _flaw(place, place.suffix) or ("is not the file with the official checksum" if other else ""):
            raise InputError(f"{place} {flaw}. Move it away or delete it, then run again.")
        return

    def download(address: str, temporary: str, fetcher: Any) -> None:
        _download(pooch.HTTPDownloader(timeout=TIMEOUT), address, temporary)
        if flaw := _flaw(Path(temporary), place.suffix):
            raise ValueError(f"what came {flaw}")

    pooch.get_logger().setLevel("WARNING")  # its remarks would show the paths of this machine in a notebook
    try:
        pooch.retrieve(file.address, file.checksum or None, place.name, place.parent, downloader=download)
    except (OSError, ValueError) as error:  # what pooch raises for a connection is an OSError, too
        raise InputError(
            f"{source.name}: {file.address} cannot be fetched or stored: {str(error)[:300]}.\n"
            "With a network and some free space: run this again later.\n"
            f"By hand: save the address as {place} (sources.SOURCES[{source.name!r}].files lists all),\n"
            f"or let {MIRROR_VARIABLE} name a folder that holds {source.name}/."
        ) from error


def _download(downloader: Callable[..., object], address: str, temporary: str) -> None:
    """Try again what may be better soon: a broken connection, a busy server; not a 404 or a full disk."""
    for wait in (*WAITS, None):
        try:
            downloader(address, temporary, None)
            return
        except OSError as error:
            answer = getattr(error, "response", None)
            if wait is None or error.errno or (answer is not None and answer.status_code < 500):
                raise
            time.sleep(wait)


def _unpack_all(source: Source, archives: list[Path], folder: Path) -> None:
    """Unpack into a temporary folder, check it there, then rename: a killed run leaves no half data set."""
    temporary = folder.with_name(folder.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # a run was killed
    try:
        for archive in archives:
            unpack(archive, temporary)
        _require(source, temporary / source.archive_root, f"Delete {archives[0]} and run again.")
        os.replace(temporary / source.archive_root, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack `archive` (.zip or .tar.gz) into a temporary `folder`; `InputError` if it is damaged or not safe."""
    safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.10.12 and 3.11.4
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                for name in zipped.namelist():
                    _check_entry(archive, name)
                zipped.extractall(folder)
        else:
            with tarfile.open(archive) as packed:
                for entry in packed:  # in one pass: to list all of them first would decompress twice
                    _check_entry(archive, entry.name, is_plain=entry.isfile() or entry.isdir())
                    packed.extract(entry, folder, **safe)
    except _DAMAGE as error:
        reason = str(error)[:100] or "it is cut off"
        raise InputError(f"{archive} cannot be unpacked: {reason}.\nDelete it and run again.") from error


def _check_entry(archive: Path, name: str, *, is_plain: bool = True) -> None:
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or ":" in parts[0] or not is_plain:
        danger = "leads outside the folder" if is_plain else "is a link or a device"
        raise InputError(f"{archive} is not safe: the entry {name!r} {danger}.\nNothing of it was kept. Delete it.")


# --- reading ---

Pair = tuple[Path | None, Path | None, str | None]  # image, label, part; None is a partner that is missing


def read_dataset(name: str, root: str | Path) -> Iterator[Sample]:
    """Yield the samples of a named set from `root`, its folder in the official layout (`locate`).

    Where masks number the cells, the numbers come as the map `instances`.  A final `InputError` lists all problems.
    """
    if name not in READERS:
        raise InputError(f"{name!r} is not a known data set; known are {', '.join(READERS)}.")
    reader = READERS[name]
    pairs = reader.find_pairs(Path(root))
    nothing = "has no image where the official layout has them; unpack the set again"
    problems = [] if pairs else [Problem(str(root), nothing)]
    owners: dict[str, str | None] = {}  # content of an image → part
    for image_path, label_path, part in pairs:
        if image_path is None or label_path is None:
            there = image_path or label_path or Path()
            problems.append(Problem(short_name(there), f"has no {'label' if image_path else 'image'}"))
            continue
        try:
            sample = read_sample(image_path, label_path, reader.label_map, read=reader.read)
        except BadFiles as error:
            problems += error.problems
            continue
        content = hashlib.sha256(sample.image.tobytes()).hexdigest()
        if not reader.drops_copies or owners.setdefault(content, part) == part:
            yield from reader.finish(replace(sample, part=part))
    raise_problems(str(root), problems)


def _pairs(
    root: Path, images: str, labels: str, part: str | None = None, names: Collection[str] | None = None
) -> list[Pair]:
    """Put together what has one name, sorted, or those of the `names`; what lacks its partner is said later."""
    files: list[dict[str, Path]] = []
    for pattern in (images, labels):
        paths = sorted(path for path in root.glob(pattern) if not is_junk(path.name))
        files.append({re.sub("_channel1_phase|_mask1|_gt|road_", "", path.stem): path for path in paths})
    found = sorted(files[0].keys() | files[1].keys())
    return [(files[0].get(name), files[1].get(name), part) for name in found if names is None or name in names]


def _foreground(sample: Sample) -> list[Sample]:
    """Any value above 0 is class 1."""
    return [replace(sample, label=(sample.label > 0).astype(np.uint8))]


def _numbered_cells(sample: Sample) -> list[Sample]:
    """Any value above 0 is the number of a cell."""
    return _foreground(replace(sample, extras={"instances": sample.label}))


# yeast_phase is one movie: neighbouring frames are nearly equal, so a split by frame would put the same cells into all
# parts.  Every frame is cut into three regions instead, with 36 unused columns between them; the widest cell has 32.
YEAST_COLUMNS = {"train": (0, 416), "val": (452, 516), "test": (552, 692)}


def _yeast_regions(sample: Sample) -> list[Sample]:
    """The columns of each part, as a sample of its own."""
    regions = []
    for part, (first, last) in YEAST_COLUMNS.items():
        name, columns = f"{sample.name.split('_')[0]}_{part}", np.s_[:, first:last]
        regions += _numbered_cells(Sample(name, sample.image[columns], sample.label[columns], part))
    return regions


# Red is set where the authors judge at all, blue where there is road: (0, 0, 255) is road that does not count.
KITTI_COLOURS = {(255, 0, 0): 0, (255, 0, 255): 1, (0, 0, 0): IGNORE_INDEX, (0, 0, 255): IGNORE_INDEX}


def _camvid_pairs(root: Path) -> list[Pair]:
    """The official parts; a mirror may hold JPEG, and for a test part the second half of its validation film."""
    train, val, test = (_pairs(root, f"{part}/*.[pj][np]g", f"{part}annot/*.png", part) for part in PARTS)
    if not test:
        half = len(val) // 2
        val, test = val[:half], [(image, label, "test") for image, label, _ in val[half:]]
    return train + val + test


PET_SHARE = 0.15  # of the official training images of each breed: the part "val"
SPECIES = {"1": "cat", "2": "dog"}
TRIMAP = {2: 0, 1: 1, 3: 2}  # background, pet, the border between them


def pet_species(root: str | Path, name: str = "list") -> dict[str, str]:
    """Return {name of a sample: "cat" or "dog"} of the set `oxford_pets` in `root`, for all that a list names.

    `name` is that of the list: "list" (all), "trainval" or "test"; its lines are `name class-id species breed-id`.
    """
    path = Path(root) / "annotations" / f"{name}.txt"
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] not in ("", "#")]
        return {pet: SPECIES[species] for pet, _, species, _ in rows}
    except (OSError, ValueError, KeyError) as error:
        advice = "expected lines of: name class-id species breed-id, with species 1 or 2; unpack the set again"
        raise BadFiles([Problem(short_name(path), f"cannot be read ({error})", advice)]) from error


def _oxford_pets_pairs(root: Path) -> list[Pair]:
    """The images that the official lists name, the test part first; a mirror may hold some of them only."""
    trainval, test = pet_species(root, "trainval"), pet_species(root, "test")
    breeds = defaultdict(list)  # of each breed the same share everywhere, chosen by the hash of the name
    for name in sorted(trainval, key=lambda name: hashlib.sha256(name.encode()).digest()):
        breeds[name.rpartition("_")[0]].append(name)
    chosen = {name for breed in breeds.values() for name in breed[: round(PET_SHARE * len(breed))]}
    parts = {"test": test.keys(), "val": chosen, "train": trainval.keys() - chosen}
    images, labels = "images/*.jpg", "annotations/trimaps/*.png"
    return [pair for part, names in parts.items() for pair in _pairs(root, images, labels, part, names)]


def _read_rgb(path: Path) -> np.ndarray:
    """An image (H, W, 3), whatever the file holds: three of the official .jpg are PNG with an alpha channel."""
    image = np.atleast_3d(picture_of(decode(path)))
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


class Reader(NamedTuple):
    """How one set is read: its pairs of files, what becomes of one sample, its classes, and what its labels mean.

    With `drops_copies`, a picture that another part holds already (an earlier one in the list) is left out.
    """

    find_pairs: Callable[[Path], list[Pair]]
    finish: Callable[[Sample], list[Sample]] = lambda sample: [sample]
    num_classes: int = 2
    label_map: LabelMap | None = None
    read: Callable[[Path], np.ndarray] = read_image
    drops_copies: bool = False


READERS: dict[str, Reader] = {
    "dsb2018": Reader(  # the official test folder stays the test part
        lambda root: [
            *_pairs(root, "train/images/*.tif", "train/masks/*.tif"),
            *_pairs(root, "test/images/*.tif", "test/masks/*.tif", "test"),
        ],
        _numbered_cells,
    ),
    "yeast_phase": Reader(
        lambda root: _pairs(root / "data/sample_movie_1", "im*_channel1_phase.tif", "im*_mask1.tif"), _yeast_regions
    ),
    "yeastcellseg": Reader(lambda root: _pairs(root, "DS01_[0-9][0-9].tif", "DS01_[0-9][0-9]_gt.tif"), _foreground),
    "topomortar": Reader(
        lambda root: [pair for part in PARTS for pair in _pairs(root / part, "images/*.png", "accurate/*.png", part)],
        _foreground,
    ),
    "kitti_road": Reader(  # the training folder alone: the official test folder comes without labels
        lambda root: _pairs(root / "training", "image_2/*.png", "gt_image_2/*_road_*.png"), label_map=KITTI_COLOURS
    ),
    "oxford_pets": Reader(_oxford_pets_pairs, num_classes=3, label_map=TRIMAP, read=_read_rgb, drops_copies=True),
    "camvid": Reader(_camvid_pairs, num_classes=11, label_map={**{i: i for i in range(11)}, 11: IGNORE_INDEX}),
}
