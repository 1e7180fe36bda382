"""Where does a prediction join or cut objects wrongly?  Critical regions, their kinds, and Betti numbers.

For one class let P be its predicted pixels, G its true pixels, T = P ∩ G, FP = P ∖ G and FN = G ∖ P.  A component
(connected group of pixels) of FP *touches* a true object if it has a neighbour in T that belongs to this object; one of
FN touches a predicted object alike.  Let it touch d objects:

- d ≥ 2: FP **merges** them, FN **splits** one.   d = 0: FP is **spurious**, FN was **missed**.   Severity |d − 1|.
- d = 1 only moves a border: neutral.  All other components are *critical*.
- The same rule on the background tells how holes, and the outside, were merged, invented, split or missed.

Objects use the connectivity 4 or 8, their background the other one.  What is ignored or outside is background.

All images stand in one long line of pixels, with background between rows and images.  The line is cut into *runs* of
equal code (bit 0 = in P, bit 1 = in G).  A union-find joins runs to *patches* (one code, 4-connected), and patches to
components of P, of G and of the errors: nearly linear in the number of pixels.
Sources: Rosenfeld and Pfaltz 1966, doi:10.1145/321356.321357 (labelling by runs); Kong and Rosenfeld 1989,
doi:10.1016/0734-189X(89)90147-3 (4 against 8); Liu and Tarjan 2019, arXiv:1812.06177 (union-find in parallel).
"""

from collections import namedtuple
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from checks import IGNORE_INDEX, InputError

KINDS = ("merge", "spurious", "split", "missed", "hole_merge", "hole_spurious", "hole_split", "hole_missed")
"""The kinds, those of the objects first.  A gap in a ring is a `hole_merge` (its inside and outside become one), a
puncture `hole_spurious`, a filled hole `hole_missed`, a bridge across a hole or the mouth of a bay `hole_split`."""
EXCESS = ("merge", "spurious", "hole_split", "hole_missed")
"""The kinds whose pixels are falsely predicted as object; those of all other kinds are missing."""
TN, FP, FN, TP = range(4)  # codes of a pixel: bit 0 = in P, bit 1 = in G
_Fields = namedtuple(
    "_Fields", "shape kind image class_index severity size run_start run_length run_region betti_pred betti_target"
)


class CriticalRegions(_Fields):
    """All M critical regions of a batch: one row a region, and the runs of pixels that they are made of, all int64.

    Of each region, (M,): `kind` is an index into `KINDS`, `image` into the batch, `class_index` into `classes`; `size`
    is in pixels.  Run r covers `run_length[r]` pixels of region `run_region[r]`, from `run_start[r]` on in the flat
    batch.  `betti_pred`, `betti_target` (B, K, 2) are the numbers β0 of objects and β1 of holes.
    """

    def counts(self) -> np.ndarray:
        """Number of regions of each kind, (B, K, 8) int64, the last axis in the order of `KINDS`."""
        return self._sum_by_kind(1)

    def severities(self) -> np.ndarray:
        """Sum of severities, shaped like `counts`: a blob that joins three objects counts as two merges."""
        return self._sum_by_kind(self.severity)

    def weights(self, kinds: Sequence[str] = KINDS) -> np.ndarray:
        """Weight of each pixel, (B, H, W) float32: severity(c) / |c|, summed over all regions c that hold it."""
        if not set(kinds) <= set(KINDS):
            raise InputError(f"kinds is {kinds!r}; expected a list of names out of {KINDS}.")
        runs = np.flatnonzero(np.array([kind in kinds for kind in KINDS])[self.kind[self.run_region]])
        weight = (self.severity / self.size)[self.run_region[runs]].astype(np.float32)
        length = self.run_length[runs]
        pixels = np.repeat(self.run_start[runs] + length - np.cumsum(length), length) + np.arange(length.sum())
        out = np.zeros(self.shape, np.float32)
        np.add.at(out.reshape(-1), pixels, np.repeat(weight, length))
        return out

    def mask(self, kinds: Sequence[str] = KINDS) -> np.ndarray:
        """Pixels in critical regions of the `kinds`, (B, H, W) boolean: draw each kind in its own colour."""
        return self.weights(kinds) > 0

    def _sum_by_kind(self, value: np.ndarray | int) -> np.ndarray:
        total = np.zeros((*self.betti_pred.shape[:2], len(KINDS)), np.int64)
        np.add.at(total, (self.image, self.class_index, self.kind), value)
        return total


