"""Every kind of file is read as it is stored or refused; all problems come at once; no image is in two parts."""

from __future__ import annotations

import contextlib
import pickle
import unicodedata
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from checks import InputError
from imagesets.files import (
    PARTS,
    BadFiles,
    Problem,
    find_pairs,
    raise_problems,
    read_each,
    read_folder,
    read_image,
    read_label,
    split_parts,
)
from tests.data_helpers import colour_picture, make_folder, mask, picture, refused, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "set")


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


def test_file_of_zero_bytes(png):
    save(png, picture()).write_bytes(b"")
    assert "images/b.png is empty (0 bytes)" in refused(read_image, png)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_file(tmp_path, suffix, share):
    path = save(tmp_path / f"d{suffix}", picture(3, 60, 80))
    assert read_image(path).shape == (60, 80)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert f"/d{suffix} cannot be read as an image" in refused(read_image, path)


@pytest.mark.parametrize("text", [b"<!DOCTYPE html><html>Sign in</html>", b" <html>", b'{"error": 404}'])
@pytest.mark.parametrize("name", ["b.png", "b.tif"])
def test_web_page_saved_as_an_image(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    message = refused(read_image, tmp_path / name)
    assert f"{name} cannot be read" in message
    assert "a saved web page?" in message


@pytest.mark.parametrize("side", [8193, 9500, 100_000])  # Pillow: in silence, with a warning, with an error
def test_huge_png_is_refused_before_it_is_decoded(png, side):
    change_header(save(png, picture()), slice(16, 24), side.to_bytes(4, "big") * 2)
    message = refused(read_image, png)
    assert f"images/b.png declares {side} × {side} pixels" in message or "images/b.png is too large" in message


@pytest.mark.parametrize(("side", "text"), [(8193, "8193 × 8193"), (65535, "too large")])
def test_huge_jpeg_is_refused_before_it_is_decoded(tmp_path, side, text):
    path = tmp_path / "a.jpg"
    Image.new("L", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"\xff\xc0") + 5  # height and width stand here in the header of the frame
    content[place : place + 4] = 2 * side.to_bytes(2, "big")
    path.write_bytes(content)
    assert text in refused(read_image, path)


def test_huge_tiff_is_refused_before_it_is_decoded(tif):
    with tifffile.TiffFile(save(tif, picture()), mode="r+") as file:
        file.pages[0].tags["ImageWidth"].overwrite(100_000)
        file.pages[0].tags["ImageLength"].overwrite(100_000)
    assert "declares 100000 × 100000 pixels" in refused(read_image, tif)


def test_remarks_of_tifffile_that_do_not_touch_the_pixels_are_not_shown(tif, capfd):
    save(tif, picture(), resolution=(1, 1))
    with tifffile.TiffFile(tif) as file:
        place = file.pages[0].tags["ResolutionUnit"].offset + 2
    raw = bytearray(tif.read_bytes())
    raw[place : place + 2] = b"\xff\xff"
    tif.write_bytes(raw)
    assert np.array_equal(read_image(tif), picture())
    assert capfd.readouterr() == ("", "")


def test_file_that_cannot_be_opened(png):
    assert "images/b.png cannot be read as an image (FileNotFoundError" in refused(read_image, png)


def test_flipped_bits_never_give_another_mask(png):
    """Without `Image.verify` Pillow reads about one in fifteen of these files as another mask, without a word."""
    label = mask(0, 24, 32)
    whole, rng = save(png, Image.fromarray(label)).read_bytes(), np.random.default_rng(0)
    others = 0
    for _ in range(2000):
        raw = bytearray(whole)
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        png.write_bytes(raw)
        with contextlib.suppress(InputError):
            others += not np.array_equal(read_label(png), label)
    assert others == 0


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


def test_exif_rotated_photo_is_turned_upright(tmp_path):
    stored = np.zeros((16, 32), np.uint8)
    stored[:, :16] = 255  # the left half is bright
    exif = Image.Exif()
    exif[274] = 6  # "turn by 90 degrees clockwise to see it upright": the left side becomes the top
    image = read_image(save(tmp_path / "a.jpg", stored, exif=exif, quality=95))
    assert image.shape == (32, 16)
    assert np.array_equal(image > 128, np.arange(32)[:, None] * np.ones(16) < 16)


def test_turned_tiff_is_refused(tif):
    save(tif, picture(), extratags=[(274, "H", 1, 6, True)])
    assert "TIFF orientation" in refused(read_image, tif)


@pytest.mark.parametrize("dtype, suffix", [("u1", "png"), ("u2", "png"), ("u2", "tif"), ("f4", "tif")])
def test_bit_depths_are_read_as_they_are(tmp_path, dtype, suffix):
    stored = picture().astype(dtype) * (257 if dtype != "u1" else 1)
    image = read_image(save(tmp_path / f"a.{suffix}", stored))
    assert image.dtype == np.dtype(dtype)
    assert np.array_equal(image, stored)


def test_deep_colour_png_is_refused_because_pillow_would_halve_it(png):
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


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_deflate", "group4"])
def test_packed_tiffs_of_other_programs_are_read(tif, compression):
    tif.parent.mkdir()
    stored = mask().astype(bool) if compression == "group4" else picture()
    Image.fromarray(stored).save(tif, compression=compression)
    assert np.array_equal(read_image(tif), stored * np.uint8(255) if stored.dtype == bool else stored)


def test_stack_of_pages_is_refused(tif):
    save(tif, np.stack([picture()] * 2), photometric="minisblack")
    assert "images/b.tif holds 2 pages" in refused(read_image, tif)


def test_tags_of_a_tiff_say_what_its_numbers_mean(tif):
    colours = np.arange(768, dtype=np.uint16).reshape(3, 256) * 85
    save(tif, picture(), photometric="palette", colormap=colours)
    assert np.array_equal(read_image(tif), np.moveaxis(colours[:, picture()] >> 8, 0, -1))  # as it looks
    assert np.array_equal(read_label(tif), picture())  # as it is stored
    save(tif, picture(), photometric="miniswhite")
    assert np.array_equal(read_image(tif), 255 - picture())
    assert np.array_equal(read_label(tif), picture())
    save(tif, np.dstack([picture(i) for i in range(5)]), photometric="minisblack", planarconfig="contig")
    assert read_image(tif).shape == (6, 8, 5)  # channels without a meaning are no alpha
    save(tif, np.dstack([colour_picture(), picture()]), photometric="rgb")
    assert "has transparent pixels" in refused(read_image, tif)
    Image.fromarray(colour_picture()).convert("CMYK").save(tif)
    assert "has the colours SEPARATED" in refused(read_image, tif)


# --- labels ---


@pytest.mark.parametrize("depth", [2, 4])
def test_small_grey_mask_keeps_its_numbers(png, depth):
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
def test_other_ways_to_pack_that_invent_values(tmp_path, form):
    path = tmp_path / ("b.png" if form == "webp" else "b.tif")
    options = {"quality": 80} if form == "webp" else {"compression": "jpeg"}
    Image.fromarray(np.kron(mask(), np.full((8, 8), 255, np.uint8))).save(path, form, **options)
    assert "is a JPEG or WebP, which invents values" in refused(read_label, path)
    assert read_image(path).shape[:2] == (48, 64)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])  # the content decides, not the name
