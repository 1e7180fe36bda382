"""Serve the samples of a normalised .hdf5 as batches, each random draw following from (seed, epoch, index) alone.

`prepare` makes the file (`read_folder` → `build_hdf5` → `normalise_hdf5`), and again whenever settings or source files
have changed.  All datasets of one part of one file share one copy of its arrays.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from checks import IGNORE_INDEX, InputError
from imagesets.files import FRACTIONS, PARTS, LabelMap, Sample, is_junk, read_folder
from imagesets.hdf5 import build_hdf5, build_settings, normalise_hdf5, open_hdf5
from imagesets.pets import write_pets
from imagesets.real import READERS, locate, read_dataset
from imagesets.streets import write_roads, write_streets
from imagesets.yeast import write_yeast

SYNTHETIC = "synthetic_yeast"
BUILT_IN: dict[str, Callable[[Path], Path]] = {
    SYNTHETIC: write_yeast,
    "synthetic_streets": write_streets,
    "synthetic_roads": write_roads,
    "synthetic_pets": write_pets,
}
NAMES = (*BUILT_IN, *READERS)
NUM_CLASSES = {SYNTHETIC: 2, "synthetic_streets": 6, "synthetic_roads": 2, "synthetic_pets": 3}
NUM_CLASSES |= {name: reader.num_classes for name, reader in READERS.items()}
EXTRA_FOLDERS = ("instances", "dead", "weights")  # maps that travel along if a folder holds them


class _Arrays(list[list[np.ndarray]]):
    """All arrays of one part, one list a sample: a list that may be referenced weakly."""


_SHARED: WeakValueDictionary[tuple[Any, ...], _Arrays] = WeakValueDictionary()  # dropped with its last dataset


class SegmentationDataset(Dataset[tuple[Tensor, ...]]):
    """One part of a normalised .hdf5: items (image float32 (C, H, W), target int64 (H, W), *maps (H, W)).

    `crop` cuts a random square of that side; a smaller image is padded (mirrored; target 255, maps 0).  Then
    `transform`, a `BasicTransform2D`, is called with image, label and maps.  Both draw from
    `default_rng([seed, epoch, index])`, where the index is an integer (epoch 0) or a pair (epoch, index); validation
    and test data must have no random part.  `maps` names more groups of the file.  The arrays in memory are read-only.

    Attributes: `names` and `shapes` (H, W) of this part; `parts`, {part: number of samples} of the file;
    `num_classes`, `channels`, `mean`, `std`; `fingerprint` of the content.
    """

    def __init__(
        self,
        path: str | Path,
        part: str,
        *,
        crop: int | None = None,
        transform: Any = None,
        maps: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.path, self.part, self.crop, self.seed = Path(path), part, crop, seed
        self.transform, self.maps = transform, tuple(maps)
        self._arrays: _Arrays | None = None
        with open_hdf5(self.path) as file:
            part_of = {key: str(file["image"][key].attrs["part"]) for key in sorted(file["image"])}
            self.parts = {name: list(part_of.values()).count(name) for name in PARTS}
            self._keys = [key for key in part_of if part_of[key] == part]
            self._check_arguments(file)
            self.names = [str(file["image"][key].attrs["name"]) for key in self._keys]
            self.shapes: list[tuple[int, int]] = [file["label"][key].shape for key in self._keys]
            self.num_classes, self.channels = int(file.attrs["num_classes"]), len(file.attrs["mean"])
            self.mean, self.std = np.array(file.attrs["mean"]), np.array(file.attrs["std"])
            self.fingerprint = str(file.attrs["contents"])

    def _check_arguments(self, file: Any) -> None:
        if not file.attrs["normalised"]:
            raise InputError(f"{self.path} is not normalised; use the file that normalise_hdf5 makes of it.")
        if not self._keys:
            raise InputError(f"{self.path} has no sample in the part {self.part!r}; it has {self.parts}.")
        if missing := [name for name in self.maps if name not in file]:
            raise InputError(f"{self.path} lacks the maps {missing}; it has {sorted(file.keys())}.")
        is_random = getattr(self.transform, "is_random", self.transform is not None)
        if self.part != "train" and (is_random or self.crop is not None):
            raise InputError(f"The part {self.part!r} must have no random part: leave out crop and random transforms.")

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, ...]:
        epoch, index = index if isinstance(index, tuple) else (0, index)
        index = range(len(self))[index]  # raises IndexError behind the end, as a loop over a sequence needs
        rng = np.random.default_rng([self.seed, epoch, index])
        arrays = self._load()[index]
        if self.crop is not None:
            arrays = _cropped(arrays, self.crop, rng)
        if self.transform is not None:
            arrays = self.transform(*arrays, rng=rng)
        return tuple(_tensor(array) for array in arrays)

    def _load(self) -> _Arrays:
        """All arrays of this part, read once a process."""
        key = (self.path.resolve(), self.fingerprint, self.part, self.maps)
        if self._arrays is None:
            self._arrays = _SHARED.get(key)
        if self._arrays is None:
            with open_hdf5(self.path) as file:
                if file.attrs["contents"] != self.fingerprint:
                    raise InputError(f"{self.path} has changed. Run the cell that makes this dataset again.")
                groups = [file[name] for name in ("image", "label", *self.maps)]
                self._arrays = _Arrays([group[name][()] for group in groups] for name in self._keys)
            for array in (array for arrays in self._arrays for array in arrays):
                array.flags.writeable = False
            _SHARED[key] = self._arrays
        return self._arrays

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # another process reads for itself


def _cropped(arrays: Sequence[np.ndarray], crop: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One random square of each array (…, H, W); what is too small is padded below and on the right."""
    image, label, *maps = arrays
    missing = [(0, max(crop - side, 0)) for side in label.shape]
    if missing != [(0, 0), (0, 0)]:
        image = np.pad(image, ((0, 0), *missing), mode="reflect")  # a side of one pixel is repeated
        label = np.pad(label, missing, constant_values=IGNORE_INDEX)
        maps = [np.pad(array, missing) for array in maps]
    top, left = rng.integers(0, [side - crop + 1 for side in label.shape])
    return [array[..., top : top + crop, left : left + crop] for array in (image, label, *maps)]


