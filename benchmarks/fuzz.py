"""Throw spoilt files at all that reads files, and count what happens.

    python3 benchmarks/fuzz.py --files 10000                        all kinds, the same number of each
    python3 benchmarks/fuzz.py --files 500 --kind image mask        these kinds
    python3 benchmarks/fuzz.py --kind tiff --number 17              one file, with all that is known about it
    python3 benchmarks/fuzz.py --files 10000 --keep FOLDER          write what was not fine or refused to FOLDER

`mutations.py` spoils a sound file, a function of this project reads it, and the result gets one word:

- fine: what was read is what the sound file holds, or what `referees.py` finds in the spoilt one;
- refused: an error of ours, in at most four lines of at most 400 printable signs, whose first line names the file and
  says more than the error of the library that it comes from (of a hand-in: one line a problem);
- foreign: any other error, a warning, something printed, or the end of the process;
- wrong: something else was read; hang: no answer in 30 seconds; memory: more than a GiB;
- leftover: a file that was not there before, or a folder that is only half there.

What can be promised differs.  In a PNG and in a .gz each byte counts in a checksum; in a .zip each content, but no
name; an .hdf5 of ours is sealed as a whole (kind `hdf5`), and if somebody seals a spoilt one (kind `sealed`), its
arrays must still be those that were written, or be refused.  A TIFF and a JPEG have no checksum: a changed pixel is
what the file holds now.  A TIFF must be read as the referee reads it, a JPEG must have the size that it declares.  A
notebook is fine as a hand-in only if Jupyter can open it, its cells were run in order, and it shows an image and no
error.

Each file is a function of (seed, kind, number).  They are read in a child process, which is replaced when it hangs or
ends.  (It forks: not for Windows.)
"""

from __future__ import annotations

import argparse
import functools
import gzip
import hashlib
import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, NoReturn

import numpy as np
import tifffile
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # our modules lie one folder up

import mutations
import referees

import cell_order
from imagesets import download
from commands import handin
from imagesets import hdf5file
from imagesets.archives import unpack
from checks import InputError
from data import SegmentationDataset
from imagesets.hdf5 import build_hdf5, normalise_hdf5, open_hdf5, read_array
from imagesets.imagefile import read_image, read_label
from imagesets.samples import Sample, read_folder
from imagesets.sources import SOURCES, RemoteFile, Source

WORDS = ("fine", "refused", "foreign", "wrong", "hang", "memory", "leftover")
SECONDS = 30.0
GIB = 2**30
COLOURS = {(255, 0, 0): 0, (255, 0, 255): 1, (0, 0, 0): 255}


class Wrong(Exception):
    """Something was read that the file does not hold."""


class Original(NamedTuple):
    """A sound file, and what is known of it: an array, a tree of files, …"""

    name: str
    content: bytes
    truth: Any = None
    label_map: Any = None


class Case(NamedTuple):
    """One spoilt file."""

    kind: str
    content: bytes
    original: Original
    how: str
    chance: Random


class Outcome(NamedTuple):
    """One word of `WORDS`, and what was found; `is_compared` if a referee has read the file, too."""

    word: str
    detail: str
    is_compared: bool = True


# --- sound files ---


def pixels(seed: int, *shape: int, dtype: str = "u1") -> np.ndarray:
    """Soft ramps with noise, so that all filters of PNG are used."""
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(3 * np.arange(shape[0]), 5 * np.arange(shape[1]))
    ramp = ramp if len(shape) == 2 else ramp[..., None] + 40 * np.arange(shape[2])
    values = (ramp + rng.integers(0, 30, shape)) % 256
    return (values * (257 if dtype == "u2" else 1)).astype(dtype)