def critical_regions(
    pred: ArrayLike, target: ArrayLike, *, classes: Sequence[int] = (1,), connectivity: int = 8, strict: bool = False
) -> CriticalRegions:
    """Find all regions where `pred` merges, splits, invents or misses objects or holes of `target`.

    Label maps (B, H, W), integer or boolean; a pixel with `target` 255 is ignored.  Each of the `classes` is a problem
    of its own, against the rest.  `connectivity` (4 or 8) is that of the objects.  Raises `InputError` for others.

    With `strict` FP also touches objects through FN, and FN through FP: a gap predicted one pixel beside its place is
    then a merge and a split.  What touches nothing in T and at most one object in all stays spurious or missed.

    >>> target = np.array([[[1, 1, 0, 1, 1]]])
    >>> regions = critical_regions(np.ones_like(target), target)
    >>> regions.counts()[0, 0, KINDS.index("merge")].item(), regions.weights(["merge"]).tolist()
    (1, [[[0.0, 0.0, 1.0, 0.0, 0.0]]])
    """
    # numpy is slow at comparing booleans with numbers; the same bytes read as uint8 are fast
    pred, target = (m.view(np.uint8) if m.dtype == np.bool_ else m for m in check_maps(pred, target))
    if connectivity not in (4, 8):
        raise InputError(f"connectivity is {connectivity!r}; expected 4 or 8, that of the objects.")
    if not classes or len(set(classes)) < len(classes) or IGNORE_INDEX in classes:
        raise InputError(f"classes is {classes!r}; expected different labels, none of them {IGNORE_INDEX} (ignored).")
    eight = int(connectivity == 8)
    runs = _cut_runs(_encode(pred, target, classes), pred.shape[2] + 1, strict)
    patches = _join_runs(runs, eight)
    kind, severity, first, run, region = _judge(runs, patches, eight, strict)
    start, length = _locate(runs.start[run], pred.shape)[1], runs.length[run]
    class_index, image = np.divmod(_locate(patches.start[first], pred.shape)[0], len(pred))
    size = np.bincount(region, length, minlength=kind.size).astype(np.int64)
    betti = [_count_components(patches, bit, pred.shape, len(classes)) for bit in (0, 1)]
    return CriticalRegions(pred.shape, kind, image, class_index, severity, size, start, length, region, *betti)


def betti_numbers(mask: ArrayLike, *, connectivity: int = 8) -> np.ndarray:
    """Count the objects β0 and the holes β1 of each mask: (B, H, W), non-zero = object → (B, 2) int64."""
    objects = np.asarray(mask) != 0
    return critical_regions(objects, objects, connectivity=connectivity).betti_target[:, 0]


def check_maps(pred: ArrayLike, target: ArrayLike, axes: str = "B, H, W") -> tuple[np.ndarray, np.ndarray]:
    """Both label maps as arrays; raises `InputError` unless they are integer or boolean, of one shape (axes)."""
    maps = np.asarray(pred), np.asarray(target)
    for name, labels in zip(("pred", "target"), maps):
        if labels.ndim != axes.count(",") + 1 or labels.dtype.kind not in "iub":
            raise InputError(f"{name} has shape {labels.shape} and dtype {labels.dtype}; expected integers ({axes}).")
    if maps[0].shape != maps[1].shape:
        raise InputError(f"pred has shape {maps[0].shape}, target {maps[1].shape}; expected one shape ({axes}).")
    return maps


