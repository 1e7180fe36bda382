"""The usual folders of images and labels, known by the names in them; one line says what was recognised.

Words in the names of folders say what lies in them (`images`, `trainannot`, `labelsTr`), and words at the ends of file
names (`NAME_mask.png`) where folders do not: one rule for the course's own folder, pairs side by side, CVAT, CamVid,
ADE20K, Cellpose, Pascal VOC (doi 10.1007/s11263-009-0275-4), Cityscapes (arXiv:1604.01685) and nnU-Net (doi
10.1038/s41592-020-01008-z).  The outlines of COCO (arXiv:1405.0312) and labelme are drawn.
"""

import contextlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from skimage import draw, measure

from checks import IGNORE_INDEX
from imagesets import files
from imagesets.files import IMAGE_SUFFIXES, PARTS, BadFiles, LabelMap, Problem, Sample

ROLES = ("labels", "images", "instances", "dead", "weights")
MEANINGS = {  # words in the names of folders
    "images": "images image imgs img jpeg rgb leftimg8bit photos frames originals original raw inputs input",
    "labels": "labels label masks mask annotations annotation annot ann gt segmentation semantic seg truth targets",
    "train": "train training tr",
    "val": "val valid validation",
    "test": "test testing ts",
    "": "class png tif fine ground set dir",
    **{role: role for role in ROLES[2:]},
}
WORDS = {word: meaning for meaning, words in MEANINGS.items() for word in words.split()}
WORD = "|".join(sorted(WORDS, key=len, reverse=True))
ENDS = {  # words at the ends of file names
    "images": "images?|imgs?|sat|leftImg8bit",
    "labels": "(?:cp_)?masks?|labels?|gt|gtFine|label(?:Train)?Ids|l|seg|segmentation|annotation|truth|ground|target",
}
KINDS = {"SegmentationClass": "Pascal VOC", "gtFine/": "Cityscapes", "labelsTr/": "nnU-Net", "_cp_masks.": "Cellpose"}
TABLES = "classes.csv class_dict.csv labelmap.txt label_colors.txt class_names.txt classes.txt labels.txt dataset.json"
IGNORED = ("ignore", "ignored", "void", "unlabelled", "unlabeled")  # names of no class
STREET_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # Cityscapes: classes 0 … 18
MOST_VALUES = 32  # more values in labels are not taken for classes without being told
ADD = "add one, or take this file away"
TURN = "add one: labels in .npy, .h5 or .nii must become PNG or TIFF (in Cellpose: File, Save masks as PNG/tif)"
Key = tuple[str, ...]  # part or nothing, folders whose names say nothing, name of the file
Found = dict[Key, list[Path]]
Tables = dict[Path, dict[str, Any]]


class Outlines(NamedTuple):
    """A label that is still to be drawn, shape by shape, the later ones on top."""

    size: tuple[Any, ...]  # H, W, or None where the file does not say it
    shapes: list[tuple[str, np.ndarray]]  # name of the class, and corners (N, 2) of x, y, or a mask (H, W)

    def draw(self, size: tuple[int, ...], classes: Sequence[str]) -> np.ndarray:
        """The classes (H, W): a pixel belongs to a shape if its centre, half a pixel from its corner, lies inside."""
        label = np.zeros(size if None in self.size else self.size, np.uint8)
        for name, shape in self.shapes:
            inside = shape if shape.dtype == bool else draw.polygon2mask(label.shape, shape[:, ::-1] - 0.5)
            label[inside] = IGNORE_INDEX if name in IGNORED else classes.index(name)
        return label


class Pair(NamedTuple):
    """One image (or its channels, a file each) with its label and further maps."""

    key: Key
    images: list[Path]
    label: Path | Outlines
    part: str
    maps: dict[str, Path] = {}


