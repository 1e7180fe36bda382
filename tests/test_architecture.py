"""The plan of the house: who may import whom, and what must not be there."""

import ast
import graphlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("geometry", "networks", "imagesets", "training", "experiments", "commands")
PATHS = [path for folder in ("", *FOLDERS) for path in sorted((ROOT / folder).glob("*.py")) if path.stem != "__init__"]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text("utf-8")) for path in PATHS}
LAYERS = (  # each room may import those of the lines below, and modules of its own folder
    {"run"},
    {"commands", "experiments"},
    {"learner"},
    {"data"},
    {"training"},
    {"imagesets", "losses", "networks"},
    {"geometry", "plots"},
    {"metrics", "transforms", "unet"},
    {"checks"},
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}


def imported(tree: ast.AST, in_functions: bool = True) -> set[str]:
    """Full names of all imports; without those in functions, the ones needed to import the module."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} if module in FOLDERS else {module}
        elif in_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names |= imported(node, in_functions)
    return names


@pytest.mark.parametrize("name", sorted(MODULES))
def test_arrows_point_down(name: str) -> None:
    room = name.partition(".")[0]
    rooms = {other.partition(".")[0] for other in imported(MODULES[name]) & set(MODULES)} - {room}
    assert {other for other in rooms if LAYER[other] <= LAYER[room]} == set()


def test_no_module_imports_itself_through_others() -> None:
    graphlib.TopologicalSorter({name: imported(tree) & set(MODULES) for name, tree in MODULES.items()}).prepare()


@pytest.mark.parametrize("name", ["run", "commands.handin"])
def test_set_up_and_hand_in_work_where_nothing_is_installed(name: str) -> None:
    needed = imported(MODULES[name], in_functions=False) - {"commands.handin"}
    assert {module.partition(".")[0] for module in needed} <= sys.stdlib_module_names


def test_nothing_is_shadowed() -> None:
    assert not (ROOT / "data" / "__init__.py").exists()  # would hide data.py
    assert not {name.rpartition(".")[2] for name in MODULES} & sys.stdlib_module_names - {"statistics"}


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