def classes(seed: int, height: int = 19, width: int = 23, number: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, number, (-(-height // 4), -(-width // 4)))
    label = np.kron(blocks, np.ones((4, 4), int))[:height, :width].astype(np.uint8)
    label[0, :number] = range(number)
    return label


def saved(image: Any, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
    return stream.getvalue()


def palette_image(label: np.ndarray) -> Image.Image:
    image = Image.fromarray(label, "L").convert("P")
    image.frombytes(label.tobytes())
    image.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    return image


def images() -> Iterator[Original]:
    grey, deep, colour = pixels(0, 19, 23), pixels(1, 17, 20, dtype="u2"), pixels(2, 18, 21, 3)
    alpha = np.dstack([colour, np.full((18, 21), 255, np.uint8)])
    bits = classes(3).astype(bool)
    spread = palette_image(classes(4, number=3))
    yield Original("grey.png", saved(grey, "PNG"), grey)
    yield Original("deep.png", saved(deep, "PNG"), deep)
    yield Original("colour.png", saved(colour, "PNG", pnginfo=remark()), colour)
    yield Original("alpha.png", saved(alpha, "PNG"), colour)
    yield Original("bits.png", saved(bits, "PNG"), bits.astype(np.uint8) * 255)
    yield Original("palette.png", saved(spread, "PNG"), np.asarray(spread.convert("RGB")))
    long = pixels(5, 300, 340)  # several pieces of pixel data
    yield Original("long.png", saved(long, "PNG"), long)


def remark() -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "made for tests")
    info.add_text("Long", "x" * 400, zip=True)
    return info


def masks() -> Iterator[Original]:
    two, three = classes(10), classes(11, number=3)
    table = np.array([[255, 0, 0], [255, 0, 255], [0, 0, 0]], np.uint8)
    yield Original("two.png", saved(two, "PNG"), two)
    yield Original("bits.png", saved(two.astype(bool), "PNG"), two)
    yield Original("palette.png", saved(palette_image(three), "PNG"), three)
    yield Original("deep.png", saved(three.astype(np.uint16), "PNG"), three.astype(np.uint16))
    yield Original("white.png", saved(two * 255, "PNG"), two, {0: 0, 255: 1})
    yield Original("table.png", saved(table[three], "PNG"), np.array([0, 1, 255], np.uint8)[three], COLOURS)
    yield Original("nibble.png", nibbles(three), three)
    yield Original("mask.tif", tiff_bytes(three), three)


def nibbles(label: np.ndarray) -> bytes:
    """A grey PNG with four bits a pixel, as programs that make files small write it."""
    H, W = label.shape
    even = np.pad(label, ((0, 0), (0, W % 2)))
    rows = np.concatenate([np.zeros((H, 1), np.uint8), even[:, ::2] << 4 | even[:, 1::2]], axis=1)
    header = W.to_bytes(4, "big") + H.to_bytes(4, "big") + bytes([4, 0, 0, 0, 0])
    return mutations.png_file([(b"IHDR", header), (b"IDAT", mutations.zlib.compress(rows.tobytes())), (b"IEND", b"")])


def jpegs() -> Iterator[Original]:
    grey, colour = pixels(20, 40, 33), pixels(21, 37, 50, 3)
    exif = Image.Exif()
    exif[274] = 6
    yield Original("grey.jpg", saved(grey, "JPEG"), (40, 33))
    yield Original("colour.jpg", saved(colour, "JPEG", quality=90), (37, 50, 3))
    yield Original("steps.jpg", saved(colour, "JPEG", progressive=True), (37, 50, 3))
    yield Original("turned.jpg", saved(colour, "JPEG", exif=exif), (50, 37, 3))
    yield Original("print.jpg", saved(Image.fromarray(colour).convert("CMYK"), "JPEG"), (37, 50, 3))


def tiff_bytes(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **({"metadata": None, "photometric": "minisblack"} | options))
    return stream.getvalue()


def tiffs() -> Iterator[Original]:
    grey, deep, colour = pixels(30, 19, 23), pixels(31, 33, 20, dtype="u2"), pixels(32, 18, 21, 3)
    real = pixels(33, 17, 20).astype(np.float32) / 7
    yield Original("grey.tif", tiff_bytes(grey), grey)
    yield Original("deep.tif", tiff_bytes(deep, rowsperstrip=8), deep)
    yield Original("real.tif", tiff_bytes(real, byteorder=">"), real)
    yield Original("colour.tif", tiff_bytes(colour, photometric="rgb"), colour)
    planes = np.ascontiguousarray(np.moveaxis(colour, -1, 0))
    yield Original("planes.tif", tiff_bytes(planes, photometric="rgb", planarconfig="separate"), colour)
    yield Original("zlib.tif", tiff_bytes(deep, compression="zlib", rowsperstrip=5), deep)
    yield Original("predictor.tif", tiff_bytes(colour, photometric="rgb", compression="zlib", predictor=2), colour)
    yield Original("tiles.tif", tiff_bytes(deep, tile=(16, 16)), deep)
    yield Original("big.tif", tiff_bytes(grey, bigtiff=True), grey)
    yield Original("lzw.tif", saved(grey, "TIFF", compression="tiff_lzw"), grey)


def arrays_of(file: Any) -> dict[str, np.ndarray]:
    return {f"{group}/{key}": read_array(file[group][key]) for group in file for key in file[group]}


def hdf5s() -> Iterator[Original]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.hdf5"
        extras = {"instances": classes(40, number=5).astype(np.uint16)}
        samples = [Sample(f"s{i}", pixels(40 + i, 19, 23), classes(40 + i), None, extras) for i in range(4)]
        build_hdf5(samples, path, num_classes=2)
        normal = normalise_hdf5(path, path.with_name("normal.hdf5"))
        for file in (path, normal):
            with open_hdf5(file) as opened:
                yield Original(file.name, file.read_bytes(), (arrays_of(opened), attributes(opened)))


def attributes(file: Any) -> str:
    names = ["/", *(f"{group}/{key}" for group in sorted(file) for key in sorted(file[group]))]
    return json.dumps([[n, sorted((k, np.asarray(v).tolist()) for k, v in file[n].attrs.items())] for n in names])


FILES = {f"box/im/{name}.tif": b"II*\0" + Random(name).randbytes(300) for name in "ab"}
FILES |= {"box/deep/er/text.txt": b"hello " * 50, "__MACOSX/box/._a.tif": b"x"}


def zips() -> Iterator[Original]:
    for name, method in (("packed.zip", zipfile.ZIP_DEFLATED), ("stored.zip", zipfile.ZIP_STORED)):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as packed:
            for place, content in FILES.items():
                packed.writestr(zipfile.ZipInfo(place), content, method)
        yield Original(name, stream.getvalue(), FILES)


def tars() -> Iterator[Original]:
    for name, form in (("posix.tar.gz", tarfile.PAX_FORMAT), ("gnu.tar.gz", tarfile.GNU_FORMAT)):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as packed:
            for place, content in FILES.items():
                info = tarfile.TarInfo(place if "text" not in place else "box/deep/er/" + "long" * 30 + ".txt")
                info.size = len(content)
                packed.addfile(info, io.BytesIO(content))
        truth = {("box/deep/er/" + "long" * 30 + ".txt" if "text" in place else place): FILES[place] for place in FILES}
        yield Original(name, gzip.compress(stream.getvalue(), mtime=0), truth)


def cell(kind: str, source: str, number: int | None = None, *outputs: dict[str, Any]) -> dict[str, Any]:
    made = {"cell_type": kind, "id": f"c{number or len(source)}", "metadata": {}, "source": source.splitlines(True)}
    return made | ({"execution_count": number, "outputs": list(outputs)} if kind == "code" else {})


def notebooks() -> Iterator[Original]:
    picture = {"image/png": "iVBORw0KGgo=", "text/plain": ["<Figure>"]}
    shown = {"output_type": "display_data", "metadata": {}, "data": picture}
    printed = {"output_type": "stream", "name": "stdout", "text": ["hello\n", "loss 0.1"]}
    result = {"output_type": "execute_result", "execution_count": 3, "metadata": {}, "data": {"text/plain": ["7"]}}
    cells = [
        cell("markdown", "# Report\nNames: Emmy, Ada"),
        cell("code", "%matplotlib inline\nimport mynet\nimport numpy as np", 1, printed),
        cell("markdown", "## A1.1a U-Net\n`figures/table.csv`\nI needed the following time to complete the task: 2 h"),
        cell("code", "import plots\nplots.show_pair(1)", 2, shown),
        cell("code", "x = [n for n in range(3)]\nsum(x)", 3, result, printed),
    ]
    frame = {"metadata": {"language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}
    for name, part in (("report.ipynb", cells), ("short.ipynb", [cells[0], cells[1], cells[3]])):
        yield Original(name, json.dumps({"cells": part, **frame}, indent=1).encode())


MAKERS: dict[str, tuple[str, Callable[[], Iterator[Original]]]] = {
    "image": ("png", images),
    "mask": ("png", masks),
    "jpeg": ("jpeg", jpegs),
    "tiff": ("tiff", tiffs),
    "hdf5": ("hdf5", hdf5s),
    "sealed": ("hdf5", hdf5s),
    "zip": ("zip", zips),
    "tar": ("tar", tars),
    "notebook": ("notebook", notebooks),
}


@functools.cache
def originals(kind: str) -> list[Original]:
    """All sound files of one kind."""
    return list(MAKERS[kind][1]())


def spoilt(kind: str, number: int, seed: int) -> Case:
    """Spoilt file `number` of a kind."""
    chance = Random(f"{seed} {kind} {number}")
    original, other = (chance.choice(originals(kind)) for _ in range(2))
    strangers = [name for name in MAKERS if MAKERS[name][0] != MAKERS[kind][0]]
    stranger = chance.choice(originals(chance.choice(strangers)))
    form = "tiff" if original.name.endswith(".tif") else MAKERS[kind][0]
    while True:
        content, how = mutations.mutate(original.content, form, chance, other.content, stranger.content)
        if len(content) < 2**21:
            return Case(kind, content, original, how, chance)


# --- what reads them; each function says if a referee has compared, and raises `Wrong` ---


def look_at_image(case: Case, box: Path) -> bool:
    """`read_image` alone, and `read_folder` with a sound mask of the old size."""
    path = write(box / "images" / case.original.name, case.content)
    if case.chance.random() < 0.3:
        return _image_of_a_pair(case, path, box)
    found = read_image(path)
    return compared(case, found, functools.partial(stored, as_label=False))


def _image_of_a_pair(case: Case, path: Path, box: Path) -> bool:
    sound = read_size(case)
    write(box / "labels" / f"{path.stem}.png", saved(classes(7, *sound), "PNG"))
    (sample,) = read_folder(box)
    if sample.image.shape[:2] != sound:
        raise Wrong(f"an image {sample.image.shape} beside a mask {sound}")
    return compared(case, sample.image, functools.partial(stored, as_label=False))


def read_size(case: Case) -> tuple[int, int]:
    truth = case.original.truth
    return (truth if isinstance(truth, tuple) else truth.shape)[:2]


def look_at_mask(case: Case, box: Path) -> bool:
    path = write(box / "labels" / case.original.name, case.content)
    label_map = case.original.label_map
    if case.chance.random() < 0.3:
        write(box / "images" / f"{path.stem}.png", saved(pixels(8, *read_size(case)), "PNG"))
        (sample,) = read_folder(box, label_map)
        found = sample.label
    else:
        found = read_label(path, label_map)
    if not np.issubdtype(found.dtype, np.integer) or found.ndim != 2:
        raise Wrong(f"a mask {found.shape} {found.dtype}")
    return compared(case, found, functools.partial(stored, as_label=True, label_map=label_map))


def compared(case: Case, found: np.ndarray, referee: Callable[[bytes], np.ndarray | None]) -> bool:
    """Is the array that was read the old one, or what the referee reads?"""
    if equal(found, case.original.truth):
        return True
    try:
        wanted = referee(case.content)
    except referees.Unknown:
        return False
    except referees.Unsound as error:
        raise Wrong(f"{found.shape} {found.dtype} was read from a file that breaks a rule: {error}") from error
    if wanted is not None and not equal(found, wanted):
        raise Wrong(f"{found.shape} {found.dtype} was read, but it holds {wanted.shape} {wanted.dtype}")
    return wanted is not None


def equal(one: np.ndarray, other: Any) -> bool:
    same = isinstance(other, np.ndarray) and one.shape == other.shape and one.dtype == other.dtype
    return same and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def stored(content: bytes, *, as_label: bool, label_map: Any = None) -> np.ndarray | None:
    """What the file holds by its own standard; None if only its size could be compared, which then was done."""
    if content.startswith(b"\xff\xd8"):
        raise referees.Unknown("JPEG")
    if content[:2] in (b"II", b"MM"):
        array = referees.tiff(content)
        array = array.astype(array.dtype.newbyteorder("="))
    elif as_label:
        found = referees.png(content)
        referees.must(found.colour in (0, 2, 3) and not (found.colour and found.depth == 16), "no alpha, no 48 bits")
        array = found.samples
    else:
        return png_image(referees.png(content))
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if as_label and array.ndim == 3 and not isinstance(next(iter(label_map or [0])), tuple):
        referees.must((array == array[..., :1]).all(), "a mask of colours")
        array = array[..., 0]
    return by_table(array, label_map) if as_label and label_map else array


def by_table(array: np.ndarray, label_map: Any) -> np.ndarray:
    """The class of each value or colour, one pixel after the other."""
    rows = array.reshape(*array.shape[:2], -1).tolist()
    table = {value if isinstance(value, tuple) else (value,): number for value, number in label_map.items()}
    referees.must(all(tuple(pixel) in table for row in rows for pixel in row), "a value without a class")
    return np.array([[table[tuple(pixel)] for pixel in row] for row in rows], np.uint8)


def png_image(found: referees.Png) -> np.ndarray:
    """The grey values or colours of a PNG that is an image: bits spread over a byte, palette followed, alpha away."""
    samples = found.samples
    if found.colour == 3:
        referees.must(samples.max() < len(found.palette), "an index beyond the palette")
        return found.palette[samples[..., 0]]
    if found.colour in (4, 6):
        referees.must((samples[..., -1] == samples.max(initial=255)).all(), "transparent pixels")
        samples = samples[..., :-1]
    if found.depth < 8:
        samples = samples * np.uint8(255 // (2**found.depth - 1))
    referees.must(found.depth <= 8 or found.colour == 0, "48 bits a pixel")
    return samples[..., 0] if samples.shape[2] == 1 else samples


def look_at_jpeg(case: Case, box: Path) -> bool:
    path = write(box / "images" / case.original.name, case.content)
    if case.chance.random() < 0.2 and case.content.startswith(b"\xff\xd8"):
        label = read_label(path)  # as a mask it is refused, whatever its pixels are
        raise Wrong(f"a JPEG was read as a mask {label.shape}")
    found = read_image(path)
    if not case.content.startswith(b"\xff\xd8"):
        return compared(case, found, functools.partial(stored, as_label=False))
    size = referees.jpeg_size(case.content)
    if found.dtype != np.uint8 or found.ndim not in (2, 3) or found.shape[2:] not in ((), (3,)):
        raise Wrong(f"an image {found.shape} {found.dtype}")
    if found.shape[:2] not in (size, size[::-1]):
        raise Wrong(f"an image {found.shape} was read, but the file says {size}")
    return False


def look_at_hdf5(case: Case, box: Path) -> bool:
    """All arrays and attributes, or the batches that a network would see."""
    path = write(box / case.original.name, case.content)
    if case.kind == "sealed":
        hdf5file.stamp(path)
        hdf5file._KNOWN.clear()  # as if it came from elsewhere
        if path.read_bytes() == case.original.content:  # only the stamp was spoilt
            return True
    arrays, texts = case.original.truth
    with open_hdf5(path) as file:
        found, names = arrays_of(file), attributes(file)
        is_normal = bool(file.attrs["normalised"])
    if found.keys() != arrays.keys() or not all(equal(found[key], arrays[key]) for key in arrays):
        raise Wrong("other arrays than were written")
    if names != texts:
        raise Wrong("other attributes than were written")
    if is_normal:
        dataset = SegmentationDataset(path, "train")
        if not all(torch.isfinite(dataset[index][0]).all() for index in range(len(dataset))):
            raise Wrong("values that are no numbers")
    if case.kind == "hdf5":
        raise Wrong("a file was opened whose bytes are not those that were sealed")
    return True


def look_at_archive(case: Case, box: Path) -> bool:
    """`unpack` alone, or `locate` with the archive already there, as somebody puts it there by hand."""
    if case.chance.random() < 0.5:
        path = write(box / case.original.name, case.content)
        try:
            unpack(path, box / "out")
        except InputError:
            shutil.rmtree(box / "out", ignore_errors=True)  # what was written stays inside: the caller takes it away
            raise
        return compare_trees(case, files_below(box / "out"))
    ending = ".zip" if case.kind == "zip" else ".tar.gz"
    checksum = f"sha256:{hashlib.sha256(case.original.content).hexdigest()}" if case.chance.random() < 0.1 else ""
    file = RemoteFile(f"http://127.0.0.1:9/boxed{ending}", f"boxed{ending}", checksum)  # nobody listens there
    SOURCES["boxed"] = Source("boxed", "A test.", "none", "nobody", (file,), (("im/*.tif", 2),), archive_root="box")
    write(box / "data" / f"boxed{ending}", case.content)
    try:
        folder = download.locate("boxed", box / "data", say=lambda line: None)
    except InputError:
        (box / "data" / f"boxed{ending}.wrong").unlink(missing_ok=True)  # kept on purpose
        raise
    finally:
        del SOURCES["boxed"]
    if checksum:
        raise Wrong("an archive with another checksum was used")
    found = files_below(folder)
    if sum(name.startswith("im/") and name.endswith(".tif") for name in found) < 2:
        raise Wrong(f"a set that is not complete: {sorted(found)}")
    shutil.rmtree(folder)
    return compare_trees(case, {f"box/{name}": content for name, content in found.items()}, "box/")


def compare_trees(case: Case, found: dict[str, bytes], below: str = "") -> bool:
    """All files below a folder must be those that were packed, or those that the referee unpacks."""

    def there(files: dict[str, bytes]) -> dict[str, bytes]:
        return {name: content for name, content in files.items() if name.startswith(below)}

    if found == there(case.original.truth):
        return True
    try:
        wanted = there((referees.zip_files if case.kind == "zip" else referees.tar_files)(case.content))
    except referees.Unknown:
        return False
    except referees.Unsound as error:
        raise Wrong(f"unpacked from an archive that breaks a rule: {error}") from error
    if odd := found.items() ^ wanted.items():
        raise Wrong(f"other files than in the archive: {sorted(name for name, _ in odd)[:3]}")
    return True


def files_below(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if not path.is_dir()]
    if any(path.is_symlink() or not path.is_file() for path in paths):
        raise Wrong("a link or a device was unpacked")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def look_at_notebook(case: Case, box: Path) -> bool:
    """Checks, zip, reminders, and the names of `cell_order`."""
    notebook = write(box / case.original.name, case.content)
    for path in (box / "project", box / "project/figures"):
        path.mkdir()
    for name, text in PROJECT.items():
        (box / "project" / name).write_text(text)
    sections = cell_order.sections(notebook)
    if not all(isinstance(word, str) and "\n" not in word for word in (*sections, *sections.values())):
        raise Wrong(f"sections {sections}")
    problems = handin.problems(notebook, box / "project")
    target = box / "out" / "report.zip"
    try:
        handin.build_zip(notebook, box / "project", target)
    except handin.HandinError as error:
        if problems and error.problems != problems:
            raise Wrong(f"other problems for the zip: {error.problems}") from error
        shutil.rmtree(box / "project")
        raise
    if problems:
        raise Wrong(f"a zip in spite of {problems}")
    handin.reminders(notebook, box / "project")
    with zipfile.ZipFile(target) as packed:
        if packed.read(notebook.name) != case.content:
            raise Wrong("the zip holds another notebook")
    shutil.rmtree(box / "project")
    shutil.rmtree(target.parent)
    if flaw := referees.notebook_flaw(case.content):
        raise Wrong(f"handed in although: {flaw}")
    return True


PROJECT = {
    "README.md": "# Report\n",
    "requirements.txt": "numpy>=2.0\nmatplotlib>=3.9\n",
    "mynet.py": "import math\n",
    "plots.py": "def show_pair(image, ax=None): ...\n",
    "figures/table.csv": "a,b\n",
}
LOOKS: dict[str, Callable[[Case, Path], bool]] = {
    "image": look_at_image,
    "mask": look_at_mask,
    "jpeg": look_at_jpeg,
    "tiff": look_at_image,
    "hdf5": look_at_hdf5,
    "sealed": look_at_hdf5,
    "zip": look_at_archive,
    "tar": look_at_archive,
    "notebook": look_at_notebook,
}


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- the word for it ---


def judge(case: Case, box: Path) -> Outcome:
    """Let our code read one spoilt file in the empty folder `box`."""
    box.mkdir()
    is_compared = True
    before = peak_memory()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            is_compared = LOOKS[case.kind](case, box)
            word, detail = "fine", ""
        except Wrong as error:
            word, detail = "wrong", str(error)
        except (InputError, handin.HandinError) as error:
            flaw = flaw_of(error, case.original.name)
            word, detail = ("foreign", f"{flaw}: {error}") if flaw else ("refused", str(error))
            if has_cause(error, MemoryError):
                word, detail = "memory", str(error)
        except MemoryError as error:
            word, detail = "memory", str(error)
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            word, detail = "foreign", f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
    if word in ("fine", "refused") and caught:
        word, detail = "foreign", f"a warning: {caught[0].category.__name__}: {caught[0].message}"
    if word in ("fine", "refused") and (left := left_over(case, box)):
        word, detail = "leftover", f"{left} ({detail})"
    if word in ("fine", "refused") and peak_memory() - before > GIB:
        word, detail = "memory", f"{(peak_memory() - before) / GIB:.1f} GiB ({detail})"
    shutil.rmtree(box)
    return Outcome(word, detail, is_compared)


def flaw_of(error: Exception, name: str) -> str:
    """What a student could not use in this message; an empty string if it is good."""
    text = str(error)
    if isinstance(error, handin.HandinError):
        lines = error.problems
        if any("\n" in line for line in lines):
            return "a problem of several lines"
    else:
        lines = text.splitlines()
        if len(lines) > 4:
            return f"{len(lines)} lines"
        if Path(name).stem not in lines[0] and "boxed" not in lines[0]:
            return "the first line does not name the file"
    if not text.replace("\n", "").isprintable():
        return "signs that cannot be printed"
    if longest := max((len(line) for line in lines if len(line) > 400), default=0):
        return f"a line of {longest} signs"
    if any(mark in text for mark in ("Traceback", " object at 0x", "<class ")):
        return "a trace of the program"
    cause = error.__cause__ or error.__context__
    return "only the message of the library" if cause is not None and text.strip() == str(cause).strip() else ""


def has_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False


def left_over(case: Case, box: Path) -> list[str]:
    """What lies in the folder, or in that of temporary files, and was neither there before nor asked for."""
    allowed = {"images", "labels", "data", "out", case.original.name, "boxed.zip", "boxed.tar.gz"}
    found = [path for path in box.rglob("*") if path.name not in allowed and path.parts[len(box.parts)] != "out"]
    if case.kind in ("image", "mask", "jpeg", "tiff"):
        found = [path for path in found if path.suffix != ".png"]
    scratch = [path for path in Path(tempfile.gettempdir()).iterdir() if path != box]
    beside = [path for path in box.parent.iterdir() if path not in (box, Path(tempfile.gettempdir()), noise_file(box))]
    return [path.name for path in (*found, *scratch, *beside)]


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- children ---


def noise_file(box: Path) -> Path:
    return box.parent / "noise.txt"


def read_all(cases: list[tuple[str, int]], seed: int, home: Path, tell: Callable[[str], object]) -> None:
    """What a child does: tell which file begins, and its outcome."""
    scratch = home / "scratch"
    scratch.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    download.PAUSES = (0.0,)
    box, output = home / "box", os.open(noise_file(home / "box"), os.O_RDWR | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    limit_memory()
    for kind, number in cases:
        case = spoilt(kind, number, seed)
        tell(json.dumps([kind, number, case.how]))
        outcome = judge(case, box)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if (size := os.fstat(output).st_size) and outcome.word in ("fine", "refused"):
            text = os.pread(output, min(size, 300), 0).decode("utf-8", "replace")
            outcome = outcome._replace(word="foreign", detail=f"printed: {text}")
        os.ftruncate(output, 0)
        os.lseek(output, 0, os.SEEK_SET)
        tell(json.dumps(list(outcome)))


def limit_memory() -> None:
    """No more than two GiB above what the libraries take, and no file above one GiB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (GIB, GIB))
    status = Path("/proc/self/statm")  # elsewhere the peak alone is looked at
    if status.exists():
        taken = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * GIB, taken + 2 * GIB))


def outcomes(cases: list[tuple[str, int]], seed: int, batch: int = 250) -> Iterator[tuple[str, int, str, Outcome]]:
    """Read all files in children, `batch` at a time: (kind, number, how, outcome) of each."""
    for kind in MAKERS:
        originals(kind)  # before the forks
    waiting = list(cases)
    while waiting:
        with tempfile.TemporaryDirectory() as home:
            done = 0
            for found in one_child(waiting[:batch], seed, Path(home)):
                done += 1
                yield found
            waiting = waiting[done:]


def one_child(cases: list[tuple[str, int]], seed: int, home: Path) -> Iterator[tuple[str, int, str, Outcome]]:
    """The outcomes of one child, until it is through, hangs or ends."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _read_and_exit(cases, seed, home, writing)
    os.close(writing)
    with open(reading, "rb", buffering=0) as pipe:
        lines, began = lines_of(pipe), ["", 0, "start"]
        for line in lines:
            if line is None:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                yield (*began, Outcome("hang", f"no answer in {SECONDS:.0f} s"))  # type: ignore[misc]
                return
            found = json.loads(line)
            if found[0] in WORDS:
                yield (*began, Outcome(*found))  # type: ignore[misc]
                began = ["", 0, "start"]
            else:
                began = found
    _, status = os.waitpid(child, 0)
    if began[0]:
        yield (*began, Outcome("foreign", f"the process ended: {os.waitstatus_to_exitcode(status)}"))  # type: ignore[misc]
    elif status:
        raise SystemExit(f"The fuzzer itself failed: {os.waitstatus_to_exitcode(status)}")


def lines_of(pipe: Any) -> Iterator[str | None]:
    """The lines that come through a pipe; None if there is none for too long."""
    rest = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], SECONDS)
        if not ready:
            yield None
            return
        block = pipe.read(2**16)
        if not block:
            return
        *lines, rest = (rest + block).split(b"\n")
        yield from (line.decode() for line in lines)


def _read_and_exit(cases: list[tuple[str, int]], seed: int, home: Path, writing: int) -> NoReturn:
    code = 1
    error_stream = os.dup(2)
    try:
        with open(writing, "w", encoding="utf-8") as pipe:
            read_all(cases, seed, home, lambda line: print(line, file=pipe, flush=True))
        code = 0
    except BaseException:
        os.write(error_stream, traceback.format_exc().encode())
    finally:
        os._exit(code)


def plan(files: int, kinds: list[str]) -> list[tuple[str, int]]:
    """Which files: as many of each kind."""
    return [(kinds[index % len(kinds)], index // len(kinds)) for index in range(files)]


def table(counts: dict[str, Counter[str]]) -> str:
    """One row for each kind, and their sum."""
    total: Counter[str] = sum(counts.values(), Counter())
    head = ("kind", "files", *WORDS, "fine, not compared")
    every = {**counts, "all": total}
    rows = [(kind, sum(c[w] for w in WORDS), *(c[w] for w in WORDS), c["alone"]) for kind, c in every.items()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ("---",) * len(head), *rows))


def main() -> int:
    """Print the counts; the status is the number of files that were neither fine nor refused (at most 100)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--kind", nargs="*", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="only this file of each kind")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write there what was neither fine nor refused")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads must not fork
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    cases = plan(options.files, options.kind) if options.number is None else [(k, options.number) for k in options.kind]
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in options.kind}
    bad, began = 0, time.perf_counter()
    for kind, number, how, (word, detail, is_compared) in outcomes(sorted(cases), options.seed):
        counts[kind][word] += 1
        counts[kind]["alone"] += word == "fine" and not is_compared
        is_bad = word not in ("fine", "refused")
        bad += is_bad
        if is_bad or options.number is not None:
            print(f"{word}: {kind} {number} ({how}): {detail}", flush=True)
        if is_bad and options.keep:
            case = spoilt(kind, number, options.seed)
            write(options.keep / f"{kind}-{number}-{case.original.name}", case.content)
    print(table(counts))
    print(f"{len(cases)} files in {time.perf_counter() - began:.0f} s, seed {options.seed}")
    return min(bad, 100)


if __name__ == "__main__":
    sys.exit(main())
