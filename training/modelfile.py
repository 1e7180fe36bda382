"""A trained model as one file that needs none of our code, and its use on images of any size.

NAME.pt2 holds graph and weights as `torch.export` (https://docs.pytorch.org/docs/stable/export.html) sees them, and a
card; it is compared with the model before it gets its name.  PyTorch may run code of a file: open what you trust.
`predict_tiled` cuts a large image into squares, each with a *margin* around it that is thrown away, so memory stays
bounded; if the margin is as wide as the receptive field reaches (`margin_of`), the result is that of the whole image.
"""

import contextlib
import copy
import io
import itertools
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.passes import move_to_device_pass

from checks import InputError, reason_of
from networks.inspection import Record, reach
from training.checkpoint import is_damaged, replacing

CARD = "segmentation.json"
TOLERANCE = 1e-4  # largest difference of a file's logits from those of the model, relative to the largest logit (or 1)
GRID = 64  # pieces begin at multiples of this, so that the windows of up to six poolings by 2 lie as in the whole image
# B, H, W of the traced image: 193 → 97 → 49 → 25 → 13 → 7 is odd on every level of a network.  What Python decides in
# `forward` is fixed by it, such as "this map has the right size, nothing to cut"; here every cut is a real one.
_EXAMPLE = (2, 193, 129)
_SIZES = ((1, 64, 96), (2, 101, 77), (1, 193, 129), (1, 50, 128), (3, 17, 8), (1, 2, 5), (1, 1, 1))  # to compare on
Floats = Sequence[float]  # one for each channel


class Card(NamedTuple):
    """What a program must know to use a model."""

    class_names: tuple[str, ...]  # class 0 first; a model with one output channel has two classes
    mean: tuple[float, ...]  # of each channel, for images with integers scaled to 0 … 1; NaN: of each image itself
    std: tuple[float, ...]
    margin: int | None = None  # how far the receptive field reaches; None: large images must stay whole
    light: tuple[float, ...] = (0, 0, 1, 1)  # of the normalised training images: least and largest mean, and std


class ExportedModel(NamedTuple):
    """A model read back from its file."""

    card: Card
    network: Callable[[Tensor], Tensor]
    device: str | torch.device = "cpu"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) on the model's device, for normalised images (B, C, H, W) of any size."""
        return self.network(images.to(self.device, torch.float32))


def save(
    model: nn.Module, path: str | Path, *, mean: Floats, std: Floats, class_names: Sequence[str] = (), dataset: Any = ()
) -> Path:
    """Write `path` (NAME.pt2) from a trained model for images (B, C, H, W), and return it; `InputError` if it errs.

    `mean` and `std` of each channel are those of the training (`SegmentationDataset.mean`); `class_names` are by
    default "background", "class 1", …  `dataset`, the training part, gives the range of its images.
    """
    path = Path(path)
    network = copy.deepcopy(model).cpu().float().eval().to(memory_format=torch.contiguous_format)
    program, buffer = _trace(network, len(mean)), io.BytesIO()
    card = json.dumps(_make_card(network, mean, std, class_names, dataset)._asdict())
    with _quiet():
        torch.export.save(program, buffer, extra_files={CARD: card})
    with replacing(path) as part:
        part.write_bytes(buffer.getbuffer())
        difference = _difference(load(part), network)
        if not difference <= TOLERANCE:  # NaN as well
            why = "its forward decides by the size of the image, or its weights are not finite"
            raise InputError(f"modelfile.save: {path.name} differs from the model by {difference:.1e}: {why}.")
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, checked: differs from the model by {difference:.0e}")
    return path


def light_of(image: np.ndarray) -> tuple[float, float]:
    """Mean, and std within the channels, of a normalised image (C, H, W): of all training images together 0 and 1."""
    return float(image.mean()), float(image.std(axis=(1, 2)).mean())


def _trace(network: nn.Module, channels: int) -> ExportedProgram:
    B, H, W = _EXAMPLE
    example, any_size = torch.zeros(B, channels, H, W), dict.fromkeys((0, 2, 3), Dim.DYNAMIC)
    try:
        with _quiet():
            program = torch.export.export(network, (example,), dynamic_shapes=(any_size,), strict=False)
    except Exception as error:  # torch.export raises nearly everything
        advice = "mean and std have one number for each channel; forward must not decide by values of the image."
        text = f"modelfile.save: cannot trace the model for {channels} channels: {reason_of(error)}"
        raise InputError(f"{text}\n{advice}") from error
    for symbol, limits in program.range_constraints.items():  # "at least 17"; but the graph is right from 1 × 1 on
        program.range_constraints[symbol] = type(limits)(1, limits.upper)
    return program


