"""check: all problems at once, each with a file and an advice; labels of other images are noticed."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from commands import check
from commands.check import OneBatch, describe, examine, learn_one_batch, main, one_batch, parse_map
from imagesets.files import Sample
from tests.data_helpers import colour_picture, make_folder, mask, picture, refused, save


def found(report: check.Report) -> dict[str, str]:
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
        "float.tif": mask(5).astype(np.float32),
        "stack.tif": np.stack([mask(6)] * 2),
    }
    for number, (name, content) in enumerate(bad_labels.items()):
        save(folder / "images" / f"{Path(name).stem}.png", picture(100 + number))
        if isinstance(content, np.ndarray):
            save(folder / "labels" / name, content)
        else:
            (folder / "labels" / name).write_bytes(content or b"")
    images = {"nan.tif": np.full((6, 8), np.nan, np.float32), "colours.png": colour_picture(9)}
    for name, image in images.items():
        save(folder / "images" / name, image)
        save(folder / "labels" / f"{Path(name).stem}.png", mask(7))
    return folder


def test_all_problems_of_a_folder_come_at_once_each_with_what_to_do(tmp_path):
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
        "labels/float.tif": "has dtype float32",
        "labels/stack.tif": "holds 2 pages",
        "nan": "NaN or Inf",
        "colours": "but the first is (6, 8) uint8",
    }.items():
        assert text in problems.pop(file)
    assert not problems and report.num_sound == 8
    assert all(problem.advice for problem in report.problems)


def test_frequencies_sizes_parts_and_rare_classes(tmp_path):
    for number, name in enumerate("abcdefgh"):
        label = np.zeros((10, 20), np.uint8)
        label[0, :2], label[1] = (1, 0), 255
        save(tmp_path / "images" / f"{name}.png", picture(number, 10, 20))
        save(tmp_path / "labels" / f"{name}.png", label)
    report = examine(tmp_path, num_classes=3)
    assert report.num_sound == 8 and not report.problems
    assert report.frequencies == {0: 179 / 180, 1: 1 / 180, 2: 0.0}  # 20 of 200 pixels are ignored
    assert report.ignored == 0.1
    assert report.sizes == {(10, 20): 8}
    assert sum(report.parts.values()) == 8 and min(report.parts.values()) >= 1
    assert [remark[:7] for remark in report.remarks] == ["Class 1", "Class 2"]
    text = "\n".join(describe(report))
    assert "0: 99.4%, 1: 0.6%, 2: 0.0%; ignored 10.0%" in text
    assert "10×20 (8)" in text


def test_masks_of_0_and_255_get_the_option_that_maps_them(tmp_path):
    for number, name in enumerate("abcd"):
        save(tmp_path / "images" / f"{name}.png", picture(number))
        save(tmp_path / "masks" / f"{name}.png", mask(number) * 255)
    report = examine(tmp_path)
    assert len(report.problems) == 1 and "--map 0=0,255=1" in "\n".join(describe(report))
    assert examine(tmp_path, label_map=parse_map("0=0,255=1")).problems == []


def test_copies_are_named_and_copies_with_other_labels_are_a_problem(tmp_path):
    make_folder(tmp_path, "abcdef")
    for name, seed, content in (("copy_of_a", 0, mask(0)), ("odd_copy_of_b", 1, 1 - mask(1))):
        save(tmp_path / "images" / f"{name}.png", picture(seed))
        save(tmp_path / "labels" / f"{name}.png", content)
    report = examine(tmp_path)
    assert sorted(report.duplicates) == ["a = copy_of_a", "b = odd_copy_of_b"]
    assert found(report) == {"b = odd_copy_of_b": "are the same image with two different labels"}


def test_an_image_in_two_parts_of_a_named_set_is_a_problem(tmp_path, monkeypatch):
    pairs = [Sample(f"s{i}", picture(i % 4), mask(i), ("train", "test")[i // 4]) for i in range(5)]
    monkeypatch.setattr(check, "source_folder", lambda source, say: tmp_path)
    monkeypatch.setattr(check, "read_dataset", lambda name, folder: iter(pairs))
    assert "s0 (train) and s4 (test) are the same image" in [str(p).split(";")[0] for p in examine("dsb2018").problems]


def test_empty_missing_and_misplaced_folders_are_one_problem(tmp_path):
    (problem,) = examine(tmp_path / "nowhere").problems
    assert "neither a folder nor a known data set" in problem.found and "\n" not in problem.found
    (problem,) = examine(tmp_path).problems
    assert problem.found == "holds nothing" and "images/ and labels/" in problem.advice
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    assert found(examine(tmp_path)) == {"images/": "holds no image"}


def test_many_problems_of_one_kind_are_counted_and_the_report_has_all(tmp_path):
    make_folder(tmp_path, "a")
    for number in range(30):
        save(tmp_path / "images" / f"alone{number}.png", picture(number))
    report = examine(tmp_path)
    assert list(found(report).values()).count("has no label") == 30
    text = "\n".join(describe(report))
    assert "… and 10 more" in text and text.count("has no label") == 20


# ---- one batch ----


def blobs(number: int = 8, side: int = 48, channels: int = 1) -> list[Sample]:
    """Noisy images of bright squares at random places, with their labels."""
    rng, samples = np.random.default_rng(0), []
    for index in range(number):
        label = np.zeros((side, side), np.uint8)
        for top, left in rng.integers(0, side - 12, (4, 2)):
            label[top : top + 12, left : left + 12] = 1
        image = np.clip(60 + 120 * label[..., None] + rng.normal(0, 20, (side, side, channels)), 0, 255)
        samples.append(Sample(f"s{index}", image.astype(np.uint8).squeeze(), label))
    return samples


def test_right_labels_are_learnt_with_some_pixels_ignored_and_the_threads_stay():
    before = torch.get_num_threads()
    samples = [replace(s, label=np.where(np.arange(48) < 6, 255, s.label).astype(np.uint8)) for s in blobs(channels=3)]
    right = learn_one_batch(*one_batch(samples), 2)
    assert right.fits and right.share < 0.1 < right.exchanged and "a tiny network learns it" in str(right)
    assert torch.get_num_threads() == before


def test_labels_of_other_images_are_noticed():
    samples = blobs()
    wrong = [replace(sample, label=other.label) for sample, other in zip(samples, samples[1:] + samples[:1])]
    assert "may not belong together" in str(learn_one_batch(*one_batch(wrong), 2))


@pytest.mark.parametrize(
    ("share", "exchanged", "fits"),
    [(0.05, 0.05, True), (0.5, 0.6, True), (0.4, 0.4, False), (0.95, 1.0, False), (float("nan"), float("nan"), True)],
)
def test_what_counts_as_learnt(share, exchanged, fits):
    assert OneBatch(share, exchanged).fits == fits


def test_the_batch_has_unit_deviation_one_size_and_both_classes():
    samples = blobs(4, 64)
    small = Sample("small", np.full((20, 90), 9, np.uint16), np.eye(20, 90, dtype=np.uint8))
    images, targets = one_batch([*samples, small])
    assert images.shape == (5, 1, 20, 64) and targets.shape == (5, 20, 64)
    assert images.dtype == torch.float32 and targets.dtype == torch.int64
    assert abs(images.mean()) < 1e-6 and images.std(unbiased=False) == pytest.approx(1)
    assert all(set(target.unique().tolist()) == {0, 1} for target in targets)
    flat, _ = one_batch([replace(sample, image=np.zeros((64, 64), np.uint8)) for sample in samples])
    assert (flat == 0).all()  # and not NaN
    assert "expected two or more" in refused(one_batch, samples[:1])


# ---- the command ----


def test_the_command_says_all_draws_and_changes_nothing_in_the_folder(tmp_path, monkeypatch, capsys):
    folder = ill_folder(tmp_path / "my set")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    assert main(["my set"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("my set: 8 sound pairs, 14 problems")
    assert "labels/jpeg.jpg: is a JPEG" in out and "export it again as PNG" in out and "One batch   " in out
    with PIL.Image.open(tmp_path / "data_check.png") as sheet:
        assert sheet.width > sheet.height > 300
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_command_is_content_with_a_sound_folder_of_one_class(tmp_path, capsys):
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png", picture(number))
        save(tmp_path / "labels" / f"{number}.png", np.zeros((6, 8), np.uint8))
    assert main([str(tmp_path), "--picture", str(tmp_path / "x.png")]) == 0
    out = capsys.readouterr().out
    assert "4 sound pairs, 0 problems" in out and "there is nothing to learn" in out
    assert (tmp_path / "x.png").exists()


def test_wrong_entries_of_the_map_are_named():
    with pytest.raises(argparse.ArgumentTypeError, match="'255:1' is not VALUE=CLASS"):
        parse_map("0=0,255:1")
