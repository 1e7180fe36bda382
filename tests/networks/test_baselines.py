"""The other networks: sizes, a classifier that becomes an FCN, short-cuts that start at nothing, dilation."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from checks import InputError
from losses import cross_entropy
from networks.baselines import FCN, DilatedNet, ImageClassifier, PatchClassifier, RoadNet
from networks.inspection import count_parameters, receptive_field
from networks.upsampling import interpolate_by_convolution as bilinear
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
}
every_net = pytest.mark.parametrize("name", NETS)


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


FIELDS = {
    "road": 17,  # 5×5 at jumps 1 and 2: 1 + 4 + 8 = 13; interpolation joins two neighbours: + 4
    "fcn-32s": 158,  # a patch of 126 (below: 94), joined with the neighbour 32 pixels on
    "fcn-32s, odd kernel": 126,
    "fcn-16s": 190,  # ×2 reads 2 neighbours, ×16 reads 2 of its outputs: 3 coarse values
    # 3×3 and pooling at jumps 1, 2, 4: 22; 3×3 at 8: 38; 3×3 dilated by 2: 70; by 4: 134; interpolation: + 8
    "dilated": 142,
}


@pytest.mark.parametrize("name", FIELDS)
def test_receptive_field_by_hand(name):
    assert receptive_field(NETS[name](), (1, 2, 256, 256)) == (FIELDS[name], FIELDS[name])


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


DILATIONS = {16: [1, 1, 1, 1, 1, 2], 8: [1, 1, 1, 1, 2, 4], 4: [1, 1, 1, 2, 4, 8], 1: [1, 2, 4, 8, 16, 32]}


@pytest.mark.parametrize("stride", DILATIONS)
def test_a_pooling_left_out_doubles_the_dilation_after_it(stride):
    net = DilatedNet(1, 2, THIN, output_stride=stride)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert [conv.dilation[0] for conv in convs] == DILATIONS[stride]
    assert 2 ** sum(isinstance(module, nn.MaxPool2d) for module in net.modules()) == stride


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


WRONG = {
    "in_channels": lambda: RoadNet(0),
    "expected five": lambda: PatchClassifier(widths=(2, 3)),
    "94, 126, 158": lambda: FCN(patch=64),
    "choose one of 32, 16, 8": lambda: FCN(stride=4),
    "output_stride": lambda: DilatedNet(output_stride=3),
    "from_classifier": lambda: PatchClassifier(1, 2, THIN)(torch.zeros(1, 1, 128, 126)),  # another size
    "126": lambda: FCN(1, 2, THIN).coarse_map(torch.zeros(1, 1, 125, 300)),  # smaller than one patch
}


@pytest.mark.parametrize("word", WRONG)
def test_wrong_settings_and_sizes_are_refused(word):
    with pytest.raises(InputError, match=word):
        WRONG[word]()


@pytest.mark.parametrize("patch, stride", [(94, 32), (126, 32), (158, 32), (94, 16), (126, 8)])
def test_every_value_of_the_coarse_map_is_the_answer_of_the_classifier_for_its_window(patch, stride):
    torch.manual_seed(0)
    classifier = trained_looking(PatchClassifier(2, 4, THIN, patch=patch)).double()  # its number format is kept
    net, image = FCN.from_classifier(classifier, stride).eval(), random(1, 2, 251, 229).double()
    coarse = net.coarse_map(image)
    assert coarse.shape[2:] == ((251 - patch) // 32 + 1, (229 - patch) // 32 + 1)
    for i, j in np.ndindex(*coarse.shape[2:]):
        window = image[..., 32 * i : 32 * i + patch, 32 * j : 32 * j + patch]
        torch.testing.assert_close(coarse[..., i, j], classifier(window))


@pytest.mark.parametrize("patch", [94, 126])
def test_logits_inside_the_image_interpolate_the_classifiers_answers(patch):
    # FCN-32s at a pixel is bilinear between the four windows whose middles lie around it
    torch.manual_seed(0)
    classifier = trained_looking(PatchClassifier(1, 3, THIN, patch=patch))
    net, image = FCN.from_classifier(classifier, upsampling="bilinear").eval(), random(1, 1, 320, 320)
    first = -(-(patch // 2) // 32) * 32 + (16 if patch == 94 else 0)  # a window's middle, well inside
    middles = range(first, 320 - patch // 2, 32)
    half, n = patch // 2, len(middles)
    windows = [image[0, :, y - half : y + half, x - half : x + half] for y in middles for x in middles]
    coarse = classifier(torch.stack(windows)).T.reshape(1, 3, n, n)
    expected = F.interpolate(coarse, scale_factor=32, mode="bilinear")[..., 16 : 32 * n - 16, 16 : 32 * n - 16]
    inside = slice(first, first + 32 * (n - 1))
    torch.testing.assert_close(net(image)[..., inside, inside], expected, rtol=1e-4, atol=1e-4)


def test_parameters_of_the_classifier_by_formula():
    # 3×3 without bias: 9·(1·2 + 2·2 + 2·2 + 2·2 + 2·3); BatchNorm 2·(2 + 2 + 2 + 2 + 3); k = 2: (3·4 + 1)·3; (3 + 1)·5
    assert count_parameters(PatchClassifier(1, 5, (2, 2, 2, 2, 3))) == 9 * 20 + 22 + 39 + 20


def test_a_new_short_cut_changes_nothing_but_the_way_up():
    torch.manual_seed(0)
    classifier = trained_looking(PatchClassifier(1, 3, THIN, patch=94))
    nets = {stride: FCN.from_classifier(classifier, stride).eval() for stride in (32, 16, 8)}
    image = random(1, 1, 160, 192)
    coarse = nets[32].head(nets[32]._pooled(image)[-1])
    for stride in (32, 16, 8):
        torch.testing.assert_close(nets[stride](image), bilinear(coarse, stride))
        coarse = bilinear(coarse, 2)


def test_a_trained_short_cut_is_a_sum_of_scores():
    torch.manual_seed(0)
    net, image = trained_looking(FCN(1, 3, THIN, stride=16, patch=94)), random(1, 1, 64, 96)
    nn.init.normal_(net.scores[0].weight)
    maps = net._pooled(image)
    expected = bilinear(bilinear(net.head(maps[4]), 2) + net.scores[0](maps[3]), 16)
    torch.testing.assert_close(net(image), expected)
    assert maps[3].shape[2:] == (4, 6)  # stride 16


def test_short_cuts_move_with_the_coarse_map():
    """All maps lie on the image in the right place: a net of symmetric weights mirrors its answer with the image."""
    torch.manual_seed(0)
    for patch in (94, 126):
        net = trained_looking(FCN(1, 2, THIN, stride=8, patch=patch)).double()
        for parameter in net.parameters():
            if parameter.ndim == 4:
                parameter.data.add_(parameter.data.flip(3).clone())
        for score in net.scores:
            nn.init.normal_(score.weight)
        image = random(1, 1, 64, 128).double()
        torch.testing.assert_close(net(image.flip(3)), net(image).flip(3))


def test_bilinear_means_that_upsampling_is_not_trained():
    fixed, free = FCN(1, 3, THIN, upsampling="bilinear"), FCN(1, 3, THIN)
    # two kernels of 4×4 and one of 16×16 for each of three classes
    assert count_parameters(free) - count_parameters(fixed) == 3 * (2 * 16 + 256)
    fixed.load_state_dict(free.state_dict())
    image = random(2, 1, 50, 50)
    torch.testing.assert_close(fixed.eval()(image), free.eval()(image))
