"""A trained model as one file that needs none of our code, and its use on images of any size.

`save` writes NAME.pt2, which holds the graph of the model and its weights as `torch.export` sees them, and a card: what
a program must know to use the model.  Beside it lies NAME.onnx, for wherever there is an ONNX runtime: browsers,
telephones, C++.  Each file is loaded again and compared with the model before it gets its name.  PyTorch's reader may
run code that a file brings: open only files that you trust.

`predict_tiled` cuts a large image into pieces, so that memory stays bounded and the result is that of the whole image.
A piece is a square of the image, its *core*, with a *margin* around it that is thrown away.  Inside the core no pixel
can tell that the image was cut, if the margin is as wide as the receptive field reaches: `margin_of`.

Sources: torch.export, https://docs.pytorch.org/docs/stable/export.html; ONNX, https://onnx.ai.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from checks import InputError
from networks.inspection import Record, is_norm, reach
from training.checkpoint import is_damaged, replacing

FORMAT, VERSION = "segmentation model", 1
CARD = "segmentation.json"
CPU = torch.device("cpu")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Largest difference of a file's logits from those of the model, as a share of the largest logit (or of 1)."""
GRID = 64
"""Pieces begin at multiples of this, so that the windows of up to six poolings by 2 lie as in the whole image."""

Network = Callable[[Tensor], Tensor]
# B, H, W of the traced image: 193 → 97 → 49 → 25 → 13 → 7 is odd on every level of a network.  What Python decides in
# `forward` is fixed by it, such as "this map has the right size, nothing to cut"; here every cut is a real one.
_EXAMPLE = (2, 193, 129)
_SIZES = ((1, 64, 96), (2, 101, 77), (1, 193, 129), (1, 50, 128), (3, 17, 8), (1, 2, 5), (1, 1, 1))  # to compare on


@dataclass(frozen=True)
class Card:
    """What a program must know to use a model.

    Attributes:
        class_names: one for each class, class 0 first.  A model with one output channel has two classes.
        mean: of each channel, for images with integers scaled to 0 … 1; see `hdf5.normalise_image`.
        std: the same.
        margin: how far the receptive field reaches, for `predict_tiled`; None: large images must stay whole.
        torch: the version that wrote the file.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    margin: int | None = None
    torch: str = str(torch.__version__)

    @property
    def channels(self) -> int:
        """C of the images."""
        return len(self.mean)


@dataclass(frozen=True)
class ExportedModel:
    """A model read back from its file."""

    card: Card
    network: Network
    device: torch.device = CPU

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) on the model's device, for normalised images (B, C, H, W) of any size."""
        if images.ndim != 4 or images.shape[1] != self.card.channels:
            raise InputError(
                f"The model takes images (B, {self.card.channels}, H, W); found the shape {tuple(images.shape)}."
            )
        return self.network(images.to(self.device, torch.float32))


# ---- write ----------------------------------------------------------------------------------------------------------


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
    >>> path = save(nn.Conv2d(1, 2, 3, padding=1), path, mean=[0.5], std=[0.2], onnx=False, say=lambda line: None)
    >>> model = load(path)
    >>> model.card.class_names, model(torch.zeros(1, 1, 7, 5)).shape
    (('background', 'class 1'), torch.Size([1, 2, 7, 5]))
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise InputError(f"modelfile.save: path is {str(path)!r}; expected a name that ends in .pt2.")
    network: Any = copy.deepcopy(model).cpu().float().eval()
    network = network.to(memory_format=torch.contiguous_format)
    program = _trace(network, len(mean))
    card = _make_card(network, mean, std, class_names)
    text, buffer = json.dumps({"format": FORMAT, "version": VERSION, **asdict(card)}), io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={CARD: text})
    contents, beside = {path: buffer.getvalue()}, path.with_suffix(".onnx")
    lines = [_compared(path, contents[path], unpack(contents[path], path.name), network, card)]
    try:
        if onnx is not False:
            content = _to_onnx(program, text)
            lines.append(_compared(beside, content, _onnx_model(content), network, card))
            contents[beside] = content
    except InputError as error:
        if onnx:
            raise
        lines.append(f"{beside.name} is not written. {error}")
    beside.unlink(missing_ok=True)  # an older model must not lie beside this one
    for file, content in contents.items():
        with replacing(file) as part:
            part.write_bytes(content)
    for line in lines:
        say(line)
    return path


