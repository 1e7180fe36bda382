"""From files to samples: pair images with labels in a folder, and split samples into parts.

`read_folder` takes any folder with `images/` and `labels/` in it; `readers.py` knows the layouts of the public sets.
A bad file never stops the list at the first problem: all problems come together, in one message.  Training, validation
and test part share no image: the split goes by content, so two copies of one image always land in the same part.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from checks import IGNORE_INDEX, InputError
from imagesets.imagefile import LabelMap, decode, read_image, read_label, short_name

PARTS = ("train", "val", "test")
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
JUNK = {"__macosx", "thumbs.db", "desktop.ini"}  # and every name that begins with a dot


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its label: `image` (H, W) or (H, W, C), uint8, uint16 or float; `label` (H, W) integer.

    `part` is "train", "val", "test", or None if it is still to be chosen.  `extras` are maps (H, W) that
    travel along: instance numbers, dead cells, weights.

    >>> Sample("a", np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8)).part is None
    True
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    part: str | None = None
    extras: dict[str, np.ndarray] = field(default_factory=dict)


def find_pairs(folder: str | Path) -> list[tuple[Path, Path]]:
    """Return the pairs (image path, label path) of a folder, sorted by name; each file is opened and checked.

    Layout: `images/` (png, tif, tiff, jpg) and `labels/` or `masks/` (png, tif, tiff), with equal names
    before the suffix.  Raises one `InputError` that lists all problems: partners that are missing, files that
    are empty or damaged, sizes that differ, names that occur twice.

    >>> find_pairs("nowhere")
    Traceback (most recent call last):
    checks.InputError: nowhere: expected the sub-folders images/ and labels/ (or masks/, but not both).
    Found: no such folder.
    """
    folder = Path(folder)
    pairs, problems = _match(folder)
    for image_path, label_path in pairs:
        try:
            read_sample(image_path, label_path)
        except InputError as error:
            problems.append(str(error))
    raise_problems(problems, str(folder))
    return pairs


def read_folder(folder: str | Path, label_map: LabelMap | None = None, extras: Sequence[str] = ()) -> Iterator[Sample]:
    """Yield the samples of a folder (layout: see `find_pairs`); `extras` names more sub-folders, of maps.

    `label_map` gives the class of every value in the mask files, {0: 0, 255: 1}, or of every colour,
    {(255, 0, 255): 1, (255, 0, 0): 0}.  Without it the values are the classes, and 255 means "ignored".
    A bad sample is left out; after the last good one an `InputError` lists all problems.
    """
    problems: list[str] = []
    for found in read_each(folder, label_map, extras):
        if isinstance(found, Sample):
            yield found
        else:
            problems.append(found)
    raise_problems(problems, str(folder))


def read_each(
    folder: str | Path, label_map: LabelMap | None = None, extras: Sequence[str] = ()
) -> Iterator[Sample | str]:
    """Yield what `read_folder` finds, each sound sample and each problem as a text; only the layout raises."""
    folder = Path(folder)
    pairs, problems = _match(folder)
    maps = {extra: _by_stem(folder / extra, problems) for extra in extras}
    yield from problems
    only_255: list[str] = []  # masks that hold 255 and no class above 0
    both = False
    for image_path, label_path in pairs:
        try:
            sample = read_sample(image_path, label_path, label_map, maps)
        except InputError as error:
            yield str(error)
            continue
        is_ignored = sample.label == IGNORE_INDEX
        if is_ignored.any() and ((sample.label != 0) & ~is_ignored).any():
            both = True
        elif is_ignored.any():
            only_255.append(short_name(label_path))
        yield sample
    if label_map is None and only_255 and not both:
        who = f"{only_255[0]} and {len(only_255) - 1} more hold" if len(only_255) > 1 else f"{only_255[0]} holds"
        yield (
            f"{who} 255 but no class; here 255 means 'ignored'.\n"
            "If 255 is class 1, use label_map={0: 0, 255: 1}; if it is ignored, label_map={0: 0, 255: 255}"
        )


def _match(folder: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Pair images and labels by name; return the pairs and the problems met."""
    label_folders = [folder / name for name in ("labels", "masks") if (folder / name).is_dir()]
    if not (folder / "images").is_dir() or len(label_folders) != 1:
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        there = ", ".join(names[:8] + ["…"] * (len(names) > 8)) or "nothing"
        there = there if folder.is_dir() else "no such folder"
        wanted = "expected the sub-folders images/ and labels/ (or masks/, but not both)"
        raise InputError(f"{folder}: {wanted}.\nFound: {there}.")
    problems: list[str] = []
    images, labels = _by_stem(folder / "images", problems), _by_stem(label_folders[0], problems)
    problems += [f"{short_name(images[stem])} has no label" for stem in sorted(images.keys() - labels.keys())]
    problems += [f"{short_name(labels[stem])} has no image" for stem in sorted(labels.keys() - images.keys())]
    if not images and not labels:
        problems.append("there is no image and no label; put some into these folders")
    return [(images[stem], labels[stem]) for stem in sorted(images.keys() & labels.keys())], problems


