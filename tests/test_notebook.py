"""The committed notebook: complete, executed from top to bottom, small enough, and able to run again."""

from __future__ import annotations

import ast
import base64
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import handin

ROOT = Path(__file__).parent.parent
PATH = ROOT / "semantic_segmentation.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
TEXT = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown"]

SECTIONS = [
    "B-colab", "B2a", "B2b", "B2c", "B2d", "B1a", "B1b", "A1.1a", "A1.1b", "B2e", "A1.2a", "A1.2b", "A1.2c",
    *(f"A1.3{part}" for part in "abcde"), "C-fig", *(f"C{number}" for number in range(1, 15)),
    "D-up", "D-dil", "D-skip", "D-fcn", *(f"D-q{number}" for number in range(1, 8)),
    "E-unet", "E-loss", "E-lr", "E-dog", "E-learn", "B-reg",
]  # fmt: skip


def test_every_task_of_the_sheets_has_its_section_in_order() -> None:
    headings = [line for text in TEXT for line in text.splitlines() if line.startswith("## ")]
    assert [line.split()[1] for line in headings] == SECTIONS


def test_the_time_needed_can_be_filled_in_for_each_part() -> None:
    parts = re.findall(r"needed the following time to complete the task \((.*?)\)", "".join(TEXT))
    assert parts == ["B1", "1.1", "1.2", "1.3", "C", "D", "E"]


def test_it_passes_the_regulations() -> None:
    assert handin.problems(PATH, ROOT) == []


def test_no_cell_warns() -> None:
    assert not [o for cell in CODE for o in cell["outputs"] if o.get("name") == "stderr"]


def test_code_cells_are_short() -> None:
    assert max(len("".join(cell["source"]).splitlines()) for cell in CODE) <= 15


def test_the_file_and_its_pictures_are_small() -> None:
    pictures = [
        "".join(o["data"]["image/png"]) for cell in CODE for o in cell["outputs"] if "image/png" in o.get("data", {})
    ]
    assert pictures and max(len(base64.b64decode(picture)) for picture in pictures) <= 150_000
    assert PATH.stat().st_size <= 4_000_000


def test_readme_and_notebook_name_one_repository() -> None:
    texts = [(ROOT / "README.md").read_text(encoding="utf-8"), PATH.read_text(encoding="utf-8")]
    repositories = {found for text in texts for found in re.findall(r"github(?:\.com)?/([\w-]+/[\w-]+)", text)}
    assert len(repositories) == 1


def test_the_readme_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in ROOT.glob("*.py") if f"`{path.name}`" not in readme] == []


def test_the_notebook_needs_no_package_beyond_the_requirements() -> None:
    imported = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").partition(".")[0]
        for cell in CODE
        for node in ast.walk(ast.parse("".join(cell["source"])))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    ours = {path.stem for path in ROOT.glob("*.py")}
    assert imported - ours - set(sys.stdlib_module_names) <= {
        "torch",
        "numpy",
        "h5py",
        "matplotlib",
        "skimage",
        "IPython",
    }


@dataclasses.dataclass
class Made:
    """What a fresh copy of the course made, in a run that was killed and in one after it."""

    folder: Path
    trained_before: dict[Path, int]
    """Checkpoints of sections that the killed run had finished, and when they were written."""
    executed: list[dict]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`run.py --budget quick --data auto` in another folder, without a GPU and without a network; killed once."""
    copy = tmp_path_factory.mktemp("run") / "copy of the course"
    copy.mkdir()
    for name in [*(path.name for path in ROOT.glob("*.py")), PATH.name, "README.md", "LICENSE", "requirements.txt"]:
        shutil.copy(ROOT / name, copy / name)
    (copy / "figures").mkdir()
    for table in ROOT.glob("figures/*.csv"):  # the results of the study, which the notebook reads
        shutil.copy(table, copy / "figures" / table.name)
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("SEGMENTATION_MIRROR", None)
    command = [sys.executable, "run.py", "--budget", "quick", "--data", "auto"]
    with open(copy / "first.txt", "w") as log:
        first = subprocess.Popen(command, cwd=copy, env=environment, stdout=log, stderr=log, start_new_session=True)
        while first.poll() is None and "A1.2a" not in (copy / "first.txt").read_text():
            time.sleep(0.5)
        kernels = [int(line) for line in children_of(first.pid)]
        for pid in (first.pid, *kernels):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        first.wait()
    before = {
        path: path.stat().st_mtime_ns
        for kind in ("links-*", "yeast-*")
        for path in copy.glob(f"runs/quick/{kind}/latest.ckpt")
    }
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    executed = json.loads((copy / "handin" / PATH.name).read_text(encoding="utf-8"))["cells"]
    return Made(copy, before, executed)


def children_of(pid: int) -> list[str]:
    """The processes that a process has started; only Linux tells."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return path.read_text().split() if path.exists() else []


def printed(cells: list[dict]) -> str:
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    return "".join("".join(o.get("text", o.get("data", {}).get("text/plain", ""))) + "\n" for o in outputs)


@pytest.mark.slow
def test_the_hand_in_is_made_from_a_fresh_copy(made: Made) -> None:
    assert (made.folder / "handin" / "semantic_segmentation.zip").exists()
    assert (made.folder / PATH.name).read_bytes() == PATH.read_bytes()  # nothing rewrites the notebook


@pytest.mark.slow
def test_fault_78_without_a_gpu_the_minutes_are_estimated(made: Made) -> None:
    assert re.search(r"No GPU: about \d+ minutes on this machine", printed(made.executed))


@pytest.mark.slow
def test_fault_80_without_a_network_the_built_in_images_are_used(made: Made) -> None:
    assert "synthetic_pets" in printed(made.executed) and "data: auto" in printed(made.executed)


@pytest.mark.slow
def test_fault_81_a_new_kernel_takes_up_what_was_trained_before_the_cut(made: Made) -> None:
    assert len(made.trained_before) >= 6
    assert {path: path.stat().st_mtime_ns for path in made.trained_before} == made.trained_before
    assert "trained before. yeast-seed0" in printed(made.executed)


@pytest.fixture(scope="module")
def used(made: Made) -> str:
    """What the course that was made answers to every cell twice, and to two random orders of its cells."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork, which this system does not have")
    program = ROOT / "benchmarks" / "cell_orders.py"
    orders = ["--orders", "2", "--kinds", "sections", "asking"]
    command = [sys.executable, str(program), "--twice", *orders, "--trained", "--folder", "."]
    result = subprocess.run(command, cwd=made.folder, capture_output=True, text=True)
    return result.stdout + result.stderr  # the tests look for the counts, so a program that fell is seen


@pytest.mark.slow
def test_fault_76_every_cell_twice_shows_what_it_shows_once(used: str) -> None:
    assert f"every cell twice: {2 * len(CODE)} cells, {{'ran': {2 * len(CODE)}}}\n" in used, used


@pytest.mark.slow
def test_fault_77_random_orders_meet_only_our_own_messages(used: str) -> None:
    (counts,) = re.findall(r"^2 orders: \d+ cells, (.*)$", used, re.MULTILINE)
    assert set(ast.literal_eval(counts)) <= {"ran", "advised", "InputError"}, used
    assert min(ast.literal_eval(counts)[kind] for kind in ("ran", "advised")) > len(CODE) / 4


@pytest.mark.slow
def test_fault_97_the_hand_in_runs_again_in_an_empty_folder(made: Made) -> None:
    command = [sys.executable, "run.py", "reopen", "handin/semantic_segmentation.zip"]
    result = subprocess.run(command, cwd=made.folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "runs from beginning to end" in result.stdout
