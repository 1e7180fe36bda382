"""The input contract: every guard refuses its fault with our own error, and lets the right input pass."""

import pytest
import torch

from checks import IGNORE_INDEX, InputError, check_images, check_pair, two_or_more

LOGITS, TARGET = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)


def test_right_pairs_pass():
    check_pair(LOGITS, TARGET)
    check_pair(LOGITS, TARGET.fill_(0), weight=torch.ones(2, 4, 5))
    check_pair(LOGITS[:, :1], torch.ones_like(TARGET))  # one channel: two classes
    check_pair(LOGITS, torch.full_like(TARGET, IGNORE_INDEX))


def test_channels_last():
    with pytest.raises(InputError, match="permute"):
        check_images(torch.zeros(2, 64, 64, 3))
    with pytest.raises(InputError, match=r"logits \(B, C, H, W\) has \(2, 4, 5, 3\)"):
        check_pair(torch.zeros(2, 4, 5, 3), TARGET)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_float_labels(dtype):
    with pytest.raises(InputError, match="integer labels"):
        check_pair(LOGITS, TARGET.to(dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_other_integer_labels_pass(dtype):
    check_pair(LOGITS, TARGET.to(dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_images_are_named(value):
    images = torch.zeros(3, 1, 4, 4)
    images[1, 0, 2, 2] = value
    with pytest.raises(InputError, match=r"position\(s\) \[1\]"):
        check_images(images)


@pytest.mark.parametrize("label", [-1, 3, 254])
def test_labels_outside_the_classes(label):
    target = TARGET.clone()
    target[1, 2, 3] = label
    with pytest.raises(InputError, match=rf"\[{label}\]"):
        check_pair(LOGITS, target)


def test_mixed_devices():
    with pytest.raises(InputError, match="one device"):
        check_pair(LOGITS, TARGET.to("meta"))


def test_batch_sizes_never_broadcast():
    with pytest.raises(InputError, match="target has shape"):
        check_pair(LOGITS, TARGET[:1])
    with pytest.raises(InputError, match="weight"):
        check_pair(LOGITS, TARGET, weight=torch.ones(1, 4, 5))


def test_wrong_ranks_and_types():
    with pytest.raises(InputError, match="B, C, H, W"):
        check_pair(LOGITS[0], TARGET)
    with pytest.raises(InputError, match="four axes"):
        check_images(torch.zeros(4, 4))
    with pytest.raises(InputError, match="float"):
        check_images(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


def test_one_channel_is_the_sigmoid():
    logits = torch.randn(2, 1, 3, 3)
    torch.testing.assert_close(two_or_more(logits).softmax(dim=1)[:, 1], logits.sigmoid()[:, 0])
    assert two_or_more(LOGITS) is LOGITS
