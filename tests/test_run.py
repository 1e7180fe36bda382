"""run.py: what it needs, how it sets that up, how a notebook is executed.  No downloads."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import runpy
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest

import run
from commands import handin

ROOT, INSTALL, EXECUTE = Path(run.__file__).parent, run.install, run.execute
COUNT = "import time\nfor i in range(3):\n    print(i, flush=True)\n    time.sleep(0.1)"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"


# ---- what is required ----


@pytest.mark.parametrize(
    ("version", "bound", "enough"),
    [
        ("2.6.0", "2.6", True),
        ("2.13.0+cpu", "2.6", True),  # thirteen is more than six
        ("2.5.1", "2.6", False),
        ("10.3", "10.3.0", True),
        ("3.0rc1", "2.9", True),
        ("", "1.0", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, bound: str, enough: bool) -> None:
    assert (run.version_numbers(version) >= run.version_numbers(bound)) == enough


def test_missing_packages_are_absent_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str | None:
        if name == "absent":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"new": "2.10", "old": "1.9.9", "damaged": None}[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# a comment\n\nnew>=2.9  # why\nold>=2.0\nabsent>=1.0\ndamaged>=1.0\n")
    assert run.missing_packages(requirements) == ["old>=2.0", "absent>=1.0", "damaged>=1.0"]


def test_every_requirement_is_a_lower_bound_with_its_reason() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.-]+>=\d[\d.]* +# \w.+", line), line


# ---- setting up ----


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "requirements.txt").write_text("no-such-package>=1.0\n")
    return tmp_path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replaces everything slow of the set-up; holds what pip was asked for."""
    calls: list[list[str]] = []

    def create(folder: Path, symlinks: bool, with_pip: bool) -> None:
        assert (folder / "made-by-run.txt").read_text() == "unfinished"  # so that a cut now is seen later
        (folder / "bin").mkdir()
        (folder / "bin" / "python").touch()

    def install(python: Path, packages: list[str], log: Path) -> None:
        assert (log.parent / "made-by-run.txt").read_text() == "unfinished"
        calls.append(packages)

    monkeypatch.setattr(run.os, "name", "posix")
    monkeypatch.setattr(run.venv, "create", create)
    monkeypatch.setattr(run, "install", install)
    return calls


def refuse(*arguments: Any, **options: Any) -> None:
    raise AssertionError("this must not be called")


def test_an_interpreter_that_has_all_is_used_as_it_is(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "requirements.txt").write_text("pytest>=1.0\n")
    monkeypatch.setattr(run, "make_environment", refuse)
    monkeypatch.setattr(run, "continue_as", refuse)
    run.ensure_environment([], project)
    assert not (project / ".venv").exists()


