"""Decode one image or label file, and refuse whatever would have to be guessed.

Students' folders hold everything: JPEG masks with invented values, palettes, alpha channels, turned photographs, web
pages saved as .png.  Each gets one sentence that names the file.  A label keeps the numbers that are stored in it.
"""

from __future__ import annotations

import logging
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

MAX_PIXELS = 2**26  # 8192 × 8192; a larger declared size is refused before anything is decoded
# Tags of a TIFF without which its pixels are not what was saved: sizes, bits, packing, places, palette, sample format
PIXEL_TAGS = {256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339}
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
        raise InputError(f"{short_name(path)} is a JPEG, which invents values: {list_values(label)}; save it as PNG")
    if has_alpha:
        raise InputError(f"{short_name(path)} has an alpha channel; a mask has one channel, of class numbers")
    if label.dtype != bool and not np.issubdtype(label.dtype, np.integer):
        raise InputError(f"{short_name(path)} has dtype {label.dtype}; a mask must hold integers")
    is_colour_table = any(np.size(value) > 1 for value in label_map or ())
    if label.ndim == 3 and not is_colour_table and (label == label[..., :1]).all():
        label = label[..., 0]  # grey that was stored as colour
    if label_map is not None:
        return _mapped(label, label_map, path)
    if label.ndim == 3:
        hint = "give the class of each colour, label_map={(red, green, blue): class, …}"
        raise InputError(f"{short_name(path)} is a colour image with {list_values(label)}; {hint}")
    return label.astype(np.uint8) if label.dtype == bool else label


def _mapped(label: np.ndarray, label_map: LabelMap, path: Path) -> np.ndarray:
    """Replace the values of a label (H, W), or the colours of (H, W, C), by the classes of `label_map`."""
    pixels = label if label.ndim == 3 else label[..., None]
    result = np.zeros(pixels.shape[:2], np.uint8)
    is_known = np.zeros(pixels.shape[:2], bool)
    for value, number in label_map.items():
        if np.size(value) != pixels.shape[2] or number not in range(256):
            raise InputError(f"label_map entry {value}: {number} does not fit {short_name(path)}, {label.shape}")
        channels = np.atleast_1d(value)
        is_value = np.logical_and.reduce([pixels[..., c] == channels[c] for c in range(len(channels))])
        result[is_value] = number
        is_known |= is_value
    if not is_known.all():
        left = pixels[~is_known][None]
        raise InputError(f"{short_name(path)} has {left.shape[1]} pixels not in label_map: {list_values(left)}")
    return result


def list_values(array: np.ndarray) -> str:
    """A short list of the different values of an array, or of the colours of (…, …, C)."""
    C = array.shape[2] if array.ndim == 3 else 1
    found = np.unique(array.reshape(-1, C), axis=0)
    shown = ", ".join(str(tuple(row) if C > 1 else row[0]) for row in found[:6].tolist())
    return f"{len(found)} different values, {shown}{', …' if len(found) > 6 else ''}"


def decode(path: Path, *, as_label: bool) -> tuple[np.ndarray, bool, bool]:
    """Decode one file: (array, has alpha, is a JPEG); raise `InputError` if it is no sound image."""
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{short_name(path)} is empty (0 bytes)")
        if path.suffix.lower() in (".tif", ".tiff"):
            return _decode_tiff(path)
        return _decode_with_pillow(path, as_label)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{short_name(path)} is too large: {error}") from error
    except Exception as error:  # decoders raise nearly everything on damaged files, SyntaxError included
        reason = _text_at_start(path) or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise InputError(f"{short_name(path)} cannot be read as an image ({reason})") from error


def _text_at_start(path: Path) -> str:
    """A hint if the file is a text, as a web page saved under an image's name; else an empty string."""
    try:
        start = path.read_bytes()[:60].strip()
    except OSError:
        return ""
    return f"it begins with {start[:20]!r}: a saved web page?" if start.startswith((b"<", b"{")) else ""


def _decode_with_pillow(path: Path, as_label: bool) -> tuple[np.ndarray, bool, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        opened = Image.open(path)
    with opened:
        _check_size(path, *opened.size)
        if opened.format == "PNG" and opened.mode in ("RGB", "RGBA", "LA") and path.read_bytes()[24] == 16:
            raise InputError(f"{short_name(path)} is a 16-bit colour PNG, which Pillow reads as 8-bit; use TIFF")
        upright = ImageOps.exif_transpose(opened)  # cameras store a turned image and a note to turn it back
        has_alpha = "A" in upright.getbands()
        if not as_label and upright.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
            upright = upright.convert("RGB")  # a label keeps its palette indices
        array = np.array(upright)
        if array.dtype == np.int32 and opened.format == "PNG":
            array = array.astype(np.uint16)  # older Pillow reads 16-bit PNG so
        return array, has_alpha, opened.format in ("JPEG", "MPO")


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


@contextmanager
def _strict(path: Path) -> Iterator[None]:
    """Raise `InputError` if tifffile complains, and keep its other remarks from the student's screen."""
    complaints, logger = _Complaints(), logging.getLogger("tifffile")
    logger.addHandler(complaints)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(complaints)
        logger.propagate = propagates
    if complaints.found:
        raise InputError(f"{short_name(path)} is a damaged TIFF ({re.sub('[<>]', '', complaints.found[0])})")


def _decode_tiff(path: Path) -> tuple[np.ndarray, bool, bool]:
    with _strict(path), tifffile.TiffFile(path) as file:
        page: Any = file.pages.first
        _check_size(path, page.imagewidth, page.imagelength)
        if len(file.pages) != 1:
            raise InputError(f"{short_name(path)} holds {len(file.pages)} pages; expected one image a file")
        if "Orientation" in page.tags and page.tags["Orientation"].value != 1:
            raise InputError(f"{short_name(path)} is stored turned (TIFF orientation); save it upright")
        try:
            array = page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _decode_with_pillow(path, as_label=True)  # Pillow knows LZW, tifffile alone does not
        if array.ndim not in (2, 3) or array.size == 0:
            raise InputError(f"{short_name(path)} has shape {array.shape}; expected (H, W) or (H, W, C)")
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 and page.planarconfig == 2 else array
        return array, len(page.extrasamples) > 0, False


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{short_name(path)} declares {width} × {height} pixels; at most {MAX_PIXELS} are read")


def short_name(path: Path) -> str:
    """Folder and file name, for messages: no reader needs the long path."""
    return f"{path.parent.name}/{path.name}"
