"""What a network is made of: parameters, multiply-adds, memory, and which pixels of the image it sees.

The parameters are found in two ways: by counting the numbers in the tensors, and by formula from the settings of the
layers.  Receptive fields are found in three.

By formula.  While one image runs through the model, the functions called are noted (`Record`).  Along one axis, output
position o of each of them reads the input positions

    ⌈(step·o + first) / parts⌉ … ⌊(step·o + last) / parts⌋ .

For a convolution of kernel k, stride s, padding p and dilation d this is o·s − p … o·s − p + (k−1)·d; a transposed one
reads the i with i·s − p ≤ o ≤ i·s − p + (k−1)·d.  The record is walked backwards, from output pixels to the image;
where branches meet, their ranges are joined.  It is an upper bound: an operation that is not known here is taken to
read all of its input.  Left out on purpose: normalisation counts as pixel by pixel, although GroupNorm averages over
the image, and which pixel won a pooling (its index) is not followed.

Measured: from gradients of a copy with positive weights, a lower bound.  Effective: how much each pixel counts.

Sources: Dumoulin and Visin, 2016 (arXiv:1603.07285); Araujo, Norris and Sim, 2019 (doi:10.23915/distill.00021);
effective receptive field: Luo, Li, Urtasun and Zemel, 2016 (arXiv:1701.04128).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from checks import InputError, check_images

ERF_SHARE = 1 - 0.9545
"""A pixel belongs to the effective field if it counts for more than this part of the largest (Luo et al., 2016)."""

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
ROWS_OF_THEIR_OWN = (*CONVOLUTIONS, nn.MaxPool2d, nn.AvgPool2d, nn.MaxUnpool2d, nn.Linear)
NORMALISATIONS = ("batchnorm", "instancenorm", "normalization")

# Parameters of PyTorch's compiled functions, in their order
CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
POOLING = ("input", "kernel_size", "stride", "padding")
# Functions that work pixel by pixel, without the underscores of their names
POINTWISE_NAMES = """
    abs add batch_norm clamp clamp_min clone contiguous detach div double dropout elu exp expand_as float gelu
    group_norm half hardswish instance_norm layer_norm leaky_relu log log_softmax maximum minimum mul neg pow prelu relu
    relu6 sigmoid silu softmax softplus sqrt square sub tanh to truediv type where
