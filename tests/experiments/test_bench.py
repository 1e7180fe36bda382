"""The two benches: the prevalence that is asked for, and the numbers that can be known without them."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from experiments import bench
from losses import cross_entropy


@pytest.mark.parametrize("prevalence", [0.5, 0.05])
def test_the_discs_cover_the_prevalence_that_is_asked_for(prevalence: float) -> None:
    image, label = bench.draw_discs(prevalence, 64, seed=1)
    assert label.float().mean().item() == pytest.approx(prevalence, rel=0.05)
    assert (image[:, 0][label == 1].mean() - image[:, 0][label == 0].mean()).item() == pytest.approx(1.5, abs=0.05)


def test_at_one_half_the_foreground_has_its_prevalence_of_the_gradient_and_half_with_class_weights() -> None:
    label = bench.draw_discs(0.05, 8, seed=0)[1]
    prevalence = label.float().mean().item()
    compared = bench.losses_at(prevalence)
    value, part = bench.at_constant(compared["cross-entropy"], 0.5, label)
    assert (value, part) == (pytest.approx(0.6931, abs=1e-4), pytest.approx(prevalence, abs=1e-4))  # log 2
    assert bench.at_constant(compared["weighted CE"], 0.5, label)[1] == pytest.approx(0.5, abs=1e-4)


def test_the_own_threshold_is_chosen_on_validation_images_only() -> None:
    label = torch.tensor([[[0, 0, 1, 1]]])
    validation, test = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]), torch.tensor([[[0.1, 0.3, 0.3, 0.4]]])
    scores = bench.judge_discs([(validation, label), (test, label)], 0.5, [0.25, 0.35])
    assert scores["F1 rare"] == 0  # nothing lies above one half
    assert scores["F1, own threshold"] == pytest.approx(0.8)  # > 0.25 on the test image: TP 2, FP 1, FN 0


def test_every_predictor_is_judged_at_every_prevalence_with_every_seed() -> None:
    found = bench.compare_on_discs([0.5, 0.05], [0, 1], steps=1)
    names = {"finding nothing", "threshold", *bench.losses_at(0.5)}
    assert set(found) == {(name, prevalence, seed) for name in names for prevalence in (0.5, 0.05) for seed in (0, 1)}
    assert found["finding nothing", 0.05, 0]["F1 rare"] == 0
    image, label = bench.draw_discs(0.05, 64, seed=9_999)  # the test images of seed 0
    accuracy = 1 - F.one_hot(label, 2)[..., 1].float().mean().item()
    assert found["finding nothing", 0.05, 0]["accuracy"] == pytest.approx(accuracy)


def test_a_loss_that_only_counts_pixels_has_selectivity_one() -> None:
    found = [bench.selectivity(cross_entropy, pred) for pred in bench.SHOWN.values()]
    assert found == pytest.approx([1.0] * 8, abs=1e-3)


def test_the_topology_loss_charges_each_error_alike_whatever_its_size() -> None:
    nats, objects_and_holes = math.log1p(math.exp(2)), 9
    for name, pixels in {"merge": 3, "cut line": 2, "closed hole": 9}.items():
        expected = 1 + bench.STRENGTH / objects_and_holes * bench.TRUTH.size / pixels * nats / 2
        assert bench.selectivity(bench.TOPOLOGY, bench.SHOWN[name]) == pytest.approx(expected, rel=1e-4)


def test_all_metrics_of_the_truth_are_perfect_and_a_merge_is_one_merge() -> None:
    perfect = bench.judge(bench.TRUTH)
    assert {perfect[name] for name in ("pixel accuracy", "clDice", "panoptic quality")} == {1.0}
    assert perfect["ARAND"] == perfect["merges"] == perfect["β0 error"] == 0
    merged = bench.judge(bench.SHOWN["merge"])
    assert (merged["merges"], merged["splits"], merged["β0 error"]) == (1, 0, 1)


def test_following_the_gradient_mends_the_merge_before_the_neutral_pixels() -> None:
    topology, neutral, harmed = bench.repair(bench.TOPOLOGY, steps=30)
    merge = list(bench.BROKEN).index("merge")
    assert topology[merge] < 10 and neutral[merge] == np.inf and harmed == 0
