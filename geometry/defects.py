"""Known errors on a known truth: what does each loss and each metric say about each kind of error?

`truth()` is one label map of cells and lines, `predictions()` are copies with exactly one defect each.  `control()` is
wrong at as many pixels, but at straight borders of thick cells, where it changes no object and no hole.  All maps are
(48, 64) uint8: 0 background, 1 object.  The idea: Reinke et al., 2024 (doi:10.1038/s41592-023-02150-0).
"""

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.uint8]

SHAPE = (48, 64)
BRIDGE = (slice(10, 11), slice(17, 20))  # across the gap of three pixels between the two large cells
NECK = (slice(28, 31), slice(17, 18))  # through the neck of three pixels
CUT = (slice(41, 43), slice(30, 31))  # through the line of two pixels
GAP, BESIDE = (slice(23, 35), slice(48, 49)), (slice(23, 35), slice(49, 50))  # of the two cells that nearly touch
HOLE, SMALL = (11, 46), (7, 59)  # middles of the ring and of the small cell
SPECKS = ([20, 38, 38, 17], [35, 15, 48, 60])  # rows and columns of four single pixels, far from everything

KINDS_OF = {
    "nothing wrong": {},
    "shift by one pixel": {},
    "gap beside its place": {},  # one merge and one split if `strict`
    "merge": {"merge": 1},
    "split": {"split": 1},
    "cut line": {"split": 1},
    "closed hole": {"hole_missed": 1},
    "speckle": {"spurious": 4},
    "missed object": {"missed": 1},
}
"""The critical regions of each prediction (see `topology.KINDS`) and their number; all other kinds are 0."""


def truth() -> Map:
    """Draw the truth: eight objects, one hole."""
    label = _block(4, 3) | _block(4, 20)  # two large cells, three pixels apart
    label |= _block(23, 37, height=12, width=23)  # two cells with a gap of one pixel
    label[GAP] = 0
    label |= _disc((29, 10), 40) | _disc((29, 25), 40)  # a cell with a neck
    label[28:31, 15:21] = 1
    label |= _disc(HOLE, 68) - _disc(HOLE, 2)  # a ring with a hole of 3×3
    label |= _disc(SMALL, 5)
    label[41:43, 4:60] = 1  # a line of two pixels
    return label


def predictions() -> dict[str, Map]:
    """Draw the truth with one defect each, by name, in the order of `KINDS_OF`."""
    shown = {name: truth() for name in KINDS_OF}
    shown["shift by one pixel"] = np.roll(truth(), 1, axis=0)
    shown["gap beside its place"][GAP], shown["gap beside its place"][BESIDE] = 1, 0
    shown["merge"][BRIDGE], shown["split"][NECK], shown["cut line"][CUT] = 1, 0, 0
    shown["closed hole"] |= _disc(HOLE, 2)
    shown["speckle"][SPECKS] = 1
    shown["missed object"] -= _disc(SMALL, 5)
    return shown


def control(added: int, removed: int) -> Map:
    """Draw the truth with false pixels on top of the large cells, missed ones in their lowest row: 24 of each fit."""
    columns = np.r_[4:16, 21:33]  # where top and bottom of the two cells are straight
    label = truth()
    label[3, columns[:added]] = 1
    label[17, columns[:removed]] = 0
    return label


def control_for(pred: Map) -> Map:
    """Draw the neutral control with as many false and as many missed pixels as `pred` has, at most 24 of each."""
    return control(int(np.count_nonzero(pred > truth())), int(np.count_nonzero(pred < truth())))


def _block(top: int, left: int, height: int = 14, width: int = 14) -> Map:
    """A rectangle with rounded corners: at each, one pixel is missing."""
    y, x = np.indices(SHAPE)
    down, right = np.minimum(y - top, top + height - 1 - y), np.minimum(x - left, left + width - 1 - x)
    return ((down >= 0) & (right >= 0) & (down + right >= 1)).astype(np.uint8)


def _disc(middle: tuple[int, int], squared_radius: int) -> Map:
    y, x = np.indices(SHAPE)
    return ((y - middle[0]) ** 2 + (x - middle[1]) ** 2 <= squared_radius).astype(np.uint8)
