"""Each regulation has a notebook with exactly this one defect; the one without defects is let through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import handin

Cells = list[dict[str, Any]]
PNG = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}}
GITHUB_TOKEN = "gh" + "p_" + "a1" * 18  # put together here, so that no scanner takes this file for a leak


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
    notebook.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return notebook


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project without defects."""
    (tmp_path / "README.md").write_text("# Report\n")
    (tmp_path / "requirements.txt").write_text("numpy>=2.0\ntorch>=2.6  # networks\nmatplotlib>=3.9\n")
    (tmp_path / "mynet.py").write_text("import torch\nimport helper\n")
    (tmp_path / "helper.py").write_text("import math\n")
    (tmp_path / "plots.py").write_text("def show_pair(image, ax=None): ...\ndef use_style(): ...\n")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "table.csv").write_text("a,b\n")
    return tmp_path


def set_cell(index: int, **changes: Any) -> Callable[[Cells, Path], object]:
    return lambda cells, root: cells[index].update(changes)


def add_output(index: int, output: dict[str, Any]) -> Callable[[Cells, Path], object]:
    return lambda cells, root: cells[index]["outputs"].append(output)


def add_text(source: str) -> Callable[[Cells, Path], object]:
    return lambda cells, root: cells.append(text(source))


def write(name: str, content: str) -> Callable[[Cells, Path], object]:
    return lambda cells, root: (root / name).write_text(content)


def delete(name: str) -> Callable[[Cells, Path], object]:
    return lambda cells, root: (root / name).unlink()


WIDGET = {
    "output_type": "display_data",
    "data": {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "HBox()"},
}
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
DEFECTS: dict[str, tuple[Callable[[Cells, Path], object], str]] = {
    "cell not run": (set_cell(3, execution_count=None), "cell 4 (A1.1a U-Net) was not run"),
    "out of order": (set_cell(5, execution_count=9), "has number 9, expected 3"),
    "error": (add_output(5, ERROR), "cell 6 (A1.1a U-Net) ends in an error: ValueError: no"),
    "widget only": (add_output(1, WIDGET), "cell 2 (Report) shows only a widget"),
    "figure of plots missing": (set_cell(3, outputs=[]), "cell 4 (A1.1a U-Net) calls plots.show_pair"),
    "figure of pyplot missing": (set_cell(5, outputs=[]), "cell 6 (A1.1a U-Net) calls plt.plot"),
    "named file missing": (add_text("See `results/gone.csv`."), "points to results/gone.csv"),
    "linked file missing": (add_text("[here](figures/gone%20too.png)"), "points to figures/gone too.png"),
    "image missing": (add_text('<img alt="x" src="figures/no.png">'), "points to figures/no.png"),
    "file outside": (add_text("![](../shared/x.png)"), "points to ../shared/x.png"),
    "module missing": (delete("mynet.py"), "cell 2 (Report) imports mynet, but there is no mynet.py"),
    "module of a module missing": (delete("helper.py"), "mynet.py imports helper, but there is no helper.py"),
    "token in a source": (add_text(f"token = {GITHUB_TOKEN}"), "(A1.1a U-Net) holds a secret (ghp_"),
    "token in an output": (add_output(3, printed("hf_" + "Zz9" * 9)), "cell 4 (A1.1a U-Net) holds a secret"),
    "cloud key": (add_text("AKIA" + "ABCD" * 4), "holds a secret (AKIA"),
    "private key": (add_text("-----BEGIN RSA " + "PRIVATE KEY-----"), "a secret (BEGIN RSA PRIVATE KEY"),
    "token in a module": (write("helper.py", f"KEY = '{GITHUB_TOKEN}'"), "helper.py holds a secret"),
    "home in an output": (add_output(1, printed("File /home/ada/x.py")), "this machine (/home/ada/x.py)"),
    "windows home": (add_output(3, printed(r"C:\Users\ada\x")), "cell 4 (A1.1a U-Net) holds a path"),
    "temporary folder in a source": (add_text("open('/tmp/x.npy')"), "path of this machine (/tmp/x.npy)"),
    "no readme": (delete("README.md"), "README.md is missing"),
    "no requirements": (delete("requirements.txt"), "requirements.txt is missing"),
    "second notebook": (write("mine.ipynb", "{}"), "mine.ipynb is a second notebook"),
}


