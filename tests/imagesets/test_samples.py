"""Tests of samples.py: all problems of a folder come at once, and no image is in two parts."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tests.data_helpers import make_folder, mask, picture, refused, save
from hypothesis import given, settings
from hypothesis import strategies as st

from imagesets.files import PARTS, find_pairs, raise_problems, read_folder, split_parts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "set")


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
    assert "not both" in refused(find_pairs, folder)
    assert "no such folder" in refused(find_pairs, tmp_path / "nowhere")


@pytest.mark.parametrize("read", [find_pairs, read_folder])
def test_fault_01_missing_partners_in_both_directions(folder, read):
    (folder / "labels" / "a.png").unlink()
    (folder / "images" / "c.png").unlink()
    message = refused(read, folder)
    assert "2 problems" in message
    assert "images/a.png has no label" in message
    assert "labels/c.png has no image" in message


def test_fault_07_one_mask_of_0_and_255(tmp_path):
    save(tmp_path / "images" / "0.png", picture(0))
    save(tmp_path / "labels" / "0.png", mask(0) * 255)
    assert "labels/0.png holds 255 but no class" in refused(read_folder, tmp_path)


def test_a_folder_of_another_layout_is_shown_in_part(tmp_path):
    assert "Found: nothing." in refused(find_pairs, tmp_path)
    for number in range(12):
        (tmp_path / f"{number:02d}").mkdir()
    assert "Found: 00, 01, 02, 03, 04, 05, 06, 07, …." in refused(find_pairs, tmp_path)


def test_fault_07_mask_of_0_and_255_is_never_guessed(tmp_path):
    for seed in range(3):
        save(tmp_path / "images" / f"{seed}.png", picture(seed))
        save(tmp_path / "labels" / f"{seed}.png", mask(seed) * 255)
    message = refused(read_folder, tmp_path)
    assert "label_map={0: 0, 255: 1}" in message
    assert "labels/0.png and 2 more hold 255" in message
    first = next(read_folder(tmp_path, label_map={0: 0, 255: 1}))
    assert np.array_equal(first.label, mask(0))
    ignored = list(read_folder(tmp_path, label_map={0: 0, 255: 255}))  # said plainly, so it is accepted
    assert set(np.unique(ignored[0].label)) == {0, 255}


def test_fault_07_ignored_pixels_beside_classes_are_accepted(folder):
    label = mask(1)
    label[:2] = [[255], [1]]
    save(folder / "labels" / "b.png", label)
    assert len(list(read_folder(folder))) == 3
    save(folder / "labels" / "c.png", label * (label == 255))  # only 0 and 255, but b shows what 255 means
    assert len(list(read_folder(folder))) == 3


def test_fault_12_sizes_that_differ_are_named_both(folder):
    save(folder / "labels" / "b.png", mask(1, 6, 7))
    assert "images/b.png has size (6, 8), labels/b.png has (6, 7)" in refused(find_pairs, folder)


def test_fault_15_names_that_occur_twice(folder):
    save(folder / "images" / "a.tif", picture(5))
    assert "images/a.tif and a.png have one name before the suffix" in refused(find_pairs, folder)


def test_fault_16_composed_and_decomposed_accents_are_one_name(tmp_path):
    save(tmp_path / "images" / (unicodedata.normalize("NFC", "é") + ".png"), picture())
    save(tmp_path / "labels" / (unicodedata.normalize("NFD", "é") + ".png"), mask())
    assert len(list(read_folder(tmp_path))) == 1


def test_fault_17_junk_is_skipped(folder):
    for name in (".DS_Store", "Thumbs.db", "._a.png", "desktop.ini"):
        (folder / "images" / name).write_bytes(b"junk")
    for name in (".ipynb_checkpoints", "__MACOSX", "old.png"):
        (folder / "labels" / name).mkdir()
    assert len(find_pairs(folder)) == 3


def test_files_that_are_no_images_are_named(folder):
    (folder / "images" / "notes.txt").write_text("my notes")
    assert "images/notes.txt is none of .png" in refused(find_pairs, folder)


def test_fault_18_unreadable_folder(folder, monkeypatch):
    def forbidden(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert "images/ cannot be read (Permission denied)" in refused(find_pairs, folder)


def test_fault_20_empty_folders(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    assert "there is no image and no label" in refused(find_pairs, tmp_path)


def test_all_problems_are_listed_at_once_and_good_samples_come_first(folder):
    (folder / "images" / "a.png").write_bytes(b"")
    save(folder / "labels" / "b.png", mask(1, 2, 2))
    save(folder / "images" / "lonely.png", picture(7))
    names = []
    messages = [refused(lambda: (names.append(s.name) for s in read_folder(folder))), refused(find_pairs, folder)]
    assert names == ["c"]
    for piece in ("3 problems", "a.png is empty", "b.png has size", "lonely.png has no label"):
        assert all(piece in message for message in messages)


def test_many_problems_are_cut_at_twenty():
    raise_problems([], "nowhere")  # nothing to say
    assert refused(raise_problems, ["it is bad."], "x.png") == "x.png: it is bad."
    message = refused(raise_problems, [f"bad {number}" for number in range(30)], "folder")
    assert message.startswith("folder: 30 problems\n- bad 0\n")
    assert message.endswith("- bad 19\n- and 10 more")


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


def test_fault_19_one_image_in_two_given_parts():
    message = refused(split_parts, ["x", "y", "x"], given=["train", "val", "test"], names=["a", "b", "c"])
    assert "a (train) and c (test) are the same image" in message
    message = refused(split_parts, ["x", "x"], given=["train", "val"])
    assert "sample 0 (train) and sample 1 (val)" in message


def test_fault_19_open_copy_of_a_given_image_follows_it():
    parts = split_parts([*"xxabcdefg"], given=["test", *[None] * 8])
    assert parts[:2] == ["test", "test"]
    assert "test" not in parts[2:]
