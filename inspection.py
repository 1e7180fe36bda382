"""What a network is made of: shapes, parameters, multiply-adds, memory and receptive field of every layer.

The receptive field is derived, not looked up.  While one input runs through the model, each operation that mixes
pixels is recorded.  Walking this record backwards from an output pixel gives the exact range of input pixels on which
it can depend, for branches, dilation, pooling and transposed convolutions alike.  (Normalisation counts as pixel by
pixel, although GroupNorm averages over the image, and BatchNorm in training over the batch.)
`receptive_field_measured` checks the result with gradients.

Source of the arithmetic: Dumoulin and Visin, 2016 (arXiv:1603.07285); Araujo, Norris and Sim, 2019
(doi:10.23915/distill.00021).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from checks import InputError

Range = tuple[np.ndarray, np.ndarray]
"""First and last row (or column) needed, one entry for each output position asked for."""

Needs = Callable[[int, Range], Range]
"""What an operation reads: (axis, range of its output) → range of its input."""

POOLS = (nn.MaxPool2d, nn.AvgPool2d)
MIXING = (nn.Conv2d, nn.ConvTranspose2d, *POOLS)
NORMS = (nn.BatchNorm2d, nn.GroupNorm)


@dataclass(frozen=True)
class Layer:
    """One row of the layer table."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: tuple[int, int]
    """Height and width in pixels of the input, by formula; it may be larger than the image."""
    memory: int
    """Bytes of the output in float32, which training keeps for the backward pass."""


@dataclass(frozen=True)
class Stage:
    """One box of the drawn U: the map that a block of the encoder or decoder puts out."""

    name: str
    channels: int
    height: int
    width: int


def count_parameters(model: nn.Module, *, biases: bool = True) -> int:
    """Number of trainable parameters, with or without the biases.

    >>> count_parameters(nn.Conv2d(3, 8, 5)), count_parameters(nn.Conv2d(3, 8, 5), biases=False)
    (608, 600)
    """
    wanted = (p for name, p in model.named_parameters() if biases or not name.endswith("bias"))
    return sum(p.numel() for p in wanted if p.requires_grad)


def layer_table(model: nn.Module, input_shape: tuple[int, ...]) -> list[Layer]:
    """Rows for all convolutions, poolings and dense layers, in the order in which they run on (B, C, H, W).

    The parameters of a normalisation are counted in the row of the layer before it.

    Raises:
        InputError: if the model calls a convolution or pooling as a function, so that its kernel is not visible.

    >>> layer_table(nn.Conv2d(1, 4, 3, padding=1), (1, 1, 8, 8))[0].multiply_adds  # 8·8 pixels · 4·1·3·3
    2304
    """
    record = _run(model, input_shape)
    rows: list[Layer] = []
    for position, step in enumerate(record.steps):
        module = step.module
        if isinstance(module, NORMS) and rows:
            norm = f"{rows[-1].kind} + {type(module).__name__}"
            rows[-1] = replace(rows[-1], kind=norm, parameters=rows[-1].parameters + count_parameters(module))
        elif isinstance(module, (*MIXING, nn.Linear)):
            rows.append(
                Layer(
                    name=record.names[module],
                    kind=_kind(module),
                    output_shape=step.output_shape,
                    parameters=count_parameters(module),
                    multiply_adds=_multiply_adds(module, step),
                    receptive_field=record.receptive_field(position),
                    memory=4 * math.prod(step.output_shape),
                )
            )
    return rows


def format_table(layers: list[Layer], input_shape: tuple[int, ...]) -> str:
    """The rows of `layer_table` as text, with their sums."""
    lines = [
        f"input {'×'.join(map(str, input_shape))}",
        f"{'layer':<18}{'kind':<35}{'output C×H×W':>15}{'parameters':>12}"
        f"{'multiply-adds':>15}{'receptive field':>17}{'memory':>11}",
    ]
    for row in layers:
        shape, field = "×".join(map(str, row.output_shape[1:])), "×".join(map(str, row.receptive_field))
        numbers = f"{row.parameters:>12,}{row.multiply_adds / 1e6:>13.1f} M{field:>17}{row.memory / 2**20:>7.2f} MiB"
        lines.append(f"{row.name:<18}{row.kind:<35}{shape:>15}{numbers}")
    parameters, products = sum(r.parameters for r in layers), sum(r.multiply_adds for r in layers)
    memory = sum(r.memory for r in layers) / 2**20
    lines.append(f"{'sum':<68}{parameters:>12,}{products / 1e6:>13.1f} M{'':>17}{memory:>7.2f} MiB")
    return "\n".join(lines)


