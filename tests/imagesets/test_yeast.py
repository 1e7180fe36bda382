"""The synthetic yeast: exact labels, dead cells as background; and how all four synthetic sets lie on disk."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from checks import InputError
from imagesets.scenes import pet_scene, street_scene, write_pets, write_roads, write_streets
from imagesets.yeast import Scene, YeastScene, write_yeast, yeast_scene
from tests.data_helpers import content

SMALL = {"num_images": 2, "seed": 7, "height": 64, "width": 80}
Writer, Patch = Callable[..., Path], pytest.MonkeyPatch
WRITERS: dict[Writer, list[str]] = {  # names of the first two
    write_yeast: ["yeast_00.png", "yeast_01.png"],
    write_streets: ["street_000.png", "street_001.png"],
    write_roads: ["road_000.png", "road_001.png"],
    write_pets: ["dog_000.png", "cat_001.png"],
}
OTHER = dict(zip(WRITERS, [*WRITERS][1:] + [write_yeast]))
every_set = pytest.mark.parametrize("writer", WRITERS)


@pytest.fixture(scope="module")
def scenes() -> list[YeastScene]:
    return [yeast_scene(np.random.default_rng([0, i])) for i in range(18)]


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(64, 140), width=st.integers(64, 140))
def test_labels_belong_together_in_any_size(seed: int, height: int, width: int) -> None:
    scene = yeast_scene(np.random.default_rng(seed), height, width)
    arrays = scene.image, scene.label, scene.instances, scene.dead
    assert [array.dtype for array in arrays] == [np.uint8, np.uint8, np.uint16, bool]
    assert {array.shape for array in arrays} == {(height, width)}
    assert np.array_equal(scene.label, scene.instances > 0)  # so label holds 0 and 1 only
    assert not (scene.dead & (scene.label == 1)).any() and scene.dead.sum() >= 50
    area = np.bincount(scene.instances.ravel())
    assert len(area) > 1 and area[1:].min() >= 10  # living cells, numbered 1 … n without a gap, and no sliver
    for number, box in enumerate(ndimage.find_objects(scene.instances), start=1):
        assert ndimage.label(scene.instances[box] == number)[1] == 1, f"cell {number} is in pieces"


@pytest.mark.parametrize("draw", [yeast_scene, street_scene, pet_scene])
def test_same_seed_same_scene_and_other_seed_other_scene(draw: Callable[..., Scene]) -> None:
    first, again, other = (draw(np.random.default_rng(seed), 64, 64) for seed in (5, 5, 6))
    for name in first.__dataclass_fields__:
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.image, other.image) and not np.array_equal(first.label, other.label)


def test_the_pictures_are_those_of_the_report(scenes: list[YeastScene]) -> None:
    """The yeast numbers of the notebook rest on them: a change of one pixel needs a new `VERSION`."""
    digest = hashlib.sha256()
    for scene in scenes[:3]:
        digest.update(scene.instances.tobytes())
    assert digest.hexdigest()[:16] == "119890af3923e52c"
    assert [round(float(scene.image.mean()), 2) for scene in scenes[:3]] == [79.76, 80.38, 90.11]


def test_touching_cells_are_one_in_the_label_alone(scenes: list[YeastScene]) -> None:  # as the topology loss needs
    assert all(ndimage.label(scene.label)[1] < scene.instances.max() for scene in scenes)


def scene_of(writer: Writer, i: int) -> Scene:
    rng, size = np.random.default_rng([7, i]), (64, 80)
    if writer is write_yeast:
        return yeast_scene(rng, *size)
    return pet_scene(rng, *size, ("dog", "cat")[i]) if writer is write_pets else street_scene(rng, *size)


@every_set
def test_written_files_are_the_scenes(writer: Writer, tmp_path: Path) -> None:
    folder = writer(tmp_path / "set", **SMALL)
    layers = {"images": "image", "labels": "label"}
    layers |= {name: name for name in ("instances", "dead")} if writer is write_yeast else {}
    expected = [f"{layer}/{name}" for layer in layers for name in WRITERS[writer]]
    assert sorted(content(folder)) == sorted([*expected, "settings.json"])
    for i, name in enumerate(WRITERS[writer]):
        scene = scene_of(writer, i)
        for layer, attribute in layers.items():
            array = getattr(scene, attribute)
            if writer is write_roads and layer == "labels":
                array = np.array([0, 0, 0, 1, 0, 0, *[255] * 250], np.uint8)[array]
            assert np.array_equal(read(folder / layer / name), array)
    assert read(folder / "labels" / name).dtype == np.uint8
    assert writer is not write_yeast or read(folder / "instances" / name).dtype == np.uint16


@every_set
def test_an_image_does_not_depend_on_how_many_there_are(writer: Writer, tmp_path: Path) -> None:
    few, many = (content(writer(tmp_path / f"{n}", n, height=64, width=64)) for n in (1, 3))
    assert all(many[name] == few[name] for name in few if name != "settings.json")


@every_set
def test_the_same_set_is_kept_and_another_is_neither_taken_nor_overwritten(writer: Writer, tmp_path: Path) -> None:
    folder = writer(tmp_path / "set", **SMALL)
    kept = folder / "images" / WRITERS[writer][0]
    kept.write_bytes(b"drawn again, it would be an image")
    before = content(folder)
    assert writer(folder, **SMALL) == folder
    for other, change in ((writer, {"seed": 1}), (writer, {"height": 65}), (OTHER[writer], {})):
        with pytest.raises(InputError, match="set exists and does not hold"):
            other(folder, **(SMALL | change))
    assert content(folder) == before


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_at_the_fifth_file_leaves_nothing(tmp_path: Path, monkeypatch: Patch, error: BaseException) -> None:
    save, calls = Image.Image.save, []

    def failing(image: Image.Image, path: Path) -> None:
        calls.append(path)
        if len(calls) == 5:
            raise error
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(type(error)):
        write_yeast(tmp_path / "yeast", **SMALL)
    assert not list(tmp_path.iterdir())
    assert len(content(write_yeast(tmp_path / "yeast", **SMALL))) == 9  # the next run starts afresh
