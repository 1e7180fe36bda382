"""Decode one image or label file, and refuse whatever would have to be guessed.

Students' folders hold everything: JPEG masks with invented values, palettes, alpha channels, turned photographs, web
pages saved as .png.  Each gets one sentence that names the file.  A label keeps the numbers that are stored in it.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageOps

from checks import InputError
from imagesets.pngfile import START, check_pixels, read_png, unpacked_size

MAX_PIXELS = 2**26  # 8192 × 8192; a larger declared size is refused before anything is decoded
# Tags of a TIFF without which its pixels are not what was saved: sizes, bits, packing, places, palette, sample format
PIXEL_TAGS = {256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339}
# What Pillow may open: it knows forty formats more, and one of them (EPS) starts another program
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
LOSSY, LOSSY_TIFF, DEFLATE = ("JPEG", "MPO", "WEBP"), (6, 7, 34892), (8, 32946)
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NUMBER_TAGS = PIXEL_TAGS - {258, 273, 279, 320, 324, 325, 338, 339}  # of these a TIFF has one number each
LabelMap = Mapping[Any, int]  # value, or colour (red, green, blue) → class


def read_image(path: Path) -> np.ndarray:
    """An image (H, W) or (H, W, C) as it is stored; an alpha channel is dropped if it hides nothing."""
    image, has_alpha, _ = decode(path, as_label=False)
    if has_alpha and (image[..., -1] != np.iinfo(image.dtype).max).any():
        raise InputError(f"{short_name(path)} has transparent pixels; save it without an alpha channel")
    image = image[..., :-1] if has_alpha else image
    image = image.astype(np.uint8) * 255 if image.dtype == bool else image
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


def read_label(path: Path, label_map: LabelMap | None = None) -> np.ndarray:
    """A label (H, W) of integers; whatever would have to be guessed raises `InputError`."""
    label, has_alpha, is_jpeg = decode(path, as_label=True)
    if is_jpeg:
        raise InputError(
            f"{short_name(path)} is a JPEG or WebP, which invents values: {list_values(label)}; save it as PNG"
        )
    if has_alpha:
        raise InputError(f"{short_name(path)} has an alpha channel; save it as one channel of class numbers")
    if label.dtype != bool and not np.issubdtype(label.dtype, np.integer):
        raise InputError(f"{short_name(path)} has dtype {label.dtype}; a mask must hold integers")
    is_colour_table = any(np.size(value) > 1 for value in label_map or ())
    if label.ndim == 3 and not is_colour_table and (label == label[..., :1]).all():
        label = label[..., 0]  # grey that was stored as colour
    if label_map is not None:
        return _mapped(label, label_map, path)
    if label.ndim == 3:
        hint = "give each colour a class: label_map={(red, green, blue): class, …}"
        raise InputError(f"{short_name(path)} is a colour image with {list_values(label)}; {hint}")
    return label.astype(np.uint8) if label.dtype == bool else label


def _mapped(label: np.ndarray, label_map: LabelMap, path: Path) -> np.ndarray:
    """Replace the values of a label (H, W), or the colours of (H, W, C), by the classes of `label_map`."""
    pixels = label if label.ndim == 3 else label[..., None]
    result = np.zeros(pixels.shape[:2], np.uint8)
    is_known = np.zeros(pixels.shape[:2], bool)
    for value, number in label_map.items():
        if np.size(value) != pixels.shape[2] or number not in range(256):
            wanted = "(red, green, blue): class" if label.ndim == 3 else "value: class"
            raise InputError(
                f"label_map entry {value}: {number} does not fit {short_name(path)}, {label.shape}; "
                f"expected {wanted}, with a class from 0 to 255"
            )
        channels = np.atleast_1d(value)
        is_value = np.logical_and.reduce([pixels[..., c] == channels[c] for c in range(len(channels))])
        result[is_value] = number
        is_known |= is_value
    if not is_known.all():
        left = pixels[~is_known][None]
        raise InputError(
            f"{short_name(path)} has {left.shape[1]} pixels not in label_map: {list_values(left)}; add them to it"
        )
    return result


def list_values(array: np.ndarray) -> str:
    """A short list of the different values of an array, or of the colours of (…, …, C)."""
    C = array.shape[2] if array.ndim == 3 else 1
    found, limit = np.unique(array.reshape(-1, C), axis=0), 6 if C == 1 else 3
    shown = ", ".join(str(tuple(row) if C > 1 else row[0]) for row in found[:limit].tolist())
    kinds = "1 value" if len(found) == 1 else f"{len(found)} different values"
    return f"{kinds}, {shown}{', …' if len(found) > limit else ''}"


def decode(path: Path, *, as_label: bool) -> tuple[np.ndarray, bool, bool]:
    """Decode one file: (array, has alpha, is a JPEG); raise `InputError` if it is no sound image."""
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{short_name(path)} is empty (0 bytes)")
        with open(path, "rb") as stream:
            start = stream.read(8)
        if path.suffix.lower() in (".tif", ".tiff") or start.startswith(TIFF_STARTS):
            return _decode_tiff(path)
        return _decode_png(path, as_label) if start == START else _decode_with_pillow(path, as_label)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{short_name(path)} is too large: at most {MAX_PIXELS} pixels are read; cut it into tiles"
        ) from error
    except Exception as error:  # decoders raise nearly everything on damaged files, SyntaxError included
        said = str(error).partition("\n")[0].replace(str(path), path.name)[:90]
        said = "".join(sign if sign.isprintable() else "?" for sign in said)
        reason = _text_at_start(path) or f"{type(error).__name__}: {said}"
        raise InputError(
            f"{short_name(path)} cannot be read as an image ({reason}); copy or download it again"
        ) from error


def _text_at_start(path: Path) -> str:
    """A hint if the file is a text, as a web page saved under an image's name; else an empty string."""
    try:
        start = path.read_bytes()[:60].strip()
    except OSError:
        return ""
    return f"it begins with {start[:20]!r}: a saved web page?" if start.startswith((b"<", b"{")) else ""


