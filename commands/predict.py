"""Masks and overlays for a folder of images, from a model file of `modelfile.save`.

    python3 run.py predict model.pt2 photos                    # writes photos_predicted/masks/… and …/overlays/…
    python3 run.py predict model.pt2 photos/one.png --output results

A mask is a PNG of one channel whose values are the classes, 0, 1, 2, …, so that it looks black; an overlay shows them
in colour on the image.  Images are normalised as in training, by the numbers in the model file; large ones are cut into
tiles.  A bad image does not stop the others: problems are listed at the end, and images unlike those of the training.
"""

import os
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

import plots
from checks import InputError, printable, reason_of, two_or_more
from imagesets.files import IMAGE_SUFFIXES, Problem, is_junk, raise_problems, read_image, short_name
from imagesets.hdf5 import normalise_image
from training.checkpoint import replacing
from training.modelfile import Card, ExportedModel, light_of, load, predict_tiled

TILE = 1024
SHIFT, FACTOR = 3, 4  # deviations, and times: so much more than in training an image may differ


def predict_folder(
    model: str | Path, folder: str | Path, output: str | Path | None = None, *, tile: int = TILE, device: str = "cpu"
) -> list[Path]:
    """Write masks/NAME.png and overlays/NAME.png for each image of `folder`, or for one, and return the masks' paths.

    They lie in `output`, by default FOLDER_predicted beside `folder`, or beside the data set it belongs to.  Raises
    `InputError` before any work or, with the problems of all images that were left out, at the end.
    """
    network, folder = load(model, device), Path(os.path.abspath(folder))
    folder = folder / "images" if (folder / "images").is_dir() else folder
    home = folder.parent if folder.is_file() else folder
    if any((home.parent / kind).is_dir() for kind in ("labels", "masks")):  # images of a data set
        home = home.parent
    output = home.parent / f"{home.name}_predicted" if output is None else Path(output)
    if (output / "masks").is_dir() and not (output / "overlays").is_dir():  # here the overlay is written first
        raise InputError(f"{output}/masks was not made here and would be overwritten.\nChoose another --output.")
    entries = sorted(folder.iterdir()) if folder.is_dir() else [folder] * folder.is_file()
    paths = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and not is_junk(path.name)]
    if not paths:
        raise InputError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}); folders inside are not looked at.")
    try:
        (output / "overlays").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {reason_of(error)}.\nChoose another --output.") from error
    masks, problems, lights = list[Path](), list[Problem](), list[tuple[float, float]]()
    for number, path in enumerate(paths, start=1):
        mask = output / "masks" / f"{path.stem}.png"
        try:
            if mask in masks:
                raise InputError("another file has this name before the suffix; rename one")
            label = predict_image(network, image := read_image(path), tile=tile)
            for file, pixels in ((output / "overlays" / mask.name, plots.overlay(image, label)), (mask, label)):
                with replacing(file) as part:
                    PIL.Image.fromarray(pixels).save(part, format="PNG")
        except (InputError, RuntimeError, MemoryError) as error:  # PyTorch's, where the memory is full
            problems += getattr(error, "problems", [Problem(f"{short_name(path)}:", reason_of(error))])
            continue
        masks.append(mask)
        few = image[:: max(label.shape[0] // 512, 1), :: max(label.shape[1] // 512, 1)]
        lights.append(light_of(normalise_image(few, network.card.mean, network.card.std)))
        shares = np.bincount(label.ravel(), minlength=len(network.card.class_names))[1:] / label.size
        text = ", ".join(f"{name} {share:.1%}" for name, share in zip(network.card.class_names[1:], shares))
        print(f"[{number}/{len(paths)}] {printable(path.name)}: {text}")
    print(f"{len(masks)} of {len(paths)} images: masks and overlays are in {output}")
    print(unlike_training(network.card, lights), end="")
    raise_problems(str(folder), problems)
    return masks


def predict_image(model: ExportedModel, image: np.ndarray, *, tile: int = TILE) -> np.ndarray:
    """Classes, uint8 (H, W), of one image (H, W) or (H, W, C) as it is stored: uint8, uint16 or float."""
    card, channels = model.card, image.shape[2] if image.ndim == 3 else 1
    if channels != (known := len(card.mean)):
        raise InputError(f"the image has {channels} channels, but the model was trained on images with {known}")
    if not np.isfinite(image).all():
        raise InputError("the image holds NaN or Inf; a model needs finite numbers")
    images = torch.from_numpy(normalise_image(image, card.mean, card.std))[None]

    def classes(pieces: Tensor) -> Tensor:
        largest = two_or_more(model(pieces)).max(dim=1, keepdim=True)  # on a CPU ten times faster than argmax
        return largest.indices.to("cpu", torch.uint8)

    return predict_tiled(classes, images, tile=tile, margin=card.margin)[0, 0].numpy()


def unlike_training(card: Card, lights: Sequence[tuple[float, float]]) -> str:
    """A line on the images whose light (`light_of`) the training did not know, where a model guesses; else nothing."""
    (low, high, least, most), found = card.light, list[str]()
    for mean, std in lights:
        shift, factor = mean - min(max(mean, low), high), max(std, 1e-6) / min(max(std, least), most)
        if abs(shift) > SHIFT:
            found.append(f"{abs(shift):.0f} deviations {'brighter' if shift > 0 else 'darker'}")
        elif max(factor, 1 / factor) > FACTOR:
            found.append(f"{max(factor, 1 / factor):.0f} times {'richer' if factor > 1 else 'poorer'} in contrast")
    text = f"WARNING: {len(found)} of {len(lights)} images are unlike those of the training"
    return f"{text}, the first {found[0]}: another bit depth, camera or stain?\n" if found else ""


def main(arguments: list[str]) -> int:
    """What `run.py predict` does; `InputError` if something could not be done."""
    parser = ArgumentParser("run.py predict", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="NAME.pt2, written by modelfile.save")
    parser.add_argument("folder", type=Path, help="a folder of images, or one image")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: FOLDER_predicted beside the images")
    parser.add_argument("--tile", type=int, default=TILE, help=f"side of the tiles of large images, default {TILE}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default cpu; cuda for an NVIDIA GPU")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no NVIDIA GPU here; leave this option out.")
    predict_folder(options.model, options.folder, options.output, tile=options.tile, device=options.device)
    return 0
