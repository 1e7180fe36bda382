"""Remove every guard of a module, one at a time, and see whether a test notices.

    python3 benchmarks/guards.py hdf5 samples          these modules
    python3 benchmarks/guards.py                       all of them (hours)
    python3 benchmarks/guards.py hdf5 --only 120       the guard in line 120

A guard is one of these statements:
- `raise …Error(…)`, or a call of a function that raises (its name begins with `check_`, `_check`, `_refuse`,
  `_require`, `_stop_if`, or is `_keep_apart` or `raise_problems`);
- `sys.exit(text)`;
- a problem that goes into a list: `problems.append(…)`, `problems += …` (or another name of `LISTS`), or `yield` of a
  text, or of a text for each of something.
In a copy of the project it is replaced by nothing.  One run of the tests of its module, with a note before each guard,
has told which tests reach it: they run first, until one fails, then all others.  A guard that no test misses is a
survivor: the exit status is their number.  (It forks: not for Windows.)
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import h5py  # noqa: F401 - loaded before the forks
import matplotlib.pyplot  # noqa: F401
import pytest
import scipy.ndimage  # noqa: F401
import skimage.transform  # noqa: F401
import torch

ROOT = Path(__file__).parent.parent
GUARDS = re.compile(r"_?check|_refuse|_require|_stop_if|_keep_apart|raise_problems")
LISTS = {"problems", "remarks", "reasons", "wrong", "found"}
SECONDS = 300  # a test that hangs without its guard counts as one that fails
NOTES = "guard_notes"  # a module of the copy
REACHED = """
import os
def reached(line):
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    with open({path!r}, "a", encoding="utf-8") as file:
        file.write(f"{{line}} {{test}}\\n" * bool(test))
"""
# Modules whose guards are tested elsewhere too: tests/test_NAME.py comes first
MORE_TESTS = {
    "checks": ["losses", "metrics", "learner"],
    "hdf5": ["hdf5file", "data"],
    "data": ["changes"],
    "hdf5file": ["hdf5"],
    "samples": ["hdf5", "readers"],
    "imagefile": ["samples"],
    "archives": ["download"],
    "fcn": ["baselines"],
    "upsampling": ["baselines"],
    "record": ["receptive_field"],
    "metrics": ["scoring", "learner"],
    "notebookfile": ["handin", "fuzz"],
    "tally": ["distributed", "learner"],
    "modelfile": ["export", "predict"],
    "synthetic_pets": ["synthetic_scenes"],
    "synthetic_streets": ["synthetic_scenes"],
    "confirmation": ["tuning_study"],
    "rehearsal": ["doctor"],
    "train": ["run"],
}


def guards(source: str) -> list[ast.stmt]:
    """The statements that refuse something, in the order of their lines; a bare `raise` is none."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt) and is_guard(node)]
    return sorted(found, key=lambda node: node.lineno)


def is_guard(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise):
        return node.exc is not None
    if isinstance(node, ast.AugAssign):
        return name_of(node.target) in LISTS
    value = node.value if isinstance(node, ast.Expr) else None
    if isinstance(value, ast.Yield):
        return is_text(value.value)
    if isinstance(value, ast.YieldFrom):
        return isinstance(value.value, ast.GeneratorExp) and is_text(value.value.elt)
    if not isinstance(value, ast.Call):
        return False
    if ast.unparse(value.func) == "sys.exit":
        return is_text(*value.args)
    into = value.func.value if isinstance(value.func, ast.Attribute) and value.func.attr == "append" else None
    return name_of(into) in LISTS or bool(GUARDS.match(name_of(value.func)))


