"""From files to samples: read images and labels, pair them in a folder, and split them into parts.

Students' folders hold everything: JPEG masks with invented values, palettes, alpha channels, turned photographs, web
pages saved as .png.  Whatever would have to be guessed is refused, and all problems of a folder come together.  A label
keeps the numbers that are stored in it.

Sources: W3C, Portable Network Graphics, third edition, https://www.w3.org/TR/png-3; Adobe, TIFF revision 6.0, 1992.
"""

from __future__ import annotations

import logging
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageOps

from checks import IGNORE_INDEX, InputError

PARTS = ("train", "val", "test")
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
JUNK = {"__macosx", "thumbs.db", "desktop.ini"}  # and every name that begins with a dot
SHOWN = 20  # problems in one message

MAX_PIXELS = 2**26  # 8192 × 8192; a larger declared size is refused before anything is decoded
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")  # Pillow knows forty more, and one of them (EPS) starts a program
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LOSSY, LOSSY_TIFF = ("JPEG", "MPO", "WEBP"), (6, 7, 34892, 50001)
WHITE_IS_0, BLACK_IS_0, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6  # photometric interpretations of a TIFF
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its remarks on odd tags are not for the reader

LabelMap = Mapping[Any, int]  # value, or colour (red, green, blue) → class


# --- problems ---


@dataclass(frozen=True)
class Problem:
    """One file that cannot be taken as it is: what was found in it, and what to do.

    >>> str(Problem("labels/a.png", "is empty (0 bytes)", "copy it again"))
    'labels/a.png is empty (0 bytes); copy it again'
    """

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
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        return "\n- ".join([f"{self.title}: {len(lines)} problems", *lines[:SHOWN], *more])


def raise_problems(title: str, problems: Sequence[Problem]) -> None:
    """Raise one `BadFiles` for all problems; do nothing if there is none."""
    if problems:
        raise BadFiles(problems, title)


def _refused(path: Path, found: str, advice: str = "") -> BadFiles:
    return BadFiles([Problem(short_name(path), found, advice)])


def short_name(path: Path) -> str:
    """Folder and file name, for messages: no reader needs the long path."""
    return f"{path.parent.name}/{path.name}"


# --- one file ---


def read_image(path: Path) -> np.ndarray:
    """An image (H, W) or (H, W, C) as it is stored; an alpha channel is dropped if it hides nothing."""
    image, has_alpha, _ = decode(path, as_label=False)
    if has_alpha and (image[..., -1] != np.iinfo(image.dtype).max).any():
        raise _refused(path, "has transparent pixels", "save it without an alpha channel")
    image = image[..., :-1] if has_alpha else image
    image = image.astype(np.uint8) * 255 if image.dtype == bool else image
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


def read_label(path: Path, label_map: LabelMap | None = None) -> np.ndarray:
    """A label (H, W) of integers; whatever would have to be guessed raises `InputError`."""
    label, has_alpha, is_lossy = decode(path, as_label=True)
    if is_lossy:
        found = f"is a JPEG or WebP, which invents values: {list_values(label)}"
        raise _refused(path, found, "export it again as PNG; a new name is not enough")
    if has_alpha:
        raise _refused(path, "has an alpha channel", "save it as one channel of class numbers")
    if label.dtype != bool and not np.issubdtype(label.dtype, np.integer):
        raise _refused(path, f"has dtype {label.dtype}", "save a mask as integers, for example as 8-bit PNG")
    is_colour_table = any(np.size(value) > 1 for value in label_map or ())
    if label.ndim == 3 and not is_colour_table and (label == label[..., :1]).all():
        label = label[..., 0]  # grey that was stored as colour
    if label_map is not None:
        return _mapped(label, label_map, path)
    if label.ndim == 3:
        advice = "give each colour a class: label_map={(255, 0, 255): 1, …}, in run.py check --map 255-0-255=1,…"
        raise _refused(path, f"is a colour image with {list_values(label)}", advice)
    return label.astype(np.uint8) if label.dtype == bool else label


