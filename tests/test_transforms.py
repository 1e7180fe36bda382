"""Tests of transforms.py: hand-solved arrays, the group of the square, image, label and map moving alike."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from checks import InputError
from transforms import (
    BasicTransform2D,
    Compose,
    DownscaleImage,
    RandomReflect,
    RandomRotate90,
    ToTorchTensor,
    apply_symmetry,
    inverse_symmetry,
    random_symmetries,
)

SQUARE = np.array([[1, 2], [3, 4]])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cpu_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(height: int, width: int) -> np.ndarray:
    """Every pixel holds its own number, so the result shows where each pixel came from."""
    return np.arange(height * width).reshape(height, width)


def random_transform() -> Compose:
    return Compose(RandomReflect(), RandomRotate90())


# --- the protocol of the sheet ---


class AddOne(BasicTransform2D):
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


def test_result_is_a_list_also_for_one_image():
    for transform in (BasicTransform2D(), RandomReflect(rng()), random_transform()):
        result = transform(np.zeros((2, 2)), rng=rng())
        assert isinstance(result, list)
        assert len(result) == 1


def test_random_variable_without_a_call_is_drawn_and_an_unknown_name_is_refused():
    transform = RandomRotate90(rng())
    assert transform.get_random_variable("quarter_turns") in range(4)
    with pytest.raises(InputError, match="quarter_turn'.*quarter_turns"):
        transform.get_random_variable("quarter_turn")


class CountCalls(BasicTransform2D):
    """Stores a variable of a new name in each call."""

    calls = 0

    def build_random_variables(self):
        self.calls += 1
        self._random_variables[f"call {self.calls}"] = 0


def test_variables_of_the_call_before_are_forgotten():
    transform = CountCalls()
    transform(SQUARE)
    transform(SQUARE)
    with pytest.raises(InputError, match=r"it draws \['call 2'\]"):
        transform.get_random_variable("call 1")


def test_generator_of_the_call_replaces_the_own_one_only_for_that_call():
    own = rng(1)
    transform = RandomRotate90(own)
    state = own.bit_generator.state
    transform(SQUARE, rng=rng(2))
    assert own.bit_generator.state == state
    assert transform.rng is own


def test_missing_generator_is_an_input_error():
    with pytest.raises(InputError, match="RandomReflect needs a random generator"):
        RandomReflect()(SQUARE)


def test_is_random_tells_random_from_fixed_transforms():
    assert RandomReflect().is_random
    assert RandomRotate90().is_random
    assert AddOne().is_random
    assert not DownscaleImage(2).is_random
    assert not Compose(DownscaleImage(2), ToTorchTensor()).is_random
    assert Compose(DownscaleImage(2), RandomReflect()).is_random


def test_fault_62_same_seed_draws_the_same_again():
    image = coordinates(5, 5)
    once, again = (
        [transform(image)[0] for _ in range(20)]
        for transform in (Compose(RandomReflect(), RandomRotate90(), rng=rng(3)) for _ in range(2))
    )
    assert all(np.array_equal(a, b) for a, b in zip(once, again))
    assert len({a.tobytes() for a in once}) == 8  # and within one run the calls differ


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((1, 2, 3, 4))])
def test_wrong_number_of_axes_is_refused(bad):
    with pytest.raises(InputError, match=r"expected \(H, W\) or \(C, H, W\)"):
        BasicTransform2D()(bad)


def test_tensor_as_input_is_refused_with_the_hint():
    with pytest.raises(InputError, match="ToTorchTensor is used, it must come last"):
        Compose(ToTorchTensor(), RandomReflect(rng()))(SQUARE)


def test_images_of_different_sizes_are_refused():
    with pytest.raises(InputError, match="channels first"):
        BasicTransform2D()(np.zeros((4, 6, 3)), np.zeros((4, 6)))


# --- reflections and quarter turns ---


def test_reflections_by_hand():
    #  1 2   along x → 2 1   along y → 3 4
    #  3 4             4 3             1 2
    found = {}
    for seed in range(30):
        transform = RandomReflect(rng(seed))
        (image,) = transform(SQUARE)
        key = (transform.get_random_variable("reflect_x"), transform.get_random_variable("reflect_y"))
        found[key] = image.tolist()
    assert found == {
        (False, False): [[1, 2], [3, 4]],
        (True, False): [[2, 1], [4, 3]],
        (False, True): [[3, 4], [1, 2]],
        (True, True): [[4, 3], [2, 1]],
    }


def test_quarter_turns_by_hand():
    #  1 2   one counter-clockwise turn → 2 4   two → 4 3   three → 3 1
    #  3 4                                1 3         2 1           4 2
    found = {}
    for seed in range(30):
        transform = RandomRotate90(rng(seed))
        (image,) = transform(SQUARE)
        found[transform.get_random_variable("quarter_turns")] = image.tolist()
    assert found == {0: [[1, 2], [3, 4]], 1: [[2, 4], [1, 3]], 2: [[4, 3], [2, 1]], 3: [[3, 1], [4, 2]]}


@pytest.mark.parametrize("kind", [RandomReflect, RandomRotate90])
def test_each_of_the_four_outcomes_comes_a_quarter_of_the_time(kind):
    transform = kind(rng(0))
    counts = Counter(transform(SQUARE)[0].tobytes() for _ in range(4000))
    assert len(counts) == 4
    assert all(abs(count / 4000 - 0.25) < 0.03 for count in counts.values())  # 4.4 standard errors


def test_reflection_probability_zero_and_one():
    assert np.array_equal(RandomReflect(rng(), probability=0.0)(SQUARE)[0], SQUARE)
    assert np.array_equal(RandomReflect(rng(), probability=1.0)(SQUARE)[0], SQUARE[::-1, ::-1])


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 1000))
@settings(max_examples=60)
def test_fault_59_coordinate_image_shows_that_image_label_and_weight_moved_alike(height, width, seed):
    pixel = coordinates(height, width)
    image = np.stack([pixel, pixel + 0.5]).astype(np.float32)
    weight, label = pixel / 7.0, (pixel % 3).astype(np.uint8)
    image, weight, label = random_transform()(image, weight, label, rng=rng(seed))
    origin = image[0].astype(int)
    assert np.array_equal(image[1], origin + np.float32(0.5))
    assert np.array_equal(weight, origin / 7.0)
    assert np.array_equal(label, origin % 3)
    assert sorted(origin.ravel()) == list(range(height * width))  # every pixel once


@given(hnp.arrays(np.uint8, st.tuples(st.integers(4, 9), st.integers(4, 9))), st.integers(0, 99))
@settings(max_examples=60)
def test_fault_60_label_set_never_grows(label, seed):
    for transform in (RandomReflect(), RandomRotate90(), DownscaleImage(2), DownscaleImage((1, 3))):
        (moved,) = transform(label, rng=rng(seed))
        assert moved.dtype == label.dtype
        assert set(np.unique(moved)) <= set(np.unique(label))


def test_fault_61_quarter_turns_of_images_that_are_not_square():
    image = coordinates(2, 3)
    shapes = set()
    for seed in range(20):
        transform = RandomRotate90(rng(seed))
        (moved,) = transform(image)
        assert np.array_equal(moved, np.rot90(image, transform.get_random_variable("quarter_turns")))
        shapes.add(moved.shape)
    assert shapes == {(2, 3), (3, 2)}


@pytest.mark.parametrize(
    "transform", [BasicTransform2D(), RandomReflect(), RandomRotate90(), DownscaleImage(1), DownscaleImage(2)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_fault_64_results_are_contiguous_copies_and_inputs_stay(transform, dtype):
    for seed in range(8):
        image = np.arange(32, dtype=dtype).reshape(2, 4, 4)
        before = image.copy()
        (moved,) = transform(image, rng=rng(seed))
        assert moved.flags.c_contiguous
        assert not np.shares_memory(moved, image)
        moved[:] = 0
        assert np.array_equal(image, before)


# --- making smaller, tensors, several in a row ---


def test_downscale_float_is_the_mean_of_each_block():
    image = np.array([[1.0, 3.0, 0.0, 8.0], [5.0, 7.0, 0.0, 0.0]], np.float32)
    (small,) = DownscaleImage(2)(image)
    assert small.tolist() == [[4.0, 2.0]]  # (1+3+5+7)/4, 8/4
    assert small.dtype == np.float32


def test_downscale_labels_is_the_most_frequent_one_and_the_smallest_in_a_tie():
    label = np.array([[1, 1, 0, 2, 255, 255], [1, 0, 2, 0, 1, 1]], np.uint8)
    (small,) = DownscaleImage(2)(label)
    assert small.tolist() == [[1, 0, 1]]  # 1 three times; 0 and 2 twice each; 1 and 255 twice each
    assert small.dtype == np.uint8
    (small,) = DownscaleImage(2)(np.array([[True, True], [True, False]]))
    assert small.tolist() == [[True]]


def test_downscale_leaves_out_what_fills_no_block_and_takes_two_factors():
    (small,) = DownscaleImage((2, 3))(np.ones((3, 5, 7)))
    assert small.shape == (3, 2, 2)


def test_downscale_refuses_factors_that_do_not_fit():
    with pytest.raises(InputError, match="at least 1"):
        DownscaleImage(0)
    with pytest.raises(InputError, match="smaller than factor"):
        DownscaleImage(4)(np.zeros((3, 9)))


def test_to_torch_tensor_dtypes_shapes_and_memory():
    image, label = np.zeros((4, 5)), np.full((4, 5), 255, np.uint8)
    tensors = ToTorchTensor()(image, np.zeros((3, 4, 5), np.float16), label, label > 0)
    assert [(t.dtype, tuple(t.shape)) for t in tensors] == [
        (torch.float32, (1, 4, 5)),
        (torch.float32, (3, 4, 5)),
        (torch.int64, (4, 5)),
        (torch.int64, (4, 5)),
    ]
    same_dtype = np.zeros((1, 2, 2), np.float32)
    ToTorchTensor()(same_dtype)[0].fill_(1)
    assert same_dtype.max() == 0
    assert ToTorchTensor()(np.zeros((2, 2), ">f4"))[0].dtype == torch.float32  # byte order of another machine


def test_compose_applies_in_order_with_one_generator():
    image = coordinates(6, 4).astype(float)
    (found,) = Compose(RandomRotate90(), DownscaleImage((3, 2)), rng=rng(4))(image)
    turns = int(rng(4).integers(4))
    (expected,) = DownscaleImage((3, 2))(np.ascontiguousarray(np.rot90(image, turns)))
    assert np.array_equal(found, expected)


# --- the eight symmetries, on batches ---


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


def test_symmetries_are_a_group():
    image = torch.arange(9).reshape(3, 3)
    moved = {tuple(apply_symmetry(image, k).flatten().tolist()): k for k in range(8)}
    assert len(moved) == 8  # all different
    for j in range(8):
        products = [tuple(apply_symmetry(apply_symmetry(image, k), j).flatten().tolist()) for k in range(8)]
        assert sorted(moved[product] for product in products) == list(range(8))  # closed, each exactly once


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 7))
@settings(max_examples=60)
def test_inverse_symmetry_undoes_also_for_images_that_are_not_square(height, width, k):
    image = torch.arange(2 * height * width).reshape(2, height, width)
    moved = apply_symmetry(image, k)
    assert moved.shape == ((2, width, height) if k % 2 else (2, height, width))
    assert torch.equal(apply_symmetry(moved, inverse_symmetry(k)), image)
    assert torch.equal(apply_symmetry(apply_symmetry(image, inverse_symmetry(k)), k), image)


@pytest.mark.parametrize("k", range(8))
def test_symmetry_agrees_with_numpy(k):
    image = coordinates(3, 5)
    expected = np.rot90(image[:, ::-1] if k >= 4 else image, k % 4)
    assert np.array_equal(apply_symmetry(torch.from_numpy(image), k).numpy(), expected)


@pytest.mark.parametrize("k", range(8))
def test_symmetry_keeps_the_memory_format_and_its_input(k):
    for shape in ((2, 3, 4, 5), (2, 3, 4, 4), (2, 1, 4, 4)):
        image = torch.rand(shape)
        before, fast = image.clone(), image.contiguous(memory_format=torch.channels_last)
        moved, moved_fast = apply_symmetry(image, k), apply_symmetry(fast, k)
        assert moved.is_contiguous()
        assert moved_fast.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(moved, moved_fast)
        moved.zero_()
        assert torch.equal(image, before)


@pytest.mark.parametrize("k", [-1, 8])
def test_unknown_symmetry_is_refused(k):
    with pytest.raises(InputError, match="expected 0 … 7"):
        apply_symmetry(torch.zeros(2, 2), k)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 999))
@settings(max_examples=60)
def test_fault_59_batch_symmetries_move_image_mask_and_weight_alike(batch, height, width, seed):
    pixel = torch.arange(batch * height * width).reshape(batch, height, width)
    images = torch.stack([pixel, pixel], dim=1).float()
    weights = pixel[:, None] * 0.5
    moved, masks, weights = random_symmetries(images, pixel, weights, generator=cpu_generator(seed))
    assert moved.shape == images.shape
    assert torch.equal(moved[:, 0].long(), masks)
    assert torch.equal(moved[:, 1].long(), masks)
    assert torch.equal(weights[:, 0], masks * 0.5)
    allowed = range(8) if height == width else (0, 2, 4, 6)
    for before, after in zip(pixel, masks):  # order kept, and each sample moved by one of the symmetries
        assert any(torch.equal(apply_symmetry(before, k), after) for k in allowed)


@pytest.mark.parametrize("height, width, number", [(3, 3, 8), (2, 3, 4), (3, 2, 4)])
def test_each_sample_has_its_own_symmetry_and_all_are_equally_frequent(height, width, number):
    one = torch.arange(float(height * width)).reshape(1, 1, height, width)
    (moved,) = random_symmetries(one.repeat(4000, 1, 1, 1), generator=cpu_generator(0))
    counts = Counter(tuple(sample.flatten().tolist()) for sample in moved)
    assert len(counts) == number
    assert all(abs(count / 4000 - 1 / number) < 0.03 for count in counts.values())  # 4.4 standard errors


def test_only_the_symmetries_that_are_named_are_drawn():
    one = torch.arange(6.0).reshape(1, 1, 2, 3)
    (moved,) = random_symmetries(one.repeat(64, 1, 1, 1), generator=cpu_generator(0), symmetries=(0, 4))
    kinds = {tuple(sample.flatten().tolist()) for sample in moved}
    assert kinds == {(0, 1, 2, 3, 4, 5), (2, 1, 0, 5, 4, 3)}  # as it is, and left-right
    for wrong in ((), (8,), (-1, 0)):
        with pytest.raises(InputError, match="symmetries is"):
            random_symmetries(one, generator=cpu_generator(0), symmetries=wrong)


def test_fault_62_batch_symmetries_repeat_with_the_seed():
    images = torch.rand(16, 1, 4, 4)
    first, second = (random_symmetries(images, generator=cpu_generator(5))[0] for _ in range(2))
    assert torch.equal(first, second)
    other = random_symmetries(images, generator=cpu_generator(6))[0]
    assert not torch.equal(first, other)


def test_fault_64_batch_symmetries_keep_inputs_dtype_and_memory_format():
    images = torch.rand(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    masks = torch.randint(0, 2, (8, 4, 4), dtype=torch.uint8)
    before, masks_before = images.clone(), masks.clone()
    moved, moved_masks = random_symmetries(images, masks, generator=cpu_generator())
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert moved_masks.dtype == torch.uint8
    moved.zero_()
    moved_masks.zero_()
    assert torch.equal(images, before)
    assert torch.equal(masks, masks_before)


@pytest.mark.parametrize(
    "shapes", [[(2, 1, 4, 4), (2, 4, 5)], [(2, 1, 4, 4), (3, 4, 4)], [(4, 4)], [(1, 2, 1, 4, 4)], []]
)
def test_batch_symmetries_refuse_tensors_that_do_not_belong_together(shapes):
    with pytest.raises(InputError, match="same B, H and W"):
        random_symmetries(*(torch.zeros(shape) for shape in shapes), generator=cpu_generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_batch_symmetries_never_wait_for_the_gpu():
    images, masks = torch.rand(8, 1, 32, 32, device="cuda"), torch.zeros(8, 32, 32, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        random_symmetries(images, masks, generator=cpu_generator())
    finally:
        torch.cuda.set_sync_debug_mode("default")
