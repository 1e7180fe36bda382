"""The usual folders just work: right pairs, parts, classes, labels; what is not used is named, nothing is guessed."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagesets.files import BadFiles, Problem, parse_map, raise_problems
from imagesets.layouts import read_folder, recognise
from tests.data_helpers import colour_picture, make_folder, mask, picture, refused, save

RED, GREEN = (200, 10, 10), (10, 200, 10)
SQUARE = [[2, 1], [6, 1], [6, 4], [2, 4]]  # x, y: the pixels [1:4, 2:6]


def colours(label: np.ndarray) -> np.ndarray:
    """A label of three classes as it looks."""
    return np.array([(0, 0, 0), RED, GREEN], np.uint8)[label]


def palette(label: np.ndarray) -> Image.Image:
    """The same, stored as indices in another order: 0, 2, 1."""
    image = Image.fromarray(np.array([0, 2, 1], np.uint8)[label], "P")
    image.putpalette([0, 0, 0, *GREEN, *RED])
    return image


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        path = folder / name
        if isinstance(content, (str, dict)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        else:
            save(path, content)
    return folder


def pairs(images: str, labels: str, names: str = "abc", turn: Any = lambda label: label) -> dict[str, Any]:
    """Images and labels under the patterns of a layout; the label of the n-th is mask(n) of three classes."""
    found = {images.format(name): picture("abc".index(name)) for name in names}
    return found | {labels.format(name): turn(mask("abc".index(name), classes=3)) for name in names}


TABLE = "name,r,g,b\nbackground,0,0,0\nred,200,10,10\ngreen,10,200,10\n"
VALUES = "value,name\n0,background\n100,red\n200,green\n"
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nred:200,10,10::\ngreen:10,200,10::\n"
NAMED = "classes background, red, green"
FOLDERS = {  # files, what is said of them, and the names of the samples
    "other words": (pairs("imgs/{}.jpg", "annotations/{}.png"), "images and labels, 3 pairs", "{}"),
    "sub-folders": (pairs("images/day 1/{}.png", "masks/day 1/{}.png"), "3 pairs", "day 1/{}"),
    "suffix": (pairs("images/{}.png", "labels/{}_mask.png"), "3 pairs", "{}"),
    "prefix": (pairs("images/image_{}.png", "labels/gt_{}.png"), "3 pairs", "image_{}"),
    "side by side": (pairs("{}.jpg", "{}_mask.png"), "3 pairs", "{}"),
    "JPEG beside PNG": (pairs("{}.jpg", "{}.png"), "3 pairs", "{}"),
    "a folder around": (pairs("cells/images/{}.png", "cells/masks/{}.png"), "3 pairs", "cells/{}"),
    "Pascal VOC": (
        pairs("JPEGImages/{}.jpg", "SegmentationClass/{}.png")
        | {"ImageSets/Segmentation/train.txt": "a\nc\n", "ImageSets/Segmentation/val.txt": "b\n"}
        | {"JPEGImages/in_no_list.jpg": picture(), "SegmentationClass/in_no_list.png": mask()}
        | {"SegmentationObject/a.png": mask(), "JPEGImages/no_label.jpg": picture(), "Annotations/a.xml": "<a>"},
        "Pascal VOC, 3 pairs; parts train 2, val 1; left out: SegmentationObject (1), in no list of a part (1)", "{}",
    ),
    "CVAT": (
        pairs("JPEGImages/{}.jpg", "SegmentationClass/{}.png", turn=palette) | {"labelmap.txt": LABELMAP}, NAMED, "{}"
    ),
    "CamVid": (
        pairs("train/{}.png", "train_labels/{}_L.png", "ab", colours) | {"class_dict.csv": TABLE}
        | pairs("val/{}.png", "val_labels/{}_L.png", "c", colours), "parts train 2, val 1", "{}",
    ),
    "values": (
        pairs("images/{}.png", "labels/{}.png", turn=lambda label: label * 100) | {"classes.csv": VALUES}, NAMED, "{}"
    ),
    "colours and values": (
        pairs("images/{}.png", "labels/{}.png", turn=lambda label: label * 100)
        | {"classes.csv": "name,r,g,b,id\nbackground,0,0,0,0\nred,200,10,10,100\ngreen,10,200,10,200\n"}, NAMED, "{}",
    ),
    "Cityscapes": (
        pairs("leftImg8bit/train/aachen/{}_leftImg8bit.png", "gtFine/train/aachen/{}_gtFine_labelIds.png",
              turn=lambda label: np.array([7, 8, 11], np.uint8)[label])
        | {"gtFine/train/aachen/a_gtFine_color.png": colours(mask()), "gtFine/train/aachen/a_gtFine_polygons.json": {}},
        "Cityscapes, 3 pairs", "train/aachen/{}_leftImg8bit",
    ),
    "nnU-Net": (
        pairs("imagesTr/{}_0000.png", "labelsTr/{}.png") | pairs("imagesTr/{}_0001.png", "labelsTr/{}.png")
        | {"imagesTs/d_0000.png": picture(), "imagesTs/d_0001.png": picture()}
        | {"dataset.json": {"labels": {"background": 0, "red": 1, "green": 2}}},
        f"nnU-Net, 3 pairs; {NAMED}; left out: imagesTs (1)", "train/{}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_usual_folder_gives_its_pairs_and_its_labels(tmp_path, name):
    files, said, names = FOLDERS[name]
    layout = recognise(write(tmp_path, **files))
    samples = {sample.name.replace("val/", "").replace("train/", ""): sample for sample in read_folder(tmp_path)}
    assert said in str(layout) and layout.num_classes() == (19 if name == "Cityscapes" else 3)
    assert [*samples] == [names.replace("train/", "").format(letter) for letter in "abc"]
    for number, sample in enumerate(samples.values()):
        assert np.array_equal(sample.label, mask(number, classes=3))
        assert sample.image.ndim == (3 if name == "nnU-Net" else 2)
        assert np.abs(np.atleast_3d(sample.image) - picture(number)[..., None].astype(int)).max() < 60  # JPEG rounds


@pytest.mark.parametrize("pattern", ["{1}/{0}/{2}.png", "{0}/{1}/{2}.png", "{0}_{1}/{2}.png"])
def test_parts_are_given_by_folders_on_top_below_or_in_one_name(tmp_path, pattern):
    for number, part in enumerate(("train", "valid", "testing")):
        for kind, array in (("images", picture(number)), ("masks", mask(number))):
            save(tmp_path / pattern.format(kind, part, "a"), array)
    assert [(s.part, s.name) for s in read_folder(tmp_path)] == [(p, f"{p}/a") for p in ("test", "train", "val")]


def test_without_a_val_folder_some_of_train_will_validate_and_test_images_without_labels_are_named(tmp_path):
    write(tmp_path, **pairs("train/images/{}.png", "train/labels/{}.png"), **{"test/images/d.png": picture()})
    assert [sample.part for sample in read_folder(tmp_path)] == [None] * 3
    assert "left out: test/images (1)" in str(recognise(tmp_path))


def test_files_in_subfolders_are_used_or_named_and_folders_of_other_things_are_left_out(tmp_path):
    make_folder(tmp_path)
    write(tmp_path, **{"images/more/d.png": picture(), "labels/e_mask.png": mask(), "labels/e_gt.png": mask()})
    write(tmp_path, **{"old_predicted/masks/a.png": mask(), "data_check.png": picture()})
    said = refused(read_folder, tmp_path)
    assert "3 problems" in said and "more/d.png has no label" in said and "labels/e_gt.png has no image" in said
    assert "left out: data_check.png (1), old_predicted/masks (1)" in str(recognise(tmp_path))


def test_numbers_of_objects_are_one_class_and_a_map(tmp_path):
    cells = np.zeros((6, 8), np.uint16)
    cells[:2, :3], cells[3:, 4:] = 1, 300
    for folder in ("instances", "cp"):
        names = ("images/a.png", "instances/a.png") if folder == "instances" else ("a.png", "a_cp_masks.png")
        (sample,) = read_folder(write(tmp_path / folder, **dict(zip(names, (picture(), cells)))))
        assert np.array_equal(sample.label, cells > 0) and np.array_equal(sample.extras["instances"], cells)
        layout = recognise(tmp_path / folder)
        assert layout.num_classes() == 2 and "numbers of objects" in str(layout)


@pytest.mark.parametrize(
    ("labels", "number"),
    [
        ([[0, 1, 2], [0, 0, 1]], 2),  # each in one piece, and not everywhere as many: objects?
        ([[0, 1, 2, 1], [0, 2, 0, 2]], 3),
        ([[0, 1, 3, 1], [1, 0, 1, 3]], 2),  # a gap: `check` asks
        ([[0, 1, 255, 1], [0, 1, 0, 0]], 2),
    ],
)
def test_the_number_of_classes_is_read_off_the_labels_if_they_say_it(tmp_path, labels, number):
    for name, row in enumerate(labels):
        save(tmp_path / f"images/{name}.png", picture(0, 1, len(row)))
        save(tmp_path / f"labels/{name}.png", np.array([row], np.uint8))
    assert (layout := recognise(tmp_path)).num_classes() == number and len(layout.pairs) == 2
    if len(labels[0]) == 3:  # the advice is taken
        label_map = parse_map(re.search(r"add --map '(\S+)'", str(layout))[1])
        assert [sample.label.tolist() for sample in read_folder(tmp_path, label_map)] == [[[0, 1, 1]], [[0, 0, 1]]]
    assert [layout.num_classes(one) for one in ({0: 0, 255: 4}, {"*": 1}, {0: 255})] == [5, 2, 2]


def test_coco_outlines_are_drawn_by_area_the_later_over_the_earlier(tmp_path):
    runs = {"size": [6, 8], "counts": [0, 6, 42]}  # the first column
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 6, "width": 8}, {"id": 8, "file_name": "b.jpg"}],
        "categories": [{"id": 3, "name": "zebra"}, {"id": 5, "name": "cat"}, {"id": 1, "name": "unused"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [np.ravel(SQUARE).tolist()]},
            {"id": 2, "image_id": 7, "category_id": 5, "segmentation": [[2, 1, 4, 1, 4, 2, 2, 2]]},
            {"id": 3, "image_id": 7, "category_id": 5, "segmentation": runs, "iscrowd": 1},
            {"id": 4, "image_id": 8, "category_id": 3, "segmentation": runs},
        ],
    }
    files = {f"{part}/_annotations.coco.json": content for part in ("train", "valid")}
    write(tmp_path, **files, **{f"{part}/{n}.jpg": picture() for part in ("train", "valid") for n in "ab"})
    samples = {sample.name: sample for sample in read_folder(tmp_path)}
    label = np.zeros((6, 8), int)
    label[1:4, 2:6], label[1, 2:4], label[:, 0] = 2, 1, 1
    assert np.array_equal(samples["train/a"].label, label)
    label[:], label[:, 0] = 0, 2
    assert np.array_equal(samples["val/b"].label, label)
    assert "COCO, 4 pairs; classes background, cat, zebra; parts train 2, val 2" in str(recognise(tmp_path))
    for each, segmentation in zip(content["annotations"], ([], {"size": [6, 8], "counts": "06d0NN"})):
        each["segmentation"] = segmentation
    content["images"].append({"id": 9, "file_name": "gone.jpg"})
    write(tmp_path, **files)
    message = refused(read_folder, tmp_path)
    for words in ("packed runs, annotation 1", "packed runs, annotation 2", "names gone.jpg, which is not there"):
        assert words in message


def test_tables_that_are_none_are_refused_or_left_alone(tmp_path):
    write(tmp_path, **pairs("images/{}.png", "labels/{}.png"), **{"labels.txt": "a.png\nb.png\n"})
    assert recognise(tmp_path).classes == ()
    write(tmp_path, **{"dataset.json": {"labels": {"background": 0, "whole tumour": [1, 2]}}})
    (tmp_path / "labels.txt").unlink()
    assert "a table in it cannot be understood (TypeError" in refused(recognise, tmp_path)


def test_labelme_outlines_are_drawn_beside_their_images(tmp_path):
    shapes = [
        {"label": "cell", "points": SQUARE, "shape_type": "polygon"},
        {"label": "bud", "points": [[1, 4], [3, 6]], "shape_type": "rectangle"},
        {"label": "__ignore__", "points": [[6, 4], [7, 5]], "shape_type": "rectangle"},
    ]
    content = {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": 6, "imageWidth": 8}
    (sample,) = read_folder(write(tmp_path, **{"a.jpg": picture(), "a.json": content}))
    label = np.zeros((6, 8), int)
    label[1:4, 2:6], label[4:6, 1:3], label[4, 6] = 2, 1, 255
    assert np.array_equal(sample.label, label) and recognise(tmp_path).classes == ("background", "bud", "cell")
    assert "which have names; leave out --map" in refused(read_folder, tmp_path, {0: 0, 1: 255})
    shapes.append({"label": "cell", "points": [[1, 1]], "shape_type": "point"})
    write(tmp_path, **{"b.jpg": picture(), "a.json": content})
    message = refused(read_folder, tmp_path)
    assert "a.json has a point (cell), which is not read" in message and "b.jpg has no label" in message


def test_of_labels_of_other_programs_is_said_what_they_must_become(tmp_path):
    np.save(write(tmp_path, **{"images/a.png": picture(), "labels/b.png": mask()}) / "labels" / "a.npy", mask())
    advice = "labels in .npy, .h5 or .nii must become PNG or TIFF (in Cellpose: File, Save masks as PNG/tif)"
    assert f"images/a.png has no label; add one: {advice}\n" in refused(read_folder, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "set")


@pytest.mark.parametrize("labels", ["labels", "masks"])
def test_samples_of_a_sound_folder(tmp_path, labels):
    folder = make_folder(tmp_path, labels=labels)
    for name in (".DS_Store", "Thumbs.db", "._a.png", "desktop.ini", "a.tif.aux.xml", "a.tfw", "a.json", "a.roi"):
        (folder / "images" / name).write_bytes(b"junk")
    for name in (".ipynb_checkpoints", "__MACOSX", "old.png"):
        (folder / labels / name).mkdir()
    samples = list(read_folder(folder))
    assert [sample.name for sample in samples] == ["a", "b", "c"]
    assert np.array_equal(samples[1].image, picture(1)) and np.array_equal(samples[1].label, mask(1))
    assert samples[0].part is None


def test_wrong_layouts_are_refused_with_what_is_there(tmp_path, folder):
    make_folder(folder, labels="masks")
    assert "masks/a.png and labels/a.png have one name" in refused(read_folder, folder)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nowhere"):
        assert f"{name} holds nothing" in refused(read_folder, tmp_path / name)
    for name in ("images", "labels"):
        (tmp_path / "empty" / name).mkdir()
    assert "holds images, labels; put images into images/" in refused(read_folder, tmp_path / "empty")


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
    (folder / "images" / "notes.docx").write_text("my notes")
    names: list[str] = []
    message = refused(lambda: (names.append(sample.name) for sample in read_folder(folder)))
    assert names == ["b", "c"]
    pieces = ["5 problems", "images/a.png is empty", "images/lonely.png has no label", "labels/other.png has no image"]
    pieces += ["images/c.tif and c.png have one name before the suffix", "images/notes.docx is none of .png"]
    assert [piece for piece in pieces if piece not in message] == []


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
    samples = list(read_folder(folder))
    assert [sample.extras["instances"].max() for sample in samples] == [300, 300, 300]
    for suffix, array, words in (
        ("jpg", picture(), "is a JPEG"),
        ("png", np.dstack([picture()] * 4), "has an alpha channel"),
        ("png", colour_picture(), "has shape (6, 8, 3), dtype uint8; save one channel of integers"),
        ("tif", picture() / np.float32(2), "has shape (6, 8), dtype float32"),
    ):
        (folder / "instances" / "a.png").unlink(missing_ok=True)
        path = save(folder / "instances" / f"a.{suffix}", array)
        assert f"instances/a.{suffix} {words}" in refused(read_folder, folder)
        path.unlink()
    save(folder / "weights" / "a.tif", picture() / np.float32(2))
    assert next(read_folder(folder)).extras["weights"].dtype == np.float32


def test_composed_and_decomposed_accents_are_one_name(tmp_path):
    save(tmp_path / "images" / (unicodedata.normalize("NFC", "é") + ".png"), picture())
    save(tmp_path / "labels" / (unicodedata.normalize("NFD", "é") + ".png"), mask())
    assert len(list(read_folder(tmp_path))) == 1
