"""The U-Net: parameter counts of the course, every input size, unpooling against PyTorch's own."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from checks import InputError
from networks.inspection import count_parameters
from unet import UNet, Up, space_to_depth, unpool2x2

SETTINGS = list(itertools.product(("transposed", "bilinear", "unpool"), ("none", "concat", "sum")))


def test_parameter_counts_of_the_road_sheet():
    made = itertools.product(("none", "concat"), (False, True))
    nets = [UNet(3, 1, (8, 16, 32, 64, 128), norm="none", skip=skip, keep_channels=keep) for skip, keep in made]
    # the second is the number on the road sheet, the third is the net of the assignment
    assert list(map(count_parameters, nets)) == [436_857, 529_457, 485_817, 578_417]


def test_parameters_of_a_small_net_by_hand():
    # encoder 1→2→2: 18 + 36, 2→4→4: 72 + 144 (no biases before BatchNorm); BatchNorm 2·(2 + 2 + 4 + 4) = 24
    # up 4→2, 2×2: 32 + 2; decoder 4→2→2: 72 + 36, BatchNorm 2·(2 + 2) = 8; head 2→3: 6 + 3
    assert count_parameters(UNet(1, 3, (2, 4))) == 18 + 36 + 72 + 144 + 24 + 34 + 72 + 36 + 8 + 9


@pytest.mark.parametrize(("upsampling", "skip"), SETTINGS)
def test_every_size_from_1_to_70_comes_back(upsampling, skip):
    model = UNet(1, 2, (1, 1, 1, 1), upsampling=upsampling, skip=skip).eval()
    with torch.no_grad():
        for height, width in ((n, other) for n in range(1, 71) for other in (1, n, 71 - n)):
            assert model(torch.zeros(1, 1, height, width)).shape == (1, 2, height, width)


@pytest.mark.parametrize(("upsampling", "skip"), SETTINGS)
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_every_parameter_gets_a_gradient(upsampling, skip, norm):
    torch.manual_seed(0)
    model = UNet(2, 3, (4, 6, 8), upsampling=upsampling, skip=skip, norm=norm)
    model(torch.randn(2, 2, 13, 10)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_unpooling_equals_pytorch_bit_for_bit(height, width, seed):
    maps = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    pooled, indices = F.max_pool2d(maps, 2, ceil_mode=True, return_indices=True)
    ours, theirs = pooled.clone().requires_grad_(), pooled.clone().requires_grad_()
    out = unpool2x2(ours, indices, (height, width))
    expected = nn.MaxUnpool2d(2)(theirs, indices, output_size=(height, width))
    assert torch.equal(out, expected)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1))
    out.backward(upstream)
    expected.backward(upstream)
    assert torch.equal(ours.grad, theirs.grad)


def test_unpooling_runs_where_deterministic_algorithms_are_asked_for():
    torch.use_deterministic_algorithms(True)
    try:
        UNet(1, 2, (2, 4, 4), upsampling="unpool")(torch.randn(2, 1, 9, 9)).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model, images = UNet(widths=(4, 8), norm="none", dropout=0.5), torch.randn(1, 1, 16, 16)
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


def test_half_precision_and_channels_last_give_the_same_up_to_rounding():
    torch.manual_seed(0)
    model, images = UNet(widths=(8, 16, 16)).eval(), torch.randn(2, 1, 24, 17)
    with torch.no_grad():
        expected = model(images)
        last = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = model(images)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)


WRONG = [{"upsampling": "nearest"}, {"skip": "add"}, {"norm": "layer"}, {"widths": ()}, {"widths": (8, 0)}, {"stem": 3}]
WRONG += [{"keep_channels": True, "skip": "sum"}, {"keep_channels": True, "upsampling": "unpool"}]


@pytest.mark.parametrize("settings", WRONG)
def test_contradicting_settings_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        UNet(**settings)


@pytest.mark.parametrize(
    ("shape", "hint"), [((2, 8, 8, 3), "permute"), ((3, 8, 8), r"image\[None\]"), ((2, 1, 8, 8), r"\(B, 3, H, W\)")]
)
def test_wrong_input_gets_one_clear_sentence(shape, hint):
    with pytest.raises(InputError, match=hint):
        UNet(3, 2, (2,))(torch.zeros(shape))


@pytest.mark.parametrize("width", [2, 4, 8, 16])
def test_group_norm_works_on_a_single_pixel(width):
    """A group of one channel would have one value there, and no deviation to divide by."""
    assert UNet(widths=(width, width), norm="group")(torch.zeros(1, 1, 1, 1)).shape == (1, 2, 1, 1)


def test_the_decoder_of_an_index_linked_net_unpools_by_the_indices_of_its_level():
    maps = torch.randn(1, 3, 5, 7)
    pooled, indices = F.max_pool2d(maps, 2, ceil_mode=True, return_indices=True)
    risen = Up(3, 3, "unpool")(pooled, (5, 7), indices)  # equal channels: nothing to project
    assert torch.equal(risen, nn.MaxUnpool2d(2)(pooled, indices, output_size=(5, 7)))


def test_a_stem_of_2_keeps_every_pixel_in_its_place_and_repeats_an_odd_border():
    image = torch.arange(2 * 15.0).reshape(1, 2, 3, 5)
    deep = space_to_depth(image, 2)  # (1, 8, 2, 3)
    assert deep[0, :4, 0, 1].tolist() == [2, 3, 7, 8]  # the square at row 0, column 2 of the first channel
    assert deep[0, 4:, 1, 2].tolist() == [29] * 4  # below and right of the last pixel of the second there is nothing
    assert torch.equal(F.pixel_shuffle(deep, 2)[..., :3, :5], image)


@pytest.mark.parametrize("stem", [2, 4])
def test_a_stem_has_the_channels_of_its_squares_and_gives_every_size_back(stem):
    model, plain = UNet(2, 3, (4, 4, 4), stem=stem).eval(), UNet(2, 3, (4, 4, 4))
    # first convolution 9·4 weights for each further channel, head 4 weights and a bias for each further logit
    more = 2 * (stem**2 - 1) * 9 * 4 + 3 * (stem**2 - 1) * (4 + 1)
    assert count_parameters(model) == count_parameters(plain) + more
    for height, width in itertools.product(range(1, 11), range(1, 11)):
        assert model(torch.zeros(1, 2, height, width)).shape == (1, 3, height, width)