def test_a_good_notebook_is_let_through(root: Path) -> None:
    assert handin.problems(save(root, good_cells()), root) == []


@pytest.mark.parametrize("defect", DEFECTS)
def test_one_defect_is_one_line(root: Path, defect: str) -> None:
    cells, (spoil, expected) = good_cells(), DEFECTS[defect]
    spoil(cells, root)
    (problem,) = handin.problems(save(root, cells), root)
    assert expected in problem


def test_all_defects_are_listed_at_once_and_no_zip_is_written(root: Path) -> None:
    cells = good_cells()
    apart = {"module of a module missing", "figure of pyplot missing"}  # hidden by or hiding another one
    defects = [DEFECTS[name] for name in DEFECTS if name not in apart]
    for spoil, _ in defects:
        spoil(cells, root)
    with pytest.raises(handin.HandinError) as caught:
        handin.build_zip(save(root, cells), root, root / "out" / "report.zip")
    for _, expected in defects:
        assert any(expected in problem for problem in caught.value.problems), expected
        assert expected in str(caught.value)
    assert not (root / "out").exists()


@pytest.mark.parametrize("content", ["", "<html>", "[]", '{"cells": 1}', '{"cells": [{"source": 1}]}'])
def test_unsaved_or_no_notebook(root: Path, content: str) -> None:
    (root / "report.ipynb").write_text(content)
    (problem,) = handin.problems(root / "report.ipynb", root)
    assert "report.ipynb is missing, or no notebook" in problem


def test_problems_are_short_lines_that_a_screen_can_show(root: Path) -> None:
    cells = good_cells()
    cells[2]["source"] = ["## A \x1b[2J\ud800 title\n"]
    cells[3]["outputs"].append({**ERROR, "ename": "x" * 9999, "evalue": "a\nb"})
    found = handin.problems(save(root, cells), root)
    assert found and all(problem.isprintable() and len(problem) <= 300 for problem in found)


def test_empty_notebook_and_notebook_without_images(root: Path) -> None:
    (problem,) = handin.problems(save(root, [text("# Only words")]), root)
    assert "report.ipynb is empty" in problem
    (problem,) = handin.problems(save(root, [text("`figures/table.csv`"), code(1, "1 + 1")]), root)
    assert problem == "the notebook shows no image at all: run all cells, then save it"


def test_over_the_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = save(root, good_cells())
    (root / "figures" / "table.csv").write_text("1" * 50_000)
    size = sum(path.stat().st_size for path in handin.read_report(notebook, root).contents.values())
    monkeypatch.setattr(handin, "MAX_MEGABYTES", size / 1e6)
    assert handin.problems(notebook, root) == []  # at the limit
    monkeypatch.setattr(handin, "MAX_MEGABYTES", (size - 1) / 1e6)
    (problem,) = handin.problems(notebook, root)
    assert "the largest is figures/table.csv" in problem


def test_path_of_the_project_itself(root: Path) -> None:
    for place in (root, Path.home()):
        cells = [*good_cells(), text(f"It lies in {place}.")]
        assert any("path of this machine" in problem for problem in handin.problems(save(root, cells), root))


@pytest.mark.parametrize(
    "source",
    [
        "`nn.Module`, `unet.UNet(1, 2)`, `.hdf5`, `figures/`, `B, C, H, W = x.shape`",  # code, no files
        "Type `python3 run.py`, then look at `handin/report.zip` and `data/yeast.hdf5`.",  # what a run makes
        "[paper](https://arxiv.org/pdf/1505.04597.pdf) ![](attachment:a.png) [above](#A1.1a) `./mynet.py`",
        "https://example.org/home/page, either/Users/or, and 1/tmp/2 are no paths of a machine",
        "hf_hub_download_to_this_folder and ghp_ alone are no tokens",
        "```\n# not a heading\n```",
    ],
)
def test_what_only_looks_like_a_defect(root: Path, source: str) -> None:
    assert handin.problems(save(root, [*good_cells(), text(source)]), root) == []


