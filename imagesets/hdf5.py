"""One checked .hdf5 file from samples, and a second one with normalised images.

1. `build_hdf5` checks all samples, lists all problems at once, and writes one array a sample into each group.
2. `normalise_hdf5` writes a new file with float32 images (C, H, W) of zero mean and unit deviation.

HDF5 returns damaged data without a word, so the first 512 bytes, which it leaves to its users, hold a seal: the SHA-256
of all that follows.  It is compared before HDF5 opens the file.  Each file is written under a temporary name and
renamed at the end.  Source: HDF5, https://docs.hdfgroup.org/hdf5 (user block).
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from checks import IGNORE_INDEX, InputError
from imagesets.files import FRACTIONS, PARTS, BadFiles, Problem, Sample, list_values, raise_problems, split_parts

VERSION = 3  # raise it when the content of the files changes: older ones are built again
SEAL_BYTES = 512  # the smallest user block
_MAGIC = f"segmentation {VERSION}, SHA-256 of all that follows this block: ".encode()
REBUILD = "Delete it and build it again."


def build_hdf5(
    samples: Iterable[Sample],
    path: str | Path,
    *,
    num_classes: int,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    source: str = "",
) -> Path:
    """Write all samples into one checked .hdf5 file and return its path.

    The groups `image`, `label` and one for each extra map hold one array a sample, `00000`, `00001`, …: images may
    differ in size.  Labels are uint8, 0 … num_classes−1 or 255 (ignored).  Each image has the attributes `name` and
    `part`; the file has `contents`, a hash of the samples and their parts.  `source` is any text that stands for the
    files.  Raises one `InputError` with the problems of all samples; an older file at `path` then stays as it is.

    >>> import tempfile
    >>> samples = [Sample(f"{i}", np.full((2, 2), i, np.uint8), np.eye(2, dtype=np.uint8)) for i in range(8)]
    >>> path = build_hdf5(samples, Path(tempfile.mkdtemp()) / "set.hdf5", num_classes=2)
    >>> path = normalise_hdf5(path, path.with_name("normalised.hdf5"))
    >>> with open_hdf5(path) as file:
    ...     sorted(file), file["image/00000"].shape, str(file["image/00000"].dtype)
    (['image', 'label'], (1, 2, 2), 'float32')
    """
    path = Path(path)
    if num_classes not in range(2, IGNORE_INDEX + 1):
        raise InputError(f"num_classes is {num_classes}; expected 2 … {IGNORE_INDEX}.")
    with _writing(path) as file:
        names, given, hashes, digest = _write_samples(file, samples, num_classes, path.name)
        for key, name, part in zip(file["image"], names, split_parts(hashes, fractions, seed, given, names)):
            file["image"][key].attrs.update(name=name, part=part)
            digest.update(f"{name} {part}\n".encode())
        file.attrs.update(num_classes=num_classes, normalised=False, contents=digest.hexdigest())
        file.attrs["settings"] = build_settings(num_classes, fractions, seed, source)
    return path


def _write_samples(file: Any, samples: Iterable[Sample], num_classes: int, where: str) -> tuple[Any, ...]:
    """Write the sound samples; return names, given parts, hashes of the images, and one running hash of all arrays."""
    rows: list[tuple[str, str | None, str]] = []
    problems: list[Problem] = []
    first: Sample | None = None
    digest = hashlib.sha256(f"{num_classes}".encode())
    try:
        for sample in samples:
            found = sample_problems(sample, first, num_classes)
            problems += found
            if not found:
                first = first or sample
                arrays = {"image": sample.image, "label": sample.label.astype(np.uint8), **sample.extras}
                hashes = {group: _sha256(array) for group, array in arrays.items()}
                for group, array in arrays.items():
                    _write_array(file, f"{group}/{len(rows):05d}", array)
                digest.update(json.dumps(hashes, sort_keys=True).encode())
                rows.append((sample.name.encode("utf-8", "replace").decode(), sample.part, hashes["image"]))
    except BadFiles as error:  # a reader lists its problems after its last sample
        problems += error.problems
    nothing = Problem("", "there is no sample", "look into the folder, and at the changes, which may leave samples out")
    raise_problems(where, problems if problems or rows else [nothing])
    return *zip(*rows), digest


def sample_problems(sample: Sample, first: Sample | None, num_classes: int) -> list[Problem]:
    """What is wrong with a sample, alone or beside the first sound one; an empty list if nothing is.

    >>> problems = sample_problems(Sample("a", np.zeros((2, 2), np.uint8), np.full((2, 2), 9)), None, num_classes=2)
    >>> print(problems[0].found)
    has 4 label pixels that are not in 0 … 1 and not 255 (ignored): 1 value, 9
    """
    image, problems = sample.image, _label_problems(sample.label, num_classes)
    is_float = np.issubdtype(image.dtype, np.floating)
    if image.ndim not in (2, 3) or image.size == 0:
        problems += [(f"has an image of shape {image.shape}", "expected (H, W) or (H, W, C)")]
    if not is_float and image.dtype not in (np.uint8, np.uint16):
        problems += [(f"has an image of dtype {image.dtype}", "expected uint8, uint16 or float")]
    if is_float and not np.isfinite(image).all():
        problems += [("has NaN or Inf in the image", "find out where they come from, and replace them")]
    if sample.part not in (None, *PARTS):
        problems += [(f"has the part {sample.part!r}", f"expected None or one of {PARTS}")]
    for name, array in {"label": sample.label, **sample.extras}.items():
        if array.shape != image.shape[:2]:
            what = f"has an image of size {image.shape[:2]}, {name} has {array.shape}"
            problems += [(what, "export the label again; never stretch one by interpolation")]
    if not problems and first is not None:
        other = first.image
        if (image.shape[2:], is_float) != (other.shape[2:], np.issubdtype(other.dtype, np.floating)):
            what = f"has an image {image.shape} {image.dtype}, but the first is {other.shape} {other.dtype}"
            problems += [(what, "use one kind for all: grey or colour, integers or floats")]
        if sorted(sample.extras) != sorted(first.extras):
            what = f"has the maps {sorted(sample.extras)}, the first has {sorted(first.extras)}"
            problems += [(what, "add the maps that are missing")]
    return [Problem(sample.name, found, advice) for found, advice in problems]


def _label_problems(label: np.ndarray, num_classes: int) -> list[tuple[str, str]]:
    if not np.issubdtype(label.dtype, np.integer):
        return [(f"has a label of dtype {label.dtype}", "save class numbers, for example as 8-bit PNG")]
    wrong = label[(label != IGNORE_INDEX) & ((label < 0) | (label >= num_classes))]
    found = f"has {wrong.size} label pixels that are not in 0 … {num_classes - 1} and not {IGNORE_INDEX} (ignored)"
    advice = "is num_classes right? soft edges? instance numbers? use label_map"
    return [(f"{found}: {list_values(wrong)}", advice)] if wrong.size else []


def build_settings(num_classes: int, fractions: Mapping[str, float], seed: int, source: str) -> str:
    """All that decides what `build_hdf5` writes, as one text; `source` stands for the files read."""
    return json.dumps([num_classes, dict(fractions), seed, source])


def normalise_hdf5(source: str | Path, path: str | Path) -> Path:
    """Write a new .hdf5 with float32 images (C, H, W), x ← (x − mean) / std per channel, and return its path.

    Integer images are first divided by the largest value of their dtype.  Mean and standard deviation are
    taken in float64 over all pixels of the *training* part.  If validation or test images went into them, these
    images would have a say in the model that they are to judge: a leak.  So the mean of the other parts is only
    near 0.  A channel that is constant in the training part gets std = 1, so it becomes 0 there; if all channels
    are, `InputError` is raised.  Labels and maps are carried over; `mean` and `std` become attributes of the file.
    """
    source, path = Path(source), Path(path)
    if source.resolve() == path.resolve():
        raise InputError(f"normalise_hdf5: source and path are both {path}; give the new file a new name.")
    with open_hdf5(source) as raw, _writing(path) as file:
        if raw.attrs["normalised"]:
            raise InputError(f"{source} is normalised already; use it as it is.")
        images = raw["image"]
        train = [images[key] for key in images if images[key].attrs["part"] == "train"]
        mean, std = _statistics(train, source)
        for key in images:
            _write_array(file, f"image/{key}", normalise_image(images[key][()], mean, std))
            file["image"][key].attrs.update(images[key].attrs)
        for group in raw.keys() - {"image"}:
            raw.copy(group, file)
        contents = hashlib.sha256(f"normalised {raw.attrs['contents']}".encode()).hexdigest()
        file.attrs.update({**raw.attrs, "normalised": True, "mean": mean, "std": std, "contents": contents})
    return path


def normalise_image(image: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Turn one image (H, W) or (H, W, C), uint8, uint16 or float, into what a model was trained on.

    Returns float32 (C, H, W); `mean` and `std` (C,) are those of the `SegmentationDataset` used in training.

    >>> normalise_image(np.full((1, 2), 255, np.uint8), np.array([0.5]), np.array([0.25])).tolist()
    [[[2.0, 2.0]]]
    """
    return ((_scaled(image) - mean[:, None, None]) / std[:, None, None]).astype(np.float32)


