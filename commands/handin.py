"""The regulations of the course as checks, and one zip that is only written when all of them hold.

    python3 run.py handin semantic_segmentation.ipynb     # an executed notebook; the zip is written beside it

The sheet asks for a single notebook with all outputs and images visible, every file pointed to by name, and all code
included, in one `.zip`.  Each rule is a generator that yields one line for each problem; `build_zip` refuses or writes.
Standard library only, so that it works where nothing is installed.

Sources: "General Regulations" of the exercise sheets; the notebook format 4, https://nbformat.readthedocs.io.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import itertools
import json
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("geometry", "networks", "imagesets", "training", "experiments", "commands")
TEXTS = ("README.md", "requirements.txt", "LICENSE")
MAX_MEGABYTES = 20  # upload forms refuse large files; the notebook alone should stay below 4
NOT_HANDED_IN = ("data/", "handin/", "runs/")  # every run fills these anew, so a text may name files in them
PACKAGES = {"IPython", "PIL", "__main__", "google", "onnxruntime", "skimage", "torchvision"}  # beside requirements.txt
PYPLOT = {f"plt.{name}" for name in ("figure", "imshow", "plot", "show", "subplot_mosaic", "subplots")}
ENDINGS = "csv|gif|h5|hdf5|html|ipynb|jpe?g|json|md|np[yz]|pdf|png|pt|py|svg|tiff?|toml|txt|zip"
FILE_NAME = re.compile(rf"(\.\.?/)*[\w-][\w./ -]*\.({ENDINGS})", re.IGNORECASE)
POINTER = re.compile(r"`([^`\n]+)`|\]\(<?([^)>\s]+)|<(?:img|a)\b[^>]*?\b(?:src|href)=[\"']([^\"']+)")
MACHINE_PATH = r"(?:(?<![\w.~/-])|(?<=file://))/(?:home|Users|root|tmp|var/folders)/\w|\b[A-Za-z]:\\+Users\\"
TOKEN = re.compile(r"\b(gh[pousr]_|hf_|AKIA|github_pat_)[A-Za-z\d]{16}|(BEGIN (?:[A-Z]+ )*PRIVATE KEY)")
EMPTY_TIME = re.compile(r"needed the following time[^:\n]*:[^\d\n]*$", re.MULTILINE)
NAMES = re.compile(r"\b(?:group|names?|partners?)\b[^:\n]*:(?!.*name \d)(?:[^\w\n]|_)*[^\W_\n]", re.IGNORECASE)


class HandinError(Exception):
    """The hand-in was refused; `problems` holds every reason, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n  - ".join(["No zip was written:", *problems]))
        self.problems = problems


# --- the notebook and its zip ---


class Cell(NamedTuple):
    """One cell that is not empty: its text, what it shows, and how a message names it."""

    is_code: bool
    source: str
    number: int | None  # the order of execution
    outputs: list[dict[str, Any]]
    printed: str  # all text of the outputs
    shows_image: bool
    where: str


class Report(NamedTuple):
    """The executed notebook, the folder of its modules, and the content of the zip: name → file."""

    notebook: Path
    root: Path
    cells: list[Cell]
    contents: dict[str, Path]


def read_report(notebook: Path, root: Path) -> Report:
    """Read an executed notebook; raises `HandinError` if there is nothing to read."""
    try:
        tree = json.loads(notebook.read_text(encoding="utf-8"))
        cells = list(_read_cells(tree["cells"])) if tree["nbformat"] == 4 else []
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise HandinError([f"{notebook.name} is missing, or no notebook: save it and try again"]) from error
    if not any(cell.is_code for cell in cells):
        raise HandinError([f"{notebook.name} is empty: it has no code that could show a result"])
    return Report(notebook.resolve(), root.resolve(), cells, _contents(notebook.resolve(), root.resolve()))


def _read_cells(raw_cells: list[dict[str, Any]]) -> Iterator[Cell]:
    section = "before the first heading"
    for number, raw in enumerate(raw_cells, start=1):
        is_code, source, outputs = raw["cell_type"] == "code", "".join(raw["source"]), raw.get("outputs", [])
        section = section if is_code else heading(source) or section
        shown = [item for output in outputs for item in (output | output.get("data", {})).items()]
        texts = ["".join(value) for kind, value in shown if kind.startswith(("text", "traceback"))]
        image = any(kind.startswith("image/") for kind, _ in shown) or "<img" in "".join(texts)
        if source.strip():
            where = f"cell {number} ({section[:40]})"
            yield Cell(is_code, source, raw.get("execution_count"), outputs, "\n".join(texts), image, where)


def _contents(notebook: Path, root: Path) -> dict[str, Path]:
    """The one rule on what is handed in: the notebook, the modules, the figures, and three texts."""
    modules = [*root.glob("*.py"), *(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))]
    paths = [*modules, *(root / "figures").rglob("*"), *(root / name for name in TEXTS)]
    files = {path.relative_to(root).as_posix(): path for path in paths if path.is_file()}
    visible = {name: path for name, path in files.items() if not re.search(r"(^|/)\.", name)}
    return dict(sorted({**visible, notebook.name: notebook}.items()))


