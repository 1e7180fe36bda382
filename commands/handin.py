"""The regulations of the course as checks, and one zip that is only written when all of them hold.

The sheet asks for a single notebook with all outputs and images visible, every file pointed to by name, all
code included, in one `.zip`.  `problems` lists all that is wrong at once, `build_zip` refuses or writes.
Standard library only, so it works where nothing is installed: `python3 run.py handin executed.ipynb`.

Source: "General Regulations" of the exercise sheets.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import itertools
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from commands.notebookfile import Cell, NotebookError, parsed, read_cells

MAX_MEGABYTES = 20  # upload forms refuse large files; the notebook alone should stay below 4
FOLDERS = ("geometry", "networks", "imagesets", "training", "experiments", "commands")  # of modules
NOT_HANDED_IN = ("data/", "handin/", "runs/")  # every run fills these anew, so a text may name files in them
PACKAGES = {"IPython", "__main__", "PIL", "google", "optuna", "skimage", "torchvision"}  # beside requirements.txt
PYPLOT = {f"plt.{name}" for name in ("figure", "imshow", "plot", "show", "subplot_mosaic", "subplots")}
ENDINGS = "csv|gif|h5|hdf5|html|ipynb|jpe?g|json|md|np[yz]|pdf|png|pt|py|svg|tiff?|toml|txt|zip"
FILE_NAME = re.compile(rf"(\.\.?/)*[\w-][\w./ -]*\.({ENDINGS})", re.IGNORECASE)
POINTER = re.compile(r"`([^`\n]+)`|\]\(<?([^)>\s]+)|<(?:img|a)\b[^>]*?\b(?:src|href)=[\"']([^\"']+)")
MACHINE_PATH = r"(?:(?<![\w.~/-])|(?<=file://))/(?:home|Users|root|tmp|var/folders)/\w|\b[A-Za-z]:\\+Users\\"
TOKEN = re.compile(r"\b(gh[pousr]_|hf_|AKIA|github_pat_)[A-Za-z\d]{16}|(BEGIN (?:[A-Z]+ )*PRIVATE KEY)")
EMPTY_TIME = re.compile(r"needed the following time[^:\n]*:[^\d\n]*$", re.MULTILINE)
NAMES = re.compile(r"\b(?:group|names?|partners?)\b[^:\n]*:(?!.*name \d)(?:[^\w\n]|_)*[^\W_\n]", re.IGNORECASE)


def plain(text: str) -> str:
    """One line that any screen can show: a notebook may hold signs that are none, and lines of any length.

    >>> plain("a" + chr(10) + "b" + chr(0xD800))
    'a b?'
    """
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text[:400].split()))[:300]


class HandinError(Exception):
    """The hand-in was refused; `problems` holds every reason, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n  - ".join(["No zip was written:", *problems]))
        self.problems = problems


class Report(NamedTuple):
    """The executed notebook with the folder of its modules."""

    notebook: Path
    root: Path
    cells: list[Cell]

    def pointers(self) -> Iterator[tuple[str, str]]:
        """Place and name of every file that a text points to: a link, an image, or a name in backticks."""
        for cell in self.cells:
            for code, link, html in POINTER.findall(cell.printed if cell.is_code else cell.source):
                name = (code or re.split("[?#]", unquote(link or html))[0]).removeprefix("./")
                is_command = " " in code  # as in `python3 run.py`
                if FILE_NAME.fullmatch(name) and not is_command and not name.startswith(NOT_HANDED_IN):
                    yield cell.where, name

    def figures(self) -> tuple[set[str], set[str]]:
        """The files of figures/ that the notebook names, by themselves or by their sub-folder; and all others."""
        paths = [path for path in (self.root / "figures").rglob("*") if path.is_file() and path.name[0] != "."]
        text = "\n".join(cell.source + cell.printed for cell in self.cells)
        every = {path.relative_to(self.root).as_posix() for path in paths}
        named = {name for name in every if name.rpartition("/")[2] in text}
        named |= {name for name in every if (folder := name.rpartition("/")[0]) != "figures" and folder in text}
        return named, every - named

    def contents(self) -> dict[str, Path]:
        """Name in the zip → file: the notebook, all modules, all that the text points to or names."""
        named, _ = self.figures()
        modules = [path for folder in ("", *FOLDERS) for path in (self.root / folder).glob("*.py")]
        names = {path.relative_to(self.root).as_posix() for path in modules} | named
        names |= {name for _, name in self.pointers() if not name.startswith("../")}
        names |= {"LICENSE", "README.md", "requirements.txt"}
        files = {name: self.root / name for name in names if is_there(self.root / name)}
        return dict(sorted({**files, self.notebook.name: self.notebook}.items()))


