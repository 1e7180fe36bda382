"""Tests of imagefile.py: every kind of file that comes along is read as it is stored, or refused with its name."""

from __future__ import annotations

import logging
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tests.data_helpers import colour_picture, mask, picture, refused, save
from PIL import Image, ImageOps

from imagesets.files import list_values, read_image, read_label


@pytest.fixture
def png(tmp_path: Path) -> Path:
    return tmp_path / "images" / "b.png"


@pytest.fixture
def tif(tmp_path: Path) -> Path:
    return tmp_path / "images" / "b.tif"


def change_header(path: Path, place: slice, value: bytes) -> None:
    """Change some bytes of a PNG header and make its check sum right again."""
    raw = bytearray(path.read_bytes())
    raw[place] = value
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    path.write_bytes(raw)


# --- files that are no sound images ---


def test_fault_02_file_of_zero_bytes(png):
    save(png, picture()).write_bytes(b"")
    assert "images/b.png is empty (0 bytes)" in refused(read_image, png)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_fault_03_truncated_file(tmp_path, suffix, share):
    path = save(tmp_path / f"d{suffix}", picture(3, 60, 80))
    assert read_image(path).shape == (60, 80)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert f"/d{suffix} cannot be read as an image" in refused(read_image, path)


@pytest.mark.parametrize("text", [b"<!DOCTYPE html><html>Sign in</html>", b" <html>", b'{"error": 404}'])
@pytest.mark.parametrize("name", ["b.png", "b.tif"])
def test_fault_04_web_page_saved_as_an_image(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    message = refused(read_image, tmp_path / name)
    assert f"{name} cannot be read" in message
    assert "a saved web page?" in message


@pytest.mark.parametrize("side", [8193, 9500, 100_000])  # Pillow: in silence, with a warning, with an error
def test_fault_14_huge_png_is_refused_before_it_is_decoded(png, side):
    change_header(save(png, picture()), slice(16, 24), side.to_bytes(4, "big") * 2)
    assert f"images/b.png declares {side} × {side} pixels" in refused(read_image, png)


@pytest.mark.parametrize(("side", "text"), [(8193, "8193 × 8193"), (65535, "too large")])
def test_fault_14_huge_jpeg_is_refused_before_it_is_decoded(tmp_path, side, text):
    path = tmp_path / "a.jpg"
    Image.new("L", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"\xff\xc0") + 5  # height and width stand here in the header of the frame
    content[place : place + 4] = 2 * side.to_bytes(2, "big")
    path.write_bytes(content)
    assert text in refused(read_image, path)


def test_fault_14_huge_tiff_is_refused_before_it_is_decoded(tif):
    with tifffile.TiffFile(save(tif, picture()), mode="r+") as file:
        file.pages[0].tags["ImageWidth"].overwrite(100_000)
        file.pages[0].tags["ImageLength"].overwrite(100_000)
    assert "declares 100000 × 100000 pixels" in refused(read_image, tif)


@pytest.mark.parametrize("tag", ["StripByteCounts", "RowsPerStrip"])
def test_fault_03_tiff_whose_list_of_pieces_is_damaged_is_not_read_as_zeros(tif, tag, capfd):
    save(tif, picture(0, 64, 64), rowsperstrip=16)
    with tifffile.TiffFile(tif) as file:
        place = file.pages[0].tags[tag].offset + 2  # of the type of its numbers
    raw = bytearray(tif.read_bytes())
    raw[place : place + 2] = b"\xff\xff"  # there is no such type
    tif.write_bytes(raw)
    assert "images/b.tif is a damaged TIFF (" in refused(read_image, tif)
    assert capfd.readouterr() == ("", "")


def test_remarks_of_tifffile_that_do_not_touch_the_pixels_are_not_shown(tif, capfd):
    save(tif, picture(), resolution=(1, 1))
    with tifffile.TiffFile(tif) as file:
        place = file.pages[0].tags["ResolutionUnit"].offset + 2
    raw = bytearray(tif.read_bytes())
    raw[place : place + 2] = b"\xff\xff"
    tif.write_bytes(raw)
    assert np.array_equal(read_image(tif), picture())
    assert capfd.readouterr() == ("", "")


def test_tiff_without_a_single_pixel_is_refused(tif, monkeypatch):
    save(tif, picture())
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda page: np.zeros((0, 8, 4), np.uint8))
    assert "images/b.tif has shape (0, 8, 4); expected (H, W) or (H, W, C)" in refused(read_image, tif)