@dataclass
class Layout:
    """What a folder was recognised as, by names: no pixel has been read."""

    folder: Path
    kind: str = "images and labels"
    pairs: list[Pair] = field(default_factory=list)
    classes: tuple[str, ...] = ()  # their names, if the folder says them
    label_map: LabelMap | None = None
    objects: bool = False  # labels are numbers of objects: all above 0 is class 1
    problems: list[Problem] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = Counter(pair.part for pair in self.pairs if pair.part)
        left = [f"{name} ({count})" for name, count in self.left_out.items()]
        texts = [f"{self.folder.resolve().name}: {self.kind}, {len(self.pairs)} pairs"]
        texts += [f"classes {', '.join(self.classes[:20])}"] * bool(self.classes)
        texts += ["numbers of objects, all above 0 is class 1"] * self.objects
        texts += ["parts " + ", ".join(f"{part} {parts[part]}" for part in PARTS if parts[part])] * bool(parts)
        return "; ".join(texts + ["left out: " + ", ".join(left[:6] + ["…"] * (len(left) > 6))] * bool(left))

    def leave(self, path: Path) -> None:
        """Count a file that is not used, for the line that says so."""
        inside = path.relative_to(self.folder)
        self.left_out[inside.parent.as_posix() if inside.parent.name else inside.name] += 1

    def problem(self, path: Path, found: str, advice: str) -> None:
        self.problems.append(Problem(files.short_name(path), found, advice))

    def num_classes(self, label_map: LabelMap | None = None) -> int:
        """By the map, by the names, or by the labels themselves, which are then read."""
        if used := label_map or self.label_map:
            return max([2, *(number + 1 for number in used.values() if number != IGNORE_INDEX)])
        labels = [] if self.objects else [pair.label for pair in self.pairs if isinstance(pair.label, Path)]
        number = len(self.classes) or _count_classes(labels, self.kind in ("Pascal VOC", "Cityscapes"))
        if number == 0:
            self.kind += " that may be numbers of objects (add --map '0=0,*=1' to make them one class)"
        return number or 2


def read_folder(folder: str | Path, label_map: LabelMap | None = None) -> Iterator[Sample]:
    """Yield the samples of a folder by name: `images/` and `labels/` or `masks/`, or another usual layout.

    `label_map` gives the class of each value in the labels, {0: 0, 255: 1}, or colour, {(255, 0, 255): 1}; without it
    a table of classes in the folder does so, or the values are the classes, and 255 is ignored.  Maps that lie beside
    (`instances/`, `dead/`, `weights/`) travel along.  After the last good sample, an `InputError` lists all problems.
    """
    layout = recognise(folder)
    if label_map and any(isinstance(pair.label, Outlines) for pair in layout.pairs):
        raise BadFiles([Problem(str(folder), f"holds outlines of {layout.kind}, which have names", "leave out --map")])
    problems, classes, label_map = layout.problems, set[int](), label_map or layout.label_map
    for pair in layout.pairs:
        try:
            sample = _read(pair, layout, label_map)
        except BadFiles as error:
            problems += error.problems
            continue
        if len(classes) < 3:
            classes.update(np.unique(sample.label).tolist())
        yield sample
    if label_map is None and IGNORE_INDEX in classes <= {0, IGNORE_INDEX}:
        advice = "add --map 0=0,255=1 if 255 is class 1, or --map 0=0,255=255; in Python label_map={0: 0, 255: 1}"
        problems.append(Problem("All labels", "hold 0 and 255 only, and 255 means 'ignored'", advice))
    files.raise_problems(str(folder), problems)


def _read(pair: Pair, layout: Layout, label_map: LabelMap | None) -> Sample:
    images, colours = [files.read_image(path) for path in pair.images], dict[int, Any]()
    image = images[0] if len(images) == 1 else np.dstack(images)
    extras = {kind: files.read_map(path, kind) for kind, path in pair.maps.items()}
    if isinstance(pair.label, Outlines):
        label = pair.label.draw(image.shape[:2], layout.classes)
    else:
        label, colours = files.read_mask(pair.label, label_map)
    if layout.objects and label_map is None:
        extras["instances"], label, colours = label, (label > 0).astype(np.uint8), {}
    return Sample("/".join(filter(None, pair.key)), image, label, pair.part or None, extras, colours)