def test_something_missing_leads_into_the_own_environment(
    project: Path, installed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    continued: list[list[str]] = []
    monkeypatch.setattr(run, "continue_as", continued.append)
    run.ensure_environment(["test", "-x"], project)
    assert continued == [[str(project / ".venv/bin/python"), str(project / "run.py"), "test", "-x"]]
    assert installed == [["-r", str(project / "requirements.txt"), *run.EXTRA_PACKAGES]]


def test_a_complete_environment_is_used_without_a_network(
    project: Path, installed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.make_environment(project / ".venv", project / "requirements.txt")
    for name in ("install", "venv.create"):
        monkeypatch.setattr(f"run.{name}", refuse)
    assert run.make_environment(project / ".venv", project / "requirements.txt").exists()


@pytest.mark.parametrize("broken", ["unfinished", "no interpreter"])
def test_a_half_made_environment_is_made_anew(project: Path, installed: list[list[str]], broken: str) -> None:
    folder, requirements = project / ".venv", project / "requirements.txt"
    python = run.make_environment(folder, requirements)
    (folder / "half-written").touch()
    if broken == "unfinished":
        (folder / "made-by-run.txt").write_text("unfinished")
    else:
        python.unlink()
    assert run.make_environment(folder, requirements).exists()
    assert not (folder / "half-written").exists()
    assert len(installed) == 2


def test_changed_requirements_are_added_to_what_is_there(project: Path, installed: list[list[str]]) -> None:
    folder, requirements = project / ".venv", project / "requirements.txt"
    run.make_environment(folder, requirements)
    (folder / "large-package").touch()
    requirements.write_text("no-such-package>=1.1\n")
    run.make_environment(folder, requirements)
    assert (folder / "large-package").exists()
    assert len(installed) == 2
    assert (folder / "made-by-run.txt").read_text() == hashlib.sha256(requirements.read_bytes()).hexdigest()


def test_an_environment_of_somebody_else_is_left_alone(project: Path, installed: list[list[str]]) -> None:
    (project / ".venv").mkdir()
    (project / ".venv" / "precious").touch()
    with pytest.raises(SystemExit, match="not made by run.py"):
        run.make_environment(project / ".venv", project / "requirements.txt")
    assert (project / ".venv" / "precious").exists()
    assert not installed


def test_a_damaged_environment_does_not_start_itself_for_ever(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.sys, "prefix", str(project / ".venv"))
    monkeypatch.setattr(run, "continue_as", refuse)
    with pytest.raises(SystemExit, match="lacks no-such-package>=1.0: delete this folder"):
        run.ensure_environment([], project)


def test_processes_of_torchrun_never_make_an_environment_each(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(run, "make_environment", refuse)
    with pytest.raises(SystemExit, match=r"lacks no-such-package>=1.0.*\.venv/bin/torchrun"):
        run.ensure_environment(["train", "folder"], project)


def test_a_linux_without_venv_gets_the_command_that_installs_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"sudo apt install python3\.\d+-venv"):
        run.make_environment(project / ".venv", project / "requirements.txt")
    assert not (project / ".venv").exists()


def test_a_failed_installation_shows_the_last_line_of_pip_and_is_not_taken_for_complete(
    project: Path, installed: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(python: Path, packages: list[str], log: Path) -> None:
        INSTALL(Path(sys.executable), ["--no-index", "no-such-package"], log)

    monkeypatch.setattr(run, "install", fail)
    with pytest.raises(SystemExit, match="No matching distribution found for no-such-package") as caught:
        run.make_environment(project / ".venv", project / "requirements.txt")
    assert str(project / ".venv" / "pip.log") in str(caught.value)
    assert (project / ".venv" / "made-by-run.txt").read_text() == "unfinished"
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) <= 2 and "Installing packages" in printed  # what pip says is in the log


@pytest.mark.slow
def test_a_real_environment_is_made_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "EXTRA_PACKAGES", [])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# nothing to download\n")
    python = run.make_environment(tmp_path / ".venv", requirements)
    prefix = subprocess.check_output([python, "-c", "import sys, pip; print(sys.prefix)"], text=True).strip()
    assert Path(prefix) == tmp_path / ".venv"


# ---- old interpreters ----


def test_an_old_python_gets_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"^The course needs Python 3.10 or newer; this is "):
        runpy.run_path(run.__file__)


def test_an_old_python_can_read_the_file_as_far_as_that_line() -> None:
    ast.parse(Path(run.__file__).read_text(encoding="utf-8"), feature_version=(3, 7))