def test_fault_18_file_that_cannot_be_opened(png):
    assert "images/b.png cannot be read as an image (FileNotFoundError" in refused(read_image, png)


def test_fault_03_one_flipped_bit_in_the_pixels_of_a_mask_is_not_read_as_another_mask(png):
    """Pillow reads 23 of these 272 files, 12 of them as other masks: it looks at no checksum of the pixels."""
    save(png, Image.fromarray(mask()))
    raw = png.read_bytes()
    start = raw.index(b"IDAT") + 4
    for place in range(start, raw.index(b"IEND") - 8):
        for bit in range(8):
            changed = bytearray(raw)
            changed[place] ^= 1 << bit
            png.write_bytes(changed)
            assert "images/b.png cannot be read as an image (a checksum is wrong)" in refused(read_label, png)


def test_fault_03_png_with_fewer_pixels_than_its_header_says(png):
    change_header(save(png, picture()), slice(20, 24), (60).to_bytes(4, "big"))  # Pillow: 54 black rows
    assert "fewer or more pixels than its header says" in refused(read_image, png)


def test_fault_03_colour_that_is_not_in_the_palette(png):
    image = Image.fromarray(mask(1, classes=3)).convert("P")
    image.putdata(mask(1, classes=3).ravel().tolist())
    image.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    raw = save(png, image).read_bytes()
    start, end = raw.index(b"PLTE") - 4, raw.index(b"IDAT") - 4
    two = b"PLTE" + raw[start + 8 : start + 14]  # two colours for three numbers
    png.write_bytes(raw[:start] + (6).to_bytes(4, "big") + two + zlib.crc32(two).to_bytes(4, "big") + raw[end:])
    assert "a colour is not in its palette" in refused(read_image, png)
    assert np.array_equal(read_label(png), mask(1, classes=3))  # of a label only the numbers count


@pytest.mark.parametrize("count", [0, 1, 60_000])
def test_fault_03_tiff_without_some_of_its_pixels(tif, count):
    """tifffile takes zeros for a piece of no length, and what comes behind it for one that is too short."""
    save(tif, picture(0, 64, 64), rowsperstrip=16)
    with tifffile.TiffFile(tif, mode="r+") as file:
        place = file.pages[0].tags["StripByteCounts"]
        place.overwrite([1024, count, 1024, 1024])
    assert "images/b.tif cannot be read as an image (some of its pixels are missing)" in refused(read_image, tif)


def test_fault_03_tiff_with_more_pixels_than_it_says(tif):
    """tifffile reads the first ones: an image that was cut in its header."""
    save(tif, picture(0, 64, 64), tile=(16, 16))
    with tifffile.TiffFile(tif, mode="r+") as file:
        file.pages[0].tags["ImageLength"].overwrite(20)
    assert "images/b.tif cannot be read as an image (it holds more pixels than it says)" in refused(read_image, tif)


def test_fault_03_tiff_that_is_found_damaged_while_its_pixels_are_read(tif, monkeypatch):
    save(tif, picture())
    read = tifffile.TiffPage.asarray

    def complain(page):
        logging.getLogger("tifffile").warning("a piece is damaged, returning zeros")
        return read(page)

    monkeypatch.setattr(tifffile.TiffPage, "asarray", complain)
    assert "images/b.tif is a damaged TIFF (a piece is damaged" in refused(read_image, tif)


@pytest.mark.parametrize("tag", ["PlanarConfiguration", "PhotometricInterpretation"])
def test_fault_03_tiff_with_a_text_or_two_numbers_where_one_belongs(tif, tag):
    """tifffile guesses then, and takes the columns of a colour image for its channels."""
    save(tif, colour_picture(), photometric="rgb", planarconfig="contig")
    with tifffile.TiffFile(tif) as file:
        place = file.pages[0].tags[tag].offset
    raw = bytearray(tif.read_bytes())
    raw[place + 2 : place + 4] = (2).to_bytes(2, "little")  # a text
    tif.write_bytes(raw)
    assert f"images/b.tif is a damaged TIFF ({tag} is no number)" in refused(read_image, tif)


