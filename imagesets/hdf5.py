"""One checked .hdf5 file from samples, and a second one with normalised images.

HDF5 returns damaged data without a word, so the first 512 bytes, which it leaves to its users, hold a seal: the SHA-256
of all that follows.  It is compared before HDF5 opens the file.  Each file is written under a temporary name and
renamed at the end.  Source: HDF5, https://docs.hdfgroup.org/hdf5 (user block).
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from checks import IGNORE_INDEX, InputError
from imagesets.files import FRACTIONS, PARTS, BadFiles, Problem, Sample, list_values, raise_problems, split_parts

VERSION = 3  # raise it when the content of the files changes: older ones are built again
SEAL_BYTES = 512  # the smallest user block


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
    >>> with open_hdf5(path) as file:
    ...     sorted(file), file["image/00000"].shape, str(file["image/00000"].dtype)
    (['image', 'label'], (2, 2), 'uint8')
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
            if found := sample_problems(sample, first, num_classes):
                problems += found
                continue
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
    image, label, found = sample.image, sample.label, list[tuple[str, str]]()
    is_usual = image.dtype.kind == "f" or image.dtype in (np.uint8, np.uint16)
    if image.ndim not in (2, 3) or image.size == 0 or not is_usual:
        found += [(f"has an image {image.shape} {image.dtype}", "expected (H, W) or (H, W, C), uint8, uint16 or float")]
    elif image.dtype.kind == "f" and not np.isfinite(image).all():
        found += [("has NaN or Inf in the image", "find out where they come from, and replace them")]
    if sample.part not in (None, *PARTS):
        found += [(f"has the part {sample.part!r}", f"expected None or one of {PARTS}")]
    for name, array in {"label": label, **sample.extras}.items():
        if array.shape != image.shape[:2]:
            found += [(f"has an image of size {image.shape[:2]}, {name} has {array.shape}", "export it again")]
    wrong = label[(label != IGNORE_INDEX) & ~((label >= 0) & (label < num_classes))]
    if label.dtype.kind not in "ui":
        found += [(f"has a label of dtype {label.dtype}", "save class numbers, for example as 8-bit PNG")]
    elif wrong.size:
        what = f"has {wrong.size} label pixels that are not in 0 … {num_classes - 1} and not {IGNORE_INDEX} (ignored)"
        advice = "is num_classes right? soft edges? instance numbers? use label_map"
        found += [(f"{what}: {list_values(wrong)}", advice)]
    if not found and first is not None:
        other = first.image
        if (image.shape[2:], image.dtype.kind) != (other.shape[2:], other.dtype.kind):
            what = f"has an image {image.shape} {image.dtype}, but the first is {other.shape} {other.dtype}"
            found += [(what, "use one kind for all: grey or colour, integers or floats")]
        if sample.extras.keys() != first.extras.keys():
            what = f"has the maps {sorted(sample.extras)}, but the first has {sorted(first.extras)}"
            found += [(what, "add the maps that are missing")]
    return [Problem(sample.name, what, advice) for what, advice in found]


def build_settings(num_classes: int, fractions: Mapping[str, float], seed: int, source: str) -> str:
    """All that decides what `build_hdf5` writes, as one text; `source` stands for the files read."""
    return json.dumps([num_classes, dict(fractions), seed, source])


def normalise_hdf5(source: str | Path, path: str | Path) -> Path:
    """Write a new .hdf5 with float32 images (C, H, W), x ← (x − mean) / std per channel, and return its path.

    Integer images are first divided by the largest value of their dtype.  Mean and standard deviation are taken in
    float64 over all pixels of the *training* part: those of validation and test would leak into the model that they
    are to judge.  A channel that is constant there gets std = 1.  Labels and maps are carried over; `mean` and `std`
    become attributes of the file.
    """
    source, path = Path(source), Path(path)
    with open_hdf5(source) as raw, _writing(path) as file:
        images = raw["image"]
        train = [images[key] for key in images if images[key].attrs["part"] == "train"]
        if raw.attrs["normalised"] or not train:
            raise InputError(f"{source} is normalised already, or has no training part to take the mean from.")
        mean, std = _statistics(train)
        for key in images:
            _write_array(file, f"image/{key}", normalise_image(images[key][()], mean, std))
            file["image"][key].attrs.update(images[key].attrs)
        for group in raw.keys() - {"image"}:
            raw.copy(group, file)
        contents = hashlib.sha256(f"normalised {raw.attrs['contents']}".encode()).hexdigest()
        file.attrs.update({**raw.attrs, "normalised": True, "mean": mean, "std": std, "contents": contents})
    return path


def normalise_image(image: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """One image (H, W) or (H, W, C), uint8, uint16 or float, as float32 (C, H, W), (x − mean) / std per channel.

    >>> normalise_image(np.full((1, 2), 255, np.uint8), np.array([0.5]), np.array([0.25])).tolist()
    [[[2.0, 2.0]]]
    """
    return ((_scaled(image) - mean[:, None, None]) / std[:, None, None]).astype(np.float32)


def _scaled(image: np.ndarray) -> np.ndarray:
    """An image (H, W) or (H, W, C) as float64 (C, H, W), integers scaled to 0 … 1."""
    largest = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    return np.ascontiguousarray(np.moveaxis(np.atleast_3d(image), -1, 0)) / np.float64(largest)


def _statistics(images: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C,) of each channel over all pixels of the images, in float64."""
    rows = []
    for dataset in images:
        pixels = _scaled(dataset[()])
        rows.append((pixels[0].size, pixels.mean(axis=(1, 2)), pixels.var(axis=(1, 2))))
    counts, means, variances = (np.array(column) for column in zip(*rows))
    mean = np.average(means, axis=0, weights=counts)
    # within the images + between them; E[x²] − E[x]² would cancel where the mean is large
    std = np.sqrt(np.average(variances + (means - mean) ** 2, axis=0, weights=counts))
    return mean, np.where(std <= 1e-9 * abs(mean), 1.0, std)  # a constant channel leaves errors of rounding only


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
        # some drives (Google Drive in Colab) know no locks; the name of its own makes one unnecessary
        with h5py.File(temporary, "w", userblock_size=SEAL_BYTES, locking=False) as file:
            yield file
        block = _seal_of(temporary)
        with open(temporary, "r+b") as stream:
            stream.write(block)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written. Is the disk full, or the folder read-only? {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[Any]:
    """Open a file of `build_hdf5` or `normalise_hdf5` for reading, after its seal was compared.

    Raises `InputError` if it does not exist, is damaged or cut off, or is of another kind or version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist. Build it with data.prepare or build_hdf5.")
    with open(path, "rb") as stream:
        if stream.read(SEAL_BYTES) != _seal_of(path):
            raise InputError(f"{path} is damaged, cut off, or of another version. Delete it and build it again.")
    with h5py.File(path, "r", locking=False) as file:
        yield file


def _seal_of(path: Path) -> bytes:
    """What must stand in the first block: version, and the SHA-256 of all that follows."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        stream.seek(SEAL_BYTES)
        while block := stream.read(2**20):
            digest.update(block)
    text = f"segmentation {VERSION}, SHA-256 of all that follows this block: {digest.hexdigest()}"
    return text.encode().ljust(SEAL_BYTES, b"\0")
