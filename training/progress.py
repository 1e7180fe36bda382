"""A line of progress that is written over: a saved notebook keeps one clean last line and no broken widget."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


class LiveLine:
    """In a notebook one line that replaces itself and stays as the only output, elsewhere a printed line a step."""

    def __init__(self, active: bool) -> None:
        self._handle: Any = None
        self._display: Callable[..., Any] | None = None
        self._active = active
        if active and "ipykernel" in sys.modules:
            from IPython import get_ipython
            from IPython.display import display

            self._display = display if get_ipython() is not None else None

    def show(self, text: str) -> None:
        """Put `text` in the place of the line before."""
        if not self._active:
            return
        if self._display is None:
            print(text)
        elif self._handle is None:
            self._handle = self._display({"text/plain": text}, raw=True, display_id=True)
        else:
            self._handle.update({"text/plain": text}, raw=True)
