"""From files to samples: read images and labels, pair them in a folder, and split them into parts.

`decode` gives the numbers of a file as they are stored; `picture_of` says what they show, `label_of` what they mean.
Whatever would have to be guessed (JPEG masks, colours, alpha channels) is refused, and all problems come together.
Sources: W3C, Portable Network Graphics, third edition, https://www.w3.org/TR/png-3; Adobe, TIFF revision 6.0, 1992.
"""

from __future__ import annotations

import logging
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from PIL import Image, ImageOps

from checks import IGNORE_INDEX, InputError

PARTS = ("train", "val", "test")
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
SHOWN = 20  # problems in one message

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")  # Pillow knows forty more, and one of them (EPS) starts a program
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LOSSY, LOSSY_TIFF = ("JPEG", "MPO", "WEBP"), (6, 7, 34892, 50001)
WHITE_IS_0, BLACK_IS_0, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6  # photometric interpretations of a TIFF
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its remarks on odd tags are not for the reader

LabelMap = Mapping[Any, int]  # value, or colour (red, green, blue) → class


# --- problems ---


@dataclass(frozen=True)
class Problem:
    """One file that cannot be taken as it is: what was found in it, and what to do."""

    file: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.file} {self.found}" + (f"; {self.advice}" if self.advice else "")


class BadFiles(InputError):
    """One error for one or many files; `problems` holds them as data."""

    def __init__(self, problems: Sequence[Problem], title: str = "") -> None:
        self.problems, self.title = tuple(problems), title
        super().__init__(self.problems, title)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems]
        if len(lines) == 1:
            return f"{self.title}: {lines[0]}." if self.title else lines[0]
        return "\n- ".join([f"{self.title}: {len(lines)} problems", *lines[:SHOWN], *["…"] * (len(lines) > SHOWN)])


def raise_problems(title: str, problems: Sequence[Problem]) -> None:
    """Raise one `BadFiles` for all problems; do nothing if there is none."""
    if problems:
        raise BadFiles(problems, title)


def _refused(path: Path, found: str, advice: str) -> BadFiles:
    return BadFiles([Problem(short_name(path), found, advice)])


def short_name(path: Path) -> str:
    """Folder and file name, for messages: no reader needs the long path."""
    return f"{path.parent.name}/{path.name}"


# --- one file ---


class Stored(NamedTuple):
    """The numbers (H, W) or (H, W, C) of one file as they are stored, and what its header says about them."""

    path: Path
    numbers: np.ndarray
    bits: int = 8  # of one number
    has_alpha: bool = False  # the last channel
    is_lossy: bool = False
    palette: np.ndarray | None = None  # (colours, 3)
    white_is_0: bool = False


def read_image(path: Path) -> np.ndarray:
    """What an image shows, (H, W) or (H, W, C); an alpha channel is dropped if it hides nothing."""
    stored = decode(path)
    if stored.has_alpha and np.ptp(stored.numbers[..., -1]):
        raise _refused(path, "has transparent pixels", "save it without an alpha channel")
    return picture_of(stored)


def read_label(path: Path, label_map: LabelMap | None = None) -> np.ndarray:
    """A label (H, W) of integers; whatever would have to be guessed raises `InputError`."""
    return label_of(decode(path), label_map)