def recognise(folder: str | Path) -> Layout:
    """What lies in a folder; raise `InputError` if it is nothing usual."""
    folder = Path(folder)
    layout, paths = Layout(folder), files.files_in(folder)
    tables = {path: _json(path) for path in paths if path.suffix == ".json"}
    coco = {path: table for path, table in tables.items() if {"images", "annotations", "categories"} <= table.keys()}
    labelme = {path: table for path, table in tables.items() if {"shapes", "imagePath"} <= table.keys()}
    try:
        (_coco if coco else _labelme if labelme else _folders)(layout, paths, coco or labelme)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = f"{layout.kind}: a table in it cannot be understood ({type(error).__name__}: {error})"
        raise BadFiles([Problem(str(folder), found, "export it again")]) from error
    layout.pairs.sort(key=lambda pair: pair.key)
    if drawn := [pair.label for pair in layout.pairs if isinstance(pair.label, Outlines)]:
        names = {name for label in drawn for name, _ in label.shapes} - {"background", *IGNORED}
        layout.classes = ("background", *sorted(names))
    if all(pair.part != "val" for pair in layout.pairs):  # some of the training images will validate
        layout.pairs = [pair._replace(part=pair.part.replace("train", "")) for pair in layout.pairs]
    if not layout.pairs and not layout.problems:
        found = f"holds {', '.join(sorted(path.name for path in folder.glob('*'))[:8]) or 'nothing'}"
        raise BadFiles([Problem(str(folder), found, "put images into images/, labels of the same names into labels/")])
    return layout


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(TypeError, ValueError):  # it is of something else
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


def _place(path: Path, folder: Path) -> tuple[str, Key]:
    """What the folders around a file say: one of ROLES or nothing; and its key."""
    role, part, place = "", "", list[str]()
    for name in path.relative_to(folder).parts[:-1]:
        is_words = re.fullmatch(rf"(?:{WORD}|[-_ ]|20\d\d)+", name.lower())
        words = {WORDS[word] for word in re.findall(WORD, name.lower())} if is_words else set()
        new_role, new_part = (next((word for word in kind if word in words), "") for kind in (ROLES, PARTS))
        if not words or (role and new_role) or (part and new_part):
            place.append(name)
        else:
            role, part = role or new_role, part or new_part
    return role, (part, *place, unicodedata.normalize("NFC", path.stem))


def _core(key: Key, role: str) -> Key:
    """A key without the words at the ends of the name that say image or label."""
    words = ENDS[role]
    match = re.fullmatch(rf"(?:(?:{words})[-_ ])*(.+?)(?:[-_ ](?:{words}))*", key[-1], re.IGNORECASE)
    return (*key[:-1], match[1] if match else key[-1])


def _folders(layout: Layout, paths: Sequence[Path], _: Tables) -> None:
    """Images and masks in folders of their own, or side by side, paired by their names."""
    paths = _known_by_names(layout, paths)
    found = _by_role(layout, paths)
    layout.objects = layout.kind == "Cellpose" or bool(found["instances"] and not found["labels"])
    images, labels = found.pop("images"), found.pop("labels") or found.pop("instances")
    by_core = {_core(key, "images"): key for key in sorted(images.keys() - labels.keys())}
    named = {key if key in images else by_core.get(_core(key, "labels"), key): key for key in sorted(labels)}
    partners = {key: named[key] for key in images.keys() & named.keys()}
    part_of = _lists(paths, {key[-1] for key in partners})
    for key, of_label in partners.items():
        if part_of and key[-1] not in part_of:
            layout.left_out["in no list of a part"] += 1
            continue
        maps = {role: those[key][0] for role, those in found.items() if key in those}
        layout.pairs.append(Pair(key, images[key], labels[of_label][0], part_of.get(key[-1], key[0]), maps))
    if not part_of:
        advice = TURN if {".npy", ".h5", ".nii", ".gz"} & {path.suffix for path in paths} else ADD
        _lonely(layout, images, partners.keys(), labels, "has no label", advice)
    _lonely(layout, labels, {*partners.values()}, images, "has no image", ADD)


def _known_by_names(layout: Layout, paths: Sequence[Path]) -> Sequence[Path]:
    """Note kind and table of classes of a folder; return its paths, of Cityscapes those of one kind of label."""
    names = " ".join(path.relative_to(layout.folder).as_posix() for path in paths)
    layout.kind = next((kind for mark, kind in KINDS.items() if mark in names), layout.kind)
    for table in [path for name in TABLES.split() for path in paths if path.name.lower().strip("_") == name][:1]:
        layout.classes, layout.label_map = _read_table(table)
    if layout.kind == "Pascal VOC" and layout.label_map:
        layout.label_map = {**layout.label_map, (224, 224, 192): IGNORE_INDEX}  # the colour of its borders
    if layout.kind != "Cityscapes":
        return paths
    chosen = "labelTrainIds" if "labelTrainIds" in names else "labelIds"
    if chosen == "labelIds":
        layout.label_map = dict.fromkeys(range(256), IGNORE_INDEX) | {id: k for k, id in enumerate(STREET_IDS)}
    return [path for path in paths if chosen in path.name or "gtFine" not in path.name]


