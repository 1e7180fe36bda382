"""Every kind of file is read as it is stored or refused; all problems come at once; no image is in two parts."""

import contextlib
import re
import struct
import zlib
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from imagecodecs import lzw_encode, packbits_encode, zlib_encode, zstd_encode
from PIL import Image

from checks import InputError
from imagesets import files
from imagesets.files import PARTS, parse_map, read_image, read_label, split_parts
from tests.data_helpers import colour_picture, mask, picture, refused, save


@pytest.fixture
def png(tmp_path: Path) -> Path:
    return tmp_path / "images" / "b.png"


@pytest.fixture
def tif(tmp_path: Path) -> Path:
    return tmp_path / "images" / "b.tif"


PACKINGS = {1: bytes, 5: lzw_encode, 8: zlib_encode, 32773: packbits_encode, 50000: zstd_encode}


def packed_rows(array: np.ndarray, bits: int) -> list[bytes]:
    """The numbers (H, W) or (H, W, C) of each row with that many bits each, first bit first."""
    digits = (array.reshape(len(array), -1, 1).astype(np.uint32) >> np.arange(bits)[::-1]) & 1
    return [np.packbits(row).tobytes() for row in digits.astype(np.uint8)]


def write_tiff(path: Path, array: np.ndarray, bits: int, colours: int, packing: int = 1, **tags: Any) -> Path:
    """A TIFF of one strip from its tags alone, by none of the libraries that read it."""
    H, W, C = np.atleast_3d(array).shape
    strip = PACKINGS[packing](b"".join(packed_rows(array, bits)))
    known: dict[int, Any] = {256: W, 257: H, 258: [bits] * C, 259: packing, 262: colours, 273: 8, 277: C, 278: H}
    known |= {279: len(strip), **{int(tag[1:]): value for tag, value in tags.items()}}
    entries, behind, place = b"", b"", 8 + len(strip) + 2 + 12 * len(known) + 4
    for tag, value in sorted(known.items()):
        numbers = struct.pack(f">{np.size(value)}{'I' if tag < 258 or tag in (273, 279) else 'H'}", *np.ravel(value))
        entries += struct.pack(">HHI", tag, 4 if tag < 258 or tag in (273, 279) else 3, np.size(value))
        entries += numbers.ljust(4, b"\0") if len(numbers) <= 4 else struct.pack(">I", place + len(behind))
        behind += numbers if len(numbers) > 4 else b""
    path.parent.mkdir(exist_ok=True)
    start = b"MM\0*" + struct.pack(">I", 8 + len(strip)) + strip + struct.pack(">H", len(known))
    path.write_bytes(start + entries + bytes(4) + behind)
    return path


