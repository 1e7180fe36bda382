"""A trained model as one file that needs none of our code: `NAME.pt2`, written by `export.save`.

The file holds the graph of the model and its weights as `torch.export` sees them, and a card: what a program must know
to use the model.  It is loaded by PyTorch's own reader, which may run code that a file brings: open only files that you
trust.

Source: torch.export, https://docs.pytorch.org/docs/stable/export.html.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from checks import InputError

FORMAT, VERSION = "segmentation model", 1
CARD = "segmentation.json"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Card:
    """What a program must know to use a model.

    Attributes:
        class_names: one for each class, class 0 first.  A model with one output channel has two classes.
        mean: of each channel, for images with integers scaled to 0 … 1; see `hdf5.normalise_image`.
        std: the same.
        margin: how far the receptive field reaches, for `tiles.predict_tiled`; None: large images must stay whole.
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
    network: Callable[[Tensor], Tensor]
    device: torch.device = CPU

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) on the model's device, for normalised images (B, C, H, W) of any size."""
        if images.ndim != 4 or images.shape[1] != self.card.channels:
            raise InputError(
                f"The model takes images (B, {self.card.channels}, H, W); found the shape {tuple(images.shape)}."
            )
        return self.network(images.to(self.device, torch.float32))


def load(path: str | Path, device: str | torch.device = "cpu") -> ExportedModel:
    """Read a model that `save` wrote.

    Raises:
        InputError: if there is no such file, or it is damaged, of another program, or of a newer version.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Expected a file of export.save.") from error
    return unpack(content, path.name, torch.device(device))


def unpack(content: bytes, name: str, device: torch.device = CPU) -> ExportedModel:
    """The model in the content of a file; `name` is for messages."""
    card = _read_card(content, name)
    try:
        with quiet():
            program = torch.export.load(io.BytesIO(content))
            if device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, device)
    except Exception as error:
        raise InputError(
            f"{name} cannot be loaded by torch {torch.__version__}; torch {card.torch} wrote it.\n"
            f"It says: {first_line(error)}\nUse that version, or write the model again with export.save."
        ) from error
    return ExportedModel(card, _runnable(program), device)


def _runnable(program: ExportedProgram) -> Callable[[Tensor], Tensor]:
    """The graph as a module, without the guards that newer versions put before it.

    A guard says, for one, "the map that was cut is no map in one piece".  So an even size is refused where the traced
    one was odd, although the graph is right for both: `export.save` checks that it is.
    """
    try:
        return program.module(check_guards=False)
    except TypeError:  # torch < 2.9 has no guards
        return program.module()


def _read_card(content: bytes, name: str) -> Card:
    """The card inside a file; each part of the file has a checksum, and all are verified."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
            entry = next((entry for entry in archive.namelist() if entry.endswith(CARD)), CARD)
            fields: dict[str, Any] = json.loads(archive.read(entry))
        kind, version = fields.pop("format"), fields.pop("version")
        names, mean, std = (tuple(fields[key]) for key in ("class_names", "mean", "std"))
        card = Card(names, mean, std, fields["margin"], fields["torch"])
    except Exception as error:  # damaged archives raise nearly everything
        raise InputError(
            f"{name} is no model file, or it is damaged ({first_line(error)}).\n"
            "Expected NAME.pt2 as export.save writes it from a trained model; a checkpoint is none."
        ) from error
    if damaged is not None:
        raise InputError(f"{name} is damaged: the checksum of {damaged} is wrong. Copy it again, or write it again.")
    if (kind, version) != (FORMAT, VERSION):
        raise InputError(
            f"{name} is a {kind}, version {version}; expected a {FORMAT}, version {VERSION}.\n"
            "Write it again with export.save of this course."
        )
    return card


def pack(program: ExportedProgram, card: Card) -> bytes:
    """The content of a file: what `unpack` takes apart."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={CARD: as_text(card)})
    return buffer.getvalue()


def as_text(card: Card) -> str:
    """The card as JSON, as it lies in the files."""
    return json.dumps({"format": FORMAT, "version": VERSION, **asdict(card)})


def first_line(error: BaseException) -> str:
    """Kind and first line of an error of another package, at most 150 characters of it.

    >>> first_line(ValueError("bad size" + chr(10) + "and a long story"))
    'ValueError: bad size'
    """
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:150]}".rstrip(": ")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the notes of PyTorch's exporters on their own inner workings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
