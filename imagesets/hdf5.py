"""One checked .hdf5 file from samples, and a second one with normalised images.

HDF5 returns damaged data without a word, so the first 512 bytes, which it leaves to its users, hold a seal: the SHA-256
of all that follows, compared before HDF5 opens the file.  Source: https://docs.hdfgroup.org/hdf5 (user block).
"""

import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike

from checks import IGNORE_INDEX, InputError, printable, reason_of
from imagesets.files import FRACTIONS, BadFiles, Problem, Sample, list_values, raise_problems, split_parts

VERSION = 4  # raise it when the content of the files changes: older ones are built again
SEAL_BYTES = 512  # the smallest user block
GZIP: Any = {"compression": "gzip", "compression_opts": 1}  # 300 nuclei images: 17 MB in place of 95, 0.2 s to read
MARK = b"segmentation "  # how the seal begins: without it a file is not ours
FILLS = (-9999, -32767, -32768, -99999)  # in maps of the earth these stand for "no data", beside ±1e30 and more
FAR = 10  # ranges of the other numbers: an edge of the image is not so far away, but a number without a meaning is
DEPTHS = 12  # times brighter: 12 bits beside 8 are 16 times
ASK = "is num_classes right? soft edges? numbers of cells? use label_map"
CELLS = "if these are numbers of cells, label_map={0: 0, '*': 1} makes one class of them; "
CELLS += "a copy of the folder, named instances/, keeps the numbers"


class Damaged(InputError):
    """A file of this course is not there, not as it was written, or of another version: build it again."""


@dataclass
class Comparison:
    """The samples of one set in turn: what is wrong with each, alone or beside the earlier sound ones."""

    num_classes: int
    first: Sample | None = None
    colours: dict[Any, tuple[str, Any]] = field(default_factory=dict)  # of a number in the masks, and who has it so
    sound: list[tuple[float, str, str, str]] = field(default_factory=list)  # largest value, dtype, name, part

    def __post_init__(self) -> None:
        if self.num_classes not in range(2, IGNORE_INDEX + 1):
            raise InputError(f"num_classes is {self.num_classes}; expected 2 … {IGNORE_INDEX}.")

    def problems(self, sample: Sample) -> list[Problem]:
        """What is wrong with a sample; an empty list if nothing is."""
        found = list(self._wrong_alone(sample)) or list(self._wrong_beside(sample))
        if not found:
            self.first = self.first or sample
            self.sound.append((float(sample.image.max()), sample.image.dtype.name, sample.name, sample.part or ""))
        return [Problem(printable(sample.name), *problem) for problem in found]

    def _wrong_alone(self, sample: Sample) -> Iterator[tuple[str, str]]:
        image, label = sample.image, sample.label
        if image.ndim not in (2, 3) or (image.dtype.kind != "f" and image.dtype not in (np.uint8, np.uint16)):
            yield f"has an image {image.shape} {image.dtype}", "expected (H, W) or (H, W, C), uint8, uint16, float"
        elif image.dtype.kind == "f" and not np.isfinite(image).all():
            yield "has NaN or Inf in the image", "find out where they come from, and replace them"
        elif image.dtype.kind == "f" and (fill := fill_value(image)) is not None:
            yield f"has {fill:g} in the image, which seems to stand for 'no data'", "replace it, and label it 255"
        for name, array in {"label": label, **sample.extras}.items():
            if array.shape != image.shape[:2]:
                yield f"has an image of size {image.shape[:2]}, {name} has {array.shape}", "export it again"
            elif name != "label" and not (np.isfinite(array) & (array >= 0)).all():
                yield f"has NaN, Inf or negative numbers in {name}", "correct this map"
        wrong = label[(label != IGNORE_INDEX) & ~((label >= 0) & (label < self.num_classes))]
        if label.dtype.kind not in "ui":
            yield f"has a label of dtype {label.dtype}", "save class numbers, for example as 8-bit PNG"
        elif wrong.size:
            patches = (label[:, 1:] == label[:, :-1]) & np.isin(label[:, 1:], wrong)
            are_cells = len(np.unique(wrong)) > 8 and 2 * patches.sum() > wrong.size  # soft edges have no patches
            what = f"has {wrong.size} label pixels that are not in 0 … {self.num_classes - 1} and not 255"
            yield f"{what}: {list_values(wrong)}", CELLS if are_cells else ASK

    def _wrong_beside(self, sample: Sample) -> Iterator[tuple[str, str]]:
        (image, maps), (other, others) = ((one.image, sorted(one.extras)) for one in (sample, self.first or sample))
        if (image.shape[2:], image.dtype.kind) != (other.shape[2:], other.dtype.kind):
            kinds = f"{image.shape} {image.dtype}, but the first is {other.shape} {other.dtype}"
            yield f"has an image {kinds}", "use one kind for all: grey or colour, integers or floats"
        if maps != others:
            yield f"has the maps {maps}, but the first has {others}", "add what is missing"
        for number, colour in sample.colours.items():
            name, known = self.colours.setdefault((number, type(colour)), (sample.name, colour))
            if known != colour:
                advice = "if one colour is one class, use label_map={(255, 0, 0): 1, …}, else save all masks alike"
                yield f"shows {number} in its mask as {colour}, but {printable(name)} as {known}", advice
                return

    def remarks(self) -> Iterator[str]:
        """What may make a set useless, and what to do, after the last sample."""
        kinds, none = sorted({dtype for _, dtype, *_ in self.sound}), (0.0, "", "", "")
        (least, _, low, _), (most, _, high, _) = min(self.sound, default=none), max(self.sound, default=none)
        if len(kinds) > 1 or (kinds != ["uint8"] and 0 < DEPTHS * least < most):
            text = f"{printable(low)} reaches {least:g}, {printable(high)} {most:g} ({', '.join(kinds)})"
            yield f"{text}: are 8, 12 and 16 bits mixed? Bring all images to one range"
        if groups := scenes([name for *_, name, part in self.sound if not part]):
            text = f"{sum(groups.values())} images seem to be cut from {', '.join(map(printable, list(groups)[:3]))}, …"
            yield f"{text}: sort what belongs together into one of train/, val/ and test/, or the score is too good"