def _encode(pred: np.ndarray, target: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """The codes of all K·B binary problems in one line: per image H + 1 rows of W + 1, then one more row."""
    B, H, W = pred.shape
    in_pred = np.stack([pred == label for label in classes]) & (target != IGNORE_INDEX)  # (K, B, H, W)
    in_target = np.stack([target == label for label in classes])
    line = np.zeros((len(classes) * B * (H + 1) + 1) * (W + 1), np.uint8)
    body = line[W + 1 :].reshape(len(classes), B, H + 1, W + 1)[:, :, :H, :W]
    np.add(in_pred.view(np.uint8), in_target.view(np.uint8) << 1, out=body)
    return line


# R runs; pairs of one code that share a side, and of two codes that do or, where `diagonal`, share a corner.
_Runs = namedtuple("_Runs", "start length code alike contact diagonal")


def _cut_runs(line: np.ndarray, stride: int, strict: bool) -> _Runs:
    """Cut the line where the code changes, and find what touches by looking at four pixels round each cut.

    a b     b is one row, `stride` pixels, above d.  Only places where a run starts at b or at d are looked at:
    c d                             elsewhere nothing meets that has not met one pixel further left.
    """
    starts = np.zeros(line.size, np.bool_)
    np.not_equal(line[1:], line[:-1], out=starts[1:])
    place_b = np.flatnonzero(starts[stride:] | starts[:-stride])
    place_d = place_b + stride
    a, b, c, d = line[place_b - 1], line[place_b], line[place_d - 1], line[place_d]
    starts_b, starts_d, left, right = a != b, c != d, a == c, b == d
    run_b, run_d = np.cumsum(starts_b), np.cumsum(starts_d)  # number of a run = starts up to here
    alike, below = np.flatnonzero(right), np.flatnonzero(_matters(b, d, strict))
    # c-d is known already if a-b is the same pair, or if a and b are one run that goes on in c or in d
    known = (left & right) | (~starts_b & (left | right))
    beside = np.flatnonzero(_matters(c, d, strict) & ~known)
    # diagonals a-d and b-c: if a, c or b, d are alike, what they connect is connected through sides as well
    corner = np.flatnonzero(starts_b & starts_d & ~left & ~right)
    first = np.concatenate([run_b[below], run_d[beside] - 1, run_b[corner] - 1, run_b[corner]])
    second = np.concatenate([run_d[below], run_d[beside], run_d[corner], run_d[corner] - 1])
    diagonal = np.arange(first.size) >= below.size + beside.size
    start = np.append(0, place_d[np.flatnonzero(starts_d)])
    length = np.diff(start, append=line.size)
    return _Runs(start, length, line[start], (run_b[alike], run_d[alike]), (first, second), diagonal)


def _matters(first: np.ndarray, second: np.ndarray, strict: bool) -> np.ndarray:
    """Neighbours of which one is an error and one is right (one bit differs); `strict` adds FP beside FN."""
    difference = first ^ second
    return _is_error(difference) | ((difference == TP) & _is_error(first) & strict)


def _is_error(code: np.ndarray) -> np.ndarray:
    return (code == FP) | (code == FN)


def _unite(nodes: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Join all pairs of nodes to components with the number of their smallest node; in practice in 2 to 5 rounds."""
    label = np.arange(nodes)
    while (apart := np.flatnonzero(first != second)).size:
        first, second = first.take(apart), second.take(apart)
        np.minimum.at(label, np.maximum(first, second), np.minimum(first, second))
        while not np.array_equal(goal := label.take(label), label):
            label = goal
        first, second = label.take(first), label.take(second)
    return label


# Q patches (one code, 4-connected) in the order of their first runs; `of_run` (R,) is the patch of each run.
# A component has the number of its first patch: `component` (2, Q) of P, then of G, objects and pieces of background
# alike; `region` (2, Q) of errors, seen from the objects, then from the background, the latter plus Q.
_Patches = namedtuple("_Patches", "of_run start code contact diagonal component region")


def _join_runs(runs: _Runs, eight: int) -> _Patches:
    """Join runs to patches, and patches to components: 8-connected where the bit is `eight`, 4-connected elsewhere."""
    root = _unite(runs.code.size, *runs.alike)
    is_first = root == np.arange(root.size)
    first_run, of_run = np.flatnonzero(is_first), (np.cumsum(is_first) - 1)[root]
    patch, code = np.arange(first_run.size), runs.code[first_run]
    x, y = of_run[runs.contact[0]], of_run[runs.contact[1]]
    code_x, difference, side = code[x], code[x] ^ code[y], ~runs.diagonal

    def joined(wanted: np.ndarray) -> np.ndarray:
        return _unite(patch.size, x[link := np.flatnonzero(wanted)], y[link])

    pred = joined((difference & 1 == 0) & (side | (code_x & 1 == eight)))
    true = joined((difference & 2 == 0) & (side | (code_x >> 1 == eight)))
    grown = joined((difference == 0) & _is_error(code_x))  # 8-connected; the patches are the 4-connected ones
    region = np.stack([grown, patch + patch.size] if eight else [patch, grown + patch.size])
    return _Patches(of_run, runs.start[first_run], code, (x, y), runs.diagonal, np.stack([pred, true]), region)


def _find_touches(patches: _Patches, eight: int, strict: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which region touches which component, and whether in T: three arrays (N,), with repetitions."""
    code, Q, (x, y), diagonal = patches.code, patches.code.size, patches.contact, patches.diagonal
    error_x, error_y = _is_error(code[x]), _is_error(code[y])
    from_x, from_y = np.flatnonzero(error_x & ~error_y), np.flatnonzero(error_y & ~error_x)
    error, other = np.append(x[from_x], y[from_y]), np.append(y[from_x], x[from_y])
    slanted = np.append(diagonal[from_x], diagonal[from_y])
    hole = code[other] == TN  # what is right is either object or background, and is seen by this one only
    if strict:  # FP beside FN: each touches the other, seen from the objects and from the background
        both = np.flatnonzero(error_x & error_y & (code[x] != code[y]))
        x, y, diagonal = x[both], y[both], diagonal[both]
        error, other = np.concatenate([error, x, y, x, y]), np.concatenate([other, y, x, y, x])
        slanted = np.concatenate([slanted, diagonal, diagonal, diagonal, diagonal])
        hole = np.append(hole, np.arange(4 * both.size) >= 2 * both.size)
    seen = np.flatnonzero(~slanted | (hole != eight))
    error, other, hole = error[seen], other[seen], hole[seen]
    of_target = code[error] & 1 != hole  # what P has too much is compared with G, what it lacks with P
    toucher = patches.region.reshape(-1)[hole * Q + error]
    return toucher, patches.component.reshape(-1)[of_target * Q + other], ~_is_error(code[other])


def _judge(runs: _Runs, patches: _Patches, eight: int, strict: bool) -> tuple[np.ndarray, ...]:
    """Kind, severity and first patch of each critical region (M,), and each run in a region with the row of this."""
    Q = patches.code.size
    toucher, touched, in_both = _find_touches(patches, eight, strict)
    pair = np.sort(toucher * Q + touched)  # with the next line much faster than np.unique
    pair = np.append(pair[:1], pair[1:][pair[1:] != pair[:-1]])
    degree = np.bincount(pair // Q, minlength=2 * Q)
    if strict:
        alone = np.bincount(toucher[in_both], minlength=2 * Q) == 0
        degree[alone & (degree == 1)] = 0
    exists = np.bincount(patches.region[:, _is_error(patches.code)].ravel(), minlength=2 * Q) > 0
    is_critical = exists & (degree != 1)
    critical = np.flatnonzero(is_critical)
    degree = degree[critical]
    hole, first = np.divmod(critical, Q)
    lacking = patches.code[first] & 1 == hole  # FN, or in holes FP
    kind = 4 * hole + 2 * lacking + (degree == 0)
    run = np.flatnonzero(_is_error(runs.code))
    region = patches.region[:, patches.of_run[run]].ravel()
    kept = np.flatnonzero(is_critical[region])
    return kind, np.abs(degree - 1), first, np.tile(run, 2)[kept], (np.cumsum(is_critical) - 1)[region[kept]]


def _locate(position: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Translate positions in the line to the binary problem (class_index · B + image) and the flat batch."""
    B, H, W = shape
    row = position // (W + 1)  # numpy divides much faster than it takes remainders
    problem = (row - 1) // (H + 1)
    y, column = row - 1 - problem * (H + 1), position - row * (W + 1)
    return problem, ((problem - problem // B * B) * H + y) * W + column


def _count_components(patches: _Patches, bit: int, shape: tuple[int, ...], K: int) -> np.ndarray:
    """β0 and β1 (B, K, 2) of P (bit 0) or G (bit 1)."""
    component = patches.component[bit]
    first = np.flatnonzero(component == np.arange(component.size))[1:]  # without 0, the outside of all images
    hole = 1 - (patches.code[first] >> bit & 1)
    problem = _locate(patches.start[first], shape)[0]
    return np.bincount(2 * problem + hole, minlength=2 * K * shape[0]).reshape(K, -1, 2).swapaxes(0, 1)
