"""From files to samples: read images and labels, and split them into parts; `layouts` finds the pairs in a folder.

An image is what its file shows on a screen (`read_image`); a label is what is stored (`read_label`), also where 0 is
white.  One picture has one answer whatever its packing; what would have to be guessed is refused (JPEG masks, holes).
Sources: W3C, Portable Network Graphics, third edition, https://www.w3.org/TR/png-3; Adobe, TIFF revision 6.0, 1992.
"""

import logging
import math
import re
import warnings
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageOps

from checks import IGNORE_INDEX, InputError, memory_is_full, printable, reason_of

PARTS = ("train", "val", "test")
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
# What other programs put beside images: places on the earth, notes, annotations, outlines of ImageJ and Cellpose
SIDE_CARS = (".xml", ".json", ".txt", ".csv", ".tfw", ".pgw", ".jgw", ".wld", ".prj", ".ovr", ".roi", ".zip", ".npy")
SHOWN = 20  # problems in one message
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")  # Pillow knows forty more, and one of them (EPS) starts a program
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LOSSY_TIFF = (6, 7, 22610, 33003, 33004, 33005, 34712, 34887, 34892, 34934, 50001, 50002)  # JPEG, LERC, WebP
WHITE_IS_0, BLACK_IS_0, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6  # photometric interpretations of a TIFF
ORIENTATION, INK_SET = 274, 332  # tags; 1, as none, means upright, and the four inks of CMYK
NOT_HERE = (ImportError, Image.DecompressionBombError)  # a decoder is missing, or more pixels than Pillow opens
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its remarks on odd tags are not for the reader
LabelMap = Mapping[Any, int]  # value, colour (red, green, blue), or "*" (all that is not named) → class


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
    """Raise one `BadFiles` for all problems, if there are any."""
    if problems:
        raise BadFiles(problems, f"{title}: {len(problems)} problem{'s' * (len(problems) > 1)}")


def _refused(path: Path, found: str, advice: str) -> BadFiles:
    return BadFiles([Problem(short_name(path), found, advice)])


def short_name(path: Path) -> str:
    """Folder and file name, for messages: no reader needs the long path."""
    return printable(f"{path.parent.name}/{path.name}")


class Stored(NamedTuple):
    """One file: its numbers (H, W) or (H, W, C) as they are stored, and as they look on a screen, without alpha."""

    numbers: np.ndarray
    shown: np.ndarray  # (H, W, C): colours of a palette and of CMYK as RGB, few bits spread over a byte, black is 0
    has_alpha: bool
    has_hole: bool  # a pixel is transparent, by its alpha or by its entry in a palette
    is_lossy: bool


def read_image(path: Path) -> np.ndarray:
    """What an image shows, (H, W) or (H, W, C); an alpha channel is dropped if it is opaque everywhere."""
    stored = decode(path)
    if stored.has_hole:
        raise _refused(path, "has transparent pixels", "save it without an alpha channel")
    return stored.shown[..., 0] if stored.shown.shape[2] == 1 else stored.shown


def read_label(path: Path, label_map: LabelMap | None = None) -> np.ndarray:
    """The classes (H, W) of a label: its numbers, or what `label_map` makes of its values or colours."""
    return read_mask(path, label_map)[0]


def read_mask(path: Path, label_map: LabelMap | None = None) -> tuple[np.ndarray, dict[int, Any]]:
    """The classes (H, W) of a label, and the colours that its file gives to its numbers (`Sample.colours`)."""
    stored = _exact(path)
    label = stored.numbers.astype(np.uint8) if stored.numbers.dtype == bool else stored.numbers
    if label.dtype.kind not in "iu":
        raise _refused(path, f"has dtype {label.dtype}", "save a mask as integers, for example as 8-bit PNG")
    if label.ndim == 3 and (label == label[..., :1]).all():
        label = label[..., 0]  # grey that was stored as colour
    if label_map is None and label.ndim == 3:
        raise _refused(path, f"is a colour image: {list_values(label)}", "give label_map={(255, 0, 255): 1, …}")
    by_colour = any(isinstance(value, tuple) for value in label_map or ())  # then one colour is one class everywhere
    colours = {} if by_colour or label.ndim == 3 else _colours(label, stored.shown)
    if label_map is None:
        return label, colours
    classes = np.full(label.shape[:2], label_map.get("*", -1), np.int32)
    for value, number in label_map.items():
        values = stored.shown if isinstance(value, tuple) else np.atleast_3d(label)
        if value != "*":
            classes[(values == value).all(axis=2)] = number  # the colour (7, 7, 7) is the grey 7, too
    if (left := classes < 0).any():
        found = f"has {left.sum()} pixels not in label_map: {list_values(label[left][None])}"
        raise _refused(path, found, "add these values to it, or '*' for all others; class 255 means ignored")
    return classes.astype(np.uint8) if classes.max() <= IGNORE_INDEX else classes, colours


