"""Layer table, parameters and multiply-adds: by hand, and by a second way."""

import pytest
import torch
from torch import nn

from checks import InputError
from networks.inspection import count_parameters, format_table, layer_table, parameters_by_formula, stages
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


def test_receptive_field_of_the_paper_sized_encoder_by_hand():
    # double 3×3 at jumps 1, 2, 4, 8, 16 and four poolings: 1 + 4·(1+2+4+8+16) + (1+2+4+8) = 140
    rows = layer_table(UNet(widths=(1, 1, 1, 1, 1)), (1, 1, 256, 256))
    assert next(row for row in rows if row.name == "encoder.4.3").receptive_field == (140, 140)


LAYERS = [
    nn.Conv2d(3, 8, 5),
    nn.Conv2d(4, 8, (3, 1), groups=2, bias=False),
    nn.Conv2d(4, 4, 3, groups=4),
    nn.ConvTranspose2d(6, 4, (2, 3), stride=2, groups=2),
    nn.ConvTranspose2d(6, 3, 2, bias=False),
    nn.Linear(7, 5),
    nn.Linear(7, 5, bias=False),
    nn.BatchNorm2d(9),
    nn.BatchNorm2d(9, affine=False),
    nn.GroupNorm(2, 6),
    nn.LayerNorm((3, 4)),
    nn.InstanceNorm2d(5, affine=True),
    UNet(3, 2, (4, 8, 8)),
    UNet(1, 1, (4, 8, 16), upsampling="unpool", skip="sum", norm="group"),
    UNet(1, 1, (4, 8), upsampling="bilinear", norm="none"),
    nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer).split("\n")[0])
@pytest.mark.parametrize("biases", [True, False])
def test_parameters_by_formula_and_by_counting_agree(layer, biases):
    assert parameters_by_formula(layer, biases=biases) == count_parameters(layer, biases=biases)


def test_parameters_by_formula_do_not_look_into_the_tensors():
    layer = nn.Conv2d(3, 8, 5)
    layer.weight = nn.Parameter(torch.zeros(1))
    assert parameters_by_formula(layer) == 3 * 8 * 25 + 8 and count_parameters(layer) == 1 + 8


def test_a_layer_without_a_formula_is_refused():
    with pytest.raises(InputError, match=r"no formula for the parameters of 1 \(PReLU\)"):
        parameters_by_formula(nn.Sequential(nn.Conv2d(1, 1, 1), nn.PReLU()))


def test_a_layer_that_runs_twice_is_counted_once():
    shared = nn.Conv2d(1, 1, 3, padding=1)
    rows = layer_table(nn.Sequential(shared, nn.ReLU(), shared), (1, 1, 8, 8))
    assert [row.parameters for row in rows] == [10, 0]
    assert [row.multiply_adds for row in rows] == [9 * 64, 9 * 64]


def test_a_normalisation_before_all_layers_has_its_own_row():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2, affine=True), nn.PReLU())
    rows = layer_table(model, (1, 1, 8, 8))
    assert [(row.kind, row.parameters) for row in rows] == [
        ("BatchNorm2d", 2),
        ("Conv2d 1×1 + InstanceNorm2d + PReLU", 4 + 4 + 1),
    ]


def test_stride_and_field_of_every_row():
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d((2, 1)), nn.Conv2d(1, 1, 3), nn.Upsample(scale_factor=4))
    rows = layer_table(nn.Sequential(model, nn.Conv2d(1, 1, 1)), (1, 1, 32, 32))
    assert [row.receptive_field for row in rows] == [(3, 3), (4, 3), (8, 5), (8, 5)]
    assert [row.stride for row in rows] == [(1, 1), (2, 1), (2, 1), (0.5, 0.25)]
    assert "0.5×0.25" in format_table(rows, (1, 1, 32, 32))


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