def _by_role(layout: Layout, paths: Sequence[Path]) -> dict[str, Found]:
    """The images and masks by role and key: one file each, but for the channels of an image in nnU-Net."""
    found: dict[str, Found] = {role: {} for role in ROLES}
    places = {path: _place(path, layout.folder) for path in paths}
    named = any(role == "images" for role, _ in places.values())
    jpegs = {path.with_suffix("") for path in paths if path.suffix.lower() in (".jpg", ".jpeg")}
    for path, (role, key) in places.items():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            if role and path.suffix.lower() not in files.SIDE_CARS:
                layout.problem(path, f"is none of {', '.join(IMAGE_SUFFIXES)}", "move it away, or save it as PNG")
        elif named and not role:
            layout.leave(path)
        else:
            beside_jpeg = path.suffix.lower() not in (".jpg", ".jpeg") and path.with_suffix("") in jpegs
            role = role or ("labels" if beside_jpeg or _core(key, "labels") != key else "images")
            is_channel = layout.kind == "nnU-Net" and role == "images" and re.search(r"_\d{4}$", key[-1])
            same = found[role].setdefault((*key[:-1], key[-1][:-5]) if is_channel else key, [])
            if same and not is_channel:
                other = same[0].name if same[0].parent == path.parent else files.short_name(same[0])
                layout.problem(path, f"and {other} have one name before the suffix", "rename or delete one of them")
            same.append(path)
    return found


def _lonely(layout: Layout, there: Found, used: Iterable[Key], others: Found, found: str, advice: str) -> None:
    """Files without a partner: problems, but for test images, which may have no label, and folders of other things."""
    places = {key[:-1] for key in others}
    for key in sorted(there.keys() - used):
        path = there[key][0]
        is_other = key[1:-1] and path.relative_to(layout.folder).parts[0] == key[1]
        if key[:-1] not in places and (key[0] == "test" or is_other):
            layout.leave(path)
        else:
            layout.problem(path, found, advice)