"""
POINTWISE = frozenset(POINTWISE_NAMES.split())
# These too, along the channels; the number says which argument is `dim`
CHANNELWISE = {"cat": 1, "softmax": 1, "log_softmax": 1, "amax": 1, "max": 1, "mean": 1, "sum": 1} | {
    "chunk": 2, "split": 2,
}  # fmt: skip


# ---- parameters -----------------------------------------------------------------------------------------------------


def count_parameters(model: nn.Module, *, biases: bool = True) -> int:
    """Number of trainable parameters, with or without the biases.

    >>> count_parameters(nn.Conv2d(3, 8, 5)), count_parameters(nn.Conv2d(3, 8, 5), biases=False)
    (608, 600)
    """
    wanted = (p for name, p in model.named_parameters() if biases or not name.endswith("bias"))
    return sum(p.numel() for p in wanted if p.requires_grad)


def parameters_by_formula(model: nn.Module, *, biases: bool = True) -> int:
    """Number of parameters, from the settings of the layers alone; a second way beside `count_parameters`.

        convolution        k_h · k_w · C_in · C_out / groups, and C_out biases
        dense layer        in · out, and out biases
        normalisation      C factors, and C shifts, which count as biases

    Raises:
        InputError: for a layer with parameters that is none of these.

    >>> parameters_by_formula(nn.Conv2d(3, 8, 5)), parameters_by_formula(nn.Conv2d(3, 8, 5), biases=False)
    (608, 600)
    """
    total = 0
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            weights, outputs = _weights_and_outputs(module, name)
            total += weights + (outputs if biases and getattr(module, "bias", None) is not None else 0)
    return total


def _weights_and_outputs(module: Any, name: str) -> tuple[int, int]:
    if isinstance(module, CONVOLUTIONS):
        weights = math.prod(module.kernel_size) * module.in_channels * module.out_channels // module.groups
        return weights, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features, module.out_features
    if isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)):
        return module.num_features, module.num_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels, module.num_channels
    if isinstance(module, nn.LayerNorm):
        return math.prod(module.normalized_shape), math.prod(module.normalized_shape)
    raise InputError(
        f"There is no formula for the parameters of {name or 'the model'} ({type(module).__name__}).\n"
        "Add it to inspection.py, or use layers that have one: convolutions, linear layers, normalisations."
    )


# ---- layers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One row of the layer table."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: tuple[int, int]
    """Height and width in pixels of the image, by formula; it may be larger than the image."""
    stride: tuple[float, float]
    """How many pixels of the image lie between the fields of neighbouring pixels of the output."""
    memory: int
    """Bytes of the output in float32, which training keeps for the backward pass."""


@dataclass(frozen=True)
class Stage:
    """One box of the drawn U: the map that a block of the encoder or decoder puts out."""

    name: str
    channels: int
    height: int
    width: int


def layer_table(model: nn.Module, input_shape: tuple[int, ...]) -> list[Layer]:
    """Rows for all convolutions, poolings and dense layers, in the order in which they run on (B, C, H, W).

    The parameters of a normalisation are counted in the row of the layer before it; those of a layer that runs twice,
    in its first row.

    >>> layer_table(nn.Conv2d(1, 4, 3, padding=1), (1, 1, 8, 8))[0].multiply_adds  # 8·8 pixels · 4·1·3·3
    2304
    """
    record = Record(model, input_shape)
    names = {module: name or type(module).__name__ for name, module in model.named_modules()}
    rows: list[Layer] = []
    counted: set[nn.Module] = set()
    for position, step in enumerate(record.steps):
        if step.layer is None:
            continue
        parameters = count_parameters(step.layer) if step.layer not in counted else 0
        counted.add(step.layer)
        kind, kernel = type(step.layer).__name__, getattr(step.layer, "kernel_size", None)
        if isinstance(step.layer, ROWS_OF_THEIR_OWN) or (parameters and not rows):
            kind += "" if kernel is None else " {}×{}".format(*pair(kernel))
            field, stride = record.field(position), record.stride(position)
            products, memory = _multiply_adds(step), 4 * math.prod(step.output_shape)
            rows.append(
                Layer(names[step.layer], kind, step.output_shape, parameters, products, field, stride, memory)
            )
        elif parameters:
            kind, parameters = f"{rows[-1].kind} + {kind}", rows[-1].parameters + parameters
            rows[-1] = replace(rows[-1], kind=kind, parameters=parameters)
    return rows


def format_table(layers: list[Layer], input_shape: tuple[int, ...]) -> str:
    """The rows of `layer_table` as text, with their sums."""
    lines = [
        f"input {'×'.join(map(str, input_shape))}",
        f"{'layer':<18}{'kind':<35}{'output C×H×W':>15}{'parameters':>12}"
        f"{'multiply-adds':>15}{'receptive field':>17}{'stride':>9}{'memory':>12}",
    ]
    for row in layers:
        shape, field = "×".join(map(str, row.output_shape[1:])), "×".join(map(str, row.receptive_field))
        stride = "×".join(f"{s:.3g}" for s in row.stride)
        numbers = f"{row.parameters:>12,}{row.multiply_adds / 1e6:>13.1f} M{field:>17}{stride:>9}"
        numbers += f"{row.memory / 2**20:>8.2f} MiB"
        lines.append(f"{row.name:<18}{row.kind:<35}{shape:>15}{numbers}")
    parameters, products = sum(r.parameters for r in layers), sum(r.multiply_adds for r in layers)
    memory = sum(r.memory for r in layers) / 2**20
    lines.append(f"{'sum':<68}{parameters:>12,}{products / 1e6:>13.1f} M{'':>26}{memory:>8.2f} MiB")
    return "\n".join(lines)


def stages(
    model: nn.Module, input_shape: tuple[int, ...], parts: tuple[str, ...] = ("encoder", "decoder")
) -> list[Stage]:
    """The maps that the blocks `model.encoder[i]` and `model.decoder[i]` put out, in the order in which they run."""
    found: list[Stage] = []
    names = {block: f"{part}.{index}" for part in parts for index, block in enumerate(getattr(model, part))}

    def note(block: nn.Module, _inputs: Any, output: Tensor) -> None:
        found.append(Stage(names[block], *output.shape[1:]))

    _run_once(model, torch.zeros(input_shape), dict.fromkeys(names, note))
    return found


def _multiply_adds(step: Step) -> int:
    """Products of a weight with an activation."""
    layer: Any = step.layer
    if isinstance(layer, nn.ConvTranspose2d):  # each input value meets the whole kernel
        return math.prod(step.input_shape) * layer.out_channels // layer.groups * math.prod(layer.kernel_size)
    if isinstance(layer, nn.Conv2d):  # each output value reads the whole kernel
        return math.prod(step.output_shape) * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return math.prod(step.output_shape) * layer.in_features if isinstance(layer, nn.Linear) else 0


# ---- receptive field by formula -------------------------------------------------------------------------------------


class Box(NamedTuple):
    """A rectangle of pixels, first and last ones included; it may reach beyond the image, into the padding."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top + 1, self.right - self.left + 1


