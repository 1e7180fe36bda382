"""A cell that comes too early names the section to run; other mistakes keep their traceback."""

from __future__ import annotations

import ast
import builtins
import json
import sys
import warnings

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

import cell_order

SETUP = "import sys\nsys.path.insert(0, {root!r})\nimport cell_order\ncell_order.install()"


def notebook(tmp_path, *cells):
    """A notebook file; text that begins with # is markdown."""
    made = [
        nbformat.v4.new_markdown_cell(text) if text.startswith("#") else nbformat.v4.new_code_cell(text)
        for text in cells
    ]
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def test_names_belong_to_the_section_that_makes_them_first(tmp_path):
    path = notebook(
        tmp_path,
        "import os.path\nfrom a import b as c",
        "# Part 1\n\ntext\n\n## Data",
        "%matplotlib inline\nx, (y, *z) = 1, (2, 3)\nw: int = 4\nfor i in range(3):\n    last = i",
        "def f(argument):\n    inner = argument\nsquares = [k for k in x]\nwith open('q') as file:\n    pass",
        "## Model",
        "x = 5\nclass Net:\n    attribute = 1\nif (walrus := 3) > 2:\n    late = 1",
    )
    found = cell_order.sections(path)
    assert {found[name] for name in ("os", "c")} == {"the first cells"}
    assert {found[name] for name in ("x", "y", "z", "w", "i", "last", "f", "squares", "file")} == {"Data"}
    assert {found[name] for name in ("Net", "walrus", "late")} == {"Model"}
    assert not {"inner", "argument", "k", "attribute", "b"} & set(found)


def test_every_name_that_a_cell_of_the_course_uses_is_made_somewhere():
    found = cell_order.sections()
    known = set(found) | set(dir(builtins)) | {"display", "get_ipython"}
    for cell in json.loads(cell_order.NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            own = {
                node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
            }
            own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}
            own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
            used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            assert used <= known | own


def run_cells(tmp_path, *cells):
    """Execute cells in a kernel; return the outputs of the last one."""
    root = str(cell_order.NOTEBOOK.parent)
    path = notebook(tmp_path, "## Data", "loader = 1", *cells)
    made = nbformat.read(path, as_version=4)
    setup = SETUP.format(root=root).replace("install()", f"install(cell_order.Path({str(path)!r}))")
    made.cells = [nbformat.v4.new_code_cell(setup), *made.cells[2:]]
    with pytest.raises(CellExecutionError):  # whoever runs the notebook still learns that it went wrong
        NotebookClient(made, kernel_name="python3", timeout=60).execute()
    return made.cells[-1].outputs


def test_fault_77_a_cell_that_comes_too_early_names_the_section(tmp_path):
    (output,) = run_cells(tmp_path, "def g():\n    return loader + 1", "g()")
    assert output.output_type == "error"
    line = "“loader” is made in the section “Data”: run that section first, or all cells from the top."
    assert output.traceback == [line]


@pytest.mark.parametrize(
    "mistake",
    ["nobody_knows_this", "import json.tool as t\nexec('loader', {})", "1 / 0"],
    ids=["typo", "module", "other"],
)
def test_other_mistakes_keep_their_traceback(tmp_path, mistake):
    (output,) = run_cells(tmp_path, mistake)
    assert len("\n".join(output.traceback).splitlines()) > 3


# Cells in another order, in an IPython of this process


class Trial:
    """An IPython that watches a notebook of these cells; a call runs one of them, or a cell of one's own."""

    def __init__(self, tmp_path, monkeypatch, *cells, made_before=None):
        self.path = notebook(tmp_path, *cells)
        self.shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}), user_ns=made_before)
        self.shell._showtraceback = lambda kind, error, lines: self.lines.append(lines)
        monkeypatch.setattr(cell_order, "get_ipython", lambda: self.shell)
        cell_order.install(self.path)

    def __call__(self, *sources):
        """What is shown of the errors of these cells."""
        self.lines: list[list[str]] = []
        for source in sources:
            self.shell.run_cell(source)
        return ["\n".join(lines) for lines in self.lines]


def line(names, section):
    verb = "are" if "," in names else "is"
    return f"{names} {verb} made in the section “{section}”: run that section first, or all cells from the top."


def test_fault_77_a_value_of_another_section_stops_the_cell_before_it_does_anything(tmp_path, monkeypatch):
    data, shows, model = "image = 1", "seen = image + 1", "image = 'a net'"
    run = Trial(tmp_path, monkeypatch, "## Data", data, shows, "## Model", model)
    assert run(data, model, "seen = 0", shows) == [line("“image”", "Data")]
    assert run.shell.user_ns["seen"] == 0
    assert run(data, shows) == []  # what the line says helps
    assert run.shell.user_ns["seen"] == 2


