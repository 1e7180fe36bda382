"""Metrics: hand-solved counts, the absent-class rule, and a slow implementation of its own as the judge."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import metrics
from checks import InputError
from metrics import confusion_matrix, scores

# truth      prediction     hits 5 of 8; class 1: 2 hits, 1 false alarm, 2 missed
TRUTH = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 0]]])
GUESS = torch.tensor([[[1, 1, 0, 0], [0, 0, 1, 0]]])


def test_counts_and_ratios_by_hand():
    counts = confusion_matrix(GUESS, TRUTH, 2)
    assert counts.dtype == torch.int64 and counts.tolist() == [[3, 1], [2, 2]]
    assert metrics.accuracy(counts) == 5 / 8
    assert metrics.iou_per_class(counts).tolist() == [3 / 6, 2 / 5] and metrics.mean_iou(counts) == pytest.approx(0.45)
    assert metrics.precision_per_class(counts).tolist() == [3 / 5, 2 / 3]
    assert metrics.recall_per_class(counts).tolist() == [3 / 4, 2 / 4]
    assert metrics.f1_per_class(counts).tolist() == pytest.approx([6 / 9, 4 / 7])
    # (TP·TN − FP·FN)/√(…) = (2·3 − 1·2)/√(3·4·4·5)
    assert metrics.matthews(counts) == pytest.approx(4 / math.sqrt(240))


def test_all_background_at_two_percent_foreground():
    """Why accuracy misleads: nothing found, and yet 98 % of the pixels are right."""
    truth = torch.zeros(1, 100, 100, dtype=torch.int64)
    truth[0, :2] = 1
    result = scores(confusion_matrix(torch.zeros_like(truth), truth, 2))
    assert result["accuracy"] == 0.98 and result["mean_iou"] == 0.49 and result["mcc"] == 0


def test_a_class_absent_from_both_is_out_of_the_mean():
    counts = confusion_matrix(GUESS, TRUTH, 3)
    assert math.isnan(metrics.iou_per_class(counts)[2]) and metrics.mean_iou(counts) == pytest.approx(0.45)
    assert scores(counts)["classes"] == 2


def test_a_class_in_truth_or_prediction_only_scores_zero():
    zeros, ones = torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(1, 2, 2, dtype=torch.int64)
    for guess, truth in ((zeros, ones), (ones, zeros)):
        counts = confusion_matrix(guess, truth, 2)
        for ratio in ("iou_per_class", "f1_per_class", "precision_per_class", "recall_per_class"):
            assert getattr(metrics, ratio)(counts).tolist() == [0, 0], ratio


def test_nothing_left_is_nan_with_a_warning():
    counts = confusion_matrix(GUESS, torch.full_like(TRUTH, 255), 2)
    with pytest.warns(UserWarning, match="No pixel"):
        result = scores(counts)
    assert all(math.isnan(value) for name, value in result.items() if name != "classes")


def test_ignored_pixels_are_not_counted():
    truth = TRUTH.clone()
    truth[0, 0] = 255
    assert confusion_matrix(GUESS, truth, 2).tolist() == [[1, 1], [2, 0]]
    guess = GUESS.clone()
    guess[0, 0] = 77  # whatever stands there
    assert confusion_matrix(guess, truth, 2).tolist() == [[1, 1], [2, 0]]


def slow_oracle(guess, truth, K):
    guess, truth = guess.numpy().ravel(), truth.numpy().ravel()
    guess, truth = guess[truth != 255], truth[truth != 255]
    iou, f1 = [], []
    for k in range(K):
        a, b = set(np.flatnonzero(guess == k)), set(np.flatnonzero(truth == k))
        if a | b:
            iou.append(len(a & b) / len(a | b))
            f1.append(2 * len(a & b) / (len(a) + len(b)))
    one_hot = [np.eye(K)[labels] for labels in (guess, truth)]
    centred = [x - x.mean(axis=0) for x in one_hot]  # Gorodkin: a correlation of one-hot codes
    cov = [(centred[i] * centred[j]).sum() for i, j in ((0, 1), (0, 0), (1, 1))]
    mcc = cov[0] / math.sqrt(cov[1] * cov[2]) if cov[1] * cov[2] > 1e-12 else 0.0
    return {"accuracy": (guess == truth).mean(), "mean_iou": np.mean(iou), "f1": np.mean(f1), "mcc": mcc}


@given(st.integers(2, 5), st.integers(0, 2**31))
def test_against_the_slow_oracle(K, seed):
    generator = torch.Generator().manual_seed(seed)
    guess = torch.randint(0, K, (2, 4, 5), generator=generator)
    truth = torch.randint(0, K, (2, 4, 5), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = scores(confusion_matrix(guess, truth, K))
    for name, expected in slow_oracle(guess, truth, K).items():
        assert result[name] == pytest.approx(expected, abs=1e-9), name


def test_labels_without_num_classes_or_of_another_shape_are_refused():
    with pytest.raises(InputError, match="num_classes"):
        confusion_matrix(GUESS, TRUTH)
    with pytest.raises(InputError, match="shape"):
        confusion_matrix(GUESS[:, :1], TRUTH, 2)
    with pytest.raises(InputError, match="label"):
        confusion_matrix(GUESS + 5, TRUTH, 2)


@pytest.mark.parametrize("num_classes", [1, 2, 7])
def test_counting_on_a_gpu_gives_the_same_matrix(num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    target = torch.randint(0, num_classes, (3, 17, 23), generator=generator)
    prediction = torch.randint(0, num_classes, (3, 17, 23), generator=generator)
    target[0, :4], prediction[1, :2] = 255, 200  # an ignored pixel, and a label that no logits give
    prediction[1, :2] = prediction[1, :2].where(target[1, :2] == 255, 0)
    counts = metrics._count_without_waiting(prediction, target, num_classes)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, metrics._count(prediction, target, num_classes))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equal_logits_count_for_the_first_class(memory_format):
    logits = torch.tensor([1.0, 3.0, 3.0, 0.0]).view(1, 4, 1, 1).expand(1, 4, 40, 40)
    counts = confusion_matrix(logits.contiguous(memory_format=memory_format), torch.zeros(1, 40, 40, dtype=torch.int64))
    assert counts[0].tolist() == [0, 1600, 0, 0]


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_integer_type_counts_like_int64(dtype):
    truth, wanted = TRUTH.clone(), confusion_matrix(GUESS, TRUTH, 2).tolist()
    if dtype is torch.int8:  # has no 255, and −1 is not taken for it
        with pytest.raises(InputError, match=r"\[-1\]"):
            confusion_matrix(GUESS, (TRUTH - (TRUTH == 0).long()).to(dtype), 2)
    else:
        truth[0, 0] = 255
        wanted = [[1, 1], [2, 0]]
    logits = torch.nn.functional.one_hot(GUESS, 2).movedim(-1, 1).float()
    assert confusion_matrix(GUESS.to(dtype), truth.to(dtype), 2).tolist() == wanted
    assert confusion_matrix(logits, truth.to(dtype)).tolist() == wanted
    assert confusion_matrix(GUESS.bool(), truth.to(dtype), 2).tolist() == wanted


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nan_is_no_class(channels, dtype, device):
    logits = torch.full((2, channels, 4, 5), -2.0, dtype=dtype, device=device)
    target = torch.zeros(2, 4, 5, dtype=torch.int64, device=device)
    logits[0, 0, 0, 0], logits[0, -1, 1, 1] = torch.inf, -torch.inf
    assert confusion_matrix(logits, target).sum() == 40
    logits[1, 0, 2, 2] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        scores(confusion_matrix(logits, target))
    with pytest.raises(InputError, match="NaN"):  # in a sum, as of a GPU, which is not waited for
        scores(torch.tensor([[2**20, 3], [4, 5]]) + torch.tensor([[7, 0], [0, 9]]) - metrics.NAN)


def test_probabilities_of_one_channel_count_at_one_half_or_are_refused():
    probs = torch.zeros(1, 1, 8, 8)
    probs[..., :2, :2], probs[..., :2, 2:4] = 0.9, 0.4
    truth = torch.zeros(1, 8, 8, dtype=torch.int64)
    truth[:, :2, :2] = 1
    with pytest.raises(InputError, match="threshold=0.5"):
        confusion_matrix(probs, truth)
    assert confusion_matrix(probs, truth, threshold=0.5).tolist() == [[60, 0], [0, 4]]
    assert confusion_matrix(probs.logit(), truth, threshold=0.0).tolist() == [[60, 0], [0, 4]]
    assert confusion_matrix(torch.cat([1 - probs, probs], dim=1), truth).tolist() == [[60, 0], [0, 4]]
