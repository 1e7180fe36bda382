"""run.py: what it needs, how it sets that up, how a notebook is executed and handed in.  No downloads."""

import argparse
import ast
import importlib
import importlib.metadata
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest

import run
from tests.data_helpers import make_folder

ROOT, EXECUTE = Path(run.__file__).parent, run.execute
FAIL = "def f():\n    1 / 0\nf()"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"


@pytest.mark.parametrize("version, enough", [("2.9", True), ("2.13.0+cpu", True), ("2.8.1", False), ("3.0rc1", True)])
def test_a_package_is_missing_if_it_is_absent_or_too_old(tmp_path, monkeypatch, version, enough):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# a comment\n\ntorch>=2.9  # why\n")
    assert run.missing_packages(requirements) == ([] if enough else ["torch>=2.9"])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "requirements.txt").write_text("no-such-package>=1.0\n")
    return tmp_path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replaces everything slow of the set-up; holds what pip was asked for."""
    calls: list[list[str]] = []

    def create(folder: Path, **options: bool) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").touch()

    def call(command: list[str], **streams: Any) -> int:
        assert (Path(command[0]).parents[1] / "made-by-run.txt").read_text() == "unfinished"  # a cut is seen later
        calls.append(command)
        return int("--index-url" in command)  # such an index is not to be had

    monkeypatch.setattr(run.venv, "create", create)
    monkeypatch.setattr(run.subprocess, "call", call)
    return calls


def refuse(*arguments: Any, **options: Any) -> None:
    raise AssertionError("this must not be called")


def test_only_something_missing_leads_into_the_own_environment(project, installed, monkeypatch):
    continued: list[list[str]] = []
    monkeypatch.setattr(run, "continue_as", continued.append)
    run.ensure_environment(["test", "-x"], project)
    assert continued == [[str(project / ".venv/bin/python"), str(project / "run.py"), "test", "-x"]]
    assert installed[0][-3:] == ["jupyterlab", "-r", str(project / "requirements.txt")]
    (project / "requirements.txt").write_text("pytest>=1.0\n")
    run.ensure_environment([], project)
    assert len(continued) == len(installed) == 1


@pytest.mark.parametrize("change, installs", [("nothing", 1), ("cut off", 2), ("new requirements", 2)])
def test_an_environment_is_kept_completed_or_made_anew(project, installed, change, installs):
    folder, requirements = project / ".venv", project / "requirements.txt"
    run.make_environment(folder, requirements)
    (folder / "large-package").touch()
    if change == "cut off":
        (folder / "made-by-run.txt").write_text("unfinished")
    elif change == "new requirements":
        requirements.write_text("no-such-package>=1.1\n")
    assert run.make_environment(folder, requirements).exists()
    assert len(installed) == installs and (folder / "large-package").exists() == (change != "cut off")
    assert (folder / "made-by-run.txt").read_text() == requirements.read_text()


def test_pytorch_for_the_cpu_is_asked_for_first_and_its_lack_stops_nothing(project, installed, capsys):
    run.make_environment(project / ".venv", project / "requirements.txt", cpu=True)
    first, second = installed
    assert first[-3:] == ["torch>=2.6", "--index-url", run.CPU_INDEX] and second[-2] == "-r"
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and "1.5 GB" in said[0] and "the usual one follows" in said[1] and "minutes" in said[2]


def test_an_environment_of_somebody_else_is_left_alone_and_a_linux_without_venv_told(project, installed, monkeypatch):
    (project / ".venv").mkdir()
    with pytest.raises(SystemExit, match="not made by run.py"):
        run.make_environment(project / ".venv", project / "requirements.txt")
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"sudo apt install python3-venv"):
        run.make_environment(project / "other", project / "requirements.txt")
    assert not installed


def test_no_environment_starts_itself_for_ever(project, monkeypatch):
    monkeypatch.setattr(run.sys, "prefix", str(project / ".venv"))
    monkeypatch.setattr(run, "make_environment", refuse)
    with pytest.raises(SystemExit, match=r"lacks no-such-package>=1.0. Delete .venv"):
        run.ensure_environment(["train", "folder"], project)


def test_an_old_python_gets_one_clear_line(monkeypatch):
    ast.parse(Path(run.__file__).read_text(encoding="utf-8"), feature_version=(3, 7))  # it can read the file so far
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"^The course needs Python 3.10 or newer; this is "):
        runpy.run_path(run.__file__)


def write_notebook(folder: Path, *cells: str) -> Path:
    """A notebook where a cell that starts with # is a text.  Its kernel has a name that no machine knows."""
    new = nbformat.v4
    made = [new.new_markdown_cell(cell) if cell[0] == "#" else new.new_code_cell(cell) for cell in cells]
    for cell in made:
        if cell.cell_type == "code":
            cell.outputs = [new.new_output("stream", text="from an earlier run")]
    kernel = {"kernelspec": {"name": "conda-of-somebody", "display_name": "x", "language": "python"}}
    nbformat.write(new.new_notebook(cells=made, metadata=kernel), folder / "course.ipynb")
    return folder / "course.ipynb"


