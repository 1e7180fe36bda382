"""The other networks: sizes, a classifier that becomes an FCN, short-cuts that start at nothing, dilation."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from checks import InputError
from losses import cross_entropy
from networks import baselines
from networks.baselines import DilatedNet, ImageClassifier, RoadNet, Shrunk
from networks.fcn import FCN, PatchClassifier
from networks.inspection import count_parameters, receptive_field
from tests.net_helpers import THIN, random, trained_looking
from unet import UNet

NETS = {
    "road": lambda: RoadNet(2, 3),
    "fcn-32s": lambda: FCN(2, 3, THIN, stride=32),
    "fcn-16s": lambda: FCN(2, 3, THIN, stride=16),
    "fcn-8s": lambda: FCN(2, 3, THIN, stride=8),
    "fcn-8s bilinear": lambda: FCN(2, 3, THIN, stride=8, upsampling="bilinear"),
    "fcn-32s, odd kernel": lambda: FCN(2, 3, THIN, stride=32, patch=94),
    "dilated": lambda: DilatedNet(2, 3, THIN),
    "shrunk": lambda: Shrunk(UNet(2, 3, (4, 8)), 4),
}
every_net = pytest.mark.parametrize("name", NETS)


# ---- what all nets have in common -----------------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 33), (17, 31), (65, 40)])
def test_logits_have_the_size_of_the_image(name, size):
    with torch.no_grad():
        assert NETS[name]().eval()(torch.zeros(2, 2, *size)).shape == (2, 3, *size)


@every_net
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    net = NETS[name]()
    loss = cross_entropy(net(random(2, 2, 70, 70)), torch.randint(0, 3, (2, 70, 70)))
    loss.backward()
    for label, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, label


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 5×5 at jumps 1 and 2: 1 + 4 + 8 = 13; interpolation joins two neighbours: + 4
        ("road", 17),
        # a patch of 126 (94), joined with the neighbour 32 pixels on
        ("fcn-32s", 158),
        ("fcn-32s, odd kernel", 126),
        # ×2 reads 2 neighbours, ×16 reads 2 of its outputs: 3 coarse values
        ("fcn-16s", 190),
        # 3×3 and pooling at jumps 1, 2, 4: 22; 3×3 at 8: 38; 3×3 dilated by 2: 70; by 4: 134; interpolation: + 8
        ("dilated", 142),
    ],
)
def test_receptive_field_by_hand(name, expected):
    assert receptive_field(NETS[name](), (1, 2, 256, 256)) == (expected, expected)


# ---- the road net ---------------------------------------------------------------------------------------------------


def test_the_road_net_is_that_of_the_assignment():
    torch.manual_seed(0)
    net, image = RoadNet(), random(1, 3, 32, 64)
    a, b, c = (module for module in net.modules() if isinstance(module, nn.Conv2d))
    x = F.relu(F.conv2d(image, a.weight, a.bias, stride=2, padding=2))  # (1, 32, 16, 32)
    x = F.relu(F.conv2d(x, b.weight, b.bias, stride=2, padding=2))  # (1, 64, 8, 16)
    x = F.conv2d(x, c.weight, c.bias)
    assert (a.kernel_size, b.kernel_size, c.kernel_size) == ((5, 5), (5, 5), (1, 1)) and x.shape == (1, 1, 8, 16)
    assert count_parameters(net) == 2432 + 51264 + 65  # 5·5·3·32 + 32, 5·5·32·64 + 64, 64 + 1
    torch.testing.assert_close(net(image), F.interpolate(x, size=(32, 64), mode="bilinear"))


# ---- dilation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output_stride", "dilations", "poolings"),
    [(8, [1, 1, 1, 1, 2, 4], 3), (4, [1, 1, 1, 2, 4, 8], 2), (16, [1, 1, 1, 1, 1, 2], 4), (1, [1, 2, 4, 8, 16, 32], 0)],
)
def test_a_pooling_left_out_doubles_the_dilation_after_it(output_stride, dilations, poolings):
    net = DilatedNet(1, 2, THIN, output_stride=output_stride)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert [conv.dilation[0] for conv in convs] == dilations
    assert sum(isinstance(module, nn.MaxPool2d) for module in net.modules()) == poolings


def test_each_quarter_of_a_dilated_map_is_the_map_of_the_pooled_net():
    """À trous: with dilation 2, the pixels of one parity see what they would see after taking every second pixel."""
    conv, x = nn.Conv2d(2, 3, 3, padding=1), random(1, 2, 12, 14)
    dilated = F.conv2d(x, conv.weight, conv.bias, padding=2, dilation=2)
    for top in (0, 1):
        for left in (0, 1):
            torch.testing.assert_close(dilated[..., top::2, left::2], conv(x[..., top::2, left::2]))


# ---- other tasks ----------------------------------------------------------------------------------------------------


def test_the_image_classifier_is_the_encoder_and_a_mean():
    torch.manual_seed(0)
    unet = trained_looking(UNet(2, 2, (4, 6, 8)))
    net, image = ImageClassifier(unet, 5).eval(), random(3, 2, 22, 17)
    a, b, c = unet.encoder
    deepest = c(unet.pool(b(unet.pool(a(image)))))
    dense = net.head[2]
    expected = deepest.mean(dim=(2, 3)) @ dense.weight.T + dense.bias
    torch.testing.assert_close(net(image), expected)
    assert net(image).shape == (3, 5) and net(image[..., :1, :1]).shape == (3, 5)
    encoder = sum(p.numel() for p in unet.encoder.parameters())
    assert count_parameters(net) == encoder + 8 * 5 + 5


# ---- torchvision's net ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_the_reference_gives_logits(channels):
    pytest.importorskip("torchvision")
    with torch.no_grad():
        assert baselines.fcn_resnet50(channels, 4).eval()(torch.zeros(1, channels, 40, 50)).shape == (1, 4, 40, 50)


def test_a_missing_torchvision_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(InputError, match="torchvision cannot be imported"):
        baselines.fcn_resnet50()


def test_a_shrunk_network_sees_averages_and_answers_in_full_size():
    seen = []

    class Network(nn.Module):
        in_channels = 3

        def forward(self, images):
            seen.append(images)
            return images[:, :2]

    images = random(2, 3, 8, 6)
    logits = Shrunk(Network(), 2)(images)
    assert logits.shape == (2, 2, 8, 6)
    torch.testing.assert_close(seen[0][0, 0, 0, 0], images[0, 0, :2, :2].mean())
    torch.testing.assert_close(logits.mean(dim=(2, 3)), images[:, :2].mean(dim=(2, 3)))
    Shrunk(Network(), 2)(images[..., :7, :5])
    torch.testing.assert_close(seen[1][0, 0, -1, -1], images[0, 0, 6, 4])  # the rim is an average of what is there


# ---- wrong settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: RoadNet(0), "in_channels"),
        (lambda: PatchClassifier(widths=(2, 3)), "expected five"),
        (lambda: FCN(patch=64), "94, 126, 158"),
        (lambda: FCN(stride=4), "choose one of 32, 16, 8"),
        (lambda: DilatedNet(output_stride=3), "output_stride"),
        (lambda: Shrunk(UNet(), 3), "factor"),
    ],
)
def test_wrong_settings_are_refused(build, word):
    with pytest.raises(InputError, match=word):
        build()
