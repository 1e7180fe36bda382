"""Critical regions: pictures solved by hand, properties, and a slow oracle on sets of pixels, which shares no line."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter
from skimage.measure import euler_number, label

from checks import IGNORE_INDEX, InputError
from geometry.topology import KINDS, betti_numbers, critical_regions

CASES = 150
EXTRA = ("merge", "spurious", "hole_split", "hole_missed")  # kinds made of FP: to repair them, remove
LACKING = ("split", "missed", "hole_merge", "hole_spurious")  # kinds made of FN: to repair them, fill
SIDES = ((0, 1), (0, -1), (1, 0), (-1, 0))
CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def neighbours(pixel, connectivity):
    steps = SIDES + CORNERS if connectivity == 8 else SIDES
    return {(pixel[0] + dy, pixel[1] + dx) for dy, dx in steps}


def flood(pixels, connectivity):
    left, components = set(pixels), []
    while left:
        front = {left.pop()}
        component = set(front)
        while front:
            front = {q for p in front for q in neighbours(p, connectivity)} & left
            left -= front
            component |= front
        components.append(frozenset(component))
    return components


def judge(pred, true, connectivity, strict):
    """(kind 0 … 3, severity, pixels) of each critical region of one view, straight from the definition."""
    both, found = pred & true, []
    for kind, mine, others in ((0, pred, true), (2, true, pred)):
        objects = flood(others, connectivity)
        for region in flood(mine - others, connectivity):
            rim = set().union(*(neighbours(p, connectivity) for p in region))
            touched = sum(bool(rim & o) for o in objects)
            degree = touched if strict and touched >= 2 else sum(bool(rim & o & both) for o in objects)
            if degree != 1:
                found.append((kind + (degree == 0), abs(degree - 1), region))
    return found


def oracle(pred, true, connectivity, strict=False):
    """All critical regions of two boolean images as {(kind, severity, pixels)}, and β0, β1 of both."""
    height, width = pred.shape
    plane = {(y, x) for y in range(-1, height + 1) for x in range(-1, width + 1)}
    p, g = ({(int(y), int(x)) for y, x in np.argwhere(m)} for m in (pred, true))
    objects = judge(p, g, connectivity, strict)
    holes = judge(plane - p, plane - g, 12 - connectivity, strict)
    regions = [(KINDS[k], s, c) for k, s, c in objects] + [(KINDS[4 + k], s, c) for k, s, c in holes]
    betti = [[len(flood(m, connectivity)), len(flood(plane - m, 12 - connectivity)) - 1] for m in (p, g)]
    return Counter(regions), betti


def as_counter(result, image=0, class_index=0):
    """The regions of one image and class in the form of the oracle."""
    _, height, width = result.shape
    found = Counter()
    for row in np.flatnonzero((result.image == image) & (result.class_index == class_index)):
        runs = np.flatnonzero(result.run_region == row)
        flat = [result.run_start[r] + step for r in runs for step in range(result.run_length[r])]
        assert len(flat) == len(set(flat)) == result.size[row] and all(p // (height * width) == image for p in flat)
        pixels = frozenset(divmod(int(p) % (height * width), width) for p in flat)
        found[KINDS[result.kind[row]], int(result.severity[row]), pixels] += 1
    return found


def maps(drawing):
    """`#` right, `+` only predicted, `-` only true, `.` neither, `?` predicted but ignored → pred, target."""
    signs = np.array([list(row) for row in drawing.split()])
    target = np.isin(signs, ["#", "-"]).astype(np.uint8)
    target[signs == "?"] = IGNORE_INDEX
    return np.isin(signs, ["#", "+", "?"])[None], target[None]


def make_pair(seed, largest=40):
    """A random pair: noise, noise with flips, blobs, or thin networks with a perturbed copy as prediction."""
    rng = np.random.default_rng(seed)
    shape, family = rng.integers(2, largest + 1, 2), rng.choice(["noise", "flips", "blobs", "network"])
    if family == "noise":
        return rng.random(shape) < rng.random(), rng.random(shape) < rng.random()
    if family == "flips":
        target = rng.random(shape) < 0.5
        return target ^ (rng.random(shape) < 0.3 * rng.random()), target
    smooth = gaussian_filter(rng.standard_normal(shape), rng.uniform(0.7, 3.0))
    change = gaussian_filter(rng.standard_normal(shape), rng.uniform(0.5, 2.0))
    smooth, change = smooth / (smooth.std() + 1e-9), change / (change.std() + 1e-9) * rng.uniform(0.02, 0.8)
    if family == "blobs":
        level = rng.uniform(-0.5, 1.0)
        return smooth + change > level, smooth > level
    width = rng.uniform(0.15, 0.5)
    return np.abs(smooth + change) < width, np.abs(smooth) < width


def random_case(seed, largest=40):
    pred, target = make_pair(seed, largest)
    return pred, target, (4, 8)[seed % 2]


def find(pred, target, **options):
    return critical_regions(pred[None], target[None], **options)


def components(mask, connectivity):
    return label(mask, connectivity={4: 1, 8: 2}[connectivity])


@pytest.mark.parametrize(
    ("drawing", "connectivity", "expected"),
    [
        ("#+++#", 8, {"merge": 1}),  # a bridge of three pixels joins two objects
        ("#---#", 8, {"split": 1}),  # one object cut in two
        (".+.", 8, {"spurious": 1}),  # a speckle
        (".-.", 8, {"missed": 1}),  # an object overlooked
        ("##+ ##-", 8, {}),  # borders moved, nothing else
        ("#+# ++. #..", 4, {"merge": 2}),  # one region, but three objects become one: two merges
        ("#.. .+. ..#", 8, {"merge": 1}),  # joined over corners
        ("#.. .+. ..#", 4, {"spurious": 1}),  # the same picture with 4-connectivity: nothing is touched
        ("### #+# ###", 8, {"hole_missed": 1}),  # a hole filled
        ("### #-# ###", 8, {"hole_spurious": 1}),  # a puncture
        ("#-# #.# ###", 8, {"hole_merge": 1}),  # a gap in a ring: the hole runs out, the object stays one
        ("#+# #.# ###", 8, {"hole_split": 1}),  # the gap closed wrongly: the bay is cut off from the outside
        ("##### #.+.# #####", 8, {"hole_split": 1}),  # a bridge across a hole
        (".... #.## #--# ....", 8, {"split": 1}),  # ring pieces need no hole to be split
        ("-## #.# ###", 8, {}),  # a corner of a ring missed: still closed for 8-connected objects
        ("-## #.# ###", 4, {"hole_merge": 1}),  # 4-connected objects: the background slips through the corner
        ("+++ +-+ +++", 8, {"spurious": 1, "missed": 1, "hole_spurious": 1}),  # an object replaced by a ring
        ("#?#", 8, {}),  # joined only by an ignored pixel: background in both maps
        ("#+? #+#", 8, {"merge": 1}),
        ("#+# #.# #+#", 8, {"merge": 2, "hole_split": 2}),  # two bridges round a hole: each is critical
    ],
)
def test_pictures_solved_by_hand(drawing, connectivity, expected):
    found = critical_regions(*maps(drawing), connectivity=connectivity).severities()[0, 0]
    assert {kind: n for kind, n in zip(KINDS, found.tolist()) if n} == expected


def test_a_bridge_weighs_as_much_as_one_error_however_long_it_is():
    regions = critical_regions(*maps("##+++## ......."))
    third = np.float32(1 / 3)
    assert regions.weights().tolist() == [[[0, 0, third, third, third, 0, 0], [0] * 7]]
    assert regions.mask(["merge"]).tolist() == [[[False] * 2 + [True] * 3 + [False] * 2, [False] * 7]]
    assert not regions.mask(["split", "hole_merge"]).any() and not regions.weights([]).any()


def test_counts_and_severities_of_a_batch_with_three_classes():
    target = np.zeros((2, 1, 5), int)
    target[0, 0] = [1, 0, 1, 0, 1]
    target[1, 0] = [2, 2, 0, 1, 1]
    pred = target.copy()
    pred[0, 0] = 1  # one blob over three objects of class 1: FP at columns 1 and 3, each merges two
    pred[1, 0, 0:2] = 1  # class 2 missed; class 1 has a spurious object
    regions = critical_regions(pred, target, classes=(1, 2))
    assert regions.counts().shape == (2, 2, 8)
    assert regions.counts()[0].tolist() == [[2, 0, 0, 0, 0, 0, 0, 0], [0] * 8]
    assert regions.counts()[1].tolist() == [[0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0]]
    # both classes blame the two pixels: spurious 1/2 and missed 1/2
    assert regions.weights()[1, 0].tolist() == [1, 1, 0, 0, 0]
    assert regions.betti_target[..., 0].tolist() == [[3, 0], [1, 1]]
    assert regions.betti_pred[..., 0].tolist() == [[1, 0], [2, 0]]


def test_a_pixel_can_lie_in_a_region_of_the_objects_and_in_one_of_the_background():
    # Without its middle column the frame falls into two objects, and two holes run out: 1/3 + 2/3 a pixel.
    regions = critical_regions(*maps("##-## #.-.# ##-##"))
    assert regions.severities()[0, 0].tolist() == [0, 0, 1, 0, 2, 0, 0, 0]  # split 1, hole_merge 2
    np.testing.assert_allclose(regions.weights()[0, :, 2], 1, rtol=1e-6)
    assert regions.weights(["split"])[0, 1, 2] == np.float32(1 / 3)


def test_strict_sees_a_gap_that_moved_by_one_pixel():
    pred, target = maps("#-+##")
    assert not critical_regions(pred, target).kind.size
    strict = critical_regions(pred, target, strict=True).severities()[0, 0].tolist()
    assert strict == [1, 0, 1, 0, 0, 0, 0, 0]  # the filled gap merges, the new one splits


@pytest.mark.parametrize("shape", [(2, 5, 4), (1, 1, 1), (0, 3, 3), (2, 0, 3), (2, 3, 0)])
def test_nothing_against_nothing_has_no_region(shape):
    regions = critical_regions(np.zeros(shape, int), np.zeros(shape, int), classes=(1, 2))
    assert regions.kind.size == 0 and regions.weights().shape == shape and not regions.weights().any()
    assert regions.counts().shape == (shape[0], 2, 8) and not regions.counts().any()
    assert not regions.betti_pred.any() and not regions.betti_target.any()


def serpentine(size):
    """A path of one pixel that goes right, down, left, down …: the longest way for a label to travel."""
    mask = np.zeros((size, size), bool)
    mask[::2] = mask[1::4, -1] = mask[3::4, 0] = True
    return mask


def test_noise_and_long_paths_agree_with_scikit_image():
    noise = np.random.default_rng(0).random((256, 256)) < 0.5
    masks = np.stack([noise, np.indices((256, 256)).sum(0) % 2 == 0, serpentine(256), serpentine(256).T])
    for connectivity in (4, 8):
        expected = [betti_by_scikit_image(mask, connectivity) for mask in masks]
        assert betti_numbers(masks, connectivity=connectivity).tolist() == expected


def test_wrong_maps_options_and_kinds_are_refused():
    maps_, ints = np.zeros((1, 4, 4), int), np.zeros((2, 4, 4), int)
    floats = maps_.astype(float)
    wrong = {r"pred has shape \(1, 4, 4\), target \(2, 4, 4\)": (maps_, ints), r"has shape \(4, 4\)": (maps_[0],) * 2}
    for message, pair in (wrong | {"pred .* float64": (floats, maps_), "target .* float64": (maps_, floats)}).items():
        with pytest.raises(InputError, match=message):
            critical_regions(*pair)
    for options in ({"connectivity": 6}, {"classes": ()}, {"classes": (1, 1)}, {"classes": (1, 255)}):
        with pytest.raises(InputError, match=f"{next(iter(options))} is"):
            critical_regions(maps_, maps_, **options)
    for kinds in (["merge", "merg"], "merge"):
        with pytest.raises(InputError, match="kinds is"):
            critical_regions(maps_, maps_).mask(kinds)


def test_any_integer_type_layout_and_tensor_gives_the_same():
    pred, target = make_pair(12)
    expected = as_counter(find(pred, target))
    assert expected
    others = [(pred.astype(kind), target.astype(kind)) for kind in (np.uint8, np.int8, np.int32, np.int64, np.uint64)]
    others += [(np.asfortranarray(pred), np.repeat(target, 2, axis=1)[:, ::2])]
    for pair in [*others, (torch.from_numpy(pred).long(), torch.from_numpy(target).long())]:
        assert as_counter(find(*pair)) == expected


def overlap_is_a_perfect_matching(pred, target, connectivity):
    p, g = components(pred, connectivity), components(target, connectivity)
    edges = {(i, j) for i, j in zip(p[pred & target].tolist(), g[pred & target].tolist())}
    partners = Counter(("p", i) for i, _ in edges) + Counter(("g", j) for _, j in edges)
    nodes = {("p", i) for i in range(1, p.max() + 1)} | {("g", j) for j in range(1, g.max() + 1)}
    return partners.keys() == nodes and set(partners.values()) <= {1}


def betti_by_scikit_image(mask, connectivity):
    objects = components(mask, connectivity).max()
    return [objects, objects - euler_number(mask, connectivity={4: 1, 8: 2}[connectivity])]


def repair(pred, target, connectivity, extra, lacking):
    """Take away the critical FP, find anew, fill the critical FN, and so on; the repaired map and the rounds."""
    pred, rounds = pred.copy(), 0
    while find(pred, target, connectivity=connectivity).mask([*extra, *lacking]).any():
        pred &= ~find(pred, target, connectivity=connectivity).mask(extra)[0]
        pred |= find(pred, target, connectivity=connectivity).mask(lacking)[0]
        rounds += 1
    return pred, rounds


def test_repair_ends_and_then_the_betti_numbers_agree():
    # Each flip corrects a pixel, so repair must end.  That it ends within a few rounds is an observation.
    changed = 0
    for seed in range(CASES):
        pred, target, connectivity = random_case(seed)
        expected = betti_by_scikit_image(target, connectivity)
        repaired, rounds = repair(pred, target, connectivity, EXTRA, LACKING)
        assert betti_by_scikit_image(repaired, connectivity) == expected and rounds <= 4, f"seed {seed}"
        changed += betti_by_scikit_image(pred, connectivity) != expected
        # with the four kinds of the objects alone it repairs their number, and their matching
        repaired, rounds = repair(pred, target, connectivity, EXTRA[:2], LACKING[:2])
        assert overlap_is_a_perfect_matching(repaired, target, connectivity) and rounds <= 4, f"seed {seed}"
    assert changed > CASES / 2


@st.composite
def small_maps(draw):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
    target = draw(hnp.arrays(np.bool_, shape))
    return target ^ draw(hnp.arrays(np.bool_, shape, fill=st.just(False))), target


@pytest.mark.parametrize("strict", [False, True])
@settings(max_examples=CASES)
@given(pair=small_maps(), connectivity=st.sampled_from([4, 8]))
def test_equals_the_oracle(strict, pair, connectivity):
    regions = find(*pair, connectivity=connectivity, strict=strict)
    expected, betti = oracle(*pair, connectivity, strict)
    assert as_counter(regions) == expected
    assert [regions.betti_pred[0, 0].tolist(), regions.betti_target[0, 0].tolist()] == betti


def test_equals_the_oracle_on_whole_batches_of_larger_maps():
    for seed in range(CASES // 4):
        rng = np.random.default_rng(seed)
        target = rng.integers(0, 3, (2, *rng.integers(1, 15, 2)))
        pred = np.where(rng.random(target.shape) < 0.6 * rng.random(), rng.integers(0, 3, target.shape), target)
        target[rng.random(target.shape) < 0.05] = IGNORE_INDEX
        options = {"connectivity": (4, 8)[seed % 2], "strict": seed % 3 == 0}
        regions = critical_regions(pred, target, classes=(2, 1), **options)
        for image, (p, t) in enumerate(zip(pred, target)):
            for class_index, label_of_class in enumerate((2, 1)):
                one = (p == label_of_class) & (t != IGNORE_INDEX), t == label_of_class
                assert as_counter(regions, image, class_index) == oracle(*one, **options)[0], f"seed {seed}"