def outputs(notebook: Any) -> list[str]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]


def test_three_cells_in_a_new_kernel(tmp_path, monkeypatch, capfd):
    kernels = tmp_path / "jupyter" / "kernels" / "python3"  # what a user's home may hold under this name
    kernels.mkdir(parents=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "broken", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "Agg")  # would keep figures out of the notebook
    show = "import os, sys\nprint(sys.executable, os.getcwd(), os.environ['SEGMENTATION_BUDGET'], sep='\\n')"
    path = write_notebook(tmp_path, show, "# Title\n## A1.1a U-Net", PLOT, "# B2a Data", "print(1)", " ")
    before = path.read_bytes()
    notebook, failure = run.execute(path, {"SEGMENTATION_BUDGET": "quick"})
    assert failure == "" and path.read_bytes() == before
    assert outputs(notebook)[0].split() == [sys.executable, str(tmp_path), "quick"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(set(cell.metadata) <= {"seconds"} for cell in code)  # no times of the day
    assert [cell.execution_count for cell in code] == [1, 2, 3, None]
    assert any("image/png" in output.get("data", {}) for output in code[1].outputs)
    assert capfd.readouterr().out.splitlines() == ["[1/6]   ", "[3/6]   A1.1a U-Net", "[5/6]   B2a Data"]
    nbformat.write(notebook, path)  # the next run knows how long the cells take
    run.execute(path, {"SEGMENTATION_BUDGET": "quick"})
    said = capfd.readouterr().out.splitlines()
    assert all(" min left " in line for line in said[1:]) and " 0 min left " in said[-1]


INTERRUPT = "os.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"
STOPS = [("os.kill(os.getpid(), 9)", "memory was full"), (INTERRUPT, "KeyboardInterrupt"), (FAIL, "ZeroDivisionError")]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
@pytest.mark.parametrize("code, said", STOPS)
def test_what_stops_a_run_is_named_and_all_before_it_is_kept(tmp_path, code, said):
    path = write_notebook(tmp_path, "import os, signal, time\nprint('kept')", "# A1.2c Train", code, "print('never')")
    notebook, failure = run.execute(path, {})
    assert failure.startswith("Stopped in A1.2c Train:") and said in failure
    assert "\x1b" not in failure and len(failure.splitlines()) <= 13
    assert outputs(notebook)[::2] == ["kept\n", ""]  # what an earlier run left in the last cell is gone


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one good notebook, which is executed by no kernel but by a look at its source."""
    write_notebook(tmp_path, "# Title\nNames: Ada", "import math", "# A1.1a U-Net / links", PLOT, PLOT)
    (tmp_path / "README.md").write_text("# Course\n")
    (tmp_path / "requirements.txt").write_text("pytest>=1.0\n")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "study.csv").write_text("long\n")
    picture = nbformat.v4.new_output("display_data", data={"image/png": "iVBORw0KGgo=\n"})

    def execute(path: Path, settings: dict[str, str]) -> tuple[Any, str]:
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for number, cell in enumerate(code, start=1):
            cell.update(execution_count=number, outputs=[picture] if "plt" in cell.source else [])
        (path.parent / "settings.json").write_text(json.dumps(settings))
        figures = path.parent / settings.get("SEGMENTATION_FIGURES", "figures")
        (figures / "new.csv").write_text(settings["SEGMENTATION_BUDGET"])
        return notebook, "Stopped in A1.1a: no" if "fail" in code[0].source else ""

    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "NOTEBOOK", tmp_path / "course.ipynb")
    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(run, "ensure_environment", lambda arguments: None)
    return tmp_path


def test_the_standard_run_is_followed_by_a_quick_one_from_the_zip_in_an_empty_folder(course, monkeypatch):
    (course / "not_in_the_zip.txt").touch()
    once, runs = run.execute, []

    def execute(path: Path, settings: dict[str, str]) -> tuple[Any, str]:
        runs.append((path.parent, settings, {file.name for file in path.parent.iterdir()}))
        return once(path, settings)[0], ""

    monkeypatch.setattr(run, "execute", execute)
    assert run.main(["--data", "dsb2018", "--output", str(course / "handin")]) == 0
    (_, first, _), (folder, settings, files) = runs
    assert first.pop("SEGMENTATION_FIGURES") == "handin/figures"
    assert first == {"SEGMENTATION_BUDGET": "standard", "SEGMENTATION_DATA": "dsb2018"}
    assert settings == {"SEGMENTATION_BUDGET": "quick", "SEGMENTATION_DATA": "built-in"}
    assert files == {"course.ipynb", "course.html", "README.md", "requirements.txt", "figures"} and not folder.exists()
    assert sorted(path.name for path in (course / "handin").iterdir()) == ["course.ipynb", "course.zip", "figures"]
    with zipfile.ZipFile(course / "handin" / "course.zip") as archive:
        assert archive.read("figures/new.csv") == b"standard" and archive.read("figures/study.csv") == b"long\n"
    assert [path.name for path in (course / "figures").iterdir()] == ["study.csv"]  # nothing that git knows has changed


def test_what_is_committed_changes_only_when_asked(course):
    before = (course / "course.ipynb").read_bytes()
    with pytest.raises(SystemExit, match="would be overwritten"):
        run.main(["--output", str(course)])
    assert run.main(["--budget", "quick", "--output", str(course / "handin")]) == 0
    assert (course / "course.ipynb").read_bytes() == before and not (course / "figures" / "new.csv").exists()
    assert run.main(["--budget", "quick", "--output", str(course / "handin"), "--commit"]) == 0
    assert (course / "course.ipynb").read_bytes() == (course / "handin" / "course.ipynb").read_bytes() != before
    assert (course / "figures" / "new.csv").exists()


def test_the_course_as_one_zip_is_enough(course, monkeypatch, capsys):
    monkeypatch.setattr(run.handin, "ROOT", course)
    monkeypatch.setattr(run.handin, "NOTEBOOK", "course.ipynb")
    monkeypatch.chdir(course)
    assert run.main(["pack"]) == 0 and "course.zip (0.0 MB)" in capsys.readouterr().out
    with zipfile.ZipFile("course.zip") as archive:
        assert archive.namelist() == ["README.md", "course.ipynb", "figures/study.csv", "requirements.txt"]


def test_publishing_writes_one_name_everywhere(tmp_path, capsys):
    for name in ("README.md", run.handin.NOTEBOOK, "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    for repository in ("ada/course", "emmy/unet-2.0"):  # again under another name
        run.publish(argparse.Namespace(repository=repository), tmp_path)
        texts = [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()]
        address = rf"(?:colab\.research\.google\.com/github|https://github\.com)/{re.escape(repository)}[/\")]"
        assert [len(re.findall(address, text)) for text in texts] == [1, 1, 1]
        cells = nbformat.read(tmp_path / run.handin.NOTEBOOK, as_version=4).cells
        assert any(f'REPOSITORY = "{repository}"' in cell.source for cell in cells)
    with pytest.raises(SystemExit, match="USER/NAME"):
        run.publish(argparse.Namespace(repository="only-a-name"), tmp_path)


def test_a_hand_in_is_reopened_in_an_empty_folder(course, monkeypatch, capsys):
    (course / "network.py").write_text("widths = [8, 16]\n")
    (course / "local.txt").write_text("only here")
    write_notebook(course, "import network\nprint(network.widths)", "# Reading", "open('local' + '.txt').read()", PLOT)
    assert run.main(["--budget", "quick", "--output", str(course / "handin")]) == 0
    monkeypatch.setattr(run, "execute", EXECUTE)  # with a real kernel
    assert run.main(["reopen", str(course / "handin" / "course.zip")]) == 1
    said = capsys.readouterr().out
    assert "Stopped in Reading" in said and "FileNotFoundError" in said  # so the first cell ran


def test_a_failed_run_is_saved_under_another_name_and_makes_no_zip(course, capsys):
    write_notebook(course, "fail = True", PLOT)
    assert run.main(["--output", str(course / "handin")]) == 1
    assert not list((course / "handin").glob("*.zip")) and (course / "handin" / "course_failed.ipynb").exists()
    assert capsys.readouterr().out.endswith("Stopped in A1.1a: no\n")  # the failure comes last


def test_a_folder_of_data_is_checked_first_and_named_relative_to_the_notebook(course, monkeypatch, capsys):
    make_folder(course / "cells", "abcd")
    (course / "elsewhere").mkdir()
    monkeypatch.chdir(course / "elsewhere")
    arguments = ["--data", "../cells", "--budget", "quick", "--output", str(course / "handin")]
    assert run.main([*arguments, "--map", "0=0,7=1"]) == 1 and not (course / "settings.json").exists()
    assert "labels/c.png: has 24 pixels not in label_map: 1" in capsys.readouterr().out
    assert run.main([*arguments, "--map", "0=0,1=1"]) == 0
    settings = json.loads((course / "settings.json").read_text())
    assert (settings["SEGMENTATION_DATA"], settings["SEGMENTATION_MAP"]) == ("cells", "0=0,1=1")


def test_what_follows_test_is_for_pytest_on_several_cores(tmp_path, monkeypatch):
    continued: list[list[str]] = []
    monkeypatch.setattr(run, "missing_packages", lambda *where: [])  # Colab's ipykernel is older, and all is well
    monkeypatch.setattr(run, "continue_as", continued.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    assert run.main(["test", "--quick", "-h"]) == 0
    ((python, *options),) = continued
    assert python == sys.executable and options[:4] == ["-m", "pytest", "-n", "auto"]
    assert options[-3:] == ["-m", "not slow", "-h"] and Path.cwd() == ROOT


@pytest.mark.parametrize(("command", "code"), [*zip(run.COMMANDS, [None, 0, 1, None, 0, 1])])
def test_a_module_gets_the_arguments_after_its_command(command, code, tmp_path, monkeypatch):
    name, from_root, _ = run.COMMANDS[command]
    got: list[tuple[list[str], Path]] = []
    rest = ["model.pt2", "a folder", "--xyz", "--", "0", "1", "-h"]
    monkeypatch.setattr(run, "missing_packages", lambda *where: [])
    monkeypatch.setattr(importlib.import_module(name), "main", lambda args: got.append((args, Path.cwd())) or code)
    monkeypatch.chdir(tmp_path)
    assert run.main([command, *rest]) == (code or 0)
    assert got == [(rest, ROOT if from_root else tmp_path)]  # paths of a user are seen from where the user stands


@pytest.mark.parametrize("command", [*run.COMMANDS, "test", "reopen", "pack", "publish"])
def test_the_help_of_a_command_needs_no_package_and_names_its_options(command, capsys):
    bare = [sys.executable, "-E", "-S", "-s", run.__file__, command, "-h"]  # nothing that is installed is seen
    said = subprocess.run(bare, capture_output=True, check=True, encoding="utf-8", timeout=60).stdout
    if command in run.COMMANDS:
        with pytest.raises(SystemExit):
            importlib.import_module(run.COMMANDS[command][0]).main(["-h"])
        assert set(re.findall(r"--\w+", capsys.readouterr().out)) <= set(re.findall(r"--\w+", f"{said} --help"))
    else:
        assert any(words in said for words in ("for pytest", "the hand-in", "default: course.zip", "USER/NAME"))


def test_a_wrong_input_of_a_command_is_its_sentence_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ensure_environment", refuse)  # handin and reopen need no environment
    assert run.main(["handin", "gone.ipynb"]) == 1
    monkeypatch.setattr(run, "ensure_environment", lambda arguments: None)
    with pytest.raises(SystemExit, match="^'nowhere' is neither a folder nor a known data set"):
        run.main(["tune", "--data", "nowhere"])
    monkeypatch.chdir(tmp_path)
    (make_folder(tmp_path / "cells", "abcd") / "labels" / "b.png").unlink()
    with pytest.raises(SystemExit, match="1 problem\n- images/b.png has no label; add one"):  # a kind of InputError
        run.main(["train", "cells"])


@pytest.mark.parametrize("line", ["--budget quik", "frobnicate", "pack --quux", "publish a/b surplus"])
def test_a_wrong_command_line_is_refused_before_anything_is_set_up(line, monkeypatch, capsys):
    monkeypatch.setattr(run, "ensure_environment", refuse)
    with pytest.raises(SystemExit):
        run.main(line.split())
    assert line.split()[-1] in capsys.readouterr().err


MEANT = {"tran cells": "train", "tests": "test", "--buget quick": "--budget", "--bugdet=full": "--budget"}
MEANT |= {"train cells --epohs 3": "--epochs", "study --hepl": "--help"}


@pytest.mark.parametrize("line", MEANT)
def test_a_mistyped_word_gets_one_sentence_before_anything_is_set_up(line, monkeypatch):
    monkeypatch.setattr(run, "ensure_environment", refuse)
    with pytest.raises(SystemExit, match=rf"^[\w-]+ is unknown: did you mean {MEANT[line]}\?$"):
        run.main(line.split())


def test_an_abbreviated_option_and_what_is_for_pytest_are_no_mistakes(monkeypatch):
    monkeypatch.setattr(run, "ensure_environment", lambda arguments: None)
    assert run.parse(["train", "tran", "--epo", "3"]).rest == ["tran", "--epo", "3"]
    assert run.parse(["test", "--quik"]).rest == ["--quik"]


def test_a_copy_without_tests_says_so_before_anything_is_set_up(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ensure_environment", refuse)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="came without its tests"):
        run.main(["test"])