def read_map(path: Path, name: str) -> np.ndarray:
    """One extra map (H, W), with the refusals of a label: numbers of objects, or, as `weights`, fractions too."""
    array = _exact(path).numbers
    if array.ndim != 2 or (array.dtype.kind not in "biu" and name != "weights"):
        found = f"has shape {array.shape}, dtype {array.dtype}"
        raise _refused(path, found, "save one channel of integers; only weights may be fractions")
    return array


def _exact(path: Path) -> Stored:
    """What a file stores, if every number in it is meant."""
    stored = decode(path)
    if stored.is_lossy:
        raise _refused(path, "is a JPEG or WebP, which invents values", "export it again as PNG, not only its name")
    if stored.has_alpha:
        raise _refused(path, "has an alpha channel", "save it as one channel of class numbers")
    return stored


def _colours(label: np.ndarray, shown: np.ndarray) -> dict[int, Any]:
    """How the numbers (H, W) look: their colours in a palette; of grey ones only whether 0 is black or white."""
    if shown.shape[2] == 3:
        numbers, places = np.unique(label, return_index=True)
        return dict(zip(numbers.tolist(), map(tuple, shown.reshape(-1, 3)[places].tolist())))
    zeros = shown[label == 0]
    return {0: "white" if zeros[0] else "black"} if zeros.size and shown.shape[2] == 1 else {}


def parse_map(text: str) -> dict[Any, int]:
    """Read `--map`: the class of a value, of a colour, or of `*`, all others.

    >>> parse_map("0=0,*=1"), parse_map("255-0-255=1")
    ({0: 0, '*': 1}, {(255, 0, 255): 1})
    """
    label_map: dict[Any, int] = {}
    for entry in text.split(","):
        if not (match := re.fullmatch(r" *(\*|\d+(?:-\d+)*)=(\d+) *", entry)) or int(match[2]) > IGNORE_INDEX:
            raise ArgumentTypeError(f"{text!r} is no list VALUE=CLASS,…, as 0=0,255=1, or *=1 (others), or 255-0-255=1")
        numbers = tuple(map(int, match[1].split("-"))) if match[1] != "*" else ("*",)
        label_map[numbers if len(numbers) > 1 else numbers[0]] = int(match[2])
    return label_map


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
        reason = printable(f"{type(error).__name__}: {error}".replace(str(path), path.name)[:120])
        found, advice = f"cannot be read as an image ({reason})", "copy or download it again"
        if isinstance(error, NOT_HERE) or memory_is_full(error) or getattr(error, "errno", None):
            found = f"cannot be opened here: {printable(reason_of(error))}"
            advice = "the file may be sound: close programs, ask for rights, cut it into tiles, or save it uncompressed"
        elif start.strip().startswith((b"<", b"{")):
            found = f"begins with {start.strip()[:20]!r}: a saved web page?"
            advice = "open its address in a browser, log in if asked, download it again"
        raise _refused(path, found, advice) from error


def _decode_with_pillow(path: Path, start: bytes) -> Stored:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken notes of a camera, and large sizes, do not matter
        with Image.open(path, formats=FORMATS) as opened:
            kind = opened.format
            if kind != "MPO" and (count := getattr(opened, "n_frames", 1)) > 1:  # a camera adds small copies
                raise _refused(path, f"holds {count} pictures", "save each as a file of its own")
            opened.verify()  # the checksums of a PNG; without them a flipped bit gives another mask, without a word
        with Image.open(path, formats=FORMATS) as opened:
            clear, is_turned = opened.info.get("transparency"), opened.getexif().get(ORIENTATION, 1) != 1
            upright = ImageOps.exif_transpose(opened)  # cameras store a turned image and a note to turn it back
            numbers, mode = np.array(upright), upright.mode
            shown = np.array(upright.convert({"P": "RGB", "PA": "RGBA", "CMYK": "RGB", "1": "L"}.get(mode, mode)))
    bits, colours = (start[24], start[25]) if kind == "PNG" else (8, 0)  # both stand in the header
    if bits == 16 and colours != 0:  # of which Pillow reads 8
        if is_turned:
            raise _refused(path, "is stored turned (EXIF orientation)", "open it and save it upright")
        numbers = shown = imagecodecs.png_decode(path.read_bytes())
    elif bits in (2, 4) and colours == 0:  # a grey value, which Pillow spreads over 0 … 255
        numbers = numbers // (255 // (2**bits - 1))
    has_hole: Any = False
    if has_alpha := shown.shape[2:] in ((2,), (4,)):
        has_hole, shown = shown[..., -1] < np.iinfo(shown.dtype).max, shown[..., :-1]
    elif isinstance(clear, bytes):  # the opacity of the entries of a palette
        has_hole = np.isin(numbers, [entry for entry, opacity in enumerate(clear) if opacity < 255])
    elif clear is not None:  # the one value or colour that is transparent; for white of one bit Pillow says 1 or 255
        has_hole = (np.atleast_3d(numbers) == (bool(clear) if mode == "1" else clear)).all(axis=2)
    return Stored(numbers, np.atleast_3d(shown), has_alpha, bool(np.any(has_hole)), kind in ("JPEG", "MPO", "WEBP"))


