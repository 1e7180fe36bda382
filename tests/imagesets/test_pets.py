"""The synthetic pets: one animal a picture, an even band along its outline, and no colour that gives it away."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from imagesets.scenes import pet_scene
from imagesets.yeast import Scene

PINNED = [  # scene, mean colour, share of every class
    (0, [113.78, 100.35, 77.56], [0.5642, 0.3168, 0.119]),
    (1, [101.36, 86.04, 58.09], [0.6621, 0.2471, 0.0908]),
    (2, [105.32, 88.02, 73.72], [0.5674, 0.3039, 0.1287]),
]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [pet_scene(np.random.default_rng([0, i])) for i in range(40)]


def check_scene(scene: Scene, height: int, width: int) -> None:
    assert scene.image.shape == (height, width, 3) and scene.label.shape == (height, width)
    assert scene.image.dtype == scene.label.dtype == np.uint8 and np.unique(scene.label).tolist() == [0, 1, 2]
    pieces, _ = ndimage.label(scene.label > 0)
    areas = np.bincount(pieces.ravel())[1:]
    assert areas.max() > 0.95 * areas.sum()  # one animal; some fur may stand off
    to_background = ndimage.distance_transform_edt(scene.label != 0)
    assert to_background[scene.label == 1].min() >= 5  # the band lies between them everywhere


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(64, 140), width=st.integers(64, 140))
def test_scenes_of_any_size(seed: int, height: int, width: int) -> None:
    check_scene(pet_scene(np.random.default_rng(seed), height, width), height, width)


def test_the_band_is_five_pixels_wide(scenes: list[Scene]) -> None:
    for scene in scenes:
        check_scene(scene, 160, 160)
        to_pet = ndimage.distance_transform_edt(scene.label != 1)
        outer = (scene.label == 2) & ndimage.binary_dilation(scene.label == 0)  # its last pixels
        assert 4.4 < np.median(to_pet[outer]) < 5.8


def test_the_pictures_are_the_pinned_ones(scenes: list[Scene]) -> None:
    """When this fails on purpose, raise `scenes.VERSION` and pin the new numbers."""
    for i, colour, shares in PINNED:
        assert scenes[i].image.mean(axis=(0, 1)) == pytest.approx(colour, abs=0.3)
        assert np.bincount(scenes[i].label.ravel()) / 160**2 == pytest.approx(shares, abs=0.002)


def test_no_colour_gives_the_pet_away(scenes: list[Scene]) -> None:
    """The best choice of 8³ colours, made with the labels at hand, stays far below a small U-Net."""
    image, label = np.stack([s.image for s in scenes]).astype(int) // 32, np.stack([s.label for s in scenes])
    code = image[..., 0] * 64 + image[..., 1] * 8 + image[..., 2]
    pet, rest = (np.bincount(code[label == c], minlength=512) for c in (1, 0))
    choices = [pet > factor * rest for factor in (0.2, 0.3, 0.4, 0.6, 1)]
    assert max(pet[chosen].sum() / (pet.sum() + rest[chosen].sum()) for chosen in choices) < 0.55  # measured 0.35
