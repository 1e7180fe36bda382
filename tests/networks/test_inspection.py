"""What a network is made of: by hand, by formula, by gradient, by PyTorch's counter, and by a slow oracle."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from checks import InputError
from networks import inspection
from tests.field_helpers import box_of, dependence
from unet import UNet


@pytest.fixture(autouse=True)
def same_weights_in_every_run():
    """A net of two channels can be born with dead ReLUs, and then shows no gradient."""
    torch.manual_seed(0)


def test_table_of_one_convolution_by_hand():
    (row,) = inspection.layer_table(nn.Conv2d(3, 8, 5, stride=2, padding=2), (2, 3, 20, 10))
    assert (row.output_shape, row.receptive_field) == ((2, 8, 10, 5), (5, 5))
    assert (row.parameters, row.memory) == (8 * 3 * 25 + 8, 4 * 2 * 8 * 10 * 5)
    assert row.multiply_adds == 2 * 8 * 10 * 5 * 3 * 25  # one product for each weight and output value


def test_multiply_adds_agree_with_pytorchs_own_counter():
    from torch.utils.flop_counter import FlopCounterMode

    model, images = UNet(widths=(4, 8, 8), upsampling="bilinear").eval(), torch.zeros(2, 1, 32, 48)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    ours = sum(row.multiply_adds for row in inspection.layer_table(model, images.shape))
    assert 2 * ours == counter.get_total_flops()  # it counts the product and the sum as two


LAYERS = [
    nn.BatchNorm2d(9),
    UNet(3, 2, (4, 8, 8)),
    UNet(3, 2, (4, 8, 8), norm="instance"),
    nn.Conv2d(4, 8, (3, 1), groups=2, bias=False),
    nn.ConvTranspose2d(6, 4, (2, 3), stride=2, groups=2),
    UNet(1, 1, (4, 8, 16), upsampling="unpool", skip="sum", norm="group"),
    nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer).split("\n")[0])
def test_parameters_by_formula_and_by_counting_agree(layer):
    assert inspection.parameters_by_formula(layer) == inspection.count_parameters(layer)
    with pytest.raises(InputError, match="no formula for the parameters of a PReLU"):
        inspection.parameters_by_formula(nn.Sequential(layer, nn.PReLU()))


def test_stride_and_field_of_every_row():
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d((2, 1)), nn.Conv2d(1, 1, 3), nn.Upsample(scale_factor=4))
    rows = inspection.layer_table(nn.Sequential(model, nn.Conv2d(1, 1, 1)), (1, 1, 32, 32))
    assert [row.receptive_field for row in rows] == [(3, 3), (4, 3), (8, 5), (8, 5)]
    assert [row.stride for row in rows] == [(1, 1), (2, 1), (2, 1), (0.5, 0.25)]
    assert "0.5×0.25" in inspection.format_table(rows, (1, 1, 32, 32))


def test_stages_are_the_maps_of_the_blocks():
    found = inspection.stages(UNet(widths=(2, 4, 8)), (1, 1, 10, 7))
    assert found == [(1, 2, 10, 7), (2, 4, 5, 4), (4, 8, 3, 2), (8, 4, 5, 4), (4, 2, 10, 7)]


class Function(nn.Module):  # any function as a model: of the image or, where there are branches, of their maps
    def __init__(self, function, *branches):
        super().__init__()
        self.function, self.branches = function, nn.ModuleList(branches)

    def forward(self, x):
        return self.function(*[branch(x) for branch in self.branches] or [x])


def rows_and_columns(model, height=12, width=10):
    """Along both axes: first and last input position of every output position, by the oracle and by formula."""
    seen = dependence(model, height, width)
    record = inspection.Record(model, (1, 1, height, width))
    for axis, size in enumerate((height, width)):
        low, high = record.ranges(record.last, axis)
        for position in range(seen.shape[axis]):
            reads = np.flatnonzero(seen.take(position, axis).any(axis=(0, 2 - axis)))
            yield reads, low[position], high[position], size


def check(model, exact=True):
    """Exact: inside the image, the window is what is read.  Else: it is never too small."""
    for reads, low, high, size in rows_and_columns(model):
        if len(reads) and exact:
            assert (reads[0], reads[-1]) == (max(low, 0), min(high, size - 1))
        elif len(reads):
            assert low <= reads[0] and reads[-1] <= high
        else:
            assert low > high or high < 0 or low >= size  # between the taps of a transposed convolution


KERNELS = [
    nn.Conv2d(1, 2, (3, 2), stride=2, padding=(1, 0)),
    nn.Conv2d(1, 2, (5, 2), padding="same"),
    nn.Conv2d(1, 2, 3, padding="valid"),
    nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
    nn.AvgPool2d((3, 2), stride=(1, 2)),
    nn.ConvTranspose2d(1, 2, 2, stride=2),
    nn.ConvTranspose2d(1, 2, (3, 5), stride=(2, 3), padding=(1, 0), output_padding=(1, 2)),
    nn.ConvTranspose2d(1, 2, 2, stride=3),  # with gaps
]


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 1, 3, padding=2, dilation=2), nn.MaxPool2d(2, 1, dilation=3)], ids=str)
def test_a_dilated_kernel_is_counted_with_its_gaps(layer):
    for reads, low, high, size in rows_and_columns(layer):
        if low >= 0 and high < size:
            assert (reads[0], reads[-1]) == (low, high)
        else:  # at the border the first tap may lie in the padding, and the gap after it inside
            assert low <= reads[0] and reads[-1] <= high


OTHERS = [
    nn.Upsample(scale_factor=2),
    nn.Upsample(size=(17, 7), mode="nearest"),
    nn.Upsample(scale_factor=1.5, mode="bilinear"),
    nn.Upsample(size=(17, 23), mode="bilinear"),
    Function(lambda x: F.interpolate(x, None, (0.5, 2.0), "bilinear")),
    Function(lambda x: x[..., 2:-1, 1:]),
    Function(lambda x: x[:, :, ::2, 1::3]),
    Function(lambda x: F.pad(x, (2, 0, 1, 3))),
    Function(lambda x: F.pad(x, (-2, 1, 0, -1))),
    nn.Sequential(nn.ZeroPad2d((1, 2, 3, 0)), nn.ConstantPad2d(1, 0.5)),
    nn.AdaptiveMaxPool2d(1),
    nn.PixelUnshuffle(2),
    Function(lambda x: F.pixel_shuffle(torch.cat([x] * 9, dim=1), 3)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("layer", [*KERNELS, *OTHERS], ids=str)
def test_kernels_resizing_cropping_and_padding_read_what_the_oracle_sees(layer):
    check(layer)


EVERYTHING = {
    "mirrored": lambda x: x.flip(-1),
    "softmax along the rows": lambda x: x.softmax(dim=2),
    "mean along the columns": lambda x: x - x.mean(dim=3, keepdim=True),
    "attention": lambda x: x + (x.flatten(2) @ torch.ones(120, 120, dtype=x.dtype)).view(x.shape),
    "a channel": lambda x: x[:, 0],
    "corners aligned": nn.Upsample(size=(23, 19), mode="bilinear", align_corners=True),
    "smoothed": lambda x: F.interpolate(x, size=(4, 4), mode="bilinear", antialias=True),
    "bicubic": nn.Upsample(scale_factor=2, mode="bicubic"),
    "pooled to 5×3": nn.AdaptiveAvgPool2d((5, 3)),
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_is_not_in_the_lists_reads_everything(name):
    model = Function(EVERYTHING[name])
    check(model, exact=False)
    assert inspection.receptive_field(model, (1, 1, 12, 10)) in ((12, 10), (12, 1), (1, 10))


POINTWISE = {
    "sum": lambda x: x + 1 - (2 - x) * 3 / (x + 5),
    "in place": lambda x: x.clone().mul_(2).add_(x),
    "gate": lambda x: x * torch.sigmoid(x * 1e-5),
    "softmax": lambda x: torch.cat([x, x * 0 + 1], dim=1).mul(1e-5).softmax(dim=1),
    "types": lambda x: x.float().to(torch.float64).contiguous(),
    "where": lambda x: torch.where(x > 2, x, x * 0.5),
    "layers": nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5), nn.BatchNorm2d(1), nn.Identity()),
}  # fmt: skip


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_operations_read_one_pixel(name):
    model = Function(POINTWISE[name])
    check(model)
    assert inspection.receptive_field(model, (1, 1, 12, 10)) == (1, 1)


def test_a_map_of_one_pixel_is_repeated_beside_one_of_full_size():
    gate = Function(lambda x: F.adaptive_avg_pool2d(x, 1) * x)  # squeeze and excitation
    assert inspection.receptive_field(gate, (1, 1, 12, 10)) == (12, 10)
    assert inspection.output_stride(gate, (1, 1, 12, 10)) == (1, 1)


def concat(*branches):
    return Function(lambda *maps: torch.cat(maps, dim=1), *branches)


def conv(k=3, stride=1, dilation=1):
    return nn.Conv2d(1, 1, k, stride, dilation * (k - 1) // 2, dilation)


def residual(stride=1):
    inside = nn.Sequential(conv(3, stride), nn.BatchNorm2d(1), nn.ReLU(), conv(), nn.BatchNorm2d(1))
    beside = conv(1, stride) if stride > 1 else nn.Identity()
    return nn.Sequential(Function(lambda a, b: a + b, inside, beside), nn.ReLU())


ASPP = concat(conv(1), conv(3, dilation=2), conv(3, dilation=4))
DEEP = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 1, 3), nn.ConvTranspose2d(1, 1, 2, 2))
# name: (network, largest field, stride), worked out by hand where a comment says how
ZOO = {
    # 5, jump 1 → 2; +2·2 = 10 after the second pair (6 + 4); 12, jump 4; +2·4 = 20
    "VGG": (nn.Sequential(conv(), conv(), nn.MaxPool2d(2), conv(), conv(), nn.MaxPool2d(2), conv()), 24, 4),
    # 3 + 2 = 5; jump 2 behind the first of the next block: 7, then +2·2 = 11; then 4 + 4 at jump 2
    "ResNet": (nn.Sequential(conv(), residual(), residual(stride=2), residual()), 21, 2),
    "dilated": (nn.Sequential(*(conv(3, dilation=d) for d in (1, 2, 4, 8))), 31, 1),  # 1 + 2·(1 + 2 + 4 + 8)
    "ASPP": (nn.Sequential(conv(3, stride=2), ASPP, nn.Conv2d(3, 1, 1)), 19, 2),  # 3 + 2·(2·4)
    # the final 3×3 meets two coarse pixels at most; with a 3×3 at jump 2 they read 4 of them: 8 pixels
    "valid U-Net": (nn.Sequential(concat(DEEP, nn.ZeroPad2d(-2)), nn.Conv2d(2, 1, 3)), 8, 1),
    "kernel 4, stride 2": (nn.Sequential(conv(3, stride=2), nn.ConvTranspose2d(1, 1, 4, 2, 1)), 5, 1),
    "kernel 3, stride 2": (nn.Sequential(nn.MaxPool2d(2), nn.ConvTranspose2d(1, 1, 3, 2, 1, output_padding=1)), 4, 1),
    "finer than the image": (nn.Sequential(conv(), nn.ConvTranspose2d(1, 1, 2, 2)), 3, 0.5),
    # two 3×3 at jump 1, pooling, two at jump 2: 1 + 4 + 1 + 8 = 14; two 3×3 of the decoder meet up to 3 coarse pixels
    "U-Net, transposed": (UNet(widths=(2, 2)), 18, 1),
    "U-Net, bilinear, sum": (UNet(widths=(1, 1), upsampling="bilinear", skip="sum"), 20, 1),
    "U-Net, stem of 2": (UNet(widths=(2, 2), stem=2), 2 * 18, 1),
    "U-Net, unpooled": (UNet(widths=(1, 1), upsampling="unpool", skip="none"), 18, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_formula_gradient_and_oracle_agree(name):
    model, largest, stride = ZOO[name]
    height = largest + 12 - largest % 4  # the border must not hide a part of the field
    shape = (1, 1, height, height + 4)
    assert inspection.receptive_field(model, shape) == (largest, largest)
    assert inspection.output_stride(model, shape) == (stride, stride)
    formula = inspection.pixel_field(model, shape)
    size = formula[2] - formula[0] + 1, formula[3] - formula[1] + 1
    assert size <= (largest, largest)
    assert inspection.receptive_field_measured(model, shape) == size
    seen = dependence(model, *shape[2:])
    top, left, bottom, right = box_of(seen[seen.shape[0] // 2, seen.shape[1] // 2])
    if name == "U-Net, unpooled":  # for one image, unpooling fills one pixel of four: the oracle does not see the rest
        assert (top, left) >= formula[:2] and (bottom, right) <= formula[2:]
    else:
        assert (top, left, bottom, right) == formula


def test_global_pooling_and_dense_layers_see_everything():
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    dense = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * 20 * 30, 4), nn.ReLU())
    for model in (pooled, dense):
        assert inspection.receptive_field(model, (1, 1, 20, 30)) == (22, 32)  # the padding is part of the field
        assert inspection.receptive_field_measured(model, (1, 1, 20, 30)) == (20, 30)
        assert inspection.output_stride(model, (1, 1, 20, 30)) == (0, 0)


@pytest.mark.parametrize("choose", [lambda a, b: {"out": a, "aux": b}, lambda a, b: (a, b), lambda a, b: [[a], b]])
def test_of_several_outputs_the_first_counts(choose):
    for field in (inspection.receptive_field, inspection.receptive_field_measured):
        assert field(Function(choose, conv(), conv(5)), (1, 1, 9, 9)) == (3, 3)


LOST = [lambda a, b: a.argmax(1), lambda a, b: torch.zeros(1, 1, 9, 9), lambda a, b: a[..., 2:].copy_(b[..., 2:])]


@pytest.mark.parametrize("choose", LOST)
def test_what_cannot_be_followed_is_refused(choose):
    with pytest.raises(InputError, match="cannot be followed"):
        inspection.receptive_field(Function(choose, conv(), conv(5)), (1, 1, 9, 9))


def test_the_model_stays_as_it_was():
    model = UNet(widths=(2, 4)).train()
    model.encoder[0][1].eval()  # a frozen normalisation stays frozen
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    images = torch.rand(2, 1, 16, 16)
    for use in ("receptive_field", "output_stride", "pixel_field", "receptive_field_measured"):
        getattr(inspection, use)(model, (1, 1, 16, 16))
    inspection.effective_receptive_field(model, images)
    assert [m.training for m in model.modules()] == modes and not images.requires_grad
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_effective_field_of_one_and_two_means_by_hand():
    mean = nn.AvgPool2d(3, 1, 1)
    field, _ = inspection.effective_receptive_field(mean, torch.zeros(1, 1, 5, 7))
    assert torch.allclose(field[1:4, 2:5], torch.tensor(1 / 9)) and field.count_nonzero() == 9
    triangle = torch.tensor([1.0, 2, 3, 2, 1]) / 9  # 1 1 1 * 1 1 1, over 9
    field, side = inspection.effective_receptive_field(nn.Sequential(mean, mean), torch.zeros(1, 2, 9, 9))
    assert torch.allclose(field[2:7, 2:7], triangle[:, None] * triangle)
    assert side == 5  # all: the corners have 1/9 of the middle, more than 4.55 %


def test_reach_is_the_farthest_side_of_any_box():
    for net in (UNet(1, 2, (2, 4, 8)), nn.Sequential(nn.ZeroPad2d((3, 0, 1, 2)), nn.Conv2d(1, 1, 4))):
        boxes = [(n, inspection.pixel_field(net, (1, 1, 12, 12), (n, n))) for n in range(12)]
        far = max(abs(edge - n) for n, box in boxes for edge in box)
        assert inspection.reach(net, (1, 1, 12, 12)) == far