def _by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    """The image files of one folder by name without suffix; junk is skipped, problems are appended."""
    found: dict[str, Path] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if not is_junk(path.name) and not path.is_dir())
    except OSError as error:
        problems.append(f"{folder.name}/ cannot be read ({error.strerror})")
        return found
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            problems.append(f"{short_name(path)} is none of {', '.join(IMAGE_SUFFIXES)}")
        elif _stem(path) in found:
            problems.append(f"{short_name(path)} and {found[_stem(path)].name} have one name before the suffix")
        else:
            found[_stem(path)] = path
    return found


def is_junk(name: str) -> bool:
    """True for the files and folders that operating systems and Jupyter leave behind."""
    return name.startswith(".") or name.lower() in JUNK


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", path.stem)  # macOS writes é as two characters, others as one


def read_sample(
    image_path: Path,
    label_path: Path,
    label_map: LabelMap | None = None,
    maps: Mapping[str, Mapping[str, Path]] | None = None,
    read: Callable[[Path], np.ndarray] = read_image,
) -> Sample:
    """Read one pair and its extra maps, the image by `read`; raise one `InputError` that names the file."""
    image, label = read(image_path), read_label(label_path, label_map)
    extras, stem = {}, _stem(image_path)
    for name, paths in (maps or {}).items():
        if stem not in paths:
            raise InputError(f"{short_name(image_path)} has no map in {name}/")
        extras[name] = decode(paths[stem], as_label=True)[0]
    for what, array in {short_name(label_path): label, **extras}.items():
        if array.shape != image.shape[:2]:
            raise InputError(f"{short_name(image_path)} has size {image.shape[:2]}, {what} has {array.shape}")
    return Sample(stem, image, label, None, extras)


# --- training, validation and test part ---


def split_parts(
    hashes: Sequence[str],
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    given: Sequence[str | None] | None = None,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Return the part of each sample; samples with the same content hash always get the same one.

    `given` holds parts that are fixed already (None: still open).  Open samples are divided among the parts
    that nobody has given: a set with a test folder of its own is split into train and val.  The fractions
    count different images; each part gets at least one, and the first part takes what rounding leaves.
    Raises `InputError` if one image is given to two parts (`names` are for this message), or if there are
    too few images.

    >>> split_parts(["a", "b", "c", "a"], {"train": 0.5, "val": 0.5})
    ['val', 'val', 'train', 'val']
    """
    given = given or [None] * len(hashes)
    fixed = _fixed_parts(hashes, given, names or [f"sample {index}" for index in range(len(hashes))])
    open_hashes = sorted(set(hashes) - fixed.keys())
    if open_hashes:
        free = {part: share for part, share in fractions.items() if share > 0 and part not in given}
        fixed |= _divide(open_hashes, free or fractions, seed)
    return [fixed[value] for value in hashes]


def _fixed_parts(hashes: Sequence[str], given: Sequence[str | None], names: Sequence[str]) -> dict[str, str]:
    """The part that was given to each hash; one image in two parts raises `InputError`."""
    owners: dict[str, int] = {}
    problems = []
    for index, part in enumerate(given):
        owner = owners.setdefault(hashes[index], index) if part else index
        if given[owner] != part:
            problems.append(f"{names[owner]} ({given[owner]}) and {names[index]} ({part}) are the same image")
    raise_problems(problems, "Parts must not share an image, or the score on them is too good")
    return {value: str(given[index]) for value, index in owners.items()}


def _divide(hashes: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Shuffle the different images and cut the row by the fractions."""
    first, *others = fractions
    total = sum(fractions.values())
    parts = [part for part in others for _ in range(max(1, round(len(hashes) * fractions[part] / total)))]
    if len(parts) >= len(hashes):
        raise InputError(f"{len(hashes)} different images are too few for the parts {', '.join(fractions)}; add some.")
    parts = [first] * (len(hashes) - len(parts)) + parts
    return {hashes[i]: part for i, part in zip(np.random.default_rng(seed).permutation(len(hashes)), parts)}


def raise_problems(problems: Sequence[str], where: str) -> None:
    """Raise one `InputError` for all problems; do nothing if there is none."""
    if len(problems) == 1:
        raise InputError(f"{where}: {problems[0].rstrip('.')}.")
    if problems:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise InputError("\n- ".join([f"{where}: {len(problems)} problems", *problems[:20], *more]))