def fill_value(image: np.ndarray) -> float | None:
    """The number that stands for "no data" in a finite float image, in more than one pixel; None if there is none."""
    for value in (float(image.min()), float(image.max())):
        rest = image[image != value].astype(np.float64)
        is_far = bool(rest.size) and abs(rest - value).min() > FAR * np.ptp(rest) > 0
        if rest.size < image.size - 1 and (value in FILLS or abs(value) > 1e30 or is_far):
            return value
    return None


def scenes(names: Sequence[str]) -> dict[str, int]:
    """Recordings that samples seem to be cut from, and how many: names differ in the last number, behind another one.

    >>> scenes(["scene1_x0_y0", "scene1_x0_y9", "scene2_x0_y0", "cell_1", "cell_2"])
    {'scene1_x0': 2}
    """
    found = Counter(match[1] for name in names if (match := re.fullmatch(r"(.*\d)\D+\d+\D*", name)))
    return {scene: count for scene, count in found.items() if count > 1}


def build_hdf5(
    samples: Iterable[Sample], path: str | Path, *, num_classes: int, seed: int = 0, source: str = "", say: Any = print
) -> Path:
    """Write all samples into one checked .hdf5 file and return its path.

    Groups `image`, `label` and one for each extra map hold an array a sample, `00000`, …, of any size; labels uint8,
    0 … num_classes−1 or 255 (ignored).  Images have attributes `name` and `part`; the file `contents`, a hash of all,
    and `source`, any text.  One `InputError` tells all problems, an older file then stays.  `say` gets remarks.
    """
    comparison, problems, rows = Comparison(num_classes), list[Problem](), list[tuple[Any, ...]]()
    with _writing(path) as file:
        try:
            for sample in samples:
                problems += (found := comparison.problems(sample))
                if not found:
                    rows.append((sample.name, sample.part, _write_sample(file, f"{len(rows):05d}", sample)))
        except BadFiles as error:  # a reader lists its problems after its last sample
            problems += error.problems
        if not rows and not problems:
            problems.append(Problem("", "there is no sound sample", "look into the folder, and at the changes"))
        raise_problems(Path(path).name, problems)
        names, given, hashes = zip(*rows)
        parts = split_parts([arrays["image"] for arrays in hashes], FRACTIONS, seed, given, names)
        for key, name, part in zip(file["image"], names, parts):
            file["image"][key].attrs.update(name=printable(name), part=part)
        contents = hashlib.sha256(json.dumps([num_classes, names, parts, hashes]).encode()).hexdigest()
        file.attrs.update(num_classes=num_classes, normalised=False, contents=contents, source=source)
    for remark in comparison.remarks():
        say(f"{Path(path).stem}: {remark}")
    return Path(path)


def _write_sample(file: Any, key: str, sample: Sample) -> dict[str, str]:
    arrays, hashes = {"image": sample.image, "label": sample.label.astype(np.uint8), **sample.extras}, {}
    for group, array in arrays.items():
        file.create_dataset(f"{group}/{key}", data=array, chunks=array.shape, **GZIP)
        hashes[group] = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()).hexdigest()
    return hashes


