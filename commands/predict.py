"""Masks and overlays for a folder of images, from a model file of `modelfile.save`.

    python3 run.py predict model.pt2 images                    # writes images_predicted/masks/… and …/overlays/…
    python3 run.py predict model.pt2 images --output results

A mask is a PNG of one channel whose values are the classes, 0, 1, 2, …; it looks black, but `files.read_label` and
any program for labels reads it.  An overlay shows the classes in colour on the image.  Both have the name of the image.
Images are normalised as in training, by the numbers in the model file; large ones are cut into tiles.

A bad image does not stop the others: all problems are listed at the end.  Nothing is written beside the images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

import plots
from checks import InputError, two_or_more
from imagesets.files import IMAGE_SUFFIXES, Problem, is_junk, raise_problems, read_image, short_name
from imagesets.hdf5 import normalise_image
from training import modelfile
from training.checkpoint import replacing
from training.modelfile import ExportedModel, predict_tiled

TILE = 1024


def predict_folder(
    model: str | Path,
    folder: str | Path,
    output: str | Path | None = None,
    *,
    tile: int = TILE,
    device: str = "cpu",
    say: Callable[[str], object] = print,
) -> list[Path]:
    """Write a mask and an overlay for each image of `folder`, and return the paths of the masks.

    Args:
        model: NAME.pt2, as `modelfile.save` writes it.
        folder: images of all kinds that `files.read_image` reads; folders inside are not looked at.
        output: gets masks/NAME.png and overlays/NAME.png; default: beside `folder`, FOLDER_predicted.
        tile: side of the tiles of large images in pixels; smaller ones take less memory and more time.
        device: "cpu", or "cuda" for an NVIDIA GPU.
        say: gets one line for each image.

    Raises:
        InputError: if the model or the folder cannot be read, or masks cannot be written; and at the end, with the
            problems of all images that could not be done.  The masks of the others are written.
    """
    if tile < 1 or (device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"predict: tile={tile}, device={device!r}; tile must be at least 1, and cuda needs a GPU.")
    network, folder = modelfile.load(model, device), Path(folder)
    output = Path(output) if output is not None else folder.resolve().with_name(f"{folder.resolve().name}_predicted")
    paths, problems = _images_in(folder)
    _keep_apart(folder, output)
    masks = []
    for number, path in enumerate(paths, start=1):
        try:
            image = read_image(path)
            label = predict_image(network, image, tile=tile)
        except InputError as error:
            problems += getattr(error, "problems", [Problem(f"{short_name(path)}:", str(error))])
            continue
        _write_png(output / "overlays" / f"{path.stem}.png", plots.overlay(image, label))
        masks.append(_write_png(output / "masks" / f"{path.stem}.png", label))
        say(f"[{number}/{len(paths)}] {path.name}: {_shares(label, network.card.class_names)}")
    say(f"{len(masks)} of {len(paths)} images: masks and overlays are in {output}")
    raise_problems(str(folder), problems)
    return masks


def predict_image(model: ExportedModel, image: np.ndarray, *, tile: int = TILE) -> np.ndarray:
    """Classes, uint8 (H, W), of one image (H, W) or (H, W, C) as it is stored: uint8, uint16 or float."""
    card, channels = model.card, image.shape[2] if image.ndim == 3 else 1
    if channels != card.channels:
        raise InputError(
            f"the image has {channels} channel(s), but the model was trained on images with {card.channels}"
        )
    if not np.isfinite(image).all():
        raise InputError("the image holds NaN or Inf; a model needs finite numbers")
    images = torch.from_numpy(normalise_image(image, np.array(card.mean), np.array(card.std)))[None]

    def classes(pieces: Tensor) -> Tensor:
        largest = two_or_more(model(pieces)).max(dim=1, keepdim=True)  # on a CPU ten times faster than argmax
        return largest.indices.to("cpu", torch.uint8)

    return predict_tiled(classes, images, tile=tile, margin=card.margin)[0, 0].numpy()


def _images_in(folder: Path) -> tuple[list[Path], list[Problem]]:
    """The images of a folder, sorted, and what is wrong with the other files."""
    try:
        entries = sorted(path for path in folder.iterdir() if not is_junk(path.name))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}. Expected a folder of images.") from error
    found: dict[str, Path] = {}
    problems: list[Problem] = []
    for path in entries:
        if path.is_dir():
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            problems.append(Problem(short_name(path), f"is none of {', '.join(IMAGE_SUFFIXES)}"))
        elif (other := found.setdefault(path.stem.casefold(), path)) is not path:  # their masks would be one file
            found_twice = f"and {other.name} have one name before the suffix"
            problems.append(Problem(short_name(path), found_twice, "rename one"))
    if not found:
        inside = [path.name for path in entries if path.is_dir()]
        hint = f"\nThere are folders inside: {', '.join(inside[:5])}. Give the one with the images." if inside else ""
        raise InputError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}).{hint}")
    return list(found.values()), problems


def _keep_apart(folder: Path, output: Path) -> None:
    """Refuse an output whose masks or overlays would take the names of the images, or of masks that are not ours."""
    for part in ("masks", "overlays"):
        if (output / part).resolve() == folder.resolve():
            raise InputError(f"The {part} would overwrite the images in {folder}.\nChoose another --output.")
    if (output / "masks").is_dir() and not (output / "overlays").is_dir():  # here the overlay is written first
        raise InputError(
            f"{output} has a folder masks that was not made here; its files would be overwritten.\n"
            "Choose another --output."
        )


def _write_png(path: Path, array: np.ndarray) -> Path:
    with replacing(path) as part:
        PIL.Image.fromarray(array).save(part, format="PNG")
    return path


def _shares(label: np.ndarray, names: Sequence[str]) -> str:
    """How many of the pixels each class has, background left out: "cell 12.5 %"."""
    counts = np.bincount(label.ravel(), minlength=len(names))
    return ", ".join(f"{name} {100 * n / label.size:.1f} %" for name, n in zip(names[1:], counts[1:]) if n) or names[0]


def main(arguments: list[str]) -> int:
    """What `run.py predict` does; `InputError` if something could not be done."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="run.py predict", description=__doc__, formatter_class=layout)
    parser.add_argument("model", type=Path, help="NAME.pt2, written by modelfile.save")
    parser.add_argument("folder", type=Path, help="a folder of images")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: FOLDER_predicted beside the images")
    parser.add_argument("--tile", type=int, default=TILE, help=f"side of the tiles of large images, default {TILE}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default cpu; cuda for an NVIDIA GPU")
    options = parser.parse_args(arguments)
    predict_folder(options.model, options.folder, options.output, tile=options.tile, device=options.device)
    return 0