def _decode_png(path: Path, as_label: bool) -> tuple[np.ndarray, bool, bool]:
    """Pillow reads it, and what Pillow does not look at is looked at before."""
    name = short_name(path)
    png = read_png(path.read_bytes(), name)
    _check_size(path, png.width, png.height)
    if png.depth == 16 and png.colour != 0:
        raise InputError(f"{name} is a 16-bit colour PNG, which Pillow reads as 8-bit; use TIFF")
    check_pixels(png, name)
    array, has_alpha, _ = _decode_with_pillow(path, as_label, num_colours=png.num_colours)
    if as_label and png.colour == 0 and png.depth in (2, 4):
        array = array // (255 // (2**png.depth - 1))  # Pillow spreads 0 … 15 over 0 … 255
    return array.astype(np.uint16) if array.dtype == np.int32 else array, has_alpha, False  # older Pillow, 16-bit


def _decode_with_pillow(
    path: Path, as_label: bool, num_colours: int = 256, *, is_strict: bool = False
) -> tuple[np.ndarray, bool, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        warnings.simplefilter("error" if is_strict else "ignore", UserWarning)  # of a camera's broken notes
        with Image.open(path, formats=FORMATS) as opened:
            _check_size(path, *opened.size)
            upright = ImageOps.exif_transpose(opened)  # cameras store a turned image and a note to turn it back
            array, has_alpha, is_lossy = np.array(upright), "A" in upright.getbands(), opened.format in LOSSY
            if not as_label and upright.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
                if upright.mode == "P" and array.max() >= num_colours:
                    raise InputError(
                        f"{short_name(path)} cannot be read as an image (a colour is not in its palette); save it again"
                    )
                array = np.array(upright.convert("RGB"))  # a label keeps its palette indices
    return array, has_alpha, is_lossy


@contextmanager
def _silent() -> Iterator[None]:
    """Keep from the screen what libtiff, a library in C, writes there; it raises an error as well."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _Complaints(logging.Handler):
    """Collects what tifffile says about damage that the pixels depend on; it goes on and returns zeros."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        tag = re.search(r"TiffTag (\d+)", text)
        if "TiffPages" not in text and (tag is None or int(tag[1]) in PIXEL_TAGS):
            self.found.append(text)

    def check(self, path: Path) -> None:
        """Raise `InputError` if there was one."""
        if self.found:
            said = re.sub("[<>]", "", self.found[0])[:90]
            raise InputError(f"{short_name(path)} is a damaged TIFF ({said}); save it again")


@contextmanager
def _strict(path: Path) -> Iterator[_Complaints]:
    """Raise `InputError` if tifffile complains, and keep its other remarks from the student's screen."""
    complaints, logger = _Complaints(), logging.getLogger("tifffile")
    logger.addHandler(complaints)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield complaints
    finally:
        logger.removeHandler(complaints)
        logger.propagate = propagates
    complaints.check(path)


def _decode_tiff(path: Path) -> tuple[np.ndarray, bool, bool]:
    with _strict(path) as complaints, tifffile.TiffFile(path) as file:
        page: Any = file.pages.first
        _check_numbers(path, page)
        _check_size(path, page.imagewidth, page.imagelength)
        _check_size(path, page.imagelength, page.size // max(4 * page.imagelength, 1))  # channels, too
        if len(file.pages) != 1:
            raise InputError(f"{short_name(path)} holds {len(file.pages)} pages; expected one image a file")
        if "Orientation" in page.tags and page.tags["Orientation"].value != 1:
            raise InputError(f"{short_name(path)} is stored turned (TIFF orientation); save it upright")
        complaints.check(path)
        _check_pieces(path, page)
        if page.compression in DEFLATE:
            _check_unpacked(path, page)
        is_lossy = page.compression in LOSSY_TIFF
        array, has_alpha = _tiff_pixels(page), len(page.extrasamples) > 0
    if array is None:
        return *_tiff_with_pillow(path), is_lossy
    if array.ndim not in (2, 3) or array.size == 0:
        raise InputError(f"{short_name(path)} has shape {array.shape}; expected (H, W) or (H, W, C)")
    array = np.moveaxis(array, 0, -1) if array.ndim == 3 and page.planarconfig == 2 else array
    return array, has_alpha, is_lossy


def _check_numbers(path: Path, page: Any) -> None:
    """Raise `InputError` if a tag is a text or a list where one number belongs: tifffile guesses then."""
    for tag in page.tags:
        if tag.code in NUMBER_TAGS and not isinstance(tag.value, int):
            raise InputError(f"{short_name(path)} is a damaged TIFF ({tag.name} is no number); save it again")


def _check_pieces(path: Path, page: Any) -> None:
    """Raise `InputError` if a piece is missing, too short or too many: tifffile takes zeros for it, or drops it."""
    pieces, size = list(zip(page.dataoffsets, page.databytecounts)), path.stat().st_size
    is_short = page.compression == 1 and page.bitspersample >= 8 and sum(page.databytecounts) < page.nbytes
    is_lost = any(start <= 0 or count <= 0 or start + count > size for start, count in pieces)
    expected, listed = int(np.prod(page.chunked)), max(len(page.dataoffsets), len(page.databytecounts))
    if is_short or is_lost or len(pieces) < expected or listed > expected:
        reason = "it holds more pixels than it says" if listed > expected else "some of its pixels are missing"
        raise InputError(f"{short_name(path)} cannot be read as an image ({reason}); copy or download it again")


def _check_unpacked(path: Path, page: Any) -> None:
    """Raise `InputError` if a packed piece becomes larger than a piece can be: tifffile would unpack all of it."""
    limit = int(np.prod(page.chunks)) * page.dtype.itemsize
    with open(path, "rb") as stream:
        for start, count in zip(page.dataoffsets, page.databytecounts):
            stream.seek(start)
            if unpacked_size(stream.read(count), limit)[0] > limit:
                raise InputError(f"{short_name(path)} is too large: it unpacks to more than its size; delete it")


def _tiff_pixels(page: Any) -> np.ndarray | None:
    """What tifffile reads; None if it lacks the way to unpack, as for LZW."""
    try:
        array: np.ndarray = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return None
    return array


def _tiff_with_pillow(path: Path) -> tuple[np.ndarray, bool]:
    with _silent():  # strict, because it goes on without a tag that is damaged
        array, has_alpha, _ = _decode_with_pillow(path, as_label=True, is_strict=True)
    return array, has_alpha


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{short_name(path)} declares {width} × {height} pixels; at most {MAX_PIXELS} are read; cut it into tiles"
        )


def short_name(path: Path) -> str:
    """Folder and file name, for messages: no reader needs the long path."""
    return f"{path.parent.name}/{path.name}"
