"""The committed notebook: complete, executed from top to bottom, small enough, and able to run again."""

import ast
import base64
import builtins
import dis
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from commands import handin

ROOT = Path(__file__).parent.parent
PATH = ROOT / "semantic_segmentation.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
TEXT = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown"]
FOLDERS = ("geometry", "networks", "imagesets", "training", "experiments", "commands")

SECTIONS = [
    "B-colab", "B2a", "B2b", "B2c", "B2d", "B1a", "B1b", "A1.1a", "A1.1b", "B2e", "A1.2a", "A1.2b", "A1.2c",
    *(f"A1.3{part}" for part in "abcde"), "C-fig", *(f"C{number}" for number in range(1, 15)),
    "D-up", "D-dil", "D-skip", "D-fcn", *(f"D-q{number}" for number in range(1, 8)),
    "E-unet", "E-loss", "E-lr", "E-dog", "E-learn", "B-reg",
]  # fmt: skip

SHARED = {r"C\d|C-": "C", r"D-q": "D-fcn", r"E-": "E", r"Part 5": "C", r"Part 7": "E"}
"""Sections that are one experiment and share its names: all of C, D-fcn with the questions about it, all of E."""

GIVEN = {"1.1", "1.2", "1.3", "1.5", "3.1", ".18", "0.18", "0.45", ".67", "95.45 %"}
"""Numbers in the text that no cell computes: names of tasks, a size, and what sheets, papers and definitions say."""

SCRATCH = {"_", "ax", "axes", "counts", "figure", "guess", "lines", "names", "row"}
"""These names, and single letters, mean "of this cell" everywhere: no other section may read them."""


def test_every_task_of_the_sheets_has_its_section_in_order() -> None:
    headings = [line for text in TEXT for line in text.splitlines() if line.startswith("## ")]
    assert [line.split()[1] for line in headings] == SECTIONS


def test_the_time_needed_can_be_filled_in_for_each_part() -> None:
    parts = re.findall(r"needed the following time to complete the task \((.*?)\)", "".join(TEXT))
    assert parts == ["B1", "1.1", "B2", "1.2", "1.3", "C", "D", "E"]


def test_it_passes_the_regulations() -> None:
    assert handin.problems(PATH, ROOT) == []


def test_no_cell_warns() -> None:
    assert not [o for cell in CODE for o in cell["outputs"] if o.get("name") == "stderr"]


def test_code_cells_are_short() -> None:
    assert max(len("".join(cell["source"]).splitlines()) for cell in CODE) <= 25


def test_it_uses_nothing_that_colabs_old_ipython_lacks() -> None:
    """IPython 7.34 under Python 3.12 and later: `Image` knows no `alt`, and autoreload cannot be imported."""
    sources = ["".join(cell["source"]) for cell in CODE] + [(ROOT / "plots.py").read_text(encoding="utf-8")]
    assert not [source for source in sources if re.search(r"\bImage\([^\n]*\balt=", source)]
    (reloading,) = (source for source in sources if "autoreload" in source)
    assert re.search(r"try:\n(    .*\n)+except ModuleNotFoundError:", reloading)


def test_it_reads_like_a_paper() -> None:
    """Few code cells, most of them after text, typesetting folded, and every inner link has its place."""
    kinds = [cell["cell_type"] for cell in CELLS]
    after_text = sum(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")
    folded = [cell for cell in CODE if "hide-input" in cell["metadata"].get("tags", ())]
    visible = [line for cell in CODE if cell not in folded for line in "".join(cell["source"]).splitlines()]
    assert len(CODE) <= 120 and len(visible) <= 1100 and after_text >= 0.85 * len(CODE)
    assert not any({*three} == {"code"} for three in zip(kinds, kinds[1:], kinds[2:]))
    assert all(
        cell["metadata"]["jupyter"]["source_hidden"] and cell["metadata"]["cellView"] == "form" for cell in folded
    )
    places = re.findall(r'<a id="([^"]+)" name="\1"></a>\n\n#', "".join(TEXT))
    links = {*re.findall(r"\]\(#([^)]+)\)", "".join(TEXT))}
    assert {*SECTIONS, *links} <= {*places} and len(places) == len({*places})


def test_every_claim_of_the_text_holds_in_the_committed_run() -> None:
    claims = re.findall("^([✓✗]) .*", "\n".join(map(shown, CODE)), re.MULTILINE)
    assert len(claims) >= 60 and set(claims) == {"✓"}


def test_numbers_in_the_text_are_those_of_the_outputs() -> None:
    """A number with a decimal point, as 0.83, .83 or 83.1 %, is a result: its part shows it, as exactly."""
    wrong, texts, numbers = list[str](), list[str](), list[float]()
    for cell in [*CELLS, {"cell_type": "markdown", "source": "# the end"}]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            numbers += map(float, re.findall(r"\d*\.\d+(?:e[+-]\d+)?|\d+", shown(cell).replace(",", "")))
        elif re.search("^# ", text, re.MULTILINE):
            wrong += [
                f"{number}: {one[:50]}"
                for one in texts
                for number in results_in(one)
                if not (number in GIVEN or is_one_of(number, numbers))
            ]
            texts, numbers = [text], []
        else:
            texts.append(text)
    assert wrong == []


def shown(cell: dict[str, Any]) -> str:
    """What a cell printed and the tables that it showed, as text."""
    texts = (o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell["outputs"])
    return "\n".join("".join(text) for text in texts)


def results_in(text: str) -> list[str]:
    """The decimal numbers of a text; those of names, links, formulas and code are none."""
    text = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)|(arXiv|doi):\S+|\b[A-E]1\.\d", "", text, flags=re.DOTALL)
    return re.findall(r"(?<![\w.])\d*\.\d+(?: %)?(?![\w.])", text)