def heading(text: str) -> str:
    """The last heading of a text cell, or an empty string.

    >>> heading("# Losses\\n## A1.3a Imbalance\\nWhy is it hard?")
    'A1.3a Imbalance'
    """
    lines = re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()
    return next((line.strip("# ") for line in reversed(lines) if re.match("#+ ", line)), "")


def parsed(code: str) -> ast.Module:
    """A cell or a module as Python, IPython's own lines left out; empty if it is no Python."""
    for version in (code, re.sub(r"^(\s*)([%!?].*|[\w.]+\?+)$", r"\1pass", code, flags=re.MULTILINE)):
        with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an odd "\d", which Python says for each parse
            return ast.parse(version)
    return ast.parse("")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


# --- the rules ---


def problems(notebook: Path, root: Path) -> list[str]:
    """All that speaks against handing in the executed `notebook` with the modules in `root`, one line each.

    >>> problems(Path("nothing.ipynb"), Path("."))
    ['nothing.ipynb is missing, or no notebook: save it and try again']
    """
    try:
        report = read_report(notebook, root)
    except HandinError as error:
        return error.problems
    rules = (unfinished_cells, missing_images, missing_files, missing_modules, secrets, wrong_files)
    found = (" ".join(problem.split()) for rule in rules for problem in rule(report))
    return ["".join(sign if sign.isprintable() else "?" for sign in line[:300]) for line in found]


def unfinished_cells(report: Report) -> Iterator[str]:
    """All cells ran top to bottom in a new kernel (numbers 1 … N), without an error or a lost widget."""
    for expected, cell in enumerate((cell for cell in report.cells if cell.is_code), start=1):
        if cell.number != expected:
            state = f"has number {cell.number}, expected {expected}" if cell.number else "was not run"
            yield f"{cell.where} {state}: run all cells from top to bottom in a new kernel"
        for output in cell.outputs:
            if output["output_type"] == "error":
                first = str(output.get("evalue")).partition("\n")[0]
                yield f"{cell.where} ends in an error: {output.get('ename')}: {first[:100]}"
            if any("widget-view" in kind for kind in output.get("data", {})) and not cell.shows_image:
                yield f"{cell.where} shows only a widget, which is lost in a saved notebook: print or plot the result"


def missing_images(report: Report) -> Iterator[str]:
    """There is an image, and one under every cell that calls pyplot or a function of plots.py with axes.

    Calls inside of a function that the cell only defines do not count.
    """
    functions = parsed(_text(report.contents["plots.py"])).body if "plots.py" in report.contents else []
    heads = {node.name: ast.unparse(node).split(":\n")[0] for node in functions if isinstance(node, ast.FunctionDef)}
    names = {name for name, head in heads.items() if re.search(r"\b(ax|axes|Axes|Figure)\b", head)}
    drawing = PYPLOT | names | {f"plots.{name}" for name in names}
    if not any(cell.shows_image for cell in report.cells):
        yield "the notebook shows no image at all: run all cells, then save it"
    for cell in (cell for cell in report.cells if cell.is_code and not cell.shows_image):
        body = [node for node in parsed(cell.source).body if not isinstance(node, ast.FunctionDef)]
        nodes = (node for statement in body for node in ast.walk(statement))
        functions_called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        for name in sorted(drawing & functions_called)[:1]:
            yield f"{cell.where} calls {name} but shows no image: run it again"


def missing_files(report: Report) -> Iterator[str]:
    """Each file that a text points to, by a link, an image, or a name in backticks, is in the zip."""
    for cell in report.cells:
        for code, link, html in POINTER.findall(cell.printed if cell.is_code else cell.source):
            name = (code or re.split("[?#]", unquote(link or html))[0]).removeprefix("./")
            is_file = FILE_NAME.fullmatch(name) and " " not in code  # `python3 run.py` is a command
            if is_file and not name.startswith(NOT_HANDED_IN) and name not in report.contents:
                yield f"{cell.where} points to {name}, which is not in the zip: put it into figures/, or do not name it"


def missing_modules(report: Report) -> Iterator[str]:
    """Each module is Python, and all that notebook and modules import is in the zip or a known package."""
    sources = {name: _text(path) for name, path in report.contents.items() if name.endswith(".py")}
    modules = {name.removesuffix(".py").replace("/", ".") for name in sources}
    requirements = _text(report.contents["requirements.txt"]) if "requirements.txt" in report.contents else ""
    known = PACKAGES | sys.stdlib_module_names | set(re.findall(r"^[\w-]+", requirements, re.MULTILINE)) | set(FOLDERS)
    cells = [(cell.where, cell.source) for cell in report.cells if cell.is_code]
    for where, code in [*cells, *sources.items()]:
        if where in sources and code.strip() and not parsed(code).body:
            yield f"{where} is no Python: correct it, or take it away"
        for name in sorted(_imported(parsed(code)) - modules):
            package = name.partition(".")[0]
            is_ours = package in FOLDERS and name != package
            if is_ours or (package not in known | modules and importlib.util.find_spec(package) is None):
                modules.add(name)  # so that it is missed once
                place = f"{name.replace('.', '/')}.py"
                yield f"{where} imports {name}, but there is no {place} and no such package: add the file"