def is_there(path: Path) -> bool:
    """Is it a file?  A name that the disk cannot write is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_report(notebook: Path, root: Path) -> Report:
    """Read an executed notebook; raises `HandinError` if there is nothing to read."""
    try:
        cells = read_cells(notebook)
    except NotebookError as error:
        raise HandinError([str(error)]) from None
    if not any(cell.is_code for cell in cells):
        raise HandinError([f"{notebook.name} is empty: it has no code that could show a result"])
    return Report(notebook.resolve(), root.resolve(), cells)


def problems(notebook: Path, root: Path) -> list[str]:
    """All that speaks against handing in the executed `notebook` with the modules in `root`, one line each.

    >>> problems(Path("nothing.ipynb"), Path("."))
    ['nothing.ipynb is missing, or no notebook: save it and try again']
    """
    try:
        report = read_report(notebook, root)
    except HandinError as error:
        return error.problems
    checks = (unfinished_cells, missing_images, missing_files, missing_modules, secrets, wrong_files)
    return [plain(problem) for check in checks for problem in check(report)]


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


def called(function: ast.expr) -> str:
    """The name `plt.plot` of the function in `plt.plot(…)`; of what is no name, the part behind it."""
    names: list[str] = []
    while isinstance(function, ast.Attribute):
        names.append(function.attr)
        function = function.value
    return ".".join([*([function.id] if isinstance(function, ast.Name) else []), *reversed(names)])


def missing_images(report: Report) -> Iterator[str]:
    """There is an image, and one under every cell that calls pyplot or a function of plots.py with axes.

    Calls inside of a function that the cell only defines do not count.
    """
    functions = [node for node in parsed(report.root / "plots.py").body if isinstance(node, ast.FunctionDef)]
    heads = {node.name: ast.unparse(node).split(":\n")[0] for node in functions}
    names = {name for name, head in heads.items() if re.search(r"\b(ax|axes|Axes|Figure)\b", head)}
    drawing = PYPLOT | names | {f"plots.{name}" for name in names}
    if not any(cell.shows_image for cell in report.cells):
        yield "the notebook shows no image at all: run all cells, then save it"
    for cell in (cell for cell in report.cells if cell.is_code and not cell.shows_image):
        body = [node for node in parsed(cell.source).body if not isinstance(node, ast.FunctionDef)]
        nodes = (node for statement in body for node in ast.walk(statement))
        calls = {called(node.func) for node in nodes if isinstance(node, ast.Call)}
        yield from (
            f"{cell.where} calls {name} but shows no image: run it again" for name in sorted(drawing & calls)[:1]
        )


def missing_files(report: Report) -> Iterator[str]:
    """All files that a text points to are there."""
    contents = report.contents()
    for where, name in report.pointers():
        if name not in contents:
            yield f"{where} points to {name}, which is not in this folder: add it, or leave out the backticks"


def missing_modules(report: Report) -> Iterator[str]:
    """Each module that the notebook imports, directly or through others, is there or a known package."""
    listed = report.contents().get("requirements.txt")
    text = listed.read_text(encoding="utf-8") if listed else ""
    known = PACKAGES | sys.stdlib_module_names | set(re.findall(r"^[\w-]+", text, re.MULTILINE))
    waiting: list[tuple[str, str | Path]] = [(cell.where, cell.source) for cell in report.cells if cell.is_code]
    for where, code in waiting:  # grows while it is read
        nodes = list(ast.walk(parsed(code)))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        for name in sorted({name.partition(".")[0] for name in names} - known):
            known.add(name)
            inside = sorted((report.root / name).glob("*.py")) if name in FOLDERS else []
            modules = [path for path in (report.root / f"{name}.py", *inside) if is_there(path)]
            waiting += [(path.relative_to(report.root).as_posix(), path) for path in modules]
            if not modules and importlib.util.find_spec(name) is None:
                yield f"{where} imports {name}, but there is no {name}.py and no such package: add the file"


def secrets(report: Report) -> Iterator[str]:
    """No token, and no path of this machine, in the notebook or in another text of the zip."""
    folders = {str(report.root), str(Path.home())} - {"/content"}  # the same for everybody in Colab
    own = "|".join(re.escape(folder) for folder in folders if len(folder) > 3)
    machine_path = re.compile(rf"(?:{MACHINE_PATH}|(?<![\w.-])(?:{own})(?![\w-]))[^\s'\"]*")
    texts = [(cell.where, text) for cell in report.cells for text in (cell.source, cell.printed)]
    for name, path in report.contents().items():
        if path.suffix in {".csv", ".json", ".md", ".py", ".svg", ".txt"}:
            texts.append((name, path.read_text(encoding="utf-8", errors="replace")))
    for where, text in texts:
        if token := TOKEN.search(text):
            yield f"{where} holds a secret ({token[1] or token[2]}…): remove it, and revoke it at its source"
        if place := machine_path.search(text):
            yield f"{where} holds a path of this machine ({place[0][:50]}): write it relative to the project"


def wrong_files(report: Report) -> Iterator[str]:
    """README and requirements are there, no second notebook is, and the size allows an upload."""
    contents = report.contents()
    yield from (f"{name} is missing: put it back" for name in ("README.md", "requirements.txt") if name not in contents)
    names = {*contents, *(path.name for path in report.root.glob("*.ipynb"))} - {report.notebook.name}
    yield from (
        f"{name} is a second notebook: move it to another folder" for name in sorted(names) if name.endswith(".ipynb")
    )
    sizes = sorted((path.stat().st_size, name) for name, path in contents.items())
    if (total := sum(size for size, _ in sizes) / 1e6) > MAX_MEGABYTES:
        yield f"{total:.1f} MB are too much (allowed: {MAX_MEGABYTES}); the largest is {sizes[-1][1]}: make it smaller"


def reminders(notebook: Path, root: Path) -> list[str]:
    """What a person has to fill in or to look at; no reason to refuse."""
    report = read_report(notebook, root)
    cells = report.cells
    texts = [cell for cell in cells if not cell.is_code]
    lines = [] if any(NAMES.search(cell.source) for cell in texts) else ["the names of the group are missing"]
    lines += [f"{cell.where}: the needed time is missing" for cell in texts if EMPTY_TIME.search(cell.source)]
    lines += [f"{name} is not named in the notebook, and so not in the zip" for name in sorted(report.figures()[1])]
    warned = [cell for cell in cells if any(output.get("name") == "stderr" for output in cell.outputs)]
    return lines + [f"{cell.where}: a warning is printed" for cell in warned]


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
        write_archive(part, read_report(notebook, root).contents())
        if fault := failure(part):
            raise HandinError([f"the notebook does not run from the zip alone. {fault}"])
        if target.exists() and target.read_bytes() != part.read_bytes():
            backups = (target.with_name(f"{target.stem}_backup{number}.zip") for number in itertools.count(1))
            next(path for path in backups if not path.exists()).write_bytes(target.read_bytes())
        os.replace(part, target)
    except (OSError, SyntaxError, ValueError, zipfile.BadZipFile) as error:
        raise HandinError([f"{target.name} cannot be written; nothing was changed: {error}"]) from error
    finally:
        part.unlink(missing_ok=True)
    return target


def write_archive(part: Path, contents: dict[str, Path]) -> None:
    """Write a zip and open it again: sums and names are right, its notebook and modules can be read."""
    with part.open("wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, path in contents.items():
                entry = zipfile.ZipInfo(name)  # dated 1980, so that equal files give equal bytes
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
        os.fsync(file.fileno())
    with zipfile.ZipFile(part) as archive:
        if archive.testzip() or archive.namelist() != list(contents):
            raise OSError("the zip is damaged after writing")
        for name in contents:
            if name.endswith(".py"):
                compile(archive.read(name), name, "exec")
            if name.endswith(".ipynb"):
                json.loads(archive.read(name))


def main(arguments: list[str]) -> int:
    """Check an executed notebook and write its zip beside it."""
    parser = argparse.ArgumentParser(prog="run.py handin", description=main.__doc__)
    parser.add_argument("notebook", type=Path, help="the executed notebook")
    notebook, root = parser.parse_args(arguments).notebook, Path(__file__).parents[1]
    try:
        target = build_zip(notebook, root, notebook.with_suffix(".zip"))
    except HandinError as error:
        print(error)
        return 1
    print("\n  - ".join([f"{target} is ready to be handed in.", *reminders(notebook, root)]))
    return 0