def test_fault_03_tiff_with_a_piece_that_lies_nowhere(tif):
    save(tif, picture(0, 64, 64), rowsperstrip=16, compression="zlib")
    with tifffile.TiffFile(tif, mode="r+") as file:
        offsets = file.pages[0].tags["StripOffsets"]
        offsets.overwrite([offsets.value[0], 0, *offsets.value[2:]])
    assert "some of its pixels are missing" in refused(read_image, tif)


def test_fault_03_tiff_with_an_absurd_length_of_a_piece_is_refused_before_it_is_read(tif, monkeypatch):
    save(tif, picture(0, 64, 64), bigtiff=True)
    with tifffile.TiffFile(tif, mode="r+") as file:
        file.pages[0].tags["StripByteCounts"].overwrite(2**60)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda page: pytest.fail("it was read"))
    assert "some of its pixels are missing" in refused(read_image, tif)


def test_fault_14_tiff_with_absurdly_many_channels(tif):
    save(tif, np.zeros((1000, 1000, 2), np.uint8), planarconfig="contig", photometric="minisblack")
    with tifffile.TiffFile(tif, mode="r+") as file:
        file.pages[0].tags["SamplesPerPixel"].overwrite(60_000)
    assert "pixels; at most" in refused(read_image, tif)


def test_fault_14_tiff_bomb_is_refused_before_it_is_unpacked(tif, monkeypatch):
    save(tif, picture(0, 64, 64), compression="zlib")
    bomb = zlib.compress(bytes(2**24))
    with tifffile.TiffFile(tif, mode="r+") as file:
        place = tif.stat().st_size
        file.pages[0].tags["StripOffsets"].overwrite(place)
        file.pages[0].tags["StripByteCounts"].overwrite(len(bomb))
    with tif.open("ab") as stream:
        stream.write(bomb)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda page: pytest.fail("it was unpacked"))
    assert "images/b.tif is too large: it unpacks to more than its size" in refused(read_image, tif)


def test_damage_inside_of_an_lzw_tiff_writes_nothing_on_the_screen(tif, capfd):
    tif.parent.mkdir()
    Image.fromarray(picture(0, 64, 64)).save(tif, compression="tiff_lzw")
    with tifffile.TiffFile(tif) as file:
        start = file.pages[0].dataoffsets[0]
    raw = bytearray(tif.read_bytes())
    raw[start + 20 : start + 60] = b"\xff" * 40
    tif.write_bytes(raw)
    assert "images/b.tif cannot be read as an image" in refused(read_image, tif)
    assert capfd.readouterr() == ("", "")


def test_a_tag_of_an_lzw_tiff_that_pillow_leaves_out_is_an_error(tif, monkeypatch):
    def warns(*_, **__):
        warnings.warn("Tag data larger than file. Skipping tag 279", UserWarning, stacklevel=1)

    tif.parent.mkdir()
    Image.fromarray(picture()).save(tif, compression="tiff_lzw")
    monkeypatch.setattr(ImageOps, "exif_transpose", warns)
    assert "images/b.tif cannot be read as an image (UserWarning" in refused(read_image, tif)


def test_broken_notes_of_a_camera_are_no_reason_to_refuse_or_to_warn(tmp_path):
    path = save(tmp_path / "a.jpg", picture(0, 32, 32))
    raw = path.read_bytes()
    notes = b"Exif\0\0II*\0\x08\0\0\0\x09\0" + b"\x0f\x01\x02\0\xff\xff\0\0\xff\xff\0\0" * 2
    path.write_bytes(raw[:2] + b"\xff\xe1" + (len(notes) + 2).to_bytes(2, "big") + notes + raw[2:])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_image(path).shape == (32, 32)
    assert not caught


def test_formats_that_start_other_programs_are_not_opened(png):
    png.parent.mkdir()
    Image.fromarray(colour_picture()).save(png, "EPS")
    assert "images/b.png cannot be read as an image (UnidentifiedImageError" in refused(read_image, png)


