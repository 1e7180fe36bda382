"""The layouts of the public data sets: which files belong together, what their values mean, which part they are in.

`download.locate` brings the folder of a set; `read_dataset` turns it into samples.  Where the authors of a set fixed a
part, it stays; a film or a sequence is cut into blocks, because neighbouring frames are alike.

Each layout is one function that lists the pairs of files, and one line in `READERS`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from checks import IGNORE_INDEX, InputError
from imagesets.files import (
    PARTS,
    BadFiles,
    LabelMap,
    Problem,
    Sample,
    decode,
    is_junk,
    raise_problems,
    read_image,
    read_sample,
    short_name,
)

Pairs = list[tuple[Path | None, Path | None, str | None]]  # image, label, part; None is a partner that is missing


def _unchanged(sample: Sample) -> list[Sample]:
    return [sample]


class Reader(NamedTuple):
    """How one set is read: its pairs of files, what becomes of one sample, its classes, and what its labels mean.

    With `drops_copies`, a picture that another part holds already (an earlier one in the list) is left out.
    """

    find_pairs: Callable[[Path], Pairs]
    finish: Callable[[Sample], list[Sample]] = _unchanged
    num_classes: int = 2
    label_map: LabelMap | None = None
    read: Callable[[Path], np.ndarray] = read_image
    drops_copies: bool = False


def read_dataset(name: str, root: str | Path) -> Iterator[Sample]:
    """Yield the samples of a named set from `root`, its folder in the official layout (`download.locate`).

    Where the masks number the cells, the classes are 0 (background) and 1 (cell), and the numbers travel
    along as the map `instances`.  As in `read_folder`, an `InputError` at the end lists all problems.
    """
    if name not in READERS:
        raise InputError(f"{name!r} is not a known data set; known are {', '.join(READERS)}.")
    reader = READERS[name]
    pairs = reader.find_pairs(Path(root))
    problems: list[Problem] = []
    owners: dict[str, str | None] = {}  # content of an image → part
    for image_path, label_path, part in pairs:
        try:
            sample = _read_pair(reader, image_path, label_path)
        except InputError as error:
            problems += getattr(error, "problems", ())
            continue
        if not reader.drops_copies or owners.setdefault(_content(sample), part) == part:
            yield from reader.finish(replace(sample, part=part))
    nothing = "has no image where the official layout has them; unpack the set again"
    raise_problems(str(root), problems if pairs else [Problem(str(root), nothing)])


def _read_pair(reader: Reader, image_path: Path | None, label_path: Path | None) -> Sample:
    if image_path is None or label_path is None:
        there = image_path or label_path or Path()
        raise BadFiles([Problem(short_name(there), f"has no {'label' if image_path else 'image'}")])
    return read_sample(image_path, label_path, reader.label_map, read=reader.read)


def _content(sample: Sample) -> str:
    return hashlib.sha256(sample.image.tobytes()).hexdigest()


def _pair(images: dict[str, Path], labels: dict[str, Path], part: str | None = None) -> Pairs:
    """Put together what has one name, sorted; what lacks its partner stays in the list and is said later."""
    return [(images.get(name), labels.get(name), part) for name in sorted(images.keys() | labels.keys())]


def _files(folder: Path, pattern: str, drop: str = "") -> dict[str, Path]:
    """The files of one folder by name, without the suffix and without `drop`; junk is skipped."""
    paths = sorted(path for path in folder.glob(pattern) if not is_junk(path.name))
    return {path.stem.replace(drop, ""): path for path in paths}


# --- cells ---


def _dsb2018_pairs(root: Path) -> Pairs:
    """The official test folder stays the test part; validation is still to be split off the train folder."""
    return [
        pair
        for folder, part in (("train", None), ("test", "test"))
        for pair in _pair(_files(root / folder / "images", "*.tif"), _files(root / folder / "masks", "*.tif"), part)
    ]


def _yeast_phase_pairs(root: Path) -> Pairs:
    movie = root / "data" / "sample_movie_1"
    frames = _files(movie, "im*_channel1_phase.tif", drop="_channel1_phase")
    return _pair(frames, _files(movie, "im*_mask1.tif", drop="_mask1"))


def _yeastcellseg_pairs(root: Path) -> Pairs:
    return _pair(_files(root, "DS01_[0-9][0-9].tif"), _files(root, "DS01_[0-9][0-9]_gt.tif", drop="_gt"))


def _foreground(sample: Sample) -> list[Sample]:
    """Any value above 0 is class 1."""
    return [replace(sample, label=(sample.label > 0).astype(np.uint8))]


def _numbered_cells(sample: Sample) -> list[Sample]:
    """Any value above 0 is the number of a cell."""
    return _foreground(replace(sample, extras={"instances": sample.label}))


# One movie: neighbouring frames are nearly equal, so a split by frame would put the same cells into all
# parts.  Every frame is cut into three regions instead, with 36 unused columns between them; the widest cell
# has 32.
YEAST_COLUMNS = {"train": (0, 416), "val": (452, 516), "test": (552, 692)}


def _yeast_regions(sample: Sample) -> list[Sample]:
    (whole,) = _numbered_cells(sample)
    return [_columns(whole, part, *YEAST_COLUMNS[part]) for part in PARTS]


def _columns(sample: Sample, part: str, first: int, last: int) -> Sample:
    """The columns first … last−1 of a sample, for one part."""
    name = f"{sample.name.split('_')[0]}_{part}"
    extras = {key: array[:, first:last] for key, array in sample.extras.items()}
    return Sample(name, sample.image[:, first:last], sample.label[:, first:last], part, extras)


# --- walls, roads, streets ---


def _topomortar_pairs(root: Path) -> Pairs:
    return [
        pair
        for part in PARTS
        for pair in _pair(_files(root / part / "images", "*.png"), _files(root / part / "accurate", "*.png"), part)
    ]


def _kitti_road_pairs(root: Path) -> Pairs:
    """All 289 frames of the training folder, to be split: the official test folder comes without labels."""
    images, roads = root / "training" / "image_2", root / "training" / "gt_image_2"
    return _pair(_files(images, "*.png"), _files(roads, "*_road_*.png", drop="road_"))


# Red is set where the authors judge at all, blue where there is road: (0, 0, 255) is road that does not count.
KITTI_COLOURS = {(255, 0, 0): 0, (255, 0, 255): 1, (0, 0, 0): IGNORE_INDEX, (0, 0, 255): IGNORE_INDEX}


def _camvid_pairs(root: Path) -> Pairs:
    """The official parts; a mirror without a test part gives the second half of its validation film for it."""
    pairs = {}
    for part in PARTS:
        images = _files(root / part, "*.png") or _files(root / part, "*.jpg")  # a mirror may hold JPEG
        pairs[part] = _pair(images, _files(root / f"{part}annot", "*.png"), part)
    if not pairs["test"]:
        half = len(pairs["val"]) // 2
        pairs["test"] = [(image, label, "test") for image, label, _ in pairs["val"][half:]]
        pairs["val"] = pairs["val"][:half]
    return [pair for part in PARTS for pair in pairs[part]]


# --- pets ---

PET_SHARE = 0.15  # of the official training images of each breed: the part "val"
SPECIES = {"1": "cat", "2": "dog"}
TRIMAP = {2: 0, 1: 1, 3: 2}  # background, pet, the border between them


def pet_species(root: str | Path) -> dict[str, str]:
    """Return {name of a sample: "cat" or "dog"} of the set `oxford_pets` in `root`, for all that its list names.

    Raises `InputError` if `annotations/list.txt` cannot be read or holds a line of another form.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp()); (root / "annotations").mkdir()
    >>> _ = (root / "annotations" / "list.txt").write_text("# remark\\nAbyssinian_1 1 1 1\\npug_2 26 2 19\\n")
    >>> pet_species(root)
    {'Abyssinian_1': 'cat', 'pug_2': 'dog'}
    """
    return _pet_list(Path(root) / "annotations" / "list.txt")


def _pet_list(path: Path) -> dict[str, str]:
    """{name: species} from lines `name class-id species breed-id`; a line that begins with # is a remark."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise InputError(f"{short_name(path)} cannot be read: {reason}. Unpack the set again.") from error
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    wrong = [" ".join(row)[:60] for row in rows if len(row) != 4 or row[2] not in SPECIES]
    form = "expected: name class-id species breed-id, with species 1 or 2"
    raise_problems(short_name(path), [Problem("the line", repr(line), form) for line in wrong])
    return {row[0]: SPECIES[row[2]] for row in rows}


