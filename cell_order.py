"""A cell that is run too early says in one line which section has to be run first.

Without it, a student who opens the notebook in the evening and goes on in the middle sees "NameError: name 'loader' is
not defined" and a traceback.  The notebook itself knows where each name gets its first value.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("semantic_segmentation.ipynb")
MAGIC = re.compile(r"^\s*[%!].*$", re.MULTILINE)


def sections(notebook: Path = NOTEBOOK) -> dict[str, str]:
    """{name: heading of the section in which a code cell first assigns, defines or imports it}."""
    heading, found = "the first cells", dict[str, str]()
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            titles = re.findall(r"^#+ +(.+?) *$", source, re.MULTILINE)
            heading = titles[-1] if titles else heading
        elif cell["cell_type"] == "code":
            for name in _given(ast.parse(MAGIC.sub("", source))):
                found.setdefault(name, heading)
    return found


def _given(tree: ast.Module) -> set[str]:
    """Names that a cell leaves behind; those inside of functions and comprehensions are not among them."""
    names: set[str] = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    return names


def advice(name: str, notebook: Path = NOTEBOOK) -> str | None:
    """What to do about a name that is missing; None if no cell of the notebook makes it."""
    section = sections(notebook).get(name)
    if section is None:
        return None
    return f"“{name}” is made in the section “{section}”: run that section first, or all cells from the top."


def install(notebook: Path = NOTEBOOK) -> None:
    """Let the kernel answer a missing name of the notebook with `advice`; outside of a kernel nothing happens."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((NameError,), functools.partial(_answer, notebook))


def _answer(
    notebook: Path, shell: Any, kind: type[NameError], error: NameError, trace: Any, tb_offset: int | None = None
) -> None:
    innermost = trace
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    in_a_cell = innermost.tb_frame.f_globals is shell.user_ns
    line = advice(error.name, notebook) if error.name and in_a_cell else None
    if line is None:  # a mistake of another kind: all that Python has to say
        shell._showtraceback(kind, error, shell.InteractiveTB.structured_traceback(kind, error, trace, tb_offset))
    else:
        shell._showtraceback(kind, line, [line])  # still an error to whoever runs the notebook, but in one line
