"""The other networks: sizes, a classifier that becomes an FCN, short-cuts that start at nothing, dilation."""

import copy
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from checks import InputError
from learner import Learner
from losses import cross_entropy
from networks import baselines
from networks.baselines import DilatedNet, ImageClassifier, RoadNet, Shrunk
from networks.fcn import FCN, PatchClassifier
from networks.inspection import count_parameters, layer_table, receptive_field
from tests.net_helpers import THIN, random, trained_looking
from unet import UNet

NETS = {
    "road": lambda: RoadNet(2, 3),
    "fcn-32s": lambda: FCN(2, 3, THIN, stride=32),
    "fcn-16s": lambda: FCN(2, 3, THIN, stride=16),
    "fcn-8s": lambda: FCN(2, 3, THIN, stride=8),
    "fcn-8s bilinear": lambda: FCN(2, 3, THIN, stride=8, upsampling="bilinear"),
    "fcn-16s, odd kernel": lambda: FCN(2, 3, THIN, stride=16, patch=158),
    "fcn-32s, odd kernel": lambda: FCN(2, 3, THIN, stride=32, patch=94),
    "dilated": lambda: DilatedNet(2, 3, THIN),
    "dilated, stride 4": lambda: DilatedNet(2, 3, THIN, output_stride=4),
    "shrunk": lambda: Shrunk(UNet(2, 3, (4, 8)), 4),
}
every_net = pytest.mark.parametrize("name", NETS)


def cost(net, shape=(1, 3, 128, 128)):
    return sum(row.multiply_adds for row in layer_table(net, shape))


# ---- what all nets have in common -----------------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 33), (17, 31), (32, 64), (37, 53), (65, 40)])
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


@every_net
def test_wrong_input_gets_one_clear_sentence(name):
    with pytest.raises(InputError, match=r"expected \(B, 2, H, W\)"):
        NETS[name]()(torch.zeros(2, 3, 8, 8))
    with pytest.raises(InputError, match="permute"):
        NETS[name]()(torch.zeros(2, 8, 8, 2))


