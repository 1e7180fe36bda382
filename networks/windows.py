"""What each operation of a network reads: the table behind the formula of `receptive_field.py`.

Along one axis, an operation that moves or mixes pixels is described by four whole numbers (`Window`).  Whatever is not
in the lists below gets the window of `everything`, so a field is never taken to be too small.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checks import InputError

POOLS = (nn.MaxPool2d, nn.AvgPool2d)
MIXING = (nn.Conv2d, nn.ConvTranspose2d, nn.MaxUnpool2d, *POOLS)
ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
PADDING = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)
POINTWISE_FAMILIES = ("activation", "dropout", "channelshuffle")
NORM_FAMILIES = ("batchnorm", "instancenorm", "normalization")

# Functions that work pixel by pixel (a map of one row or column is repeated), without the underscores of their names.
POINTWISE_NAMES = """
    abs add addcdiv addcmul alpha_dropout batch_norm bfloat16 broadcast_to celu clamp clamp_max clamp_min clip clone
    contiguous cos cpu cuda detach div divide double dropout dropout2d elu erf exp expand expand_as feature_dropout
    float gelu group_norm half hardsigmoid hardswish hardtanh instance_norm leaky_relu lerp local_response_norm log
    log1p logsigmoid masked_fill maximum minimum mish mul multiply nan_to_num neg negative pow prelu reciprocal relu
    relu6 requires_grad rrelu rsqrt selu sigmoid silu sin softplus softsign sqrt square sub subtract tanh threshold to
    true_divide truediv type type_as where