def _lists(paths: Sequence[Path], names: set[str]) -> dict[str, str]:
    """The part of each name, if files train.txt, val.txt, test.txt list names that are there."""
    found: dict[str, str] = {}
    for path in (path for path in paths if path.suffix == ".txt" and path.stem in PARTS):
        rows = (line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
        found |= {name: path.stem for row in rows if row and (name := Path(row[0]).stem) in names}
    return found


def _read_table(path: Path) -> tuple[tuple[str, ...], LabelMap | None]:
    """Names of the classes, and the class of each value and colour; a line has a name and up to four numbers."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    if path.suffix == ".json":  # of nnU-Net, older ones the other way round
        labels = sorted(_json(path)["labels"].items(), key=lambda row: int(row[0] if row[0].isdigit() else row[1]))
        lines = [f"{name},{number}" for name, number in labels]
    rows = list[tuple[list[str], list[int]]]()
    for line in lines:
        fields = [text for text in re.split(r"\s*[,;:\t]\s*", line.partition("#")[0].strip()) if text]
        numbers = [int(number) for text in fields if re.fullmatch(r"[\d ]+", text) for number in text.split()]
        rows += [(fields, numbers)] * bool(fields)
    has_header = len(rows) > 1 and rows[1][1] and not rows[0][1]
    names, label_map = list[str](), dict[Any, int]()
    for fields, numbers in rows[bool(has_header) :]:
        name = next((text.strip("_") for text in fields if re.search(r"[^\d ]", text)), f"class {len(names)}")
        number = IGNORE_INDEX if name.lower() in IGNORED else len(names)
        names += [name] * (number != IGNORE_INDEX)
        at = -1 if len(numbers) == 4 and not fields[0].isdigit() else 0  # where the value stands, before or behind
        if len(numbers) >= 3:
            label_map[tuple(numbers[:3] if at else numbers[-3:])] = number
        if len(numbers) in (0, 1, 4):
            label_map[(numbers or [number])[at]] = number
            label_map.setdefault(IGNORE_INDEX, IGNORE_INDEX)
    if len(names) < 2 or any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        return (), None  # a list of files, or of nothing
    return tuple(names), label_map if any(value != number for value, number in label_map.items()) else None


def _count_classes(paths: Sequence[Path], may_have_gaps: bool) -> int:
    """K if the labels are 0 … K−1, each of them somewhere; 0 if they may be numbers of objects; 2 if anything else."""
    values, counts, are_objects = set[int](), set[int](), True
    for path in paths:
        with contextlib.suppress(BadFiles):  # it will be named when it is read
            label = files.read_label(path)
            here = np.setdiff1d(label, (0, IGNORE_INDEX)).tolist()
            values, counts = values | {*here}, counts | {len(here)}
            if max(here, default=0) < MOST_VALUES and are_objects:  # 1 … n in every image, each in one piece
                pieces = measure.label(label * (label != IGNORE_INDEX), connectivity=2).max()
                are_objects = here == [*range(1, pieces + 1)]
    largest = max(values, default=1)
    if are_objects and len(counts) > 1 and largest > 1 and not may_have_gaps:
        return 0
    return max(2, largest + 1) if largest < MOST_VALUES and (may_have_gaps or len(values) == largest) else 2


def _coco(layout: Layout, paths: Sequence[Path], tables: Tables) -> None:
    layout.kind = "COCO"
    images = defaultdict[str, list[Path]](list)
    for path in (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES):
        images[path.name].append(path)
    for path, table in ({path: tables[path] for path in tables if "instances" in path.name} or tables).items():
        names, shapes = {each["id"]: each["name"] for each in table["categories"]}, defaultdict[Any, list](list)
        for each in table["annotations"]:
            drawn = _coco_shapes(each.get("segmentation"))
            shapes[each["image_id"]] += [(names[each["category_id"]], shape) for shape in drawn]
            if not drawn:
                layout.problem(path, f"has a box or packed runs, annotation {each.get('id')}", "save it as a polygon")
        words = (WORDS.get(word, "") for word in re.split("[^a-z]+", path.stem))  # instances_train2017
        part = _place(path, layout.folder)[1][0] or next((word for word in words if word in PARTS), "")
        for image in table["images"]:
            place = Path(image["file_name"])
            there = images[place.name]
            there.sort(key=lambda each: (each.match(f"{place}"), each.is_relative_to(path.parent), part in each.parts))
            if there:
                label = Outlines((image.get("height"), image.get("width")), shapes[image["id"]])
                layout.pairs.append(Pair((part, place.with_suffix("").as_posix()), [there.pop()], label, part))
            else:
                layout.problem(path, f"names {place}, which is not there", "add this image, or delete its entry")
    for path in (path for there in images.values() for path in there):
        layout.leave(path)


def _coco_shapes(segmentation: Any) -> list[np.ndarray]:
    """Polygons, or one mask from the lengths of its runs, column by column, the first of 0."""
    if isinstance(segmentation, list) or not segmentation:
        return [np.reshape(corners, (-1, 2)).astype(float) for corners in segmentation or () if len(corners) >= 6]
    (H, W), runs = segmentation["size"], segmentation["counts"]
    return [] if isinstance(runs, str) else [np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(W, H).T]


def _labelme(layout: Layout, paths: Sequence[Path], tables: Tables) -> None:
    layout.kind = "labelme"
    images = {path.with_suffix(""): path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}
    for path, table in tables.items():
        outlines = Outlines((table.get("imageHeight"), table.get("imageWidth")), [])
        for shape in table["shapes"]:
            points, kind = np.reshape(shape["points"], (-1, 2)).astype(float), shape.get("shape_type") or "polygon"
            if kind == "rectangle":
                points = np.stack([points[[0, 1, 1, 0], 0], points[[0, 0, 1, 1], 1]], axis=1)
            if kind in ("polygon", "rectangle"):
                outlines.shapes.append((shape["label"].strip("_"), points))
            else:
                layout.problem(path, f"has a {kind} ({shape['label']}), which is not read", "draw a polygon instead")
        key = _place(path, layout.folder)[1]
        if image := images.pop(path.with_suffix(""), None):
            layout.pairs.append(Pair(key, [image], outlines, key[0]))
        else:
            layout.problem(path, "has no image", "put its image beside it, with the same name before the suffix")
    for path in images.values():
        layout.problem(path, "has no label", ADD)