@every_net
def test_a_net_learns_one_small_picture(name):
    torch.manual_seed(0)
    image, target = random(1, 2, 48, 48), torch.zeros(1, 48, 48, dtype=torch.int64)
    target[:, :, 24:], target[:, 24:] = 1, 2
    image[:, 0] += 2 * target
    net = NETS[name]()
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=1e-2), []
    for _ in range(30):
        loss = cross_entropy(net(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@every_net
def test_tiles_give_the_prediction_of_the_whole_image(name):
    torch.manual_seed(0)
    learner = Learner(trained_looking(NETS[name]()), cross_entropy, device="cpu", verbose=False)
    image = random(1, 2, 40, 450)
    torch.testing.assert_close(learner.predict(image, tile=64), learner.predict(image), rtol=1e-4, atol=1e-5)


@every_net
def test_half_precision_gives_the_same_up_to_rounding(name):
    torch.manual_seed(0)
    net, image = trained_looking(NETS[name]()), random(1, 2, 40, 40)
    with torch.no_grad():
        expected = net(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(image)
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
    if isinstance(net, FCN):
        assert half.dtype == torch.float32  # its way up: bfloat16 would be twenty times slower on a CPU


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


def test_parameters_of_the_road_net_by_formula():
    # 5·5·3·32 + 32, 5·5·32·64 + 64, 64 + 1
    assert count_parameters(RoadNet()) == 2432 + 51264 + 65 == 53761


def test_the_road_net_is_that_of_the_assignment():
    torch.manual_seed(0)
    net, image = RoadNet(), random(1, 3, 32, 64)
    a, b, c = (module for module in net.modules() if isinstance(module, nn.Conv2d))
    x = F.relu(F.conv2d(image, a.weight, a.bias, stride=2, padding=2))  # (1, 32, 16, 32)
    x = F.relu(F.conv2d(x, b.weight, b.bias, stride=2, padding=2))  # (1, 64, 8, 16)
    x = F.conv2d(x, c.weight, c.bias)
    assert (a.kernel_size, b.kernel_size, c.kernel_size) == ((5, 5), (5, 5), (1, 1)) and x.shape == (1, 1, 8, 16)
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


def test_dilation_keeps_the_parameters_and_multiplies_the_cost():
    fine, coarse = DilatedNet(3, 2, THIN, output_stride=4), DilatedNet(3, 2, THIN, output_stride=8)
    assert count_parameters(fine) == count_parameters(coarse)
    after = 9 * (4 * 5 + 5 * 6 + 6 * 6) + 6 * 2  # weights behind the third level, on 16² or on 32² values
    assert cost(fine) - cost(coarse) == after * (32**2 - 16**2)


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


def test_the_image_classifier_learns_and_leaves_the_unet_alone():
    torch.manual_seed(0)
    unet = UNet(1, 2, (4, 8))
    before = copy.deepcopy(unet.state_dict())
    net, images, labels = ImageClassifier(unet, 4), random(8, 1, 12, 12), torch.arange(8) % 4
    images += labels.view(-1, 1, 1, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(40):
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 and all(p.grad.abs().sum() > 0 for p in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


# ---- torchvision's net ----------------------------------------------------------------------------------------------


def stub_of_torchvision(asked):
    """A torchvision that only knows this one net, of one convolution."""

    class Net(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.backbone = nn.Module()
            self.backbone.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
            self.last = nn.Conv2d(64, num_classes, 1)

        def forward(self, x):
            z = self.last(self.backbone.conv1(x))
            return {"out": F.interpolate(z, size=x.shape[2:], mode="bilinear")}

    def fcn_resnet50(**settings):
        asked.update(settings)
        return Net(settings["num_classes"])

    models, segmentation = types.ModuleType("torchvision.models"), types.ModuleType("torchvision.models.segmentation")
    segmentation.fcn_resnet50 = fcn_resnet50
    models.segmentation = segmentation
    package = types.ModuleType("torchvision")
    package.models = models
    return {"torchvision": package, "torchvision.models": models, "torchvision.models.segmentation": segmentation}


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_reference_gives_logits_and_asks_for_no_weights(monkeypatch, channels):
    asked = {}
    for name, module in stub_of_torchvision(asked).items():
        monkeypatch.setitem(sys.modules, name, module)
    net = baselines.fcn_resnet50(channels, 4)
    assert net(torch.zeros(1, channels, 17, 31)).shape == (1, 4, 17, 31)
    assert asked["weights"] is None and asked["weights_backbone"] is None  # nothing is downloaded


def test_the_reference_of_the_installed_torchvision():
    try:
        from torchvision.models import segmentation  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    net = baselines.fcn_resnet50(1, 4).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 1, 40, 50)).shape == (1, 4, 40, 50)


class Broken:
    """Finds torchvision, and fails while importing it, as a pair of wrong versions does."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'torchvision'"),
        RuntimeError("operator torchvision::nms does not exist\nand more lines"),
        OSError("libcudart.so: cannot open shared object file"),
    ],
)
def test_a_missing_or_broken_torchvision_is_said_in_one_sentence(monkeypatch, error):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(error), *sys.meta_path])
    with pytest.raises(InputError, match="torchvision cannot be imported") as caught:
        baselines.fcn_resnet50()
    assert len(str(caught.value).splitlines()) == 1


def test_torchvision_is_not_imported_with_the_module():
    code = "import sys, networks.baselines; sys.exit('torchvision' in sys.modules)"
    root = Path(baselines.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


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
        (lambda: RoadNet(3, 0), "num_classes"),
        (lambda: PatchClassifier(widths=(2, 3)), "expected five"),
        (lambda: PatchClassifier(widths=(2, 3, 0, 4, 5)), "widths"),
        (lambda: PatchClassifier(patch=64), "94, 126, 158"),
        (lambda: PatchClassifier(patch=62), "94, 126, 158"),
        (lambda: FCN(patch=127), "94, 126, 158"),
        (lambda: FCN(stride=4), "choose one of 32, 16, 8"),
        (lambda: FCN(upsampling="nearest"), "upsampling"),
        (lambda: FCN(num_classes=0), "num_classes"),
        (lambda: FCN.from_classifier(PatchClassifier(), stride=64), "stride"),
        (lambda: DilatedNet(output_stride=3), "output_stride"),
        (lambda: DilatedNet(output_stride=32), "output_stride"),
        (lambda: DilatedNet(widths=()), "widths"),
        (lambda: Shrunk(UNet(), 3), "factor"),
    ],
)
def test_wrong_settings_are_refused(build, word):
    with pytest.raises(InputError, match=word):
        build()


def test_the_image_classifier_refuses_other_channels():
    with pytest.raises(InputError, match="ImageClassifier"):
        ImageClassifier(UNet(3, 2, (2, 4)), 2)(torch.zeros(1, 1, 8, 8))