def picture_of(stored: Stored) -> np.ndarray:
    """What a picture shows, (H, W) or (H, W, C): colours of a palette, few bits spread over a byte, white is large."""
    image = stored.numbers[..., :-1] if stored.has_alpha else stored.numbers
    if stored.palette is not None:
        image = stored.palette[image]
    elif stored.bits < 8:
        image = image * np.uint8(255 // (2**stored.bits - 1))
    if stored.white_is_0:
        image = -image if image.dtype.kind == "f" else np.invert(image)
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


def label_of(stored: Stored, label_map: LabelMap | None = None) -> np.ndarray:
    """The classes (H, W) that a label stores: its numbers, or what `label_map` makes of its values or colours."""
    label, path = stored.numbers, stored.path
    if stored.is_lossy:
        found = f"is a JPEG or WebP, which invents values: {list_values(label)}"
        raise _refused(path, found, "export it again as PNG; a new name is not enough")
    if stored.has_alpha:
        raise _refused(path, "has an alpha channel", "save it as one channel of class numbers")
    if not np.issubdtype(label.dtype, np.integer):
        raise _refused(path, f"has dtype {label.dtype}", "save a mask as integers, for example as 8-bit PNG")
    if label.ndim == 3 and (label == label[..., :1]).all():
        label = label[..., 0]  # grey that was stored as colour
    if label_map is None and label.ndim == 3:
        advice = "give each colour a class: label_map={(255, 0, 255): 1, …}, in run.py check --map 255-0-255=1,…"
        raise _refused(path, f"is a colour image with {list_values(label)}", advice)
    return label if label_map is None else _mapped(label, label_map, path)


def _mapped(label: np.ndarray, label_map: LabelMap, path: Path) -> np.ndarray:
    classes, is_known = np.zeros(label.shape[:2], np.uint8), np.zeros(label.shape[:2], bool)
    for value, number in label_map.items():
        is_value = (np.atleast_3d(label) == np.atleast_1d(value)).all(axis=2)  # the colour (7, 7, 7) is the grey 7, too
        classes[is_value] = number
        is_known |= is_value
    if not is_known.all():
        left = label[~is_known][None]
        found = f"has {left.shape[1]} pixels not in label_map: {list_values(left)}"
        raise _refused(path, found, "add these values to it; class 255 means ignored")
    return classes


def list_values(array: np.ndarray) -> str:
    """A short list of the different values of an array, or of the colours of (…, …, C).

    >>> list_values(np.array([[7, 3], [3, 3]]))
    '2 different values, 3, 7'
    """
    C = array.shape[2] if array.ndim == 3 else 1
    found, limit = np.unique(array.reshape(-1, C), axis=0), 6 if C == 1 else 3
    shown = ", ".join(str(tuple(row) if C > 1 else row[0]) for row in found[:limit].tolist())
    kinds = "1 value" if len(found) == 1 else f"{len(found)} different values"
    return f"{kinds}, {shown}{', …' if len(found) > limit else ''}"


def decode(path: Path) -> Stored:
    """The numbers of one file as they are stored; raise `InputError` if it is no sound image."""
    start = b""
    try:
        with open(path, "rb") as stream:
            start = stream.read(60)
        if not start:
            raise _refused(path, "is empty (0 bytes)", "copy or download it again")
        return _decode_tiff(path) if start.startswith(TIFF_STARTS) else _decode_with_pillow(path, start)
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly everything on damaged files, SyntaxError included
        said = " ".join(str(error).replace(str(path), path.name).split())[:90]
        reason, advice = f"{type(error).__name__}: {said}", "copy or download it again"
        if start.strip().startswith((b"<", b"{")):
            reason = f"it begins with {start.strip()[:20]!r}: a saved web page?"
            advice = "open its address in a browser, log in if asked, and download it again"
        raise _refused(path, f"cannot be read as an image ({reason})", advice) from error


def _decode_with_pillow(path: Path, start: bytes) -> Stored:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken notes of a camera, and large sizes, do not matter
        with Image.open(path, formats=FORMATS) as opened:
            format, depth, colour = opened.format, start[24], start[25]  # the last two are in the header of a PNG
            if format == "PNG" and depth == 16 and colour != 0:
                raise _refused(path, "is a 16-bit colour PNG, of which Pillow reads 8 bits", "save it as TIFF")
            opened.verify()  # the checksums of a PNG; without them a flipped bit gives another mask, without a word
        with Image.open(path, formats=FORMATS) as opened:
            upright = ImageOps.exif_transpose(opened)  # cameras store a turned image and a note to turn it back
            upright = upright.convert("RGB") if upright.mode == "CMYK" else upright
            numbers = np.array(upright)
    bits, palette = 8, None
    if upright.mode == "P":
        palette = np.resize(np.array(upright.getpalette(), np.uint8), 768).reshape(256, 3)
    elif upright.mode == "1":
        bits, numbers = 1, numbers.astype(np.uint8)
    elif format == "PNG" and colour == 0 and depth in (2, 4):
        bits, numbers = depth, numbers // (255 // (2**depth - 1))  # Pillow spreads 0 … 15 over 0 … 255
    elif numbers.dtype == np.int32:
        numbers = numbers.astype(np.uint16)  # so older Pillows read 16-bit grey
    return Stored(path, numbers, bits, "A" in upright.getbands(), format in LOSSY, palette)


def _decode_tiff(path: Path) -> Stored:
    """Read a TIFF of one page; its tags, and not its shape, say what the numbers mean."""
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages.first
        is_lossy, colours = page.compression in LOSSY_TIFF, page.photometric
        if len(file.pages) != 1:
            raise _refused(path, f"holds {len(file.pages)} pages", "save each page as a file of its own")
        if "Orientation" in page.tags and page.tags["Orientation"].value != 1:
            raise _refused(path, "is stored turned (TIFF orientation)", "open it and save it upright")
        if colours not in (WHITE_IS_0, BLACK_IS_0, RGB, PALETTE) and not (colours == YCBCR and is_lossy):
            raise _refused(path, f"has the colours {getattr(colours, 'name', colours)}", "save it as grey or RGB")
        numbers = page.asarray()
        palette = (page.colormap.T >> 8).astype(np.uint8) if colours == PALETTE else None
    if numbers.ndim == 3 and page.planarconfig == 2:  # one channel behind the other
        numbers = np.moveaxis(numbers, 0, -1)
    numbers = numbers.astype(np.uint8) if numbers.dtype == bool else numbers
    has_alpha = any(kind in (1, 2) for kind in page.extrasamples)
    return Stored(path, numbers, page.bitspersample, has_alpha, is_lossy, palette, colours == WHITE_IS_0)


# --- a folder ---


@dataclass(frozen=True, eq=False)
class Sample:
    """One image (H, W) or (H, W, C), uint8, uint16 or float, and its label (H, W) of integers.

    `part` is "train", "val", "test", or None if it is still to be chosen; `extras` are maps (H, W) that travel along.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    part: str | None = None
    extras: dict[str, np.ndarray] = field(default_factory=dict)


def read_folder(folder: str | Path, label_map: LabelMap | None = None, extras: Sequence[str] = ()) -> Iterator[Sample]:
    """Yield the samples of a folder with `images/`, `labels/` or `masks/`, and the folders of maps `extras`.

    Files belong together by their names before the suffix.  `label_map` gives the class of every value in the labels,
    {0: 0, 255: 1}, or of every colour, {(255, 0, 255): 1, (255, 0, 0): 0}.  Without it the values are the classes, and
    255 means "ignored".  A bad sample is left out; after the last good one an `InputError` lists all problems.
    """
    problems: list[Problem] = []
    for found in read_each(folder, label_map, extras):
        if isinstance(found, Sample):
            yield found
        else:
            problems.append(found)
    raise_problems(str(folder), problems)


def read_each(
    folder: str | Path, label_map: LabelMap | None = None, extras: Sequence[str] = ()
) -> Iterator[Sample | Problem]:
    """Yield what `read_folder` finds, each sound sample and each problem; only a wrong layout raises `InputError`."""
    folder, problems = Path(folder), list[Problem]()
    inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    kinds = [name for name in ("images", "labels", "masks") if name in inside]
    if len(kinds) != 2 or kinds[0] != "images":
        found = f"holds {', '.join(inside[:8]) or 'nothing'}"
        advice = "give a folder with images/ and labels/ (or masks/, but not both)"
        raise BadFiles([Problem(str(folder), found, advice)])
    images, labels = (_by_stem(folder / kind, problems) for kind in kinds)
    maps = {extra: _by_stem(folder / extra, problems) for extra in extras}
    for there, missing, what in ((images, labels, "label"), (labels, images, "image")):
        for stem in sorted(there.keys() - missing.keys()):
            problems.append(Problem(short_name(there[stem]), f"has no {what}", "add one, or take this file away"))
    if not images and not labels:
        problems.append(Problem("images/", "holds no image", "put images into it, and their labels into labels/"))
    yield from problems
    classes: set[int] = set()
    for stem in sorted(images.keys() & labels.keys()):
        try:
            sample = read_sample(images[stem], labels[stem], label_map, maps)
        except BadFiles as error:
            yield from error.problems
            continue
        if len(classes) < 3 and sample.label.dtype == np.uint8:
            classes.update(np.flatnonzero(np.bincount(sample.label.ravel())).tolist())
        yield sample
    if label_map is None and IGNORE_INDEX in classes <= {0, IGNORE_INDEX}:
        advice = "if 255 is class 1, use label_map={0: 0, 255: 1}; if it is ignored, label_map={0: 0, 255: 255}"
        yield Problem("All labels", "hold 0 and 255 only, and 255 means 'ignored'", advice)


def _by_stem(folder: Path, problems: list[Problem]) -> dict[str, Path]:
    """The image files of one folder by name without suffix; junk is skipped, problems are appended."""
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if not is_junk(path.name) and not path.is_dir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            what = f"is none of {', '.join(IMAGE_SUFFIXES)}"
            problems.append(Problem(short_name(path), what, "move it to another place, or save it as PNG or TIFF"))
        elif (other := found.setdefault(_stem(path), path)) != path:
            what = f"and {other.name} have one name before the suffix"
            problems.append(Problem(short_name(path), what, "rename one of the two, or delete it"))
    return found


def is_junk(name: str) -> bool:
    """True for the files and folders that operating systems and Jupyter leave behind."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", path.stem)  # macOS writes é as two characters, others as one


