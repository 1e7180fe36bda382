"""A classifier becomes an FCN: what the classifier says to a patch is what the FCN says there, exactly."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from checks import InputError
from networks.fcn import FCN, PatchClassifier
from networks.inspection import count_parameters
from networks.upsampling import interpolate_by_convolution
from tests.net_helpers import THIN, random, trained_looking

# ---- a classifier becomes an FCN ------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [94, 126, 158])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_on_one_patch_the_coarse_map_is_the_answer_of_the_classifier(patch, stride):
    torch.manual_seed(0)
    classifier = trained_looking(PatchClassifier(2, 5, THIN, patch=patch))
    net, image = FCN.from_classifier(classifier, stride).eval(), random(3, 2, patch, patch)
    coarse = net.coarse_map(image)
    assert coarse.shape == (3, 5, 1, 1)
    torch.testing.assert_close(coarse[:, :, 0, 0], classifier(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch", [94, 126, 158])
def test_on_a_larger_image_every_value_is_the_answer_for_its_window(patch):
    torch.manual_seed(0)
    classifier = trained_looking(PatchClassifier(2, 4, THIN, patch=patch))
    net, image = FCN.from_classifier(classifier).eval(), random(1, 2, 251, 229)
    coarse = net.coarse_map(image)
    assert coarse.shape[2:] == ((251 - patch) // 32 + 1, (229 - patch) // 32 + 1)
    for i in range(coarse.shape[2]):
        for j in range(coarse.shape[3]):
            window = image[..., 32 * i : 32 * i + patch, 32 * j : 32 * j + patch]
            torch.testing.assert_close(coarse[..., i, j], classifier(window), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch", [94, 126])
def test_logits_inside_the_image_interpolate_the_classifiers_answers(patch):
    """The whole way: FCN-32s at a pixel is bilinear between the four windows whose middles lie around it."""
    torch.manual_seed(0)
    classifier = trained_looking(PatchClassifier(1, 3, THIN, patch=patch))
    net, image = FCN.from_classifier(classifier, upsampling="bilinear").eval(), random(1, 1, 320, 320)
    first = -(-(patch // 2) // 32) * 32 + (16 if patch == 94 else 0)  # a window's middle, well inside
    middles = range(first, 320 - patch // 2, 32)
    answers = torch.stack([
        torch.cat([classifier(image[..., y - patch // 2 : y + patch // 2, x - patch // 2 : x + patch // 2])
                   for x in middles])
        for y in middles
    ])  # fmt: skip
    coarse = answers.permute(2, 0, 1)[None]  # (1, K, n, n)
    n = len(middles)
    expected = F.interpolate(coarse, scale_factor=32, mode="bilinear")[..., 16 : 32 * n - 16, 16 : 32 * n - 16]
    inside = slice(first, first + 32 * (n - 1))
    torch.testing.assert_close(net(image)[..., inside, inside], expected, rtol=1e-4, atol=1e-4)


def test_parameters_of_the_classifier_by_formula():
    # 3×3 without bias: 9·(1·2 + 2·2 + 2·2 + 2·2 + 2·3); BatchNorm 2·(2 + 2 + 2 + 2 + 3); k = 2: (3·4 + 1)·3; (3 + 1)·5
    assert count_parameters(PatchClassifier(1, 5, (2, 2, 2, 2, 3))) == 9 * 20 + 22 + 39 + 20


def test_other_sizes_are_refused_by_the_classifier():
    with pytest.raises(InputError, match="from_classifier"):
        PatchClassifier(1, 2, THIN)(torch.zeros(1, 1, 128, 126))


def test_a_coarse_map_needs_one_patch():
    with pytest.raises(InputError, match="126"):
        FCN(1, 2, THIN).coarse_map(torch.zeros(1, 1, 125, 300))


# ---- short-cuts -----------------------------------------------------------------------------------------------------


def bilinear(factor, x):
    return interpolate_by_convolution(x, factor)


def test_a_new_short_cut_changes_nothing_but_the_way_up():
    torch.manual_seed(0)
    classifier = trained_looking(PatchClassifier(1, 3, THIN, patch=94))
    nets = {stride: FCN.from_classifier(classifier, stride).eval() for stride in (32, 16, 8)}
    image = random(1, 1, 160, 192)
    coarse = nets[32].head(nets[32]._pooled(image)[-1])
    torch.testing.assert_close(nets[32](image), bilinear(32, coarse))
    torch.testing.assert_close(nets[16](image), bilinear(16, bilinear(2, coarse)))
    torch.testing.assert_close(nets[8](image), bilinear(8, bilinear(2, bilinear(2, coarse))))


def test_a_trained_short_cut_is_a_sum_of_scores():
    torch.manual_seed(0)
    net, image = trained_looking(FCN(1, 3, THIN, stride=16, patch=94)), random(1, 1, 64, 96)
    nn.init.normal_(net.scores[0].weight)
    maps = net._pooled(image)
    expected = bilinear(16, bilinear(2, net.head(maps[4])) + net.scores[0](maps[3]))
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
    assert repr(fixed) != repr(free)  # by which the learner tells them apart
    fixed.load_state_dict(free.state_dict())
    image = random(2, 1, 50, 50)
    torch.testing.assert_close(fixed.eval()(image), free.eval()(image))


def test_the_fcn_takes_the_number_format_of_its_classifier():
    classifier = PatchClassifier(1, 2, THIN, patch=94).double().eval()
    image = torch.randn(1, 1, 94, 94, dtype=torch.float64)
    coarse = FCN.from_classifier(classifier).eval().coarse_map(image)
    torch.testing.assert_close(coarse[..., 0, 0], classifier(image))
