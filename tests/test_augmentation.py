"""Tests of augmentation.py: one draw a sample, labels that move with their images, colours and brightness by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transforms import random_affine, random_hue, random_intensity
from checks import InputError

STILL = {"degrees": 0.0, "zoom": 0.0, "stretch": 0.0, "shift": 0.0, "mirror": False}


def cpu_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_batch_augmentation_never_waits_for_the_gpu():
    images, masks = torch.rand(8, 3, 32, 32, device="cuda"), torch.zeros(8, 32, 32, device="cuda")
    random_intensity(images, noise=0.1, generator=cpu_generator())  # first use starts the library
    torch.cuda.set_sync_debug_mode("error")
    try:
        random_intensity(images, noise=0.1, generator=cpu_generator())
        random_hue(images, generator=cpu_generator())
        random_affine(images, masks, generator=cpu_generator())
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- brightness and contrast ---


def test_intensity_is_one_gain_and_one_offset_a_sample():
    images = torch.randn(64, 2, 5, 5, generator=cpu_generator(1))
    changed = random_intensity(images, gain=0.2, offset=0.3, generator=cpu_generator(2))
    gains = (changed[:, 0, 0, 0] - changed[:, 1, 2, 2]) / (images[:, 0, 0, 0] - images[:, 1, 2, 2])
    offsets = changed[:, 0, 0, 0] - gains * images[:, 0, 0, 0]
    expected = gains[:, None, None, None] * images + offsets[:, None, None, None]
    assert torch.allclose(changed, expected, atol=1e-4)
    assert ((gains > 0.7999) & (gains < 1.2001)).all()
    assert (offsets.abs() < 0.3001).all()
    assert gains.std() > 0.08  # uniform in ±0.2: 0.115
    assert offsets.std() > 0.13  # uniform in ±0.3: 0.173


def test_intensity_of_zero_changes_nothing_and_noise_has_its_deviation():
    images = torch.zeros(2, 1, 100, 100)
    assert torch.equal(random_intensity(images, 0.0, 0.0, generator=cpu_generator()), images)
    noisy = random_intensity(images, 0.0, 0.0, noise=0.5, generator=cpu_generator())
    assert noisy.std() == pytest.approx(0.5, abs=0.02)


def test_fault_62_64_intensity_repeats_with_the_seed_and_keeps_its_input():
    images = torch.rand(4, 1, 3, 3)
    before = images.clone()
    first, second = (random_intensity(images, noise=0.1, generator=cpu_generator(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(images, before)
    assert not torch.equal(first, random_intensity(images, noise=0.1, generator=cpu_generator(8)))
    noise = [random_intensity(images, 0.0, 0.0, 0.1, generator=cpu_generator(seed)) for seed in (1, 2)]
    assert not torch.equal(*noise)


def test_noise_does_not_change_what_is_drawn_for_gain_and_offset():
    images = torch.ones(3, 1, 64, 64)
    plain = random_intensity(images, generator=cpu_generator(3))
    noisy = random_intensity(images, noise=0.01, generator=cpu_generator(3))
    assert torch.allclose(plain.mean((1, 2, 3)), noisy.mean((1, 2, 3)), atol=0.002)


@pytest.mark.parametrize("bad", [torch.zeros(2, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.int64)])
def test_intensity_refuses_what_is_no_batch_of_float_images(bad):
    with pytest.raises(InputError, match="expected a float tensor"):
        random_intensity(bad, generator=cpu_generator())


def test_hue_turns_colours_round_the_grey_axis():
    images = torch.rand(64, 3, 2, 2)
    turned = random_hue(images, generator=cpu_generator())
    assert torch.allclose(turned.mean(dim=1), images.mean(dim=1), atol=1e-6)  # the place along the axis
    assert torch.allclose(turned.norm(dim=1), images.norm(dim=1), atol=1e-6)  # a rotation
    colour = torch.stack([images, turned]) - images.mean(dim=1, keepdim=True)
    cosine = (colour[0] * colour[1]).sum(dim=1) / colour.norm(dim=2).prod(dim=0)
    angle = cosine.clamp(-1, 1).acos()  # (64, 2, 2)
    assert torch.allclose(angle, angle[:, :1, :1].expand_as(angle), atol=1e-3)  # one angle a sample
    assert angle[:, 0, 0].mean() == pytest.approx(torch.pi / 2, abs=0.25)  # |angle| uniform in 0 … π
    assert torch.equal(turned, random_hue(images, generator=cpu_generator()))


def test_a_third_of_a_turn_makes_red_green():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *size, generator: torch.full(size, 5 / 6))  # (2u − 1)·π = 2π/3
        green = random_hue(torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1), generator=cpu_generator())
    assert torch.allclose(green.flatten(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("bad", [torch.zeros(2, 1, 4, 4), torch.zeros(3, 4, 4), torch.zeros(2, 3, 4, 4).long()])
def test_hue_refuses_what_has_no_three_colours(bad):
    with pytest.raises(InputError, match="B, 3, H, W"):
        random_hue(bad, generator=cpu_generator())


def test_hue_can_be_turned_a_little_only():
    images = torch.rand(16, 3, 4, 4)
    assert torch.allclose(random_hue(images, 0.0, generator=cpu_generator()), images, atol=1e-6)
    near, far = ((random_hue(images, d, generator=cpu_generator()) - images).norm() for d in (10.0, 90.0))
    assert 0 < near < far


# --- turns, zoom, shifts ---


def drawn(monkeypatch, values: list[float]) -> None:
    """What `torch.rand` gives for (angle, zoom, stretch, right, down, mirror), in −1 … 1."""
    monkeypatch.setattr(torch, "rand", lambda *size, generator: (torch.tensor(values)[:, None] + 1) / 2)


def test_nothing_moves_if_nothing_may():
    images, labels = torch.rand(3, 2, 5, 8), torch.randint(0, 256, (3, 5, 8))
    moved, moved_labels = random_affine(images, labels, generator=cpu_generator(), **STILL)
    assert torch.allclose(moved, images, atol=1e-6)
    assert torch.equal(moved_labels, labels)


def test_a_quarter_turn_and_a_mirror_are_exact(monkeypatch):
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    drawn(monkeypatch, [1, 0, 0, 0, 0, 1])
    turned, label = random_affine(image, image[:, 0].long(), generator=cpu_generator(), degrees=90)
    assert torch.allclose(turned, image.rot90(1, (2, 3)), atol=1e-4)
    assert torch.equal(label, image.rot90(1, (2, 3))[:, 0].long())
    drawn(monkeypatch, [0, 0, 0, 0, 0, -1])
    assert torch.allclose(random_affine(image, generator=cpu_generator())[0], image.flip(3), atol=1e-4)


def test_a_turn_of_an_oblong_image_stays_a_turn(monkeypatch):
    image = torch.zeros(1, 1, 40, 80)
    image[..., 10:30, 30:50] = 1  # a square in the middle
    drawn(monkeypatch, [1, 0, 0, 0, 0, 1])
    turned = random_affine(image, generator=cpu_generator(), degrees=90)[0]
    assert torch.allclose(turned[..., 20:60], image[..., 20:60], atol=1e-4)  # beyond it, mirror images


def test_zoom_stretch_and_shift_by_hand(monkeypatch):
    label = torch.zeros(1, 64, 64, dtype=torch.int64)
    label[:, 24:40, 24:40] = 1  # 16 pixels wide and high
    for values, height, width in (
        ([0, 1, 0, 0, 0, 1], 32, 32),  # zoom log 2: twice as large
        ([0, 0, 1, 0, 0, 1], 32, 8),  # stretch log 2: twice as high, half as wide
    ):
        drawn(monkeypatch, values)
        settings = {"zoom": np.log(2), "stretch": np.log(2)}
        moved = random_affine(torch.zeros(1, 1, 64, 64), label, generator=cpu_generator(), **settings)[1][0, :, 16:48]
        assert (moved.any(dim=1).sum(), moved.any(dim=0).sum()) == (height, width)
    drawn(monkeypatch, [0, 0, 0, 1, 0, 1])
    moved = random_affine(torch.zeros(1, 1, 64, 64), label, generator=cpu_generator(), shift=0.25)[1]
    assert torch.equal(moved, label.roll(-16, 2))  # a quarter of the side


def test_fault_59_images_and_maps_move_alike_each_sample_by_its_own_draw():
    label = torch.randint(0, 2, (8, 1, 12, 12)).float()
    label = torch.nn.functional.interpolate(label, scale_factor=4)[:, 0].long()
    images = label[:, None].float()
    moved, moved_label, weight = random_affine(images, label, label * 0.5, generator=cpu_generator(1))
    assert ((moved[:, 0] > 0.5) != moved_label.bool()).float().mean() < 0.03  # at the outline only
    assert torch.equal(weight, moved_label * 0.5)
    assert set(moved_label.unique().tolist()) == {0, 1}
    same = random_affine(images[:1].expand(8, -1, -1, -1), generator=cpu_generator(1))[0]
    assert len({tuple(sample.flatten().tolist()) for sample in same}) == 8
    assert torch.equal(moved, random_affine(images, generator=cpu_generator(1))[0])


def test_fault_64_affine_keeps_the_memory_format_and_the_input():
    images = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    moved = random_affine(images, generator=cpu_generator())[0]
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "label"),
    [
        (torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)),
        (torch.zeros(2, 1, 4, 4).long(), torch.zeros(2, 4, 4)),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 5)),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)),
    ],
)
def test_affine_refuses_what_does_not_belong_together(images, label):
    with pytest.raises(InputError, match="random_affine"):
        random_affine(images, label, generator=cpu_generator())


def test_fault_60_affine_keeps_large_numbers_and_half_precision():
    ids = torch.full((1, 6, 6), 2**24 + 1)
    assert random_affine(torch.zeros(1, 1, 6, 6), ids, generator=cpu_generator())[1].unique().tolist() == [2**24 + 1]
    images = torch.rand(2, 1, 32, 32)
    wanted = random_affine(images, generator=cpu_generator(3))[0]
    for dtype in (torch.bfloat16, torch.float16):
        moved = random_affine(images.to(dtype), generator=cpu_generator(3))[0]
        assert moved.dtype == dtype
        assert torch.allclose(moved.float(), wanted, atol=0.02)
