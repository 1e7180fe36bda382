"""An executed notebook as a list of its cells; what is no notebook, or a broken one, is said in one sentence.

The file of a notebook is JSON of a certain form.  Jupyter repairs some mistakes in silence and fails on others, so the
one who grades may see another notebook than the one who wrote it.  Hence each cell must be made as Jupyter makes it.
Standard library only.

Source: the notebook format 4, nbformat.readthedocs.io.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

OUTPUTS = {"stream", "display_data", "execute_result", "error"}


class NotebookError(Exception):
    """A file is no notebook, or one of its cells is broken; the text is one sentence for its author."""


class Cell(NamedTuple):
    """One cell that is not empty: its text, what it shows, and how a message names it."""

    is_code: bool
    source: str
    number: int | None  # the order of execution
    outputs: list[dict[str, Any]]
    printed: str  # all text of the outputs
    shows_image: bool
    where: str


def read_cells(notebook: Path) -> list[Cell]:
    """All cells of a notebook that are not empty, in their order; raises `NotebookError`."""
    cells, section, number = [], "before the first heading", 0
    try:
        for number, raw in enumerate(_read_json(notebook), start=1):
            _check_cell(raw)
            is_code, source, outputs = raw["cell_type"] == "code", "".join(raw["source"]), raw.get("outputs", [])
            section = section if is_code else heading(source) or section
            shown = [item for output in outputs for item in (output | output.get("data", {})).items()]
            texts = ["".join(value) for kind, value in shown if kind.startswith(("text", "traceback"))]
            image = any(kind.startswith("image/") for kind, _ in shown) or "<img" in "".join(texts)
            count, where = raw.get("execution_count"), f"cell {number} ({section[:40]})"
            cells.append(Cell(is_code, source, count, outputs, "\n".join(texts), image, where))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        if number:
            problem = f"cell {number} of {notebook.name} is broken: delete it in Jupyter and write it again"
        else:
            problem = f"{notebook.name} is missing, or no notebook: save it and try again"
        raise NotebookError(problem) from None
    return [cell for cell in cells if cell.source.strip()]


def _read_json(notebook: Path) -> list[Any]:
    """The cells of a notebook of format 4; raises many kinds of errors."""
    tree = json.loads(notebook.read_text(encoding="utf-8"), parse_constant=_no_json)
    is_notebook = tree["nbformat"] == 4 and type(tree["nbformat_minor"]) is int and isinstance(tree["metadata"], dict)
    if not is_notebook or not isinstance(tree["cells"], list):
        raise TypeError
    return tree["cells"]


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON, and no browser reads it")


def _is_text(value: Any) -> bool:
    """A text, or a list of its lines."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(line, str) for line in value))


def _check_cell(raw: Any) -> None:
    """Raise `TypeError` or `LookupError` unless a cell is made as Jupyter makes it."""
    outputs, count = raw.get("outputs", []), raw.get("execution_count")
    is_named = isinstance(raw["metadata"], dict) and isinstance(raw.get("id", ""), str)
    is_cell = (
        is_named
        and raw["cell_type"] in {"code", "markdown", "raw"}
        and _is_text(raw["source"])
        and isinstance(outputs, list)
    )
    if not is_cell or not (count is None or type(count) is int):
        raise TypeError
    for output in outputs:
        data = output.get("data", {})
        texts = [value for kind, value in (output | data).items() if kind.startswith(("text", "traceback"))]
        if output["output_type"] not in OUTPUTS or not all(map(_is_text, texts)):
            raise TypeError


def heading(text: str) -> str:
    """The last heading of a text cell, or an empty string.

    >>> heading("# Losses\\n## A1.3a Imbalance\\nWhy is it hard?")
    'A1.3a Imbalance'
    """
    lines = re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()
    return next((line.strip("# ") for line in reversed(lines) if re.match("#+ ", line)), "")


def parsed(code: str | Path) -> ast.Module:
    """A cell or a module as Python, without IPython's own lines; empty if it is missing or no Python."""
    text = code if isinstance(code, str) else code.read_text(encoding="utf-8") if code.is_file() else ""
    for version in (text, re.sub(r"^(\s*)([%!?].*|[\w.]+\?+)$", r"\1pass", text, flags=re.MULTILINE)):
        with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an odd "\d", which Python says for each parse
            return ast.parse(version)
    return ast.parse("")
