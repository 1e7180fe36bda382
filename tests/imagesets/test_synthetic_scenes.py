"""The built-in colour sets on disk: the files are the scenes, and no other set is taken for one or overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checks import InputError
from imagesets import synthetic_scenes
from imagesets.pets import pet_scene
from imagesets.streets import street_scene
from imagesets.synthetic_scenes import road_label, write_pets, write_roads, write_streets
from imagesets.yeast import Scene

WRITERS = [write_streets, write_roads, write_pets]
SMALL = {"num_images": 2, "seed": 7, "height": 64, "width": 80}


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scene_of(writer: Callable, i: int) -> Scene:
    rng = np.random.default_rng([7, i])
    return pet_scene(rng, 64, 80, ("dog", "cat")[i]) if writer is write_pets else street_scene(rng, 64, 80)


@pytest.mark.parametrize("draw", [pet_scene, street_scene])
def test_same_seed_same_scene_and_other_seed_other_scene(draw: Callable[..., Scene]) -> None:
    first, again, other = (draw(np.random.default_rng(seed), 64, 64) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.label, other.label)


@pytest.mark.parametrize("draw", [pet_scene, street_scene])
@pytest.mark.parametrize(
    ("sides", "argument"),
    [((63, 64), "height"), ((64, 63), "width"), ((64.0, 64), "height"), ((-5, 64), "height")],
)
def test_sizes_that_cannot_be_drawn(draw: Callable[..., Scene], sides: tuple, argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        draw(np.random.default_rng(0), *sides)


@pytest.mark.parametrize(
    ("writer", "names"),
    [
        (write_streets, ["street_000.png", "street_001.png"]),
        (write_roads, ["road_000.png", "road_001.png"]),
        (write_pets, ["dog_000.png", "cat_001.png"]),
    ],
)
def test_written_files_are_the_scenes(tmp_path: Path, writer: Callable, names: list[str]) -> None:
    folder = writer(tmp_path / "set", **SMALL)
    assert folder == tmp_path / "set"
    assert sorted(content(folder)) == sorted(
        [*(f"{layer}/{name}" for layer in ("images", "labels") for name in names), "settings.json"]
    )
    for i, name in enumerate(names):
        scene, image, label = scene_of(writer, i), read(folder / "images" / name), read(folder / "labels" / name)
        assert image.shape == (64, 80, 3) and label.shape == (64, 80)
        assert image.dtype == label.dtype == np.uint8
        assert np.array_equal(image, scene.image)
        assert np.array_equal(label, road_label(scene.label) if writer is write_roads else scene.label)


def test_roads_are_the_streets_with_another_label(tmp_path: Path) -> None:
    streets, roads = write_streets(tmp_path / "streets", **SMALL), write_roads(tmp_path / "roads", **SMALL)
    for i in range(2):
        pair = streets / "labels" / f"street_00{i}.png", roads / "labels" / f"road_00{i}.png"
        street, road = (read(path) for path in pair)
        assert (streets / "images" / pair[0].name).read_bytes() == (roads / "images" / pair[1].name).read_bytes()
        assert np.array_equal(road == 1, street == 3)
        assert np.array_equal(road == 255, street == 255)
        assert set(np.unique(road)) <= {0, 1, 255}


def test_a_street_becomes_road_or_not() -> None:
    label = np.array([[0, 1, 2, 3], [4, 5, 255, 3]], dtype=np.uint8)
    assert road_label(label).tolist() == [[0, 0, 0, 1], [0, 0, 255, 1]]
    assert road_label(label).dtype == np.uint8


@pytest.mark.parametrize(
    ("writer", "count", "size"),
    [(write_streets, 60, (256, 256)), (write_roads, 120, (256, 256)), (write_pets, 160, (160, 160))],
)
def test_the_default_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Callable, count: int, size: tuple[int, int]
) -> None:
    small, sizes = street_scene(np.random.default_rng(0), 64, 64), []

    def draw(rng: np.random.Generator, height: int, width: int, species: str = "") -> Scene:
        sizes.append((height, width))
        return small

    monkeypatch.setattr(synthetic_scenes, "street_scene", draw)
    monkeypatch.setattr(synthetic_scenes, "pet_scene", draw)
    folder = writer(tmp_path / "set")
    assert [len(list((folder / layer).iterdir())) for layer in ("images", "labels")] == [count] * 2
    assert sizes == [size] * count
    if writer is write_pets:
        names = [path.name for path in (folder / "images").iterdir()]
        assert sum(name.startswith("cat_") for name in names) == sum(name.startswith("dog_") for name in names) == 80
        assert {"cat_003.png", "dog_004.png"} <= set(names)


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    for writer in WRITERS:
        few, many = (writer(tmp_path / f"{writer.__name__}{n}", n, height=64, width=64) for n in (1, 3))
        first, second = content(few), content(many)
        assert all(second[name] == first[name] for name in first if name != "settings.json")


@pytest.mark.parametrize("writer", WRITERS)
def test_the_same_set_is_kept_and_not_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Callable
) -> None:
    folder = writer(tmp_path / "set", **SMALL)
    before = content(folder)
    for name in ("street_scene", "pet_scene"):
        monkeypatch.setattr(synthetic_scenes, name, lambda *_, **__: pytest.fail("drawn again"))
    assert writer(folder, **SMALL) == folder
    assert content(folder) == before


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("change", [{"seed": 1}, {"num_images": 1}, {"height": 65}, {"width": 65}])
def test_fault_29_another_set_is_neither_taken_nor_overwritten(tmp_path: Path, writer: Callable, change: dict) -> None:
    folder = writer(tmp_path / "set", **SMALL)
    before = content(folder)
    with pytest.raises(InputError, match="set exists"):
        writer(folder, **(SMALL | change))
    assert content(folder) == before


def test_fault_29_one_kind_of_set_is_not_taken_for_another(tmp_path: Path) -> None:
    for writer in WRITERS:
        folder = writer(tmp_path / writer.__name__, **SMALL)
        for other in WRITERS:
            if other is not writer:
                with pytest.raises(InputError, match="holds something else"):
                    other(folder, **SMALL)


def test_fault_29_an_older_version_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pets(tmp_path / "pets", **SMALL)
    monkeypatch.setattr(synthetic_scenes, "VERSION", synthetic_scenes.VERSION + 1)
    with pytest.raises(InputError, match="Delete the folder"):
        write_pets(folder, **SMALL)


def test_the_settings_are_written(tmp_path: Path) -> None:
    folder = write_roads(tmp_path / "roads", **SMALL)
    noted = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    assert noted == {"set": "roads", "version": synthetic_scenes.VERSION} | SMALL


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("arguments", [{"num_images": 0}, {"num_images": 1.5}, {"seed": -1}, {"height": 63}])
def test_settings_that_make_no_set(tmp_path: Path, writer: Callable, arguments: dict) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        writer(tmp_path / "set", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def failing(rng: np.random.Generator, *size: int) -> Scene:
        calls.append(size)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return street_scene(rng, *size)

    monkeypatch.setattr(synthetic_scenes, "street_scene", failing)
    with pytest.raises(KeyboardInterrupt):
        write_streets(tmp_path / "streets", **SMALL)
    assert not list(tmp_path.iterdir())