def normalise_hdf5(source: str | Path, path: str | Path, *, standardise: bool = False) -> Path:
    """Write a new .hdf5 with float32 images (C, H, W), x ← (x − mean) / std per channel, and return its path.

    Integers are first divided by the largest value of their dtype.  `mean` and `std`, kept as attributes, are those of
    all pixels of the *training* part: the others would leak into the model that they judge.  Where std = 0 it is 1.
    With `standardise` they are those of each image itself (many microscopes and exposures), and NaN as attributes.
    """
    with open_hdf5(source) as raw, _writing(path) as file:
        images = raw["image"]
        train = [image for image in images.values() if image.attrs["part"] == "train"]
        if raw.attrs["normalised"] or not train:
            raise InputError(f"{source} is normalised already, or has no training part to take the mean from.")
        rows = [(x[0].size, x.mean((1, 2)), x.var((1, 2))) for x in (_scaled(image[()]) for image in train)]
        counts, means, variances = (np.array(column) for column in zip(*rows))
        mean = np.average(means, axis=0, weights=counts)
        # within the images + between them; E[x²] − E[x]² would cancel where the mean is large
        std = np.sqrt(np.average(variances + (means - mean) ** 2, axis=0, weights=counts))
        std = np.where(std <= 1e-9 * abs(mean), 1.0, std)  # a constant channel leaves errors of rounding only
        if standardise:
            mean = std = np.full_like(mean, np.nan)
        for key, stored in images.items():
            image = normalise_image(stored[()], mean, std)
            file.create_dataset(f"image/{key}", data=image, chunks=image.shape, **GZIP).attrs.update(stored.attrs)
        for group in raw.keys() - {"image"}:
            raw.copy(group, file)
        contents = f"{'standardised' if standardise else 'normalised'} {raw.attrs['contents']}"
        file.attrs.update({**raw.attrs, "normalised": True, "mean": mean, "std": std, "contents": contents})
    return Path(path)


def normalise_image(image: np.ndarray, mean: ArrayLike, std: ArrayLike) -> np.ndarray:
    """One image (H, W[, C]) as float32 (C, H, W), (x − mean) / std per channel; NaN stands for those of the image.

    >>> normalise_image(np.uint8([[7, 9]]), np.nan, np.nan).tolist()
    [[[-1.0, 1.0]]]
    """
    x, shift, scale = _scaled(image), np.reshape(mean, (-1, 1, 1)), np.reshape(std, (-1, 1, 1))
    if np.isnan(shift).any():
        shift, scale = x.mean((1, 2), keepdims=True), x.std((1, 2), keepdims=True)
        scale = np.where(scale <= 1e-9 * abs(shift), 1.0, scale)
    return ((x - shift) / scale).astype(np.float32)


def _scaled(image: np.ndarray) -> np.ndarray:
    """An image (H, W) or (H, W, C) as float64 (C, H, W), integers scaled to 0 … 1."""
    largest = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    return np.ascontiguousarray(np.moveaxis(np.atleast_3d(image), -1, 0)) / np.float64(largest)


@contextmanager
def _writing(path: str | Path) -> Iterator[Any]:
    """A new HDF5 file in a temporary folder, sealed and moved at the end; an error leaves and changes nothing."""
    path = Path(path)
    if path.exists() and np.fromfile(path, np.uint8, len(MARK)).tobytes() not in (MARK, b""):
        raise InputError(f"{path} was not written by this course, so it stays. Move it away, or choose another folder.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:  # another kernel may build it, too
            temporary = Path(folder, "new.hdf5")
            with h5py.File(temporary, "w", userblock_size=SEAL_BYTES, locking=False) as file:  # Google Drive has none
                yield file
            with open(temporary, "r+b") as stream:
                stream.write(_seal_of(temporary))
            os.replace(temporary, path)
    except OSError as error:
        if "read data" in str(error):  # HDF5 means the file that is copied from
            raise
        raise InputError(f"{path} cannot be written: {reason_of(error)}. What was there stays.") from error


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[Any]:
    """Open a file of `build_hdf5` or `normalise_hdf5`: sound, else `Damaged`, and readable here, else `InputError`."""
    if not os.path.isfile(path):
        raise Damaged(f"{path} does not exist. Build it with data.prepare or build_hdf5.")
    try:
        seal = np.fromfile(path, np.uint8, SEAL_BYTES).tobytes()
        if seal and not seal.startswith(MARK):
            raise InputError(f"{path} was not written by this course, or its first bytes are damaged. Move it away.")
        if seal != _seal_of(path):
            raise Damaged(f"{path} is damaged, cut off, or of another version. Delete it and build it again.")
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (MemoryError, OSError) as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}. The file stays as it is.") from error


def _seal_of(path: str | Path) -> bytes:
    """What must stand in the first block: version, and the SHA-256 of all that follows."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        stream.seek(SEAL_BYTES)
        while block := stream.read(2**20):
            digest.update(block)
    return MARK + f"{VERSION}, SHA-256 {digest.hexdigest()}".encode().ljust(SEAL_BYTES - len(MARK), b"\0")
