"""Write a trained model into files that need none of our code, and check them.

`save` writes `NAME.pt2` (see `modelfile.py`) and beside it `NAME.onnx`, which runs wherever there is an ONNX runtime:
in browsers, on telephones, in C++.  Each file is loaded again and compared with the model before it gets its name.

The model is traced once, with one image.  What Python decides in `forward` is then fixed, such as "this map has the
right size, nothing to cut".  So the traced image is odd on every level of a network, where every cut is a real one; the
file then takes images of every size.

Sources: torch.export, https://docs.pytorch.org/docs/stable/export.html; ONNX, https://onnx.ai.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from checks import IGNORE_INDEX, InputError
from training.atomic import write_atomically
from training.modelfile import CARD, Card, as_text, first_line, pack, quiet, unpack
from training.tiles import margin_of

TOLERANCE = 1e-4
"""Largest difference of a file's logits from those of the model, as a share of the largest logit (or of 1)."""

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# B, H, W of the images that model and file are compared on
_SIZES = ((1, 64, 96), (2, 101, 77), (1, 193, 129), (1, 50, 128), (3, 17, 8), (1, 2, 5), (1, 1, 1))
_EXAMPLE = (2, 193, 129)  # B, H, W of the traced image: 193 → 97 → 49 → 25 → 13 → 7, odd on every level