@pytest.mark.parametrize(
    "source",
    [
        "def show():\n    plt.plot([1])",  # drawn when it is called
        "plots.use_style()",  # has no axes: draws nothing
        "plt.rcParams['font.size'] = 8\nplt.close('all')",
        "!ls\n%time 1\nprint?",
        "%%bash\nls",
        "import IPython, os.path, numpy.linalg, PIL.Image\nif False:\n    from . import helper",
    ],
)
def test_cells_that_need_no_image(root: Path, source: str) -> None:
    assert handin.problems(save(root, [*good_cells(), code(4, source)]), root) == []


@pytest.mark.parametrize("source", ["if True:\n    plt.plot([1])", "from plots import *\nshow_pair(1)"])
def test_cells_that_need_an_image(root: Path, source: str) -> None:
    (problem,) = handin.problems(save(root, [*good_cells(), code(4, source)]), root)
    assert "shows no image" in problem


def test_an_image_inside_of_html_is_visible(root: Path) -> None:
    html = {"output_type": "display_data", "data": {"text/html": ["<p>", "<img src='data:image/png,'>"]}}
    assert handin.problems(save(root, [*good_cells(), code(4, "plt.show()", html)]), root) == []


def test_a_file_that_a_result_points_to_must_be_in_the_zip(root: Path) -> None:
    cells = good_cells()
    cells[1]["outputs"].append(printed("curves in `figures/gone.png`"))
    (problem,) = handin.problems(save(root, cells), root)
    assert "points to figures/gone.png" in problem


@pytest.mark.parametrize("field", ["none", "Names of the partners: ____", "**Group:** _name 1, name 2_", "Name:\n\nx"])
def test_reminders_name_empty_fields_and_warnings(root: Path, field: str) -> None:
    assert handin.reminders(save(root, good_cells()), root) == []
    cells = good_cells()
    cells[0] = text(f"# Report\n{field}")
    cells[2] = text("## A1.1b\n`figures/table.csv`\n**I needed the following time (1.1):** \\_\\_ hours\n\n7")
    cells[1]["outputs"].append(printed("UserWarning", name="stderr"))
    notebook = save(root, cells)
    assert handin.problems(notebook, root) == []  # reminders are no reason to refuse
    assert handin.reminders(notebook, root) == [
        "the names of the group are missing",
        "cell 3 (A1.1b): the needed time is missing",
        "cell 2 (Report): a warning is printed",
    ]


@pytest.mark.parametrize("field", ["**Group:** _Emmy, Ada_", "Partners:  Emmy", "Name (both): Emmy"])
def test_names_that_are_there(root: Path, field: str) -> None:
    assert handin.reminders(save(root, [*good_cells()[1:], text(field)]), root) == []


def test_a_module_that_two_others_import_is_missed_once(root: Path) -> None:
    (root / "one.py").write_text("import two, gone\n")
    (root / "two.py").write_text("import one, gone\n")
    (problem,) = handin.problems(save(root, good_cells()), root)
    assert "imports gone" in problem


