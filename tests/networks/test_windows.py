"""The table of windows against the slow oracle: what one operation reads, at every output pixel."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks.inspection import Record, Window, receptive_field, sizes
from tests.field_helpers import dependence


class Function(nn.Module):
    """Any function as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def rows_and_columns(model, height=12, width=10, channels=1):
    """Along both axes: first and last input position of every output position, by the oracle and by formula."""
    seen = dependence(model, height, width, channels)
    record = Record(model, (1, channels, height, width))
    for axis, size in enumerate((height, width)):
        low, high = record.ranges(record.last, axis)
        for position in range(seen.shape[axis]):
            reads = np.flatnonzero(seen.take(position, axis).any(axis=(0, 2 - axis)))
            yield reads, low[position], high[position], size


def check(model, exact=True, **shape):
    """Exact: inside the image, the window is what is read.  Else: it is never too small."""
    for reads, low, high, size in rows_and_columns(model, **shape):
        if len(reads) and exact:
            assert (reads[0], reads[-1]) == (max(low, 0), min(high, size - 1))
        elif len(reads):
            assert low <= reads[0] and reads[-1] <= high
        else:
            assert low > high or high < 0 or low >= size  # between the taps of a transposed convolution


KERNELS = [
    nn.Conv2d(1, 2, 3),
    nn.Conv2d(1, 2, (1, 4), stride=(1, 3)),
    nn.Conv2d(1, 2, (3, 2), stride=2, padding=(1, 0)),
    nn.Conv2d(1, 2, 4, padding="same"),
    nn.Conv2d(1, 2, (5, 2), padding="same"),
    nn.Conv2d(1, 2, 3, padding="valid"),
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
    nn.AvgPool2d((3, 2), stride=(1, 2)),
    nn.ConvTranspose2d(1, 2, 2, stride=2),
    nn.ConvTranspose2d(1, 2, 4, stride=2, padding=1),
    nn.ConvTranspose2d(1, 2, (3, 5), stride=(2, 3), padding=(1, 0), output_padding=(1, 2)),
    nn.ConvTranspose2d(1, 2, 2, stride=3),  # with gaps
    nn.ConvTranspose2d(1, 2, 3),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("layer", KERNELS, ids=str)
def test_kernels_read_what_the_oracle_sees(layer):
    check(layer)


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 1, 3, padding=2, dilation=2), nn.MaxPool2d(2, 1, dilation=3)], ids=str)
def test_a_dilated_kernel_is_counted_with_its_gaps(layer):
    for reads, low, high, size in rows_and_columns(layer):
        if low >= 0 and high < size:
            assert (reads[0], reads[-1]) == (low, high)
        else:  # at the border the first tap may lie in the padding, and the gap after it inside
            assert low <= reads[0] and reads[-1] <= high


RESIZING = [
    nn.Upsample(scale_factor=2),
    nn.Upsample(scale_factor=(3, 2), mode="nearest"),
    nn.Upsample(size=(17, 7), mode="nearest"),
    nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.Upsample(scale_factor=4, mode="bilinear"),
    nn.Upsample(scale_factor=1.5, mode="bilinear"),
    nn.Upsample(size=(17, 23), mode="bilinear"),
    nn.Upsample(size=(23, 19), mode="bilinear", align_corners=True),
    nn.UpsamplingBilinear2d(scale_factor=2),
    Function(lambda x: F.interpolate(x, scale_factor=1.7, mode="nearest")),
    Function(lambda x: F.interpolate(x, scale_factor=2.3, mode="bilinear", recompute_scale_factor=True)),
    Function(lambda x: F.interpolate(x, None, (0.5, 2.0), "bilinear")),
]


@pytest.mark.parametrize("layer", RESIZING, ids=lambda m: str(m) if isinstance(m, nn.Upsample) else "function")
def test_resizing_reads_what_the_oracle_sees(layer):
    check(layer)


MOVING = {
    "cropped": lambda x: x[..., 2:-1, 1:],
    "every second": lambda x: x[:, :, ::2, 1::3],
    "a channel": lambda x: x[:, 0],
    "by index": lambda x: x[:, :, torch.tensor([1, 3, 5])],
    "zero-padded": lambda x: F.pad(x, (2, 0, 1, 3)),
    "columns only": lambda x: F.pad(x, (2, 1)),
    "padded and cropped": lambda x: F.pad(x, (-2, 1, 0, -1)),
    "layers": nn.Sequential(nn.ZeroPad2d((1, 2, 3, 0)), nn.ConstantPad2d(1, 0.5)),
    "pooled to one": nn.AdaptiveMaxPool2d(1),
}


@pytest.mark.parametrize("name", MOVING)
def test_cropping_padding_and_adaptive_pooling_read_what_the_oracle_sees(name):
    model = MOVING[name]
    check(model if isinstance(model, nn.Module) else Function(model))


