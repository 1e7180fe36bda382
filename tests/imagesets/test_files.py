"""Every kind of file is read as it is stored or refused; all problems come at once; no image is in two parts."""

from __future__ import annotations

import contextlib
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from checks import InputError
from imagesets.files import PARTS, BadFiles, Problem, raise_problems, read_folder, read_image, read_label, split_parts
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


def set_depth(path: Path, bits: int) -> None:
    """Change the depth in a PNG header and make its check sum right again."""
    raw = bytearray(path.read_bytes())
    raw[24] = bits
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    path.write_bytes(raw)


# --- files that are no sound images ---


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


# --- what a picture shows ---


def test_exif_rotated_photo_is_turned_upright(tmp_path):
    stored = np.zeros((16, 32), np.uint8)
    stored[:, :16] = 255  # the left half is bright
    exif = Image.Exif()
    exif[274] = 6  # "turn by 90 degrees clockwise to see it upright": the left side becomes the top
    image = read_image(save(tmp_path / "a.jpg", stored, exif=exif, quality=95))
    assert np.array_equal(image > 128, np.arange(32)[:, None] * np.ones(16) < 16)


@pytest.mark.parametrize("dtype, suffix", [("u1", "png"), ("u2", "png"), ("u2", "tif"), ("f4", "tif")])
def test_bit_depths_are_read_as_they_are(tmp_path, dtype, suffix):
    stored = picture().astype(dtype) * (257 if dtype != "u1" else 1)
    image = read_image(save(tmp_path / f"a.{suffix}", stored))
    assert image.dtype == np.dtype(dtype) and np.array_equal(image, stored)


@pytest.mark.parametrize("image", [colour_picture(), picture()[..., None]])
def test_alpha_channel_of_an_image_is_dropped_only_if_it_is_opaque_everywhere(png, image):
    for alpha in (255, 0, 100, mask(), 255 * mask()):
        save(png, np.dstack([image, np.broadcast_to(alpha, (6, 8)).astype(np.uint8)]))
        if np.min(alpha) == 255:
            assert np.array_equal(read_image(png), image.squeeze())
        else:
            assert "images/b.png has transparent pixels" in refused(read_image, png)


@pytest.mark.parametrize("mode, suffix", [("P", "png"), ("CMYK", "jpg")])
def test_palette_and_print_colours_become_red_green_blue(tmp_path, mode, suffix):
    even = np.full((6, 8, 3), (255, 102, 0), np.uint8)
    image = read_image(save(tmp_path / f"a.{suffix}", Image.fromarray(even).convert(mode)))
    assert image.shape == (6, 8, 3) and np.abs(image.astype(int) - even).max() < 10  # JPEG rounds


@pytest.mark.parametrize("options", [{"compression": "lzw"}, {"planarconfig": "separate"}, {"byteorder": ">"}])
def test_tiff_flavours_are_read_alike(tif, options):
    colour = colour_picture().astype(np.uint16) * 200
    stored = np.moveaxis(colour, -1, 0) if "planarconfig" in options else colour
    image = read_image(save(tif, np.ascontiguousarray(stored), photometric="rgb", **options))
    assert np.array_equal(image, colour)
    assert image.dtype == np.dtype(np.uint16)  # in the byte order of this machine


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


def test_transparent_tiffs_and_stacks_are_refused(tif):
    save(tif, np.dstack([colour_picture(), picture()]), photometric="rgb")
    assert "has transparent pixels" in refused(read_image, tif)
    save(tif, np.stack([picture()] * 2), photometric="minisblack")
    assert "images/b.tif holds 2 pages" in refused(read_image, tif)


