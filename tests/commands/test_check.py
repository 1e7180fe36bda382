"""check: all problems at once, each with a file and an advice."""

import os

import numpy as np
import pytest
from PIL import Image

from commands.check import describe, examine, main
from tests.data_helpers import content, make_folder, mask, picture, refused, save


def test_a_folder_with_problems_is_told_all_of_them_and_left_as_it_is(tmp_path, monkeypatch, capsys):
    folder = make_folder(tmp_path / "my set", "abcdefgh")
    for seed, name in enumerate(("alone", "jpeg", "soft"), start=20):
        save(folder / "images" / f"{name}.png", picture(seed))
    save(folder / "labels" / "jpeg.jpg", mask(2) * 200)
    save(folder / "labels" / "soft.png", picture(3))
    before = content(folder)
    monkeypatch.chdir(tmp_path)
    assert main(["my set"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("my set: 8 sound pairs, 3 problems")
    assert "add one, or take this file away:\n    images/alone.png: has no label" in out
    for line in ("    labels/jpeg.jpg: is a JPEG", "    soft: has ", "--map 0=0,255=1", "Picture     data_check.png: "):
        assert line in out
    with Image.open(tmp_path / "data_check.png") as sheet:
        assert sheet.width > sheet.height > 300
    assert content(folder) == before


def test_frequencies_sizes_and_rare_classes(tmp_path):
    for number, name in enumerate("abcdefgh"):
        label = np.zeros((10, 20), np.uint8)
        label[0, :2], label[1] = (1, 0), 255
        save(tmp_path / "images" / f"{name}.png", picture(number, 10, 20))
        save(tmp_path / "labels" / f"{name}.png", label)
    assert describe(examine(tmp_path, num_classes=3)) == [
        f"{tmp_path}: 8 sound pairs, 0 problems",
        f"Recognised  {tmp_path.name}: images and labels, 8 pairs; 3 classes",
        "Classes     0: 99.4%, 1: 0.6%, 2: 0.0%; ignored 10.0%",  # 20 of 200 pixels are ignored, 1 of 180 is class 1
        "Sizes       10×20 (8)",
        "Look at     class 1 has 0.56% of the pixels: is --classes right?",
        "Look at     class 2 has 0.00% of the pixels: is --classes right?",
    ]


@pytest.mark.parametrize("picture", ["new/a.png", "a.jpg"])
def test_a_picture_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch, picture):
    monkeypatch.chdir(tmp_path)
    assert f"--picture {picture}: give a name that ends in .png" in refused(main, ["nowhere", "--picture", picture])


def test_what_contradicts_itself_is_told_and_any_name_can_be_drawn(tmp_path, monkeypatch, capsys):
    names = ["$x^{", "b_1\nb", os.fsdecode(b"n\xe4me"), *(f"scene1_r{i}_c{j}" for i in range(2) for j in range(2))]
    for number, name in enumerate(names):
        image = Image.frombytes("P", (8, 6), mask(number).tobytes())
        image.putpalette([0, 0, 0, 255, 0, 0] if number else [255, 0, 0, 0, 0, 0])
        save(tmp_path / "labels" / f"{name}.png", image)
        save(tmp_path / "images" / f"{name}.tif", np.dstack([picture(number)] * 5), planarconfig="contig")
    monkeypatch.chdir(tmp_path)
    assert main([".", "--map", "0-0-0=0,*=1"]) == 0
    out = capsys.readouterr().out
    assert "7 sound pairs, 0 problems" in out and "4 images seem to be cut from scene1_r0" in out
    assert main(["."]) == 1
    assert "b_1?b: shows 0 in its mask as (0, 0, 0), but $x^{ as (255, 0, 0)" in capsys.readouterr().out


def test_copies_are_named_and_copies_with_other_labels_are_a_problem(tmp_path):
    make_folder(tmp_path, "abcdef")
    for name, seed, label in (("copy_of_a", 0, mask(0)), ("odd_copy_of_b", 1, 1 - mask(1))):
        save(tmp_path / "images" / f"{name}.png", picture(seed))
        save(tmp_path / "labels" / f"{name}.png", label)
    report = examine(tmp_path)
    assert sorted(report.duplicates) == ["a = copy_of_a", "b = odd_copy_of_b"]
    (problem,) = report.problems
    assert (problem.file, problem.found) == ("b = odd_copy_of_b", "are one image with two different labels")


def test_a_missing_folder_is_one_problem_and_many_of_one_kind_are_counted(tmp_path):
    (problem,) = examine(tmp_path / "nowhere").problems
    assert "neither a folder nor a known data set" in problem.found and "\n" not in problem.found
    make_folder(tmp_path, "a")
    for number in range(30):
        save(tmp_path / "images" / f"alone{number}.png", picture(number))
    text = "\n".join(describe(examine(tmp_path)))
    assert "… and 10 more" in text and text.count("has no label") == 20