def _mapped(label: np.ndarray, label_map: LabelMap, path: Path) -> np.ndarray:
    """Replace the values of a label (H, W), or the colours of (H, W, C), by the classes of `label_map`."""
    pixels = label if label.ndim == 3 else label[..., None]
    result = np.zeros(pixels.shape[:2], np.uint8)
    is_known = np.zeros(pixels.shape[:2], bool)
    for value, number in label_map.items():
        if np.size(value) != pixels.shape[2] or number not in range(256):
            wanted = "(red, green, blue): class" if label.ndim == 3 else "value: class"
            found = f"with shape {label.shape} does not fit the label_map entry {value}: {number}"
            raise _refused(path, found, f"write {wanted}, with a class from 0 to 255")
        is_value = (pixels == np.atleast_1d(value)).all(axis=2)
        result[is_value] = number
        is_known |= is_value
    if not is_known.all():
        left = pixels[~is_known][None]
        found = f"has {left.shape[1]} pixels not in label_map: {list_values(left)}"
        raise _refused(path, found, "add these values to it; class 255 means ignored")
    return result


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


def decode(path: Path, *, as_label: bool) -> tuple[np.ndarray, bool, bool]:
    """Decode one file: (array, has an alpha channel, is packed with loss); raise `InputError` if it is no sound image.

    An image has its colours, a label the numbers that are stored: indices into a palette, 0 … 15 in four bits.
    """
    start = b""
    try:
        with open(path, "rb") as stream:
            start = stream.read(60)
        if not start:
            raise _refused(path, "is empty (0 bytes)", "copy or download it again")
        if path.suffix.lower() in (".tif", ".tiff") or start.startswith(TIFF_STARTS):
            return _decode_tiff(path, as_label)
        return _decode_with_pillow(path, as_label, start)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _refused(path, f"is too large: at most {MAX_PIXELS} pixels are read", "cut it into tiles") from error
    except Exception as error:  # decoders raise nearly everything on damaged files, SyntaxError included
        said = " ".join(str(error).replace(str(path), path.name).split())[:90]
        reason, advice = f"{type(error).__name__}: {said}", "copy or download it again"
        if start.strip().startswith((b"<", b"{")):
            reason = f"it begins with {start.strip()[:20]!r}: a saved web page?"
            advice = "open its address in a browser, log in if asked, and download it again"
        raise _refused(path, f"cannot be read as an image ({reason})", advice) from error


def _decode_with_pillow(path: Path, as_label: bool, start: bytes) -> tuple[np.ndarray, bool, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our limit of the size is lower; broken notes of a camera do not matter
        with Image.open(path, formats=FORMATS) as opened:
            _check_size(path, *opened.size)
            format, depth, colour = opened.format, start[24], start[25]  # the last two are in the header of a PNG
            if format == "PNG" and depth == 16 and colour != 0:
                raise _refused(path, "is a 16-bit colour PNG, of which Pillow reads 8 bits", "save it as TIFF")
            opened.verify()  # the checksums of a PNG; without them a flipped bit gives another mask, without a word
        with Image.open(path, formats=FORMATS) as opened:
            upright = ImageOps.exif_transpose(opened)  # cameras store a turned image and a note to turn it back
            if not as_label and upright.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
                upright = upright.convert("RGBA" if upright.mode == "PA" else "RGB")
            array = np.array(upright)
    if as_label and format == "PNG" and colour == 0 and depth in (2, 4):
        array = array // (255 // (2**depth - 1))  # Pillow spreads 0 … 15 over 0 … 255
    array = array.astype(np.uint16) if array.dtype == np.int32 else array  # so older Pillows read 16-bit grey
    return array, "A" in upright.getbands(), format in LOSSY


def _decode_tiff(path: Path, as_label: bool) -> tuple[np.ndarray, bool, bool]:
    """Read a TIFF of one page; its tags, and not its shape, say what the numbers mean."""
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages.first
        is_lossy, colours = page.compression in LOSSY_TIFF, page.photometric
        _check_size(path, page.imagewidth, page.imagelength)
        if len(file.pages) != 1:
            raise _refused(path, f"holds {len(file.pages)} pages", "save each page as a file of its own")
        if "Orientation" in page.tags and page.tags["Orientation"].value != 1:
            raise _refused(path, "is stored turned (TIFF orientation)", "open it and save it upright")
        if colours not in (WHITE_IS_0, BLACK_IS_0, RGB, PALETTE) and not (colours == YCBCR and is_lossy):
            raise _refused(path, f"has the colours {getattr(colours, 'name', colours)}", "save it as grey or RGB")
        array, palette = page.asarray(), page.colormap  # (3, values), 16 bits
    if array.ndim not in (2, 3):
        raise _refused(path, f"has shape {array.shape}", "save it as an ordinary picture (H, W) or (H, W, C)")
    if array.ndim == 3 and page.planarconfig == 2:  # one channel behind the other
        array = np.moveaxis(array, 0, -1)
    if not as_label and colours == PALETTE:
        array = np.moveaxis(palette[:, array] >> 8, 0, -1).astype(np.uint8)
    if not as_label and colours == WHITE_IS_0:
        array = np.invert(array) if array.dtype.kind in "bu" else -array
    return array, any(kind in (1, 2) for kind in page.extrasamples), is_lossy


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _refused(path, f"declares {width} × {height} pixels; at most {MAX_PIXELS} are read", "cut it into tiles")


# --- a folder ---


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its label: `image` (H, W) or (H, W, C), uint8, uint16 or float; `label` (H, W) integer.

    `part` is "train", "val", "test", or None if it is still to be chosen.  `extras` are maps (H, W) that
    travel along: instance numbers, dead cells, weights.

    >>> Sample("a", np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8)).part is None
    True
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    part: str | None = None
    extras: dict[str, np.ndarray] = field(default_factory=dict)