def _imported(tree: ast.Module) -> set[str]:
    """Names of all modules that are imported; `from training import checkpoint` is training.checkpoint."""
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} if module in FOLDERS else {module}
    return names


def secrets(report: Report) -> Iterator[str]:
    """No token, and no path of this machine, in the notebook or in another text of the zip."""
    folders = {str(report.root), str(Path.home())} - {"/content"}  # the same for everybody in Colab
    own = "|".join(re.escape(folder) for folder in folders if len(folder) > 3)
    machine_path = re.compile(rf"(?:{MACHINE_PATH}|(?<![\w.-])(?:{own})(?![\w-]))[^\s'\"]*")
    texts = [(cell.where, text) for cell in report.cells for text in (cell.source, cell.printed)]
    kinds = {".csv", ".json", ".md", ".py", ".svg", ".txt"}
    texts += [(name, _text(path)) for name, path in report.contents.items() if path.suffix in kinds]
    for where, text in texts:
        if token := TOKEN.search(text):
            yield f"{where} holds a secret ({token[1] or token[2]}…): remove it, and revoke it at its source"
        if place := machine_path.search(text):
            yield f"{where} holds a path of this machine ({place[0][:50]}): write it relative to the project"


def wrong_files(report: Report) -> Iterator[str]:
    """README and requirements are there, no second notebook is, and the size allows an upload."""
    contents = report.contents
    yield from (f"{name} is missing: put it back" for name in TEXTS[:2] if name not in contents)
    others = {*contents, *(path.name for path in report.root.glob("*.ipynb"))} - {report.notebook.name}
    for name in sorted(name for name in others if name.endswith(".ipynb")):
        yield f"{name} is a second notebook: move it to another folder"
    sizes = sorted((path.stat().st_size, name) for name, path in contents.items())
    if (total := sum(size for size, _ in sizes) / 1e6) > MAX_MEGABYTES:
        yield f"{total:.1f} MB are too much (allowed: {MAX_MEGABYTES}); the largest is {sizes[-1][1]}: make it smaller"


def reminders(notebook: Path, root: Path) -> list[str]:
    """What a person has to fill in or to look at; no reason to refuse."""
    cells = read_report(notebook, root).cells
    texts = [cell for cell in cells if not cell.is_code]
    lines = [] if any(NAMES.search(cell.source) for cell in texts) else ["the names of the group are missing"]
    lines += [f"{cell.where}: the needed time is missing" for cell in texts if EMPTY_TIME.search(cell.source)]
    warned = [cell for cell in cells if any(output.get("name") == "stderr" for output in cell.outputs)]
    return lines + [f"{cell.where}: a warning is printed" for cell in warned]


# --- the zip ---


def build_zip(notebook: Path, root: Path, target: Path, failure: Callable[[Path], str] = lambda part: "") -> Path:
    """Write the checked hand-in to `target`, or raise `HandinError` with all `problems` and change nothing.

    The same files always give the same bytes.  What `target` held before is kept as a numbered backup.
    `failure` gets the finished zip before it takes its name, and says what goes wrong with it, or nothing.
    """
    if found := problems(notebook, root):
        raise HandinError(found)
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_archive(part, read_report(notebook, root).contents)
        if fault := failure(part):
            raise HandinError([f"the notebook does not run from the zip alone. {fault}"])
        if target.exists() and target.read_bytes() != part.read_bytes():
            backups = (target.with_name(f"{target.stem}_backup{number}.zip") for number in itertools.count(1))
            os.replace(target, next(path for path in backups if not path.exists()))
        os.replace(part, target)
    except (OSError, zipfile.BadZipFile) as error:
        raise HandinError([f"{target.name} cannot be written: {error}"]) from error
    finally:
        part.unlink(missing_ok=True)
    return target


def _write_archive(part: Path, contents: dict[str, Path]) -> None:
    """Write a zip, bring it down to the disk, and compare its checksums."""
    with part.open("wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, path in contents.items():
                entry = zipfile.ZipInfo(name)  # dated 1980, so that equal files give equal bytes
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
        os.fsync(file.fileno())
    with zipfile.ZipFile(part) as archive:
        if archive.testzip():
            raise OSError("the zip is damaged after writing")


def main(arguments: list[str]) -> int:
    """What `run.py handin` does; 1 if a rule does not hold."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="run.py handin", description=__doc__, formatter_class=layout)
    parser.add_argument("notebook", type=Path, help="the executed notebook")
    notebook = parser.parse_args(arguments).notebook
    try:
        target = build_zip(notebook, ROOT, notebook.with_suffix(".zip"))
    except HandinError as error:
        print(error)
        return 1
    print("\n  - ".join([f"{target} is ready to be handed in.", *reminders(notebook, ROOT)]))
    return 0