def name_of(node: ast.expr | None) -> str:
    """`b` of the expressions `b` and `a.b`."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def is_text(node: ast.expr | None = None) -> bool:
    """A string, an f-string, or a call of `str`."""
    is_constant = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_constant or isinstance(node, ast.JoinedStr) or ast.unparse(node or ast.Pass()).startswith("str(")


def without(source: str, guard: ast.stmt) -> str:
    """The source with nothing in place of one statement; all other lines keep their numbers."""
    lines = source.splitlines(keepends=True)
    first, last = guard.lineno - 1, guard.end_lineno or guard.lineno
    head = lines[first].encode()[: guard.col_offset].decode()
    tail = lines[last - 1].encode()[guard.end_col_offset or 0 :].decode()
    is_yield = isinstance(getattr(guard, "value", None), ast.Yield | ast.YieldFrom)  # a generator must remain one
    lines[first:last] = [f"{head}{'yield from ()' if is_yield else 'pass'}{tail}", *["\n"] * (last - first - 1)]
    return "".join(lines)


def with_notes(source: str, found: list[ast.stmt]) -> str:
    """The source with a note before each guard."""
    lines = source.splitlines(keepends=True)
    for guard in reversed(found):
        line = lines[guard.lineno - 1].encode()
        note = f"import {NOTES}; {NOTES}.reached({guard.lineno}); "
        lines[guard.lineno - 1] = (line[: guard.col_offset] + note.encode() + line[guard.col_offset :]).decode()
    return "".join(lines)


def who_reaches(tree: Path, module: str, source: str, found: list[ast.stmt]) -> tuple[dict[int, list[str]], str]:
    """Line of a guard → the tests that reach it, also in another process; and the test that fails anyway."""
    notes = tree / "notes.txt"
    notes.write_text("", encoding="utf-8")
    (tree / f"{NOTES}.py").write_text(REACHED.format(path=str(notes)), encoding="utf-8")
    (tree / f"{module}.py").write_text(with_notes(source, found), encoding="utf-8")
    status = run_tests(tree, test_files(tree, module))
    (tree / f"{module}.py").write_text(source, encoding="utf-8")
    broken = caught_by(tree, test_files(tree, module)) if status else ""  # or do only the notes disturb it?
    tests: dict[int, list[str]] = {}
    for line in dict.fromkeys(notes.read_text(encoding="utf-8").splitlines()):
        number, _, name = line.partition(" ")
        tests.setdefault(int(number), []).append(name)
    return tests, broken


def test_files(tree: Path, module: str) -> list[str]:
    names = [f"tests/test_{name}.py" for name in (module, *MORE_TESTS.get(module, []))]
    return [*(name for name in names if (tree / name).exists()), f"{module}.py"]


def caught_by(tree: Path, tests: list[str]) -> str:
    """The first test that fails in the changed tree, or an empty string."""
    status = run_tests(tree, ["-x", *tests])
    if status is None:
        return f"no end after {SECONDS} s"
    output = (tree / "output.txt").read_text(encoding="utf-8", errors="replace")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return failed[1].partition("::")[2] or failed[1] if failed else "" if status == 0 else "no start"


def run_tests(tree: Path, arguments: list[str]) -> int | None:
    """The exit status of pytest in the tree; None if it must be stopped."""
    output = tree / "output.txt"
    child = os.fork()  # torch is loaded once, here, and not for each guard
    if child == 0:
        os.setpgid(0, 0)
        os.chdir(tree)
        stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        os._exit(int(pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", "-m", "not slow", *arguments])))
    return wait(child)


def wait(child: int) -> int | None:
    """The exit status of a process; None if it must be stopped."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def copy_of_project(folder: Path) -> Path:
    ignore = shutil.ignore_patterns(".*", "runs", "handin", "__pycache__", "checkpoints")
    return Path(shutil.copytree(ROOT, folder / "course", ignore=ignore))


def main() -> int:
    """Print one line for each guard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="names without .py; default: all")
    parser.add_argument("--only", type=int, nargs="*", help="line numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    modules, survivors = options.modules or sorted(path.stem for path in ROOT.glob("*.py")), 0
    print("| guard | caught by |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of_project(Path(folder))
        for module in modules:
            path = tree / f"{module}.py"
            source, started = path.read_text(encoding="utf-8"), time.monotonic()
            found = [guard for guard in guards(source) if not options.only or guard.lineno in options.only]
            missed, tests = 0, test_files(tree, module)
            if not found:
                continue
            reached, broken = who_reaches(tree, module, source, found)
            if broken:
                print(f"| {module} | not tried: {broken} fails without any change |", flush=True)
                survivors += len(found)
                continue
            for guard in found:
                path.write_text(without(source, guard), encoding="utf-8")
                first = reached.get(guard.lineno)
                test = (caught_by(tree, first) if first else "") or caught_by(tree, tests)
                missed += not test
                text = (ast.get_source_segment(source, guard) or "").replace("\n", " ").replace("|", "\\|")
                text = re.sub(r"\s+", " ", text)[:90]
                print(f"| {module}:{guard.lineno} `{text}` | {test or '**nothing: a survivor**'} |", flush=True)
            path.write_text(source, encoding="utf-8")
            survivors += missed
            seconds = time.monotonic() - started
            print(f"| {module} | {len(found) - missed} of {len(found)} caught, {seconds:.0f} s |", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main())