def is_one_of(result: str, numbers: Sequence[float]) -> bool:
    number, _, percent = result.partition(" ")
    digits = len(number.partition(".")[2])
    scales = (1, 100) if percent else (1,)
    return any(abs(scale * one - float(number)) <= 0.5001 * 10**-digits for one in numbers for scale in scales)


def test_the_file_and_its_pictures_are_small() -> None:
    pictures = [
        "".join(o["data"]["image/png"]) for cell in CODE for o in cell["outputs"] if "image/png" in o.get("data", {})
    ]
    assert pictures and max(len(base64.b64decode(picture)) for picture in pictures) <= 150_000
    assert PATH.stat().st_size <= 4_000_000


def test_readme_notebook_and_citation_name_one_repository_or_none() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", PATH.name, "CITATION.cff")]
    assert len({tuple(re.findall(r"github(?:\.com)?/([\w-]+/[\w.-]+)[/)\"]", text)) for text in texts}) == 1


@pytest.fixture
def find_course(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The function of the first cell, where nothing is asked of a network; `REPOSITORY` may be set in its globals."""
    exec("".join(CODE[0]["source"]), space := {})
    return partial(space["find_course"], drive=Path("no-drive"), kaggle=Path("no-kaggle"))


def pack(folder: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(folder / "any name (1).zip", "w") as archive:
        for name in ("unet.py", "commands/handin.py"):
            archive.writestr(f"{prefix}{name}", "")
    return folder


def modules_in(folder: Path) -> Path:
    (folder / "commands").mkdir(parents=True)
    (folder / "commands" / "handin.py").touch()
    return folder


def test_the_first_cell_is_short_and_finds_this_folder(find_course) -> None:
    assert len("".join(CODE[0]["source"]).splitlines()) <= 25
    assert find_course(ROOT) == ROOT


def test_the_first_cell_finds_modules_beside_it_in_drive_or_unpacked_by_kaggle(find_course, tmp_path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    kaggle = modules_in(tmp_path / "kaggle" / "input" / "course")
    assert find_course(here, kaggle=kaggle.parents[1]) == here / "course"  # a copy: nothing can be written over there
    assert (here / "course" / "commands" / "handin.py").exists()
    shutil.rmtree(here / "course")
    drive = modules_in(tmp_path / "drive" / "study")
    assert find_course(here, drive=drive.parent) == drive and find_course(here, drive=drive) == drive
    beside = modules_in(here / "semantic-segmentation-course-main")
    assert find_course(here, drive=drive.parent) == beside


@pytest.mark.parametrize("prefix", ["", "course-main/"])
@pytest.mark.parametrize("place", ["here", "drive", "kaggle"])
def test_the_first_cell_unpacks_a_zip_of_any_name(find_course, tmp_path, place, prefix) -> None:
    places = {name: tmp_path / name for name in ("here", "drive", "kaggle")}
    for folder in places.values():
        folder.mkdir()
    (places["here"] / "broken.zip").write_text("no zip")
    with zipfile.ZipFile(places["here"] / "another.zip", "w") as archive:
        archive.writestr("holiday.txt", "")
    pack(places[place], prefix)
    found = find_course(places["here"], drive=places["drive"], kaggle=places["kaggle"])
    assert found == places["here"] / "course" / prefix and (found / "unet.py").exists()


def test_the_first_cell_asks_for_an_upload_in_colab_or_says_what_to_do(find_course, tmp_path, monkeypatch) -> None:
    with pytest.raises(SystemExit) as told:
        find_course(tmp_path)
    assert len(str(told.value).splitlines()) == 3 and "upload course.zip" in str(told.value)
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(upload=dict)  # closed without a choice
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    with pytest.raises(SystemExit):
        find_course(tmp_path)
    colab.files.upload = lambda: {"course.zip": pack(tmp_path)}
    assert find_course(tmp_path) == tmp_path / "course"


def test_the_first_cells_in_colab_from_an_empty_folder(tmp_path, monkeypatch) -> None:
    def upload() -> dict[str, bytes]:
        handin.pack(Path("course (1).zip"), ROOT)
        return {"course (1).zip": b""}

    colab, asked, space = types.ModuleType("google.colab"), list[list[str]](), dict[str, object]()
    colab.files = types.SimpleNamespace(upload=upload)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else name)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: asked.append(command))
    for cell in CODE[:2]:
        exec("".join(cell["source"]), space)
    assert str(Path.cwd()) == sys.path[0] == str(tmp_path / "course")
    assert all((Path(folder) / "__init__.py").exists() for folder in FOLDERS) and Path("figures/study.csv").exists()
    assert asked == [[sys.executable, "-m", "pip", "install", "-q", "optuna"]]  # nothing that Colab has is touched


def test_the_first_cell_clones_what_was_published(find_course, tmp_path, monkeypatch) -> None:
    def system(line: str) -> int:
        assert line == "git clone -q --depth 1 https://github.com/ada/course course"
        return 0 if modules_in(tmp_path / "course") else 1

    space = find_course.func.__globals__
    monkeypatch.setitem(space, "REPOSITORY", "ada/course")
    monkeypatch.setitem(space, "os", types.SimpleNamespace(system=system))
    assert find_course(tmp_path) == tmp_path / "course"
    shutil.rmtree(tmp_path / "course")
    monkeypatch.setitem(space, "os", types.SimpleNamespace(system=lambda line: 128))  # no network
    with pytest.raises(SystemExit):
        find_course(tmp_path)


def test_no_name_changes_its_meaning_from_one_section_to_another() -> None:
    """A student who reads or runs one section meets no value that another one left under the same name."""
    makers = defaultdict[str, set[str]](set)
    for heading, source in code_by_section():
        imported = {name.partition(".")[0] for name in imports(source)}
        for name in names(source, "STORE_NAME"):
            if name not in SCRATCH and len(name) > 1 and name not in loop_names(source):
                makers[name].add("an import" if name in imported else heading)
    assert {name: where for name, where in makers.items() if len(where) > 1} == {}


def test_what_a_cell_reads_is_made_above_it_and_not_left_over_from_a_loop_elsewhere() -> None:
    everywhere, here, section = set(dir(builtins)), set[str](), ""
    for heading, source in code_by_section():
        here, section = here if heading == section else set(), heading
        made = names(source, "STORE_NAME")
        assert names(source, "LOAD_NAME", "LOAD_GLOBAL") - made - everywhere - here == set(), source
        here |= made
        everywhere |= {name for name in made - SCRATCH - loop_names(source) if len(name) > 1} | set(imports(source))


def code_by_section() -> Iterator[tuple[str, str]]:
    """The code cells, each with the name of its section or of the experiment that several sections share."""
    heading = "set-up"
    for cell in CELLS:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            yield next((to for start, to in SHARED.items() if re.match(start, heading)), heading), source
        for line in re.findall(r"^##? (.*)", source, re.MULTILINE) if cell["cell_type"] == "markdown" else ():
            heading = line.split(" · ")[0]


def names(source: str, *operations: str) -> set[str]:
    """Global names that the compiled cell stores or loads, its functions and comprehensions included."""

    def walk(code: CodeType) -> Iterator[str]:
        yield from (step.argval for step in dis.get_instructions(code) if step.opname in operations)
        for inner in code.co_consts:
            yield from walk(inner) if isinstance(inner, CodeType) else ()

    return set(walk(compile(source, "cell", "exec")))


def loop_names(source: str) -> set[str]:
    """Names that the cell binds in nothing but `for` and `with`: only what stands inside of these reads them."""
    stored, bound = Counter[str](), Counter[str]()
    for node in ast.walk(ast.parse(source)):
        stored[node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else ""] += 1
        for target in (getattr(node, "target", None), getattr(node, "optional_vars", None)):
            if target is not None and isinstance(node, ast.For | ast.comprehension | ast.withitem):
                bound.update(name.id for name in ast.walk(target) if isinstance(name, ast.Name))
    return {name for name, times in stored.items() if bound[name] == times}


def imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


@pytest.mark.slow
def test_without_gpu_and_network_a_fresh_copy_makes_the_hand_in(tmp_path: Path) -> None:
    copy = tmp_path / "copy of the course"
    copy.mkdir()
    for name in [*(path.name for path in ROOT.glob("*.py")), PATH.name, "README.md", "LICENSE", "requirements.txt"]:
        shutil.copy(ROOT / name, copy / name)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "figures", copy / "figures")  # tables that are read, pictures of real data
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("SEGMENTATION_MIRROR", None)
    command = [sys.executable, "run.py", "--budget", "quick", "--data", "auto"]
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (copy / "handin" / PATH.with_suffix(".zip").name).exists()
    assert (copy / PATH.name).read_bytes() == PATH.read_bytes()  # nothing rewrites the notebook
    executed = (copy / "handin" / PATH.name).read_text(encoding="utf-8")
    assert "synthetic_pets" in executed and "data: auto" in executed and "No GPU: quick takes" in executed
