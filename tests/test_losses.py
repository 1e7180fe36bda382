"""Losses: hand-solved values, perfect and worst cases, gradients, ignored pixels, extreme logits."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from checks import InputError
from losses import cross_entropy, dice_loss, focal_loss

LOSSES = [cross_entropy, focal_loss, dice_loss]


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
def test_perfect_is_zero_and_fault_45_extreme_logits_stay_finite(loss):
    _, target = random_pair()
    logits = certain(target, 3).requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert value.item() == 0 and torch.isfinite(logits.grad).all()
    wrong = certain((target + 1) % 3, 3).requires_grad_()
    value = loss(wrong, target)
    value.backward()
    assert torch.isfinite(value) and value > 0.5 and torch.isfinite(wrong.grad).all()


@pytest.mark.parametrize(
    "loss",
    [
        *LOSSES,
        partial(focal_loss, gamma=0.5),
        partial(cross_entropy, class_weight=torch.tensor([1.0, 0.2, 3.0])),
    ],
)
def test_gradients(loss):
    logits, target = random_pair(dtype=torch.float64, H=3, W=2)
    target[0, 0, 0] = 255
    # computed in float32 by design, hence the coarse tolerance
    assert torch.autograd.gradcheck(
        lambda x: loss(x, target).double(), logits.requires_grad_(), eps=1e-2, atol=1e-3, rtol=1e-2
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_batch_is_the_mean_of_its_images(loss):
    logits, target = random_pair(B=4)
    singles = torch.stack([loss(logits[i : i + 1], target[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(loss(logits, target), singles.mean())


@pytest.mark.parametrize("loss", LOSSES)
def test_fault_50_ignored_pixels_have_no_say(loss):
    logits, target = random_pair()
    target[:, 2] = 255
    logits = logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert (logits.grad[:, :, 2] == 0).all()
    changed = logits.detach().clone()
    changed[:, :, 2] = 17.0
    assert torch.equal(loss(changed, target), value)
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(loss(logits[:, :, kept], target[:, kept]), value)


@pytest.mark.parametrize("loss", LOSSES)
def test_fault_52_all_ignored_is_zero_with_zero_gradient(loss):
    logits, target = random_pair()
    logits = logits.requires_grad_()
    value = loss(logits, torch.full_like(target, 255))
    value.backward()
    assert value.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0], [[1.0, 1.0, 1.0]]])
@pytest.mark.parametrize("loss", [cross_entropy, focal_loss])
def test_fault_53_bad_class_weights(loss, weights):
    with pytest.raises(InputError, match="class_weight"):
        loss(*random_pair(), class_weight=torch.tensor(weights))


@pytest.mark.parametrize("loss", LOSSES)
def test_fault_58_batch_sizes_never_broadcast(loss):
    logits, target = random_pair()
    with pytest.raises(InputError, match="shape"):
        loss(logits, target[:1])


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


def test_wrong_settings():
    with pytest.raises(InputError, match="gamma"):
        focal_loss(*random_pair(), gamma=-1)
    with pytest.raises(InputError, match="smooth"):
        dice_loss(*random_pair(), smooth=0)