def _tensor(array: np.ndarray | Tensor) -> Tensor:
    """Float → float32, integer → int64, as a copy: what is done to it does not reach the data in memory."""
    if isinstance(array, Tensor):
        return array
    dtype = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of pairs (epoch, index) for a `SegmentationDataset`; their order depends on (seed, epoch) only.

    Without a crop, only samples of one shape share a batch.  With `shuffle` the samples of each shape, and then the
    batches, are shuffled anew for each epoch; a last batch of one sample is left out if its shape fills other batches,
    because BatchNorm cannot learn from one sample: `dropped` counts them.  With `repeats`, an epoch draws every sample
    so often, each time with another crop.  A loop calls `set_epoch(epoch)` and then iterates.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        repeats: int = 1,
    ) -> None:
        self.batch_size, self.shuffle, self.seed, self.repeats = batch_size, shuffle, seed, repeats
        self.epoch = 0
        shapes = dataset.shapes if dataset.crop is None else [(dataset.crop, dataset.crop)] * len(dataset)
        draws = [(time, i) for time in range(repeats) for i in range(len(shapes))]
        self._groups = [[draw for draw in draws if shapes[draw[1]] == one] for one in sorted(set(shapes))]
        self.dropped = sum(self._drops_one(group) for group in self._groups)

    def _drops_one(self, group: list[tuple[int, int]]) -> bool:
        return self.shuffle and len(group) > self.batch_size and len(group) % self.batch_size == 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-len(group) // self.batch_size) for group in self._groups) - self.dropped

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        batches: list[list[tuple[int, int]]] = []
        for group in self._groups:
            order = [group[i] for i in rng.permutation(len(group))] if self.shuffle else group
            order = order[:-1] if self._drops_one(group) else order
            starts = range(0, len(order), self.batch_size)
            batches += [order[start : start + self.batch_size] for start in starts]
        for number in rng.permutation(len(batches)) if self.shuffle else range(len(batches)):
            yield [(self.epoch * self.repeats + time, index) for time, index in batches[number]]


def make_loader(
    dataset: SegmentationDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    repeats: int = 1,
) -> DataLoader[tuple[Tensor, ...]]:
    """A loader of batches (images (B, C, H, W), targets (B, H, W), *maps (B, H, W)).

    Call `loader.batch_sampler.set_epoch(epoch)` before each pass.  There are no workers: the data lie in memory.
    """
    return DataLoader(
        dataset,
        batch_sampler=EpochBatches(dataset, batch_size, shuffle, seed, repeats),
        collate_fn=_stack,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # else each pass would advance torch's global one
    )


def _stack(samples: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(column) for column in zip(*samples))


# --- all in one call ---


