"""Joint transforms: an image, its label and every weight map move alike.

- One sample, numpy: the protocol of the course sheet, with the names of `inferno.io.transform.Transform`.
- A whole batch, torch, on its device: each sample gets its own draw, in its memory format.

A random generator is always handed in, for batches one of the CPU (nothing waits for a GPU); every result is a copy.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from checks import InputError


class BasicTransform2D:
    """Base class: draw the random variables once a call, then apply the same ones to each image.

    A derived class writes `apply_transform_to_image` and, if it is random, `build_random_variables`.  A generator given
    in the call replaces `rng`.  `InputError` unless all are arrays (H, W) or (C, H, W) of one height and width.
    """

    def __init__(self, rng: np.random.Generator | None = None) -> None:
        self.rng = self._rng_of_call = rng
        self._random_variables: dict[str, Any] = {}

    @property
    def is_random(self) -> bool:
        """True if the result depends on drawn numbers; validation and test data refuse such a transform."""
        return type(self).build_random_variables is not BasicTransform2D.build_random_variables

    def __call__(self, *images: np.ndarray, rng: np.random.Generator | None = None) -> list[Any]:
        if wrong := [type(image).__name__ for image in images if not isinstance(image, np.ndarray)]:
            raise InputError(f"An input is a {wrong[0]}; expected a numpy array. ToTorchTensor must come last.")
        shapes = [image.shape for image in images]
        if len({shape[-2:] for shape in shapes}) > 1 or any(len(shape) not in (2, 3) for shape in shapes):
            raise InputError(f"The inputs have shapes {shapes}; expected (H, W) or (C, H, W), channels first, alike.")
        self._rng_of_call = self.rng if rng is None else rng
        self.build_random_variables()
        return [self.apply_transform_to_image(image) for image in images]

    def build_random_variables(self) -> None:
        """Draw from `self.generator()` and store in `self._random_variables`, by name."""

    def get_random_variable(self, name: str) -> Any:
        """The value drawn for this call."""
        return self._random_variables[name]

    def apply_transform_to_image(self, image: np.ndarray) -> Any:
        """Return the transformed copy of one array (H, W) or (C, H, W)."""
        return np.array(image, order="C")

    def generator(self) -> np.random.Generator:
        """The random generator of this call; raises `InputError` if none was given."""
        if self._rng_of_call is None:
            raise InputError(f"{type(self).__name__} needs a random generator: rng=np.random.default_rng(0).")
        return self._rng_of_call


class RandomReflect(BasicTransform2D):
    """Mirror along x and along y, each with the given probability, independently."""

    def __init__(self, rng: np.random.Generator | None = None, probability: float = 0.5) -> None:
        super().__init__(rng)
        self.probability = probability

    def build_random_variables(self) -> None:
        along_x, along_y = self.generator().random(2) < self.probability
        self._random_variables = {"reflect_x": bool(along_x), "reflect_y": bool(along_y)}

    def apply_transform_to_image(self, image: np.ndarray) -> np.ndarray:
        axes = [axis for axis, name in ((-1, "reflect_x"), (-2, "reflect_y")) if self.get_random_variable(name)]
        return np.array(np.flip(image, tuple(axes)), order="C")  # a copy: torch cannot read negative strides


class RandomRotate90(BasicTransform2D):
    """Turn counter-clockwise by 0, 1, 2 or 3 quarter turns, with equal probability; (H, W) may become (W, H)."""

    def build_random_variables(self) -> None:
        self._random_variables = {"quarter_turns": int(self.generator().integers(4))}

    def apply_transform_to_image(self, image: np.ndarray) -> np.ndarray:
        return np.array(np.rot90(image, self.get_random_variable("quarter_turns"), axes=(-2, -1)), order="C")


class DownscaleImage(BasicTransform2D):
    """Make the image smaller by an integer factor: each block of factor × factor pixels becomes one pixel.

    Float arrays: the mean of the block.  Integer and bool arrays are labels: the most frequent one, in a tie the
    smallest.  `factor` is an integer or (factor_y, factor_x).  Rows and columns that fill no whole block are left out.
    """

    def __init__(self, factor: int | tuple[int, int]) -> None:
        super().__init__()
        self.factor = (factor, factor) if isinstance(factor, int) else tuple(factor)

    def apply_transform_to_image(self, image: np.ndarray) -> np.ndarray:
        fy, fx = self.factor
        H, W = image.shape[-2] // fy, image.shape[-1] // fx
        if min(H, W) < 1:
            raise InputError(f"DownscaleImage: image {image.shape} is smaller than factor {self.factor}.")
        blocks = image[..., : H * fy, : W * fx].reshape(*image.shape[:-2], H, fy, W, fx)
        if np.issubdtype(image.dtype, np.floating):
            return np.asarray(blocks.mean(axis=(-3, -1)), dtype=image.dtype)
        labels = np.unique(blocks)  # ascending, and of equal counts the first wins
        return labels[np.argmax([np.count_nonzero(blocks == label, axis=(-3, -1)) for label in labels], axis=0)]


class ToTorchTensor(BasicTransform2D):
    """Turn arrays into tensors: float → float32 (C, H, W), integer or bool labels → int64 (H, W)."""

    def apply_transform_to_image(self, image: np.ndarray) -> Tensor:
        is_label = not np.issubdtype(image.dtype, np.floating)
        tensor = torch.from_numpy(np.array(image, dtype=np.int64 if is_label else np.float32, order="C"))
        return tensor if is_label or tensor.ndim == 3 else tensor[None]


class Compose(BasicTransform2D):
    """Apply several transforms one after the other; `rng` (of the call, or its own) replaces their generators."""

    def __init__(self, *transforms: BasicTransform2D, rng: np.random.Generator | None = None) -> None:
        super().__init__(rng)
        self.transforms = transforms

    @property
    def is_random(self) -> bool:
        return any(transform.is_random for transform in self.transforms)

    def __call__(self, *images: np.ndarray, rng: np.random.Generator | None = None) -> list[Any]:
        result: list[Any] = list(images)
        for transform in self.transforms:
            result = transform(*result, rng=self.rng if rng is None else rng)
        return result


def apply_symmetry(tensor: Tensor, k: int) -> Tensor:
    """Apply symmetry k of the square to the last two axes (H, W) of a tensor; returns a copy.

    0 … 3 are that many quarter turns, counter-clockwise; 4 mirrors left-right, 6 top-bottom, 5 at the main diagonal
    (transpose), 7 at the other one.  Odd k swaps H and W.
    """
    return (tensor.flip(-1) if k >= 4 else tensor).rot90(k % 4, (-2, -1))


def inverse_symmetry(k: int) -> int:
    """The symmetry that undoes symmetry k: turns turn back, mirrors undo themselves."""
    return k if k >= 4 else -k % 4


def random_symmetries(
    *tensors: Tensor, generator: torch.Generator, symmetries: Sequence[int] = range(8)
) -> tuple[Tensor, ...]:
    """Give each sample of a batch, with its masks and maps, its own random symmetry.

    `symmetries` are those to draw from, as in `apply_symmetry`: (0, 4) never stands a street scene on its head; if
    H ≠ W only 0, 2, 4 and 6 are drawn.  Tensors are (B, C, H, W) or (B, H, W), any dtype, of one B, H, W.
    """
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len({(shape[0], *shape[-2:]) for shape in shapes}) > 1 or any(len(shape) not in (3, 4) for shape in shapes):
        raise InputError(f"The tensors have shapes {shapes}; expected (B, C, H, W) or (B, H, W) of one B, H and W.")
    B, H, W = shapes[0][0], *shapes[0][-2:]
    drawn = [symmetries[k] for k in torch.randint(0, len(symmetries), (B,), generator=generator).tolist()]
    drawn, results = ([k - k % 2 for k in drawn] if H != W else drawn), tuple(map(torch.empty_like, tensors))
    for tensor, result in zip(tensors, results):
        for sample, k in enumerate(drawn):
            result[sample].copy_(apply_symmetry(tensor[sample], k))
    return results


def random_intensity(
    images: Tensor, gain: float = 0.2, offset: float = 0.2, noise: float = 0.0, *, generator: torch.Generator
) -> Tensor:
    """Change brightness and contrast of each image of a batch: x · (1 + g) + o + noise · n.

    g is uniform in ±gain, o in ±offset, one of each a sample; n is standard normal.  `images` (B, C, H, W) float.
    """
    _check_images("random_intensity", images)
    drawn = torch.rand(2, images.shape[0], 1, 1, 1, generator=generator) * 2 - 1
    seed = int(torch.randint(2**62, (1,), generator=generator))  # always drawn: gain, offset ignore `noise`
    g, o = _moved_to(images, drawn).to(images.dtype)
    result = images * (1 + gain * g) + offset * o
    if noise > 0:
        own = torch.Generator(images.device).manual_seed(seed)  # noise is drawn where the images are
        result += noise * torch.randn(images.shape, generator=own, device=images.device, dtype=images.dtype)
    return result


def random_hue(images: Tensor, degrees: float = 180.0, *, generator: torch.Generator) -> Tensor:
    """Turn the colours of each RGB image (B, 3, H, W) by its own angle, uniform in ±degrees, round the grey axis."""
    _check_images("random_hue", images, channels=3)
    angle = (torch.rand(images.shape[0], 1, 1, generator=generator) * 2 - 1) * degrees * torch.pi / 180
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5  # axis × colour
    turn = angle.cos() * torch.eye(3) + angle.sin() * across + (1 - angle.cos()) / 3  # Rodrigues: (B, 3, 3)
    turned = torch.einsum("bij,bjhw->bihw", _moved_to(images, turn).to(images.dtype), images)
    return torch.empty_like(images).copy_(turned)  # in its memory format


def random_affine(
    images: Tensor, *maps: Tensor, generator: torch.Generator,
    degrees: float = 20.0, zoom: float = 0.3, stretch: float = 0.15, shift: float = 0.15, mirror: bool = True,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Turn, zoom, stretch, move and mirror each sample of a batch by its own draw; its maps move with it.

    The angle is uniform in ±degrees, the logarithm of the zoom in ±zoom and that of width over height in ±2·stretch,
    the shift in ±shift of the side; a mirror left-right comes with probability ½.  What lies outside of the image is
    its mirror image.  Images (B, C, H, W) float are interpolated; maps (B, H, W) take the nearest pixel: no new labels.
    """
    _check_images("random_affine", images)
    B, _, H, W = images.shape
    if wrong := [tuple(m.shape) for m in maps if m.shape != (B, H, W)]:
        raise InputError(f"random_affine: a map has shape {wrong[0]}; expected {(B, H, W)}, that of the images.")
    angle, larger, wider, right, down, side = torch.rand(6, B, generator=generator) * 2 - 1
    angle, scale, aspect = angle * degrees * torch.pi / 180, (-zoom * larger).exp(), (stretch * wider).exp()
    flip = torch.where(side < 0, -1.0, 1.0) if mirror else torch.ones(B)
    # Coordinates of an output pixel, in units of half a side, to those of the input; H/W keeps a turn a turn
    x = torch.stack([scale * aspect * flip * angle.cos(), -scale * aspect * angle.sin() * H / W, 2 * shift * right], 1)
    y = torch.stack([scale / aspect * flip * angle.sin() * W / H, scale / aspect * angle.cos(), 2 * shift * down], 1)
    grid = F.affine_grid(_moved_to(images, torch.stack([x, y], dim=1)), [B, 1, H, W], align_corners=False)
    sample = partial(F.grid_sample, grid=grid, padding_mode="reflection", align_corners=False)
    moved = torch.empty_like(images).copy_(sample(images.float(), mode="bilinear"))  # in its memory format
    # Where each pixel comes from, as a number: so maps of every type are only picked from, never calculated with
    places = torch.arange(H * W, device=images.device, dtype=torch.float32).expand(B, 1, -1).reshape(B, 1, H, W)
    origin = sample(places, mode="nearest").long().flatten(1)  # (B, H·W)
    return moved, *(m.flatten(1).gather(1, origin).reshape(m.shape) for m in maps)