EVERYTHING = {
    "mirrored": lambda x: x.flip(-1),
    "rolled": lambda x: x.roll(2, dims=-2),
    "softmax along the rows": lambda x: x.softmax(dim=2),
    "softmax layer": nn.Softmax(dim=-1),
    "mean along the columns": lambda x: x - x.mean(dim=3, keepdim=True),
    "cumulated": lambda x: x.cumsum(dim=-1),
    "attention": lambda x: x + (x.flatten(2) @ torch.ones(120, 120, dtype=x.dtype)).view(x.shape),
    "a matrix": lambda x: torch.ones(12, 12, dtype=x.dtype) @ x,
    "turned twice": lambda x: x.rot90(2, (2, 3)),
    "dense along the columns": nn.Linear(10, 10),
    "backwards by index": lambda x: x[:, :, torch.arange(11, -1, -1)],
    "bicubic": nn.Upsample(scale_factor=2, mode="bicubic"),
    "shuffled": lambda x: F.pixel_shuffle(torch.cat([x] * 4, dim=1), 2),
    "pooled to 5×3": nn.AdaptiveAvgPool2d((5, 3)),
    "area": nn.Upsample(size=(5, 20), mode="area"),
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_is_not_in_the_lists_reads_everything(name):
    model = EVERYTHING[name]
    model = model if isinstance(model, nn.Module) else Function(model)
    check(model, exact=False)
    assert receptive_field(model, (1, 1, 12, 10)) in ((12, 10), (12, 1), (1, 10))


POINTWISE = {
    "sum": lambda x: x + 1 - (2 - x) * 3 / (x + 5),
    "in place": lambda x: x.clone().mul_(2).add_(x),
    "iadd": lambda x: x.clone().__iadd__(x),
    "gate": lambda x: x * torch.sigmoid(x * 1e-5),
    "softmax": lambda x: torch.cat([x, x * 0 + 1], dim=1).mul(1e-5).softmax(dim=1),
    "log-softmax, -3": lambda x: F.log_softmax(torch.cat((x, x * 0), 1) * 1e-5, -3),
    "halves": lambda x: torch.cat([x, 2 * x], dim=1).chunk(2, dim=1)[1],
    "splits": lambda x: sum(torch.cat([x, 2 * x], dim=1).split(1, dim=1)),
    "largest channel": lambda x: torch.cat([x, 2 * x], dim=1).max(dim=1, keepdim=True)[0],
    "mean channel": lambda x: torch.cat([x, 2 * x], dim=1).mean(1).unsqueeze(1),
    "types": lambda x: x.float().to(torch.float64).contiguous(),
    "where": lambda x: torch.where(x > 2, x, x * 0.5),
    "reshaped": lambda x: x.view(1 * len(x), 1, 1, 12, 10).squeeze(1) * 2,
    "layers": nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5), nn.BatchNorm2d(1), nn.Identity()),
}  # fmt: skip


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_operations_read_one_pixel(name):
    model = POINTWISE[name]
    model = model if isinstance(model, nn.Module) else Function(model)
    check(model)
    assert receptive_field(model, (1, 1, 12, 10)) == (1, 1)


def test_a_map_of_one_pixel_is_repeated_beside_one_of_full_size():
    """Squeeze and excitation: the gate reads everything, the gated map only itself."""

    class Gate(nn.Module):
        def forward(self, x):
            return F.adaptive_avg_pool2d(x, 1) * x

    record = Record(Gate(), (1, 1, 12, 10))
    (gate, image) = record.steps[-1].sources
    assert gate[1] == (Window(step=0), Window(step=0)) and image[1] == (Window(), Window())
    assert record.field(record.last) == (12, 10) and record.stride(record.last) == (1, 1)


@pytest.mark.parametrize(
    "call, field",
    [
        (lambda x: F.conv2d(x, torch.ones(1, 1, 3, 3)), 3),
        (lambda x: F.conv2d(x, torch.ones(1, 1, 3, 3), dilation=2, padding="same"), 5),
        (lambda x: F.conv_transpose2d(x, torch.ones(1, 1, 3, 3), stride=2), 2),
        (lambda x: F.max_pool2d(x, 2), 2),
        (lambda x: F.avg_pool2d(x, 3, padding=1), 3),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], 2),
    ],
)
def test_kernels_called_as_functions_are_read_as_those_of_layers(call, field):
    assert receptive_field(Function(call), (1, 1, 12, 12)) == (field, field)


def test_vectors_are_one_pixel():
    assert sizes((2, 3)) == (1, 1) and sizes((3, 4, 5)) == (4, 5)


def test_a_window_by_hand():
    # bilinear ×2: output 3 lies at (3 + ½)/2 − ½ = 1.25, between the inputs 1 and 2
    bilinear = Window(step=2, first=-1 - 3, last=-1 + 3, parts=4)
    low, high = bilinear.before(np.array([3]), np.array([3]))
    assert (low[0], high[0]) == (1, 2)