def test_jpeg_mask_is_refused_with_its_values(tmp_path, suffix):
    path = save(tmp_path / "b.jpg", mask() * 255).rename(tmp_path / f"b{suffix}")
    message = refused(read_label, path)
    assert f"b{suffix} is a JPEG" in message
    assert "different values" in message


def test_palette_mask_gives_its_indices(png):
    image = Image.fromarray(mask(1, classes=3)).convert("P")
    image.putdata(mask(1, classes=3).ravel().tolist())
    image.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    assert np.array_equal(read_label(save(png, image)), mask(1, classes=3))


def test_colour_mask_needs_a_table(png):
    save(png, np.array([[255, 0, 0], [255, 0, 255]], np.uint8)[mask()])
    message = refused(read_label, png)
    assert "colour image" in message
    assert "(255, 0, 0), (255, 0, 255)" in message
    assert np.array_equal(read_label(png, {(255, 0, 0): 0, (255, 0, 255): 1}), mask())
    assert "pixels not in label_map: 1 value, (255, 0, 255)" in refused(read_label, png, {(255, 0, 0): 0})
    assert "does not fit" in refused(read_label, png, {0: 0, 255: 1})


def test_grey_mask_stored_as_colour_is_its_grey_value(png):
    save(png, np.stack([mask()] * 3, axis=-1))
    assert np.array_equal(read_label(png), mask())
    assert np.array_equal(read_label(png, {0: 1, 1: 0}), 1 - mask())
    assert np.array_equal(read_label(png, {(0, 0, 0): 1, (1, 1, 1): 0}), 1 - mask())