def read_sample(
    image_path: Path,
    label_path: Path,
    label_map: LabelMap | None = None,
    maps: Mapping[str, Mapping[str, Path]] | None = None,
    read: Callable[[Path], np.ndarray] = read_image,
) -> Sample:
    """Read one pair and its extra maps, the image by `read`; raise one `InputError` that names the file."""
    image, label = read(image_path), read_label(label_path, label_map)
    extras, stem = {}, _stem(image_path)
    for name, paths in (maps or {}).items():
        if stem not in paths:
            raise _refused(image_path, f"has no map in {name}/", "add the map, or take the folder of maps away")
        extras[name] = decode(paths[stem]).numbers
    for what, array in {short_name(label_path): label, **extras}.items():
        if array.shape != image.shape[:2]:
            found = f"has size {image.shape[:2]}, {what} has {array.shape}"
            raise _refused(image_path, found, "export the label again; never stretch one by interpolation")
    return Sample(stem, image, label, None, extras)


# --- training, validation and test part ---


def split_parts(
    hashes: Sequence[str],
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    given: Sequence[str | None] | None = None,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Return the part of each sample; samples with the same content hash always get the same one.

    `given` holds parts that are fixed already (None: still open).  Open samples are divided among the parts that
    nobody has given.  The fractions count different images; each part gets at least one, and the first part takes
    what rounding leaves.  One image in two given parts (`names` are for this message), or too few images for the
    parts, raise `InputError`.

    >>> split_parts(["a", "b", "c", "a"], {"train": 0.5, "val": 0.5})
    ['val', 'val', 'train', 'val']
    """
    given, problems = given or [None] * len(hashes), []
    owners: dict[str, tuple[str, str]] = {}  # content → part and name of the first sample that has it
    for value, part, name in zip(hashes, given, names or hashes):
        if part and (owner := owners.setdefault(value, (part, name)))[0] != part:
            found = f"({owner[0]}) and {name} ({part}) are the same image"
            problems.append(Problem(owner[1], found, "delete one of the two"))
    raise_problems("Parts must not share an image, or the score on them is too good", problems)
    part_of = {value: part for value, (part, _) in owners.items()}
    if left := sorted(set(hashes) - part_of.keys()):
        shares = {part: share for part, share in fractions.items() if share > 0 and part not in given} or fractions
        first, *others = shares
        total = sum(shares.values())
        row = [part for part in others for _ in range(max(1, round(len(left) * shares[part] / total)))]
        if len(row) >= len(left):
            raise InputError(f"{len(left)} different images are too few for the parts {', '.join(shares)}; add some.")
        row = [first] * (len(left) - len(row)) + row
        part_of |= {left[i]: part for i, part in zip(np.random.default_rng(seed).permutation(len(left)), row)}
    return [part_of[value] for value in hashes]