# ---- executing ----


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
    """The printed text of each code cell."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]


def test_three_cells_in_a_new_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kernels = tmp_path / "jupyter" / "kernels" / "python3"  # what a user's home may hold under this name
    kernels.mkdir(parents=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "broken", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "Agg")  # would keep figures out of the notebook
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "own.py").write_text("print = None")  # what a user's IPython may do at its start
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    show = "import os, sys\nprint(sys.executable, os.getcwd(), os.environ['SEGMENTATION_BUDGET'], sep='\\n')"
    path = write_notebook(tmp_path, show, "# Title\n## A1.1a U-Net", PLOT, "# B2a Data", COUNT, " ")
    before = path.read_bytes()
    notebook, failure = run.execute(path, {"SEGMENTATION_BUDGET": "quick"})
    assert failure == ""
    assert path.read_bytes() == before
    assert outputs(notebook)[0].split() == [sys.executable, str(tmp_path), "quick"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [output.text for output in code[2].outputs] == ["0\n1\n2\n"]  # one output, not three
    assert all(cell.metadata == {} for cell in code)  # no times of the day
    assert [cell.execution_count for cell in code] == [1, 2, 3, None]
    assert any("image/png" in output.get("data", {}) for output in code[1].outputs)
    captured = capfd.readouterr()
    lines = [re.sub(r" +\d+\.\d s", " T", line) for line in captured.out.splitlines()]
    assert lines == ["[1/3] T  ", "[2/3] T  A1.1a U-Net", "[3/3] T  B2a Data"]
    assert captured.err == ""  # Jupyter has told the terminal nothing


def test_a_failing_cell_is_named_and_all_before_it_is_kept(tmp_path: Path) -> None:
    broken = "def f():\n    1 / 0\nf()"
    path = write_notebook(tmp_path, "print('kept')", "# A1.2c Train", broken, "print('never')")
    notebook, failure = run.execute(path, {})
    assert failure.startswith("Stopped in A1.2c Train:\n")
    assert "----> 2     1 / 0" in failure
    assert failure.endswith("ZeroDivisionError: division by zero")
    assert "\x1b" not in failure
    assert len(failure.splitlines()) <= 13
    assert outputs(notebook)[::2] == ["kept\n", ""]  # what an earlier run left in the last cell is gone


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
def test_ctrl_c_interrupts_the_cell_and_keeps_what_there_is(tmp_path: Path) -> None:
    interrupt = "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"
    started = time.monotonic()
    notebook, failure = run.execute(write_notebook(tmp_path, "print('kept')", "# B2e Train", interrupt), {})
    assert time.monotonic() - started < 30
    assert "Stopped in B2e Train" in failure
    assert "KeyboardInterrupt" in failure
    assert outputs(notebook)[0] == "kept\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
def test_a_kernel_that_dies_is_told_apart_from_a_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_notebook(tmp_path, "print('kept')", "# C4 Memory", "import os\nos.kill(os.getpid(), 9)")
    notebook, failure = run.execute(path, {})
    assert failure.startswith("Stopped in C4 Memory: Kernel died.")
    assert "memory was full" in failure
    assert not caplog.records
    assert outputs(notebook)[0] == "kept\n"


# ---- the hand-in ----


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one good notebook, which is executed by no kernel but by a look at its source."""
    write_notebook(tmp_path, "# Title\nNames: Ada", "import math", "# A1.1a U-Net / links", PLOT, PLOT)
    (tmp_path / "README.md").write_text("# Course\n")
    (tmp_path / "requirements.txt").write_text("pytest>=1.0\n")
    picture = nbformat.v4.new_output("display_data", data={"image/png": "iVBORw0KGgo=\n"})

    def execute(path: Path, settings: dict[str, str]) -> tuple[Any, str]:
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for number, cell in enumerate(code, start=1):
            cell.update(execution_count=number, outputs=[picture] if "plt" in cell.source else [])
        (path.parent / "settings.json").write_text(json.dumps(settings))
        return notebook, "Stopped in A1.1a: no" if "fail" in code[0].source else ""

    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "NOTEBOOK", tmp_path / "course.ipynb")
    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(run, "ensure_environment", lambda arguments: None)
    return tmp_path


