"""Hand-solved arrays, the group of the square, image, label and map moving alike."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

import transforms
from checks import InputError
from transforms import DownscaleImage, RandomReflect, RandomRotate90, apply_symmetry, random_affine, random_symmetries

SQUARE = np.array([[1, 2], [3, 4]])


def cpu(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class AddOne(transforms.BasicTransform2D):
    """As a student would write it: no generator, random variables drawn when first asked for."""

    def build_random_variables(self):
        self.draws = getattr(self, "draws", 0) + 1
        self._random_variables = {"shift": self.draws}

    def apply_transform_to_image(self, image):
        return image + self.get_random_variable("shift")


def test_one_call_draws_once_for_all_images():
    transform = AddOne()
    first = transform(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((3, 2, 2)))
    second = transform(np.zeros((2, 2)))
    assert [image.max() for image in first] == [1, 1, 1]
    assert second[0].max() == 2  # a new call draws anew


def test_generator_of_the_call_replaces_the_own_one_only_for_that_call():
    own = default_rng(1)
    transform = RandomRotate90(own)
    state = own.bit_generator.state
    transform(SQUARE, rng=default_rng(2))
    assert own.bit_generator.state == state and transform.rng is own


def test_is_random_tells_random_from_fixed_transforms():
    mixed, fixed = (transforms.Compose(DownscaleImage(2), t) for t in (RandomReflect(), transforms.ToTorchTensor()))
    assert all(transform.is_random for transform in (RandomReflect(), RandomRotate90(), AddOne(), mixed))
    assert not any(transform.is_random for transform in (DownscaleImage(2), fixed))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: transforms.BasicTransform2D()(np.zeros(3)), "channels first"),
        (lambda: transforms.BasicTransform2D()(np.zeros((4, 6, 3)), np.zeros((4, 6))), "channels first"),
        (lambda: transforms.Compose(transforms.ToTorchTensor(), DownscaleImage(2))(SQUARE), "must come last"),
        (lambda: RandomReflect()(SQUARE), "RandomReflect needs a random generator"),
        (lambda: DownscaleImage(4)(np.zeros((3, 9))), "smaller than factor"),
        (lambda: random_symmetries(torch.zeros(2, 4, 4), torch.zeros(3, 4, 4), generator=cpu()), "one B, H"),
        (lambda: transforms.random_intensity(torch.zeros(2, 1, 4, 4).long(), generator=cpu()), "float tensor"),
        (lambda: transforms.random_hue(torch.zeros(2, 1, 4, 4), generator=cpu()), "B, 3, H, W"),
        (lambda: random_affine(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 5), generator=cpu()), "a map has"),
    ],
)
def test_what_does_not_belong_together_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


TURNS = {(0,): [[1, 2], [3, 4]], (1,): [[2, 4], [1, 3]], (2,): [[4, 3], [2, 1]], (3,): [[3, 1], [4, 2]]}  # to the left
MIRRORS = {(0, 0): [[1, 2], [3, 4]], (1, 0): [[2, 1], [4, 3]], (0, 1): [[3, 4], [1, 2]], (1, 1): [[4, 3], [2, 1]]}


@pytest.mark.parametrize("kind, expected", [(RandomReflect, MIRRORS), (RandomRotate90, TURNS)])
def test_reflections_and_quarter_turns_by_hand(kind, expected):
    found, names = {}, ["reflect_x", "reflect_y"] if kind is RandomReflect else ["quarter_turns"]
    for seed in range(30):
        transform = kind(default_rng(seed))
        (image,) = transform(SQUARE)
        found[tuple(map(transform.get_random_variable, names))] = image.tolist()
    assert found == expected


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 1000))
@settings(max_examples=60)
def test_coordinate_image_shows_that_image_label_and_weight_moved_alike(height, width, seed):
    pixel = np.arange(height * width).reshape(height, width)  # its own number shows where each one came from
    image = np.stack([pixel, pixel + 0.5]).astype(np.float32)
    weight, label = pixel / 7.0, (pixel % 3).astype(np.uint8)
    transform = transforms.Compose(RandomReflect(), RandomRotate90())
    image, weight, label = transform(image, weight, label, rng=default_rng(seed))
    origin = image[0].astype(int)
    for found, wanted in ((image[1], origin + np.float32(0.5)), (weight, origin / 7.0), (label, origin % 3)):
        assert np.array_equal(found, wanted)
    assert sorted(origin.ravel()) == list(range(height * width))  # every pixel once


@pytest.mark.parametrize("move", [transforms.BasicTransform2D(), RandomReflect(), RandomRotate90(), DownscaleImage(1)])
def test_results_are_contiguous_copies(move):
    image = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    for seed in range(8):
        (moved,) = move(image, rng=default_rng(seed))
        assert moved.flags.c_contiguous and not np.shares_memory(moved, image)


def test_downscaling_by_hand():
    image = np.array([[1.0, 3.0, 0.0, 8.0], [5.0, 7.0, 0.0, 0.0]], np.float32)
    (small,) = DownscaleImage(2)(image)
    assert small.tolist() == [[4.0, 2.0]] and small.dtype == np.float32  # the mean: (1+3+5+7)/4, 8/4
    label = np.array([[1, 1, 0, 2, 255, 255], [1, 0, 2, 0, 1, 1]], np.uint8)
    (small,) = DownscaleImage(2)(label)  # the most frequent one: 1 three times; the smallest in a tie
    assert small.tolist() == [[1, 0, 1]] and small.dtype == np.uint8


def test_to_torch_tensor_dtypes_shapes_and_memory():
    image, label = np.zeros((4, 5)), np.full((4, 5), 255, np.uint8)
    tensors = transforms.ToTorchTensor()(image, np.zeros((3, 4, 5), np.float16), label, label > 0)
    assert [t.dtype for t in tensors] == [torch.float32] * 2 + [torch.int64] * 2
    assert [t.shape for t in tensors] == [(1, 4, 5), (3, 4, 5), (4, 5), (4, 5)]
    assert (
        transforms.ToTorchTensor()(np.zeros((2, 2), ">f4"))[0].dtype == torch.float32
    )  # the byte order of another machine


def test_compose_applies_in_order_with_one_generator():
    image = np.arange(24.0).reshape(6, 4)
    (found,) = transforms.Compose(RandomRotate90(), DownscaleImage((3, 2)), rng=default_rng(4))(image)
    turns = int(default_rng(4).integers(4))
    (expected,) = DownscaleImage((3, 2))(np.ascontiguousarray(np.rot90(image, turns)))
    assert np.array_equal(found, expected)


def test_all_eight_symmetries_by_hand():
    #  1 2
    #  3 4
    square = torch.from_numpy(SQUARE)
    assert [apply_symmetry(square, k).flatten().tolist() for k in range(8)] == [
        [1, 2, 3, 4],  # nothing
        [2, 4, 1, 3],  # quarter turn, counter-clockwise
        [4, 3, 2, 1],  # half turn
        [3, 1, 4, 2],  # three quarter turns
        [2, 1, 4, 3],  # left-right
        [1, 3, 2, 4],  # transposed
        [3, 4, 1, 2],  # top-bottom
        [4, 2, 3, 1],  # mirrored at the other diagonal
    ]


@pytest.mark.parametrize("k", range(8))
def test_inverse_symmetry_undoes_also_for_images_that_are_not_square(k):
    image = torch.arange(24).reshape(2, 3, 4).contiguous()
    moved = apply_symmetry(image, k)
    assert moved.shape == ((2, 4, 3) if k % 2 else (2, 3, 4))
    assert torch.equal(apply_symmetry(moved, transforms.inverse_symmetry(k)), image)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 999))
@settings(max_examples=60)
def test_batch_symmetries_move_image_mask_and_weight_alike(batch, height, width, seed):
    pixel = torch.arange(batch * height * width).reshape(batch, height, width)
    images = torch.stack([pixel, pixel], dim=1).float()
    weights = pixel[:, None] * 0.5
    moved, masks, weights = random_symmetries(images, pixel, weights, generator=cpu(seed))
    assert torch.equal(moved.long(), torch.stack([masks, masks], dim=1)) and torch.equal(weights[:, 0], masks * 0.5)
    allowed = range(8) if height == width else (0, 2, 4, 6)
    for before, after in zip(pixel, masks):  # order kept, and each sample moved by one of the symmetries
        assert any(torch.equal(apply_symmetry(before, k), after) for k in allowed)


@pytest.mark.parametrize("height, width, number", [(3, 3, 8), (2, 3, 4), (3, 2, 4)])
def test_each_sample_has_its_own_symmetry_and_all_are_equally_frequent(height, width, number):
    one = torch.arange(float(height * width)).reshape(1, 1, height, width)
    (moved,) = random_symmetries(one.repeat(4000, 1, 1, 1), generator=cpu(0))
    counts = Counter(tuple(sample.flatten().tolist()) for sample in moved)
    assert len(counts) == number
    assert all(abs(count / 4000 - 1 / number) < 0.03 for count in counts.values())  # 4.4 standard errors


def test_only_the_symmetries_that_are_named_are_drawn():
    one = torch.arange(6.0).reshape(1, 1, 2, 3)
    (moved,) = random_symmetries(one.repeat(64, 1, 1, 1), generator=cpu(0), symmetries=(0, 4))
    kinds = {tuple(sample.flatten().tolist()) for sample in moved}
    assert kinds == {(0, 1, 2, 3, 4, 5), (2, 1, 0, 5, 4, 3)}  # as it is, and left-right


def test_batch_symmetries_keep_inputs_dtype_and_memory_format():
    images = torch.rand(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    masks = torch.randint(0, 2, (8, 4, 4), dtype=torch.uint8)
    before, masks_before = images.clone(), masks.clone()
    moved, moved_masks = random_symmetries(images, masks, generator=cpu())
    assert moved.is_contiguous(memory_format=torch.channels_last) and moved_masks.dtype == torch.uint8
    moved.zero_()
    moved_masks.zero_()
    assert torch.equal(images, before) and torch.equal(masks, masks_before)


def test_intensity_is_one_gain_and_one_offset_a_sample():
    images = torch.randn(64, 2, 5, 5, generator=cpu(1))
    changed = transforms.random_intensity(images, gain=0.2, offset=0.3, generator=cpu(2))
    gains = (changed[:, 0, 0, 0] - changed[:, 1, 2, 2]) / (images[:, 0, 0, 0] - images[:, 1, 2, 2])
    offsets = changed[:, 0, 0, 0] - gains * images[:, 0, 0, 0]
    expected = gains[:, None, None, None] * images + offsets[:, None, None, None]
    assert torch.allclose(changed, expected, atol=1e-4)
    assert ((gains - 1).abs() < 0.2001).all() and (offsets.abs() < 0.3001).all()
    assert gains.std() > 0.08 and offsets.std() > 0.13  # uniform in ±0.2: 0.115, in ±0.3: 0.173


def test_hue_turns_colours_round_the_grey_axis(monkeypatch):
    images = torch.rand(64, 3, 2, 2)
    turned = transforms.random_hue(images, generator=cpu())
    assert torch.allclose(turned.mean(dim=1), images.mean(dim=1), atol=1e-6)  # the place along the axis
    assert torch.allclose(turned.norm(dim=1), images.norm(dim=1), atol=1e-6)  # a rotation
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.full(size, 5 / 6))  # (2u − 1)·π = 2π/3
    green = transforms.random_hue(torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1), generator=cpu())
    assert torch.allclose(green.flatten(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)  # a third of a turn


def drawn(monkeypatch, values: list[float]) -> None:
    """What `torch.rand` gives for (angle, zoom, stretch, right, down, mirror), in −1 … 1."""
    monkeypatch.setattr(torch, "rand", lambda *size, generator: (torch.tensor(values)[:, None] + 1) / 2)


def test_a_quarter_turn_and_a_mirror_are_exact(monkeypatch):
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    drawn(monkeypatch, [1, 0, 0, 0, 0, 1])
    turned, label = random_affine(image, image[:, 0].long(), generator=cpu(), degrees=90)
    assert torch.allclose(turned, image.rot90(1, (2, 3)), atol=1e-4)
    assert torch.equal(label, image.rot90(1, (2, 3))[:, 0].long())
    drawn(monkeypatch, [0, 0, 0, 0, 0, -1])
    assert torch.allclose(random_affine(image, generator=cpu())[0], image.flip(3), atol=1e-4)


def test_a_turn_of_an_oblong_image_stays_a_turn(monkeypatch):
    image = torch.zeros(1, 1, 40, 80)
    image[..., 10:30, 30:50] = 1  # a square in the middle
    drawn(monkeypatch, [1, 0, 0, 0, 0, 1])
    turned = random_affine(image, generator=cpu(), degrees=90)[0]
    assert torch.allclose(turned[..., 20:60], image[..., 20:60], atol=1e-4)  # beyond it, mirror images


def test_zoom_stretch_and_shift_by_hand(monkeypatch):
    label = torch.zeros(1, 64, 64, dtype=torch.int64)
    label[:, 24:40, 24:40] = 1  # 16 pixels wide and high
    twice, higher = ([0, 1, 0, 0, 0, 1], 32, 32), ([0, 0, 1, 0, 0, 1], 32, 8)  # twice as high, half as wide
    for values, height, width in (twice, higher):
        drawn(monkeypatch, values)
        settings = {"zoom": np.log(2), "stretch": np.log(2)}
        moved = random_affine(torch.zeros(1, 1, 64, 64), label, generator=cpu(), **settings)[1][0, :, 16:48]
        assert (moved.any(dim=1).sum(), moved.any(dim=0).sum()) == (height, width)
    drawn(monkeypatch, [0, 0, 0, 1, 0, 1])
    moved = random_affine(torch.zeros(1, 1, 64, 64), label, generator=cpu(), shift=0.25)[1]
    assert torch.equal(moved, label.roll(-16, 2))  # a quarter of the side


def test_images_and_maps_move_alike_each_sample_by_its_own_draw():
    label = torch.randint(0, 2, (8, 1, 12, 12)).float()
    label = torch.nn.functional.interpolate(label, scale_factor=4)[:, 0].long()
    images = label[:, None].float()
    moved, moved_label, weight = random_affine(images, label, label * 0.5, generator=cpu(1))
    assert ((moved[:, 0] > 0.5) != moved_label.bool()).float().mean() < 0.03  # at the outline only
    assert torch.equal(weight, moved_label * 0.5)
    same = random_affine(images[:1].expand(8, -1, -1, -1), generator=cpu(1))[0]
    assert len({tuple(sample.flatten().tolist()) for sample in same}) == 8
    assert torch.equal(moved, random_affine(images, generator=cpu(1))[0])


def test_affine_keeps_large_numbers_and_half_precision():
    ids = torch.full((1, 6, 6), 2**24 + 1)
    assert random_affine(torch.zeros(1, 1, 6, 6), ids, generator=cpu())[1].unique().tolist() == [2**24 + 1]
    half = random_affine(torch.rand(2, 1, 32, 32, dtype=torch.bfloat16), generator=cpu())[0]
    assert half.dtype == torch.bfloat16 and half.min() >= 0 and half.max() <= 1


def test_half_of_a_batch_is_turned_and_zoomed_with_its_maps() -> None:
    images = torch.rand(4, 1, 32, 32)
    target = (images[:, 0] > 0.5).long()
    moved, labels = transforms.augment(images, target, generator=torch.Generator().manual_seed(0), zoom=0.3)
    plain, same = transforms.augment(images, target, generator=torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and labels.shape == target.shape
    assert not torch.equal(moved[:2], plain[:2])
    assert labels[2:].sum(dim=(1, 2)).tolist() == target[2:].sum(dim=(1, 2)).tolist()  # symmetries only
    assert same.sum() == target.sum()
