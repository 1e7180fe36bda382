"""Objects and their overlaps: pictures solved by hand, and a dictionary that counts pixel by pixel as the judge."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import label

from checks import InputError
from geometry.objects import Counts, class_masks, class_objects, harmonic_mean, label_objects, overlaps, ratio

SEEDS = st.integers(0, 2**31)


def random_instances(rng, objects=6, largest=16):
    """A pair of instance maps: random rectangles, and a copy that was shifted, merged, cut and sprinkled."""
    shape = tuple(rng.integers(1, largest + 1, 2))
    target = np.zeros(shape, np.int64)
    for number in range(1, rng.integers(0, objects + 1) + 1):
        y, x = (rng.integers(0, n) for n in shape)
        target[y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = number
    pred = np.roll(target, rng.integers(-1, 2, 2), axis=(0, 1))
    pred[pred == rng.integers(0, objects + 1)] = rng.integers(0, objects + 3)
    cut = pred == rng.integers(1, objects + 1)
    cut[:, : shape[1] // 2] = False
    pred[cut] = objects + 7
    noise = rng.random(shape) < 0.1
    pred[noise] = rng.integers(0, objects + 1, noise.sum())
    return pred, target


@given(SEEDS)
def test_overlaps_against_a_dictionary(seed):
    pred, target = random_instances(np.random.default_rng(seed))
    table = overlaps(pred, target)
    names_p, names_t = ([0, *sorted(set(m.ravel().tolist()) - {0})] for m in (pred, target))
    found = {
        (names_p[p], names_t[t]): n
        for p, t, n in zip(table.pred.tolist(), table.target.tolist(), table.pixels.tolist(), strict=True)
    }
    assert found == Counter(zip(pred.ravel().tolist(), target.ravel().tolist(), strict=True))
    assert len(found) == table.pixels.size  # each pair once
    assert table.pred_size.tolist() == [(pred == name).sum() for name in names_p]
    assert table.target_size.tolist() == [(target == name).sum() for name in names_t]
    for p, t, iou in zip(*table.ious(), strict=True):
        a, b = pred == names_p[p], target == names_t[t]
        assert p > 0 and t > 0 and iou == (a & b).sum() / (a | b).sum()


def test_overlaps_by_hand():
    # pred  1 1 0      target  5 5 5     object 1 and 5 share 3 pixels, their union has 5
    #       1 2 2              5 0 9     object 2 and 9 share 1, their union has 2
    table = overlaps(np.array([[1, 1, 0], [1, 2, 2]]), np.array([[5, 5, 5], [5, 0, 9]]))
    assert [values.tolist() for values in table.ious()] == [[1, 2], [1, 2], [3 / 4, 1 / 2]]
    assert table.pred_size.tolist() == [1, 3, 2] and table.target_size.tolist() == [1, 4, 1]


def test_overlaps_of_large_numbers_and_of_nothing():
    big = np.array([[2**62, 2**62]])
    assert overlaps(big, big).pixels.tolist() == [2]
    assert overlaps(np.zeros((0, 4), int), np.zeros((0, 4), int)).pixels.size == 0
    assert overlaps(np.array([[True, False]]), np.array([[255, 0]], np.uint8)).ious()[2].tolist() == [1.0]


@given(SEEDS, st.sampled_from([4, 8]))
def test_label_objects_against_scikit_image(seed, connectivity):
    mask = np.random.default_rng(seed).random((9, 7)) < 0.5
    ours, theirs = label_objects(mask, connectivity=connectivity), label(mask, connectivity=connectivity // 4)
    pairs = set(zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True))
    assert len(pairs) == ours.max() + 1 == theirs.max() + 1  # one to one, up to the names


def test_fault_50_ignored_pixels_are_in_no_mask_and_no_object():
    pred, target = np.array([[1, 1, 1, 0, 2]]), np.array([[1, 255, 1, 255, 1]])
    assert [m.tolist() for m in class_masks(pred, target)] == [[[1, 0, 1, 0, 0]], [[1, 0, 1, 0, 1]]]
    assert [m.tolist() for m in class_objects(pred, target)] == [[[1, 0, 2, 0, 0]], [[1, 0, 2, 0, 3]]]
    assert class_objects(pred, target, of_class=2)[0].tolist() == [[0, 0, 0, 0, 1]]


def test_ratios():
    assert ratio(3, 4, absent=False) == 0.75 and ratio(0, 0, absent=False) == 0
    assert math.isnan(ratio(0, 0, absent=True))
    assert harmonic_mean(0.5, 0.25) == pytest.approx(1 / 3)  # 2 / (2 + 4)
    assert math.isnan(harmonic_mean(math.nan, math.nan))


def test_counts_add_up_but_not_their_settings():
    @dataclass(frozen=True)
    class Example(Counts):
        settings: ClassVar[tuple[str, ...]] = ("limit",)
        limit: float
        hits: int

    assert sum([Example(0.5, 1), Example(0.5, 2)]) == Example(0.5, 3)
    with pytest.raises(InputError, match="limit is 0.5 in one and 0.7"):
        Example(0.5, 1) + Example(0.7, 1)
    with pytest.raises(TypeError):
        Example(0.5, 1) + 1
    with pytest.raises(TypeError):
        1 + Example(0.5, 1)


def test_wrong_input():
    good = np.zeros((3, 4), int)
    for bad, words in ((good[None], "shape"), (good.astype(float), "dtype"), (good.T, "one shape")):
        with pytest.raises(InputError, match=words):
            overlaps(bad, good)
        with pytest.raises(InputError, match=words):
            class_masks(good, bad)
    with pytest.raises(InputError, match="negative"):
        overlaps(good - 1, good)
    with pytest.raises(InputError, match="of_class is 255"):
        class_masks(good, good, of_class=255)
    with pytest.raises(InputError, match="connectivity is 6"):
        label_objects(good, connectivity=6)
    with pytest.raises(InputError, match="mask has shape"):
        label_objects(good[None])