def _scaled(image: np.ndarray) -> np.ndarray:
    """An image (H, W) or (H, W, C) as float64 (C, H, W), integers scaled to 0 … 1."""
    largest = 1 if np.issubdtype(image.dtype, np.floating) else np.iinfo(image.dtype).max
    return np.ascontiguousarray(np.moveaxis(np.atleast_3d(image), -1, 0)) / np.float64(largest)


def _statistics(images: Sequence[Any], source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (C,) of each channel over all pixels of the images, in float64."""
    if not images:
        raise InputError(
            f"{source} has no training part; mean and deviation are taken from that part only.\n"
            "Give some samples the part 'train', or None to all of them."
        )
    rows = []
    for dataset in images:
        pixels = _scaled(dataset[()]).reshape(-1, dataset.shape[0] * dataset.shape[1])
        rows.append((pixels.shape[1], *(f(pixels, axis=1) for f in (np.mean, np.var, np.min, np.max))))
    counts, means, variances, lowest, highest = (np.array(column) for column in zip(*rows))
    mean = np.average(means, axis=0, weights=counts)
    # within the images + between them; E[x²] − E[x]² would cancel where the mean is large
    variance = np.average(variances + (means - mean) ** 2, axis=0, weights=counts)
    is_constant = lowest.min(axis=0) == highest.max(axis=0)
    if is_constant.all():
        raise InputError(
            f"{source}: all training pixels have one value.\nThere is nothing to learn: look at the images."
        )
    return np.where(is_constant, lowest[0], mean), np.where(is_constant, 1.0, np.sqrt(variance))


def _write_array(file: Any, key: str, array: np.ndarray) -> None:
    # gzip level 1, one chunk: 300 nuclei images as float32 take 17 MB in place of 95, and 0.2 s to read
    file.create_dataset(key, data=array, chunks=array.shape, compression="gzip", compression_opts=1)


def _sha256(array: np.ndarray) -> str:
    """The hash of dtype, shape and bytes of an array."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


# --- the file and its seal ---


@contextmanager
def _writing(path: Path) -> Iterator[Any]:
    """A new HDF5 file under a temporary name, sealed and renamed at the end; an error leaves and changes nothing."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")  # another kernel may build the same set
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # some drives (Google Drive in Colab) know no locks; the name of its own makes one unnecessary
            with h5py.File(temporary, "w", userblock_size=SEAL_BYTES, locking=False) as file:
                yield file
            seal(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        found = " ".join(str(error).split())[:150]
        raise InputError(
            f"{path} cannot be written. Is the disk full, or the folder read-only?\nFound: {found}"
        ) from error


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[Any]:
    """Open a file of `build_hdf5` or `normalise_hdf5` for reading, after its seal was compared.

    Raises `InputError` if it does not exist, is damaged or cut off, or is of another kind or version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist. Build it with data.prepare or data.build_hdf5.")
    try:
        with open(path, "rb") as stream:
            found, wanted = stream.read(SEAL_BYTES), _seal_of(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.\nGet the right to read it.") from error
    if not found.startswith(_MAGIC):
        raise InputError(f"{path} is of another kind or version: it begins with {found[:14]!r}.\n{REBUILD}")
    if found != wanted:
        raise InputError(f"{path}: the file is damaged or was cut off (SHA-256).\n{REBUILD}")
    with h5py.File(path, "r", locking=False) as file:
        yield file


def seal(path: Path) -> None:
    """Write the SHA-256 of a closed file into its first block."""
    block = _seal_of(path)
    with open(path, "r+b") as stream:
        stream.write(block)


def _seal_of(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        stream.seek(SEAL_BYTES)
        while block := stream.read(2**20):
            digest.update(block)
    return (_MAGIC + digest.hexdigest().encode()).ljust(SEAL_BYTES, b"\0")
