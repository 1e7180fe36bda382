"""The table of the real data sets is complete, and its names and numbers fit together."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

from imagesets.sources import SOURCES

README = (Path(__file__).parents[2] / "data" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_address_is_secure_and_every_set_says_its_terms(name: str) -> None:
    source = SOURCES[name]
    assert name == source.name
    assert source.licence
    assert "doi 10." in source.citation
    assert source.what.endswith(".")
    assert source.what.count(". ") == 0
    for file in source.files:
        assert file.address.startswith("https://")
        assert not Path(file.target).is_absolute()
        assert ".." not in Path(file.target).parts
        assert re.fullmatch(r"(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})?", file.checksum)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_readme_of_the_data_folder_tells_of_every_set(name: str) -> None:
    source = SOURCES[name]
    assert README.count(f"| `{name}` |") == 2  # its terms, and where to put it by hand
    assert source.citation.split("doi ")[1] in README or "10.48550" in source.citation
    for file in source.files:
        if file.is_archive:
            assert file.target in README


def test_single_files_match_the_expected_names_and_numbers() -> None:
    # yeast_phase: 10 frames + 10 labels = 20 files; yeastcellseg: 15 + 15 = 30; topomortar: 2·(50 + 20 + 50) = 240
    for name, total in (("yeast_phase", 20), ("yeastcellseg", 30), ("topomortar", 240)):
        targets = [file.target for file in SOURCES[name].files]
        assert len(set(targets)) == total
        for pattern, number in SOURCES[name].expected:
            assert sum(fnmatch.fnmatchcase(target, pattern) for target in targets) == number
    assert SOURCES["yeast_phase"].files[1].target == "data/sample_movie_1/im000_mask1.tif"
    assert SOURCES["yeastcellseg"].files[-1].address.endswith("zenodo.org/records/344879/files/DS01_15_gt.tif")
    assert SOURCES["topomortar"].files[-1].address.endswith("/dataset/test/accurate/120.png")
    assert sum(number for _, number in SOURCES["dsb2018"].expected) == 2 * 497


def test_the_names_of_kitti_are_those_of_289_frames_and_their_roads() -> None:
    source = SOURCES["kitti_road"]
    assert len(set(source.names)) == 2 * 289  # 95 + 96 + 98
    for name in ("image_2/um_000094", "image_2/umm_000095", "gt_image_2/uu_road_000097", "gt_image_2/um_road_000000"):
        assert f"training/{name}.png" in source.names
    for pattern, number in source.expected:
        assert sum(fnmatch.fnmatchcase(name, pattern) for name in source.names) == number
    assert not fnmatch.fnmatchcase("training/gt_image_2/um_lane_000000.png", source.expected[1][0])