def _oxford_pets_pairs(root: Path) -> Pairs:
    """The images that the official lists name, the test part first; a mirror may hold some of them only."""
    images, labels = _files(root / "images", "*.jpg"), _files(root / "annotations" / "trimaps", "*.png")
    trainval, test = (_pet_list(root / "annotations" / f"{name}.txt") for name in ("trainval", "test"))
    chosen = _fixed_share(trainval)
    parts = {"test": set(test), "val": chosen, "train": trainval.keys() - chosen}
    pairs: Pairs = []
    for part, names in parts.items():
        pairs += _pair(_only(images, names), _only(labels, names), part)
    return pairs


def _only(files: dict[str, Path], names: set[str]) -> dict[str, Path]:
    return {name: path for name, path in files.items() if name in names}


def _fixed_share(names: Iterable[str]) -> set[str]:
    """The share `PET_SHARE` of the names of each breed, by their hash: the same ones everywhere, now and later."""
    chosen: set[str] = set()
    for _, breed in itertools.groupby(sorted(names, key=_breed), _breed):
        ranked = sorted(breed, key=lambda name: hashlib.sha256(name.encode()).digest())
        chosen |= set(ranked[: round(PET_SHARE * len(ranked))])
    return chosen


def _breed(name: str) -> str:
    return name.rpartition("_")[0]


def _read_rgb(path: Path) -> np.ndarray:
    """An image (H, W, 3), whatever the file holds: three of the official .jpg are PNG with an alpha channel."""
    image, has_alpha, _ = decode(path, as_label=False)
    image = image[..., None] if image.ndim == 2 else image
    colours = image[..., :-1] if has_alpha else image
    return np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:2], 3)))


READERS: dict[str, Reader] = {
    "dsb2018": Reader(_dsb2018_pairs, _numbered_cells),
    "yeast_phase": Reader(_yeast_phase_pairs, _yeast_regions),
    "yeastcellseg": Reader(_yeastcellseg_pairs, _foreground),
    "topomortar": Reader(_topomortar_pairs, _foreground),
    "kitti_road": Reader(_kitti_road_pairs, label_map=KITTI_COLOURS),
    "oxford_pets": Reader(_oxford_pets_pairs, num_classes=3, label_map=TRIMAP, read=_read_rgb, drops_copies=True),
    "camvid": Reader(_camvid_pairs, num_classes=11, label_map={**{i: i for i in range(11)}, 11: IGNORE_INDEX}),
}
