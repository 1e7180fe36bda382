"""Noise, colours, bodies in the light and the camera of the made-up photographs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagesets.painting import cloth, lit, paint_balls, palette, photograph, pick_colour, soft_noise, swept_balls

COLOURS = palette("804020 2060A0")


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(0, 90),
    width=st.integers(0, 90),
    cells=st.tuples(st.floats(0.5, 100), st.floats(0.5, 100)),
)
def test_soft_noise_has_any_shape(height: int, width: int, cells: tuple[float, float]) -> None:
    noise = soft_noise(np.random.default_rng(0), (height, width), cells)
    assert noise.shape == (height, width)
    assert noise.dtype == np.float32
    assert np.isfinite(noise).all()


@pytest.mark.parametrize("cell", [1.5, 6, 20])
def test_soft_noise_is_as_coarse_as_asked_for(cell: float) -> None:
    noise = soft_noise(np.random.default_rng(0), (400, 400), cell)
    assert abs(noise.mean()) < 0.2
    assert 0.5 < noise.std() < 1
    near, far = (np.corrcoef(noise[:, :-gap].ravel(), noise[:, gap:].ravel())[0, 1] for gap in (1, int(3 * cell)))
    assert near > 0.3
    assert abs(far) < 0.15


def test_a_colour_stays_near_its_palette() -> None:
    rng = np.random.default_rng(0)
    colours = np.array([pick_colour(rng, COLOURS) for _ in range(200)])
    assert colours.min() >= 0.02 and colours.max() <= 0.98
    distance = np.abs(colours[:, None] - COLOURS).max(axis=-1).min(axis=1)
    assert distance.mean() > 0.01 and distance.max() < 0.2


def test_cloth_of_every_kind() -> None:
    for seed in range(30):
        picture = cloth(np.random.default_rng(seed), (40, 50), COLOURS, grown=seed % 2 == 0)
        assert picture.shape == (40, 50, 3)
        assert picture.dtype == np.float32
        assert picture.std() > 0.01


def test_swept_balls_solved_by_hand() -> None:
    y, x = np.zeros((1, 1)), np.array([[-3.0, 0, 5, 10, 13, 14]])
    # a ball of radius 2 that grows to radius 4 on its way from x = 0 to x = 10; half way its radius is 3
    part, height = swept_balls(y, x, np.array([[0, 0, 0, 10, 2, 4, 0]]))
    assert part.tolist() == [[-1, 0, 0, 0, 0, -1]]  # x = 14 only touches the rim
    assert height[0, 1:5] == pytest.approx([2, 3, 4, np.sqrt(16 - 9)])
    assert height[0, 0] == -np.inf


def test_the_nearest_part_is_seen() -> None:
    point = np.zeros((1, 1))
    large, small = [0, 0, 0, 0, 5, 5, 0], [0, 0, 0, 0, 1, 1, 0]
    assert swept_balls(point, point, np.array([large, small]))[0] == 0  # 5 is higher than 1
    part, height = swept_balls(point, point, np.array([large, [*small[:6], 4.5]]))
    assert part == 1  # 1 + 4.5 is higher than 5
    assert height == 5.5


def test_light_on_a_ball() -> None:
    y, x = (axis.astype(np.float32) for axis in np.ogrid[-20:21, -20:21])
    part, height = swept_balls(y, x, np.array([[0, 0, 0, 0, 18, 18, 0]]))
    light = np.array((-1, 0, 1))  # from above and from the viewer
    bright = lit(height, part >= 0, 0.5, light)
    assert bright[20, 20] == pytest.approx(np.sqrt(0.5), abs=0.01)  # its top faces the viewer, at 45° to the light
    assert bright[20 - 13, 20] == pytest.approx(1, abs=0.02)  # 13 / 18 ≈ sin 45°: it faces the light
    assert bright[20 + 14, 20] < 0.1
    assert np.isfinite(bright).all()


def test_balls_are_painted_where_they_are_and_cut_at_the_frame() -> None:
    image = np.zeros((30, 40, 3), dtype=np.float32)
    paint_balls(np.random.default_rng(0), image, np.array([[0, 10, 0, 20, 5, 5, 0]]), COLOURS, np.array((0, 0, 1)))
    painted = image.any(axis=-1)
    assert painted[0, 6:25].all() and painted[4, 10:21].all()  # 5 pixels around the line from x = 10 to x = 20
    assert not painted[6:].any() and not painted[:, :5].any() and not painted[:, 26:].any()
    before = image.copy()
    paint_balls(np.random.default_rng(0), image, np.array([[90, 10, 90, 20, 5, 5, 0]]), COLOURS, np.array((0, 0, 1)))
    assert np.array_equal(image, before)  # outside


def test_the_camera_keeps_the_picture_and_clips() -> None:
    image = np.full((60, 80, 3), 0.5, dtype=np.float32)
    image[:30] = (3, -1, 0.5)
    photo = photograph(np.random.default_rng(0), image)
    assert photo.shape == (60, 80, 3)
    assert photo.dtype == np.uint8
    assert (photo[:28, :, 0] == 255).all() and photo[:28, :, 1].max() == 0
    assert 100 < photo[32:].mean() < 155
    assert 1 < photo[32:, :, 0].std() < 6  # noise
