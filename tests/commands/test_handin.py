"""Each regulation has a notebook with exactly this one defect; the one without defects is let through."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from commands import handin

Cells = list[dict[str, Any]]
PNG = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}, "metadata": {}}


def text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source.splitlines(keepends=True)}


def code(number: int | None, source: str, *outputs: dict[str, Any]) -> dict[str, Any]:
    cell = {"cell_type": "code", "metadata": {}, "source": source}
    return {**cell, "execution_count": number, "outputs": list(outputs)}


def printed(line: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": [line]}


def good_cells() -> Cells:
    return [
        text("# Report\nNames: Emmy, Ada"),
        code(1, "%matplotlib inline\nimport mynet\nimport numpy as np", printed("hello")),
        text("## A1.1a U-Net\n`figures/table.csv`\nI needed the following time to complete the task: 2 h"),
        code(2, "import plots\nplots.show_pair(1)", PNG),
        code(None, "  \n"),  # an empty cell needs no number
        code(3, "import matplotlib.pyplot as plt\nplt.plot([1, 2])", PNG),
    ]


def save(root: Path, cells: Cells) -> Path:
    notebook = root / "report.ipynb"
    notebook.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))
    return notebook


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project without defects."""
    (tmp_path / "README.md").write_text("# Report\n")
    (tmp_path / "requirements.txt").write_text("numpy>=2.0\ntorch>=2.6  # networks\nmatplotlib>=3.9\n")
    (tmp_path / "mynet.py").write_text("import torch\nimport helper\n")
    (tmp_path / "helper.py").write_text("import math\n")
    (tmp_path / "plots.py").write_text("def show_pair(image): ...\n")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "table.csv").write_text("a,b\n")
    return tmp_path


WIDGET = {"output_type": "display_data", "data": {"application/vnd.jupyter.widget-view+json": {}}, "metadata": {}}
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
# what is said: cell and the change of it, an output that it gets, a text that is added, or a file that is deleted
DEFECTS: dict[str, Any] = {
    "cell 4 (A1.1a U-Net) was not run": (3, {"execution_count": None}),
    "has number 9, expected 3": (5, {"execution_count": 9}),
    "cell 6 (A1.1a U-Net) draws but shows no image": (5, {"outputs": []}),
    "cell 6 (A1.1a U-Net) ends in an error: ValueError: no": (5, ERROR),
    "cell 2 (Report) shows only a widget": (1, WIDGET),
    "this machine (/home/ada/x.py)": (1, printed("File /home/ada/x.py")),
    "cell 4 (A1.1a U-Net) holds a path": (3, printed(r"C:\Users\ada\x")),
    "points to results/gone.csv": "See `results/gone.csv`.",
    "points to figures/gone too.png": "[here](figures/gone%20too.png)",
    "points to ../shared/x.png": "![](../shared/x.png)",
    "cell 2 (Report) imports mynet, but there is no mynet.py": Path("mynet.py"),
    "mynet.py imports helper, but there is no helper.py": Path("helper.py"),
    "README.md is missing": Path("README.md"),
}


@pytest.mark.parametrize("expected", DEFECTS)
def test_one_defect_is_one_line(root, expected):
    cells, defect = good_cells(), DEFECTS[expected]
    if isinstance(defect, Path):
        (root / defect).unlink()
    elif isinstance(defect, str):
        cells.append(text(defect))
    elif "output_type" in defect[1]:
        cells[defect[0]]["outputs"].append(defect[1])
    else:
        cells[defect[0]].update(defect[1])
    (problem,) = handin.problems(save(root, cells), root)
    assert expected in problem


def test_the_path_of_the_project_is_found_wherever_it_lies(root):
    there = Path("/data/course").resolve()
    (cell,) = handin.read_report(save(root, [code(1, "1", printed(f"File {there}/unet.py, not {there}s"))]), root).cells
    (problem,) = handin.machine_paths(handin.Report(there, [cell], {}))
    assert problem.startswith(f"{cell.where} holds a path of this machine ({there}/unet.py")


def test_no_notebook_an_empty_one_and_one_without_images(root):
    for content in ("", "[]", '{"cells": 1}'):
        (root / "report.ipynb").write_text(content)
        (problem,) = handin.problems(root / "report.ipynb", root)
        assert "report.ipynb is missing, or no notebook" in problem
    (problem,) = handin.problems(save(root, [text("# Only words")]), root)
    assert "report.ipynb is empty" in problem
    (problem,) = handin.problems(save(root, [text("`figures/table.csv`"), code(1, "1 + 1")]), root)
    assert problem == "the notebook shows no image at all: run all cells, then save it"


