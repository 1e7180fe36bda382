"""What the tests of saving share: every call that brings a file to the disk goes through one function of the test."""

from __future__ import annotations

import builtins
import functools
import os
import signal
from collections.abc import Callable
from typing import Any

from training import atomic

Step = Callable[..., Any]  # step(call, *arguments) does the call, or fails, or ends the process


class _SteppedFile:
    """A file whose writes happen in two halves, so that a test can stop in the middle of one."""

    def __init__(self, file: Any, step: Step):
        self.file, self.step = file, step

    def write(self, content: bytes | memoryview) -> None:
        half = len(content) // 2
        self.step(self.file.write, content[:half])
        self.file.flush()
        self.step(self.file.write, content[half:])

    def flush(self) -> None:
        self.step(self.file.flush)

    def fileno(self) -> int:
        return self.file.fileno()

    def __enter__(self) -> _SteppedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def send_through(step: Step, set_attribute: Callable[..., None] = setattr) -> None:
    """Send open, write (two halves), flush, fsync, replace and the opening of a folder through `step`."""
    set_attribute(atomic, "open", lambda *a: _SteppedFile(step(builtins.open, *a), step))
    for name in ("fsync", "replace", "open"):
        set_attribute(os, name, functools.partial(step, getattr(os, name)))


class AtCall:
    """A step that does `action` in place of call number `stop`; `calls` counts."""

    def __init__(self, stop: int, action: Callable[[], Any]):
        self.stop, self.action, self.calls = stop, action, 0

    def __call__(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        return self.action() if self.calls == self.stop else call(*arguments, **named)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(action: Callable[[], str]) -> str | None:
    """What `action` returns in a forked process; None if that process was killed or failed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, action().encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return answer if status == 0 else None
