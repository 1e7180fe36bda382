"""Tests of readers.py: small fakes of every official layout, and the real files where a mirror holds them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.measure import regionprops

from imagesets.files import MAX_PIXELS, PARTS, Sample
from imagesets.readers import READERS, YEAST_COLUMNS, pet_species, read_dataset
from imagesets.sources import SOURCES
from tests.data_helpers import MIRROR, colour_picture, mask, needs_mirror, picture, refused, save

NEW = ("kitti_road", "oxford_pets", "camvid")


def needs(name: str) -> pytest.MarkDecorator:
    """Skip a test where the mirror does not hold this set."""
    return pytest.mark.skipif(not MIRROR or not Path(MIRROR, name).is_dir(), reason=f"no mirror with {name}/")


def parts_of(samples: list[Sample]) -> dict[str | None, int]:
    return {part: [sample.part for sample in samples].count(part) for part in {sample.part for sample in samples}}


# --- small fakes ---


def fake_kitti(root: Path, names: tuple[str, ...] = ("um_000000", "umm_000001", "uu_000002")) -> Path:
    """Pictures of 6 × 8 pixels; `road` holds the official colours, the lanes must be left alone."""
    colours = np.array([[255, 0, 0], [255, 0, 255], [0, 0, 0], [0, 0, 255]], np.uint8)
    for seed, name in enumerate(names):
        kind, number = name.split("_")
        save(root / "training" / "image_2" / f"{name}.png", colour_picture(seed))
        save(root / "training" / "gt_image_2" / f"{kind}_road_{number}.png", colours[mask(seed, classes=4)])
        save(root / "training" / "gt_image_2" / f"{kind}_lane_{number}.png", colours[mask(9, classes=2)])
    return root


def fake_pets(root: Path, cats: int = 20, dogs: int = 10, tests: int = 3) -> Path:
    """Cats Abyssinian_1 … and dogs great_dane_1 …, then `tests` more of each for the official test list."""
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for breed, number, ids, first in (("Abyssinian", cats, "1 1 1", 0), ("great_dane", dogs, "2 2 1", 100)):
        for i in range(1, number + tests + 1):
            lists["trainval" if i <= number else "test"].append(f"{breed}_{i} {ids}")
            add_pet(root, f"{breed}_{i}", seed=first + i)
    for name, lines in {
        **lists,
        "list": ["#Image CLASS-ID SPECIES BREED ID", *lists["trainval"], *lists["test"]],
    }.items():
        write_list(root, name, lines)
    return root


def add_pet(root: Path, name: str, seed: int = 0) -> None:
    save(root / "images" / f"{name}.jpg", colour_picture(seed))
    save(root / "annotations" / "trimaps" / f"{name}.png", mask(seed, classes=3) + 1)


def write_list(root: Path, name: str, lines: list[str]) -> None:
    (root / "annotations" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


def fake_camvid(root: Path, suffix: str = ".png", **numbers: int) -> Path:
    for part, number in numbers.items():
        for i in range(number):
            save(root / part / f"0016E5_{i:05d}{suffix}", colour_picture(i))
            save(root / f"{part}annot" / f"0016E5_{i:05d}.png", mask(i, classes=12))
    return root


def fake(name: str, root: Path) -> Path:
    if name == "camvid":
        return fake_camvid(root, train=3, val=2, test=2)
    return fake_kitti(root) if name == "kitti_road" else fake_pets(root)


# --- all sets ---


def test_every_source_has_a_reader() -> None:
    assert set(READERS) == set(SOURCES)
    assert {name: READERS[name].num_classes for name in NEW} == {"kitti_road": 2, "oxford_pets": 3, "camvid": 11}


def test_named_set_with_missing_files_lists_them(tmp_path):
    assert "'moon' is not a known data set; known are dsb2018" in refused(read_dataset, "moon", tmp_path)
    assert "no image where the official layout" in refused(read_dataset, "dsb2018", tmp_path)
    for name in "abc":
        save(tmp_path / "train" / "images" / f"{name}.tif", picture())
    save(tmp_path / "train" / "masks" / "b.tif", mask().astype(np.uint16))
    message = refused(read_dataset, "dsb2018", tmp_path)
    assert "2 problems" in message
    assert "images/a.tif has no label" in message


def test_dsb2018_layout_has_instances_and_its_own_test_part(tmp_path):
    for part in ("train", "test"):
        save(tmp_path / part / "images" / "a.tif", picture())
        save(tmp_path / part / "masks" / "a.tif", mask(classes=4).astype(np.uint16))
    samples = list(read_dataset("dsb2018", tmp_path))
    assert [sample.part for sample in samples] == [None, "test"]
    assert np.array_equal(samples[0].extras["instances"], mask(classes=4))
    assert np.array_equal(samples[0].label, mask(classes=4) > 0)


def test_yeastcellseg_layout(tmp_path):
    save(tmp_path / "DS01_01.tif", picture())
    save(tmp_path / "DS01_01_gt.tif", mask() * 255)
    (sample,) = read_dataset("yeastcellseg", tmp_path)
    assert sample.name == "DS01_01"
    assert np.array_equal(sample.label, mask())


def test_topomortar_layout_has_its_own_three_parts(tmp_path):
    for part, number in (("train", "001"), ("val", "051"), ("test", "071")):
        save(tmp_path / part / "images" / f"{number}.png", np.dstack([picture()] * 3))
        save(tmp_path / part / "accurate" / f"{number}.png", mask() * 255)
        save(tmp_path / part / "noisy" / f"{number}.png", mask(1) * 255)  # not ours
    samples = list(read_dataset("topomortar", tmp_path))
    assert [(sample.name, sample.part) for sample in samples] == [("001", "train"), ("051", "val"), ("071", "test")]
    assert all(np.array_equal(sample.label, mask()) for sample in samples)


def test_yeast_phase_layout_gives_one_sample_a_region(tmp_path):
    movie = tmp_path / "data" / "sample_movie_1"
    save(movie / "im007_channel1_phase.tif", np.tile(np.arange(692, dtype=np.uint16), (5, 1)))
    save(movie / "im007_mask1.tif", mask(0, 5, 692).astype(np.uint16) * 9)
    samples = list(read_dataset("yeast_phase", tmp_path))
    assert [sample.name for sample in samples] == ["im007_train", "im007_val", "im007_test"]
    assert [sample.part for sample in samples] == list(PARTS)
    assert [(s.image.min(), s.image.max() + 1) for s in samples] == [(0, 416), (452, 516), (552, 692)]
    for sample in samples:
        columns = slice(*YEAST_COLUMNS[sample.part])
        assert np.array_equal(sample.label, mask(0, 5, 692)[:, columns])
        assert np.array_equal(sample.extras["instances"], sample.label * 9)


def test_fault_01_labels_without_an_image_are_named_too(tmp_path):
    save(tmp_path / "train" / "images" / "a.tif", picture())
    save(tmp_path / "train" / "masks" / "b.tif", mask().astype(np.uint16))
    message = refused(read_dataset, "dsb2018", tmp_path)
    assert "images/a.tif has no label" in message
    assert "masks/b.tif has no image" in message


FILES = {  # an image of each fake, its label, and the place of another image
    "kitti_road": ("training/image_2/um_000000.png", "training/gt_image_2/um_road_000000.png"),
    "oxford_pets": ("images/Abyssinian_2.jpg", "annotations/trimaps/Abyssinian_2.png"),
    "camvid": ("val/0016E5_00001.png", "valannot/0016E5_00001.png"),
}


@pytest.mark.parametrize("name", NEW)
def test_a_sound_layout_is_read(name, tmp_path):
    samples = list(read_dataset(name, fake(name, tmp_path)))
    classes = READERS[name].num_classes
    assert len(samples) == {"kitti_road": 3, "oxford_pets": 36, "camvid": 7}[name]
    for sample in samples:
        assert (sample.image.shape, sample.image.dtype) == ((6, 8, 3), np.uint8)
        assert (sample.label.shape, sample.label.dtype) == ((6, 8), np.uint8)
        assert set(np.unique(sample.label)) <= {*range(classes), 255}


@pytest.mark.parametrize("name", NEW)
def test_fault_01_missing_partners_of_the_new_sets(name, tmp_path):
    image, label = (fake(name, tmp_path) / path for path in FILES[name])
    label.rename(tmp_path / "kept.png")
    assert f"{image.parent.name}/{image.name} has no label" in refused(read_dataset, name, tmp_path)
    (tmp_path / "kept.png").rename(label)
    image.unlink()
    assert f"{label.parent.name}/{label.name} has no image" in refused(read_dataset, name, tmp_path)


@pytest.mark.parametrize("name", NEW)
def test_all_problems_of_a_new_set_come_in_one_message_after_the_sound_samples(name, tmp_path):
    root = fake(name, tmp_path)
    number = sum(1 for _ in read_dataset(name, root))
    images, labels = (sorted((root / path).parent.glob(f"*{Path(path).suffix}")) for path in FILES[name])
    labels = [path for path in labels if "lane" not in path.name]
    if name == "camvid":
        images, labels = [sorted(root.glob(f"train{ending}/*.png")) for ending in ("", "annot")]
    images[0].write_bytes(b"")  # fault 2
    save(labels[1], np.full((6, 8, 3) if name == "kitti_road" else (6, 8), 77, np.uint8))  # a value of no class
    save(images[2], np.dstack([picture(0, 5, 8)] * 3))  # fault 12
    names = []
    message = refused(lambda: (names.append(sample.name) for sample in read_dataset(name, root)))
    assert len(names) == number - 3
    assert "3 problems" in message
    assert f"{images[0].name} is empty (0 bytes)" in message
    assert f"{labels[1].name} has 48 pixels not in label_map: 1 value" in message
    assert f"{images[2].name} has size (5, 8), {labels[2].parent.name}/{labels[2].name} has (6, 8)" in message


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"\x89PNG\r\n\x1a\n half"], ids=["web page", "cut"])
@pytest.mark.parametrize("name", NEW)
def test_fault_03_04_damaged_files_of_the_new_sets(name, content, tmp_path):
    for path in FILES[name]:
        (fake(name, tmp_path) / path).write_bytes(content)
        assert "cannot be read as an image" in refused(read_dataset, name, tmp_path)


@pytest.mark.parametrize("name", NEW)
def test_fault_14_huge_images_of_the_new_sets_are_refused_before_decoding(name, tmp_path, monkeypatch):
    monkeypatch.setattr("imagesets.files.MAX_PIXELS", 6 * 8 - 1)
    assert MAX_PIXELS > 6 * 8
    assert "declares 8 × 6 pixels" in refused(read_dataset, name, fake(name, tmp_path))


@pytest.mark.parametrize("name", NEW)
def test_fault_17_junk_in_the_new_sets_is_skipped(name, tmp_path):
    before = [sample.name for sample in read_dataset(name, fake(name, tmp_path))]
    for path in FILES[name]:
        for junk in (f"._{Path(path).name}", ".DS_Store", "Thumbs.db", "notes.mat"):
            ((tmp_path / path).parent / junk).write_bytes(b"junk")
    assert [sample.name for sample in read_dataset(name, tmp_path)] == before


@pytest.mark.parametrize("name", ["kitti_road", "camvid"])
def test_fault_20_empty_folders_of_the_new_sets(name, tmp_path):
    assert "no image where the official layout" in refused(read_dataset, name, tmp_path)


# --- roads ---


def test_kitti_road_has_roads_and_pixels_that_nobody_judged(tmp_path):
    samples = list(read_dataset("kitti_road", fake_kitti(tmp_path)))
    assert [sample.name for sample in samples] == ["um_000000", "umm_000001", "uu_000002"]
    assert {sample.part for sample in samples} == {None}  # to be split
    for seed, sample in enumerate(samples):
        assert np.array_equal(sample.image, colour_picture(seed))
        # red: not road, red and blue: road, black: ignored, blue alone: a road that is ignored
        assert np.array_equal(sample.label, np.array([0, 1, 255, 255])[mask(seed, classes=4)])


# --- streets ---


def test_camvid_has_eleven_classes_and_void(tmp_path):
    (sample,) = read_dataset("camvid", fake_camvid(tmp_path, train=1))
    raw = mask(0, classes=12)
    assert np.array_equal(sample.label, np.where(raw == 11, 255, raw))


def test_camvid_keeps_its_official_parts(tmp_path):
    samples = list(read_dataset("camvid", fake_camvid(tmp_path, train=5, val=3, test=2)))
    assert parts_of(samples) == {"train": 5, "val": 3, "test": 2}


def test_camvid_of_a_mirror_gives_the_second_half_of_its_validation_film_for_the_test_part(tmp_path):
    samples = list(read_dataset("camvid", fake_camvid(tmp_path, ".jpg", train=2, val=5)))
    assert [(sample.name[-1], sample.part) for sample in samples] == [
        *(("0", "train"), ("1", "train")),
        *(("0", "val"), ("1", "val"), ("2", "test"), ("3", "test"), ("4", "test")),  # 5 // 2 = 2 are left, in one block
    ]


# --- pets ---


def test_pets_have_background_pet_and_border(tmp_path):
    samples = {sample.name: sample for sample in read_dataset("oxford_pets", fake_pets(tmp_path))}
    raw = mask(1, classes=3) + 1
    assert np.array_equal(samples["Abyssinian_1"].label, np.array([9, 1, 0, 2])[raw])  # 1 pet, 2 background, 3 border


def test_pets_keep_the_official_test_part_and_a_fixed_share_of_each_breed_validates(tmp_path):
    samples = list(read_dataset("oxford_pets", fake_pets(tmp_path)))
    assert parts_of(samples) == {"train": 25, "val": 5, "test": 6}
    for breed, number in (("Abyssinian", 3), ("great_dane", 2)):  # 15 % of 20 and of 10, 1.5 rounded to the even 2
        assert sum(sample.name.startswith(breed) for sample in samples if sample.part == "val") == number
    assert {s.name for s in samples if s.part == "test"} == {
        *(f"Abyssinian_{i}" for i in (21, 22, 23)),
        *(f"great_dane_{i}" for i in (11, 12, 13)),
    }


def test_the_validation_part_of_the_pets_depends_on_the_list_alone(tmp_path):
    def chosen(root: Path) -> set[str]:
        return {sample.name for sample in read_dataset("oxford_pets", root) if sample.part == "val"}

    # worked out with the command sha256sum: of Abyssinian_1 … 20 and great_dane_1 … 10, these are the smallest
    whole = chosen(fake_pets(tmp_path))
    assert whole == {"Abyssinian_16", "Abyssinian_7", "Abyssinian_18", "great_dane_9", "great_dane_3"}
    lines = (tmp_path / "annotations" / "trainval.txt").read_text().splitlines()
    write_list(tmp_path, "trainval", lines[::-1])
    assert chosen(tmp_path) == whole
    for folder, suffix in (("images", "jpg"), ("annotations/trimaps", "png")):
        for i in range(1, 11):  # half of the cats are missing, as in a mirror
            (tmp_path / folder / f"Abyssinian_{i}.{suffix}").unlink()
    left = {name for name in whole if not (name.startswith("Abyssinian") and int(name[11:]) <= 10)}
    assert chosen(tmp_path) == left


def test_pets_that_no_list_names_are_left_alone(tmp_path):
    fake_pets(tmp_path)
    add_pet(tmp_path, "Abyssinian_99")
    (tmp_path / "images" / "pug_1.jpg").write_bytes(b"no picture")
    assert len(list(read_dataset("oxford_pets", tmp_path))) == 36


def test_fault_19_a_pet_in_both_lists_is_a_test_image(tmp_path):
    fake_pets(tmp_path)
    write_list(tmp_path, "test", ["Abyssinian_1 1 1 1", "Abyssinian_21 1 1 1"])
    samples = list(read_dataset("oxford_pets", tmp_path))
    assert [sample.part for sample in samples if sample.name == "Abyssinian_1"] == ["test"]


def test_fault_19_copies_of_a_test_image_are_not_trained_on(tmp_path):
    fake_pets(tmp_path)
    before = {sample.name: sample.part for sample in read_dataset("oxford_pets", tmp_path)}
    trained, tested = (next(name for name in before if before[name] == part) for part in ("train", "test"))
    for folder, suffix in (("images", "jpg"), ("annotations/trimaps", "png")):
        content = (tmp_path / folder / f"{tested}.{suffix}").read_bytes()
        (tmp_path / folder / f"{trained}.{suffix}").write_bytes(content)
    after = {sample.name: sample.part for sample in read_dataset("oxford_pets", tmp_path)}
    assert before.keys() - after.keys() == {trained}


def test_every_pet_has_three_colours(tmp_path):
    fake_pets(tmp_path, cats=6, dogs=0, tests=0)
    colours, see_through = Image.fromarray(colour_picture(7)), Image.fromarray(colour_picture(8))
    see_through.putalpha(Image.fromarray(picture(9)))
    stored = {
        1: (colours.convert("L"), "JPEG"),
        2: (colours.convert("CMYK"), "JPEG"),
        3: (see_through, "PNG"),  # as Abyssinian_5.jpg of the official set
        4: (colours.convert("P"), "GIF"),
        5: (see_through.convert("LA"), "PNG"),
        6: (colours, "PNG"),
    }
    for i, (image, kind) in stored.items():
        image.save(tmp_path / "images" / f"Abyssinian_{i}.jpg", format=kind)
    samples = {sample.name[-1]: sample.image for sample in read_dataset("oxford_pets", tmp_path)}
    assert {image.shape for image in samples.values()} == {(6, 8, 3)}
    assert np.array_equal(samples["3"], colour_picture(8))
    assert np.array_equal(samples["6"], colour_picture(7))
    assert np.ptp(samples["1"], axis=2).max() == np.ptp(samples["5"], axis=2).max() == 0  # grey


def test_species_are_those_of_the_list(tmp_path):
    species = pet_species(fake_pets(tmp_path))
    assert len(species) == 36
    assert {name: species[name] for name in ("Abyssinian_20", "great_dane_11")} == {
        "Abyssinian_20": "cat",
        "great_dane_11": "dog",
    }


@pytest.mark.parametrize("line", ["Abyssinian_1 1 1", "Abyssinian_1 1 3 1", "a b 1 1 1", "<!DOCTYPE html>"])
def test_a_list_of_another_form_is_refused(line, tmp_path):
    fake_pets(tmp_path)
    write_list(tmp_path, "list", ["# a remark", "", "Abyssinian_2 1 1 1", line, line])
    message = refused(pet_species, tmp_path)
    assert "annotations/list.txt: 2 problems" in message
    assert f"the line {line!r}; expected: name class-id species" in message
    write_list(tmp_path, "test", [line])
    assert "annotations/test.txt: the line" in refused(read_dataset, "oxford_pets", tmp_path)


def test_fault_18_a_list_that_cannot_be_read(tmp_path):
    assert "annotations/list.txt cannot be read" in refused(pet_species, tmp_path)
    fake_pets(tmp_path)
    (tmp_path / "annotations" / "list.txt").write_bytes(b"\xff\xfe")
    assert "annotations/list.txt cannot be read" in refused(pet_species, tmp_path)
    (tmp_path / "annotations" / "trainval.txt").unlink()
    assert "annotations/trainval.txt cannot be read" in refused(read_dataset, "oxford_pets", tmp_path)


# --- the real files ---


@needs_mirror
def test_real_yeast_phase_is_split_by_region_with_a_gap_wider_than_a_cell():
    gaps = [YEAST_COLUMNS["val"][0] - YEAST_COLUMNS["train"][1], YEAST_COLUMNS["test"][0] - YEAST_COLUMNS["val"][1]]
    root = Path(MIRROR, "yeast_phase")
    label = tifffile.imread(root / "data" / "sample_movie_1" / "im009_mask1.tif")
    assert min(gaps) > max(cell.bbox[3] - cell.bbox[1] for cell in regionprops(label))
    samples = list(itertools.islice(read_dataset("yeast_phase", root), 3))
    assert sum(sample.image.shape[1] for sample in samples) + sum(gaps) == 692
    for sample in samples:
        assert sample.image.dtype == np.uint16
        assert 0.02 < sample.label.mean() < 0.5  # there are cells in every region


@needs_mirror
def test_real_dsb2018_has_instances():
    for sample in itertools.islice(read_dataset("dsb2018", Path(MIRROR, "dsb2018")), 5):
        assert sample.image.dtype == np.uint8
        assert np.array_equal(sample.label, sample.extras["instances"] > 0)
        assert sample.extras["instances"].max() >= 1


@needs("kitti_road")
def test_real_kitti_road_has_289_frames():
    pairs = READERS["kitti_road"].find_pairs(Path(MIRROR, "kitti_road"))
    assert len(pairs) == 289
    assert all(image and label and part is None for image, label, part in pairs)
    kinds = [image.stem.split("_")[0] for image, _, _ in pairs if image]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"um": 95, "umm": 96, "uu": 98}
    samples = list(itertools.islice(read_dataset("kitti_road", Path(MIRROR, "kitti_road")), 12))
    assert {sample.image.shape[2] for sample in samples} == {3}
    assert all({0, 1} <= set(np.unique(sample.label)) <= {0, 1, 255} for sample in samples)
    assert 0.1 < np.mean([(sample.label == 1).mean() for sample in samples]) < 0.3


@needs("oxford_pets")
def test_real_pets_are_split_as_their_authors_did():
    root = Path(MIRROR, "oxford_pets")
    samples, species = list(read_dataset("oxford_pets", root)), pet_species(root)
    by_part = {part: {s.name for s in samples if s.part == part} for part in PARTS}
    assert len(samples) == sum(len(names) for names in by_part.values())  # no name in two parts
    listed = {line.split()[0] for line in (root / "annotations" / "test.txt").read_text().splitlines()}
    assert by_part["test"] == listed & {path.stem for path in (root / "images").iterdir()}
    for breed in {name.rpartition("_")[0] for name in species}:
        assert sum(name.startswith(breed) for name in by_part["val"]) == 15  # of 100 in the official list
    assert {species[name] for name in species if name[0].isupper()} == {"cat"}
    assert {species[name] for name in species if name[0].islower()} == {"dog"}
    for sample in samples[::20]:
        assert (sample.image.shape[2], sample.image.dtype) == (3, np.uint8)
        assert set(np.unique(sample.label)) == {0, 1, 2}
        assert sample.label[0, 0] != 1  # the corner shows no pet


@needs("camvid")
def test_real_camvid_has_eleven_classes_in_every_part():
    samples = list(read_dataset("camvid", Path(MIRROR, "camvid")))
    for part in PARTS:
        mine = [sample for sample in samples if sample.part == part]
        assert {value for sample in mine for value in np.unique(sample.label).tolist()} == {*range(11), 255}
        sky = np.mean([np.argwhere(sample.label == 0).mean(axis=0)[0] for sample in mine if (sample.label == 0).any()])
        road = np.mean([np.argwhere(sample.label == 3).mean(axis=0)[0] for sample in mine])
        assert sky < 150 < 250 < road  # rows of 360: the sky is above
