"""Layer table and receptive field: by hand, and formula against gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from checks import InputError
from inspection import (
    count_parameters,
    format_table,
    layer_table,
    receptive_field,
    receptive_field_measured,
    stages,
)
from unet import UNet


def test_table_of_one_convolution_by_hand():
    (row,) = layer_table(nn.Conv2d(3, 8, 5, stride=2, padding=2), (2, 3, 20, 10))
    assert row.output_shape == (2, 8, 10, 5)
    assert row.parameters == 8 * 3 * 25 + 8
    assert row.multiply_adds == 2 * 8 * 10 * 5 * 3 * 25  # one product for each weight and output value
    assert row.memory == 4 * 2 * 8 * 10 * 5
    assert row.receptive_field == (5, 5)


def test_multiply_adds_of_a_transposed_convolution_by_hand():
    (row,) = layer_table(nn.ConvTranspose2d(4, 2, 2, stride=2), (1, 4, 3, 3))
    assert row.output_shape == (1, 2, 6, 6)
    assert row.multiply_adds == 4 * 9 * 2 * 4  # each of the 36 input values meets 2 · 2·2 weights


def test_rows_add_up_to_the_model():
    model = UNet(2, 3, (4, 8, 8))
    assert sum(row.parameters for row in layer_table(model, (1, 2, 16, 16))) == count_parameters(model)


def test_multiply_adds_agree_with_pytorchs_own_counter():
    from torch.utils.flop_counter import FlopCounterMode

    model, images = UNet(widths=(4, 8, 8), upsampling="bilinear").eval(), torch.zeros(2, 1, 32, 48)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    ours = sum(row.multiply_adds for row in layer_table(model, images.shape))
    assert 2 * ours == counter.get_total_flops()  # it counts the product and the sum as two


def test_receptive_field_of_two_convolutions_and_a_pooling_by_hand():
    # 3×3: 3; pooling 2: 3 + 1 = 4; 3×3 with jump 2: 4 + 2·2 = 8
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3))
    assert [row.receptive_field[0] for row in layer_table(model, (1, 1, 32, 32))] == [3, 4, 8]


def test_receptive_field_of_the_paper_sized_encoder_by_hand():
    # double 3×3 at jumps 1, 2, 4, 8, 16 and four poolings: 1 + 4·(1+2+4+8+16) + (1+2+4+8) = 140
    rows = layer_table(UNet(widths=(1, 1, 1, 1, 1)), (1, 1, 256, 256))
    assert next(row for row in rows if row.name == "encoder.4.3").receptive_field == (140, 140)


def test_rows_and_columns_are_kept_apart():
    model = nn.Sequential(nn.Conv2d(1, 1, (1, 7)), nn.Conv2d(1, 1, (3, 1), stride=(2, 1)), nn.AvgPool2d((2, 1)))
    assert receptive_field(model, (1, 1, 64, 64)) == (5, 7)


class Branches(nn.Module):
    """A wide and a narrow path, joined: the wide one decides."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(1, 2, 3, padding=4, dilation=4), nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        return torch.cat([self.narrow(x), self.wide(x)], dim=1) + 1


def test_branches_are_joined():
    assert receptive_field(Branches(), (1, 1, 32, 32)) == (9, 9)


def test_global_pooling_sees_everything():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    assert receptive_field(model, (1, 1, 20, 30)) == (22, 32)  # the padding is part of the field


def random_layer(kind, k, s, p, d):
    p = min(p, k // 2)
    if kind == "conv":
        return nn.Conv2d(1, 1, k, s, p, dilation=d)
    if kind == "transposed":
        return nn.ConvTranspose2d(1, 1, k, s, p, dilation=d)
    if kind == "pool":
        return nn.MaxPool2d(k, s, p)
    return nn.Upsample(scale_factor=s, mode="bilinear" if k % 2 else "nearest")


layers = st.builds(
    random_layer,
    st.sampled_from(["conv", "transposed", "pool", "upsample"]),
    st.integers(1, 4), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(layers, min_size=1, max_size=4))
def test_measured_never_exceeds_the_formula(model):
    shape = (1, 1, 97, 97)
    try:
        formula = receptive_field(nn.Sequential(*model), shape)
        measured = receptive_field_measured(nn.Sequential(*model), shape, trials=4)
    except RuntimeError:  # the map became smaller than a kernel
        return
    assert measured[0] <= formula[0] and measured[1] <= formula[1]


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear", "unpool"])
@pytest.mark.parametrize("skip", ["none", "concat", "sum"])
def test_formula_is_reached_by_the_gradient_of_the_unet(upsampling, skip):
    model = UNet(widths=(2, 2, 2), upsampling=upsampling, skip=skip)
    shape = (1, 1, 80, 80)
    assert receptive_field_measured(model, shape) == receptive_field(model, shape)


def test_a_convolution_called_as_a_function_is_refused():
    class Hidden(nn.Module):
        def forward(self, x):
            return F.conv2d(x, torch.ones(1, 1, 3, 3), padding=1)

    with pytest.raises(InputError, match="conv2d"):
        receptive_field(Hidden(), (1, 1, 8, 8))


def test_inspection_leaves_the_model_as_it_was():
    model = UNet(widths=(2, 4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    format_table(layer_table(model, (1, 1, 16, 16)), (1, 1, 16, 16))
    assert model.training and all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_stages_are_the_maps_of_the_blocks():
    found = stages(UNet(widths=(2, 4, 8)), (1, 1, 10, 7))
    assert [(s.channels, s.height, s.width) for s in found] == [
        (2, 10, 7),
        (4, 5, 4),
        (8, 3, 2),
        (4, 5, 4),
        (2, 10, 7),
    ]