def test_alpha_channel_in_a_mask(png):
    assert "images/b.png has an alpha channel" in refused(read_label, save(png, np.stack([mask()] * 4, axis=-1)))


def test_soft_edges_are_refused_with_the_count(png):
    label = mask()
    label[0, :3] = (3, 90, 200)
    message = refused(read_label, save(png, label), {0: 0, 1: 1})
    assert "b.png has 3 pixels not in label_map: 3 different values, 3, 90, 200" in message


def test_class_in_the_table_must_fit_into_a_byte(png):
    assert "does not fit the label_map entry 1: 256" in refused(read_label, save(png, mask()), {0: 0, 1: 256})


def test_float_mask_is_refused(tif):
    message = refused(read_label, save(tif, mask().astype(np.float32)))
    assert "images/b.tif has dtype float32; save a mask as integers" in message


# --- folders of images and masks ---


def test_pairs_and_samples_of_a_sound_folder(folder):
    assert [(i.name, m.name) for i, m in find_pairs(folder)] == [(f"{n}.png", f"{n}.png") for n in "abc"]
    samples = list(read_folder(folder))
    assert [sample.name for sample in samples] == ["a", "b", "c"]
    assert np.array_equal(samples[1].image, picture(1))
    assert np.array_equal(samples[1].label, mask(1))
    assert samples[0].part is None


def test_masks_folder_may_be_called_masks_but_not_both(tmp_path, folder):
    assert len(find_pairs(make_folder(tmp_path / "other", labels="masks"))) == 3
    make_folder(folder, labels="masks")
    assert "holds images, labels, masks; give a folder with images/" in refused(find_pairs, folder)
    assert "nowhere does not exist" in refused(find_pairs, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty holds nothing" in refused(find_pairs, tmp_path / "empty")


def test_problems_are_data_in_one_error_and_cut_at_twenty_in_its_text(folder):
    raise_problems("nowhere", [])  # nothing to say
    (folder / "images" / "a.png").write_bytes(b"")
    problem = Problem("images/a.png", "is empty (0 bytes)", "copy or download it again")
    assert [found for found in read_each(folder) if isinstance(found, Problem)] == [problem]
    with pytest.raises(BadFiles) as caught:
        find_pairs(folder)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):  # from another process, too
        assert error.problems == (problem,)
        assert str(error) == f"{folder}: images/a.png is empty (0 bytes); copy or download it again."
    message = refused(raise_problems, "folder", [Problem(f"{number}.png", "is bad") for number in range(30)])
    assert message.startswith("folder: 30 problems\n- 0.png is bad\n")
    assert message.endswith("- 19.png is bad\n- and 10 more")


@pytest.mark.parametrize("read", [find_pairs, read_folder])
def test_missing_partners_in_both_directions(folder, read):
    (folder / "labels" / "a.png").unlink()
    (folder / "images" / "c.png").unlink()
    message = refused(read, folder)
    assert "2 problems" in message
    assert "images/a.png has no label" in message
    assert "labels/c.png has no image" in message


def test_mask_of_0_and_255_is_never_guessed(tmp_path):
    for seed in range(3):
        save(tmp_path / "images" / f"{seed}.png", picture(seed))
        save(tmp_path / "labels" / f"{seed}.png", mask(seed) * 255)
    message = refused(read_folder, tmp_path)
    assert "label_map={0: 0, 255: 1}" in message
    assert "labels/0.png (as 2 more do) holds 255 but no class" in message
    first = next(read_folder(tmp_path, label_map={0: 0, 255: 1}))
    assert np.array_equal(first.label, mask(0))
    ignored = list(read_folder(tmp_path, label_map={0: 0, 255: 255}))  # said plainly, so it is accepted
    assert set(np.unique(ignored[0].label)) == {0, 255}


def test_ignored_pixels_beside_classes_are_accepted(folder):
    label = mask(1)
    label[:2] = [[255], [1]]
    save(folder / "labels" / "b.png", label)
    assert len(list(read_folder(folder))) == 3
    save(folder / "labels" / "c.png", label * (label == 255))  # only 0 and 255, but b shows what 255 means
    assert len(list(read_folder(folder))) == 3


def test_sizes_that_differ_are_named_both(folder):
    save(folder / "labels" / "b.png", mask(1, 6, 7))
    assert "images/b.png has size (6, 8), labels/b.png has (6, 7)" in refused(find_pairs, folder)


def test_names_that_occur_twice(folder):
    save(folder / "images" / "a.tif", picture(5))
    assert "images/a.tif and a.png have one name before the suffix" in refused(find_pairs, folder)


