"""A cell that is run too early, or too late, says in one line which section has to be run first.

The cells of a notebook can be run in any order.  Then a name may be missing, and Python answers "NameError: name
'loader' is not defined" and a traceback.  Worse, a name may be there with the value of another section: `image`,
`counts` or `net` mean something new in each, and the cell ends in a strange error or shows a wrong result in silence.

The notebook itself says what each cell reads, and which cell above it gives these names their values.  So before a cell
runs, each name that it reads must come from that cell.  Where all cells are run from the top, this is always so, and
nothing is ever stopped.  Cells that are not in the saved notebook (a student's own, or one that was changed and not yet
saved) are never stopped, and what they make may be used; for them only a missing name is explained.
"""

from __future__ import annotations

import ast
import dis
import functools
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

from IPython import get_ipython
from IPython.core.error import InputRejected

NOTEBOOK = Path(__file__).with_name("semantic_segmentation.ipynb")
READS = ("LOAD_NAME", "LOAD_GLOBAL")
MAGIC = re.compile(r"^\s*[%!].*$", re.MULTILINE)


@dataclass(frozen=True)
class Origin:
    """Where a value comes from: the id of the cell that makes it, or what is imported; and the section."""

    key: str
    section: str
    number: int = 0
    """Which cell of the notebook it is, from the top."""


@dataclass(frozen=True)
class Cell:
    """What a code cell leaves behind, and what it needs from the cells above it; {name: where its value comes from}."""

    given: dict[str, Origin]
    needed: dict[str, Origin]
    changed: frozenset[str]
    """Names of other cells whose value it changes in place: `results["yeast"] = …`."""


OWN = Origin("", "a cell of your own")
UNKNOWN = Origin("unknown", "a cell that did not end well, or ran before anyone looked")


