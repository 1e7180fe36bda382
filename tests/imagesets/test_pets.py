"""The built-in pets: one animal a picture, an even band along its outline, and no colour that gives it away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from checks import InputError
from imagesets import pets as synthetic_pets
from imagesets.painting import swept_balls
from imagesets.pets import SPECIES, pet_scene
from imagesets.yeast import Scene

PINNED = [  # scene, mean colour, share of every class
    (0, [138.91, 149.1, 80.44], [0.8308, 0.092, 0.0772]),
    (1, [141.62, 121.25, 93.53], [0.4818, 0.4456, 0.0725]),
    (2, [124.34, 109.78, 68.21], [0.7559, 0.1643, 0.0798]),
]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [pet_scene(np.random.default_rng([0, i])) for i in range(40)]


# ---- one scene


def check_scene(scene: Scene, height: int, width: int) -> None:
    assert scene.image.shape == (height, width, 3)
    assert scene.label.shape == (height, width)
    assert scene.image.dtype == scene.label.dtype == np.uint8
    assert np.unique(scene.label).tolist() == [0, 1, 2]
    pieces, _ = ndimage.label(scene.label > 0)
    areas = np.bincount(pieces.ravel())[1:]
    assert areas.max() > 0.95 * areas.sum()  # one animal; some fur may stand off
    to_background = ndimage.distance_transform_edt(scene.label != 0)
    assert to_background[scene.label == 1].min() >= 5  # the band lies between them everywhere


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(64, 140), width=st.integers(64, 140))
def test_scenes_of_any_size(seed: int, height: int, width: int) -> None:
    check_scene(pet_scene(np.random.default_rng(seed), height, width), height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 400), (301, 65)])
def test_extreme_sizes(height: int, width: int) -> None:
    for seed in range(8):
        check_scene(pet_scene(np.random.default_rng(seed), height, width), height, width)


def test_the_band_is_five_pixels_wide(scenes: list[Scene]) -> None:
    for scene in scenes:
        check_scene(scene, 160, 160)
        to_pet = ndimage.distance_transform_edt(scene.label != 1)
        outer = (scene.label == 2) & ndimage.binary_dilation(scene.label == 0)  # its last pixels
        assert 4.4 < np.median(to_pet[outer]) < 5.8


def test_a_species_that_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="'cow'; expected one of dog, cat"):
        pet_scene(np.random.default_rng(0), species="cow")


def test_the_pictures_are_the_pinned_ones(scenes: list[Scene]) -> None:
    """When this fails on purpose, raise `synthetic_scenes.VERSION` and pin the new numbers."""
    for i, colour, shares in PINNED:
        assert scenes[i].image.mean(axis=(0, 1)) == pytest.approx(colour, abs=0.3)
        assert np.bincount(scenes[i].label.ravel()) / 160**2 == pytest.approx(shares, abs=0.002)


# ---- what the pictures must hold


def test_shares_are_about_those_of_the_real_pets(scenes: list[Scene]) -> None:
    shares = np.array([np.bincount(scene.label.ravel(), minlength=3) / scene.label.size for scene in scenes])
    assert 0.55 < shares[:, 0].mean() < 0.75
    assert 0.15 < shares[:, 1].mean() < 0.35
    assert 0.06 < shares[:, 2].mean() < 0.14
    assert shares[:, 1].max() > 4 * shares[:, 1].min()  # near and far


def test_no_colour_gives_the_pet_away(scenes: list[Scene]) -> None:
    """The best choice of 8³ colours, made with the labels at hand, stays far below a small U-Net."""
    image, label = np.stack([s.image for s in scenes]).astype(int) // 32, np.stack([s.label for s in scenes])
    code = image[..., 0] * 64 + image[..., 1] * 8 + image[..., 2]
    pet, rest = (np.bincount(code[label == c], minlength=512) for c in (1, 0))
    best = 0.0
    for factor in (0.2, 0.3, 0.4, 0.6, 1):
        chosen = pet > factor * rest
        best = max(best, pet[chosen].sum() / (pet.sum() + rest[chosen].sum()))
    assert best < 0.55  # measured 0.41


def test_place_alone_does_not_find_the_pet(scenes: list[Scene]) -> None:
    label = np.stack([s.label for s in scenes])
    usual = (label == 1).mean(axis=0)
    for threshold in (0.2, 0.3, 0.4, 0.5):
        chosen = np.broadcast_to(usual > threshold, label.shape)
        hits, both = (chosen & (label == 1)).sum(), ((chosen & (label != 2)) | (label == 1)).sum()
        assert hits / both < 0.6  # measured 0.49


# ---- the ingredients


def silhouette(species: str, seed: int) -> np.ndarray:
    pet = synthetic_pets._pet(np.random.default_rng(seed), cat=species == "cat")
    (head_y, head_x), size = pet.pose.head, pet.pose.size
    y, x = np.mgrid[-1.6:0:80j, -1.6:1.6:160j]  # above the middle of the head, in its radius
    return swept_balls(head_y + size * y, head_x + size * x, pet.parts[-4:])[0] >= 0


def test_a_cat_has_pointed_ears() -> None:
    for seed in range(10):
        top = silhouette("cat", seed)[:25]  # above the skull, 1.1 radii and more from its middle
        pieces, count = ndimage.label(top)
        assert count == 2
        widths = top.sum(axis=1)
        assert widths[widths > 0][0] < widths[-1]


def test_the_ears_of_some_dogs_hang() -> None:
    standing = [silhouette("dog", seed)[:12].any() for seed in range(30)]
    assert 0.15 < np.mean(standing) < 0.7


def test_every_species_is_drawn_in_every_pose() -> None:
    for species in SPECIES:
        heads = {synthetic_pets._pet(np.random.default_rng(s), cat=species == "cat").pose.head[0] for s in range(30)}
        assert heads == {-0.5, -0.52, -0.16}  # standing, sitting, lying


def test_an_animal_fits_into_the_frame_or_fills_it() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pet = synthetic_pets._pet(rng, cat=True)
        scale, (top, left), flip = synthetic_pets._place(rng, pet, (100, 150))
        y, x = top + scale * pet.pose.head[0], left + flip * scale * pet.pose.head[1]
        assert 0 < y < 100 and 0 < x < 150  # the head is always seen
        assert flip in (-1, 1)


def test_a_sofa_and_bushes_have_seven_numbers_a_part() -> None:
    for make in (synthetic_pets._sofa, synthetic_pets._bushes):
        things = [thing for seed in range(10) for thing in make(np.random.default_rng(seed), 1.0)]
        assert things
        assert {thing.shape[1] for thing in things} == {7}
