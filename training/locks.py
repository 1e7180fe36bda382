"""A lock on an open file, the same words on every system.

It belongs to the process: the system takes it back in the moment the process ends, however it ends.  So no lock of a
dead process keeps anybody waiting, as a mere lock *file* would.

Sources: flock(2); Microsoft C runtime, _locking.
"""

from __future__ import annotations

import errno
import sys
import time
from typing import IO, Any

_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # somebody else has it; any other error: there are no locks here

if sys.platform == "win32":
    import msvcrt

    def take(file: IO[Any], *, wait: bool) -> bool:
        """Lock an open file; False if another has it and `wait` is false.  `OSError`: there are no locks here."""
        while True:
            file.seek(0)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return True
            except OSError as error:
                if error.errno not in _HELD:
                    raise
            if not wait:
                return False
            time.sleep(0.01)

    def release(file: IO[Any]) -> None:
        """Give the lock back; closing the file does the same."""
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def take(file: IO[Any], *, wait: bool) -> bool:
        """Lock an open file; False if another has it and `wait` is false.  `OSError`: there are no locks here."""
        # flock, not lockf: another file object of this process is kept out too, and no other close() drops it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
        except OSError as error:
            if error.errno not in _HELD:
                raise
        return False

    def release(file: IO[Any]) -> None:
        """Give the lock back; closing the file does the same."""
        fcntl.flock(file, fcntl.LOCK_UN)