def _trace(network: nn.Module, channels: int) -> ExportedProgram:
    """The graph of the network, for images of any number, height and width."""
    B, H, W = _EXAMPLE
    any_size = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    try:
        with _quiet():
            example = torch.zeros(B, channels, H, W)
            program = torch.export.export(network, (example,), dynamic_shapes=(any_size,), strict=False)
    except Exception as error:  # torch.export raises nearly everything
        raise InputError(
            f"modelfile.save: torch.export cannot trace the model for images ({B}, {channels}, {H}, {W}).\n"
            f"It says: {_first_line(error)}\nmean and std must have one number for each channel, and the forward of "
            "the model must not decide by values of the image, nor want one fixed size."
        ) from error
    for symbol, limits in program.range_constraints.items():
        # "At least 17", as the lowest map was larger than one pixel; but the graph is right from 1 × 1 on (`_SIZES`).
        program.range_constraints[symbol] = type(limits)(1, limits.upper)
    return program


@torch.no_grad()
def _make_card(network: nn.Module, mean: Sequence[float], std: Sequence[float], class_names: Sequence[str]) -> Card:
    _, H, W = _EXAMPLE
    logits = network(torch.zeros(1, len(mean), H, W))
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[2:] != (H, W):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"modelfile.save: for an image of {H} × {W} the model gives {found}, not (1, K, H, W).")
    K = max(logits.shape[1], 2)
    names = tuple(class_names) or ("background", *(f"class {k}" for k in range(1, K)))
    if len(names) != K or len(mean) != len(std) or not min(std) > 0:
        raise InputError(
            f"modelfile.save: {len(names)} class_names for {K} classes, mean={list(mean)}, std={list(std)}.\n"
            "Expected one name for each class, and dataset.mean and dataset.std of the training set."
        )
    return Card(names, tuple(map(float, mean)), tuple(map(float, std)), margin_of(network, len(mean)))


@torch.no_grad()
def _compared(path: Path, content: bytes, found: Network, network: nn.Module, card: Card) -> str:
    """The line to say about a file, if its logits are those of the model."""
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for B, H, W in _SIZES:
        images = torch.randn(B, card.channels, H, W, generator=generator)
        try:
            wanted = network(images)
        except Exception:  # a network may have a least size of its own; `_channels_out` has seen one that works
            continue
        difference = float((found(images) - wanted).abs().max() / wanted.abs().max().clamp(min=1))
        if not difference <= TOLERANCE:  # NaN as well
            raise InputError(
                f"modelfile.save: {path.name} gives other logits than the model for images {tuple(images.shape)}.\n"
                f"Relative difference {difference:.1e}, allowed {TOLERANCE:.0e}; nothing was written.\n"
                "NaN: the weights are not finite.  Else its forward decides something by the size of the image."
            )
        largest = max(largest, difference)
    return f"{path.name}: {len(content) / 1e6:.1f} MB, checked: largest difference to the model {largest:.0e}"


def _to_onnx(program: ExportedProgram, card: str) -> bytes:
    if missing := [package for package in ONNX_PACKAGES if importlib.util.find_spec(package) is None]:
        raise InputError(f"It needs more packages: pip install {' '.join(missing)}")
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    try:
        with _quiet(), contextlib.redirect_stdout(io.StringIO()):
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except Exception as error:
        raise InputError(
            f"torch {torch.__version__} cannot translate the model to ONNX: {_first_line(error)}\n"
            f"Often these packages are older than torch: pip install -U {' '.join(ONNX_PACKAGES)}"
        ) from error
    entry = made.model_proto.metadata_props.add()
    entry.key, entry.value = CARD, card
    return made.model_proto.SerializeToString()


def _onnx_model(content: bytes) -> Network:
    """Logits of an ONNX file, by onnxruntime on the CPU."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of PyTorch's exporters on their own inner workings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:150]}".rstrip(": ")


# ---- read -----------------------------------------------------------------------------------------------------------


def load(path: str | Path, device: str | torch.device = "cpu") -> ExportedModel:
    """Read a model that `save` wrote.

    Raises:
        InputError: if there is no such file, or it is damaged, of another program, or of a newer version.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Expected a file of modelfile.save.") from error
    return unpack(content, path.name, torch.device(device))


def unpack(content: bytes, name: str, device: torch.device = CPU) -> ExportedModel:
    """The model in the content of a file; `name` is for messages."""
    card = _read_card(content, name)
    try:
        with _quiet():
            program = torch.export.load(io.BytesIO(content))
            if device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, device)
    except Exception as error:
        raise InputError(
            f"{name} cannot be loaded by torch {torch.__version__}; torch {card.torch} wrote it.\n"
            f"It says: {_first_line(error)}\nUse that version, or write the model again with modelfile.save."
        ) from error
    try:  # a guard refuses an even size where the traced one was odd, although the graph is right for both
        return ExportedModel(card, program.module(check_guards=False), device)
    except TypeError:  # torch < 2.9 has no guards
        return ExportedModel(card, program.module(), device)


