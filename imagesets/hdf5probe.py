"""Read all of one .hdf5 file and say nothing: `python3 hdf5probe.py FILE`, started by `hdf5file.py`.

HDF5 may end the process, or never come to an end, on a file whose structure was spoilt.  So a file from elsewhere is
read here first: what happens to this process happens to no notebook.  That it cannot be read is no concern of this
one; the reader says so in our words.  It imports h5py alone, to start in a fifth of a second.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import h5py

MAX_BYTES = 2**31  # of one array; what declares more is refused by `hdf5file.check_sizes`
LEVELS = 2  # groups, and the arrays in them


def read_all(group: Any, levels: int = LEVELS) -> None:
    """Read attributes and arrays of a group; no link is followed."""
    dict(group.attrs)
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            member = group[name]
            if isinstance(member, h5py.Dataset):
                dict(member.attrs)
                if not member.external and not member.is_virtual and member.nbytes <= MAX_BYTES:
                    member[()]
            elif levels > 1:
                read_all(member, levels - 1)


if __name__ == "__main__":
    with contextlib.suppress(Exception), h5py.File(sys.argv[1], "r", locking=False) as opened:
        read_all(opened)