def test_over_the_limit(root, monkeypatch):
    monkeypatch.setattr(handin, "MAX_MEGABYTES", 0.05)
    (root / "figures" / "table.csv").write_text("1" * 50_000)
    (problem,) = handin.problems(save(root, good_cells()), root)
    assert "0.1 MB are too much" in problem


LOOKS = [
    "`nn.Module`, `unet.UNet(1, 2)`, `.hdf5`, `figures/`, `B, C, H, W = x.shape`",  # code, no files
    "Type `python3 run.py`, then look at `handin/report.zip` and `data/yeast.hdf5`.",  # what a run makes
    "[paper](https://arxiv.org/pdf/1505.04597.pdf) ![](attachment:a.png) [above](#A1.1a) `./mynet.py`",
    "https://example.org/home/page, either/Users/or, and 1/tmp/2 are no paths of a machine",
    "```\n# not a heading\n```",
]


@pytest.mark.parametrize("looks", [[], LOOKS])
def test_a_good_notebook_is_let_through_also_with_what_only_looks_like_a_defect(root, looks):
    assert handin.problems(save(root, [*good_cells(), *map(text, looks)]), root) == []


@pytest.mark.parametrize("field", ["none", "Names of the partners: ____", "**Group:** _name 1, name 2_", "Name:\n\nx"])
def test_reminders_name_empty_fields(root, field):
    assert handin.reminders(save(root, good_cells()), root) == []
    cells = good_cells()
    cells[0] = text(f"# Report\n{field}")
    cells[2] = text("## A1.1b\n`figures/table.csv`\n**I needed the following time (1.1):** \\_\\_ hours\n\n7")
    cells.append(text("Names: of layers"))  # only the first cell tells the names
    notebook = save(root, cells)
    assert handin.problems(notebook, root) == []  # reminders are no reason to refuse
    missing = ["the names of the group are missing", "cell 3 (A1.1b): the needed time is missing"]
    assert handin.reminders(notebook, root) == missing


@pytest.mark.parametrize("line", ["%matplotlib inline", "!ls", "sum?", "x = (1\n  % 2)  # ?"])
def test_lines_of_ipython_do_not_hide_the_python_around_them(root, line):
    (problem,) = handin.problems(save(root, [*good_cells(), code(4, f"{line}\nimport gone  # why?")]), root)
    assert "imports gone" in problem


