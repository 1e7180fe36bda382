"""What a network is made of: shapes, parameters, multiply-adds, memory, and what every layer sees of the image.

The parameters are found in two ways: by counting the numbers in the tensors, and by formula from the settings of the
layers.  Receptive field and stride come from the record of a run, see `receptive_field.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from checks import InputError
from networks.record import Record, Step, run_once
from networks.windows import MIXING, pair


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


def layer_table(model: nn.Module, input_shape: tuple[int, ...]) -> list[Layer]:
    """Rows for all convolutions, poolings and dense layers, in the order in which they run on (B, C, H, W).

    The parameters of a normalisation are counted in the row of the layer before it; those of a layer that runs twice,
    in its first row.

    Raises:
        InputError: if the model calls a convolution or pooling as a function, so that its kernel is not visible.

    >>> layer_table(nn.Conv2d(1, 4, 3, padding=1), (1, 1, 8, 8))[0].multiply_adds  # 8·8 pixels · 4·1·3·3
    2304
    """
    record = Record(model, input_shape)
    rows: list[Layer] = []
    counted: set[nn.Module] = set()
    for position, step in enumerate(record.steps):
        if step.module is None:
            continue
        parameters = count_parameters(step.module) if step.module not in counted else 0
        counted.add(step.module)
        if isinstance(step.module, (*MIXING, nn.Linear)) or (parameters and not rows):
            rows.append(_row(record, position, step.module, parameters))
        elif parameters:
            kind = f"{rows[-1].kind} + {type(step.module).__name__}"
            rows[-1] = replace(rows[-1], kind=kind, parameters=rows[-1].parameters + parameters)
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
    hooks = []
    for part in parts:
        for index, block in enumerate(getattr(model, part)):

            def note(_module: nn.Module, _inputs: Any, output: Tensor, name: str = f"{part}.{index}") -> None:
                found.append(Stage(name, *output.shape[1:]))

            hooks.append(block.register_forward_hook(note))
    try:
        run_once(model, torch.zeros(input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _row(record: Record, position: int, module: nn.Module, parameters: int) -> Layer:
    step = record.steps[position]
    return Layer(
        name=record.names[module],
        kind=_kind(module),
        output_shape=step.output_shape,
        parameters=parameters,
        multiply_adds=_multiply_adds(module, step),
        receptive_field=record.field(position),
        stride=record.stride(position),
        memory=4 * math.prod(step.output_shape),
    )


def _weights_and_outputs(module: Any, name: str) -> tuple[int, int]:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
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


def _multiply_adds(module: nn.Module, step: Step) -> int:
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
    return type(module).__name__ + ("" if kernel is None else " {}×{}".format(*pair(kernel)))
