"""A trained model as one file that needs none of our code, and its use on images of any size.

NAME.pt2 holds the graph of the model and its weights as `torch.export` sees them, and a card: what a program must know
to use the model.  It is loaded again and compared with the model before it gets its name.  PyTorch's reader may run
code that a file brings: open only files that you trust.

`predict_tiled` cuts a large image into squares, each with a *margin* around it that is thrown away, so memory stays
bounded; if the margin is as wide as the receptive field reaches (`margin_of`), the result is that of the whole image.

Source: torch.export, https://docs.pytorch.org/docs/stable/export.html.
"""

from __future__ import annotations

import contextlib
import copy
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
TOLERANCE = 1e-4
"""Largest difference of a file's logits from those of the model, as a share of the largest logit (or of 1)."""
GRID = 64
"""Pieces begin at multiples of this, so that the windows of up to six poolings by 2 lie as in the whole image."""

# B, H, W of the traced image: 193 → 97 → 49 → 25 → 13 → 7 is odd on every level of a network.  What Python decides in
# `forward` is fixed by it, such as "this map has the right size, nothing to cut"; here every cut is a real one.
_EXAMPLE = (2, 193, 129)
_SIZES = ((1, 64, 96), (2, 101, 77), (1, 193, 129), (1, 50, 128), (3, 17, 8), (1, 2, 5), (1, 1, 1))  # to compare on


@dataclass(frozen=True)
class Card:
    """What a program must know to use a model."""

    class_names: tuple[str, ...]  # class 0 first; a model with one output channel has two classes
    mean: tuple[float, ...]  # of each channel, for images with integers scaled to 0 … 1
    std: tuple[float, ...]
    margin: int | None = None  # how far the receptive field reaches; None: large images must stay whole
    torch: str = str(torch.__version__)  # the version that wrote the file

    @property
    def channels(self) -> int:
        """C of the images."""
        return len(self.mean)


@dataclass(frozen=True)
class ExportedModel:
    """A model read back from its file."""

    card: Card
    network: Callable[[Tensor], Tensor]
    device: torch.device = CPU

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) on the model's device, for normalised images (B, C, H, W) of any size."""
        if images.ndim != 4 or images.shape[1] != self.card.channels:
            raise InputError(f"The model takes images (B, {self.card.channels}, H, W); found {tuple(images.shape)}.")
        return self.network(images.to(self.device, torch.float32))


# ---- write ----------------------------------------------------------------------------------------------------------


def save(
    model: nn.Module,
    path: str | Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> Path:
    """Write `path` (NAME.pt2) from a trained model, once its logits are those of the model, and return `path`.

    Args:
        model: maps images (B, C, H, W) to logits (B, K, H, W); it stays as it is.
        path: ends in .pt2.
        mean: of each channel, as in training: `SegmentationDataset.mean`; `std` as well.
        class_names: default "background", "class 1", …
        say: gets one line about the file.

    Raises:
        InputError: if the settings do not fit the model, it cannot be traced, or the file differs from it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.pt2"
    >>> path = save(nn.Conv2d(1, 2, 3, padding=1), path, mean=[0.5], std=[0.2], say=lambda line: None)
    >>> model = load(path)
    >>> model.card.class_names, model(torch.zeros(1, 1, 7, 5)).shape
    (('background', 'class 1'), torch.Size([1, 2, 7, 5]))
    """
    path = Path(path)
    network: Any = copy.deepcopy(model).cpu().float().eval()
    network = network.to(memory_format=torch.contiguous_format)
    program = _trace(network, len(mean))
    card = _make_card(network, mean, std, class_names)
    text, buffer = json.dumps({"format": FORMAT, "version": VERSION, **asdict(card)}), io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={CARD: text})
    content = buffer.getvalue()
    difference = _difference(unpack(content, path.name), network)
    if not difference <= TOLERANCE:  # NaN as well
        raise InputError(
            f"modelfile.save: {path.name} gives other logits than the model: relative difference {difference:.1e}.\n"
            "NaN: the weights are not finite.  Else its forward decides something by the size of the image."
        )
    with replacing(path) as part:
        part.write_bytes(content)
    say(f"{path.name}: {len(content) / 1e6:.1f} MB, checked: largest difference to the model {difference:.0e}")
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
            f"modelfile.save: torch.export cannot trace the model for images ({B}, {channels}, {H}, {W}): "
            f"{_first_line(error)}\nmean and std have one number for each channel, and the forward of the model must "
            "not decide by values of the image."
        ) from error
    for symbol, limits in program.range_constraints.items():
        # "At least 17", as the lowest map was larger than one pixel; but the graph is right from 1 × 1 on (`_SIZES`).
        program.range_constraints[symbol] = type(limits)(1, limits.upper)
    return program