def test_a_tiff_is_read_as_one_under_any_name(tmp_path):
    path = save(tmp_path / "a.tif", picture().astype(np.uint16) * 257).rename(tmp_path / "a.png")
    assert np.array_equal(read_image(path), picture().astype(np.uint16) * 257)
    pages = np.stack([picture()] * 2)
    path = save(tmp_path / "b.tif", pages, photometric="minisblack").rename(tmp_path / "b.png")
    assert "b.png holds 2 pages" in refused(read_image, path)


# --- images ---


def test_fault_05_exif_rotated_photo_is_turned_upright(tmp_path):
    stored = np.zeros((16, 32), np.uint8)
    stored[:, :16] = 255  # the left half is bright
    exif = Image.Exif()
    exif[274] = 6  # "turn by 90 degrees clockwise to see it upright": the left side becomes the top
    image = read_image(save(tmp_path / "a.jpg", stored, exif=exif, quality=95))
    assert image.shape == (32, 16)
    assert np.array_equal(image > 128, np.arange(32)[:, None] * np.ones(16) < 16)


def test_fault_05_turned_tiff_is_refused(tif):
    save(tif, picture(), extratags=[(274, "H", 1, 6, True)])
    assert "TIFF orientation" in refused(read_image, tif)


@pytest.mark.parametrize("dtype, suffix", [("u1", "png"), ("u2", "png"), ("u2", "tif"), ("f4", "tif")])
def test_fault_11_bit_depths_are_read_as_they_are(tmp_path, dtype, suffix):
    stored = picture().astype(dtype) * (257 if dtype != "u1" else 1)
    image = read_image(save(tmp_path / f"a.{suffix}", stored))
    assert image.dtype == np.dtype(dtype)
    assert np.array_equal(image, stored)


def test_fault_11_deep_colour_png_is_refused_because_pillow_would_halve_it(png):
    change_header(save(png, colour_picture()), slice(24, 25), bytes([16]))
    assert "16-bit colour PNG" in refused(read_image, png)


def test_alpha_channel_of_an_image_is_dropped_only_if_opaque(png):
    opaque = np.dstack([colour_picture(), np.full((6, 8), 255, np.uint8)])
    assert np.array_equal(read_image(save(png, opaque)), opaque[..., :3])
    opaque[2, 2, 3] = 0
    assert "images/b.png has transparent pixels" in refused(read_image, save(png, opaque))


def test_opaque_alpha_beside_grey_leaves_a_grey_image(png):
    image = Image.fromarray(np.dstack([picture(), np.full((6, 8), 255, np.uint8)]))
    assert np.array_equal(read_image(save(png, image)), picture())


@pytest.mark.parametrize("mode, suffix", [("P", "png"), ("CMYK", "jpg")])
def test_palette_and_print_colours_become_red_green_blue(tmp_path, mode, suffix):
    even = np.full((6, 8, 3), (255, 102, 0), np.uint8)
    image = read_image(save(tmp_path / f"a.{suffix}", Image.fromarray(even).convert(mode)))
    assert image.shape == (6, 8, 3)
    assert np.abs(image.astype(int) - even).max() < 10  # JPEG rounds


def test_one_bit_image_is_scaled_and_one_bit_mask_is_not(png):
    save(png, Image.fromarray(mask().astype(bool)))
    assert np.array_equal(read_image(png), mask() * 255)
    assert np.array_equal(read_label(png), mask())
    assert read_label(png).dtype == np.uint8


@pytest.mark.parametrize("options", [{"compression": "zlib"}, {"planarconfig": "separate"}, {"byteorder": ">"}])
def test_tiff_flavours_are_read_alike(tif, options):
    colour = colour_picture().astype(np.uint16) * 200
    stored = np.moveaxis(colour, -1, 0) if "planarconfig" in options else colour
    image = read_image(save(tif, np.ascontiguousarray(stored), photometric="rgb", **options))
    assert np.array_equal(image, colour)
    assert image.dtype == np.dtype(np.uint16)  # in the byte order of this machine


def test_lzw_tiff_is_read_by_pillow_and_a_stack_is_refused(tif):
    tif.parent.mkdir()
    Image.fromarray(picture()).save(tif, compression="tiff_lzw")
    assert np.array_equal(read_image(tif), picture())
    save(tif, np.stack([picture()] * 2), photometric="minisblack")
    assert "images/b.tif holds 2 pages" in refused(read_image, tif)


# --- labels ---