def write_png(path: Path, array: np.ndarray, bits: int, colours: int, **chunks: bytes) -> Path:
    H, W = array.shape[:2]
    parts = {"IHDR": struct.pack(">IIBBBBB", W, H, bits, colours, 0, 0, 0), **chunks}
    parts |= {"IDAT": zlib.compress(b"".join(b"\0" + row for row in packed_rows(array, bits))), "IEND": b""}
    pieces = [(name.encode() + content) for name, content in parts.items()]
    path.parent.mkdir(exist_ok=True)
    sums = [struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in pieces]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(sums))
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_empty_and_truncated_files_are_refused(tmp_path, suffix):
    path = save(tmp_path / "images" / f"b{suffix}", picture(3, 60, 80))
    assert read_image(path).shape == (60, 80)
    whole = path.read_bytes()
    for share in (0, 0.1, 0.5, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert f"images/b{suffix} {'cannot be read as an image' if share else 'is empty'}" in refused(read_image, path)


def test_flipped_bits_never_give_another_mask(png):
    """Without `Image.verify` Pillow reads about one in fifteen of these files as another mask, without a word."""
    label = mask(0, 24, 32)
    whole, rng = save(png, Image.fromarray(label)).read_bytes(), np.random.default_rng(0)
    others = 0
    for _ in range(400):
        raw = bytearray(whole)
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        png.write_bytes(raw)
        with contextlib.suppress(InputError):
            others += not np.array_equal(read_label(png), label)
    assert others == 0


def test_formats_that_start_other_programs_are_not_opened(png):
    png.parent.mkdir()
    Image.fromarray(colour_picture()).save(png, "EPS")
    assert "images/b.png cannot be read as an image (UnidentifiedImageError" in refused(read_image, png)


def test_exif_rotated_photo_is_turned_upright(tmp_path):
    stored = np.zeros((16, 32), np.uint8)
    stored[:, :16] = 255  # the left half is bright
    exif = Image.Exif()
    exif[274] = 6  # "turn by 90 degrees clockwise to see it upright": the left side becomes the top
    image = read_image(save(tmp_path / "a.jpg", stored, exif=exif, quality=95))
    assert np.array_equal(image > 128, np.arange(32)[:, None] * np.ones(16) < 16)


def test_floats_are_read_as_they_are(tif):
    image = read_image(save(tif, picture() / np.float32(7)))
    assert image.dtype == np.float32 and np.array_equal(image, picture() / np.float32(7))


@pytest.mark.parametrize("image", [colour_picture(), picture()[..., None]])
def test_alpha_channel_of_an_image_is_dropped_only_if_it_is_opaque_everywhere(png, image):
    for alpha in (255, 0, 100, mask(), 255 * mask()):
        save(png, np.dstack([image, np.broadcast_to(alpha, (6, 8)).astype(np.uint8)]))
        if np.min(alpha) == 255:
            assert np.array_equal(read_image(png), image.squeeze())
        else:
            assert "images/b.png has transparent pixels" in refused(read_image, png)


def test_print_colours_become_red_green_blue(tmp_path):
    even = np.full((6, 8, 3), (255, 102, 0), np.uint8)
    image = read_image(save(tmp_path / "a.jpg", Image.fromarray(even).convert("CMYK")))
    assert image.shape == (6, 8, 3) and np.abs(image.astype(int) - even).max() < 10  # JPEG rounds


WHITE, BLACK, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
TIFFS = [(bits, colours, 1) for bits in (1, 2, 4, 8, 16) for colours in (WHITE, BLACK, PALETTE)]
MANY = ((BLACK, 2), (BLACK, 5), (RGB, 3), (RGB, 4), (CMYK, 4))  # photometric interpretation and channels
TIFFS += [(bits, colours, channels) for bits in (8, 16) for colours, channels in MANY]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("bits, colours, channels", TIFFS)
def test_a_tiff_is_as_image_what_it_shows_and_as_label_what_is_stored(tif, bits, colours, channels, packing):
    largest = 2**bits - 1
    n = np.random.default_rng(bits).integers(0, largest + 1, (7, 9, channels)).squeeze()
    table = np.random.default_rng(0).integers(0, 2**16, (3, largest + 1))
    tags = {"_320": table} if colours == PALETTE else {}
    tags |= {"_338": [0] * (channels - {RGB: 3, CMYK: 4}.get(colours, 1))} if colours in (BLACK, RGB) else {}
    write_tiff(tif, n, bits, colours, packing, **tags)
    spread = n * (255 // largest) if bits < 8 else n
    shown = {WHITE: max(255, largest) - spread, BLACK: spread, RGB: n}.get(colours)
    if colours == PALETTE:
        shown = np.moveaxis(table, 0, -1)[n] // 256
    elif colours == CMYK:
        shown = np.round((largest - n[..., :3]) * (largest - n[..., 3:]) / largest)
    image, is_deep = read_image(tif), bits == 16 and colours != PALETTE
    assert np.array_equal(image, shown) and image.dtype == (np.uint16 if is_deep else np.uint8)
    if channels == 1:
        assert np.array_equal(read_label(tif), n)
    else:
        assert "is a colour image" in refused(read_label, tif)


def test_only_what_a_tiff_calls_alpha_is_alpha(tif):
    five = np.dstack([colour_picture(), np.full((6, 8), 255, np.uint8), picture()])  # the fourth could be alpha
    for kind in (1, 2):
        assert np.array_equal(read_image(write_tiff(tif, five, 8, 2, _338=[kind, 0])), five[..., [0, 1, 2, 4]])
        assert "has an alpha channel" in refused(read_label, tif)
        assert "has transparent pixels" in refused(read_image, write_tiff(tif, five, 8, 2, _338=[0, kind]))
    assert np.array_equal(read_image(write_tiff(tif, five, 8, 2, _338=[0, 0])), five)


PNGS = [(bits, 0) for bits in (1, 2, 4, 8, 16)] + [(bits, 3) for bits in (1, 2, 4, 8)] + [(8, 2), (16, 2)]


@pytest.mark.parametrize("bits, colours", PNGS)
def test_a_png_is_what_it_shows_and_a_transparent_entry_that_a_pixel_uses_is_a_hole(png, bits, colours):
    largest, channels = 2**bits - 1, 3 if colours == 2 else 1
    n = np.random.default_rng(bits).integers(0, largest + 1, (7, 9, channels)).squeeze()
    n[0, 0] = largest
    table = np.random.default_rng(0).integers(0, 256, (largest + 1, 3), np.uint8)
    chunks = {"PLTE": table.tobytes()} if colours == 3 else {}
    clear = bytes([255] * largest + [9]) if colours == 3 else struct.pack(f">{channels}H", *[largest] * channels)
    assert "has transparent pixels" in refused(read_image, write_png(png, n, bits, colours, **chunks, tRNS=clear))
    for numbers, marks in ((n, {}), (np.where(n == largest, 0, n), {"tRNS": clear})):
        image = read_image(write_png(png, numbers, bits, colours, **chunks, **marks))
        shown = table[numbers] if colours == 3 else numbers * (255 // largest) if bits < 8 else numbers
        assert np.array_equal(image, shown) and image.dtype == (np.uint16 if bits == 16 else np.uint8)
        assert colours == 2 or np.array_equal(read_label(png), numbers)


@pytest.mark.parametrize("channels, colours", [(2, 4), (4, 6)])
def test_deep_png_with_alpha_is_read_to_the_last_bit_where_it_is_opaque(png, channels, colours):
    n = np.random.default_rng(0).integers(0, 2**16, (7, 9, channels))
    assert "has transparent pixels" in refused(read_image, write_png(png, n, 16, colours))
    n[..., -1] = 65535
    assert np.array_equal(read_image(write_png(png, n, 16, colours)), n[..., :-1].squeeze())


def test_pictures_are_counted_and_not_pages(tmp_path, tif):
    stack = np.stack([picture(i) for i in range(4)])
    frames = [Image.fromarray(array) for array in stack]
    for options in ({"photometric": "minisblack"}, {"imagej": True, "truncate": True}, {"ome": True}):
        assert "b.tif holds 4 pictures" in refused(read_image, save(tif, stack, **options))
    for suffix in ("png", "gif", "webp"):
        path = save(tmp_path / f"b.{suffix}", frames[0].convert("RGB"), save_all=True, append_images=frames[1:])
        assert f"b.{suffix} holds 4 pictures" in refused(read_image, path)
    with tifffile.TiffWriter(tif) as writer:
        writer.write(stack[0])
        writer.write(stack[0, ::2, ::2], subfiletype=1)  # a small copy of the first
    assert np.array_equal(read_image(tif), stack[0])


@pytest.mark.parametrize("error", [MemoryError("is full"), ImportError("no zstd"), OSError(24, "Too many files")])
def test_what_is_no_damage_is_named_as_what_it_is(tif, monkeypatch, error):
    monkeypatch.setattr(files, "_stored", Mock(side_effect=error))
    message = refused(read_image, write_tiff(tif, picture(), 8, 1))
    assert str(error.args[-1]) in message and "may be sound" in message and "download" not in message


@pytest.mark.parametrize("form, suffix", [("webp", "png"), ("tiff", "tif"), ("jpeg", "jpg"), ("jpeg", "png")])
def test_packings_that_invent_values_are_refused_whatever_the_name(tmp_path, form, suffix):
    path = tmp_path / f"b.{suffix}"
    Image.fromarray(np.kron(mask(), np.full((8, 8), 255, np.uint8))).save(path, form, quality=80, compression="jpeg")
    assert f"b.{suffix} is a JPEG or WebP, which invents values" in refused(read_label, path)
    assert read_image(path).shape[:2] == (48, 64)


def test_colours_of_a_palette_may_name_the_classes(png, tif):
    table = [0, 0, 0, 200, 10, 10, 10, 200, 10]
    write_png(png, mask(1, classes=3), 8, 3, PLTE=bytes(table))
    turned = bytes(table[6:] + table[3:6] + table[:3])
    other = write_png(tif.with_suffix(".gif"), 2 - mask(1, classes=3), 8, 3, PLTE=turned)
    for path in (png, other):
        label = read_label(path, {(0, 0, 0): 0, (200, 10, 10): 1, "*": 2})
        assert np.array_equal(label, mask(1, classes=3)) and label.dtype == np.uint8
    assert np.array_equal(read_label(png, parse_map("0=0,*=1")), mask(1, classes=3) > 0)
    assert read_label(png, {0: 0, "*": 300}).max() == 300  # and not 44: it is named as no class later
    for text in ("0=0;255=1", "0", "a=1", "0=-1", "0=256", "1-=2", ""):
        with pytest.raises(ArgumentTypeError, match="is no list VALUE=CLASS"):
            parse_map(text)


def test_colour_mask_needs_a_table(png):
    save(png, np.array([[255, 0, 0], [255, 0, 255]], np.uint8)[mask()])
    assert "is a colour image: (255, 0, 0), (255, 0, 255)" in refused(read_label, png)
    assert np.array_equal(read_label(png, {(255, 0, 0): 0, (255, 0, 255): 1}), mask())
    assert "pixels not in label_map: (255, 0, 255)" in refused(read_label, png, {(255, 0, 0): 0})
    assert "has 48 pixels not in label_map" in refused(read_label, png, {0: 0, 255: 1})


def test_grey_mask_stored_as_colour_is_its_grey_value_without_alpha(png):
    assert "images/b.png has an alpha channel" in refused(read_label, save(png, np.stack([mask()] * 4, axis=-1)))
    save(png, np.stack([mask()] * 3, axis=-1))
    assert np.array_equal(read_label(png), mask())
    assert "b.png has 23 pixels not in label_map: 1" in refused(read_label, png, {0: 0})
    assert np.array_equal(read_label(png, {0: 1, 1: 0}), 1 - mask())
    assert np.array_equal(read_label(png, {(0, 0, 0): 1, (1, 1, 1): 0}), 1 - mask())


@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=40), st.integers(0, 99), st.randoms())
@settings(max_examples=60)
def test_split_is_disjoint_by_content_and_does_not_depend_on_the_order(hashes, seed, random):
    if len(set(hashes)) < 3:
        assert "too few" in refused(split_parts, hashes, seed=seed)
        return
    chosen = dict(zip(hashes, split_parts(hashes, seed=seed)))
    assert set(chosen.values()) == set(PARTS)  # no part is empty
    shuffled = random.sample(hashes, len(hashes))
    assert split_parts(shuffled, seed=seed) == [chosen[value] for value in shuffled]


def test_split_leaves_given_parts_alone_and_divides_the_rest_among_the_others():
    hashes = ["0", *map(str, range(20))]
    parts = split_parts(hashes, {"train": 0.6, "val": 0.2, "test": 0.2}, given=[*[None], *["test"] * 4, *[None] * 16])
    assert parts[:5] == ["test"] * 5  # an open copy follows the image that was given
    assert [parts[5:].count(part) for part in PARTS] == [12, 4, 0]
    message = refused(split_parts, ["x", "y", "x"], given=["train", "val", "test"], names=["a", "b", "c"])
    assert "a (train) and c (test) are the same image" in message


@pytest.mark.parametrize("text", [b"<!DOCTYPE html><html>Sign in</html>", b" <html>", b'{"error": 404}'])
@pytest.mark.parametrize("name", ["b.png", "b.tif"])
def test_web_page_saved_as_an_image_is_named_as_one(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    assert re.search(f"{name} begins with b.*: a saved web page?", refused(read_image, tmp_path / name))


def test_a_fax_is_read_or_named(tif):
    tif.parent.mkdir()
    Image.fromarray(mask().astype(bool)).save(tif, compression="group4")
    if 4 in tifffile.TIFF.DECOMPRESSORS:
        assert np.array_equal(read_image(tif), mask() * 255)
    else:  # so for Python 3.10
        assert "has packing CCITT" in refused(read_image, tif)


def test_tiffs_that_would_have_to_be_guessed_are_refused(tif):
    assert "has the colours CIELAB" in refused(read_image, save(tif, colour_picture(), photometric="cielab"))
    assert "TIFF orientation" in refused(read_image, save(tif, picture(), extratags=[(274, "H", 1, 6, True)]))
    unknown = write_tiff(tif, picture(), 8, 1, _259=34676)
    assert "has packing SGILOG, not read here" in refused(read_image, unknown)