@torch.no_grad()
def _make_card(network: nn.Module, mean: Floats, std: Floats, class_names: Sequence[str], dataset: Any) -> Card:
    _, H, W = _EXAMPLE
    shape = network(torch.zeros(1, len(mean), H, W)).shape
    K = max(shape[1], 2)
    names = tuple(class_names) or ("background", *(f"class {k}" for k in range(1, K)))
    if shape[2:] != (H, W) or len(names) != K or len(mean) != len(std):
        raise InputError(f"modelfile.save: {H}×{W} pixels become {tuple(shape)}; {mean=}, {std=}, class_names={names}.")
    lights = zip(*([light_of(image.numpy()) for image, *_ in dataset] or [(0.0, 1.0)]))
    light = tuple(limit for values in lights for limit in (min(values), max(values)))
    return Card(names, tuple(map(float, mean)), tuple(map(float, std)), margin_of(network, len(mean)), light)


@torch.no_grad()
def _difference(found: ExportedModel, network: nn.Module) -> float:
    """The largest relative difference of two models' logits, on random images; NaN if one is not finite."""
    generator, differences = torch.Generator().manual_seed(0), [torch.zeros(())]
    for B, H, W in _SIZES:
        images = torch.randn(B, len(found.card.mean), H, W, generator=generator)
        try:
            wanted = network(images)
        except RuntimeError:  # a network may have a least size of its own
            continue
        differences.append((found(images) - wanted).abs().max() / wanted.abs().max().clamp(min=1))
    return float(torch.stack(differences).max())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of PyTorch's exporter on its own inner workings."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        stack.callback(logging.disable, logging.NOTSET)
        warnings.simplefilter("ignore")
        yield


def load(path: str | Path, device: str | torch.device = "cpu") -> ExportedModel:
    """Read a model that `save` wrote; `InputError` if there is no such file, it is damaged, or of another program."""
    files = {CARD: ""}
    try:
        content = Path(path).read_bytes()
        if is_damaged(content):
            raise ValueError("a checksum is wrong")
        with _quiet():
            program = torch.export.load(io.BytesIO(content), extra_files=files)
            if torch.device(device).type != "cpu":
                program = move_to_device_pass(program, device)
        entries: dict[str, Any] = json.loads(files[CARD])
        entries |= {name: tuple(value) for name, value in entries.items() if isinstance(value, list)}
        card = Card(**entries)
    except (OSError, MemoryError) as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}.") from error
    except Exception as error:  # torch.export raises nearly everything
        text = f"{path} is no model file, or it is damaged, or of another version: {reason_of(error)}"
        raise InputError(f"{text}\nCopy it again, or write it with modelfile.save; a checkpoint is none.") from error
    try:  # a guard refuses an even size where the traced one was odd, although the graph is right for both
        network = program.module(check_guards=False)
    except TypeError:  # torch < 2.9 has no guards
        network = program.module()
    return ExportedModel(card, network, device)


def predict_tiled(forward: Callable[[Tensor], Tensor], images: Tensor, *, tile: int, margin: int | None) -> Tensor:
    """Call `forward` on pieces of `images` (B, C, H, W) and put the results together: (B, K, H, W).

    `forward` keeps height and width; the output has its dtype and device.  A piece has `tile` pixels a side with its
    margins; where they take more than half, its core is half a tile.  With the margin None nothing is cut.
    """
    H, W = images.shape[-2:]
    if margin is None or max(H, W) <= tile:
        return forward(images)
    margin = -(-margin // GRID) * GRID
    core = max((tile - 2 * margin) // GRID, tile // 2 // GRID, 1) * GRID
    output = torch.empty(0)
    for top, left in itertools.product(range(0, H, core), range(0, W, core)):
        above, before = max(top - margin, 0), max(left - margin, 0)
        piece = forward(images[..., above : top + core + margin, before : left + core + margin])
        if top == left == 0:
            output = piece.new_empty((*piece.shape[:2], H, W))
        inside = piece[..., top - above :, left - before :][..., :core, :core]
        output[..., top : top + core, left : left + core] = inside
    return output


def margin_of(model: nn.Module, channels: int) -> int | None:
    """How far, in pixels, the receptive field of a model for images of C `channels` reaches.

    None, so an image must stay whole: a normalisation over the image (GroupNorm, …), an operation that reads all of it
    (its reach grows with the image) or that `inspection` cannot read, or steps that the `GRID` does not hold.
    """
    for module in model.modules():  # BatchNorm in eval mode has the numbers of the training, not of the image
        is_norm = type(module).__module__.endswith((".batchnorm", ".instancenorm", ".normalization"))
        if is_norm and getattr(module, "running_mean", None) is None:
            return None
    try:
        small, large = (reach(model, (1, channels, side, side)) for side in (2 * GRID, 3 * GRID))
        strides = [s for step in Record(model, (1, channels, 2 * GRID, 2 * GRID)).steps for s in step.stride]
    except (InputError, RuntimeError):  # PyTorch's own, if the model cannot take so small an image
        return None
    return small if small == large and all(s > 0 and (GRID / s).denominator == 1 for s in strides) else None
