"""Distances to borders and weight maps: hand-solved rows, every crack as a segment, the eight symmetries."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from checks import InputError
from geometry.boundary import border_distance, boundary_weights, find_cells, separation_weights, signed_distance
from transforms import apply_symmetry


def random_label(seed, classes=3, ignored=True):
    """A label map with patches of some pixels, with ignored pixels in some of them."""
    rng = np.random.default_rng(seed)
    H, W = rng.integers(1, 14, 2)
    label = np.clip(np.round(ndimage.gaussian_filter(rng.normal(1, 4, (H, W)), 0.8)), 0, classes - 1).astype(np.int64)
    if ignored and seed % 2:
        label[rng.random((H, W)) < 0.1] = 255
    return label


def brute_force(label):
    """Distance of each pixel centre to the nearest of all cracks, each one a segment of length 1."""
    H, W = label.shape
    y, x = np.mgrid[:H, :W].astype(float)
    distance = np.full((H, W), np.inf)
    for i in range(H):
        for j in range(W):
            for k, l in ((i + 1, j), (i, j + 1)):
                if k < H and l < W and label[i, j] != label[k, l] and 255 not in (label[i, j], label[k, l]):
                    along, across = (np.abs(x - j), np.abs(y - i - 0.5)) if k > i else (np.abs(y - i), x - j - 0.5)
                    distance = np.minimum(distance, np.hypot(np.maximum(along - 0.5, 0), across))
    return distance


def test_distances_by_hand():
    # one pixel of class 1 in the corner: its cracks are the segments x = 0.5 (y ≤ 0.5) and y = 0.5 (x ≤ 0.5)
    label = np.zeros((3, 3), int)
    label[0, 0] = 1
    expected = [[0.5, 0.5, 1.5], [0.5, 0.5**0.5, 2.5**0.5], [1.5, 2.5**0.5, 4.5**0.5]]
    np.testing.assert_allclose(border_distance(label), expected, rtol=1e-15)


@given(st.integers(0, 2**31))
def test_distances_equal_brute_force(seed):
    label = random_label(seed)
    np.testing.assert_allclose(border_distance(label), brute_force(label), rtol=0, atol=1e-9)


@pytest.mark.parametrize("label", [[[0, 0], [0, 0]], [[255, 255]], [[0, 255, 1]], [[3]], [[1, 255], [255, 1]]])
def test_frame_and_ignored_pixels_make_no_border(label):
    assert np.isinf(border_distance(np.array(label))).all()


@given(st.integers(0, 2**31))
def test_signed_distance_is_the_distance_of_each_class_with_a_sign(seed):
    label = random_label(seed)
    signed = signed_distance(label, 4)  # class 3 is never there
    assert signed.dtype == np.float32 and signed.shape == (4, *label.shape)
    for number in range(4):
        distance = brute_force(np.where(label == 255, 255, label == number))
        expected = np.where(np.isinf(distance) | (label == 255), 0, np.where(label == number, -distance, distance))
        np.testing.assert_allclose(signed[number], expected, atol=1e-5)


def test_weights_by_hand():
    # d = 1.5 0.5 0.5 1.5, σ = 1/2: 1 + 4·exp(−4.5) = 1.0444 and 1 + 4·exp(−0.5) = 3.4261, mean 2.2353
    weights = boundary_weights(np.array([[0, 0, 1, 1]]), w0=4.0, sigma=0.5)
    np.testing.assert_allclose(weights[0], [0.46726, 1.53274, 1.53274, 0.46726], atol=1e-5)
    # class weights 1 and 3: 1.0444 3.4261 5.4261 3.0444, mean 3.2353
    weights = boundary_weights(np.array([[0, 0, 1, 1]]), w0=4.0, sigma=0.5, class_weight=np.array([1, 3]))
    np.testing.assert_allclose(weights[0], [0.32283, 1.05899, 1.67718, 0.94101], atol=1e-5)


@given(st.integers(0, 2**31), st.floats(-1, 20), st.floats(0.3, 10))
def test_weights_have_mean_one_and_none_is_negative(seed, w0, sigma):
    label = random_label(seed)
    for weights in (boundary_weights(label, w0, sigma), separation_weights(find_cells(label), w0, sigma)):
        assert weights.dtype == np.float32 and (weights >= 0).all() and np.isfinite(weights).all()
    weights = boundary_weights(label, w0, sigma)
    assert (weights[label == 255] == 0).all()
    if (label != 255).any():
        assert weights[label != 255].mean(dtype=float) == pytest.approx(1, abs=1e-5)


def test_a_mask_of_one_class_has_weight_one():
    for value, w0 in ((0, -1.0), (7, 5.0)):
        label = np.full((5, 6), value)
        label[0, 0] = 255  # no border either
        assert np.array_equal(boundary_weights(label, w0, class_weight=np.full(8, 3.0)), label != 255)
    assert np.array_equal(separation_weights(np.zeros((5, 6), int)), np.ones((5, 6)))
    assert not boundary_weights(np.full((2, 2), 255)).any()


def test_separation_by_hand():
    # cells 1 and 2 at the ends, between them 3 pixels: d1 + d2 = 3 in each; cells 0; σ = 3/√2: 1 + 4·exp(−1) = 2.4715
    weights = separation_weights(np.array([[1, 0, 0, 0, 2]]), w0=4.0, sigma=3 / 2**0.5)[0]
    np.testing.assert_allclose(weights, np.array([1, 2.47152, 2.47152, 2.47152, 1]) / 1.88291, atol=1e-5)
    # a single cell has no second distance: no gap
    assert np.array_equal(separation_weights(np.array([[1, 0, 0]])), np.ones((1, 3)))


def test_separation_equals_the_formula_on_the_whole_image():
    """Boxes of some σ around each cell are enough: e⁻⁸ of w0 is all that can be missing."""
    rng = np.random.default_rng(0)
    cells = ndimage.label(ndimage.gaussian_filter(rng.normal(size=(60, 80)), 3) > 0.1)[0]
    distances = np.sort([border_distance((cells == n).astype(int)) for n in range(1, cells.max() + 1)], axis=0)
    gap = 10 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * 3**2)) * (cells == 0)
    np.testing.assert_allclose(separation_weights(cells, 10, 3), (1 + gap) / (1 + gap).mean(), atol=10 * np.exp(-8))


def test_cells_are_8_connected_and_of_one_class():
    label = np.array([[1, 0, 2, 255], [0, 1, 2, 1], [0, 0, 0, 1]])
    assert find_cells(label).tolist() == [[1, 0, 3, 0], [0, 1, 3, 2], [0, 0, 0, 2]]


@pytest.mark.parametrize("k", range(8))
def test_maps_move_with_the_eight_symmetries(k):
    def moved(array):
        return apply_symmetry(torch.from_numpy(np.ascontiguousarray(array)), k).numpy()

    for seed in range(10):
        label = random_label(seed)
        assert np.array_equal(border_distance(moved(label)), moved(border_distance(label)))
        assert np.array_equal(signed_distance(moved(label), 3), moved(signed_distance(label, 3)))
        # the mean is a sum in another order
        np.testing.assert_allclose(boundary_weights(moved(label)), moved(boundary_weights(label)), rtol=1e-6)
        cells = find_cells(label)
        np.testing.assert_allclose(separation_weights(moved(cells)), moved(separation_weights(cells)), rtol=1e-6)


@pytest.mark.parametrize("make", [border_distance, signed_distance, boundary_weights, separation_weights, find_cells])
def test_a_label_that_is_no_map_of_integers_is_refused(make):
    for label in (np.zeros((2, 2)), np.zeros((1, 2, 2), int)):
        with pytest.raises(InputError, match="label has shape"):
            make(label)


@pytest.mark.parametrize("make", [boundary_weights, separation_weights])
def test_settings_that_make_no_weight_are_refused(make):
    class_weights = [1.0], [1.0, -1.0], [1.0, np.inf], [1.0, np.nan], np.ones((2, 2))
    for options in ({"w0": -1.1}, {"sigma": 0.0}, *({"class_weight": np.array(w)} for w in class_weights)):
        with pytest.raises(InputError, match=next(iter(options))):
            make(np.array([[0, 1]]), **options)