@pytest.mark.parametrize("depth", [2, 4])
def test_fault_08_small_grey_mask_keeps_its_numbers(png, depth):
    """Pillow spreads the numbers of two or four bits over a byte: 1 becomes 85 or 17."""
    label = mask(1, 6, 8, classes=4)
    bits = (label[..., None] >> np.arange(depth)[::-1]) & 1
    rows = np.pad(np.packbits(bits.reshape(6, -1), axis=1), ((0, 0), (1, 0)))
    content = save(png, label).read_bytes()
    packed = zlib.compress(rows.tobytes())
    body = b"IDAT" + packed
    piece = len(packed).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    png.write_bytes(content[:33] + piece + content[-12:])
    change_header(png, slice(24, 25), bytes([depth]))
    assert np.array_equal(read_label(png), label)
    assert np.array_equal(read_image(png), label * (255 // (2**depth - 1)))


@pytest.mark.parametrize("form", ["webp", "tiff"])
def test_fault_06_other_ways_to_pack_that_invent_values(tmp_path, form):
    path = tmp_path / ("b.png" if form == "webp" else "b.tif")
    options = {"quality": 80} if form == "webp" else {"compression": "jpeg"}
    Image.fromarray(np.kron(mask(), np.full((8, 8), 255, np.uint8))).save(path, form, **options)
    assert "is a JPEG or WebP, which invents values" in refused(read_label, path)
    assert read_image(path).shape[:2] == (48, 64)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])  # the content decides, not the name
def test_fault_06_jpeg_mask_is_refused_with_its_values(tmp_path, suffix):
    path = save(tmp_path / "b.jpg", mask() * 255).rename(tmp_path / f"b{suffix}")
    message = refused(read_label, path)
    assert f"b{suffix} is a JPEG" in message
    assert "different values" in message


def test_fault_08_palette_mask_gives_its_indices(png):
    image = Image.fromarray(mask(1, classes=3)).convert("P")
    image.putdata(mask(1, classes=3).ravel().tolist())
    image.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    assert np.array_equal(read_label(save(png, image)), mask(1, classes=3))


def test_fault_09_colour_mask_needs_a_table(png):
    save(png, np.array([[255, 0, 0], [255, 0, 255]], np.uint8)[mask()])
    message = refused(read_label, png)
    assert "colour image" in message
    assert "(255, 0, 0), (255, 0, 255)" in message
    assert np.array_equal(read_label(png, {(255, 0, 0): 0, (255, 0, 255): 1}), mask())
    assert "pixels not in label_map: 1 value, (255, 0, 255)" in refused(read_label, png, {(255, 0, 0): 0})
    assert "does not fit" in refused(read_label, png, {0: 0, 255: 1})


def test_fault_09_grey_mask_stored_as_colour_is_its_grey_value(png):
    save(png, np.stack([mask()] * 3, axis=-1))
    assert np.array_equal(read_label(png), mask())
    assert np.array_equal(read_label(png, {0: 1, 1: 0}), 1 - mask())
    assert np.array_equal(read_label(png, {(0, 0, 0): 1, (1, 1, 1): 0}), 1 - mask())


def test_fault_10_alpha_channel_in_a_mask(png):
    assert "images/b.png has an alpha channel" in refused(read_label, save(png, np.stack([mask()] * 4, axis=-1)))


def test_fault_13_soft_edges_are_refused_with_the_count(png):
    label = mask()
    label[0, :3] = (3, 90, 200)
    message = refused(read_label, save(png, label), {0: 0, 1: 1})
    assert "b.png has 3 pixels not in label_map: 3 different values, 3, 90, 200" in message


def test_class_in_the_table_must_fit_into_a_byte(png):
    assert "label_map entry 1: 256 does not fit" in refused(read_label, save(png, mask()), {0: 0, 1: 256})


def test_fault_37_float_mask_is_refused(tif):
    message = refused(read_label, save(tif, mask().astype(np.float32)))
    assert "images/b.tif has dtype float32; a mask must hold integers" in message


def test_list_of_values_is_short():
    assert list_values(np.array([[7, 3], [3, 3]])) == "2 different values, 3, 7"
    assert list_values(np.arange(9)) == "9 different values, 0, 1, 2, 3, 4, 5, …"