def stages(
    model: nn.Module, input_shape: tuple[int, ...], parts: tuple[str, ...] = ("encoder", "decoder")
) -> list[Stage]:
    """The maps that the blocks `model.encoder[i]` and `model.decoder[i]` put out, in the order in which they run."""
    found: list[Stage] = []
    hooks = []
    for part in parts:
        for index, block in enumerate(getattr(model, part)):

            def note(_module: nn.Module, _inputs: Any, output: Tensor, name: str = f"{part}.{index}") -> None:
                found.append(Stage(name, *output.shape[1:]))

            hooks.append(block.register_forward_hook(note))
    try:
        _forward_once(model, torch.zeros(input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def receptive_field(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the largest receptive field of the output's pixels, by formula.

    For one output pixel o, a convolution of kernel k, stride s, padding p and dilation d needs the inputs
    o·s − p … o·s − p + (k−1)·d; a transposed one needs the i with i·s − p ≤ o ≤ i·s − p + (k−1)·d.  The ranges
    are followed back to the input, and joined where branches meet.

    >>> receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3)), (1, 1, 32, 32))
    (8, 8)
    """
    record = _run(model, input_shape)
    return record.receptive_field(len(record.steps) - 1)


def receptive_field_measured(
    model: nn.Module, input_shape: tuple[int, ...], *, trials: int = 8, seed: int = 0
) -> tuple[int, int]:
    """Height and width of the input region whose gradient at the output's middle pixel is not zero.

    Weights and inputs are made positive in a copy of the model, so that no ReLU hides a path; pooling shows only the
    winner of a window, so the region is collected over some random inputs.  The result is a lower bound.

    >>> receptive_field_measured(nn.Conv2d(1, 1, 3, padding=2, dilation=2), (1, 1, 32, 32))
    (5, 5)
    """
    model = copy.deepcopy(model).cpu().double().eval()
    for parameter in model.parameters():
        parameter.data.abs_()
    generator = torch.Generator().manual_seed(seed)
    seen = torch.zeros(input_shape[-2:], dtype=torch.bool)
    for _ in range(trials):
        images = torch.rand(input_shape, generator=generator, dtype=torch.float64).requires_grad_()
        output = model(images)
        output[..., output.shape[-2] // 2, output.shape[-1] // 2].sum().backward()
        assert images.grad is not None
        seen |= (images.grad != 0).flatten(0, 1).any(dim=0)
    rows, columns = torch.nonzero(seen.any(dim=1)), torch.nonzero(seen.any(dim=0))
    return int(rows.max() - rows.min() + 1), int(columns.max() - columns.min() + 1)


# ---- the record -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """One recorded operation: which maps it reads and writes, and which input positions an output position needs."""

    inputs: tuple[int, ...]
    output: int
    output_shape: tuple[int, ...]
    needs: Needs
    module: nn.Module | None = None
    input_shape: tuple[int, ...] = ()


class _Recorder(TorchFunctionMode):
    """Notes what happens to the maps while a model runs: its layers by hooks, all else by the functions called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.names = {module: name or type(module).__name__ for name, module in model.named_modules()}
        self.layers = [module for module in self.names if type(module).__module__.startswith("torch.nn.modules")]
        self.layers = [module for module in self.layers if not any(True for _ in module.children())]
        self._inside_layer = False
        self._alive: list[Any] = []  # the id of a tensor is unique only while it lives

    def enter_layer(self, *_: Any) -> None:
        self._inside_layer = True

    def leave_layer(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        self._inside_layer = False
        x, y = inputs[0], output[0] if isinstance(output, tuple) else output
        self._note([x], y, _needs_of_layer(module, x, y), module)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        maps = [x for x in _tensors((args, kwargs or {})) if x.is_floating_point() and x.ndim == 4]
        if not self._inside_layer and maps and isinstance(result, Tensor) and result.is_floating_point():
            self._note(maps, result, _needs_of_function(function, args, kwargs or {}, maps, result), None)
        return result

    def _note(self, inputs: list[Tensor], output: Tensor, needs: Needs, module: nn.Module | None) -> None:
        self._alive += [inputs, output]
        shape = tuple(output.shape)
        self.steps.append(_Step(tuple(map(id, inputs)), id(output), shape, needs, module, tuple(inputs[0].shape)))

    def receptive_field(self, position: int) -> tuple[int, int]:
        return self._extent(position, axis=0), self._extent(position, axis=1)

    def _extent(self, position: int, axis: int) -> int:
        """Walk back from the output of one step to the image; the widest range over a whole period of positions."""
        shape = self.steps[position].output_shape
        outputs = np.arange(min(shape[2 + axis], 64) if len(shape) == 4 else 1)
        needed: dict[int, Range] = {self.steps[position].output: (outputs, outputs)}
        for step in reversed(self.steps[: position + 1]):
            if step.output not in needed:
                continue
            low, high = step.needs(axis, needed.pop(step.output))
            for source in step.inputs:
                first, last = needed.get(source, (low, high))
                needed[source] = np.minimum(first, low), np.maximum(last, high)
        low, high = needed[self.steps[0].inputs[0]]
        return int((high - low).max()) + 1


def _run(model: nn.Module, input_shape: tuple[int, ...]) -> _Recorder:
    record = _Recorder(model)
    hooks = []
    for module in record.layers:
        hooks += [
            module.register_forward_pre_hook(record.enter_layer),
            module.register_forward_hook(record.leave_layer),
        ]
    try:
        with record:
            _forward_once(model, torch.zeros(input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return record


@torch.no_grad()
def _forward_once(model: nn.Module, images: Tensor) -> None:
    """One pass that leaves no trace: no gradient, and no running mean moved."""
    was_training = model.training
    device = next((p.device for p in model.parameters()), images.device)
    try:
        model.eval()(images.to(device))
    finally:
        model.train(was_training)


def _needs_of_layer(module: nn.Module, x: Tensor, y: Tensor) -> Needs:
    if isinstance(module, MIXING):
        kernel, stride = _pair(module.kernel_size), _pair(module.stride)
        dilation, padding = _pair(getattr(module, "dilation", 1)), module.padding
        if isinstance(padding, str):
            padding = tuple(d * (k - 1) // 2 if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True))
        spread = _scatter if isinstance(module, nn.ConvTranspose2d) else _gather
        return lambda axis, r: spread(r, kernel[axis], stride[axis], _pair(padding)[axis], dilation[axis])
    if isinstance(module, nn.Upsample):
        return _resize(x, y, module.mode, module.align_corners)
    return _same(x, y)


def _needs_of_function(function: Any, args: Any, kwargs: Any, maps: list[Tensor], y: Tensor) -> Needs:
    name = getattr(function, "__name__", "")
    if "conv" in name or "pool" in name:
        raise InputError(
            f"The model calls {name} as a function; use the nn.Module of it, so that its kernel can be read."
        )
    if name == "interpolate":
        call = inspect.signature(F.interpolate).bind(*args, **kwargs).arguments
        return _resize(maps[0], y, call.get("mode", "nearest"), call.get("align_corners"))
    if name == "__getitem__":
        return _identity  # the decoder cuts off rows and columns at the far end only
    return _same(maps[0], y)


def _identity(_axis: int, r: Range) -> Range:
    return r


def _same(x: Tensor, y: Tensor) -> Needs:
    """Pixel by pixel where the size stays; else (global pooling, flattening) everything is needed."""
    if y.ndim == x.ndim and y.shape[2:] == x.shape[2:]:
        return _identity
    return lambda axis, r: (r[0] * 0, r[1] * 0 + (x.shape[2 + axis] - 1 if x.ndim == 4 else 0))


def _gather(r: Range, k: int, s: int, p: int, d: int) -> Range:
    return r[0] * s - p, r[1] * s - p + (k - 1) * d


def _scatter(r: Range, k: int, s: int, p: int, d: int) -> Range:
    return -(((k - 1) * d - p - r[0]) // s), (r[1] + p) // s


def _resize(x: Tensor, y: Tensor, mode: str, align_corners: bool | None) -> Needs:
    scale = [y.shape[2 + axis] / x.shape[2 + axis] for axis in (0, 1)]
    if mode == "nearest":
        return lambda axis, r: (np.floor(r[0] / scale[axis]).astype(int), np.floor(r[1] / scale[axis]).astype(int))
    if mode == "bilinear" and not align_corners:
        centre = lambda o, axis: (o + 0.5) / scale[axis] - 0.5  # noqa: E731
        return lambda axis, r: (
            np.floor(centre(r[0], axis)).astype(int),
            np.ceil(centre(r[1], axis)).astype(int),
        )
    return lambda axis, r: (r[0] * 0, r[1] * 0 + x.shape[2 + axis] - 1)


def _multiply_adds(module: nn.Module, step: _Step) -> int:
    """Products of a weight with an activation."""
    if isinstance(module, nn.ConvTranspose2d):  # each input value meets the whole kernel
        return math.prod(step.input_shape) * module.out_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Conv2d):  # each output value reads the whole kernel
        return math.prod(step.output_shape) * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return math.prod(step.output_shape) * module.in_features
    return 0


def _kind(module: nn.Module) -> str:
    kernel = getattr(module, "kernel_size", None)
    return type(module).__name__ + ("" if kernel is None else " {}×{}".format(*_pair(kernel)))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
