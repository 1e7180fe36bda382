"""What a file says by its own standard, read a second time with nothing but zlib, struct and numpy.

The referees of `fuzz.py`: small, slow and strict.  Each takes the bytes of a file and returns what is stored in them,
raises `Unsound` if a rule of the format is broken that the content depends on, and `Unknown` for what it cannot read.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import struct
import warnings
import zlib
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import nbformat
import numpy as np


class Unsound(Exception):
    """The file breaks a rule that its content depends on."""


class Unknown(Exception):
    """A flavour that this referee does not read."""


def must(condition: object, rule: str) -> None:
    if not condition:
        raise Unsound(rule)


# --- PNG: https://www.w3.org/TR/png-3 ---

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type → samples of a pixel
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7


class Png(NamedTuple):
    """The samples (H, W, C) as stored, and how they are meant."""

    samples: np.ndarray
    depth: int
    colour: int
    palette: np.ndarray


def png(content: bytes) -> Png:
    chunks = _png_chunks(content)
    must(chunks and chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13, "the header comes first")
    width, height, depth, colour, packing, filtering, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
    must(width and height and depth in DEPTHS.get(colour, ()), "sizes and depth")
    must(packing == filtering == 0 and interlace in (0, 1), "methods")
    if width * height > 2**26:
        raise Unknown("too large")
    kinds = [kind for kind, _ in chunks]
    must(kinds.count(b"IHDR") == 1 and kinds.count(b"PLTE") <= 1, "a chunk comes twice")
    data = [index for index, kind in enumerate(kinds) if kind == b"IDAT"]
    must(data and data[-1] - data[0] == len(data) - 1, "all pixels in one row of chunks")
    palette = np.frombuffer(b"".join(d for k, d in chunks if k == b"PLTE"), np.uint8)
    must(palette.size % 3 == 0 and (colour != 3 or palette.size), "a palette of colours")
    unpacker = zlib.decompressobj()
    bits = CHANNELS[colour] * depth
    grids = PASSES if interlace else ((0, 0, 1, 1),)
    sizes = [(-(-(height - y) // dy), -(-(width - x) // dx)) for x, y, dx, dy in grids]
    lengths = [rows * (1 + -(-columns * bits // 8)) if columns > 0 else 0 for rows, columns in sizes]
    try:
        raw = unpacker.decompress(b"".join(d for k, d in chunks if k == b"IDAT"), sum(lengths) + 1)
    except zlib.error as error:
        raise Unsound(str(error)) from error
    must(len(raw) == sum(lengths) and unpacker.eof, "as many bytes as pixels, and a right sum")
    samples = np.zeros((height, width, CHANNELS[colour]), np.uint16 if depth == 16 else np.uint8)
    for (x, y, dx, dy), (rows, columns), length in zip(grids, sizes, lengths):
        if rows > 0 and columns > 0:
            piece, raw = raw[:length], raw[length:]
            samples[y::dy, x::dx] = _png_rows(piece, rows, columns, depth, CHANNELS[colour])
    return Png(samples, depth, colour, palette.reshape(-1, 3))


def _png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    must(content.startswith(b"\x89PNG\r\n\x1a\n"), "signature")
    found, place = [], 8
    while not found or found[-1][0] != b"IEND":
        must(place + 12 <= len(content), "the end is missing")
        size = int.from_bytes(content[place : place + 4], "big")
        body, crc = content[place + 4 : place + 8 + size], content[place + 8 + size : place + 12 + size]
        is_right = len(crc) == 4 and zlib.crc32(body) == int.from_bytes(crc, "big")
        must(is_right or (len(crc) == 4 and body[0] & 0x20), "checksum")  # small first letter: nothing depends on it
        must(body[0] & 0x20 or body[:4] in (b"IHDR", b"PLTE", b"IDAT", b"IEND"), "a needed chunk is unknown")
        found.append((body[:4], body[4:]))
        place += 12 + size
    return found


def _png_rows(raw: bytes, rows: int, columns: int, depth: int, channels: int) -> np.ndarray:
    """Undo the filters of one pass: (rows, columns, channels)."""
    stride, step = -(-columns * channels * depth // 8), max(1, channels * depth // 8)
    lines = np.frombuffer(raw, np.uint8).reshape(rows, 1 + stride)
    must(lines[:, 0].max() <= 4, "filter")
    result = np.zeros((rows + 1, step + stride), np.uint8)  # a row and a pixel of zeros before the first
    for row, line in enumerate(lines.tolist(), start=1):
        kind, before, now = line[0], result[row - 1].tolist(), [0] * step
        for place, value in enumerate(line[1:]):
            left, up, corner = now[place], before[place + step], before[place]
            guess = (0, left, up, (left + up) // 2, _paeth(left, up, corner))[kind]
            now.append((value + guess) % 256)
        result[row] = now
    packed = np.ascontiguousarray(result[1:, step:])
    if depth == 16:
        return packed.view(">u2").reshape(rows, columns, channels)
    if depth == 8:
        return packed.reshape(rows, columns, channels)
    bits = np.unpackbits(packed, axis=1)[:, : columns * depth].reshape(rows, columns, depth)
    return (bits @ (1 << np.arange(depth)[::-1])).astype(np.uint8)[..., None]


def _paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    return min((left, up, corner), key=lambda value: abs(guess - value))


# --- JPEG: the sizes in the frame header; there is no checksum to compare with ---


def jpeg_size(content: bytes) -> tuple[int, int]:
    """Height and width of the first frame."""
    must(content[:2] == b"\xff\xd8", "signature")
    place = 2
    while place + 9 <= len(content):
        if content[place] != 0xFF:  # a reader may skip what is no marker
            place += 1
        elif (mark := content[place + 1]) in (0x00, 0x01, 0xFF) or 0xD0 <= mark <= 0xD8:
            place += 1 if mark == 0xFF else 2
        elif 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, place + 5)
            return height, width
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    raise Unsound("no frame header")


# --- TIFF 6.0 and BigTIFF ---

TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
KINDS = {1: "u", 2: "i", 3: "f"}


def tiff(content: bytes) -> np.ndarray:
    """The samples (H, W) or (H, W, C) of the first image."""
    tags = _tiff_tags(content)
    order = "<" if content[:2] == b"II" else ">"
    must({256, 257} <= tags.keys(), "sizes")
    width, height, channels = (tags.get(tag, [1])[0] for tag in (256, 257, 277))
    must(width > 0 and height > 0 and channels > 0, "sizes")
    if width * height > 2**26 or channels > 64:
        raise Unknown("too large")
    bits, kind = set(tags.get(258, [1])), set(tags.get(339, [1]))
    packing, predictor, planar = (tags.get(tag, [1])[0] for tag in (259, 317, 284))
    is_known = len(bits) == len(kind) == 1 and bits < {8, 16, 32, 64} and kind <= KINDS.keys()
    if not is_known or packing not in (1, 8, 32946) or predictor not in (1, 2) or tags.get(266, [1])[0] != 1:
        raise Unknown("flavour")
    try:
        dtype = np.dtype(f"{order}{KINDS[kind.pop()]}{bits.pop() // 8}")
    except TypeError as error:
        raise Unknown("dtype") from error
    planes, depth = (channels, 1) if planar == 2 else (1, channels)
    is_tiled = 322 in tags
    rows, columns = (tags[323][0], tags[322][0]) if is_tiled else (min(tags.get(278, [height])[0], height), width)
    must(rows > 0 and columns > 0 and planar in (1, 2), "pieces")
    across, down = math.ceil(width / columns), math.ceil(height / rows)
    offsets, counts = tags.get(324 if is_tiled else 273, []), tags.get(325 if is_tiled else 279, [])
    must(len(offsets) == len(counts) == across * down * planes, "one place for each piece")
    if rows * columns * depth > 2**28:
        raise Unknown("too large")
    result = np.zeros((planes, down * rows, across * columns, depth), dtype)
    for index, (offset, count) in enumerate(zip(offsets, counts)):
        plane, place = divmod(index, across * down)
        top, left = place // across * rows, place % across * columns
        high = rows if is_tiled else min(rows, height - top)
        size = high * columns * depth * dtype.itemsize
        if packing == 1 and len(offsets) == 1 and count == 0:  # some programs leave this field empty
            count = size
        piece = _tiff_piece(content, offset, count, packing, size)
        values = np.frombuffer(piece, dtype).reshape(high, columns, depth)
        if predictor == 2:
            values = np.cumsum(values, axis=1, dtype=dtype.newbyteorder("="))
        result[plane, top : top + high, left : left + columns] = values
    whole = result[:, :height, :width]
    image = np.moveaxis(whole[..., 0], 0, -1) if planar == 2 else whole[0]
    return image[..., 0] if channels == 1 else image


def _tiff_tags(content: bytes) -> dict[int, list[int]]:
    """The values of the first directory, the first of each tag."""
    must(content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "signature")
    order, is_big = "<" if content[:2] == b"II" else ">", 43 in content[2:4]
    number, word, inline = ("Q", "Q", 8) if is_big else ("H", "I", 4)
    tags = {}
    try:
        if is_big:
            must(struct.unpack_from(f"{order}HH", content, 4) == (8, 0), "wide offsets")
        (place,) = struct.unpack_from(f"{order}{word}", content, 8 if is_big else 4)
        (entries,) = struct.unpack_from(f"{order}{number}", content, place)
        place += struct.calcsize(number)
        must(entries < 10_000, "number of tags")
        for _ in range(entries):
            tag, kind, count = struct.unpack_from(f"{order}HH{word}", content, place)
            place += 4 + inline
            if kind in TYPES and count <= len(content):
                form = f"{order}{count}{TYPES[kind]}"
                at = (
                    place
                    if struct.calcsize(form) <= inline
                    else struct.unpack_from(f"{order}{word}", content, place)[0]
                )
                if at + struct.calcsize(form) <= len(content):
                    tags.setdefault(tag, list(struct.unpack_from(form, content, at)))
            place += inline
    except struct.error as error:
        raise Unsound("a directory beyond the end") from error
    return {tag: values for tag, values in tags.items() if values}


def _tiff_piece(content: bytes, offset: int, count: int, packing: int, size: int) -> bytes:
    piece = content[offset : offset + count]
    must(offset >= 0 and len(piece) == count, "a piece beyond the end")
    if packing != 1:
        try:
            piece = zlib.decompressobj().decompress(piece, size + 1)
        except zlib.error as error:
            raise Unsound(str(error)) from error
    must(len(piece) >= size, "a piece that is too short")
    return piece[:size]


# --- archives: {name: content} of all files ---


def zip_files(content: bytes) -> dict[str, bytes]:
    end = content.rfind(b"PK\5\6")
    must(end >= 0 and end + 22 <= len(content), "no list of contents")
    number, size, start = struct.unpack_from("<HII", content, end + 10)
    shift = end - size - start  # bytes before the archive
    place, found = start + shift, {}
    must(shift >= 0, "a list that begins before the file")
    try:
        while place < end:
            must(content[place : place + 4] == b"PK\1\2", "a list that is broken")
            flags, method, _, crc, packed, plain, name, extra, remark = struct.unpack_from(
                "<HHIIIIHHH", content, place + 8
            )
            (at,) = struct.unpack_from("<I", content, place + 42)
            label = content[place + 46 : place + 46 + name].decode("utf-8" if flags & 0x800 else "cp437")
            place += 46 + name + extra + remark
            at += shift
            must(content[at : at + 4] == b"PK\3\4" and not flags & 1 and method in (0, 8), "an entry")
            skip = sum(struct.unpack_from("<HH", content, at + 26))
            data = content[at + 30 + skip : at + 30 + skip + packed]
            data = zlib.decompressobj(-15).decompress(data, plain + 1) if method == 8 else data
            must(len(data) == plain and zlib.crc32(data) == crc, "checksum")
            if not label.endswith("/"):
                found[plain_name(label)] = data
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise Unsound(str(error)) from error
    return found


def tar_files(content: bytes) -> dict[str, bytes]:
    """Plain files and folders only; the long names of GNU and POSIX are `Unknown`."""
    try:
        tar = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise Unsound(str(error)) from error
    found, place = {}, 0
    while tar[place : place + 512].strip(b"\0"):
        block = tar[place : place + 512]
        must(len(block) == 512, "half a header")
        summed = sum(block[:148] + b" " * 8 + block[156:])
        must(_octal(block[148:156]) == summed, "checksum")
        if block[156:157] not in (b"0", b"\0", b"5", b"7"):
            raise Unknown("kind of entry")
        prefix = block[345:500].split(b"\0")[0] if block[257:262] == b"ustar" else b""
        name = b"/".join(filter(None, (prefix, block[:100].split(b"\0")[0]))).decode("utf-8", "surrogateescape")
        size = _octal(block[124:136]) if block[156:157] != b"5" else 0
        must(size >= 0 and place + 512 + size <= len(tar), "an entry beyond the end")
        if block[156:157] != b"5" and not (block[156:157] == b"\0" and name.endswith("/")):
            found[plain_name(name)] = tar[place + 512 : place + 512 + size]
        place += 512 + -(-size // 512) * 512
    return found


def _octal(field: bytes) -> int:
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big", signed=field[0] == 0xFF)
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError as error:
        raise Unsound("a number") from error


def plain_name(name: str) -> str:
    """The name as it stands on a disk: up to the first zero byte, without empty parts."""
    return str(PurePosixPath(name.split("\0")[0]))


# --- notebooks ---


def notebook_flaw(content: bytes) -> str:
    """Why nobody should hand this in, in one of the ways that can be counted; empty if there is none of these."""
    logging.getLogger("traitlets").disabled = True  # it opens what is not quite valid, and says so
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cells: list[Any] = nbformat.reads(content.decode("utf-8"), as_version=4).cells
        json.loads(content, parse_constant=float.fromhex)  # a browser knows no NaN
    except Exception as error:  # whatever the reader of Jupyter raises: it cannot be opened there
        return f"Jupyter cannot read it: {type(error).__name__} {str(error)[:80]}"
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    if [cell.get("execution_count") for cell in code] != list(range(1, len(code) + 1)):
        return "the cells were not run in their order"
    outputs = [output for cell in code for output in cell.get("outputs", [])]
    if any(output["output_type"] == "error" for output in outputs):
        return "an error is shown"
    return "" if any("image/png" in output.get("data", {}) for output in outputs) else "no image"
