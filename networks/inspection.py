"""What a network is made of: parameters, multiply-adds, memory, and which pixels of the image it sees.

By formula: while one image runs, PyTorch's operations are noted (`Record`).  Along one axis, position o of a
convolution of kernel k, stride s, padding p, dilation d reads the positions o·s − p … o·s − p + (k−1)·d, of a
transposed one the i with i·s − p ≤ o ≤ i·s − p + (k−1)·d.  The record is walked backwards to the image; where branches
meet, their ranges are joined.  What is not known here reads all of its input; normalisation counts as pixel by pixel.
Sources: Dumoulin and Visin, 2016 (arXiv:1603.07285); Araujo et al., 2019 (doi:10.23915/distill.00021).
"""

import copy
import math
from collections import namedtuple
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from checks import InputError

ROWS_OF_THEIR_OWN = (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d, nn.Linear)
POINTWISE = ("hardswish", "hardsigmoid", "prelu_kernel", "alias", "detach", "to_copy")  # beside what PyTorch tags so
Stage = namedtuple("Stage", "inputs channels height width")  # a box of the drawn U: channels in, and the map put out


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameters_by_formula(model: nn.Module) -> int:
    """Number of parameters, from the settings of the layers alone; `InputError` for a layer without a formula."""
    total = 0
    for layer in (module for module in model.modules() if list(module.parameters(recurse=False))):
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            outputs, each = layer.out_channels, math.prod(layer.kernel_size) * layer.in_channels // layer.groups
        elif isinstance(layer, nn.Linear):
            outputs, each = layer.out_features, layer.in_features
        elif isinstance(layer, (nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm)):
            outputs, each = layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features, 1
        else:
            raise InputError(f"There is no formula for the parameters of a {type(layer).__name__}; add it here.")
        total += outputs * (each + (layer.bias is not None))
    return total


# One row of the layer table: field and stride in pixels of the image, memory in bytes of the float32 output.
Layer = namedtuple("Layer", "name kind output_shape parameters multiply_adds receptive_field stride memory")


def layer_table(model: nn.Module, input_shape: tuple[int, ...]) -> list[Layer]:
    """Rows for all convolutions, poolings and dense layers, in the order in which they run on (B, C, H, W).

    A normalisation has its parameters in the row of the layer before it; those of a layer that runs twice count once.
    """
    record = Record(model, input_shape)
    names = {module: name or type(module).__name__ for name, module in record.model.named_modules()}
    rows, counted = list[Layer](), set[nn.Module]()
    for number, layer in record.layers.items():
        step, shape = record.steps[number], tuple(record.steps[number].output.shape)
        parameters = 0 if layer in counted else count_parameters(layer)
        counted.add(layer)
        kind, weight = type(layer).__name__, getattr(layer, "weight", None)
        if isinstance(layer, ROWS_OF_THEIR_OWN) or (parameters and not rows):
            kind += " {}×{}".format(*_pair(layer.kernel_size)) if hasattr(layer, "kernel_size") else ""
            # An output value reads the whole kernel; in a transposed convolution, an input value meets it.
            values = math.prod(step.input_shape if isinstance(layer, nn.ConvTranspose2d) else shape)
            products = values * weight[0].numel() if weight is not None and weight.ndim > 1 else 0
            seen = record.field(number), tuple(map(float, step.stride)), 4 * math.prod(shape)
            rows.append(Layer(names[layer], kind, shape, parameters, products, *seen))
        elif parameters:
            rows[-1] = rows[-1]._replace(kind=f"{rows[-1].kind} + {kind}", parameters=rows[-1].parameters + parameters)
    return rows


def format_table(layers: list[Layer], input_shape: tuple[int, ...]) -> str:
    """The rows of `layer_table` as text, with their sums."""
    parameters, products, memory = (sum(numbers) for numbers in zip(*((r[3], r[4], r[7]) for r in layers)))
    lines = [("layer", "kind", "output C×H×W", "parameters", "mult-adds", "field", "stride", "memory")]
    for row in [*layers, Layer("sum", "", (), parameters, products, (), (), memory)]:
        shape, field = ("×".join(map(str, sizes)) for sizes in (row.output_shape[1:], row.receptive_field))
        numbers = f"{row.parameters:,}", f"{row.multiply_adds / 1e6:,.1f} M", field
        stride = "×".join(f"{s:.3g}" for s in row.stride)
        lines.append((row.name, row.kind, shape, *numbers, stride, f"{row.memory / 2**20:.2f} MiB"))
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = ["  ".join(f"{x:{'<>'[i > 1]}{widths[i]}}" for i, x in enumerate(line)) for line in lines]
    return "\n".join([f"input {'×'.join(map(str, input_shape))}; field and stride in pixels of the image", *rows])


def stages(model: nn.Module, input_shape: tuple[int, ...]) -> list[Stage]:
    """The maps that the blocks `model.encoder[i]` and `model.decoder[i]` put out, in the order in which they run."""
    modules, found = dict(model.named_modules()), dict[str, Stage]()
    for row in layer_table(model, input_shape):
        block = ".".join(row.name.split(".")[:2])
        if block.startswith(("encoder.", "decoder.")):
            inputs = found[block].inputs if block in found else modules[row.name].in_channels
            found[block] = Stage(inputs, *row.output_shape[1:])
    return list(found.values())