def _read_card(content: bytes, name: str) -> Card:
    """The card inside a file whose checksums are all right."""
    if is_damaged(content):
        raise InputError(f"{name} is no model file, or it is damaged. Copy it again, or write it with modelfile.save.")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        card = next((archive.read(entry) for entry in archive.namelist() if entry.endswith(CARD)), b"{}")
    fields: dict[str, Any] = json.loads(card)
    kind, version = fields.pop("format", "file without a card, or cut off"), fields.pop("version", 0)
    if (kind, version) != (FORMAT, VERSION):
        raise InputError(
            f"{name} is a {kind}, version {version}; expected a {FORMAT}, version {VERSION}.\n"
            "Give NAME.pt2 as modelfile.save writes it from a trained model; a checkpoint is none."
        )
    names, mean, std = (tuple(fields[key]) for key in ("class_names", "mean", "std"))
    return Card(names, mean, std, fields["margin"], fields["torch"])


# ---- images of any size ---------------------------------------------------------------------------------------------


def predict_tiled(forward: Callable[[Tensor], Tensor], images: Tensor, *, tile: int, margin: int | None) -> Tensor:
    """Call `forward` on pieces of `images` (B, C, H, W) and put the results together: (B, K, H, W).

    `forward` maps images (B, C, h, w) to (B, K, h, w) of any dtype and device; the output has both.  For labels in
    place of probabilities let it take the argmax: one number a pixel, and not K.

    Args:
        forward: called once if the image is not larger than `tile`, else once for each piece.
        images: of any size.
        tile: side of a piece with its margins, in pixels.  Where the margins take more than half of that, the core is
            half a tile and the piece is larger: else nearly all would be computed to be thrown away.
        margin: how far the field reaches, in pixels, rounded up to the `GRID` here; None: never cut.

    Raises:
        InputError: if `tile` or `margin` is no size, or the output of `forward` has not the size of its input.

    >>> import torch
    >>> blur = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    >>> images = torch.arange(300.0).reshape(1, 1, 1, 300)
    >>> torch.equal(predict_tiled(blur, images, tile=256, margin=1), blur(images))
    True
    """
    if tile < 1 or (margin is not None and margin < 0):
        raise InputError(f"predict_tiled: tile={tile}, margin={margin}; expected tile ≥ 1 and margin ≥ 0 (or None).")
    H, W = images.shape[-2:]
    if margin is None or max(H, W) <= tile:
        return _checked(forward, images)
    margin = -(-margin // GRID) * GRID
    core = max((tile - 2 * margin) // GRID, tile // 2 // GRID, 1) * GRID
    output: Tensor | None = None
    for (top, bottom), (above, below) in _pieces(H, core, margin):
        for (left, right), (before, after) in _pieces(W, core, margin):
            piece = _checked(forward, images[..., above:below, before:after])
            if output is None:
                output = piece.new_empty((*piece.shape[:2], H, W))
            inside = piece[..., top - above : bottom - above, left - before : right - before]
            output[..., top:bottom, left:right] = inside
    assert output is not None
    return output


def _pieces(size: int, core: int, margin: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """First and last position + 1 of each core along one axis, and of the same with its margins."""
    for first in range(0, size, core):
        last = min(first + core, size)
        yield (first, last), (max(first - margin, 0), min(last + margin, size))


def _checked(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    result = forward(images)
    if result.ndim != 4 or result.shape[-2:] != images.shape[-2:]:
        raise InputError(
            f"predict_tiled: the model maps {tuple(images.shape)} to {tuple(result.shape)}.\n"
            "Expected (B, K, H, W) with the height and width of the images."
        )
    return result


def margin_of(model: nn.Module, channels: int) -> int | None:
    """How far, in pixels, the model's receptive field reaches; None if it has no bound, so the image must stay whole.

    None: a normalisation over the image (GroupNorm, InstanceNorm, …), an operation that reads the whole image (its
    reach grows with the image), one that `inspection` cannot read, or steps that the `GRID` does not hold.

    Args:
        channels: C of the images.

    >>> margin_of(nn.Conv2d(1, 1, 3, padding=1), 1), margin_of(nn.GroupNorm(1, 4), 4)
    (1, None)
    """
    if any(_averages_over_the_image(module) for module in model.modules()):
        return None
    try:
        small, large = (reach(model, (1, channels, side, side)) for side in (2 * GRID, 3 * GRID))
        strides = [stride for step in Record(model, (1, channels, 2 * GRID, 2 * GRID)).steps for stride in step.stride]
    except (InputError, RuntimeError):  # PyTorch's own, if the model cannot take so small an image
        return None
    fits = all(stride > 0 and (GRID / stride).denominator == 1 for stride in strides)
    return small if fits and small == large else None


def _averages_over_the_image(module: nn.Module) -> bool:
    """A normalisation with numbers of the image itself; BatchNorm in eval mode has those of the training."""
    is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return is_norm(module) and not (is_batch_norm and module.running_mean is not None)
