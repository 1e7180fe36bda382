"""Tests of pngfile.py: no changed byte of a PNG goes unseen, and each sound PNG passes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from tests.data_helpers import colour_picture, mask, picture
from PIL import Image

from checks import InputError
from imagesets.pngfile import ADAM7, START, Png, check_pixels, read_png, unpacked_size

Chunks = list[tuple[bytes, bytes]]


def saved(image: np.ndarray | Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, "PNG", **options)
    return stream.getvalue()


def joined(chunks: Chunks) -> bytes:
    """A PNG whose checksums are right, whatever is in it."""
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return START + b"".join(packed)


def header(width: int, height: int, depth: int = 8, colour: int = 0, *rest: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, *(rest or (0, 0, 0)))


def pixels(rows: bytes) -> tuple[bytes, bytes]:
    return b"IDAT", zlib.compress(rows)


END = (b"IEND", b"")
GOOD = [header(2, 2), pixels(bytes(6)), END]


def refused(content: bytes) -> str:
    with pytest.raises(InputError) as caught:
        check_pixels(read_png(content, "images/a.png"), "images/a.png")
    message = str(caught.value)
    assert message.startswith("images/a.png cannot be read as an image (")
    return message


@pytest.mark.parametrize(
    "image",
    [
        picture(),
        colour_picture(),
        picture().astype(np.uint16) * 257,
        mask().astype(bool),
        Image.fromarray(mask()).convert("P"),
        Image.fromarray(picture(0, 300, 400)),
        Image.fromarray(np.dstack([picture()] * 4)),
        Image.fromarray(picture()).convert("LA"),
    ],
    ids=["grey", "colour", "deep", "bits", "palette", "long", "alpha", "grey alpha"],
)
def test_sound_files_pass(image):
    png = read_png(saved(image), "a.png")
    check_pixels(png, "a.png")
    size = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    assert (png.width, png.height) == size


def test_fault_03_each_changed_byte_of_a_mask_is_seen():
    content = saved(mask())
    for place in range(8, len(content)):
        for bit in (0, 3, 7):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            refused(bytes(changed))


def test_fault_03_a_mask_cut_at_any_place_is_refused():
    content = saved(mask())
    for end in range(8, len(content)):
        assert "its end is missing" in refused(content[:end])


def test_what_comes_after_the_end_does_not_count():
    read_png(saved(mask()) + b"more", "a.png")


# --- files with right checksums ---


@pytest.mark.parametrize("rows", [bytes(5), bytes(7), b"", bytes(100)])
def test_fault_03_too_few_or_too_many_pixels(rows):
    assert "fewer or more pixels than its header says" in refused(joined([GOOD[0], pixels(rows), END]))


@pytest.mark.parametrize("cut", [1, 4])  # of the checksum behind the pixels
def test_fault_03_a_stream_that_stops_after_the_last_pixel(cut):
    kind, packed = pixels(bytes(6))
    assert "fewer or more pixels" in refused(joined([GOOD[0], (kind, packed[:-cut]), END]))


def test_fault_03_a_wrong_sum_behind_the_pixels():
    kind, packed = pixels(bytes(6))
    assert "its pixels cannot be unpacked" in refused(joined([GOOD[0], (kind, packed[:-1] + b"\xff"), END]))


@pytest.mark.parametrize(
    "chunks",
    [
        [GOOD[1], GOOD[0], END],
        [GOOD[0], END],
        [GOOD[0], *GOOD],
        [GOOD[0], GOOD[1], (b"PLTE", bytes(3)), END],
        [GOOD[0], (b"PLTE", bytes(3)), (b"PLTE", bytes(3)), GOOD[1], END],
        [GOOD[0], GOOD[1], (b"tEXt", b"a"), GOOD[1], END],
        [GOOD[0], (b"ABCD", b"needed, and unknown"), GOOD[1], END],
        [(b"IHDR", bytes(12)), GOOD[1], END],
    ],
    ids=["header late", "no pixels", "two headers", "palette late", "two palettes", "gap", "unknown", "short header"],
)
def test_pieces_that_are_not_in_order(chunks):
    assert "its pieces are not in order" in refused(joined(chunks))


def test_pieces_that_may_be_left_out_may_stand_anywhere():
    note = (b"tEXt", b"Comment\0x")
    check_pixels(read_png(joined([GOOD[0], note, note, GOOD[1], note, END]), "a.png"), "a.png")


@pytest.mark.parametrize(
    "first",
    [header(2, 2, 8, 0, 1, 0, 0), header(2, 2, 8, 0, 0, 1, 0), header(2, 2, 8, 0, 0, 0, 2), header(2, 2, 8, 5)],
    ids=["packing", "filter", "interlace", "colour"],
)
def test_a_header_that_no_standard_knows(first):
    assert "its header is not that of a PNG" in refused(joined([first, *GOOD[1:]]))


@pytest.mark.parametrize("palette", [[], [(b"PLTE", b"")], [(b"PLTE", bytes(4))]], ids=["none", "empty", "odd"])
def test_a_palette_that_is_none(palette):
    assert "its header is not that of a PNG" in refused(joined([header(2, 2, 8, 3), *palette, *GOOD[1:]]))


def test_number_of_colours_in_the_palette():
    assert read_png(joined([header(2, 2, 8, 3), (b"PLTE", bytes(9)), *GOOD[1:]]), "a.png").num_colours == 3


def test_bytes_of_interlaced_pixels():
    # 3 × 3 grey values in seven passes: rows × (filter + columns) are 1·2, 0, 0, 1·2, 1·3, 2·2, 1·4 = 15
    assert len(ADAM7) == 7
    assert Png(3, 3, 8, 0, 0, 0, 1, 0, b"").num_bytes == 15
    assert Png(3, 3, 8, 0, 0, 0, 0, 0, b"").num_bytes == 12
    assert Png(9, 2, 1, 0, 0, 0, 0, 0, b"").num_bytes == 6  # nine bits take two bytes
    assert Png(1, 1, 8, 0, 0, 0, 1, 0, b"").num_bytes == 2  # only the first pass has a pixel


def test_fault_14_a_bomb_is_not_unpacked_further_than_the_pixels_go():
    bomb = zlib.compress(bytes(2**26))
    assert unpacked_size(bomb, 100)[0] <= 100 + 2**20
    assert "fewer or more pixels" in refused(joined([GOOD[0], (b"IDAT", bomb), END]))