def test_the_zip_holds_the_modules_of_all_folders_and_all_figures_and_nothing_else(root):
    for name in ("training/checkpoint.py", "figures/study/more.png", "figures/.hidden", "notes/own.txt", "tests/t.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    source = save(root, [code(None, "1")])
    (root / "handin").mkdir()
    executed = save(root / "handin", [*good_cells(), code(4, "from training import checkpoint")])
    assert handin.hand_in(executed, root) == 0
    with zipfile.ZipFile(root / "handin" / "report.zip") as archive:
        names = archive.namelist()
        assert archive.read("report.ipynb") == executed.read_bytes() != source.read_bytes()
    modules = ["helper.py", "mynet.py", "plots.py", "training/checkpoint.py"]
    figures = ["figures/study/more.png", "figures/table.csv"]
    known = [*modules, *figures, "README.md", "report.html", "report.ipynb", "requirements.txt"]
    assert sorted(names) == sorted(known)
    assert {path.name for path in executed.parent.iterdir()} == {"report.ipynb", "report.zip"}  # no temporary file


@pytest.mark.parametrize(("readme", "said"), [(True, "run from the zip alone. no table.csv"), (False, "README.md is")])
def test_a_hand_in_with_problems_or_one_that_fails_from_the_zip_is_not_written(root, capsys, readme, said):
    (root / "report.zip").write_bytes(b"precious")
    if not readme:
        (root / "README.md").unlink()
    assert handin.hand_in(save(root, good_cells()), root, trial=lambda part: "no table.csv") == 1
    assert said in capsys.readouterr().out
    assert (root / "report.zip").read_bytes() == b"precious" and not list(root.glob("*.part"))


def test_the_page_needs_no_network_and_has_title_contents_alt_texts_formulas_and_folded_code(root):
    cells = good_cells()
    cells[0] = text('# A "title" & more\n[there](#A1.1a)\n\n$x_1 \\cdot y$, `$code$`, $5 and $7, \n\n$$\\sum_i x_i$$')
    cells[1]["metadata"] = {"tags": ["hide-input"]}
    cells[2] = text('<a id="A1.1a"></a>\n## A1.1a U-Net\n')
    shown, described = PNG, {**PNG, "metadata": {"image/png": {"alt": "errors < 3"}}}
    table = {"output_type": "display_data", "metadata": {}, "data": {"text/markdown": "| $a$ |\n|---|\n| 1 |"}}
    cells[3]["outputs"], cells[5]["outputs"] = [shown, table], [described]
    page = handin.page(save(root, cells))
    assert '<title>A "title" &amp; more</title>' in page
    assert not re.search(r"<script|(src|href)=.?(https?:)?//", page)
    assert page.count("<math") == 3 and page.count('display="block"') == 1  # two in the text, one in the table
    assert all(kept in page for kept in ("$code$", "$5 and $7", '<a id="A1.1a"></a>', "<td>1</td>"))
    contents = re.search(r"<nav>.*</nav>", page)
    assert contents and re.findall(r'<p class="level(\d)"><a href="#([^"]*)"', contents[0])[1] == ("2", "A1.1a-U-Net")
    assert re.findall(r'<img alt="([^"]*)"', page) == ["no description", "errors &lt; 3"]
    assert re.search(r"<details>\s*<summary>%matplotlib inline</summary>", page) and page.count("<details>") == 2


def colab_with(tree: dict[str, Any], downloads: list[str]) -> dict[str, Any]:
    """Colab as far as the hand-in knows it: it gives the notebook that is seen, and offers a file."""
    message, files = ModuleType("google.colab._message"), ModuleType("google.colab.files")
    message.blocking_request = lambda request, **options: {"ipynb": tree}
    files.download = downloads.append
    colab = ModuleType("google.colab")
    colab._message, colab.files = message, files
    return {"google": ModuleType("google"), "google.colab": colab}


def test_in_colab_the_last_cell_saves_checks_zips_and_offers(root, monkeypatch, capsys):
    last = code(None, "from commands import handin\n\nhandin.from_notebook()")  # it is running
    tree = {"cells": [*good_cells(), last], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    downloads: list[str] = []
    for name, module in colab_with(tree, downloads).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(handin, "ROOT", root)
    monkeypatch.delenv("SEGMENTATION_BUDGET", raising=False)
    handin.from_notebook()
    assert downloads == [str(root / "handin" / "semantic_segmentation.zip")] and Path(downloads[0]).exists()
    assert capsys.readouterr().out.splitlines()[-1].endswith("is ready to be handed in.")  # the result comes last
    tree["cells"][1]["execution_count"] = 7
    handin.from_notebook()
    assert "expected 1" in capsys.readouterr().out and len(downloads) == 1


@pytest.mark.parametrize("place", ["Jupyter", "VS Code", "unknown"])
def test_elsewhere_the_last_cell_takes_the_saved_file_if_it_is_new_enough(root, monkeypatch, capsys, place):
    notebook = save(root, good_cells())
    monkeypatch.setattr(handin, "ROOT", root)
    monkeypatch.setattr(handin, "NOTEBOOK", notebook.name)
    monkeypatch.delenv("SEGMENTATION_BUDGET", raising=False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    main = sys.modules["__main__"]
    if place == "Jupyter":
        monkeypatch.setenv("JPY_SESSION_NAME", str(notebook))
    elif place == "VS Code":
        monkeypatch.setattr(main, "__vsc_ipynb_file__", str(notebook), raising=False)
    monkeypatch.setattr(main, "In", [""] * 9, raising=False)  # eight cells ran, three of them are in the file
    handin.from_notebook()
    assert "save the notebook (Ctrl-S)" in capsys.readouterr().out
    monkeypatch.setattr(main, "In", [""] * 5, raising=False)  # the three, and this one
    handin.from_notebook()
    assert "report.zip" in capsys.readouterr().out and (root / "report.zip").exists()
    monkeypatch.setenv("SEGMENTATION_BUDGET", "quick")
    handin.from_notebook()
    assert capsys.readouterr().out == "run.py checks this notebook and writes its zip.\n"


def test_the_command_needs_no_package_and_writes_beside_the_notebook(root):
    program = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1]); from commands import handin; "
        "handin.ROOT = pathlib.Path('.'); sys.exit(handin.main(['report.ipynb']))"
    )
    save(root, [*good_cells(), text("## Part\nI needed the following time to complete the task:")])
    command = [sys.executable, "-E", "-s", "-S", "-c", program, str(Path(handin.__file__).parents[1])]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)  # nothing installed is seen
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"report.zip \(.* MB\) is ready", result.stdout)
    assert "cell 7 (Part): the needed time is missing" in result.stdout
    assert "no HTML page, and is complete without: ModuleNotFoundError" in result.stdout


def test_no_import_of_the_course_is_missed_where_nothing_is_installed():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from commands import handin; "
        "print(list(handin.missing_modules(handin.read_report(handin.ROOT / handin.NOTEBOOK, handin.ROOT))))"
    )
    command = [sys.executable, "-E", "-s", "-S", "-c", program, str(Path(handin.__file__).parents[1])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