def receptive_field(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width, in pixels of the image, of the largest receptive field of all output pixels, by formula.

    Padding counts, so it may be larger than the image.

    Args:
        model: any module that takes images (B, C, H, W); of a tuple or dict of outputs, the first counts.
        input_shape: (B, C, H, W), large enough for the model.

    Raises:
        InputError: if the output is no float tensor made from the image.

    >>> receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3)), (1, 1, 32, 32))
    (8, 8)
    """
    record = Record(model, input_shape)
    return record.field(record.last)


def reach(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """How far, in pixels, an output pixel can lie from an image pixel that it depends on, by formula.

    For models whose output has the size of the image.  It is about half of the receptive field, or more where the
    field does not lie symmetrically: so wide a margin makes a tile right.

    >>> reach(nn.Conv2d(1, 1, 3, padding=1, dilation=1), (1, 1, 8, 8)), reach(nn.ConvTranspose2d(1, 1, 4), (1, 1, 8, 8))
    (1, 3)
    """
    record = Record(model, input_shape)
    outputs = [np.arange(size) for size in sizes(record.steps[record.last].output_shape)]
    ranges = [record.ranges(record.last, axis) for axis in (0, 1)]
    return max(int(max((o - low).max(), (high - o).max())) for o, (low, high) in zip(outputs, ranges))


def output_stride(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[float, float]:
    """By how many pixels of the image (rows, columns) the field moves from one output pixel to the next.

    The strides of all operations multiply, j ← j·s; going up by s divides.  So a U-Net has 1, and an output that is
    finer than the image less than 1.  It is 0 where all output pixels see the same, as after a dense layer.

    >>> output_stride(nn.Sequential(nn.Conv2d(1, 1, 3, stride=2), nn.MaxPool2d(2)), (1, 1, 32, 32))
    (4.0, 4.0)
    """
    record = Record(model, input_shape)
    return record.stride(record.last)


def pixel_field(model: nn.Module, input_shape: tuple[int, ...], pixel: tuple[int, int] | None = None) -> Box:
    """The pixels of the image that one output pixel can depend on, by formula.

    Args:
        pixel: row and column of the output pixel; default the middle one, (height // 2, width // 2).

    >>> pixel_field(nn.Conv2d(1, 1, 3, stride=2, padding=1), (1, 1, 32, 32), (0, 5))
    Box(top=-1, left=9, bottom=1, right=11)
    """
    record = Record(model, input_shape)
    place = pixel or _middle(record.steps[record.last].output_shape)
    (top, bottom), (left, right) = (record.ranges(record.last, axis, np.array([place[axis]])) for axis in (0, 1))
    return Box(int(top[0]), int(left[0]), int(bottom[0]), int(right[0]))


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


Windows = tuple[Window, Window]
"""Along the rows and along the columns."""


@dataclass
class Step:
    """One function call: the maps that it reads (by id) through which windows, and the map that it writes."""

    sources: list[tuple[int, Windows]]
    output: int
    stride: tuple[Fraction, Fraction]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    layer: nn.Module | None = None


class Record(TorchFunctionMode):
    """What happens to one image in a model: every function called on a map that depends on it.

    Attributes:
        steps: in the order in which they ran.
        last: the number of the step that made the model's output.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._strides: dict[int, tuple[Fraction, Fraction]] = {}  # of all maps that depend on the image
        self._alive: list[Tensor] = []  # the id of a tensor is unique only while it lives
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        image = torch.zeros(input_shape, device=like.device, dtype=like.dtype)
        self._image = self._keep(image, (Fraction(1), Fraction(1)))
        leaves = [m for m in model.modules() if type(m).__module__.startswith("torch.nn") and not list(m.children())]
        with self:
            output = next(tensors_in(_run_once(model, image, dict.fromkeys(leaves, self._name_step))), None)
        writers = [number for number, step in enumerate(self.steps) if step.output == id(output)]
        if not writers:
            raise InputError(
                "The output cannot be followed back to the image; it must be a float tensor made from it."
            )
        self.last = writers[-1]

    def field(self, position: int) -> tuple[int, int]:
        """Height and width of the largest field of the pixels of one step's output."""
        height, width = (self.ranges(position, axis) for axis in (0, 1))
        return int((height[1] - height[0]).max()) + 1, int((width[1] - width[0]).max()) + 1

    def stride(self, position: int) -> tuple[float, float]:
        """How far apart the fields of neighbouring pixels of one step's output lie."""
        rows, columns = self.steps[position].stride
        return float(rows), float(columns)

    def ranges(self, position: int, axis: int, outputs: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Walk back from output positions of one step (default all): the first and last image row or column of each."""
        if outputs is None:
            outputs = np.arange(sizes(self.steps[position].output_shape)[axis])
        needed = {self.steps[position].output: (outputs, outputs)}
        for step in reversed(self.steps[: position + 1]):
            if step.output not in needed:
                continue
            low, high = needed.pop(step.output)
            for source, windows in step.sources:
                first, last = windows[axis].before(low, high)
                known = needed.get(source, (first, last))
                needed[source] = np.minimum(first, known[0]), np.maximum(last, known[1])
        return needed[self._image]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        written = args[0] if getattr(function, "__name__", "") == "__setitem__" else result
        maps = [x for x in tensors_in((args, kwargs)) if id(x) in self._strides]
        for y in tensors_in(written):
            if not maps or not y.is_floating_point():  # indices and masks are not followed, as gradients are not
                continue
            sources = [(id(x), windows_of(function, args, kwargs, x, y)) for x in maps]
            rows, columns = (
                max(self._strides[source][axis] * Fraction(w[axis].step, w[axis].parts) for source, w in sources)
                for axis in (0, 1)
            )
            shapes = tuple(maps[0].shape), tuple(y.shape)
            self.steps.append(Step(sources, self._keep(y, (rows, columns)), (rows, columns), *shapes))
        return result

    def _name_step(self, layer: nn.Module, _inputs: Any, result: Any) -> None:
        if self.steps and self.steps[-1].output == id(next(tensors_in(result))):
            self.steps[-1].layer = layer

    def _keep(self, tensor: Tensor, stride: tuple[Fraction, Fraction]) -> int:
        self._alive.append(tensor)
        self._strides[id(tensor)] = stride
        return id(tensor)


def windows_of(function: Any, args: Any, kwargs: Any, x: Tensor, y: Tensor) -> Windows:
    """The windows through which a function reads the map `x`, one of its arguments, to make `y`."""
    name = getattr(function, "__name__", "").strip("_")
    name = name[1:] if name[:1] in ("i", "r") and name[1:] in POINTWISE else name  # __iadd__, __rsub__
    before, after = sizes(x.shape), sizes(y.shape)
    all_of_x = Window(step=0, last=before[0] - 1), Window(step=0, last=before[1] - 1)
    dim = kwargs.get("dim", args[CHANNELWISE[name]] if name in CHANNELWISE and len(args) > CHANNELWISE[name] else None)
    if (dim is None and name in POINTWISE) or (
        name in CHANNELWISE and isinstance(dim, int) and x.ndim > 2 and dim % x.ndim < x.ndim - 2
    ):  # a map of one row is repeated
        fits = zip(before, after)
        rows, columns = (Window() if b == a else Window(step=0, last=b - 1) for b, a in fits)
        return rows, columns
    if name == "conv2d":
        return _kernel(x, **_named(CONVOLUTION, args, kwargs))
    if name == "conv_transpose2d":
        return _transposed(**_named(TRANSPOSED, args, kwargs))
    if name in ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d"):
        return _pool(**_named(POOLING, args, kwargs))
    if name == "interpolate":
        return _resized(x, y, inspect.signature(F.interpolate).bind(*args, **kwargs).arguments) or all_of_x
    if name == "pad" and kwargs.get("mode", args[2] if len(args) > 2 else "constant") != "circular":
        padding: list[int] = list(kwargs.get("pad", args[1] if len(args) > 1 else ()))  # left, right, top, bottom
        left, top = padding[0], padding[2] if len(padding) > 2 else 0
        return Window(first=-top, last=-top), Window(first=-left, last=-left)
    if name == "getitem":
        return _cropped(x, args[1]) or all_of_x
    if name in ("view", "reshape", "squeeze", "unsqueeze", "flatten", "unflatten") and before == after:
        return Window(), Window()
    return all_of_x


def _named(names: tuple[str, ...], args: Any, kwargs: Any) -> dict[str, Any]:
    return dict(zip(names, args)) | kwargs


def _kernel(x: Tensor, weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, **_: Any) -> Windows:
    spans = [(k - 1) * d for k, d in zip(weight.shape[2:], pair(dilation))]
    padding = [span // 2 if padding == "same" else 0 for span in spans] if isinstance(padding, str) else padding
    rows, columns = (Window(s, -p, span - p) for s, p, span in zip(pair(stride), pair(padding), spans))
    return rows, columns


def _transposed(weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, **_: Any) -> Windows:
    spans = [(k - 1) * d for k, d in zip(weight.shape[2:], pair(dilation))]
    rows, columns = (Window(1, p - span, p, s) for s, p, span in zip(pair(stride), pair(padding), spans))
    return rows, columns


def _pool(kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **_: Any) -> Windows:
    settings = zip(pair(kernel_size), pair(stride or kernel_size), pair(padding), pair(dilation))
    rows, columns = (Window(s, -p, (k - 1) * d - p) for k, s, p, d in settings)
    return rows, columns


def _cropped(x: Tensor, index: Any) -> Windows | None:
    """Cropping and striding by x[index]: index the row and column numbers alike, and read the window off them."""
    windows = []
    for axis, size in zip((-2, -1), sizes(x.shape)):
        numbers = torch.arange(size, device=x.device).unsqueeze(-1 if axis == -2 else 0).expand(x.shape)[index]
        if numbers.ndim < 3 or numbers.numel() == 0:
            return None
        lines = numbers.movedim(axis, -1).flatten(0, -2)  # (other axes, positions)
        start, step = int(lines[0, 0]), int(lines[0, -1] - lines[0, 0]) // max(lines.shape[1] - 1, 1)
        if step < 0 or not (lines == start + step * torch.arange(lines.shape[1], device=x.device)).all():
            return None
        windows.append(Window(step or 1, start, start))
    return windows[0], windows[1]


def _resized(x: Tensor, y: Tensor, call: dict[str, Any]) -> Windows | None:
    """Resizing by p/q input pixels an output pixel; o lies at n/2q with n = 2p·o + shift."""
    mode, scale, corners = call.get("mode", "nearest"), call.get("scale_factor"), call.get("align_corners")
    if mode not in ("nearest", "bilinear") or call.get("antialias"):
        return None
    windows = []
    for axis, (before, after) in enumerate(zip(sizes(x.shape), sizes(y.shape))):
        ratio = Fraction(before, after)
        if corners:  # the corners of both maps coincide
            ratio = Fraction(before - 1, max(after - 1, 1))
        elif scale is not None and not call.get("recompute_scale_factor"):
            factor = scale[axis] if isinstance(scale, (tuple, list)) else scale
            ratio = 1 / Fraction(factor).limit_denominator(1000)
        p, m = ratio.numerator, 2 * ratio.denominator
        if mode == "nearest":  # ⌊o·p/q⌋
            windows.append(Window(2 * p, 1 - m, 0, m))
        else:  # (o + ½)·p/q − ½ lies between two input pixels
            shift = 0 if corners else p - m // 2
            windows.append(Window(2 * p, shift - m + 1, shift + m - 1, m))
    return windows[0], windows[1]


def pair(value: Any) -> tuple[int, int]:
    """A setting for both axes as (rows, columns).

    >>> pair(3), pair((1, 7))
    ((3, 3), (1, 7))
    """
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def sizes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a map (…, H, W); a vector (B, C) is one pixel.

    >>> sizes((1, 3, 4, 5)), sizes((1, 10))
    ((4, 5), (1, 1))
    """
    return (shape[-2], shape[-1]) if len(shape) > 2 else (1, 1)


# ---- measured and effective -----------------------------------------------------------------------------------------


def receptive_field_measured(
    model: nn.Module, input_shape: tuple[int, ...], *, trials: int = 8, seed: int = 0
) -> tuple[int, int]:
    """Height and width of the region that `pixel_field_measured` finds for the middle output pixel.

    >>> receptive_field_measured(nn.Conv2d(1, 1, 3, padding=2, dilation=2), (1, 1, 32, 32))
    (5, 5)
    """
    return pixel_field_measured(model, input_shape, trials=trials, seed=seed).size


def pixel_field_measured(
    model: nn.Module,
    input_shape: tuple[int, ...],
    pixel: tuple[int, int] | None = None,
    *,
    trials: int = 8,
    seed: int = 0,
) -> Box:
    """The smallest box around the pixels of the image whose gradient at one output pixel is not zero.

    In a copy of the model all weights are random and positive and normalisation is left out, so that no ReLU hides a
    path; pooling shows only the winner of a window, so the region is collected over `trials` random images.  What is
    found lies inside the image, and is a lower bound.

    >>> pixel_field_measured(nn.Conv2d(1, 1, 3, stride=2, padding=1), (1, 1, 32, 32), (0, 5))
    Box(top=0, left=9, bottom=1, right=11)
    """
    generator = torch.Generator().manual_seed(seed)
    model = _positive_copy(model, generator)
    seen = torch.zeros(input_shape[-2:], dtype=torch.bool)
    for _ in range(trials):
        images = torch.rand(input_shape, generator=generator, dtype=torch.float64)
        seen |= (_gradient(model, images, pixel, generator) != 0).flatten(0, -3).any(dim=0)
    if not seen.any():
        raise InputError(
            "No pixel of the image has a gradient: the output does not depend on the image.\n"
            "Look for detach or argmax in the forward of the model."
        )
    rows, columns = torch.nonzero(seen.any(dim=1)).flatten(), torch.nonzero(seen.any(dim=0)).flatten()
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1]))