def find_pairs(folder: str | Path) -> list[tuple[Path, Path]]:
    """Return the pairs (image path, label path) of a folder, sorted by name; each file is opened and checked.

    Layout: `images/` (png, tif, tiff, jpg) and `labels/` or `masks/` (png, tif, tiff), with equal names
    before the suffix.  Raises one `InputError` that lists all problems: partners that are missing, files that
    are empty or damaged, sizes that differ, names that occur twice.

    >>> find_pairs("nowhere")
    Traceback (most recent call last):
    imagesets.files.BadFiles: nowhere does not exist; give a folder with images/ and labels/ (or masks/, but not both)
    """
    pairs, problems = _match(Path(folder))
    for image_path, label_path in pairs:
        try:
            read_sample(image_path, label_path)
        except BadFiles as error:
            problems += error.problems
    raise_problems(str(folder), problems)
    return pairs


def read_folder(folder: str | Path, label_map: LabelMap | None = None, extras: Sequence[str] = ()) -> Iterator[Sample]:
    """Yield the samples of a folder (layout: see `find_pairs`); `extras` names more sub-folders, of maps.

    `label_map` gives the class of every value in the mask files, {0: 0, 255: 1}, or of every colour,
    {(255, 0, 255): 1, (255, 0, 0): 0}.  Without it the values are the classes, and 255 means "ignored".
    A bad sample is left out; after the last good one an `InputError` lists all problems.
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
    folder = Path(folder)
    pairs, problems = _match(folder)
    maps = {extra: _by_stem(folder / extra, problems) for extra in extras}
    yield from problems
    only_255: list[str] = []  # masks that hold 255 and no class above 0
    both = False
    for image_path, label_path in pairs:
        try:
            sample = read_sample(image_path, label_path, label_map, maps)
        except BadFiles as error:
            yield from error.problems
            continue
        is_ignored = sample.label == IGNORE_INDEX
        if is_ignored.any() and ((sample.label != 0) & ~is_ignored).any():
            both = True
        elif is_ignored.any():
            only_255.append(short_name(label_path))
        yield sample
    if label_map is None and only_255 and not both:
        others = f"(as {len(only_255) - 1} more do) " if len(only_255) > 1 else ""
        advice = "if 255 is class 1, use label_map={0: 0, 255: 1}; if it is ignored, label_map={0: 0, 255: 255}"
        yield Problem(only_255[0], f"{others}holds 255 but no class, and 255 means 'ignored'", advice)


def _match(folder: Path) -> tuple[list[tuple[Path, Path]], list[Problem]]:
    """Pair images and labels by name; return the pairs and the problems met."""
    label_folders = [folder / name for name in ("labels", "masks") if (folder / name).is_dir()]
    if not (folder / "images").is_dir() or len(label_folders) != 1:
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        found = f"holds {', '.join(names[:8] + ['…'] * (len(names) > 8)) or 'nothing'}"
        advice = "give a folder with images/ and labels/ (or masks/, but not both)"
        raise BadFiles([Problem(str(folder), found if folder.is_dir() else "does not exist", advice)])
    problems: list[Problem] = []
    images, labels = _by_stem(folder / "images", problems), _by_stem(label_folders[0], problems)
    for there, missing, what in ((images, labels, "label"), (labels, images, "image")):
        for stem in sorted(there.keys() - missing.keys()):
            problems.append(Problem(short_name(there[stem]), f"has no {what}", "add one, or take this file away"))
    if not images and not labels:
        problems.append(Problem("images/", "holds no image", "put images into it, and their labels into labels/"))
    return [(images[stem], labels[stem]) for stem in sorted(images.keys() & labels.keys())], problems


def _by_stem(folder: Path, problems: list[Problem]) -> dict[str, Path]:
    """The image files of one folder by name without suffix; junk is skipped, problems are appended."""
    found: dict[str, Path] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if not is_junk(path.name) and not path.is_dir())
    except OSError as error:
        problems.append(Problem(f"{folder.name}/", f"cannot be read ({error.strerror})", "get the right to read it"))
        return found
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            what = f"is none of {', '.join(IMAGE_SUFFIXES)}"
            problems.append(Problem(short_name(path), what, "move it to another place, or save it as PNG or TIFF"))
        elif _stem(path) in found:
            what = f"and {found[_stem(path)].name} have one name before the suffix"
            problems.append(Problem(short_name(path), what, "rename one of the two, or delete it"))
        else:
            found[_stem(path)] = path
    return found


def is_junk(name: str) -> bool:
    """True for the files and folders that operating systems and Jupyter leave behind."""
    return name.startswith(".") or name.lower() in JUNK


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
        extras[name] = decode(paths[stem], as_label=True)[0]
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

    `given` holds parts that are fixed already (None: still open).  Open samples are divided among the parts
    that nobody has given: a set with a test folder of its own is split into train and val.  The fractions
    count different images; each part gets at least one, and the first part takes what rounding leaves.
    Raises `InputError` if one image is given to two parts (`names` are for this message), or if there are
    too few images.

    >>> split_parts(["a", "b", "c", "a"], {"train": 0.5, "val": 0.5})
    ['val', 'val', 'train', 'val']
    """
    given = given or [None] * len(hashes)
    fixed = _fixed_parts(hashes, given, names or [f"sample {index}" for index in range(len(hashes))])
    open_hashes = sorted(set(hashes) - fixed.keys())
    if open_hashes:
        free = {part: share for part, share in fractions.items() if share > 0 and part not in given}
        fixed |= _divide(open_hashes, free or fractions, seed)
    return [fixed[value] for value in hashes]


def _fixed_parts(hashes: Sequence[str], given: Sequence[str | None], names: Sequence[str]) -> dict[str, str]:
    """The part that was given to each hash; one image in two parts raises `InputError`."""
    owners: dict[str, int] = {}
    problems = []
    for index, part in enumerate(given):
        owner = owners.setdefault(hashes[index], index) if part else index
        if given[owner] != part:
            found = f"({given[owner]}) and {names[index]} ({part}) are the same image"
            problems.append(Problem(names[owner], found, "delete one of the two"))
    raise_problems("Parts must not share an image, or the score on them is too good", problems)
    return {value: str(given[index]) for value, index in owners.items()}


def _divide(hashes: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Shuffle the different images and cut the row by the fractions."""
    first, *others = fractions
    total = sum(fractions.values())
    parts = [part for part in others for _ in range(max(1, round(len(hashes) * fractions[part] / total)))]
    if len(parts) >= len(hashes):
        raise InputError(f"{len(hashes)} different images are too few for the parts {', '.join(fractions)}; add some.")
    parts = [first] * (len(hashes) - len(parts)) + parts
    return {hashes[i]: part for i, part in zip(np.random.default_rng(seed).permutation(len(hashes)), parts)}
