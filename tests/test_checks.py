"""The input contract: every guard refuses its fault with our own error, and lets the right input pass."""

import pytest
import torch

from checks import IGNORE_INDEX, InputError, check_images, check_pair, two_or_more

LOGITS, TARGET = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)


def with_value(tensor, value):
    tensor = tensor.clone()
    tensor[1, ..., 2, 3] = value
    return tensor


def test_right_pairs_pass():
    check_pair(LOGITS, TARGET, weight=torch.ones(2, 4, 5))
    check_pair(LOGITS[:, :1], torch.ones_like(TARGET))  # one channel: two classes
    check_pair(LOGITS, torch.full_like(TARGET, IGNORE_INDEX))
    for dtype in (torch.uint8, torch.int16, torch.int32):
        check_pair(LOGITS, TARGET.to(dtype))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(2, 64, 64, 3), "permute"),
        (torch.zeros(4, 4), "four axes"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), "float"),
        (with_value(LOGITS, torch.nan), r"position\(s\) \[1\]"),
        (with_value(LOGITS, torch.inf), r"position\(s\) \[1\]"),
    ],
)
def test_wrong_images_are_refused(images, words):
    with pytest.raises(InputError, match=words):
        check_images(images)


@pytest.mark.parametrize(
    ("logits", "target", "weight", "words"),
    [
        (LOGITS[0], TARGET, None, "four axes"),
        (torch.zeros(2, 4, 5, 3), TARGET, None, r"expected \(2, 5, 3\), as logits has \(2, 4, 5, 3\)"),
        (LOGITS, TARGET.float(), None, "integer labels"),
        (LOGITS, TARGET.bool(), None, "integer labels"),
        (LOGITS, TARGET.to("meta"), None, "one device"),
        (LOGITS, TARGET[:1], None, "target has shape"),  # batch sizes never broadcast
        (LOGITS, TARGET, torch.ones(1, 4, 5), "weight"),
        *((LOGITS, with_value(TARGET, label), None, rf"label\(s\) \[{label}\]") for label in (-1, 3, 254)),
    ],
)
def test_wrong_pairs_are_refused(logits, target, weight, words):
    with pytest.raises(InputError, match=words):
        check_pair(logits, target, weight)


def test_one_channel_is_the_sigmoid():
    logits = torch.randn(2, 1, 3, 3)
    torch.testing.assert_close(two_or_more(logits).softmax(dim=1)[:, 1], logits.sigmoid()[:, 0])
    assert two_or_more(LOGITS) is LOGITS