# ---- effective ------------------------------------------------------------------------------------------------------


def effective_receptive_field(model: nn.Module, images: Tensor) -> Tensor:
    """How much each pixel of the image counts for the middle output pixel y: the mean of |∂y / ∂x|, with sum 1.

    y is the sum over the channels of the output.  Give the raw output: after a softmax this sum is always 1, and with
    two logits under a softmax it is never trained, so give such a model one output channel.  The model runs in eval
    mode and is left as it was.

    Args:
        images: (B, C, H, W) float, as the model gets them; gradients are averaged over them and added over C.

    Returns:
        Tensor (H, W), float, on the CPU.

    Raises:
        InputError: if the images are no images, or no pixel has a gradient.

    Reference: Luo et al., 2016 (arXiv:1701.04128).

    >>> effective_receptive_field(nn.AvgPool2d(3, 1, 1), torch.zeros(2, 1, 3, 3)).sum().item()
    1.0
    """
    check_images(images)
    device = next((p.device for p in model.parameters()), images.device)
    gradient = _gradient(model, images.to(device))
    field = gradient.abs().sum(dim=1).mean(dim=0)  # (H, W)
    if not field.sum() > 0:
        raise InputError(
            "No pixel has a gradient: the middle output pixel is the same for all images.\n"
            "If the weights are random, its ReLUs may all give 0: try another seed, or more channels."
        )
    return (field / field.sum()).cpu()