def test_composed_and_decomposed_accents_are_one_name(tmp_path):
    save(tmp_path / "images" / (unicodedata.normalize("NFC", "é") + ".png"), picture())
    save(tmp_path / "labels" / (unicodedata.normalize("NFD", "é") + ".png"), mask())
    assert len(list(read_folder(tmp_path))) == 1


def test_junk_is_skipped(folder):
    for name in (".DS_Store", "Thumbs.db", "._a.png", "desktop.ini"):
        (folder / "images" / name).write_bytes(b"junk")
    for name in (".ipynb_checkpoints", "__MACOSX", "old.png"):
        (folder / "labels" / name).mkdir()
    assert len(find_pairs(folder)) == 3


def test_files_that_are_no_images_are_named(folder):
    (folder / "images" / "notes.txt").write_text("my notes")
    assert "images/notes.txt is none of .png" in refused(find_pairs, folder)


def test_unreadable_folder(folder, monkeypatch):
    def forbidden(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert "images/ cannot be read (Permission denied)" in refused(find_pairs, folder)


def test_empty_folders(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    assert "images/ holds no image" in refused(find_pairs, tmp_path)


def test_all_problems_are_listed_at_once_and_good_samples_come_first(folder):
    (folder / "images" / "a.png").write_bytes(b"")
    save(folder / "labels" / "b.png", mask(1, 2, 2))
    save(folder / "images" / "lonely.png", picture(7))
    names = []
    messages = [refused(lambda: (names.append(s.name) for s in read_folder(folder))), refused(find_pairs, folder)]
    assert names == ["c"]
    for piece in ("3 problems", "a.png is empty", "b.png has size", "lonely.png has no label"):
        assert all(piece in message for message in messages)


def test_extra_maps_travel_along_and_must_be_complete(folder):
    for name in "abc":
        save(folder / "instances" / f"{name}.png", mask(0).astype(np.uint16) * 300)
    samples = list(read_folder(folder, extras=["instances"]))
    assert [sample.extras["instances"].max() for sample in samples] == [300, 300, 300]
    (folder / "instances" / "b.png").unlink()
    assert "images/b.png has no map in instances/" in refused(read_folder, folder, None, ["instances"])
    save(folder / "instances" / "b.png", mask(0, 3, 3))
    assert "instances has (3, 3)" in refused(read_folder, folder, None, ["instances"])


# --- parts ---


def test_split_counts_different_images_and_keeps_copies_together():
    hashes = [f"{number % 20:02d}" for number in range(60)]  # 20 different images, three copies of each
    parts = split_parts(hashes, seed=3)
    assert len(set(zip(hashes, parts))) == 20  # one part an image
    assert {part: parts.count(part) for part in PARTS} == {"train": 42, "val": 9, "test": 9}
    assert parts == split_parts(hashes, seed=3)
    assert parts != split_parts(hashes, seed=4)


@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=40), st.integers(0, 99), st.randoms())
@settings(max_examples=80)
def test_split_is_disjoint_by_content_and_does_not_depend_on_the_order(hashes, seed, random):
    if len(set(hashes)) < 3:
        assert "too few" in refused(split_parts, hashes, seed=seed)
        return
    chosen = dict(zip(hashes, split_parts(hashes, seed=seed)))
    assert set(chosen.values()) == set(PARTS)  # no part is empty
    shuffled = random.sample(hashes, len(hashes))
    assert split_parts(shuffled, seed=seed) == [chosen[value] for value in shuffled]


def test_split_leaves_given_parts_alone_and_divides_the_rest_among_the_others():
    hashes = [str(number) for number in range(20)]
    parts = split_parts(hashes, {"train": 0.6, "val": 0.2, "test": 0.2}, given=[*["test"] * 4, *[None] * 16])
    assert parts[:4] == ["test"] * 4
    assert [parts[4:].count(part) for part in PARTS] == [12, 4, 0]


def test_one_image_in_two_given_parts():
    message = refused(split_parts, ["x", "y", "x"], given=["train", "val", "test"], names=["a", "b", "c"])
    assert "a (train) and c (test) are the same image" in message
    message = refused(split_parts, ["x", "x"], given=["train", "val"])
    assert "sample 0 (train) and sample 1 (val)" in message


def test_open_copy_of_a_given_image_follows_it():
    parts = split_parts([*"xxabcdefg"], given=["test", *[None] * 8])
    assert parts[:2] == ["test", "test"]
    assert "test" not in parts[2:]
