"""A cell that comes too early names the section to run; other mistakes keep their traceback."""

from __future__ import annotations

import ast
import builtins
import json

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

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
