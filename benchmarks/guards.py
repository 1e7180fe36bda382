"""Remove every guard of a module, one at a time, and see whether a test notices.

    python3 benchmarks/guards.py hdf5 samples          these modules
    python3 benchmarks/guards.py                       all of them (hours)
    python3 benchmarks/guards.py hdf5 --only 120       the guard in line 120

A guard is a `raise …Error(…)`, or a call of a function that raises (its name begins with `check_`, `_check`, `_refuse`,
`_require`, or is `raise_problems`).  In a copy of the project it is replaced by `pass`, and the tests of its module run
until the first one fails.  A guard that no test misses is a survivor: the exit status is their number.  (It forks: not
for Windows.)
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
GUARDS = re.compile(r"_?check|_refuse|_require|raise_problems")
SECONDS = 300  # a test that hangs without its guard counts as one that fails
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
}


def guards(source: str) -> list[ast.stmt]:
    """The statements that raise one of our errors, in the order of their lines; a bare `raise` is none."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            found.append(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if GUARDS.match(name):
                found.append(node)
    return sorted(found, key=lambda node: node.lineno)


def without(source: str, guard: ast.stmt) -> str:
    """The source with `pass` in place of one statement; all other lines keep their numbers."""
    lines = source.splitlines(keepends=True)
    first, last = guard.lineno - 1, guard.end_lineno or guard.lineno
    head = lines[first].encode()[: guard.col_offset].decode()
    tail = lines[last - 1].encode()[guard.end_col_offset or 0 :].decode()
    lines[first:last] = [f"{head}pass{tail}", *["\n"] * (last - first - 1)]
    return "".join(lines)


def caught_by(tree: Path, module: str) -> str:
    """The first test that fails in the changed tree, or an empty string."""
    names = [module, *MORE_TESTS.get(module, [])]
    files = [*(f"tests/test_{name}.py" for name in names if (tree / f"tests/test_{name}.py").exists()), f"{module}.py"]
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
        os._exit(int(pytest.main(["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-m", "not slow", *files])))
    status = wait(child)
    if status is None:
        return f"no end after {SECONDS} s"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return failed[1].partition("::")[2] or failed[1] if failed else "" if status == 0 else "no start"


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
    ignore = shutil.ignore_patterns(".*", "runs", "handin", "*.ipynb", "__pycache__", "checkpoints")
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
            missed = 0
            if found and (broken := caught_by(tree, module)):
                print(f"| {module} | not tried: {broken} fails without any change |", flush=True)
                survivors += len(found)
                continue
            for guard in found:
                path.write_text(without(source, guard), encoding="utf-8")
                test = caught_by(tree, module)
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