def test_the_hand_in_lies_in_one_folder(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (course / "course.ipynb").read_bytes()
    assert run.main(["--budget", "quick", "--output", str(course / "handin")]) == 0
    out = course / "handin"
    assert (course / "course.ipynb").read_bytes() == before
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == [
        "course.ipynb", "course.zip", "figures",
        "figures/A1.1a-U-Net-links-1.png", "figures/A1.1a-U-Net-links-2.png",
    ]  # fmt: skip
    assert (out / "figures" / "A1.1a-U-Net-links-1.png").read_bytes() == b"\x89PNG\r\n\x1a\n"
    with zipfile.ZipFile(out / "course.zip") as archive:
        assert archive.read("course.ipynb") == (out / "course.ipynb").read_bytes()
    assert handin.problems(out / "course.ipynb", course) == []
    printed = capsys.readouterr().out
    for part in (out / "course.ipynb", out / "course.zip", out / "figures", "2 images", "Time  ", " min "):
        assert str(part) in printed


def test_the_notebook_runs_again_from_the_zip_before_it_takes_its_name(
    course: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (course / "not_in_the_zip.txt").touch()
    once, runs = run.execute, []

    def execute(path: Path, settings: dict[str, str]) -> tuple[Any, str]:
        runs.append((path.parent, settings, {file.name for file in path.parent.iterdir()}))
        return once(path, settings)[0], "" if len(runs) < 4 else "Stopped in A1.1a U-Net: gone.csv"

    monkeypatch.setattr(run, "execute", execute)
    command = ["--budget", "full", "--data", "dsb2018", "--output", str(course / "handin")]
    assert run.main(command) == 0
    (_, first, _), (folder, settings, files) = runs
    assert first == {"SEGMENTATION_BUDGET": "full", "SEGMENTATION_DATA": "dsb2018"}
    assert settings == {"SEGMENTATION_BUDGET": "quick", "SEGMENTATION_DATA": "built-in"}
    assert files == {"course.ipynb", "README.md", "requirements.txt"}
    assert not folder.exists()
    zip_of_before = (course / "handin" / "course.zip").read_bytes()
    (course / "README.md").write_text("# Another\n")
    assert run.main(command) == 1
    assert "does not run from the zip alone. Stopped in A1.1a U-Net: gone.csv" in capsys.readouterr().out
    assert [path.read_bytes() for path in (course / "handin").glob("*.zip*")] == [zip_of_before]


def test_a_hand_in_is_reopened_in_an_empty_folder(
    course: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (course / "network.py").write_text("widths = [8, 16]\n")
    (course / "local.txt").write_text("only here")
    target = course / "handin" / "course.zip"
    sources = ["import network\nassert network.widths == [8, 16]", "open('local' + '.txt').read()"]
    for last, code, said in (("1", 0, "course.zip runs from beginning to end"), (sources[1], 1, "FileNotFoundError")):
        write_notebook(course, sources[0], "# Reading", last, PLOT)
        with monkeypatch.context() as patch:
            patch.setattr(run, "execute", EXECUTE)  # with a real kernel
            assert run.main(["--budget", "quick", "--output", str(course / "handin")]) == 0
            assert run.main(["reopen", str(target)]) == code
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"no zip", {}, {"a.ipynb": "{}", "b.ipynb": "{}"}])
def test_what_is_no_hand_in_is_said(course: Path, content: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = course / "some.zip"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with zipfile.ZipFile(path, "w") as packed:
            for name, text in content.items():
                packed.writestr(name, text)
    assert run.main(["reopen", str(path)]) == 1
    said = capsys.readouterr().out
    assert "some.zip cannot be opened" in said or f"It holds {len(content)} notebooks; expected one." in said


def test_figures_of_an_earlier_run_are_gone_but_nothing_else(course: Path) -> None:
    figures = course / "handin" / "figures"
    figures.mkdir(parents=True)
    for name in ("A1.1a-old-7.png", "mine.png", "mine.csv"):
        (figures / name).touch()
    assert run.main(["--output", str(course / "handin")]) == 0
    names = {path.name for path in figures.iterdir()}
    assert {"mine.png", "mine.csv"} <= names
    assert "A1.1a-old-7.png" not in names


def test_a_failed_run_is_saved_under_another_name_and_makes_no_zip(
    course: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_notebook(course, "fail = True", PLOT)
    assert run.main(["--output", str(course / "handin")]) == 1
    assert [path.name for path in (course / "handin").iterdir()] == ["course_failed.ipynb"]
    printed = capsys.readouterr().out
    assert "course_failed.ipynb" in printed and printed.endswith("Stopped in A1.1a: no\n")  # the failure comes last
    write_notebook(course, "mended = True", PLOT)
    assert run.main(["--output", str(course / "handin")]) == 0
    assert not (course / "handin" / "course_failed.ipynb").exists()


def test_what_the_regulations_forbid_makes_no_zip(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (course / "README.md").unlink()
    assert run.main(["--output", str(course / "handin")]) == 1
    assert "README.md is missing" in capsys.readouterr().out
    assert not (course / "handin" / "course.zip").exists()
    assert (course / "handin" / "course.ipynb").exists()


def test_the_notebook_is_never_overwritten(course: Path) -> None:
    with pytest.raises(SystemExit, match="would be overwritten"):
        run.main(["--output", str(course)])


@pytest.mark.parametrize(
    ("arguments", "budget", "data"),
    [([], "standard", "built-in"), (["--budget", "full", "--data", "dsb2018"], "full", "dsb2018")],
)
def test_settings_reach_the_kernel(course: Path, arguments: list[str], budget: str, data: str) -> None:
    run.main([*arguments, "--output", str(course / "handin")])
    settings = json.loads((course / "settings.json").read_text())
    assert settings == {"SEGMENTATION_BUDGET": budget, "SEGMENTATION_DATA": data}


def test_a_folder_of_data_is_named_relative_to_the_notebook(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel runs beside the notebook, and an absolute path would show the user's home in the outputs.
    (course / "cells").mkdir()
    (course / "elsewhere").mkdir()
    monkeypatch.chdir(course / "elsewhere")
    run.main(["--data", "../cells", "--output", str(course / "handin")])
    assert json.loads((course / "settings.json").read_text())["SEGMENTATION_DATA"] == "cells"


# ---- the command line ----


@pytest.mark.parametrize(("rest", "expected"), [(["-x", "-k", "a or b"], []), (["--quick", "-h"], ["-m", "not slow"])])
def test_what_follows_test_is_for_pytest(
    rest: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    continued: list[list[str]] = []
    monkeypatch.setattr(run, "ensure_environment", lambda arguments: None)
    monkeypatch.setattr(run, "continue_as", continued.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    assert run.main(["test", *rest]) == 0
    ((python, _, pytest_, *options),) = continued
    assert (python, pytest_) == (sys.executable, "pytest") and "-n" in options
    assert options[-len(expected + rest) + ("--quick" in rest) :] == [*expected, *(r for r in rest if r != "--quick")]
    assert Path.cwd() == ROOT


@pytest.mark.parametrize("command", run.COMMANDS)
@pytest.mark.parametrize("code", [None, 0, 1])
def test_a_module_gets_the_arguments_after_its_command(
    command: str, code: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, from_root, _ = run.COMMANDS[command]
    got: list[tuple[list[str], Path]] = []
    rest = ["model.pt2", "a folder", "--output", "x", "--seeds", "0", "1", "-h"]

    def main(arguments: list[str]) -> int | None:
        got.append((arguments, Path.cwd()))
        return code

    monkeypatch.setattr(run, "ensure_environment", lambda arguments: None)
    monkeypatch.setattr(run, "missing_packages", list)
    monkeypatch.setattr(importlib.import_module(name), "main", main)
    monkeypatch.chdir(tmp_path)
    assert run.main([command, *rest]) == (code or 0)
    assert got == [(rest, ROOT if from_root else tmp_path)]  # paths of a user are seen from where the user stands


@pytest.mark.parametrize("command", [*run.COMMANDS, "test"])
def test_help_installs_nothing(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "ensure_environment", refuse)
    monkeypatch.setattr(run, "missing_packages", lambda: ["torch>=2.6"])
    with contextlib.suppress(SystemExit):  # argparse ends like this
        assert run.main([command, "-h"]) == 0
    assert f"run.py {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["handin", "reopen"])
def test_a_hand_in_is_checked_and_reopened_without_an_environment(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "ensure_environment", refuse)
    monkeypatch.chdir(tmp_path)
    assert run.main([command, "gone.ipynb"]) == 1


def test_a_wrong_input_of_a_command_is_its_sentence_alone() -> None:
    code = "import run, sys; run.ensure_environment = print; sys.exit(run.main(['tune', '--data', 'nowhere']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("'nowhere' is neither a folder nor a known data set")
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(name: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.metadata, "version", stopped)  # the first thing that main does
    monkeypatch.setattr(sys, "argv", ["run.py"])
    with pytest.raises(SystemExit, match="Stopped"):
        runpy.run_path(run.__file__, run_name="__main__")


@pytest.mark.parametrize("arguments", [["--budget", "huge"], ["--bugdet=full"], ["tests"]])
def test_a_wrong_command_line_is_refused_before_anything_is_set_up(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "ensure_environment", refuse)
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert arguments[-1] in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_code_of_the_other_command_is_returned(status: int) -> None:
    code = f"import run, sys; run.continue_as([sys.executable, '-c', 'raise SystemExit({status})'])"
    assert subprocess.call([sys.executable, "-c", code], cwd=ROOT) == status
