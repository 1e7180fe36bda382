"""Is the process that signed a piece of work still alive?

A process signs with its machine, its number and its start time, because a number is given again once its owner is gone.

Source: proc(5), the file /proc/PID/stat of Linux; kill(2) with signal 0 elsewhere.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def signature(pid: int | None = None) -> str:
    """Machine, number and start time of a living process, by default this one; "" if there is none of this number.

    >>> signature() == signature(os.getpid()), signature(2**22 + 1)
    (True, '')
    """
    pid = os.getpid() if pid is None else pid
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = text.rpartition(")")[2].split()
        return "" if state in "ZX" else f"{socket.gethostname()} {pid} {fields[18]}"  # Z, X: dead, not yet buried
    except OSError:
        exists = os.path.exists("/proc/self/stat") is False and _answers(pid)
    return f"{socket.gethostname()} {pid} -" if exists else ""


def _answers(pid: int) -> bool:
    """True if a process of this number exists, on systems without /proc; Windows cannot be asked."""
    if pid == os.getpid() or os.name != "posix":
        return True
    try:
        os.kill(pid, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_here(signed: str) -> bool:
    """True if the signature is from this machine."""
    return signed.partition(" ")[0] == socket.gethostname()


def is_mine(signed: str) -> bool:
    """True if this process has signed."""
    return signed == signature()


def has_ended(signed: str) -> bool | None:
    """Whether the process that signed has ended; None if that cannot be known from here.

    >>> has_ended(signature()), has_ended(f"{socket.gethostname()} {2**22 + 1} 5"), has_ended("another-machine 1 5")
    (False, True, None)
    """
    if not is_here(signed) or os.name != "posix":
        return None
    return signature(int(signed.split(" ")[1])) != signed
