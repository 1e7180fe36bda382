"""The built-in yeast set: exact labels, dead cells as background, the same pictures for the same seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from checks import InputError
from imagesets import yeast as synthetic
from imagesets.yeast import YeastScene, write_yeast, yeast_scene

LAYERS = ["images", "labels", "instances", "dead"]


@pytest.fixture(scope="module")
def scenes() -> list[YeastScene]:
    return [yeast_scene(np.random.default_rng([0, i])) for i in range(18)]


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def touching_pairs(instances: np.ndarray) -> set[tuple[int, int]]:
    pairs = set()
    for a, b in ((instances[1:], instances[:-1]), (instances[:, 1:], instances[:, :-1])):
        border = (a != b) & (a > 0) & (b > 0)
        pairs |= {(min(p), max(p)) for p in zip(a[border].tolist(), b[border].tolist())}
    return pairs


def mean_iou(true_positive, false_positive, positives, negatives):
    false_negative, true_negative = positives - true_positive, negatives - false_positive
    cell = true_positive / (true_positive + false_positive + false_negative)
    return (cell + true_negative / (true_negative + false_positive + false_negative)) / 2


# ---- one scene


def check_scene(scene: YeastScene, height: int, width: int) -> None:
    for array, dtype in (
        (scene.image, np.uint8),
        (scene.label, np.uint8),
        (scene.instances, np.uint16),
        (scene.dead, np.bool_),
    ):
        assert array.shape == (height, width)
        assert array.dtype == dtype
    assert np.array_equal(scene.label, scene.instances > 0)  # so label holds 0 and 1 only
    assert not (scene.dead & (scene.label == 1)).any()
    area = np.bincount(scene.instances.ravel())
    assert len(area) > 1  # living cells
    assert area[1:].min() >= 10  # numbers 1 … n without a gap, and no sliver
    assert scene.dead.sum() >= 50
    for number, box in enumerate(ndimage.find_objects(scene.instances), start=1):
        assert ndimage.label(scene.instances[box] == number)[1] == 1, f"cell {number} is in pieces"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(64, 140), width=st.integers(64, 140))
def test_labels_belong_together_in_any_size(seed: int, height: int, width: int) -> None:
    check_scene(yeast_scene(np.random.default_rng(seed), height, width), height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 400), (301, 65)])
def test_extreme_sizes(height: int, width: int) -> None:
    for seed in range(5):
        check_scene(yeast_scene(np.random.default_rng(seed), height, width), height, width)


def test_the_standard_scenes_are_sound(scenes: list[YeastScene]) -> None:
    for scene in scenes:
        check_scene(scene, 256, 256)


def test_same_seed_same_scene_and_other_seed_other_scene() -> None:
    first, again, other = (yeast_scene(np.random.default_rng(s), 64, 64) for s in (5, 5, 6))
    for name in YeastScene.__dataclass_fields__:
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.label, other.label)


@pytest.mark.parametrize(
    ("sides", "argument"),
    [((63, 64), "height"), ((64, 63), "width"), ((64.0, 64), "height"), ((-5, 64), "height")],
)
def test_sizes_that_cannot_be_drawn(sides: tuple, argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        yeast_scene(np.random.default_rng(0), *sides)


# ---- what the pictures must hold


def test_as_many_cells_as_on_a_real_picture(scenes: list[YeastScene]) -> None:
    for scene in scenes:
        assert 8 <= scene.instances.max() <= 26
        assert 1 <= ndimage.label(scene.dead)[1] <= 4
        assert 0.03 < scene.label.mean() < 0.2
    diameters = np.concatenate([2 * np.sqrt(np.bincount(s.instances.ravel())[1:] / np.pi) for s in scenes])
    assert 15 < np.median(diameters) < 26  # real frames: 20.5 pixels


def test_touching_cells_share_a_border_without_a_gap(scenes: list[YeastScene]) -> None:
    assert all(len(touching_pairs(scene.instances)) >= 3 for scene in scenes)
    merged = [ndimage.label(scene.label)[1] < scene.instances.max() for scene in scenes]
    assert all(merged)  # in `label` alone touching cells run together: the task of the topology loss


def test_colonies_are_packed(scenes: list[YeastScene]) -> None:
    pairs = sum(len(touching_pairs(scene.instances)) for scene in scenes)
    cells = sum(int(scene.instances.max()) for scene in scenes)
    assert pairs / cells > 1.25  # measured 1.5; where nothing draws the cells together 1.0


def test_mothers_have_buds(scenes: list[YeastScene]) -> None:
    for scene in scenes:
        area = np.bincount(scene.instances.ravel())
        pairs = [(area[a], area[b]) for a, b in touching_pairs(scene.instances)]
        assert any(min(pair) < max(pair) / 2 for pair in pairs)


def test_some_cells_are_cut_by_the_frame(scenes: list[YeastScene]) -> None:
    edges = [np.concatenate([s.label[0], s.label[-1], s.label[:, 0], s.label[:, -1]]) for s in scenes]
    assert sum(edge.any() for edge in edges) >= 3


def test_some_dead_cells_touch_living_ones_and_some_do_not(scenes: list[YeastScene]) -> None:
    touching = []
    for s in scenes:
        parts, count = ndimage.label(s.dead)
        touching += [s.label[ndimage.binary_dilation(parts == n)].any() for n in range(1, count + 1)]
    assert 0.4 < np.mean(touching) < 0.7  # measured 0.51


def test_dead_cells_are_darker_than_living_ones(scenes: list[YeastScene]) -> None:
    ratios = [s.image[s.dead].mean() / s.image[s.label == 1].mean() for s in scenes]
    assert 0.4 < np.mean(ratios) < 0.65  # measured over 400 scenes: mean 0.55, from 0.35 to 0.85
    assert max(ratios) < 0.95
    for scene in scenes:  # and darker than the medium
        assert scene.image[scene.dead].mean() < scene.image[(scene.label == 0) & ~scene.dead].mean()


def test_the_ranges_of_dead_and_living_cells_overlap(scenes: list[YeastScene]) -> None:
    living, dead = [], []
    for s in scenes:
        parts, count = ndimage.label(s.dead)
        living += list(ndimage.mean(s.image, s.instances, range(1, s.instances.max() + 1)))
        dead += list(ndimage.mean(s.image, parts, range(1, count + 1)))
    assert min(living) < max(dead)


def test_no_threshold_solves_the_task(scenes: list[YeastScene]) -> None:
    """The best threshold and the best pair, chosen with the labels at hand, stay far below a small U-Net."""
    image, label = np.stack([s.image for s in scenes]), np.stack([s.label for s in scenes])
    below = [np.bincount(image[label == c], minlength=256).cumsum() for c in (0, 1)]  # [class][t]: pixels ≤ t
    negatives, positives = below[0][-1], below[1][-1]
    dark = mean_iou(below[1], below[0], positives, negatives)
    bright = mean_iou(positives - below[1], negatives - below[0], positives, negatives)
    assert max(dark.max(), bright.max()) < 0.6  # measured 0.51 and 0.55
    low, high = np.tril_indices(256, -1)[::-1]  # all low < high: a cell is what is at most low or above high
    outside = [below[c][low] + below[c][-1] - below[c][high] for c in (0, 1)]
    pair = mean_iou(outside[1], outside[0], positives, negatives)
    assert pair.max() < 0.65  # measured 0.58; a U-Net of 8 … 64 channels reached 0.98


def test_the_light_is_uneven(scenes: list[YeastScene]) -> None:
    spread = []
    for scene in scenes:
        medium = ndimage.binary_erosion((scene.label == 0) & ~scene.dead, iterations=8)
        quarters = [(slice(a, a + 128), slice(b, b + 128)) for a in (0, 128) for b in (0, 128)]
        levels = [np.median(scene.image[box][medium[box]]) for box in quarters]
        spread.append(max(levels) / min(levels))
    assert np.median(spread) > 1.05


# ---- the ingredients


def test_an_empty_medium_is_evenly_bright() -> None:
    # exp(i·0) = 1 has only the frequency 0; there the pupil is −i √T, and |−i √T| / √T = 1
    assert np.allclose(synthetic._phase_contrast(np.zeros((32, 48)), defocus=3), 1)


def test_phase_contrast_makes_a_dark_body_and_a_bright_halo() -> None:
    y, x = np.mgrid[-40:41, -40:41]
    distance = np.hypot(y, x) - 10
    amplitude = synthetic._phase_contrast(0.12 * np.clip(-distance, 0, None), defocus=0)
    assert amplitude[distance < -4].mean() < 0.8
    assert amplitude[(distance > 0) & (distance < 3)].mean() > 1.2
    assert abs(amplitude[distance > 20].mean() - 1) < 0.05


def test_a_smooth_disc_has_the_exact_distance() -> None:
    (rows, columns), distance = synthetic._wavy_disc(
        np.random.default_rng(0), np.array([20, 30]), 5.0, rough=0.0, shape=(64, 64)
    )
    assert distance[20 - rows.start, 30 - columns.start] == -5  # the centre
    assert distance[20 - rows.start, 35 - columns.start] == 0  # five to the right: on the outline
    assert distance[23 - rows.start, 34 - columns.start] == 0  # 3, 4, 5
    assert distance.min() == -5
    rim = np.concatenate([distance[0], distance[-1], distance[:, 0], distance[:, -1]])
    assert rim.min() > 0  # the box holds the whole disc


def test_two_pressed_discs_meet_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = synthetic._wavy_disc
    monkeypatch.setattr(synthetic, "_wavy_disc", lambda rng, c, r, rough, shape: draw(rng, c, r, 0.0, shape))
    cells = synthetic._Cells(np.array([[0, 0], [20, 15], [20, 25]]), np.array([1, 8, 8]), np.array([False, True, True]))
    owner, depth = synthetic._yeast_regions(np.random.default_rng(0), cells, (40, 40))
    # radius 8 around columns 15 and 25: row 20 is covered from 8 to 32, column 20 is half way (to the first)
    assert owner[20].tolist() == [0] * 8 + [1] * 13 + [2] * 12 + [0] * 7
    assert depth[20, 20] == 0  # on the border: −3 from both
    assert depth[20, 18] == pytest.approx(0.8 * (-1 + 5))  # −5 from the first, −1 from the second
    assert depth[20, 10] == 3  # far from the second: 3 to the outline
    assert (depth[owner == 0] == 0).all()


def test_a_sliver_at_the_frame_is_no_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, edge = synthetic._wavy_disc, synthetic.MARGIN
    monkeypatch.setattr(synthetic, "_wavy_disc", lambda rng, c, r, rough, shape: draw(rng, c, r, 0.0, shape))
    # Row 0 of the frame lies 9.5 below the first centre: 2 · sqrt(10² − 9.5²) = 6.2 pixels of it are seen.
    centre = np.array([[0, 0], [edge - 9.5, edge + 20], [edge + 30, edge + 20], [edge + 30, edge + 45]])
    cells = synthetic._Cells(centre, np.array([1, 10, 10, 9]), np.array([False, True, True, False]))
    monkeypatch.setattr(synthetic, "_yeast_colonies", lambda rng, height, width: cells)
    scene = yeast_scene(np.random.default_rng(0), 64, 64)
    assert scene.instances.max() == 1
    assert not scene.label[0].any()


def test_the_camera_clips_to_eight_bits() -> None:
    grey = synthetic._sensor(np.random.default_rng(0), np.array([[0.0, 100.0]] * 4))
    assert grey.dtype == np.uint8
    assert grey[:, 0].max() < 30
    assert (grey[:, 1] == 255).all()


# ---- the folder


def test_written_files_are_the_scenes(tmp_path: Path) -> None:
    folder = write_yeast(tmp_path / "yeast", num_images=2, seed=7, height=64, width=80)
    assert folder == tmp_path / "yeast"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*LAYERS, "settings.json"])
    for i in range(2):
        scene = yeast_scene(np.random.default_rng([7, i]), 64, 80)
        files = [read(folder / layer / f"yeast_{i:02d}.png") for layer in LAYERS]
        for array, expected in zip(files, (scene.image, scene.label, scene.instances, scene.dead)):
            assert np.array_equal(array, expected)
        assert [array.dtype for array in files] == [np.uint8, np.uint8, np.uint16, np.uint8]
        assert set(np.unique(files[1])) == set(np.unique(files[3])) == {0, 1}


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few = write_yeast(tmp_path / "few", num_images=2, height=64, width=64)
    many = write_yeast(tmp_path / "many", num_images=4, height=64, width=64)
    for layer in LAYERS:
        for name in ("yeast_00.png", "yeast_01.png"):
            assert (few / layer / name).read_bytes() == (many / layer / name).read_bytes()


def test_the_default_set_has_eighteen_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = yeast_scene(np.random.default_rng(0), 64, 64)
    monkeypatch.setattr(synthetic, "yeast_scene", lambda rng, height, width: small)
    folder = write_yeast(tmp_path / "yeast")
    assert [len(list((folder / layer).iterdir())) for layer in LAYERS] == [18] * 4


def test_the_same_set_is_kept_and_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_yeast(tmp_path / "yeast", num_images=1, height=64, width=64)
    before = content(folder)
    monkeypatch.setattr(synthetic, "yeast_scene", lambda *_: pytest.fail("drawn again"))
    assert write_yeast(folder, num_images=1, height=64, width=64) == folder
    assert content(folder) == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_images": 2}, {"height": 65}, {"width": 65}])
def test_fault_29_another_set_is_neither_taken_nor_overwritten(tmp_path: Path, change: dict) -> None:
    arguments = {"num_images": 1, "seed": 0, "height": 64, "width": 64}
    folder = write_yeast(tmp_path / "yeast", **arguments)
    before = content(folder)
    with pytest.raises(InputError, match="yeast exists"):
        write_yeast(folder, **(arguments | change))
    assert content(folder) == before


def test_fault_29_an_older_version_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_yeast(tmp_path / "yeast", num_images=1, height=64, width=64)
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    with pytest.raises(InputError, match="Delete the folder"):
        write_yeast(folder, num_images=1, height=64, width=64)


@pytest.mark.parametrize("lost", ["images/yeast_00.png", "dead/yeast_00.png", "settings.json"])
def test_a_set_with_a_file_missing_is_not_taken(tmp_path: Path, lost: str) -> None:
    folder = write_yeast(tmp_path / "yeast", num_images=1, height=64, width=64)
    (folder / lost).unlink()
    with pytest.raises(InputError, match="only a part"):
        write_yeast(folder, num_images=1, height=64, width=64)


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("not a folder")
    for name in ("mine", "file"):
        with pytest.raises(InputError, match=name):
            write_yeast(tmp_path / name, num_images=1, height=64, width=64)
    assert content(tmp_path) == {"mine/thesis.txt": b"years of work", "file": b"not a folder"}


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "deep"):
        assert (write_yeast(folder, num_images=1, height=64, width=64) / "images" / "yeast_00.png").is_file()


def test_what_a_killed_run_left_does_not_get_into_the_next(tmp_path: Path) -> None:
    left = tmp_path / f".yeast.{os.getpid()}.part" / "images"
    left.mkdir(parents=True)
    (left / "yeast_07.png").write_bytes(b"half a file")
    folder = write_yeast(tmp_path / "yeast", num_images=1, height=64, width=64)
    assert [path.name for path in (folder / "images").iterdir()] == ["yeast_00.png"]


@pytest.mark.parametrize("arguments", [{"num_images": 0}, {"num_images": 1.5}, {"seed": -1}, {"height": 63}])
def test_settings_that_make_no_set(tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        write_yeast(tmp_path / "yeast", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_fault_24_a_failure_at_the_kth_file_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int, error: BaseException
) -> None:
    save, calls = Image.Image.save, []

    def failing(image: Image.Image, path: Path, *arguments: object) -> None:
        calls.append(path)
        if len(calls) == k:
            raise error
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(type(error)):
        write_yeast(tmp_path / "yeast", num_images=2, height=64, width=64)
    assert len(calls) == k
    assert not list(tmp_path.iterdir())
    write_yeast(tmp_path / "yeast", num_images=2, height=64, width=64)  # the next run starts afresh
    assert [path.name for path in tmp_path.iterdir()] == ["yeast"]


def test_fault_24_a_run_killed_in_the_middle_leaves_no_half_set(tmp_path: Path) -> None:
    program = (
        "import os, sys; from imagesets import yeast as synthetic; from pathlib import Path\n"
        "draw, drawn = synthetic.yeast_scene, []\n"
        "def die_at_third(rng, *size):\n"
        "    drawn.append(size); return draw(rng, *size) if len(drawn) < 3 else os._exit(9)\n"
        "synthetic.yeast_scene = die_at_third\n"
        "synthetic.write_yeast(Path(sys.argv[1]) / 'yeast', num_images=4, height=64, width=64)"
    )
    root = Path(synthetic.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == 9  # no clean-up code ran
    assert not (tmp_path / "yeast").exists()
    folder = write_yeast(tmp_path / "yeast", num_images=4, height=64, width=64)
    assert len(list((folder / "images").iterdir())) == 4
