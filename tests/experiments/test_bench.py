"""The bench of defects: the numbers that can be known without it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from experiments import bench
from losses import cross_entropy


def test_a_loss_that_only_counts_pixels_has_selectivity_one() -> None:
    assert [bench.selectivity(cross_entropy, pred) for pred in bench.shown().values()] == pytest.approx(
        [1.0] * 8, abs=1e-3
    )


def test_the_topology_loss_charges_each_error_alike_whatever_its_size() -> None:
    nats, objects_and_holes = math.log1p(math.exp(2)), 9
    for name, pixels in {"merge": 3, "cut line": 2, "closed hole": 9}.items():
        expected = 1 + bench.STRENGTH / objects_and_holes * bench.TRUTH.size / pixels * nats / 2
        assert bench.selectivity(bench.TOPOLOGY, bench.shown()[name]) == pytest.approx(expected, rel=1e-4)


def test_all_metrics_of_the_truth_are_perfect_and_a_merge_is_one_merge() -> None:
    perfect = bench.judge(bench.TRUTH)
    assert {perfect[name] for name in ("pixel accuracy", "clDice", "panoptic quality")} == {1.0}
    assert perfect["ARAND"] == perfect["merges"] == perfect["β0 error"] == 0
    merged = bench.judge(bench.shown()["merge"])
    assert (merged["merges"], merged["splits"], merged["β0 error"]) == (1, 0, 1)


def test_following_the_gradient_mends_the_merge_before_the_neutral_pixels() -> None:
    done = bench.repair(bench.TOPOLOGY, steps=30)
    merge = list(bench.broken()).index("merge")
    assert done.topology[merge] < 10 and done.neutral[merge] == np.inf and done.harmed == 0


def test_a_step_has_the_length_that_is_asked_for_in_each_picture() -> None:
    start = bench.as_logits(*bench.starts()[:2])
    moved: list[torch.Tensor] = []

    def spy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        moved.append(logits.detach().clone())
        return cross_entropy(logits, target)

    bench.descend(spy, start, steps=2, length=0.5)
    assert (moved[1] - moved[0]).flatten(1).norm(dim=1).tolist() == pytest.approx([0.5, 0.5], rel=1e-4)


def test_cross_entropy_pushes_a_wrong_pixel_e_squared_times_as_hard_as_a_right_one() -> None:
    _, bridge, neutral, right = bench.pushes(cross_entropy, bench.starts()[list(bench.broken()).index("merge")])
    assert bridge == pytest.approx(neutral) and bridge / right == pytest.approx(math.exp(2), rel=1e-3)
