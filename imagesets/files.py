"""From files to samples: read images and labels, pair them in a folder, and split them into parts.

`decode` gives the numbers of a file; `read_image` returns what they show, `read_label` what they mean.  Whatever would
have to be guessed (JPEG masks, colours, alpha channels) is refused, and all problems come together.
Sources: W3C, Portable Network Graphics, third edition, https://www.w3.org/TR/png-3; Adobe, TIFF revision 6.0, 1992.
"""

from __future__ import annotations

import logging
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
        self.problems = tuple(problems)
        lines = [*map(str, self.problems[:SHOWN]), *["…"] * (len(self.problems) > SHOWN)]
        super().__init__("\n- ".join([title, *lines] if title else lines))


def raise_problems(title: str, problems: Sequence[Problem]) -> None:
    """Raise one `BadFiles` for all problems; do nothing if there is none."""
    if problems:
        raise BadFiles(problems, f"{title}: {len(problems)} problem{'s' * (len(problems) > 1)}")


def _refused(path: Path, found: str, advice: str) -> BadFiles:
    return BadFiles([Problem(short_name(path), found, advice)])


def short_name(path: Path) -> str:
    """Folder and file name, for messages: no reader needs the long path."""
    return f"{path.parent.name}/{path.name}"


class Stored(NamedTuple):
    """One file: its numbers (H, W) or (H, W, C) as they are stored, and as they look on a screen."""

    numbers: np.ndarray
    shown: np.ndarray  # colours of a palette, few bits spread over a byte
    has_alpha: bool  # the last channel
    is_lossy: bool


def read_image(path: Path) -> np.ndarray:
    """What an image shows, (H, W) or (H, W, C); an alpha channel is dropped if it is opaque everywhere."""
    stored = decode(path)
    opaque = 1 if stored.shown.dtype.kind == "f" else np.iinfo(stored.shown.dtype).max
    if stored.has_alpha and (stored.shown[..., -1] < opaque).any():
        raise _refused(path, "has transparent pixels", "save it without an alpha channel")
    return picture_of(stored)


def picture_of(stored: Stored) -> np.ndarray:
    """What a picture shows, (H, W) or (H, W, C), without its alpha channel."""
    image = stored.shown[..., :-1] if stored.has_alpha else stored.shown
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


def read_label(path: Path, label_map: LabelMap | None = None) -> np.ndarray:
    """The classes (H, W) of a label: its numbers, or what `label_map` makes of its values or colours."""
    stored = decode(path)
    label = stored.numbers.astype(np.uint8) if stored.numbers.dtype == bool else stored.numbers
    if stored.is_lossy:
        raise _refused(path, "is a JPEG or WebP, which invents values", "export it again as PNG, not only its name")
    if stored.has_alpha:
        raise _refused(path, "has an alpha channel", "save it as one channel of class numbers")
    if label.dtype.kind not in "iu":
        raise _refused(path, f"has dtype {label.dtype}", "save a mask as integers, for example as 8-bit PNG")
    if label.ndim == 3 and (label == label[..., :1]).all():
        label = label[..., 0]  # grey that was stored as colour
    if label_map is None and label.ndim == 3:
        raise _refused(path, f"is a colour image: {list_values(label)}", "give label_map={(255, 0, 255): 1, …}")
    if label_map is None:
        return label
    classes = np.full(label.shape[:2], -1, np.int16)
    for value, number in label_map.items():
        classes[(np.atleast_3d(label) == value).all(axis=2)] = number  # the colour (7, 7, 7) is the grey 7, too
    if (left := classes < 0).any():
        found = f"has {left.sum()} pixels not in label_map: {list_values(label[left][None])}"
        raise _refused(path, found, "add these values to it; class 255 means ignored")
    return classes.astype(np.uint8)


def list_values(array: np.ndarray) -> str:
    """The different values of an array (…, …), or colours of (…, …, C), the first six."""
    found = np.unique(array.reshape(-1, *array.shape[2:]), axis=0).tolist()
    return ", ".join([str(tuple(v) if array.ndim == 3 else v) for v in found[:6]] + ["…"] * (len(found) > 6))


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
        if start.strip().startswith((b"<", b"{")):
            found = f"begins with {start.strip()[:20]!r}: a saved web page?"
            raise _refused(path, found, "open its address in a browser, log in if asked, download it again") from error
        reason = f"{type(error).__name__}: {error}".replace(str(path), path.name)[:120]
        raise _refused(path, f"cannot be read as an image ({reason})", "copy or download it again") from error


def _decode_with_pillow(path: Path, start: bytes) -> Stored:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken notes of a camera, and large sizes, do not matter
        with Image.open(path, formats=FORMATS) as opened:
            is_png, is_lossy = opened.format == "PNG", opened.format in LOSSY
            if is_png and start[24] == 16 and start[25] != 0:  # bits and colours stand in the header
                raise _refused(path, "is a 16-bit colour PNG, of which Pillow reads 8 bits", "save it as TIFF")
            opened.verify()  # the checksums of a PNG; without them a flipped bit gives another mask, without a word
        with Image.open(path, formats=FORMATS) as opened:
            upright = ImageOps.exif_transpose(opened)  # cameras store a turned image and a note to turn it back
            numbers, mode = np.array(upright), upright.mode
            shown = np.array(upright.convert({"P": "RGB", "CMYK": "RGB", "1": "L"}.get(mode, mode)))
    if is_png and start[24] in (2, 4) and start[25] == 0:  # bits of a grey value, which Pillow spreads over 0 … 255
        numbers = numbers // (255 // (2 ** start[24] - 1))
    return Stored(numbers, shown, "A" in upright.getbands(), is_lossy)