def prepare(
    source: str | Path,
    data_dir: str | Path = Path("data"),
    *,
    num_classes: int | None = None,
    seed: int = 0,
    label_map: LabelMap | None = None,
    changes: Sequence[Callable[[Sample], Sample | None]] = (),
    say: Callable[[str], object] = print,
) -> Path:
    """Return the path of the normalised .hdf5 of `source`; build it first if it must be.

    `source` is a built-in set (`BUILT_IN`), a name that `read_dataset` knows, or a folder (`read_folder`).  Without
    `num_classes`, a named set has its own number, a folder 2.  The files in `data_dir` are used again if they were
    built with the same settings from source files of the same names, sizes and times; otherwise `say` tells why not.
    `changes` are applied to every sample in turn, for example `[separate_cells, WeightMap(5, 2)]`, and give the files a
    name of their own; one that returns None leaves the sample out.  A change is a function with a name, known again by
    its text, or an object with a `repr` that shows its settings, such as a dataclass.
    """
    data_dir = Path(data_dir)
    folder = source_folder(source, data_dir, say)
    name = str(source) if str(source) in NAMES else folder.resolve().name
    samples: Iterator[Sample]
    if str(source) in READERS:  # not the name: a folder of yours may be called like a data set
        samples = read_dataset(name, folder)
    else:
        samples = read_folder(folder, label_map, extra_maps(folder))
    digest = f"{name} {_folder_state(folder)} {sorted(map(str, (label_map or {}).items()))}"
    if changes:
        recipe = " ".join(map(_spelled, changes))
        samples = _changed(samples, changes)
        digest, name = f"{digest} {recipe}", f"{name}_{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"
    plain, normalised = data_dir / f"{name}.hdf5", data_dir / f"{name}_normalised.hdf5"
    if num_classes is None:
        num_classes = NUM_CLASSES.get(str(source), 2)
    settings = build_settings(num_classes, FRACTIONS, seed, digest)
    if not _is_current(plain, settings, say):
        build_hdf5(samples, plain, num_classes=num_classes, seed=seed, source=digest)
    if not _is_current(normalised, settings, say):
        normalise_hdf5(plain, normalised)
    return normalised


def _spelled(change: Callable[[Sample], Sample | None]) -> str:
    """A change as a text: the same in every process, and another one if the change was edited."""
    text = change.__qualname__ if inspect.isfunction(change) else repr(change)
    if "<lambda>" in text or " at 0x" in text:
        raise InputError(
            f"changes: use a function with a name or a dataclass; the next run could not tell {text[:90]}."
        )
    if inspect.isfunction(change):
        with contextlib.suppress(OSError):  # typed at a prompt, it has no source
            text += f"-{hashlib.sha256(inspect.getsource(change).encode()).hexdigest()[:8]}"
    return text


def _changed(samples: Iterator[Sample], changes: Sequence[Callable[[Sample], Sample | None]]) -> Iterator[Sample]:
    for change in changes:
        samples = filter(None, map(change, samples))
    return samples


def source_folder(source: str | Path, data_dir: Path = Path("data"), say: Callable[[str], object] = print) -> Path:
    """The folder that holds the files of `source`: drawn, fetched, or the folder itself."""
    if str(source) in BUILT_IN:
        return BUILT_IN[str(source)](data_dir / str(source))
    if str(source) in READERS:
        return locate(str(source), data_dir, say=say)
    if Path(source).is_dir():
        return Path(source)
    raise InputError(f"{str(source)!r} is neither a folder nor a known data set;\nknown are {', '.join(NAMES)}.")


def extra_maps(folder: Path) -> tuple[str, ...]:
    """Names of the extra maps (`instances`, `dead`, `weights`) that a folder holds beside images and labels."""
    return tuple(name for name in EXTRA_FOLDERS if (folder / name).is_dir())


def _folder_state(folder: Path) -> str:
    """One hash over the names, sizes and times of modification of all files in a folder, junk left out."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        place, state = path.relative_to(folder), path.stat()
        if not any(is_junk(piece) for piece in place.parts):
            line = f"{place.as_posix()} {state.st_size} {state.st_mtime_ns}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _is_current(path: Path, settings: str, say: Callable[[str], object]) -> bool:
    """True if the file is sound and was built with these settings; otherwise say why it is built."""
    try:
        with open_hdf5(path) as file:
            if file.attrs["settings"] == settings:
                return True
        reason = "it was built with other settings or from other files"
    except InputError as error:
        reason = "it does not exist yet" if not path.exists() else str(error).splitlines()[0].rstrip(".")
    say(f"Building {path.name}: {reason}.")
    return False