def save(
    model: nn.Module,
    path: str | Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] = (),
    onnx: bool | None = None,
    say: Callable[[str], object] = print,
) -> Path:
    """Write `path` (NAME.pt2) and NAME.onnx from a trained model, compare both with it, and return `path`.

    The files are compared on random images of several sizes, odd ones too: |difference| ≤ `TOLERANCE` · max(1, |z|)
    for the largest logit z.  Older files of these names are replaced only by checked ones.

    Args:
        model: maps images (B, C, H, W) to logits (B, K, H, W); it stays as it is.
        path: ends in .pt2.
        mean: of each channel, as in training: `SegmentationDataset.mean`.
        std: the same.
        class_names: default "background", "class 1", …
        onnx: False writes no NAME.onnx; True raises where it cannot be written; None says why in a sentence.
        say: gets one line for each file.

    Raises:
        InputError: if the settings do not fit the model, it cannot be traced for all sizes, or a file differs from it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.pt2"
    >>> from training import modelfile
    >>> path = save(nn.Conv2d(1, 2, 3, padding=1), path, mean=[0.5], std=[0.2], onnx=False, say=lambda line: None)
    >>> model = modelfile.load(path)
    >>> model.card.class_names, model(torch.zeros(1, 1, 7, 5)).shape
    (('background', 'class 1'), torch.Size([1, 2, 7, 5]))
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise InputError(f"export.save: path is {str(path)!r}; expected a name that ends in .pt2.")
    network = copy.deepcopy(getattr(model, "_orig_mod", model))  # a compiled model holds the plain one
    network = network.cpu().float().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    card = _make_card(network, mean, std, class_names)
    program = _trace(network, card.channels)
    content = pack(program, card)
    difference = _compare(path.name, unpack(content, path.name), network, card)
    beside = path.with_suffix(".onnx")
    onnx_content, line = _onnx_or_reason(program, network, card, beside.name, onnx)
    write_atomically(path, content)
    say(f"{path.name}: {len(content) / 1e6:.1f} MB, checked: largest difference to the model {difference:.0e}")
    if onnx_content is not None:
        write_atomically(beside, onnx_content)
    else:
        beside.unlink(missing_ok=True)  # an older model must not lie beside this one
    if line:
        say(line)
    return path


def _make_card(network: nn.Module, mean: Any, std: Any, class_names: Sequence[str]) -> Card:
    mean, std = (tuple(float(value) for value in values) for values in (mean, std))
    if not mean or len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise InputError(
            f"export.save: mean={mean}, std={std}; expected one finite number for each channel, and std > 0.\n"
            "Take those of the training set: dataset.mean and dataset.std."
        )
    shape = _output_shape(network, len(mean))
    K = max(shape[1], 2)
    names = tuple(class_names) or ("background", *(f"class {k}" for k in range(1, K)))
    if len(names) != K or K > IGNORE_INDEX:
        raise InputError(
            f"export.save: class_names has {len(names)} names, the model {K} classes; "
            f"expected one name for each class, and at most {IGNORE_INDEX}."
        )
    return Card(names, mean, std, margin=margin_of(network, len(mean)))


def _output_shape(network: nn.Module, channels: int) -> tuple[int, ...]:
    """The shape of the logits of one image, which must be (1, K, H, W)."""
    _, H, W = _EXAMPLE
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, channels, H, W))
    except Exception as error:  # whatever a model raises for an image
        raise InputError(
            f"export.save: the model cannot take an image of {channels} channel(s) and {H} × {W} pixels.\n"
            f"It says: {first_line(error)}\nmean and std must have one number for each channel."
        ) from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[2:] != (H, W):
        raise InputError(f"export.save: for an image {(1, channels, H, W)} the model gives {found}, not (1, K, H, W).")
    return tuple(logits.shape)


def _trace(network: nn.Module, channels: int) -> ExportedProgram:
    """The graph of the network, for images of any number, height and width."""
    B, H, W = _EXAMPLE
    any_size = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    try:
        with quiet():
            example = torch.zeros(B, channels, H, W)
            program = torch.export.export(network, (example,), dynamic_shapes=(any_size,), strict=False)
    except Exception as error:  # torch.export raises nearly everything
        raise InputError(
            f"export.save: torch.export cannot trace {type(network).__name__} for images of every size.\n"
            f"It says: {first_line(error)}\n"
            "The forward of the model must not decide by values of the image, nor want one fixed size."
        ) from error
    for symbol, limits in program.range_constraints.items():
        # "At least 17", as the lowest map was larger than one pixel; but the graph is right from 1 × 1 on (`_compare`).
        program.range_constraints[symbol] = type(limits)(1, limits.upper)
    return program


def _compare(name: str, found: Callable[[Tensor], Tensor], network: nn.Module, card: Card) -> float:
    """Largest difference of the logits, as a share of the largest logit; above `TOLERANCE` an `InputError`."""
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for B, H, W in _SIZES:
        images = torch.randn(B, card.channels, H, W, generator=generator)
        with torch.no_grad():
            try:
                wanted = network(images)
            except Exception:  # a network may have a least size of its own; `_output_shape` has seen one that works
                continue
            difference = float((found(images) - wanted).abs().max() / wanted.abs().max().clamp(min=1))
        if not difference <= TOLERANCE:  # NaN as well
            raise InputError(
                f"export.save: {name} gives other logits than the model for images {tuple(images.shape)}.\n"
                f"Relative difference {difference:.1e}, allowed {TOLERANCE:.0e}; nothing was written.\n"
                "NaN: the weights are not finite.  Else its forward decides something by the size of the image."
            )
        largest = max(largest, difference)
    return largest


# ---- ONNX -----------------------------------------------------------------------------------------------------------


def _onnx_or_reason(
    program: ExportedProgram, network: nn.Module, card: Card, name: str, wanted: bool | None
) -> tuple[bytes | None, str]:
    """The content of the ONNX file, or None, and the line to say."""
    if wanted is False:
        return None, ""
    try:
        missing = [package for package in ONNX_PACKAGES if importlib.util.find_spec(package) is None]
        if missing:
            raise InputError(f"{name} is not written: it needs more packages. pip install {' '.join(missing)}")
        content = _to_onnx(program, card, name)
        difference = _compare(name, _OnnxModel(content), network, card)
    except InputError as error:
        if wanted:
            raise
        return None, str(error)
    return content, f"{name}: {len(content) / 1e6:.1f} MB, checked: largest difference to the model {difference:.0e}"


def _to_onnx(program: ExportedProgram, card: Card, name: str) -> bytes:
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            made: Any = torch.onnx.export(
                program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
            )
            proto = made.model_proto
    except Exception as error:
        raise InputError(
            f"{name} is not written: torch {torch.__version__} cannot translate the model to ONNX.\n"
            f"It says: {first_line(error)}\n"
            f"Often these packages are older than torch: pip install -U {' '.join(ONNX_PACKAGES)}"
        ) from error
    entry = proto.metadata_props.add()
    entry.key, entry.value = CARD, as_text(card)
    return proto.SerializeToString()


class _OnnxModel:
    """Logits of the ONNX file, by onnxruntime on the CPU."""

    def __init__(self, content: bytes) -> None:
        onnxruntime: Any = importlib.import_module("onnxruntime")
        self._session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        (name,) = (entry.name for entry in self._session.get_inputs())
        return torch.from_numpy(self._session.run(None, {name: images.numpy()})[0])