def augment(
    *tensors: Tensor, generator: torch.Generator, zoom: float = 0.0,
    symmetries: Sequence[int] = range(8), gain: float = 0.3, hue: bool = True,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The usual changes of images (B, C, H, W) and maps: symmetries, light, hue if C = 3; `zoom` turns half of them."""
    if zoom:
        half, rest = zip(*(tensor.tensor_split([len(tensor) // 2]) for tensor in tensors))
        moved = random_affine(*half, generator=generator, zoom=zoom, stretch=0, shift=0.1)
        tensors = tuple(map(torch.cat, zip(moved, rest)))
    images, *others = random_symmetries(*tensors, generator=generator, symmetries=symmetries)
    if hue and images.shape[1] == 3:
        images = random_hue(images, generator=generator)
    return random_intensity(images, gain=gain, offset=gain, generator=generator), *others


def _moved_to(images: Tensor, drawn: Tensor) -> Tensor:
    """What was drawn on the CPU, beside the images; only a copy from pinned memory does not wait for the GPU."""
    return (drawn.pin_memory() if images.is_cuda else drawn).to(images.device, non_blocking=True)


def _check_images(function: str, images: Tensor, channels: int | None = None) -> None:
    if images.ndim != 4 or not images.is_floating_point() or channels not in (None, images.shape[1]):
        wanted = f"a float tensor (B, {channels or 'C'}, H, W)"
        raise InputError(f"{function}: images is {images.dtype} {tuple(images.shape)}; expected {wanted}.")
