"""Tests of doctor.py: all problems at once, each with a file and an advice; the folder stays as it is."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from commands import doctor, rehearsal
from commands.doctor import describe, examine, main, parse_map
from tests.data_helpers import colour_picture, make_folder, mask, picture, save


def found(report: doctor.Report) -> dict[str, str]:
    return {problem.file: problem.found for problem in report.problems}


def ill_folder(folder: Path) -> Path:
    """One file for each kind of problem that a folder of pairs can have."""
    make_folder(folder, "abcdefgh")
    save(folder / "images" / "alone.png", picture(20))
    save(folder / "labels" / "lonely.png", mask(20))
    (folder / "images" / "notes.txt").write_text("hello")
    bad_labels = {
        "alpha.png": np.dstack([mask(1)] * 4),
        "colour.png": colour_picture(1),
        "jpeg.jpg": mask(2) * 200,
        "soft.png": picture(3),
        "size.png": mask(4, 5, 5),
        "empty.png": None,
        "page.png": b"<html>log in</html>",
        "cut.png": b"\x89PNG\r\n\x1a\n",
        "float.tif": mask(5).astype(np.float32),
        "stack.tif": np.stack([mask(6)] * 2),
    }
    for number, (name, content) in enumerate(bad_labels.items()):
        save(folder / "images" / f"{Path(name).stem}.png", picture(100 + number))
        if isinstance(content, np.ndarray):
            save(folder / "labels" / name, content)
        else:
            (folder / "labels" / name).write_bytes(content or b"")
    pairs = {
        "nan.tif": np.full((6, 8), np.nan, np.float32),
        "grey_among_colours.png": colour_picture(9),
        "deep.tif": picture(1).astype(np.int32),
        "see_through.png": np.dstack([picture(1)] * 4),
    }
    for name, image in pairs.items():
        save(folder / "images" / name, image)
        save(folder / "labels" / f"{Path(name).stem}.png", mask(7))
    return folder


def test_all_problems_of_a_folder_at_once_each_with_what_to_do(tmp_path):
    report = examine(ill_folder(tmp_path / "set"))
    problems = found(report)
    for file, text in {
        "images/alone.png": "has no label",
        "labels/lonely.png": "has no image",
        "images/notes.txt": "is none of .png",
        "labels/alpha.png": "has an alpha channel",
        "labels/colour.png": "is a colour image",
        "labels/jpeg.jpg": "is a JPEG",
        "soft": "label pixels that are not in 0 … 1",
        "images/size.png": "has size (6, 8), labels/size.png has (5, 5)",
        "labels/empty.png": "is empty (0 bytes)",
        "labels/page.png": "a saved web page?",
        "labels/cut.png": "cannot be read as an image",
        "labels/float.tif": "has dtype float32",
        "labels/stack.tif": "holds 2 pages",
        "nan": "NaN or Inf",
        "grey_among_colours": "but the first is (6, 8) uint8",
        "deep": "dtype int32",
        "images/see_through.png": "has transparent pixels",
    }.items():
        assert text in problems.pop(file)
    assert not problems
    assert all(problem.advice for problem in report.problems)
    assert report.num_sound == 8


def test_frequencies_sizes_parts_and_remarks(tmp_path):
    for number, name in enumerate("abcdefgh"):
        label = np.zeros((10, 20), np.uint8)
        label[0, :2], label[1] = (1, 0), 255
        save(tmp_path / "images" / f"{name}.png", picture(number, 10, 20))
        save(tmp_path / "labels" / f"{name}.png", label)
    report = examine(tmp_path, num_classes=3)
    assert report.num_sound == 8 and not report.problems
    assert report.frequencies == {0: 179 / 180, 1: 1 / 180, 2: 0.0}  # 20 of 200 pixels are ignored
    assert report.ignored == 0.1
    assert report.images_with == {0: 8, 1: 8}
    assert report.sizes == {(10, 20): 8}
    assert sum(report.parts.values()) == 8 and min(report.parts.values()) >= 1
    assert [remark[:7] for remark in report.remarks] == ["Class 1", "Class 2"]
    text = "\n".join(describe(report))
    assert "0: 99.4% (in 8), 1: 0.6% (in 8), 2: 0.0% (in 0); ignored 10.0%" in text
    assert "10×20 (8)" in text


def test_fault_07_masks_of_0_and_255_get_the_option_that_maps_them(tmp_path):
    for number, name in enumerate("abcd"):
        save(tmp_path / "images" / f"{name}.png", picture(number))
        save(tmp_path / "masks" / f"{name}.png", mask(number) * 255)
    (problem,) = examine(tmp_path).problems
    assert "label_map={0: 0, 255: 1}" in problem.advice
    assert examine(tmp_path, label_map=parse_map("0=0,255=1")).problems == []


def test_fault_19_copies_are_named_and_copies_with_other_labels_are_a_problem(tmp_path):
    make_folder(tmp_path, "abcdef")
    for name, content in {"copy_of_a": mask(0), "odd_copy_of_b": 1 - mask(1)}.items():
        seed = 0 if name == "copy_of_a" else 1
        save(tmp_path / "images" / f"{name}.png", picture(seed))
        save(tmp_path / "labels" / f"{name}.png", content)
    report = examine(tmp_path)
    assert sorted(report.duplicates) == [("a", "copy_of_a"), ("b", "odd_copy_of_b")]
    (problem,) = report.problems
    assert (problem.file, problem.found) == ("b = odd_copy_of_b", "is the same image with two different labels")


def test_fault_19_an_image_in_two_parts_of_a_named_set_is_a_problem(tmp_path, monkeypatch):
    from imagesets.files import Sample

    pairs = [Sample(f"s{i}", picture(i % 4), mask(i), ("train", "test")[i // 4]) for i in range(5)]
    monkeypatch.setattr(doctor, "source_folder", lambda source, say: tmp_path)
    monkeypatch.setattr(doctor, "read_dataset", lambda name, folder: iter(pairs))
    report = examine("dsb2018")
    assert any("s0" in str(p) and "s4" in str(p) for p in report.problems)


def test_fault_20_empty_missing_and_misplaced_folders(tmp_path):
    assert "neither a folder nor a known data set" in found(examine(tmp_path / "nowhere")).popitem()[1]
    (problem,) = examine(tmp_path).problems
    assert "images/ and labels/" in problem.advice
    assert problem.found == "holds nothing"
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (problem,) = examine(tmp_path).problems
    assert problem.found == "holds no image"


def test_many_problems_of_one_kind_are_counted_and_the_report_has_all(tmp_path):
    make_folder(tmp_path, "a")
    for number in range(30):
        save(tmp_path / "images" / f"alone{number}.png", picture(number))
    report = examine(tmp_path)
    assert len([problem for problem in report.problems if problem.found == "has no label"]) == 30
    text = "\n".join(describe(report))
    assert "… and 10 more" in text and text.count("has no label") == 20


@pytest.fixture
def no_times(monkeypatch):
    monkeypatch.setattr(rehearsal, "seconds_per_megapixel", lambda: 6.0)


def test_the_command_says_all_draws_and_changes_nothing_in_the_folder(tmp_path, monkeypatch, capsys, no_times):
    folder = ill_folder(tmp_path / "my set")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    assert main(["my set"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("my set: 8 sound pairs, 17 problems")
    assert "labels/jpeg.jpg: is a JPEG" in out and "PNG" in out
    assert re.search(r"One batch +(a tiny network learns it|WARNING)", out)
    assert re.search(r"Minutes +on this machine \(.+\), about: quick, standard, full\n", out)
    minutes = " +".join(map(str, rehearsal.minutes(6.0)["Part 7 · Pets"].values()))
    assert re.search(f"Part 7 · Pets +{minutes}", out) and "together" in out
    with PIL.Image.open(tmp_path / "data_check.png") as sheet:
        assert sheet.width > sheet.height > 300
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_command_is_content_with_a_sound_folder(tmp_path, capsys):
    make_folder(tmp_path / "set", "abcdef")
    assert main([str(tmp_path / "set"), "--picture", str(tmp_path / "x.png"), "--no-times"]) == 0
    out = capsys.readouterr().out
    assert "6 sound pairs, 0 problems" in out and "Minutes" not in out
    assert (tmp_path / "x.png").exists()


def test_labels_of_one_class_are_said_to_have_nothing_to_learn(tmp_path, capsys):
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png", picture(number))
        save(tmp_path / "labels" / f"{number}.png", np.zeros((6, 8), np.uint8))
    main([str(tmp_path), "--picture", str(tmp_path.parent / "x.png"), "--no-times"])
    assert "there is nothing to learn" in capsys.readouterr().out


def test_wrong_entries_of_the_map_are_named():
    with pytest.raises(argparse.ArgumentTypeError, match="'255:1' is not VALUE=CLASS"):
        parse_map("0=0,255:1")