# --- what a label stores ---


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_small_grey_numbers_are_classes_in_a_label_and_spread_in_a_picture(png, tif, depth):
    """Pillow spreads the numbers of two or four bits over a byte: 1 becomes 85 or 17."""
    label = mask(1, classes=2 if depth == 1 else 4)
    bits = (label[..., None] >> np.arange(depth)[::-1]) & 1
    packed = zlib.compress(np.pad(np.packbits(bits.reshape(6, -1), axis=1), ((0, 0), (1, 0))).tobytes())
    chunks = [b"IHDR" + bytes([0, 0, 0, 8, 0, 0, 0, 6, depth, 0, 0, 0, 0]), b"IDAT" + packed, b"IEND"]
    pieces = [(len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks]
    png.parent.mkdir()
    png.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(pieces))
    save(tif, label.astype(bool) if depth == 1 else label, bitspersample=depth, photometric="minisblack")
    for path in (png, tif):
        assert read_label(path).dtype == np.uint8 and np.array_equal(read_label(path), label)
    assert np.array_equal(read_image(png), label * (255 // (2**depth - 1)))


@pytest.mark.parametrize(
    ("form", "suffix", "options"),
    [
        ("webp", "png", {"quality": 80}),
        ("tiff", "tif", {"compression": "jpeg"}),
        ("jpeg", "jpg", {}),
        ("jpeg", "png", {}),
    ],
)
def test_packings_that_invent_values_are_refused_whatever_the_name(tmp_path, form, suffix, options):
    path = tmp_path / f"b.{suffix}"
    Image.fromarray(np.kron(mask(), np.full((8, 8), 255, np.uint8))).save(path, form, **options)
    assert f"b.{suffix} is a JPEG or WebP, which invents values" in refused(read_label, path)
    assert read_image(path).shape[:2] == (48, 64)


def test_palette_mask_gives_its_indices(png):
    image = Image.fromarray(mask(1, classes=3)).convert("P")
    image.putdata(mask(1, classes=3).ravel().tolist())
    image.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    assert np.array_equal(read_label(save(png, image)), mask(1, classes=3))


def test_colour_mask_needs_a_table(png):
    save(png, np.array([[255, 0, 0], [255, 0, 255]], np.uint8)[mask()])
    assert "is a colour image: (255, 0, 0), (255, 0, 255)" in refused(read_label, png)
    assert np.array_equal(read_label(png, {(255, 0, 0): 0, (255, 0, 255): 1}), mask())
    assert "pixels not in label_map: (255, 0, 255)" in refused(read_label, png, {(255, 0, 0): 0})
    assert "has 48 pixels not in label_map" in refused(read_label, png, {0: 0, 255: 1})


def test_grey_mask_stored_as_colour_is_its_grey_value(png):
    save(png, np.stack([mask()] * 3, axis=-1))
    assert np.array_equal(read_label(png), mask())
    assert np.array_equal(read_label(png, {0: 1, 1: 0}), 1 - mask())
    assert np.array_equal(read_label(png, {(0, 0, 0): 1, (1, 1, 1): 0}), 1 - mask())


def test_alpha_and_soft_edges_are_refused(png):
    assert "images/b.png has an alpha channel" in refused(read_label, save(png, np.stack([mask()] * 4, axis=-1)))
    label = mask()
    label[0, :3] = (3, 90, 200)
    message = refused(read_label, save(png, label), {0: 0, 1: 1})
    assert "b.png has 3 pixels not in label_map: 3, 90, 200" in message


# --- folders of images and masks ---


@pytest.mark.parametrize("labels", ["labels", "masks"])
def test_samples_of_a_sound_folder(tmp_path, labels):
    folder = make_folder(tmp_path, labels=labels)
    for name in (".DS_Store", "Thumbs.db", "._a.png", "desktop.ini"):
        (folder / "images" / name).write_bytes(b"junk")
    for name in (".ipynb_checkpoints", "__MACOSX", "old.png"):
        (folder / labels / name).mkdir()
    samples = list(read_folder(folder))
    assert [sample.name for sample in samples] == ["a", "b", "c"]
    assert np.array_equal(samples[1].image, picture(1)) and np.array_equal(samples[1].label, mask(1))
    assert samples[0].part is None


def test_wrong_layouts_are_refused_with_what_is_there(tmp_path, folder):
    make_folder(folder, labels="masks")
    assert "holds images, labels, masks; give a folder with images/" in refused(read_folder, folder)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nowhere"):
        assert f"{name} holds nothing" in refused(read_folder, tmp_path / name)
    for name in ("images", "labels"):
        (tmp_path / "empty" / name).mkdir()
    assert "images/ holds no image" in refused(read_folder, tmp_path / "empty")


def test_problems_are_data_in_one_error_and_cut_at_twenty_in_its_text(folder):
    raise_problems("nowhere", [])  # nothing to say
    (folder / "images" / "a.png").write_bytes(b"")
    with pytest.raises(BadFiles) as caught:
        list(read_folder(folder))
    (problem,) = caught.value.problems
    assert (problem.file, problem.advice) == ("images/a.png", "copy or download it again")
    assert str(caught.value) == f"{folder}: 1 problem\n- {problem}"
    message = refused(raise_problems, "folder", [Problem(f"{number}.png", "is bad") for number in range(30)])
    assert message.startswith("folder: 30 problems\n- 0.png is bad\n") and message.endswith("- 19.png is bad\n- …")


def test_all_problems_are_listed_at_once_and_good_samples_come_first(folder):
    (folder / "images" / "a.png").write_bytes(b"")
    save(folder / "images" / "lonely.png", picture(7))
    save(folder / "labels" / "other.png", mask(7))
    save(folder / "images" / "c.tif", picture(5))
    (folder / "images" / "notes.txt").write_text("my notes")
    names: list[str] = []
    message = refused(lambda: (names.append(sample.name) for sample in read_folder(folder)))
    assert names == ["b", "c"]
    for piece in (
        "5 problems",
        "images/a.png is empty",
        "images/lonely.png has no label",
        "labels/other.png has no image",
        "images/c.tif and c.png have one name before the suffix",
        "images/notes.txt is none of .png",
    ):
        assert piece in message


def test_mask_of_0_and_255_is_never_guessed(tmp_path):
    for seed in range(3):
        save(tmp_path / "images" / f"{seed}.png", picture(seed))
        save(tmp_path / "labels" / f"{seed}.png", mask(seed) * 255)
    assert "label_map={0: 0, 255: 1}" in refused(read_folder, tmp_path)
    assert np.array_equal(next(read_folder(tmp_path, label_map={0: 0, 255: 1})).label, mask(0))
    ignored = list(read_folder(tmp_path, label_map={0: 0, 255: 255}))  # said plainly, so it is accepted
    assert set(np.unique(ignored[0].label)) == {0, 255}
    save(tmp_path / "labels" / "1.png", mask(1))  # a class beside it shows what 255 means
    assert len(list(read_folder(tmp_path))) == 3


def test_extra_maps_travel_along(folder):
    for name in "abc":
        save(folder / "instances" / f"{name}.png", mask(0).astype(np.uint16) * 300)
    samples = list(read_folder(folder, extras=["instances"]))
    assert [sample.extras["instances"].max() for sample in samples] == [300, 300, 300]


# --- parts ---


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


def test_one_image_in_two_given_parts_is_refused():
    message = refused(split_parts, ["x", "y", "x"], given=["train", "val", "test"], names=["a", "b", "c"])
    assert "a (train) and c (test) are the same image" in message


@pytest.mark.parametrize("text", [b"<!DOCTYPE html><html>Sign in</html>", b" <html>", b'{"error": 404}'])
@pytest.mark.parametrize("name", ["b.png", "b.tif"])
def test_web_page_saved_as_an_image_is_named_as_one(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    assert f"{name} begins with b" in refused(read_image, tmp_path / name)
    assert "a saved web page?" in refused(read_image, tmp_path / name)


def test_deep_colour_png_is_refused_because_pillow_would_halve_it(png):
    set_depth(save(png, colour_picture()), 16)
    assert "16-bit colour PNG" in refused(read_image, png)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_deflate", "group4"])
def test_packed_tiffs_of_other_programs_are_read(tif, compression):
    tif.parent.mkdir()
    stored = mask().astype(bool) if compression == "group4" else picture()
    Image.fromarray(stored).save(tif, compression=compression)
    assert np.array_equal(read_image(tif), stored * np.uint8(255) if stored.dtype == bool else stored)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.dstack([colour_picture(), picture()]), {"photometric": "rgb"}, "has transparent pixels"),
        (np.dstack([colour_picture(), picture()]), {"photometric": "separated"}, "has the colours SEPARATED"),
        (picture(), {"extratags": [(274, "H", 1, 6, True)]}, "TIFF orientation"),
        (np.stack([picture()] * 2), {"photometric": "minisblack"}, "images/b.tif holds 2 pages"),
    ],
)
def test_tiffs_that_would_have_to_be_guessed_are_refused(tif, array, options, message):
    assert message in refused(read_image, save(tif, array, **options))


def test_composed_and_decomposed_accents_are_one_name(tmp_path):
    save(tmp_path / "images" / (unicodedata.normalize("NFC", "é") + ".png"), picture())
    save(tmp_path / "labels" / (unicodedata.normalize("NFD", "é") + ".png"), mask())
    assert len(list(read_folder(tmp_path))) == 1