def test_fault_77_what_a_function_uses_counts_where_it_is_called(tmp_path, monkeypatch):
    cells = ["limit = 1", "def inner():\n    return limit", "def outer():\n    return inner()"]
    calls, other = "outer()", "limit = None"
    run = Trial(tmp_path, monkeypatch, "## Data", *cells, calls, "## Model", other)
    assert run(*cells, calls, other, cells[2]) == []  # to define it, `limit` is not needed
    assert run(calls) == [line("“limit”", "Data")]


def test_fault_77_what_a_cell_left_half_done_is_not_used(tmp_path, monkeypatch):
    half, uses = "rows = []\nfor k in (1, 0):\n    rows.append(1 // (k + offset))", "count = len(rows)"
    run = Trial(tmp_path, monkeypatch, "## Setup", "offset = 1", "## Data", half, uses)
    run("offset = 0", half)
    assert run.shell.user_ns["rows"] == [1]
    assert run(uses) == [line("“rows”", "Data")]
    assert run("offset = 1", half, uses) == []


def test_fault_77_all_sections_that_come_first_are_named_in_one_line(tmp_path, monkeypatch):
    cells = ["y, z = 1, 2", "## Two", "c = d = e = f = 3", "## Three", "a = 4", "## Four", "b = 5", "## Five"]
    uses = "a + b + c + d + e + f + y + z"
    run = Trial(tmp_path, monkeypatch, "## One", *cells, uses)
    places = "“y”, “z” are made in the section “One”, “c”, “d”, “e” … in “Two”, “a” in “Three” …"
    assert run(uses) == [f"{places}: run these sections first, or all cells from the top."]


def test_fault_76_a_cell_that_changes_an_older_value_in_place_may_run_again(tmp_path, monkeypatch):
    makes, adds, uses = "results = {}", "results['b'] = 1", "best = results['b']"
    run = Trial(tmp_path, monkeypatch, "## Data", makes, "## Train", adds, adds + "  # again", "## Test", uses)
    assert run(makes, adds, adds, adds + "  # again", uses) == []
    assert run(makes, uses) == [line("“results”", "Train")]


@pytest.mark.parametrize(
    "cells",
    [
        ["import json.tool as t", "## Later", "import json.tool as t"],
        ["from json import dumps as t", "## Later", "from json import dumps as t"],
        ["import json", "## Later", "import json.decoder"],
    ],
)
def test_a_second_import_changes_nothing(tmp_path, monkeypatch, cells):
    uses = "t" if "t" in cells[0].split() else "json"
    run = Trial(tmp_path, monkeypatch, "## Data", cells[0], uses, *cells[1:])
    assert run(cells[0], cells[-1], uses) == []


def test_an_import_of_the_same_name_from_elsewhere_is_another_value(tmp_path, monkeypatch):
    run = Trial(
        tmp_path, monkeypatch, "## Data", "from json import dumps", "dumps", "## Later", "from pickle import dumps"
    )
    assert run("from json import dumps", "from pickle import dumps", "dumps") == [line("“dumps”", "Data")]


def test_cells_that_are_not_in_the_saved_notebook_are_never_stopped(tmp_path, monkeypatch):
    run = Trial(tmp_path, monkeypatch, "## Data", "image = 1", "x = image", "## Model", "image = 2", "x")
    assert run("image = 1", "image = 2", "x = image + 0") == []  # the second cell, changed and not saved
    assert run("image = 5", "x = image", "x", "%time 1") == []  # a value of the student's own
    assert run.shell.user_ns["x"] == 5


def test_fault_77_for_them_a_missing_name_is_explained_where_it_is_missed(tmp_path, monkeypatch):
    run = Trial(tmp_path, monkeypatch, "## Data", "image = 1", "x = image")
    assert run("y = 2\nx = image  # changed") == [line("“image”", "Data")]
    assert run.shell.user_ns["y"] == 2


def test_from_the_top_nothing_is_stopped_even_if_a_name_was_never_made(tmp_path, monkeypatch):
    cells = ["ready = False\nif ready:\n    late = 1", "print(late if ready else 0)", "for k in ():\n    last = k"]
    cells.append("if ready:\n    last += 1")
    assert Trial(tmp_path, monkeypatch, *cells)(*cells) == []


def test_a_notebook_that_cannot_be_read_stops_nothing(tmp_path, monkeypatch):
    run = Trial(tmp_path, monkeypatch, "## Data", "image = 1", "x = image", "## Model", "image = 2")
    for content in (
        '{"cells": [',
        "{}",
        "[]",
        '{"cells": [{"cell_type": "code", "source": 5}]}',
        '{"cells": {"a": 1}}',
    ):
        run.path.write_text(content)
        assert run("image = 1", "image = 2", "x = image") == []
    run.path.unlink()
    assert run("x = image") == [] and cell_order.advice("image", run.path) is None