def _decode_tiff(path: Path) -> Stored:
    """Read a TIFF of one page; its tags, and not its shape, say what the numbers mean."""
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages.first
        if len(file.pages) != 1:
            raise _refused(path, f"holds {len(file.pages)} pages", "save each page as a file of its own")
        if "Orientation" in page.tags and page.tags["Orientation"].value != 1:
            raise _refused(path, "is stored turned (TIFF orientation)", "open it and save it upright")
        colours, is_lossy = page.photometric, page.compression in LOSSY_TIFF
        if colours not in (WHITE_IS_0, BLACK_IS_0, RGB, PALETTE) and not (colours == YCBCR and is_lossy):
            raise _refused(path, f"has the colours {getattr(colours, 'name', colours)}", "save it as grey or RGB")
        numbers = page.asarray().astype(np.uint8) if page.dtype == bool else page.asarray()
        if numbers.ndim == 3 and page.planarconfig == 2:  # one channel behind the other
            numbers = np.moveaxis(numbers, 0, -1)
        shown = numbers * np.uint8(255 // (2**page.bitspersample - 1)) if page.bitspersample < 8 else numbers
        if colours == PALETTE:
            shown = (page.colormap.T >> 8).astype(np.uint8)[numbers]
        elif colours == WHITE_IS_0:
            shown = -shown if shown.dtype.kind == "f" else np.invert(shown)
        return Stored(numbers, shown, any(kind in (1, 2) for kind in page.extrasamples), is_lossy)


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
    """Yield the samples of a folder with `images/`, `labels/` or `masks/`, and folders of maps (`extras`), by name.

    `label_map` gives the class of each value in the labels, {0: 0, 255: 1}, or colour, {(255, 0, 255): 1}; without it
    the values are the classes, 255 is ignored.  After the last good sample, an `InputError` lists all problems.
    """
    folder, problems = Path(folder), list[Problem]()
    inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    kinds = [name for name in ("images", "labels", "masks") if name in inside]
    if len(kinds) != 2 or kinds[0] != "images":
        advice = "give a folder with images/ and labels/ (or masks/, but not both)"
        raise BadFiles([Problem(str(folder), f"holds {', '.join(inside[:8]) or 'nothing'}", advice)])
    images, labels = (_by_stem(folder / kind, problems) for kind in kinds)
    maps = {extra: _by_stem(folder / extra, problems) for extra in extras}
    for there, missing, what in ((images, labels, "label"), (labels, images, "image")):
        for stem in sorted(there.keys() - missing.keys()):
            problems.append(Problem(short_name(there[stem]), f"has no {what}", "add one, or take this file away"))
    if not images and not labels:
        problems.append(Problem("images/", "holds no image", "put images into it, and their labels into labels/"))
    classes: set[int] = set()
    for stem in sorted(images.keys() & labels.keys()):
        try:
            sample = Sample(stem, read_image(images[stem]), read_label(labels[stem], label_map))
            sample.extras.update({name: decode(paths[stem]).numbers for name, paths in maps.items() if stem in paths})
        except BadFiles as error:
            problems += error.problems
            continue
        if len(classes) < 3:
            classes.update(np.unique(sample.label).tolist())
        yield sample
    if label_map is None and IGNORE_INDEX in classes <= {0, IGNORE_INDEX}:
        advice = "if 255 is class 1, use label_map={0: 0, 255: 1}; if it is ignored, label_map={0: 0, 255: 255}"
        problems.append(Problem("All labels", "hold 0 and 255 only, and 255 means 'ignored'", advice))
    raise_problems(str(folder), problems)


def _by_stem(folder: Path, problems: list[Problem]) -> dict[str, Path]:
    """The image files of one folder by name without suffix; junk is skipped, problems are appended."""
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if not is_junk(path.name) and not path.is_dir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            what = f"is none of {', '.join(IMAGE_SUFFIXES)}"
            problems.append(Problem(short_name(path), what, "move it to another place, or save it as PNG or TIFF"))
        elif (other := found.setdefault(unicodedata.normalize("NFC", path.stem), path)) != path:  # on macOS é is e + ´
            what = f"and {other.name} have one name before the suffix"
            problems.append(Problem(short_name(path), what, "rename one of the two, or delete it"))
    return found


def is_junk(name: str) -> bool:
    """True for the files and folders that operating systems and Jupyter leave behind."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def split_parts(
    hashes: Sequence[str],
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    given: Sequence[str | None] | None = None,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Return the part of each sample; samples with the same content hash always get the same one.

    `given` holds parts that are fixed (None: open); open samples go to the parts that nobody has given, each at least
    one.  One image in two given parts (`names` are for the message), or too few images, raise `InputError`.

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
        row = [part for part in others for _ in range(max(1, round(len(left) * shares[part] / sum(shares.values()))))]
        if len(row) >= len(left):
            raise InputError(f"{len(left)} different images are too few for the parts {', '.join(shares)}; add some.")
        row = [first] * (len(left) - len(row)) + row
        part_of |= {left[i]: part for i, part in zip(np.random.default_rng(seed).permutation(len(left)), row)}
    return [part_of[value] for value in hashes]