def receptive_field(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width, in pixels of the image, of the largest field of all pixels of the first output, with padding.

    >>> receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3)), (1, 1, 32, 32))
    (8, 8)
    """
    record = Record(model, input_shape)
    return record.field(record.last)


def reach(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """How far, in pixels, an output pixel can lie from an image pixel that it depends on: the margin of a tile."""
    record = Record(model, input_shape)
    ranges = [record.ranges(record.last, axis) for axis in (0, 1)]
    return max(int(max((np.arange(len(a)) - a).max(), (b - np.arange(len(b))).max())) for a, b in ranges)


def output_stride(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[float, ...]:
    """By how many pixels of the image (rows, columns) the field moves from one output pixel to the next; maybe 0."""
    record = Record(model, input_shape)
    return tuple(map(float, record.steps[record.last].stride))


def pixel_field(
    model: nn.Module, input_shape: tuple[int, ...], pixel: tuple[int, int] | None = None
) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of what an output pixel, default the middle one, sees of the image and its padding."""
    record = Record(model, input_shape)
    (tops, bottoms), (lefts, rights) = (record.ranges(record.last, axis) for axis in (0, 1))
    row, column = pixel or (len(tops) // 2, len(lefts) // 2)
    return int(tops[row]), int(lefts[column]), int(bottoms[row]), int(rights[column])


# Output position o reads the input positions ⌈(step·o + first) / parts⌉ … ⌊(step·o + last) / parts⌋
Window = namedtuple("Window", "step first last parts", defaults=(1, 0, 0, 1))
# One operation: the maps that it reads (by id), each with its windows along both axes, and the map that it writes
Step = namedtuple("Step", "sources output stride input_shape")


class Record(TorchDispatchMode):
    """What happens to one image in a copy of a model: `steps`, the image first; number `last` made the output."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().eval()
        image = torch.zeros(input_shape).to(next(self.model.parameters(), torch.zeros(())))
        self.steps = [Step([], image, (Fraction(1), Fraction(1)), ())]
        self.layers = dict[int, nn.Module]()  # of the steps that belong to one, by number
        self._writers = {id(image): 0}  # last step of each map; it keeps it alive, so the id stays unique
        for leaf in (module for module in self.model.modules() if not list(module.children())):
            leaf.register_forward_hook(self._name_step)
        with self, torch.no_grad():
            self.last = self._writers.get(id(_tensors(self.model(image))[0]), 0)
        if not self.last:
            raise InputError("The output cannot be followed back to the image: no float tensor is made from it.")

    def field(self, position: int) -> tuple[int, ...]:
        """Height and width of the largest field of the pixels of one step's output."""
        return tuple(int((high - low).max()) + 1 for low, high in (self.ranges(position, axis) for axis in (0, 1)))

    def ranges(self, position: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """First and last image row or column that each output position of one step reads: walk back to the image."""
        outputs = np.arange(_sizes(self.steps[position].output.shape)[axis])
        needed = {id(self.steps[position].output): (outputs, outputs)}
        for step in self.steps[position:0:-1]:
            if id(step.output) not in needed:
                continue
            low, high = needed.pop(id(step.output))
            for source, windows in step.sources:
                w = windows[axis]
                first, last = -(-(w.step * low + w.first) // w.parts), (w.step * high + w.last) // w.parts
                known = needed.get(source, (first, last))
                needed[source] = np.minimum(first, known[0]), np.maximum(last, known[1])
        return needed[id(self.steps[0].output)]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = function(*args, **(kwargs or {})), function.overloadpacket.__name__
        maps = [x for x in _tensors((args, kwargs)) if id(x) in self._writers]
        if maps and name == "copy_":
            raise InputError("A map is written into another one, as by y[…] = x, which cannot be followed.")
        written = [y for y in _tensors(result) if maps and y.is_floating_point()]  # not the indices of pooling
        for y in written[:1] if "norm" in name else written:  # not the means and deviations
            sources = [(id(x), _windows(function, args, kwargs or {}, x, y)) for x in maps]
            strides = [self.steps[self._writers[source]].stride for source, _ in sources]
            moves = [[j * Fraction(w.step, w.parts) for j, w in zip(js, ws)] for js, (_, ws) in zip(strides, sources)]
            self._writers[id(y)] = len(self.steps)
            self.steps.append(Step(sources, y, tuple(map(max, zip(*moves))), tuple(maps[0].shape)))
        return result

    def _name_step(self, layer: nn.Module, _inputs: Any, result: Any) -> None:
        if (number := self._writers.get(id(_tensors(result)[0]))) is not None:
            self.layers.setdefault(number, layer)


def _windows(function: Any, args: Any, kwargs: Any, x: Tensor, y: Tensor) -> list[Window]:
    """The windows along rows and columns through which a function reads its argument `x` for its result `y`."""
    defaults = {argument.name: argument.default_value for argument in function._schema.arguments}
    call, name = defaults | dict(zip(defaults, args)) | kwargs, function.overloadpacket.__name__.strip("_")
    before, after = _sizes(x.shape), _sizes(y.shape)
    is_pixelwise = torch.Tag.pointwise in function.tags or name in POINTWISE or "_norm" in name
    is_pixelwise |= name in ("cat", "softmax", "log_softmax") and call["dim"] in (1, 1 - x.ndim)
    is_pixelwise |= name == "view" and x.shape[-2:] == y.shape[-2:]
    if is_pixelwise:
        return [Window() if b == a else Window(0, 0, b - 1) for b, a in zip(before, after)]  # one row is repeated
    if name in ("convolution", "max_pool2d_with_indices", "avg_pool2d"):
        kernel = call["weight"].shape[2:] if "weight" in call else call["kernel_size"]
        numbers = call["stride"] or kernel, call["padding"], call.get("dilation", [1])
        settings = [(s, p, (k - 1) * d) for k, s, p, d in zip(kernel, *((n[0], n[-1]) for n in numbers))]
        if call.get("transposed"):
            return [Window(1, p - span, p, s) for s, p, span in settings]
        return [Window(s, -p, span - p) for s, p, span in settings]
    ratios = [Fraction(b, a).as_integer_ratio() for b, a in zip(before, after)]  # p/q input pixels an output pixel
    if name in ("pixel_shuffle", "pixel_unshuffle"):
        return [Window(p, 1 - q, p - 1, q) for p, q in ratios]
    scales = call.get("scales_h"), call.get("scales_w")
    is_exact = all(s is None or b * s == a for b, a, s in zip(before, after, scales))
    if name == "upsample_nearest2d" and is_exact:  # ⌊o·p/q⌋
        return [Window(p, 1 - q, 0, q) for p, q in ratios]
    if name == "upsample_bilinear2d" and is_exact and not call["align_corners"]:  # the two around (o + ½)·p/q − ½
        return [Window(2 * p, p - 3 * q + 1, p + q - 1, 2 * q) for p, q in ratios]
    if name == "slice":
        start, _, step = slice(call["start"], call["end"], call["step"]).indices(x.shape[call["dim"]])
        return [Window(step, start, start) if call["dim"] % x.ndim == x.ndim - n else Window() for n in (2, 1)]
    if name in ("constant_pad_nd", "replication_pad2d", "reflection_pad2d"):
        left, _, top, _ = [*args[1], 0, 0][:4]
        return [Window(1, -top, -top), Window(1, -left, -left)]
    return [Window(0, 0, size - 1) for size in before]


def _sizes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a map (…, H, W); a vector (B, C) is one pixel."""
    return (shape[-2], shape[-1]) if len(shape) > 2 else (1, 1)


def receptive_field_measured(model: nn.Module, input_shape: tuple[int, ...], *, trials: int = 8) -> tuple[int, int]:
    """Height and width of the box around the pixels whose gradient at the middle output pixel is not zero.

    In a copy of the model all weights are random and positive, so that no ReLU hides a path; pooling shows only the
    winner of a window, so pixels are collected over `trials` random images.  A lower bound, inside the image.
    """
    generator, model = torch.Generator().manual_seed(0), copy.deepcopy(model).cpu().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    for parameter in model.parameters():  # of a size that keeps values near 1
        parameter.data.uniform_(0.5, 1.5, generator=generator).div_(parameter[0].numel() if parameter.ndim > 1 else 100)
    images = [torch.rand(input_shape, generator=generator, dtype=torch.float64) for _ in range(trials)]
    _, _, rows, columns = torch.nonzero(torch.cat([_gradient(model, x) for x in images]), as_tuple=True)
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


def effective_receptive_field(model: nn.Module, images: Tensor) -> tuple[Tensor, float]:
    """How much each pixel of images (B, C, H, W) counts for the middle output pixel y: mean |∂y / ∂x|, (H, W), sum 1.

    And the side of the square with as many pixels as have more than 4.55 % of the largest value.  y is the sum over the
    channels of the raw output, in eval mode.  Luo et al., 2016 (arXiv:1701.04128).
    """
    field = _gradient(model, images).abs().mean(dim=(0, 1)).cpu()
    return field / field.sum(), float((field > (1 - 0.9545) * field.max()).sum()) ** 0.5


def _gradient(model: nn.Module, images: Tensor) -> Tensor:
    """Gradient (B, C, H, W) of the middle output pixel, the sum of its channels, on the model's device."""
    images = images.detach().to(next((p.device for p in model.parameters()), images.device)).requires_grad_()
    output = _tensors(copy.deepcopy(model).eval()(images.clone()))[0]  # a model may change its input in place
    if output.ndim > 2:
        output = output[..., output.shape[-2] // 2, output.shape[-1] // 2]
    (gradient,) = torch.autograd.grad(output.sum(), images, materialize_grads=True)
    if not gradient.any():
        raise InputError("No pixel has a gradient: the middle output pixel is the same for all images (dead ReLUs?).")
    return gradient


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
