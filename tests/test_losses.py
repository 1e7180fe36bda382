"""Losses: hand-solved values, perfect and worst cases, gradients, ignored pixels, extreme logits."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from checks import InputError
from geometry.boundary import signed_distance
from geometry.topology import KINDS, critical_regions
from losses import (
    BoundaryWeightedLoss,
    TopologyLoss,
    WeightedSum,
    boundary_loss,
    cross_entropy,
    cross_entropy_dice,
    dice_loss,
    focal_loss,
    soft_cldice_loss,
    tversky_loss,
)
from transforms import apply_symmetry

PIXEL_LOSSES = [
    cross_entropy,
    focal_loss,
    dice_loss,
    cross_entropy_dice,
    tversky_loss,
]  # these do not ask which pixels are neighbours
SHAPE_LOSSES = [soft_cldice_loss, boundary_loss, BoundaryWeightedLoss(), TopologyLoss(), TopologyLoss(margin=0.5)]
LOSSES = PIXEL_LOSSES + SHAPE_LOSSES


def random_pair(seed=0, B=2, C=3, H=5, W=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, C, H, W, generator=generator, dtype=dtype)
    return logits, torch.randint(0, C, (B, H, W), generator=generator)


def certain(target, C, margin=1e4):
    """Logits that say `target` with certainty."""
    return margin * (2 * F.one_hot(target, C).movedim(-1, 1).float() - 1)


def test_cross_entropy_by_hand():
    # one pixel, logits (0, log 3): p = (1/4, 3/4)
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1)
    assert cross_entropy(logits, torch.ones(1, 1, 1, dtype=int)).item() == pytest.approx(-math.log(0.75))
    assert focal_loss(logits, torch.ones(1, 1, 1, dtype=int)).item() == pytest.approx(-(0.25**2) * math.log(0.75))
    # Dice, s = 1: class 0: 1 − (0 + 1)/(¼ + 0 + 1) = 1/5; class 1: 1 − (2·¾ + 1)/(¾ + 1 + 1) = 1/11; mean 8/55
    assert dice_loss(logits, torch.ones(1, 1, 1, dtype=int)).item() == pytest.approx(8 / 55)


@pytest.mark.parametrize("loss", LOSSES)
def test_perfect_is_zero_and_extreme_logits_stay_finite(loss):
    _, target = random_pair()
    for said, low, high in ((target, 0, 0), ((target + 1) % 3, 0.4, math.inf)):
        logits = certain(said, 3).requires_grad_()
        value = loss(logits, target)
        value.backward()
        assert low <= value.item() <= high and torch.isfinite(value) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", LOSSES[:-2])
def test_batch_is_the_mean_of_its_images(loss):
    logits, target = random_pair(B=4)
    singles = torch.stack([loss(logits[i : i + 1], target[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(loss(logits, target), singles.mean())


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_have_no_say(loss):
    logits, target = random_pair()
    target[:, 2] = 255
    value = loss(logits.requires_grad_(), target)
    value.backward()
    assert (logits.grad[:, :, 2] == 0).all()
    changed = logits.detach().clone()
    changed[:, :, 2] = 17.0
    assert torch.equal(loss(changed, target), value)
    if loss in PIXEL_LOSSES:  # for the others it matters that something lay there
        kept = [0, 1, 3, 4]
        torch.testing.assert_close(loss(logits[:, :, kept], target[:, kept]), value)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("k", range(1, 8))
def test_the_eight_symmetries_change_nothing(loss, k):
    logits, target = random_pair(H=9, W=7)
    torch.testing.assert_close(loss(apply_symmetry(logits, k), apply_symmetry(target, k)), loss(logits, target))


@pytest.mark.parametrize("loss", LOSSES)
def test_all_ignored_is_zero_with_zero_gradient(loss):
    logits, target = random_pair()
    value = loss(logits.requires_grad_(), torch.full_like(target, 255))
    value.backward()
    assert value.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, -1.0, 1.0], [1.0, math.nan, 1.0], [[1.0, 1.0, 1.0]]])
def test_wrong_class_weights_are_refused(weights):
    with pytest.raises(InputError, match="class_weight"):
        cross_entropy(*random_pair(), class_weight=torch.tensor(weights))


@given(st.integers(0, 2**31), st.booleans())
def test_cross_entropy_equals_pytorch(seed, weighted):
    logits, target = random_pair(seed)
    target[0, 0] = 255
    weights = torch.tensor([0.5, 2.0, 1.0]) if weighted else None
    expected = F.cross_entropy(logits, target, weight=weights, ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, target, class_weight=weights), expected)


def test_pixel_weights_are_weights():
    logits, target = random_pair()
    twice = torch.ones(2, 5, 4)
    twice[0, 0, 0] = 2  # as if that pixel stood there twice
    nats = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, target, twice), (nats.sum() + nats[0, 0, 0]) / 41)


def test_one_channel_is_binary_cross_entropy():
    logits, target = random_pair(C=2)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], target.float())
    torch.testing.assert_close(cross_entropy(logits[:, :1], target), expected)


def test_dice_sees_false_alarms_of_an_absent_class():
    """smp leaves the absent class out, so that predicting it everywhere costs nothing for that class."""
    target = torch.zeros(1, 8, 8, dtype=torch.int64)
    few, many = torch.zeros_like(target), torch.zeros_like(target)
    few[0, 0, 0], many[0, :4] = 1, 1
    assert 0 < dice_loss(certain(few, 2), target) < dice_loss(certain(many, 2), target)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32_inside_autocast(loss):
    logits, target = random_pair()
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(logits.bfloat16(), target).dtype == torch.float32


def test_wrong_settings_of_a_border_and_classes_that_the_network_does_not_have_are_refused():
    for settings in ({"w0": -2}, {"sigma": 0}, {"class_weight": [-1.0]}):  # before the first step
        with pytest.raises(InputError, match="expected"):
            BoundaryWeightedLoss(**settings)
    for number in (-1, 3):
        with pytest.raises(InputError, match="only the classes 0 … 2"):
            TopologyLoss(classes=[number])(*random_pair())


@given(st.integers(0, 2**31))
def test_tversky_with_two_halves_is_dice(seed):
    logits, target = random_pair(seed)
    tversky = tversky_loss(logits, target, alpha=0.5, beta=0.5, smooth=0.5)
    torch.testing.assert_close(tversky, dice_loss(logits, target, smooth=1.0))


def test_tversky_by_hand():
    # class 1: TP 1, FP 2, FN 0 → 1 − 2/(1 + 0.6 + 1);  class 0: TP 0, FP 0, FN 2 → 1 − 1/(1.4 + 1)
    target, pred = torch.tensor([[[1, 0, 0]]]), torch.tensor([[[1, 1, 1]]])
    assert tversky_loss(certain(pred, 2), target).item() == pytest.approx(((1 - 2 / 2.6) + (1 - 1 / 2.4)) / 2)


def test_boundary_loss_costs_the_distance_of_what_is_wrong():
    # distances 2.5 1.5 0.5 | 0.5 1.5; wrong are the first pixel (2.5) and the last (1.5): 4 / 5 pixels
    target, pred = torch.tensor([[[0, 0, 0, 1, 1]]]), torch.tensor([[[1, 0, 0, 1, 0]]])
    assert boundary_loss(certain(pred, 2), target).item() == pytest.approx(0.8)


def test_boundary_loss_has_the_gradient_of_the_paper():
    logits, target = random_pair(H=9, W=7)
    distance = torch.from_numpy(np.stack([signed_distance(label, 3) for label in target.numpy()]))
    paper = (distance * logits.requires_grad_().softmax(dim=1))[:, 1:].mean()
    ours = boundary_loss(logits, target)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (ours, paper)))
    assert torch.equal(boundary_loss(logits, target, distance), ours)
    with pytest.raises(InputError, match="distance has shape"):
        boundary_loss(logits, target, distance[:, 1])  # the map of one class, for three


def line(length=5, wide=0):
    target = torch.zeros(1, 9, length, dtype=torch.int64)
    target[:, 4 - wide : 5 + wide] = 1
    return target


def test_cldice_of_a_cut_line_by_hand():
    # 5 pixels, the middle one is missing: P = (4 + 1)/(4 + 1), S = (4 + 1)/(5 + 1): 1 − (10/6)/(11/6) = 1/11
    pred = line()
    pred[:, :, 2] = 0
    for logits in (certain(pred, 2), certain(pred, 2)[:, 1:]):  # two output channels, or one
        assert soft_cldice_loss(logits, line()).item() == pytest.approx(1 / 11)


@pytest.mark.parametrize("C", [1, 2, 3])
def test_cross_entropy_and_dice_in_one_pass_are_their_sum(C):
    logits, target = random_pair(C=C) if C > 1 else (random_pair(C=1)[0], random_pair(C=2)[1])
    target[:, 2] = 255
    gradients = []
    for loss in (cross_entropy_dice, WeightedSum((1.0, cross_entropy), (1.0, dice_loss))):
        value = loss(leaf := logits.clone().requires_grad_(), target)
        gradients += [value, *torch.autograd.grad(value, leaf)]
    torch.testing.assert_close(gradients[:2], gradients[2:])


def test_a_straight_through_skeleton_gives_the_same_value_and_a_gradient_that_points_the_same_way():
    target = line().repeat(1, 3, 1)
    logits = certain(target, 2, margin=1.5) + torch.randn(
        1, 2, *target.shape[1:], generator=torch.Generator().manual_seed(1)
    )
    found = []
    for straight in (False, True):
        value = soft_cldice_loss(leaf := logits.clone().requires_grad_(), target, straight_through=straight)
        found.append((value, torch.autograd.grad(value, leaf)[0].flatten()))
    (exact, gradient), (straight, other) = found
    torch.testing.assert_close(straight, exact)
    assert not torch.equal(gradient, other) and F.cosine_similarity(gradient, other, dim=0) > 0.5


def test_cldice_does_not_see_width_but_needs_iterations_for_it():
    assert soft_cldice_loss(certain(line(wide=2), 2), line()).item() == pytest.approx(0)
    # A false alarm 5 pixels wide.  With too few iterations it has no centre line, and nothing seems wrong;
    # with 2 steps it has one of 5 pixels: P = (0 + 1)/(5 + 1), S = 1, 1 − (2/6)/(7/6) = 5/7
    thick = partial(soft_cldice_loss, certain(line(wide=2), 2), torch.zeros_like(line()))
    assert thick(iterations=1).item() == 0 and thick(iterations=2).item() == pytest.approx(5 / 7)


def test_boundary_weighted_loss_by_hand():
    # weights ∝ 1.0444 3.4261 | 3.4261 1.0444; only the second pixel is wrong, by log(1 + e): 3.4261/8.9411 of it
    logits, target = certain(torch.tensor([[[0, 1, 1, 1]]]), 2, margin=50.0), torch.tensor([[[0, 0, 1, 1]]])
    logits[0, :, 0, 1] = torch.tensor([0.0, 1.0])
    expected = 0.383187 * math.log(1 + math.e)
    assert BoundaryWeightedLoss(4.0, 0.5)(logits, target).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("separation", [False, True])
def test_cached_weights_give_the_same_as_weights_on_the_fly(separation):
    logits, target = random_pair(H=9, W=7, C=2)
    target[0, :2] = 255
    loss = BoundaryWeightedLoss(10.0, 5.0, separation=separation, class_weight=[1.0, 2.0])
    maps = torch.from_numpy(np.stack([loss._map(label) for label in target.numpy()]))
    assert torch.equal(loss(logits, target), loss(logits, target, maps))
    assert torch.equal(loss(logits, target), cross_entropy(logits, target, maps))
    assert not torch.equal(loss(logits, target), BoundaryWeightedLoss(10.0, 5.0)(logits, target))


@pytest.mark.parametrize("separation", [False, True])
@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_of_one_class_gives_exactly_cross_entropy(value, separation):
    logits, target = random_pair(C=2)
    target = torch.full_like(target, value)
    target[:, 0, 1] = 255
    loss = BoundaryWeightedLoss(10.0 if separation else -1.0, separation=separation)
    assert torch.equal(loss(logits, target), cross_entropy(logits, target))


def only_term(logits, target, **settings):
    """The topological term for λ = 1, without the cross-entropy."""
    return TopologyLoss(1.0, **settings)(logits, target) - cross_entropy(logits, target)


def single_channel(pred, margin=3.0):
    return margin * (2 * pred[:, None].double() - 1)


def row(text):
    return torch.tensor([[[int(c) for c in text]]])


WRONG = math.log(1 + math.exp(3))  # nats of a wrong pixel in `single_channel`


@pytest.mark.parametrize(
    "pred, true, settings, expected",
    [
        ("1111111", "1100011", {}, 1 / 2),  # a bridge of three pixels merges two cells: severity 1 of 2 cells
        ("1100011", "1111111", {}, 1 / 1),  # a gap of three pixels splits one cell
        ("1110101", "1110000", {}, 2 / 1),  # two spurious cells
        ("1000000", "1011011", {}, 2 / 3),  # two of three missed
        ("1111111", "1010101", {}, 3 / 4),  # three bridges
        ("1110000", "1111100", {}, 0),  # a border moved
        ("1101100", "1110100", {}, 0),  # the gap moved by one pixel
        ("1101100", "1110100", {"strict": True}, 2 / 2),  # seen as one merge and one split
    ],
)
def test_topology_by_hand(pred, true, settings, expected):
    # all wrong pixels cost the same, so the mean over a region is this cost
    value = only_term(single_channel(row(pred)), row(true), **settings)
    assert value.item() == pytest.approx(expected * WRONG, rel=1e-6, abs=1e-12)


def test_holes_count_where_asked_for():
    ring = torch.ones(1, 5, 5, dtype=torch.int64)
    ring[0, 1:4, 1:4] = 0
    filled = torch.ones_like(ring)
    # a filled hole is a missed one: N = 1 object + 1 hole
    assert only_term(single_channel(filled), ring).item() == pytest.approx(WRONG / 2)
    assert only_term(single_channel(filled), ring, holes=False).item() == pytest.approx(0, abs=1e-12)


def test_connectivity_is_that_of_the_objects():
    diagonal, full = torch.eye(2, dtype=torch.int64)[None], single_channel(torch.ones(1, 2, 2))
    # 4-connected these are two cells, and each of the two wrong pixels merges them
    for connectivity, value in ((8, 0), (4, 2 * WRONG / 2)):
        found = only_term(full, diagonal, connectivity=connectivity, holes=False).item()
        assert found == pytest.approx(value, abs=1e-12)


def test_three_classes_are_one_against_the_rest():
    # truth 1 1 0 2 2, said 1 1 2 1 2.  Class 1: pixel 3 is spurious.  Class 2: FP pixel 2 beside FN, so spurious;
    # FN pixel 3 touches one object.  Two regions of one pixel, N = 2.
    logits = certain(row("11212"), 3, margin=1.0)
    nats = cross_entropy(logits, row("11022"), torch.tensor([[[0.0, 0, 1, 0, 0]]]))
    assert only_term(logits, row("11022"), holes=False).item() == pytest.approx(2 * nats.item() / 2, rel=1e-6)
    assert only_term(logits, row("11022"), classes=[1], holes=False).item() == pytest.approx(nats.item(), rel=1e-6)


@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([1, 2, 3]))
def test_topology_gradient_is_weight_times_p_minus_g(seed, holes, C):
    logits, target = random_pair(seed, C=max(C, 2), H=9, W=8, dtype=torch.float64)
    logits = logits[:, :C].contiguous().requires_grad_()
    target[0, 0] = 255
    target = target.where(target < max(C, 2), 255)
    two = logits.detach() if C > 1 else torch.cat([torch.zeros_like(logits), logits], dim=1).detach()
    regions = critical_regions(two.argmax(dim=1).numpy(), target.numpy(), classes=range(1, two.shape[1]))
    count = max(regions.betti_target[..., : 1 + holes].sum(), 1)
    weights = torch.from_numpy(regions.weights(KINDS if holes else KINDS[:4])) / count
    weights = 0.7 * weights + (target != 255) / (target != 255).sum()  # the second part is the cross-entropy
    truth = F.one_hot(target.where(target != 255, 0), two.shape[1]).movedim(-1, 1)
    expected = (weights[:, None] * (two.softmax(dim=1) - truth))[:, -C:]
    TopologyLoss(0.7, holes=holes)(logits, target).backward()
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("said, expected", [(0, 0.0), (1, 1.0)])
def test_no_true_objects(said, expected):
    target = torch.zeros(2, 4, 4, dtype=torch.int64)
    logits = single_channel(torch.full_like(target, said)).requires_grad_()
    value = only_term(logits, target, holes=False)
    value.backward()
    # nothing against nothing is 0 with a graph; else one spurious object an image, N at least 1
    assert value.item() == pytest.approx(2 * expected * WRONG, abs=1e-12) and torch.isfinite(logits.grad).all()


def test_pixel_weights_belong_to_the_cross_entropy_alone():
    logits, target = random_pair(C=2)
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(0))
    term = only_term(logits, target)
    torch.testing.assert_close(TopologyLoss(1.0)(logits, target, weight), cross_entropy(logits, target, weight) + term)


def strengths(loss, steps):
    """How strong the term is in each training step, as a part of λ = 1."""
    logits, target = single_channel(row("1111111")).requires_grad_(), row("1100011")
    full = only_term(logits.detach(), target)
    values = torch.stack([loss(logits, target) for _ in range(steps)])
    return ((values - cross_entropy(logits, target)) / full).tolist()


def test_warm_up_goes_on_where_a_saved_loss_was():
    first, second = TopologyLoss(1.0, warm_up=4), TopologyLoss(1.0, warm_up=4)
    total = WeightedSum((1.0, first), (1.0, dice_loss))  # carries the state of its terms
    assert strengths(first, 2) == pytest.approx([0, 0.25])
    WeightedSum((1.0, second), (1.0, dice_loss)).load_state_dict(total.state_dict())
    assert strengths(second, 4) == pytest.approx([0.5, 0.75, 1, 1])


def test_only_training_steps_count_and_others_have_full_strength():
    loss, logits, target = TopologyLoss(1.0, warm_up=2), single_channel(row("111")), row("101")
    values = [loss(logits, target)]  # no gradient wanted
    with torch.no_grad():
        values.append(loss(logits.requires_grad_(), target))
    values.append(loss.eval()(logits, target))
    assert all(torch.equal(value, TopologyLoss(1.0)(logits, target)) for value in values) and loss.step.item() == 0


def test_weighted_sum_by_hand():
    logits, target = random_pair()
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(0))
    found = WeightedSum((2.0, cross_entropy), (0.5, dice_loss))(logits, target, weight)
    torch.testing.assert_close(found, 2 * cross_entropy(logits, target, weight) + 0.5 * dice_loss(logits, target))


def test_a_margin_finds_what_is_right_but_not_safe():
    cells, z = row("1100011"), torch.tensor([4.0, 4.0, -0.5, -0.5, -0.5, 4.0, 4.0])  # a bridge at p = 0.38
    logits = z.reshape(1, 1, 1, 7)
    assert not TopologyLoss().region_weights(logits, cells).any()
    assert not TopologyLoss(margin=0.4).region_weights(logits, cells).any()
    third = 1 / 3 / 2  # severity 1 over 3 pixels, 2 objects
    expected = torch.tensor([[[0, 0, third, third, third, 0, 0]]])
    assert torch.allclose(TopologyLoss(margin=1.0).region_weights(logits, cells), expected)
    gap = torch.tensor([[[[4.0, 4.0, 0.5, 4.0, 4.0]]]])  # a split at p = 0.62
    assert not TopologyLoss().region_weights(gap, row("11111")).any()
    assert TopologyLoss(margin=1.0).region_weights(gap, row("11111")).tolist() == [[[0, 0, 1, 0, 0]]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.int32, torch.uint32, torch.uint64])
@pytest.mark.parametrize("loss", LOSSES)
def test_labels_of_every_integer_type_are_those_of_int64(loss, dtype):
    logits, target = random_pair()
    target[0, 0] = 1 if dtype is torch.int8 else 255
    assert loss(logits, target.to(dtype)) == loss(logits, target)
    with pytest.raises(InputError, match="label"):
        loss(logits, target.where(target != 0, -1 if dtype is torch.int8 else 7).to(dtype))


WEIGHTED = [cross_entropy, TopologyLoss(), BoundaryWeightedLoss(), WeightedSum((1, cross_entropy))]


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("loss", WEIGHTED)
def test_weights_are_finite_and_not_negative(loss, bad):
    logits, target = random_pair()
    weight = torch.ones(target.shape)
    assert torch.isfinite(loss(logits, target, weight)) and torch.isfinite(loss(logits, target, weight.long()))
    weight[0, 0, 0] = bad
    with pytest.raises(InputError, match="expected finite numbers ≥ 0"):
        loss(logits, target, weight)
