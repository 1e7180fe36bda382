"""Structure metrics: pictures solved by hand, and topology counted again with scikit-image's labels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, gaussian_filter, generate_binary_structure
from skimage.measure import euler_number, label
from skimage.morphology import skeletonize

from checks import IGNORE_INDEX, InputError
from geometry.objects import CentreLineCounts, centre_lines, topology_counts

SEEDS = st.integers(0, 2**31)
FLIPS = (np.fliplr, np.flipud, np.transpose)


def random_pair(seed, largest=24):
    """Blobs with classes 0, 1, 2 and a disturbed copy; some pixels ignored."""
    rng = np.random.default_rng(seed)
    shape, sigma = rng.integers(1, largest + 1, 2), rng.choice([0.5, 1.0, 2.0])
    field = gaussian_filter(rng.normal(size=shape), sigma)
    cuts = np.quantile(field, [0.5, 0.8])
    target = np.digitize(field, cuts)
    pred = np.digitize(field + gaussian_filter(rng.normal(size=shape), sigma) * rng.choice([0.1, 0.5]), cuts)
    return pred, np.where(rng.random(shape) < rng.choice([0, 0.1]), IGNORE_INDEX, target)


# ---------------------------------------------------------------- topology


def judge(mine, others, connectivity):
    """Severities (two or more, none) of the components of mine ∖ others, by the others that they touch."""
    errors = label(mine & ~others, connectivity=connectivity // 4)
    names = label(others, connectivity=connectivity // 4)
    reach = generate_binary_structure(2, connectivity // 4)
    joined = alone = 0
    for number in range(1, errors.max() + 1):
        touched = np.unique(names[binary_dilation(errors == number, reach) & mine & others]).size
        joined += max(touched - 1, 0)
        alone += touched == 0
    return joined, alone


def oracle(pred, target, connectivity):
    """All counts of two boolean masks, from the definition, with scikit-image."""
    p, g = np.pad(pred, 1), np.pad(target, 1)
    dual = 12 - connectivity
    merges, spurious = judge(p, g, connectivity)
    splits, missed = judge(g, p, connectivity)
    hole_merges, hole_spurious = judge(~p, ~g, dual)
    hole_splits, hole_missed = judge(~g, ~p, dual)
    betti = []
    for mask in (p, g):
        objects = label(mask, connectivity=connectivity // 4).max()
        betti.append((objects, objects - euler_number(mask, connectivity=connectivity // 4)))
    errors = [abs(a - b) for a, b in zip(*betti, strict=True)]
    return [*betti[1], merges, spurious, splits, missed, hole_merges, hole_spurious, hole_splits, hole_missed, *errors]


@given(SEEDS, st.sampled_from([4, 8]), st.sampled_from([0, 1, 2]))
def test_topology_against_scikit_image(seed, connectivity, of_class):
    pred, target = random_pair(seed)
    counts = topology_counts(pred, target, of_class, connectivity=connectivity)
    masks = (pred == of_class) & (target != IGNORE_INDEX), target == of_class
    values = list(counts.per_image().values())
    assert values == oracle(*masks, connectivity)
    assert counts.errors == sum(values[2:6])


def test_topology_by_hand():
    picture = "##+##..##-##", ".....+......", "-....+..###.", "........#+#.", "........###."
    signs = np.array([list(row) for row in picture])
    # row 0: the + joins two objects (merge), the - cuts one (split); the other two + touch nothing by a side
    # (spurious); the single - is missed; the ring's hole is filled.  Truth: three bars, the missed one, the ring.
    pred, target = np.isin(signs, ["#", "+"]), np.isin(signs, ["#", "-"])
    counts = topology_counts(pred, target, connectivity=4)
    assert (counts.objects, counts.holes, counts.images) == (5, 1, 1)
    assert (counts.merges, counts.splits, counts.spurious, counts.missed) == (1, 1, 1, 1)
    # predicted are five objects as well: the merged bar, two halves, the false one, the ring.  β0 sees no error.
    assert (counts.beta0_error, counts.beta1_error, counts.hole_missed) == (0, 1, 1)
    assert counts.errors == 4 and counts.errors_per_object == 4 / 5


def test_a_blob_that_joins_three_objects_is_two_merges():
    target = np.array([[1, 0, 1, 0, 1], [0, 0, 0, 0, 0]])
    pred = np.array([[1, 0, 1, 0, 1], [1, 1, 1, 1, 1]])
    counts = topology_counts(pred, target, connectivity=4)
    assert counts.merges == counts.beta0_error == 2


def test_the_connectivity_is_stated_and_matters():
    pred, target = np.array([[1, 0], [0, 1]]), np.array([[1, 1], [0, 1]])
    assert topology_counts(pred, target, connectivity=8).splits == 0
    assert topology_counts(pred, target, connectivity=4).splits == 1
    with pytest.raises(InputError, match="connectivity is 8 in one and 4"):
        topology_counts(pred, target) + topology_counts(pred, target, connectivity=4)
    with pytest.raises(InputError, match="connectivity"):
        topology_counts(pred, target, connectivity=6)


@given(SEEDS)
def test_flips_change_no_topology(seed):
    pred, target = random_pair(seed)
    for move in FLIPS:
        assert topology_counts(move(pred), move(target)) == topology_counts(pred, target)


@given(SEEDS)
def test_a_perfect_prediction_has_no_errors(seed):
    _, target = random_pair(seed)
    counts = topology_counts(target, target)
    values = counts.per_image()
    assert values.pop("objects") == counts.objects and values.pop("holes") == counts.holes
    assert set(values.values()) == {0}
    lines = centre_lines(target, target)
    assert lines.cl_dice == 1 or not (target == 1).any()


def test_fault_51_topology_counts_add_up():
    pairs = [random_pair(seed) for seed in range(5)]
    total = sum(topology_counts(*pair) for pair in pairs)
    assert total.images == 5 and total.objects == sum(topology_counts(*pair).objects for pair in pairs)
    assert total.per_image()["merges"] == total.merges / 5
    # |β0(P) − β0(G)| is summed over images: one object too many and one too few do not cancel out
    more, less = np.array([[1, 0, 1]]), np.array([[1, 0, 0]])
    assert (topology_counts(more, less) + topology_counts(less, more)).beta0_error == 2


def test_fault_47_no_objects_have_no_error_rate():
    empty, full = np.zeros((3, 3), int), np.ones((3, 3), int)
    assert math.isnan(topology_counts(empty, empty).errors_per_object)
    assert topology_counts(full, empty).errors_per_object == math.inf
    assert topology_counts(empty, full).errors_per_object == 1


# ---------------------------------------------------------------- centre lines


def test_centre_lines_by_hand():
    # The true line has 9 pixels, the predicted one is cut in the middle and has a false pixel far away.
    target = np.zeros((5, 9), int)
    target[2] = 1
    pred = target.copy()
    pred[2, 4], pred[0, 0] = 0, 1
    counts = centre_lines(pred, target)
    assert counts == CentreLineCounts(pred_inside=8, pred_length=9, target_inside=8, target_length=9)
    assert counts.precision == counts.sensitivity == 8 / 9 and counts.cl_dice == pytest.approx(8 / 9)


def test_a_thick_line_is_as_good_as_a_thin_one():
    target = np.zeros((9, 20), int)
    target[4] = 1
    pred = np.zeros_like(target)
    pred[3:6] = 1
    # three times as thick (Dice is 1/2), but the middle is right; only at one end its skeleton bends into the corner
    assert centre_lines(pred, target).cl_dice > 0.97
    pred[:] = 0
    pred[2] = 1
    assert centre_lines(pred, target).cl_dice == 0  # as thin, but two pixels beside


@given(SEEDS, st.sampled_from([0, 1, 2]))
def test_centre_lines_against_the_formula(seed, of_class):
    pred, target = random_pair(seed)
    P, G = (pred == of_class) & (target != IGNORE_INDEX), target == of_class
    counts = centre_lines(pred, target, of_class)
    if P.any() and G.any():
        precision, sensitivity = G[skeletonize(P)].mean(), P[skeletonize(G)].mean()
        assert (counts.precision, counts.sensitivity) == pytest.approx((precision, sensitivity))
        both = precision + sensitivity
        assert counts.cl_dice == pytest.approx(2 * precision * sensitivity / both if both else 0)
    swapped = centre_lines(G.astype(int), P.astype(int))
    parts = counts.sensitivity, counts.precision
    assert (swapped.precision, swapped.sensitivity) == pytest.approx(parts, nan_ok=True)


def test_flips_change_centre_lines_only_a_little():
    pairs = [random_pair(seed, largest=64) for seed in range(20)]
    before = sum(centre_lines(*pair) for pair in pairs).cl_dice
    for move in FLIPS:
        assert sum(centre_lines(move(pred), move(target)) for pred, target in pairs).cl_dice == pytest.approx(
            before, abs=0.01
        )


def test_fault_47_and_48_centre_lines_of_nothing():
    empty, full = np.zeros((5, 5), int), np.ones((5, 5), int)
    counts = centre_lines(empty, empty)
    assert all(math.isnan(value) for value in (counts.precision, counts.sensitivity, counts.cl_dice))
    for pair in ((empty, full), (full, empty)):
        counts = centre_lines(*pair)
        assert counts.precision == counts.sensitivity == counts.cl_dice == 0


def test_fault_50_ignored_pixels_are_background():
    target = np.array([[1, 1, 1, 255, 255]])
    assert centre_lines(np.ones_like(target), target).cl_dice == 1
    assert topology_counts(np.array([[1, 1, 1, 0, 1]]), target).errors == 0


def test_wrong_input():
    good = np.zeros((3, 4), int)
    for function in (centre_lines, topology_counts):
        with pytest.raises(InputError, match="shape"):
            function(good, good.T)
        with pytest.raises(InputError, match="255"):
            function(good, good, IGNORE_INDEX)
