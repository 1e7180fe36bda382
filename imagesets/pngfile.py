"""What Pillow does not look at in a PNG: the checksums of its pixels, and whether there are enough of them.

Each chunk of a PNG carries a CRC-32, and the packed pixels an Adler-32.  Pillow skips both for the pixels, takes a
stream that stops for a picture, and leaves the rest black.  So a mask with one flipped bit may be read as another mask,
without a word.

Source: W3C, Portable Network Graphics, third edition, https://www.w3.org/TR/png-3.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

from checks import InputError

START = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel: grey, colour, index into the palette, grey or colour with alpha
LETTERS = {b"IHDR": "H", b"PLTE": "P", b"IDAT": "D", b"IEND": "E"}
ORDER = re.compile("Ho*(?:Po*)?D+o*E")  # header, palette, pixels, end; o: what may be left out
WHOLE = ((0, 0, 1, 1),)
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class Png(NamedTuple):
    """The header, the number of colours in the palette, and the packed pixels."""

    width: int
    height: int
    depth: int
    colour: int
    packing: int
    filters: int
    interlace: int
    num_colours: int
    packed: bytes

    @property
    def num_bytes(self) -> int:
        """So many bytes the pixels have before they are packed: each row has one more, for its filter."""
        bits, total = SAMPLES[self.colour] * self.depth, 0
        for left, top, across, down in ADAM7 if self.interlace else WHOLE:
            columns, rows = -(-(self.width - left) // across), -(-(self.height - top) // down)
            total += max(rows, 0) * (1 + -(-columns * bits // 8)) if columns > 0 else 0
        return total


def read_png(content: bytes, name: str) -> Png:
    """Take a PNG apart and compare the checksum of each chunk; `name` is for the messages.

    Raises `InputError` if a byte was changed, the end is missing, or the chunks are not those of the standard.

    >>> read_png(START + bytes(12), "a.png")
    Traceback (most recent call last):
    checks.InputError: a.png cannot be read as an image (a checksum is wrong); copy or download it again
    """
    kinds, header, num_colours, place = "", b"", 0.0, len(START)
    packed: list[bytes] = []
    while not kinds.endswith("E"):
        kind, end = content[place + 4 : place + 8], place + 8 + int.from_bytes(content[place : place + 4], "big")
        if end + 4 > len(content):
            raise _refused(name, "its end is missing")
        data = content[place + 8 : end]
        if zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(content[end : end + 4], "big"):
            raise _refused(name, "a checksum is wrong")
        kinds += LETTERS.get(kind, "o" if kind[0] & 32 else "?")  # a small first letter: it may be left out
        header = data if kind == b"IHDR" else header
        num_colours = len(data) / 3 if kind == b"PLTE" else num_colours
        packed += [data] if kind == b"IDAT" else []
        place = end + 4
    if not ORDER.fullmatch(kinds) or len(header) != 13:
        raise _refused(name, "its pieces are not in order")
    found = Png._make((*struct.unpack(">IIBBBBB", header), int(num_colours), b"".join(packed)))
    is_known = found.colour in SAMPLES and found.packing == found.filters == 0 and found.interlace <= 1
    if not is_known or num_colours % 1 or (found.colour == 3 and num_colours == 0):
        raise _refused(name, "its header is not that of a PNG")
    return found


def check_pixels(png: Png, name: str) -> None:
    """Raise `InputError` unless a PNG holds as many bytes as its header asks for, and their checksum is right."""
    try:
        found, is_whole = unpacked_size(png.packed, png.num_bytes)
    except zlib.error as error:
        raise _refused(name, "its pixels cannot be unpacked") from error
    if found != png.num_bytes or not is_whole:
        raise _refused(name, "it has fewer or more pixels than its header says")


def unpacked_size(packed: bytes, limit: int) -> tuple[int, bool]:
    """How many bytes a deflate stream holds, and if it is whole with a right checksum.

    They are unpacked piece by piece and not kept, and no further than just above `limit`: some kilobytes may hold
    gigabytes.  Raises `zlib.error`.

    >>> unpacked_size(zlib.compress(bytes(1000)), 2000)
    (1000, True)
    """
    unpacker, found, rest = zlib.decompressobj(), 0, packed
    while not unpacker.eof and found <= limit and (block := unpacker.decompress(rest, 2**20)):
        found, rest = found + len(block), unpacker.unconsumed_tail
    return found, unpacker.eof


def _refused(name: str, reason: str) -> InputError:
    return InputError(f"{name} cannot be read as an image ({reason}); copy or download it again")