@torch.no_grad()
def _make_card(network: nn.Module, mean: Sequence[float], std: Sequence[float], class_names: Sequence[str]) -> Card:
    _, H, W = _EXAMPLE
    logits = network(torch.zeros(1, len(mean), H, W))
    if logits.shape[2:] != (H, W):
        raise InputError(f"modelfile.save: the model maps {H}×{W} pixels to {tuple(logits.shape)}, not (1, K, H, W).")
    K = max(logits.shape[1], 2)
    names = tuple(class_names) or ("background", *(f"class {k}" for k in range(1, K)))
    if len(names) != K or len(mean) != len(std):
        raise InputError(f"modelfile.save: {len(names)} class_names for {K} classes, mean={mean}, std={std}.")
    return Card(names, tuple(map(float, mean)), tuple(map(float, std)), margin_of(network, len(mean)))


@torch.no_grad()
def _difference(found: ExportedModel, network: nn.Module) -> float:
    """The largest relative difference of two models' logits, on random images; NaN if one is not finite."""
    generator, differences = torch.Generator().manual_seed(0), [torch.zeros(())]
    for B, H, W in _SIZES:
        images = torch.randn(B, found.card.channels, H, W, generator=generator)
        try:
            wanted = network(images)
        except RuntimeError:  # a network may have a least size of its own
            continue
        differences.append((found(images) - wanted).abs().max() / wanted.abs().max().clamp(min=1))
    return float(torch.stack(differences).max())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of PyTorch's exporter on its own inner workings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:150]}"


# ---- read -----------------------------------------------------------------------------------------------------------


def load(path: str | Path, device: str | torch.device = "cpu") -> ExportedModel:
    """Read a model that `save` wrote.

    Raises:
        InputError: if there is no such file, or it is damaged, of another program, or of another version.
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
            f"{name} cannot be loaded by torch {torch.__version__}; torch {card.torch} wrote it: {_first_line(error)}\n"
            "Use that version, or write the model again with modelfile.save."
        ) from error
    try:  # a guard refuses an even size where the traced one was odd, although the graph is right for both
        return ExportedModel(card, program.module(check_guards=False), device)
    except TypeError:  # torch < 2.9 has no guards
        return ExportedModel(card, program.module(), device)


def _read_card(content: bytes, name: str) -> Card:
    """The card inside a file whose checksums are all right."""
    fields: dict[str, Any] = {}
    if not is_damaged(content):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            fields = json.loads(next((archive.read(e) for e in archive.namelist() if e.endswith(CARD)), b"{}"))
    if (fields.pop("format", ""), fields.pop("version", 0)) != (FORMAT, VERSION):
        raise InputError(
            f"{name} is no model file of version {VERSION}, or it is damaged. Copy it again, or write it with "
            "modelfile.save; a checkpoint is none."
        )
    names, mean, std = (tuple(fields[key]) for key in ("class_names", "mean", "std"))
    return Card(names, mean, std, fields["margin"], fields["torch"])


# ---- images of any size ---------------------------------------------------------------------------------------------


def predict_tiled(forward: Callable[[Tensor], Tensor], images: Tensor, *, tile: int, margin: int | None) -> Tensor:
    """Call `forward` on pieces of `images` (B, C, H, W) and put the results together: (B, K, H, W).

    `forward` maps images (B, C, h, w) to (B, K, h, w) of any dtype and device; the output has both.

    Args:
        forward: called once if the image is not larger than `tile`, else once for each piece.
        images: of any size.
        tile: side of a piece with its margins, in pixels.  Where the margins take more than half of that, the core is
            half a tile and the piece is larger: else nearly all would be computed to be thrown away.
        margin: how far the field reaches, in pixels, rounded up to the `GRID` here; None: never cut.

    >>> blur = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    >>> images = torch.arange(300.0).reshape(1, 1, 1, 300)
    >>> torch.equal(predict_tiled(blur, images, tile=256, margin=1), blur(images))
    True
    """
    H, W = images.shape[-2:]
    if margin is None or max(H, W) <= tile:
        return forward(images)
    margin = -(-margin // GRID) * GRID
    core = max((tile - 2 * margin) // GRID, tile // 2 // GRID, 1) * GRID
    output: Tensor | None = None
    for (top, bottom), (above, below) in _pieces(H, core, margin):
        for (left, right), (before, after) in _pieces(W, core, margin):
            piece = forward(images[..., above:below, before:after])
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


def margin_of(model: nn.Module, channels: int) -> int | None:
    """How far, in pixels, the receptive field of a model for images of C `channels` reaches.

    None, so an image must stay whole: a normalisation over the image (GroupNorm, …), an operation that reads all of it
    (its reach grows with the image), one that `inspection` cannot read, or steps that the `GRID` does not hold.

    >>> margin_of(nn.Conv2d(1, 1, 3, padding=1), 1), margin_of(nn.GroupNorm(1, 4), 4)
    (1, None)
    """
    for module in model.modules():  # BatchNorm in eval mode has the numbers of the training, not of the image
        if is_norm(module) and getattr(module, "running_mean", None) is None:
            return None
    try:
        small, large = (reach(model, (1, channels, side, side)) for side in (2 * GRID, 3 * GRID))
        strides = [stride for step in Record(model, (1, channels, 2 * GRID, 2 * GRID)).steps for stride in step.stride]
    except (InputError, RuntimeError):  # PyTorch's own, if the model cannot take so small an image
        return None
    fits = all(stride > 0 and (GRID / stride).denominator == 1 for stride in strides)
    return small if fits and small == large else None