def test_paths_in_colab_belong_to_nobody(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/content"))
    assert handin.problems(save(root, [*good_cells(), text("Files lie in /content/drive.")]), root) == []


def test_heading_is_the_last_outside_of_code() -> None:
    assert handin.heading("# One\n### A1.2b  Plan #\ntext") == "A1.2b  Plan"
    assert handin.heading("no heading\n#hashtag\n```\n# comment\n```") == ""


@pytest.mark.parametrize("line", ["%matplotlib inline", "!ls", "sum?", "  %time f()", "x = (1\n  % 2)  # ?"])
def test_lines_of_ipython_do_not_hide_the_python_around_them(root: Path, line: str) -> None:
    indented = f"if True:\n{line}\n" if line.startswith(" ") else f"{line}\n"
    (problem,) = handin.problems(save(root, [*good_cells(), code(4, f"{indented}import gone  # why?")]), root)
    assert "imports gone" in problem


def test_the_zip_holds_the_modules_of_all_folders_and_all_figures_and_nothing_else(root: Path) -> None:
    for name in ("training/checkpoint.py", "figures/study/more.png", "figures/.hidden", "notes/own.txt", "tests/t.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    notebook = save(root, [*good_cells(), code(4, "from training import checkpoint")])
    target = handin.build_zip(notebook, root, root / "handin" / "report.zip")
    with zipfile.ZipFile(target) as archive:
        names = archive.namelist()
        assert archive.read("report.ipynb") == notebook.read_bytes()
    modules = ["helper.py", "mynet.py", "plots.py", "training/checkpoint.py"]
    figures = ["figures/study/more.png", "figures/table.csv"]
    assert names == sorted([*modules, *figures, "README.md", "report.ipynb", "requirements.txt"])
    assert [path.name for path in target.parent.iterdir()] == ["report.zip"]  # no temporary file


@pytest.mark.parametrize("line", ["from training import gone", "import training.gone", "from training.gone import x"])
def test_a_module_of_a_folder_that_is_missing_is_named(root: Path, line: str) -> None:
    (root / "training").mkdir()
    (root / "training" / "checkpoint.py").write_text(line)
    (problem,) = handin.problems(save(root, good_cells()), root)
    assert problem.startswith("training/checkpoint.py imports training.gone, but there is no training/gone.py")


def test_the_executed_copy_takes_the_place_of_the_notebook_in_the_project(root: Path) -> None:
    source = save(root, [code(None, "1")])
    (root / "handin").mkdir()
    executed = save(root / "handin", good_cells())
    with zipfile.ZipFile(handin.build_zip(executed, root, root / "handin" / "report.zip")) as archive:
        assert archive.read("report.ipynb") == executed.read_bytes() != source.read_bytes()


def test_a_module_that_is_no_python_is_refused(root: Path) -> None:
    (root / "broken.py").write_text("def f(:\n")
    with pytest.raises(handin.HandinError, match="broken.py"):
        handin.build_zip(save(root, good_cells()), root, root / "report.zip")
    assert not list(root.glob("*.zip*"))


def test_a_notebook_that_fails_in_the_reopened_zip_is_refused(root: Path) -> None:
    target = root / "report.zip"
    target.write_bytes(b"precious")
    with pytest.raises(handin.HandinError, match="does not run from the zip alone. no table.csv"):
        handin.build_zip(save(root, good_cells()), root, target, failure=lambda part: "no table.csv")
    assert [path.name for path in root.glob("*.zip*")] == ["report.zip"] and target.read_bytes() == b"precious"


def test_a_zip_that_was_damaged_while_writing_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(number: int) -> None:
        part = root / "report.zip.part"
        data = bytearray(part.read_bytes())
        data[45] ^= 1  # in the first file, after its header of 39 bytes
        part.write_bytes(data)

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(handin.HandinError, match="damaged"):
        handin.build_zip(save(root, good_cells()), root, root / "report.zip")
    assert not list(root.glob("*.zip*"))


def test_equal_files_give_equal_bytes(root: Path) -> None:
    notebook = save(root, good_cells())
    first = handin.build_zip(notebook, root, root / "one.zip").read_bytes()
    os.utime(root / "mynet.py", (1e9, 1e9))
    (root / "mynet.py").chmod(0o755)
    assert handin.build_zip(notebook, root, root / "two.zip").read_bytes() == first


def test_an_existing_zip_is_kept_as_backup(root: Path) -> None:
    notebook, target = save(root, good_cells()), root / "report.zip"
    target.write_bytes(b"precious")
    handin.build_zip(notebook, root, target)
    assert (root / "report_backup1.zip").read_bytes() == b"precious"
    first = target.read_bytes()
    handin.build_zip(notebook, root, target)  # the same again: nothing to keep
    assert not (root / "report_backup2.zip").exists()
    (root / "README.md").write_text("# Changed\n")
    handin.build_zip(notebook, root, target)
    assert (root / "report_backup2.zip").read_bytes() == first != target.read_bytes()
    assert (root / "report_backup1.zip").read_bytes() == b"precious"


def test_the_command_needs_no_package_and_writes_beside_the_notebook(root: Path) -> None:
    program = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1]); from commands import handin; "
        "handin.ROOT = pathlib.Path('.'); sys.exit(handin.main(['report.ipynb']))"
    )
    save(root, [*good_cells(), text("## Part\nI needed the following time to complete the task:")])
    project = str(Path(handin.__file__).parents[1])
    command = [sys.executable, "-E", "-s", "-S", "-c", program, project]  # nothing installed is seen
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "report.zip is ready" in result.stdout
    assert "cell 7 (Part): the needed time is missing" in result.stdout
    (root / "README.md").unlink()
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 1 and "README.md is missing" in result.stdout
