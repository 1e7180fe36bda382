"""The plan of the house: who may import whom, and what must not be there."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.glob("*.py")}

# Every module may import checks; beyond that, only these arrows.  A new arrow is a decision: add it here.
ARROWS = {
    "fcn": {"unet", "upsampling"},
    "baselines": {"unet", "fcn"},
    "losses": {"boundary", "topology"},
    "metrics": {"topology"},
    "imagefile": {"pngfile"},
    "samples": {"imagefile"},
    "readers": {"imagefile", "samples"},
    "download": {"archives", "sources"},
    "hdf5": {"hdf5file", "imagefile", "samples"},
    "data": {"imagefile", "samples", "readers", "hdf5", "synthetic", "synthetic_scenes", "download"},
    "synthetic_scenes": {"synthetic", "synthetic_pets", "synthetic_streets"},
    "synthetic_pets": {"painting", "synthetic"},
    "synthetic_streets": {"painting", "synthetic"},
    "record": {"windows"},
    "receptive_field": {"record", "windows"},
    "inspection": {"record", "windows"},
    "checkpoint": {"atomic", "locks"},
    "tuning_journal": {"locks"},
    "tally": {"metrics", "distributed"},
    "side_by_side": {"progress"},
    "learner": {
        *("checkpoint", "distributed", "inspection", "modes", "plots", "progress", "resident"),
        *("run_settings", "tally", "tiles"),
    },
    "tuning": {"learner", "processes", "search_space", "tuning_journal", "tuning_tables"},
    "confirmation": {"learner", "search_space"},
    "tuning_plots": {"plots"},
    "tiles": {"receptive_field", "record", "windows"},
    "modelfile": set(),
    "export": {"atomic", "modelfile", "tiles"},
    "predict": {"atomic", "hdf5", "imagefile", "modelfile", "plots", "samples", "tiles"},
    "boundary_metrics": {"objects", "boundary"},
    "instance_metrics": {"objects"},
    "structure_metrics": {"objects", "topology"},
    "handin": {"notebookfile"},
    "run": {"checks", "handin", "notebookfile"},
    "train": {"augmentation", "data", "distributed", "export", "learner", "losses", "transforms", "unet"},
    "rehearsal": {"learner", "losses", "samples", "unet"},
    "doctor": {"data", "hdf5", "imagefile", "learner", "plots", "readers", "rehearsal", "samples"},
    "changes": {"boundary", "samples"},
    "augmentation": {"transforms"},
    "scoring": {"metrics", "boundary_metrics", "instance_metrics", "structure_metrics", "objects"},
    "tuning_study": {  # as well, for the tuning of section A1.2c
        *("baselines", "comparison", "confirmation", "data", "learner", "losses", "metrics", "modes", "range_test"),
        *("search_space", "study", "tuning", "tuning_tables", "unet"),
    },
    "study": {  # like the notebook: it brings the pieces together, and nothing but its command imports it
        *("augmentation", "baselines", "changes", "comparison", "data", "learner", "losses", "plots"),
        *("samples", "scoring", "synthetic", "topology", "transforms", "unet"),
    },
}


def imported(tree: ast.AST, in_functions: bool = True) -> set[str]:
    """Top-level names of all imports; without those in functions, the ones needed to import the module."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
        elif in_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names |= imported(node, in_functions)
    return names


@pytest.mark.parametrize("name", sorted(MODULES))
def test_arrows(name: str) -> None:
    needs_no_package = name in ("run", "handin", "notebookfile")
    allowed = ARROWS.get(name, set()) | (set() if needs_no_package else {"checks"} - {name})
    assert imported(MODULES[name]) & set(MODULES) <= allowed


@pytest.mark.parametrize("name", sorted(MODULES))
def test_torchvision_is_not_needed_for_an_import(name: str) -> None:
    # A broken pair of torch and torchvision fails at import, and would take the whole notebook with it.
    assert "torchvision" not in imported(MODULES[name], in_functions=False)


def test_run_starts_with_the_standard_library_alone() -> None:
    assert imported(MODULES["run"], in_functions=False) <= sys.stdlib_module_names | {"handin", "notebookfile"}


def test_handin_needs_nothing_but_the_standard_library() -> None:
    assert imported(MODULES["handin"]) <= sys.stdlib_module_names | {"notebookfile"}
    assert imported(MODULES["notebookfile"]) <= sys.stdlib_module_names


def test_nothing_is_shadowed() -> None:
    assert not (ROOT / "data" / "__init__.py").exists()  # would hide data.py
    assert not set(MODULES) & sys.stdlib_module_names


def test_each_fault_has_a_test_that_carries_its_number() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    numbers = {int(number) for number in re.findall(r"^def test_fault_(\d\d)_(?!(?:and_)?\d)", tests, re.MULTILINE)}
    assert set(range(1, 99)) - numbers == set()  # all that may go wrong is numbered, from a lost label to an old zip


def check_with(tool: str, *arguments: str) -> None:
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is a tool for developers and not installed")
    command = [sys.executable, "-m", tool, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_is_content() -> None:
    check_with("ruff", "check", "--output-format=concise", ".")


@pytest.mark.slow
def test_mypy_is_content() -> None:
    check_with("mypy")
