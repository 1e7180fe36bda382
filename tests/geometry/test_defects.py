"""Each defect is exactly the kind its name says, counted by `topology` and again with scikit-image."""

import numpy as np
import pytest
from skimage.measure import euler_number, label

from geometry import defects
from geometry.objects import topology_counts
from geometry.topology import KINDS, critical_regions

TRUTH, PREDICTIONS = defects.truth(), defects.predictions()


def kinds(pred, **options):
    counts = critical_regions(pred[None], TRUTH[None], **options).counts()[0, 0]
    return {kind: int(n) for kind, n in zip(KINDS, counts, strict=True) if n}


def wrong(pred):
    return int((pred > TRUTH).sum()), int((pred < TRUTH).sum())


@pytest.mark.parametrize("connectivity", [4, 8])  # no defect hangs on this choice
@pytest.mark.parametrize("name", defects.KINDS_OF)
def test_each_defect_is_of_its_kind_and_of_no_other(name, connectivity):
    assert kinds(PREDICTIONS[name], connectivity=connectivity) == defects.KINDS_OF[name]
    also = {"merge": 1, "split": 1} if name == "gap beside its place" else {}
    assert kinds(PREDICTIONS[name], strict=True) == defects.KINDS_OF[name] | also


# False and missed pixels, counted on paper; change of the numbers of objects and of holes.
BY_HAND = {
    "nothing wrong": ((0, 0), 0, 0),
    "gap beside its place": ((12, 12), 0, 0),  # a gap of 12 × 1 pixels
    "merge": ((3, 0), -1, 0),  # 1 × 3
    "split": ((0, 3), +1, 0),  # 3 × 1
    "cut line": ((0, 2), +1, 0),  # 2 × 1
    "closed hole": ((9, 0), 0, -1),  # 3 × 3
    "speckle": ((4, 0), +4, 0),  # four single pixels
    "missed object": ((0, 21), -1, 0),  # 5 × 5 without its corners
}


@pytest.mark.parametrize("name", BY_HAND)
def test_sizes_and_betti_numbers_by_hand_and_a_control_of_the_same_size(name):
    pixels, objects, holes = BY_HAND[name]
    pred = PREDICTIONS[name]
    found = label(pred, connectivity=2).max()
    assert wrong(pred) == wrong(defects.control_for(pred)) == pixels
    assert (found, found - euler_number(pred, connectivity=2)) == (8 + objects, 1 + holes)
    counts = topology_counts(pred, TRUTH)
    assert (counts.beta0_error, counts.beta1_error) == (abs(objects), abs(holes))


@pytest.mark.parametrize("options", [{}, {"strict": True}, {"connectivity": 4}, {"connectivity": 4, "strict": True}])
def test_every_control_is_neutral(options):
    sizes = [(added, removed) for added in range(25) for removed in (0, added, 24)]
    controls = np.stack([defects.control(*size) for size in sizes])
    assert [wrong(pred) for pred in controls] == sizes
    assert critical_regions(controls, np.stack([TRUTH] * len(sizes)), **options).kind.size == 0