def cells(notebook: Path = NOTEBOOK) -> dict[str, Cell]:
    """{source: what it gives and needs} for all code cells of the notebook as it is saved; {} if it cannot be read."""
    try:
        return _cells(notebook, notebook.stat().st_mtime_ns, notebook.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # it has another name, is being saved right now, or is no notebook


@functools.lru_cache(maxsize=2)
def _cells(notebook: Path, saved_at: int, size: int) -> dict[str, Cell]:
    heading, found = "the first cells", dict[str, Cell]()
    latest: dict[str, Origin] = {}  # who gave a name its value, in the cells so far
    inside: dict[str, set[str]] = {}  # what a function of the cells so far uses when it is called
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            titles = re.findall(r"^#+ +(.+?) *$", source, re.MULTILINE)
            heading = titles[-1] if titles else heading
        elif cell["cell_type"] == "code" and (flow := _flow(source)):
            inside = {name: names for name, names in inside.items() if name not in flow.made} | flow.inside
            used = flow.used_first | (_used_by_functions(flow.used, inside) - flow.made)
            own = Origin(cell.get("id", source), heading, number)
            given = dict.fromkeys(flow.made, own)
            given |= {
                name: Origin(what, heading, number) for name, what in _imports(flow.tree).items() if name in flow.made
            }
            changed = frozenset(_changed_in_place(flow.tree) - flow.made)
            needed = {name: latest[name] for name in sorted(used) if name in latest}
            found[source] = Cell(given | dict.fromkeys(changed, own), needed, changed)
            latest |= found[source].given
    return found


@dataclass
class _Flow:
    """The names of a cell in the order of its steps; the compiler knows the scope of each name."""

    tree: ast.Module
    used: set[str] = field(default_factory=set)
    used_first: set[str] = field(default_factory=set)
    """Names that are used before the cell gives them a value, or that it does not make at all."""
    made: set[str] = field(default_factory=set)
    inside: dict[str, set[str]] = field(default_factory=dict)
    """{function of the cell: names that are used when it is called}."""

    def __post_init__(self) -> None:
        for step in _steps(compile(self.tree, "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)):
            if isinstance(step.argval, CodeType):
                self.inside[step.argval.co_name] = {s.argval for s in _steps(step.argval, True) if s.opname in READS}
            elif step.opname in ("STORE_NAME", "STORE_GLOBAL"):
                self.made.add(step.argval)
            elif step.opname in READS:
                self.used.add(step.argval)
                self.used_first |= {step.argval} - self.made


def _flow(source: str) -> _Flow | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an odd "\d": Python says so when the cell runs
            return _Flow(ast.parse(MAGIC.sub("", source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # Python itself will say so
        return None


def _steps(code: CodeType, into_functions: bool = False) -> Iterator[dis.Instruction]:
    """All steps of a piece of code and of its comprehensions and lambdas; those of its functions if asked for."""
    for step in dis.get_instructions(code):
        if isinstance(step.argval, CodeType) and (into_functions or step.argval.co_name.startswith("<")):
            yield from _steps(step.argval, into_functions)
        else:
            yield step


def _used_by_functions(names: set[str], inside: dict[str, set[str]]) -> set[str]:
    """What is used by all of these that are functions, and by the functions that they call."""
    known, waiting = set[str](), list(names)
    while waiting:
        new = inside.get(waiting.pop(), set()) - known
        known |= new
        waiting += new
    return known


def _imports(tree: ast.Module) -> dict[str, str]:
    """{name: what it stands for} of all imports: the same in every section that imports it again."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            path = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                found[name] = f"import {path}{alias.name if alias.asname or path else name}"
    return found


def _changed_in_place(tree: ast.Module) -> set[str]:
    """Names of which an element or an attribute gets a value."""
    found, waiting = set[str](), list[ast.AST](tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            while isinstance(node, (ast.Subscript, ast.Attribute)):
                node = node.value
            found |= {node.id} if isinstance(node, ast.Name) else set()
        elif not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            waiting += ast.iter_child_nodes(node)
    return found


def sections(notebook: Path = NOTEBOOK) -> dict[str, str]:
    """{name: heading of the section in which a code cell first assigns, defines or imports it}."""
    found: dict[str, str] = {}
    for cell in cells(notebook).values():
        for name, origin in cell.given.items():
            found.setdefault(name, origin.section)
    return found


def advice(name: str, notebook: Path = NOTEBOOK) -> str | None:
    """What to do about a name that is missing; None if no cell of the notebook makes it."""
    section = sections(notebook).get(name)
    return None if section is None else sentence({section: [name]})


def sentence(names: dict[str, list[str]]) -> str:
    """One line about names that a cell lacks, from {section that makes them: names}; at most three of each are told.

    >>> print(sentence({"B2a": ["images", "labels"], "B2b": ["pixels"]}))
    “images”, “labels” are made in the section “B2a”, “pixels” in “B2b”: run these sections first, or all ...
    """
    lists = [", ".join(f"“{name}”" for name in group[:3]) + " …" * (len(group) > 3) for group in names.values()]
    (first, *others), (section, *further) = lists[:3], names
    verb = "is" if first.count("“") == 1 else "are"
    places = [f"{first} {verb} made in the section “{section}”"]
    places += [f"{group} in “{place}”" for group, place in zip(others, further)]
    more = " …" * (len(lists) > 3)
    which = "that section" if len(lists) == 1 else "these sections"
    return f"{', '.join(places)}{more}: run {which} first, or all cells from the top."


class CellTooEarly(InputRejected):
    """A cell that was not run, because other cells come first."""

    def _render_traceback_(self) -> list[str]:  # IPython shows this instead of a traceback
        return [str(self)]


def install(notebook: Path = NOTEBOOK) -> None:
    """Let the kernel check each cell before it runs, and answer a missing name; outside of a kernel nothing happens."""
    shell = get_ipython()
    if shell is None or any(isinstance(one, _Watch) for one in shell.ast_transformers):
        return
    watch = _Watch(notebook, shell)
    watch.origins = dict.fromkeys(_unknown(notebook) & set(shell.user_ns), UNKNOWN)
    shell.ast_transformers.append(watch)
    shell.events.register("pre_run_cell", watch.before_cell)
    shell.events.register("post_run_cell", watch.after_cell)
    shell.set_custom_exc((NameError,), functools.partial(_answer, notebook))


def _unknown(notebook: Path) -> set[str]:
    """Names that only cells below the one with `cell_order.install` make: what they are before it, nobody knows."""
    above, below = set[str](), set[str]()
    for source, cell in cells(notebook).items():
        below |= cell.given.keys()
        if "cell_order.install(" in source:
            above = set(below)
    return below - above


class _Watch:
    """Knows which cell gave each name its present value, and refuses a cell that would read another one's."""

    def __init__(self, notebook: Path, shell: Any) -> None:
        self.notebook, self.shell = notebook, shell
        self.origins: dict[str, Origin] = {}
        self.cell: Cell | None = None

    def before_cell(self, info: Any) -> None:
        self.cell = cells(self.notebook).get(info.raw_cell.strip())

    def visit(self, tree: ast.AST) -> ast.AST:
        """Called with each cell that is about to run: only here can it be refused."""
        if self.cell is not None and (lacking := self.lacking(self.cell)):
            raise CellTooEarly(sentence(lacking))
        return tree

    def lacking(self, cell: Cell) -> dict[str, list[str]]:
        """{section: names from there that are missing or have the value of another cell}, as in the notebook."""
        found: dict[str, list[str]] = {}
        for name, origin in sorted(cell.needed.items(), key=lambda item: item[1].number):
            now = self.origins.get(name, origin if name in self.shell.user_ns else UNKNOWN)
            own_change = name in cell.changed and now.key == cell.given[name].key  # it is run once more
            if now.key not in (origin.key, OWN.key) and not own_change:
                found.setdefault(origin.section, []).append(name)
        return found

    def after_cell(self, result: Any) -> None:
        self.cell = None
        if result is None or result.error_before_exec is not None:  # it did not run
            return
        source = result.info.raw_cell
        cell = cells(self.notebook).get(source.strip())
        if cell is not None:
            self.origins |= cell.given if result.success else dict.fromkeys(cell.given, UNKNOWN)
        elif flow := _flow(source):
            self.origins |= dict.fromkeys(flow.made, OWN)


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