"""
POINTWISE = frozenset(POINTWISE_NAMES.split())
# These too, along the channels; the number says which argument is `dim`.
CHANNELWISE = {"cat": 1, "concat": 1, "concatenate": 1, "softmax": 1, "log_softmax": 1, "normalize": 2} | {
    "amax": 1, "amin": 1, "max": 1, "mean": 1, "min": 1, "sum": 1, "std": 1, "var": 1, "chunk": 2, "split": 2,
}  # fmt: skip
# These keep the pixels in their order; so they are pixel by pixel if height and width stay.
RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"}


@dataclass(frozen=True)
class Window:
    """Output position o reads the input positions ⌈(step·o + first) / parts⌉ … ⌊(step·o + last) / parts⌋.

    >>> Window(step=2, first=-1, last=1).before(np.array([0, 5]), np.array([0, 5]))  # kernel 3, stride 2, padding 1
    (array([-1,  9]), array([ 1, 11]))
    """

    step: int = 1
    first: int = 0
    last: int = 0
    parts: int = 1

    def before(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The input positions that the output positions low … high read."""
        return -(-(self.step * low + self.first) // self.parts), (self.step * high + self.last) // self.parts

    @property
    def stride(self) -> Fraction:
        """How far the window moves from one output position to the next."""
        return Fraction(self.step, self.parts)


Windows = tuple[Window, Window]
"""Along the rows and along the columns."""


def sizes(x: Tensor) -> tuple[int, int]:
    """Height and width of a map (…, H, W); a vector (B, C) is one pixel.

    >>> sizes(torch.zeros(1, 3, 4, 5)), sizes(torch.zeros(1, 10))
    ((4, 5), (1, 1))
    """
    return (x.shape[-2], x.shape[-1]) if x.ndim > 2 else (1, 1)


def everything(x: Tensor) -> Windows:
    """All of the map `x`, whatever the output position."""
    rows, columns = sizes(x)
    return Window(step=0, last=rows - 1), Window(step=0, last=columns - 1)


def is_norm(module: nn.Module) -> bool:
    """Whether the layer is a normalisation of PyTorch: BatchNorm, GroupNorm, LayerNorm, InstanceNorm, …"""
    return _family(module) in NORM_FAMILIES


def windows_of_layer(module: nn.Module, x: Tensor, y: Tensor) -> Windows:
    """The windows through which a layer of PyTorch reads its input `x` to make `y`."""
    if getattr(module, "padding_mode", "zeros") == "circular" or isinstance(module, nn.CircularPad2d):
        return everything(x)  # the last rows are read for the first ones
    if isinstance(module, MIXING):
        return _kernel(module)
    if isinstance(module, nn.Upsample):
        return _resized(x, y, module.mode, module.align_corners, module.scale_factor, module.recompute_scale_factor)
    if isinstance(module, ADAPTIVE):
        return _adaptive(x, y)
    if isinstance(module, PADDING):
        return _padded(module.padding)
    if isinstance(module, nn.PixelShuffle):
        r = module.upscale_factor
        return (Window(first=1 - r, parts=r),) * 2
    simple = is_norm(module) or isinstance(module, nn.Identity) or _family(module) in POINTWISE_FAMILIES
    if simple and _keeps_pixels(getattr(module, "dim", 0), x):  # a softmax may also go along the rows
        return _pixel_by_pixel(x, y)
    return everything(x)


def windows_of_function(function: Any, args: Any, kwargs: Any, x: Tensor, y: Tensor) -> Windows:
    """The windows through which a function reads the map `x`, one of its arguments, to make `y`.

    Raises:
        InputError: for a convolution or pooling, whose kernel cannot be read off the call.
    """
    name = getattr(function, "__name__", "")
    if ("conv" in name or "pool" in name) and "adaptive" not in name:
        raise InputError(
            f"The model calls {name} as a function; use the nn.Module of it, so that its kernel can be read."
        )
    stem = name.strip("_")
    if name.startswith("__") and stem[:1] in ("i", "r") and stem[1:] in POINTWISE:
        stem = stem[1:]  # __iadd__ of x += y, __rsub__ of 1 - x
    if stem in POINTWISE or (stem in CHANNELWISE and _keeps_pixels(_argument(args, kwargs, CHANNELWISE[stem]), x)):
        return _pixel_by_pixel(x, y)
    if stem in RESHAPES:
        return (Window(), Window()) if sizes(x) == sizes(y) else everything(x)
    special: dict[str, Callable[[], Windows]] = {
        "getitem": lambda: _indexed(x, args[1]),
        "pad": lambda: _padded_by_function(args, kwargs, x),
        "interpolate": lambda: _resized_by_function(args, kwargs, y),
    }
    if "adaptive" in name:
        return _adaptive(x, y)
    return special.get(stem, lambda: everything(x))()


def _family(module: nn.Module) -> str:
    module_name = type(module).__module__
    return module_name.rpartition(".")[2] if module_name.startswith("torch.nn.modules") else ""


def _argument(args: Any, kwargs: Any, position: int, name: str = "dim") -> Any:
    return kwargs.get(name, args[position] if len(args) > position else None)


def _keeps_pixels(dim: Any, x: Tensor) -> bool:
    """Whether `dim` is one of the axes before height and width."""
    return isinstance(dim, int) and dim % x.ndim < x.ndim - 2


def _pixel_by_pixel(x: Tensor, y: Tensor) -> Windows:
    """The same place; along an axis on which `x` has one place only, this one for all."""
    rows, columns = (
        Window() if before == after else Window(step=0) if before == 1 else Window(step=0, last=before - 1)
        for before, after in zip(sizes(x), sizes(y))
    )
    return rows, columns


def _kernel(module: Any) -> Windows:
    kernel, stride, dilation = pair(module.kernel_size), pair(module.stride), pair(getattr(module, "dilation", 1))
    reach = [(k - 1) * d for k, d in zip(kernel, dilation)]
    padding = {"same": (reach[0] // 2, reach[1] // 2), "valid": (0, 0)}.get(module.padding) or pair(module.padding)
    if isinstance(module, (nn.ConvTranspose2d, nn.MaxUnpool2d)):
        rows, columns = (Window(first=p - r, last=p, parts=s) for p, r, s in zip(padding, reach, stride))
    else:
        rows, columns = (Window(step=s, first=-p, last=r - p) for p, r, s in zip(padding, reach, stride))
    return rows, columns


def _adaptive(x: Tensor, y: Tensor) -> Windows:
    """⌊o·before/after⌋ … ⌈(o+1)·before/after⌉ − 1; to 1×1 this is everything."""
    rows, columns = (
        Window(step=before, first=1 - after, last=before - 1, parts=after) for before, after in zip(sizes(x), sizes(y))
    )
    return rows, columns


def _padded(padding: Any) -> Windows:
    """Padding is given as left, right, top, bottom; a negative one crops."""
    left, top = (padding, padding) if isinstance(padding, int) else (padding[0], padding[2] if len(padding) > 2 else 0)
    return Window(first=-top, last=-top), Window(first=-left, last=-left)


def _indexed(x: Tensor, index: Any) -> Windows:
    """Cropping and striding by x[index]: index the row and column numbers alike, and read the window off them."""
    windows = []
    for axis, size in zip((-2, -1), sizes(x)):
        numbers = torch.arange(size, device=x.device).unsqueeze(-1 if axis == -2 else 0).expand(x.shape)[index]
        if numbers.ndim < 3:
            return everything(x)
        lines = numbers.movedim(axis, -1).flatten(0, -2)  # (other axes, positions)
        start, step = int(lines[0, 0]), int(lines[0, -1] - lines[0, 0]) // max(lines.shape[1] - 1, 1)
        if step < 0 or not (lines == start + step * torch.arange(lines.shape[1], device=x.device)).all():
            return everything(x)
        windows.append(Window(step or 1, start, start))
    return windows[0], windows[1]


def _padded_by_function(args: Any, kwargs: Any, x: Tensor) -> Windows:
    if _argument(args, kwargs, 2, "mode") == "circular":  # the last rows are read for the first ones
        return everything(x)
    return _padded(_argument(args, kwargs, 1, "pad"))


def _resized_by_function(args: Any, kwargs: Any, y: Tensor) -> Windows:
    call = inspect.signature(F.interpolate).bind(*args, **kwargs).arguments
    wanted = [call.get(key) for key in ("align_corners", "scale_factor", "recompute_scale_factor")]
    if call.get("antialias"):
        return everything(call["input"])  # its filter grows with the factor
    return _resized(call["input"], y, call.get("mode", "nearest"), *wanted)


def _resized(x: Tensor, y: Tensor, mode: str, align_corners: Any, scale_factor: Any, recompute: Any) -> Windows:
    """Resizing by p/q input pixels an output pixel; o lies at n/2q with n = 2p·o + shift."""
    if mode not in ("nearest", "nearest-exact", "bilinear", "bicubic"):
        return everything(x)
    windows = []
    for axis, (before, after) in enumerate(zip(sizes(x), sizes(y))):
        ratio = Fraction(before, after)
        if align_corners:  # the corners of both maps coincide
            ratio = Fraction(before - 1, max(after - 1, 1))
        elif scale_factor is not None and not recompute:
            factor = scale_factor[axis] if isinstance(scale_factor, (tuple, list)) else scale_factor
            ratio = 1 / Fraction(factor).limit_denominator(1000)
        p, m = ratio.numerator, 2 * ratio.denominator
        if mode.startswith("nearest"):  # ⌊o·p/q⌋, exact: ⌊(o + ½)·p/q⌋
            shift, below, above = (0 if mode == "nearest" else p), m - 1, 0
        else:  # (o + ½)·p/q − ½ lies between two input pixels; a cubic takes one more on both sides
            shift, below = (0 if align_corners else p - m // 2), m - 1 + (m if mode == "bicubic" else 0)
            above = below
        windows.append(Window(2 * p, shift - below, shift + above, m))
    return windows[0], windows[1]


def pair(value: Any) -> tuple[int, int]:
    """A setting for both axes as (rows, columns).

    >>> pair(3), pair((1, 7))
    ((3, 3), (1, 7))
    """
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
