"""The learning-rate range test: rates, early end, the suggested range, and that the model stays as it was."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checks import InputError
from experiments.range_test import range_test, smoothed, suggested_range
from losses import cross_entropy
from unet import UNet


def rows_of(losses: list[float], low_exponent: int = -6) -> list[dict[str, float]]:
    """Nine steps for each loss, one loss for each decade of the learning rate."""
    return [{"lr": 10.0 ** (low_exponent + i), "train_loss": loss} for i, loss in enumerate(losses) for _ in range(9)]


def test_rates_rise_exponentially_and_the_model_stays_as_it_was(tiny_batch: tuple[Tensor, Tensor]) -> None:
    model = UNet(1, 2, (4, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = range_test(model, cross_entropy, [tiny_batch], low=1e-4, high=1e-2, steps=21)
    rates = [row["lr"] for row in rows]
    assert rates[0] == 1e-4 and math.isclose(rates[-1], 1e-2) and len(rows) == 21
    assert all(math.isclose(b / a, 10 ** (2 / 20)) for a, b in zip(rates, rates[1:]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert rows == range_test(model, cross_entropy, [tiny_batch], low=1e-4, high=1e-2, steps=21)


def test_a_real_network_learns_inside_of_the_suggested_range(tiny_batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    low, high = suggested_range(range_test(UNet(1, 2, (4, 8)), cross_entropy, [tiny_batch], steps=60))
    assert 1e-5 <= low < high <= 1 and high >= 10 * low


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


@pytest.mark.parametrize("explosion", [1e3, math.nan, math.inf])
def test_it_ends_when_the_loss_explodes(explosion: float) -> None:
    calls = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return output.sum() * 0 + (explosion if len(calls) > 12 else 1.0)

    rows = range_test(Slope(), loss, [(torch.ones(1), torch.ones(1))], steps=40)
    assert len(rows) == 13


def test_every_epoch_has_its_own_order_and_augmentation_is_used() -> None:
    class Loader:
        def __init__(self) -> None:
            self.batch_sampler, self.epochs = self, []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

        def __iter__(self) -> Any:
            return iter([(torch.ones(1), torch.ones(1))] * 4)

    def augment(*tensors: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        drawn.append(float(torch.rand((), generator=generator)))
        return tensors

    loader, drawn = Loader(), []
    range_test(Slope(), lambda output, target: (output - target).square().sum(), loader, augment=augment, steps=10)
    assert loader.epochs == [0, 1, 2] and len(set(drawn)) == 10


def test_wrong_arguments_and_an_empty_loader_are_refused() -> None:
    for options in ({"low": 0.0}, {"low": 1.0, "high": 0.1}, {"steps": 9}):
        with pytest.raises(InputError, match="range_test: low="):
            range_test(Slope(), nn.functional.mse_loss, [], **options)
    with pytest.raises(InputError, match="no batch"):
        range_test(Slope(), nn.functional.mse_loss, [])


def test_the_range_goes_from_the_first_tenth_of_the_fall_to_the_ninth() -> None:
    # the whole fall is 0.9: a tenth of it is 0.91, first met at 1e-3, nine tenths are 0.19, first met at 1e-2
    assert suggested_range(rows_of([1, 1, 0.95, 0.6, 0.15, 0.1, 3])) == (1e-3, 1e-2)
    assert suggested_range(rows_of([1, 1, 1, 1, 0.1, 3])) == (1e-3, 1e-2)  # at least a factor of ten
    rows = [row | {"lr": 3.3 * row["lr"]} for row in rows_of([1, 1, 0.95, 0.6, 0.1, 0.4, 3])]
    assert suggested_range(rows) == (3e-3, 4e-2)  # rounded outwards


def test_one_bad_batch_does_not_move_the_range() -> None:
    rows = rows_of([1, 1, 0.95, 0.6, 0.1, 0.4, 3])
    rows[12]["train_loss"] = 0.0
    assert suggested_range(rows) == (1e-3, 1e-2)
    assert smoothed(rows)[12] == 1


def test_a_loss_that_never_falls_is_told() -> None:
    with pytest.raises(InputError, match="did not fall"):
        suggested_range(rows_of([1, 1, 1.01, 2]))