@pytest.mark.parametrize("wrong", ["x = (", "return 1", "x = 1\0"], ids=range(3))
def test_a_cell_that_python_cannot_read_hinders_no_other(tmp_path, monkeypatch, wrong):
    run = Trial(tmp_path, monkeypatch, "## Data", wrong, "y = 1", "z = y", "## Model", "y = 2")
    run(wrong)
    assert run("y = 1", "z = y") == []
    assert run("y = 2", "z = y") == [line("“y”", "Data")]


def test_a_cell_that_is_too_deep_for_python_hinders_no_other(tmp_path, monkeypatch, capsys):
    deep = f"x = {9999 * '1 + '}1"
    run = Trial(tmp_path, monkeypatch, deep, "y = 1")
    assert "y = 1" in cell_order.cells(run.path)
    run.shell.events.trigger("post_run_cell", None)  # so IPython tells that it failed itself
    assert "Error in callback" not in capsys.readouterr().out


def test_a_name_that_no_longer_is_a_function_needs_no_more_than_itself(tmp_path, monkeypatch):
    cells = ["limit = 1", "def f():\n    return limit", "## Model", "f = 3", "f + 1"]
    assert Trial(tmp_path, monkeypatch, *cells)("f = 3", "f + 1") == []


def test_a_name_that_a_comprehension_makes_is_known(tmp_path, monkeypatch):
    makes, uses, other = "found = any((last := k) > 1 for k in (1, 2))", "double = 2 * last", "last = 5"
    run = Trial(tmp_path, monkeypatch, "## Data", makes, uses, "## Model", other)
    assert run(makes, uses, other) == [] and run(uses) == [line("“last”", "Data")]


def test_a_cell_that_was_stopped_has_changed_nothing(tmp_path, monkeypatch):
    run = Trial(tmp_path, monkeypatch, "## Data", "a = 1", "uses = a", "## Model", "b = 2", "a = b")
    assert run("a = 1", "a = b", "uses = a") == [line("“b”", "Model")]


def test_fault_77_what_was_made_before_anyone_looked_is_not_trusted(tmp_path, monkeypatch):
    cells = ["import sys", "pass  # cell_order.install()", "## Data", "image = 1", "x = image", "sys.path"]
    run = Trial(tmp_path, monkeypatch, *cells, made_before={"image": 2, "sys": sys})
    assert run("x = image", "sys.path") == [line("“image”", "Data")]


def test_installed_twice_it_still_watches_once(tmp_path, monkeypatch):
    run = Trial(tmp_path, monkeypatch, "## Data", "image = 1", "x = image", "## Model", "image = 2")
    run("image = 1", "image = 2")
    cell_order.install(run.path)
    assert len(run.shell.ast_transformers) == 1
    assert run("x = image") == [line("“image”", "Data")]


def test_fault_76_no_cell_of_the_course_reads_a_name_before_it_changes_it():
    found = [
        (list(cell.needed.keys() & cell.given.keys() - cell.changed), source.splitlines()[0])
        for source, cell in cell_order.cells().items()
    ]
    assert [pair for pair in found if pair[0]] == []


def test_no_two_cells_of_the_course_are_the_same_and_none_hides_what_python_has_built_in():
    code = [c for c in json.loads(cell_order.NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert len(cell_order.cells()) == len(code)
    built_in = {name for name in dir(builtins) if name[0] != "_"} - {"display"}  # IPython puts it there
    assert not built_in & set(cell_order.sections())


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"1", b'{"cells": 1}', b'{"cells": [{}]}', b'{"cells": [{"source": [1]}]}', b'["cells"]'],
)
def test_a_notebook_that_is_damaged_gives_no_help_and_no_error(tmp_path, content):
    (tmp_path / "n.ipynb").write_bytes(content)
    assert cell_order.sections(tmp_path / "n.ipynb") == {}
    (tmp_path / "n.ipynb").write_bytes(b'{"cells": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    assert cell_order.sections(tmp_path / "n.ipynb") == {}
    assert cell_order.advice("loader", tmp_path / "gone.ipynb") is None


@pytest.mark.parametrize("source", ["def f(:", "x = 0777", "-" * 5000 + "1", "x = '\0'", "(" * 300, "len('\\d')"])
def test_a_cell_that_is_no_python_or_odd_hides_no_other_one(tmp_path, source):
    path = notebook(tmp_path, "## Data", "loader = 1", source, "model = 2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert cell_order.sections(path) == {"loader": "Data", "model": "Data"}
    assert not caught