def effective_size(field: Tensor) -> float:
    """Side of the square with as many pixels as `field` (H, W) has above 1 − 95.45 % of its largest value.

    Luo et al. take the value at the centre instead of the largest; after max pooling the centre need not be a high one.

    >>> effective_size(torch.tensor([[0.0, 0.5, 0.02], [0.5, 1.0, 0.5]]))
    2.0
    """
    return float((field > ERF_SHARE * field.max()).sum()) ** 0.5


def _gradient(
    model: nn.Module, images: Tensor, pixel: tuple[int, int] | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Gradient (B, C, H, W) of one output pixel, its channels added up (by random weights if there is a generator)."""
    images = images.detach().requires_grad_()
    with in_eval_mode(model), torch.enable_grad():
        output = next(tensors_in(model(images.clone())))  # a clone: the model may change its input in place
        if output.ndim > 2:
            row, column = pixel or _middle(output.shape)
            output = output[..., row, column]
        if generator is not None:
            output = output * torch.rand(output.shape, generator=generator, dtype=output.dtype)
        if not output.requires_grad:  # nothing in it comes from the image or a weight
            return torch.zeros_like(images)
        return torch.autograd.grad(output.sum(), images, allow_unused=True, materialize_grads=True)[0]


def _positive_copy(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in float64 whose layers take weighted means: all weights > 0, of a size that keeps values near 1."""
    model = copy.deepcopy(model).cpu().double()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_norm(child):
                setattr(parent, name, nn.Identity())
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 100  # small biases: else they add up over the layers
        parameter.data.uniform_(0.5, 1.5, generator=generator).div_(fan)
    return model


def _middle(shape: tuple[int, ...]) -> tuple[int, int]:
    height, width = sizes(shape)
    return height // 2, width // 2


def is_norm(module: nn.Module) -> bool:
    """Whether the layer is a normalisation of PyTorch: BatchNorm, GroupNorm, LayerNorm, InstanceNorm, …"""
    return type(module).__module__.startswith("torch.nn.modules.") and type(module).__module__.endswith(NORMALISATIONS)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for all modules of the model; afterwards each is in the mode in which it was."""
    were_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in were_training:
            module.training = True


@torch.no_grad()
def _run_once(model: nn.Module, images: Tensor, hooks: dict[Any, Any]) -> Any:
    """One pass in eval mode that leaves no trace in the model, with a forward hook for some of its modules."""
    device = next((p.device for p in model.parameters()), images.device)
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        with in_eval_mode(model):
            return model(images.to(device))
    finally:
        for handle in handles:
            handle.remove()


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors of a nested list, tuple or dict, in their order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))