def _decode_tiff(path: Path) -> Stored:
    """Read a TIFF of one picture; its tags, and not its shape, say what the numbers mean."""
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages.first
        packing = page.compression
        pages = sum(not getattr(other, "is_reduced", False) for other in file.pages)  # without small copies
        in_page = math.prod(file.series[0].shape) // (page.imagelength * page.imagewidth * page.samplesperpixel)
        if (count := max(pages, 1 if file.is_ome else in_page, page.imagedepth)) > 1:  # ImageJ has stacks in one page
            raise _refused(path, f"holds {count} pictures", "save each as a file of its own")
        if page.tags.valueof(ORIENTATION, 1) != 1:
            raise _refused(path, "is stored turned (TIFF orientation)", "open it and save it upright")
        if packing not in tifffile.TIFF.DECOMPRESSORS:
            raise _refused(path, f"has packing {getattr(packing, 'name', packing)}, not read here", "save it with LZW")
        return _stored(path, page, page.asarray(), packing in LOSSY_TIFF)


def _stored(path: Path, page: Any, numbers: np.ndarray, is_lossy: bool) -> Stored:
    colours, bits = page.photometric, page.bitspersample
    numbers = numbers.astype(np.uint8) if numbers.dtype == bool else numbers
    if numbers.ndim == 3 and page.planarconfig == 2:  # one channel behind the other
        numbers = np.moveaxis(numbers, 0, -1)
    extras = list(page.extrasamples)
    is_alpha = np.isin([0] * (page.samplesperpixel - len(extras)) + extras, (1, 2))  # others are channels, as infrared
    layers, largest = np.atleast_3d(numbers), 2**bits - 1 if numbers.dtype.kind in "ui" else 1
    shown, has_hole = layers[..., ~is_alpha], bool((layers[..., is_alpha] < largest).any())
    if colours == PALETTE and shown.shape[2] == 1:
        table = page.colormap.T if page.colormap.max() < 256 else page.colormap.T >> 8  # some programs write bytes
        shown = table.astype(np.uint8)[shown[..., 0]]
    elif colours == CMYK and shown.shape[2] == 4 and page.tags.valueof(INK_SET, 1) == 1 and not is_lossy:
        light = 1 - shown / largest
        shown = np.rint(light[..., :3] * light[..., 3:] * largest).astype(numbers.dtype)
    elif colours in (WHITE_IS_0, BLACK_IS_0, RGB) or (colours == YCBCR and is_lossy):
        shown = shown * np.uint8(255 // largest) if bits < 8 else shown
        if colours == WHITE_IS_0:
            shown = -shown if shown.dtype.kind in "fi" else max(255, largest) - shown
    else:
        raise _refused(path, f"has the colours {getattr(colours, 'name', colours)}", "save it as grey or RGB")
    return Stored(numbers, shown, bool(is_alpha.any()), has_hole, is_lossy)


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its label."""

    name: str
    image: np.ndarray  # (H, W) or (H, W, C), uint8, uint16 or float
    label: np.ndarray  # (H, W), integers
    part: str | None = None  # "train", "val", "test", or None if it is still to be chosen
    extras: dict[str, np.ndarray] = field(default_factory=dict)  # maps (H, W) that travel along
    colours: dict[int, Any] = field(default_factory=dict)  # those that the label's file gives to its numbers


def is_junk(name: str) -> bool:
    """True for the files and folders that operating systems and Jupyter leave behind."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def files_in(folder: Path) -> list[Path]:
    """All files in a folder and the folders in it, sorted, junk left out."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in paths if not any(map(is_junk, path.relative_to(folder).parts))]


def split_parts(
    hashes: Sequence[str], fractions: Mapping[str, float] = FRACTIONS, seed: int = 0,
    given: Sequence[str | None] = (), names: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """Return the part of each sample; samples with the same content hash always get the same one.

    `given` holds parts that are fixed (None: open); open samples go to the parts that nobody has given, each at least
    one.  One image in two given parts (`names` are for the message), or too few images, raise `InputError`.
    """
    given, problems = given or [None] * len(hashes), []
    owners: dict[str, tuple[str, str]] = {}  # content → part and name of the first sample that has it
    for value, part, name in zip(hashes, given, names or hashes):
        if part and (owner := owners.setdefault(value, (part, name)))[0] != part:
            problems.append(Problem(owner[1], f"({owner[0]}) and {name} ({part}) are the same image", "delete one"))
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
