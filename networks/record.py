"""The record of one image that runs through a model: which operation read which map, through which windows.

Nothing in the model has to be prepared.  PyTorch's own layers are noted by hooks, which know the settings of the layer;
everything else by the functions that are called (`torch.overrides`).  Only maps that depend on the image are followed.
Walking the record backwards, from output positions to the image, gives what they can see: the ranges of branches are
joined where they meet.  Used by `receptive_field.py` and `inspection.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from checks import InputError
from networks.windows import Windows, sizes, windows_of_function, windows_of_layer


@dataclass(frozen=True)
class Step:
    """One recorded operation: what it reads through which windows, and what it writes; maps are known by their id."""

    sources: tuple[tuple[int, Windows], ...]
    output: int
    output_size: tuple[int, int]
    stride: tuple[Fraction, Fraction]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    module: nn.Module | None


class Record(TorchFunctionMode):
    """What happens to an image in a model: its PyTorch layers noted by hooks, all else by the functions called.

    Attributes:
        steps: in the order in which they ran.
        names: module → its name in the model.
        last: the number of the step that made the model's output.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.names = {module: name or type(module).__name__ for name, module in model.named_modules()}
        self._strides: dict[int, tuple[Fraction, Fraction]] = {}  # of all maps that depend on the image
        self._alive: list[Tensor] = []  # the id of a tensor is unique only while it lives
        self._inside_layer = False
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        image = torch.zeros(input_shape, device=like.device, dtype=like.dtype)
        self._image = self._keep(image, (Fraction(1), Fraction(1)))
        hooks = [hook for module in self.names if _is_layer(module) for hook in self._hooks(module)]
        try:
            with self:
                output = run_once(model, image)
        finally:
            for hook in hooks:
                hook.remove()
        self.last = self._find(output)

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
            outputs = np.arange(self.steps[position].output_size[axis])
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
        if not self._inside_layer:
            written = args[0] if getattr(function, "__name__", "") == "__setitem__" else result
            for y in tensors_in(written):
                self._note((args, kwargs), y, lambda x, y=y: windows_of_function(function, args, kwargs, x, y))
        return result

    def _hooks(self, layer: nn.Module) -> list[Any]:
        def enter(*_: Any) -> None:
            self._inside_layer = True

        def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            self._inside_layer = False
            y = next(tensors_in(result))
            self._note((args, kwargs), y, lambda x: windows_of_layer(module, x, y), module)

        return [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave, with_kwargs=True)]

    def _note(self, arguments: Any, y: Tensor, windows: Any, module: nn.Module | None = None) -> None:
        maps = [x for x in tensors_in(arguments) if id(x) in self._strides]
        if not maps or not y.is_floating_point():  # indices and masks are not followed, as gradients are not
            return
        sources = tuple((id(x), windows(x)) for x in maps)
        strides = [[self._strides[source][axis] * w[axis].stride for source, w in sources] for axis in (0, 1)]
        stride = max(strides[0]), max(strides[1])
        shapes = tuple(maps[0].shape), tuple(y.shape)
        self.steps.append(Step(sources, self._keep(y, stride), sizes(y), stride, *shapes, module))

    def _keep(self, tensor: Tensor, stride: tuple[Fraction, Fraction]) -> int:
        self._alive.append(tensor)
        self._strides[id(tensor)] = stride
        return id(tensor)

    def _find(self, output: Any) -> int:
        wanted = id(next(tensors_in(output), None))
        for position in reversed(range(len(self.steps))):
            if self.steps[position].output == wanted:
                return position
        raise InputError("The output cannot be followed back to the image; it must be a float tensor made from it.")


@torch.no_grad()
def run_once(model: nn.Module, images: Tensor) -> Any:
    """One pass in eval mode that leaves no trace in the model: no gradient, and no running mean moved."""
    device = next((p.device for p in model.parameters()), images.device)
    with in_eval_mode(model):
        return model(images.to(device))


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


def _is_layer(module: nn.Module) -> bool:
    """A layer of PyTorch; an empty nn.Sequential is none."""
    if isinstance(module, nn.Sequential) or any(True for _ in module.children()):
        return False
    return type(module).__module__.startswith("torch.nn.modules")


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors of a nested list, tuple or dict, in their order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))
