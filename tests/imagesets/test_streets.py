"""The synthetic streets: sound labels in any size, and a task that neither brightness nor place solves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checks import IGNORE_INDEX
from imagesets.scenes import BUILDING, CAR, PAVEMENT, ROAD, SKY, TREE, street_scene
from imagesets.yeast import Scene

CLASSES = [SKY, BUILDING, TREE, ROAD, PAVEMENT, CAR, IGNORE_INDEX]
PINNED = [  # scene, mean colour, share of every class
    (0, [94.77, 94.75, 100.25], [0.1291, 0.2084, 0.0728, 0.4641, 0.0387, 0.0316, 0.0553]),
    (1, [136.62, 141.78, 143.67], [0.26, 0.0667, 0.0936, 0.3828, 0.1746, 0.0223, 0.0]),
    (2, [141.08, 153.53, 152.54], [0.3115, 0.1192, 0.1624, 0.1927, 0.1002, 0.0262, 0.0878]),
]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [street_scene(np.random.default_rng([0, i]), 128, 128) for i in range(48)]


def share(scene: Scene, number: int) -> float:
    return float((scene.label == number).mean())


def iou(prediction: np.ndarray, truth: np.ndarray, counts: np.ndarray) -> float:
    return float((prediction & truth & counts).sum() / ((prediction | truth) & counts).sum())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(64, 140), width=st.integers(64, 140))
def test_scenes_of_any_size(seed: int, height: int, width: int) -> None:
    scene = street_scene(np.random.default_rng(seed), height, width)
    assert scene.image.shape == (height, width, 3) and scene.label.shape == (height, width)
    assert scene.image.dtype == scene.label.dtype == np.uint8
    assert set(np.unique(scene.label)) <= set(CLASSES) and min(share(scene, ROAD), share(scene, SKY)) > 0.001


def test_the_pictures_are_the_pinned_ones(scenes: list[Scene]) -> None:
    """When this fails on purpose, raise `scenes.VERSION` and pin the new numbers."""
    for i, colour, shares in PINNED:
        assert scenes[i].image.mean(axis=(0, 1)) == pytest.approx(colour, abs=0.3)
        assert [share(scenes[i], number) for number in CLASSES] == pytest.approx(shares, abs=0.002)


def test_neither_brightness_nor_place_alone_finds_the_road(scenes: list[Scene]) -> None:
    grey, label = np.stack([s.image.mean(axis=-1) for s in scenes]), np.stack([s.label for s in scenes])
    road, counts = label == ROAD, label != IGNORE_INDEX
    edges, usual = range(0, 257, 16), road.sum(axis=0) / np.maximum(counts.sum(axis=0), 1)
    best = max(iou((grey >= a) & (grey < b), road, counts) for a in edges for b in edges if a < b)
    assert best < 0.6  # measured 0.48
    best = max(iou(np.broadcast_to(usual > t, road.shape), road, counts) for t in (0.3, 0.4, 0.5, 0.6))
    assert best < 0.78  # measured 0.68, although the frequencies are those of the very same scenes
