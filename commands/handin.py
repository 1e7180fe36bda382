"""The regulations of the course as checks, and one zip that is only written when all of them hold.

    python3 run.py handin semantic_segmentation.ipynb     # an executed notebook; the zip is written beside it
    python3 run.py pack                                   # course.zip: what is uploaded to Colab or Kaggle

The sheets ask for one notebook with all outputs and images visible, all files it names, and all code in one `.zip`.
"""

import ast
import contextlib
import importlib.util
import json
import os
import re
import sys
import zipfile
from argparse import ArgumentParser
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "semantic_segmentation.ipynb"
FOLDERS = ("geometry", "networks", "imagesets", "training", "experiments", "commands")
TEXTS = ("README.md", "requirements.txt", "LICENSE", "data/README.md", "commands/page.html.j2")
MAX_MEGABYTES = 20  # upload forms refuse large files; the notebook alone should stay below 4
NOT_HANDED_IN = ("data/", "handin/", "runs/", "course.zip")  # made anew by commands: a text may name files there
PACKAGES = {"IPython", "PIL", "__main__", "google", "jupyter_client", "skimage", "torchvision"}  # and those required
ENDINGS = "csv|gif|h5|hdf5|html|ipynb|jpe?g|json|md|np[yz]|pdf|png|pt|py|svg|tiff?|toml|txt|zip"
FILE_NAME = re.compile(rf"(\.\.?/)*[\w-][\w./ -]*\.({ENDINGS})", re.IGNORECASE)
POINTER = re.compile(r"`([^`\n]+)`|\]\(<?([^)>\s]+)|<(?:img|a)\b[^>]*?\b(?:src|href)=[\"']([^\"']+)")
MACHINE_PATH = re.compile(r"((?<![\w.~/-])|(?<=file://))/(home|Users|root|tmp)/\w[^\s'\"]*|\b[A-Z]:\\+Users\\\S*", re.I)
DRAWS = re.compile(r"^(plots\.show|plt\.(show|plot|imshow))\(", re.MULTILINE)
EMPTY_TIME = re.compile(r"needed the following time[^:\n]*:[^\d\n]*$", re.MULTILINE)
NAMES = re.compile(r"\b(?:group|names?|partners?)\b[^:\n]*:(?!.*name \d)(?:[^\w\n]|_)*[^\W_\n]", re.IGNORECASE)
FORMULA = re.compile(r"(```.*?```|`[^`\n]+`)|\$\$(.+?)\$\$|(?<!\\)\$(?=\S)([^$]+?)(?<=\S)\$(?!\d)", re.DOTALL)


# One cell that is not empty: its text, its number in the execution, what it shows and prints, and its name in messages.
Cell = namedtuple("Cell", "is_code source number outputs printed shows_image where")
# The folder of the modules, the cells of the executed notebook, and the content of the zip: name → file.
Report = namedtuple("Report", "root cells contents")


def read_report(notebook: Path, root: Path, figures: Path | None = None) -> Report:
    """The cells of a notebook, and what goes into its zip, with the `figures` of this run; or `ValueError`."""
    try:
        tree = json.loads(notebook.read_text(encoding="utf-8"))
        cells = list(_read_cells(tree["cells"])) if tree["nbformat"] == 4 else []
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{notebook.name} is missing, or no notebook: save it and try again") from error
    if not any(cell.is_code for cell in cells):
        raise ValueError(f"{notebook.name} is empty: it has no code that could show a result")
    shown, modules = figures or root / "figures", [path for name in FOLDERS for path in (root / name).rglob("*.py")]
    paths = [*root.glob("*.py"), *modules, *(root / name for name in TEXTS)]
    files = {path.relative_to(root).as_posix(): path for path in paths}
    files |= {f"figures/{path.relative_to(shown).as_posix()}": path for path in shown.rglob("*")}
    files = {name: path for name, path in files.items() if path.is_file() and not re.search(r"(^|/)\.", name)}
    return Report(root, cells, dict(sorted({**files, notebook.name: notebook}.items())))


def _read_cells(raw_cells: list[dict[str, Any]]) -> Iterator[Cell]:
    section = "before the first heading"
    for number, raw in enumerate(raw_cells, start=1):
        is_code, source, outputs = raw["cell_type"] == "code", "".join(raw["source"]), raw.get("outputs", [])
        if not source.strip() or is_code and "handin.from_notebook()" in source:  # still running while it is read
            continue
        section = section if is_code else heading(source) or section
        shown = [item for output in outputs for item in (output | output.get("data", {})).items()]
        printed = "\n".join("".join(value) for kind, value in shown if kind.startswith(("text", "traceback")))
        image = "<img" in printed or any(kind.startswith("image/") for kind, _ in shown)
        where = f"cell {number} ({section[:40]})"
        yield Cell(is_code, source, raw.get("execution_count"), outputs, printed, image, where)


def heading(text: str) -> str:
    """The last heading of a text cell, or an empty string."""
    lines = re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()
    return next((line.strip("# ") for line in reversed(lines) if re.match("#+ ", line)), "")


def parsed(code: str) -> ast.Module:
    """A cell or a module as Python, IPython's own lines left out; empty if it is no Python."""
    for version in (code, re.sub(r"^(\s*)([%!?].*|[\w.]+\?+)$", r"\1pass", code, flags=re.MULTILINE)):
        with contextlib.suppress(SyntaxError, ValueError):
            return ast.parse(version)
    return ast.parse("")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def problems(notebook: Path, root: Path, figures: Path | None = None) -> list[str]:
    """All that speaks against handing in the executed `notebook` with the modules in `root`, one line each."""
    try:
        report = read_report(notebook, root, figures)
    except ValueError as error:
        return [str(error)]
    rules = (unfinished_cells, missing_files, missing_modules, machine_paths, wrong_files)
    return [" ".join(problem.split())[:300] for rule in rules for problem in rule(report)]


def unfinished_cells(report: Report) -> Iterator[str]:
    """All cells ran top to bottom in a new kernel (numbers 1 … N), without an error, and images are visible."""
    for expected, cell in enumerate((cell for cell in report.cells if cell.is_code), start=1):
        if cell.number != expected:
            state = f"has number {cell.number}, expected {expected}" if cell.number else "was not run"
            yield f"{cell.where} {state}: run all cells from top to bottom in a new kernel"
        for output in cell.outputs:
            if output["output_type"] == "error":
                yield f"{cell.where} ends in an error: {output.get('ename')}: {output.get('evalue')}"
        if DRAWS.search(cell.source) and not cell.shows_image:
            yield f"{cell.where} draws but shows no image: run it again"
        if not cell.shows_image and any("widget-view" in str(output.get("data", {}).keys()) for output in cell.outputs):
            yield f"{cell.where} shows only a widget, which is lost in a saved notebook: print or plot the result"
    if not any(cell.shows_image for cell in report.cells):
        yield "the notebook shows no image at all: run all cells, then save it"


def missing_files(report: Report) -> Iterator[str]:
    """Each file that a text points to, by a link, an image, or a name in backticks, is in the zip."""
    for cell in report.cells:
        for code, link, html in POINTER.findall(cell.printed if cell.is_code else cell.source):
            name = (code or re.split("[?#]", unquote(link or html))[0]).removeprefix("./")
            is_file = FILE_NAME.fullmatch(name) and " " not in code  # `python3 run.py` is a command
            if is_file and not name.startswith(NOT_HANDED_IN) and name not in report.contents:
                yield f"{cell.where} points to {name}, which is not in the zip: put it into figures/, or do not name it"


def missing_modules(report: Report) -> Iterator[str]:
    """All that notebook and modules import is in the zip or a known package."""
    sources = {name: _text(path) for name, path in report.contents.items() if name.endswith(".py")}
    known = PACKAGES | sys.stdlib_module_names | {re.split("[/.]", name)[0] for name in sources}
    known |= set(re.findall(r"^[\w-]+", _text(report.root / "requirements.txt"), re.MULTILINE))
    for where, code in [*((cell.where, cell.source) for cell in report.cells if cell.is_code), *sources.items()]:
        nodes = list(ast.walk(parsed(code)))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        for name in sorted({name.partition(".")[0] for name in imported} - known):
            if importlib.util.find_spec(name) is None:
                known.add(name)  # so that it is missed once
                yield f"{where} imports {name}, but there is no {name}.py and no such package: add the file"


def machine_paths(report: Report) -> Iterator[str]:
    """No path of this machine in the notebook or in another text of the zip."""
    texts = [(cell.where, text) for cell in report.cells for text in (cell.source, cell.printed)]
    texts += [(name, _text(path)) for name, path in report.contents.items() if path.suffix in (".csv", ".md", ".py")]
    own = re.compile(rf"(?<![\w.-]){re.escape(str(report.root.resolve()))}(?![\w-])[^\s'\"]*")  # it may lie anywhere
    for where, text in texts:
        if place := MACHINE_PATH.search(text) or own.search(text):
            yield f"{where} holds a path of this machine ({place[0][:50]}): write it relative to the project"


def wrong_files(report: Report) -> Iterator[str]:
    """README and requirements are there, and the size allows an upload."""
    yield from (f"{name} is missing: put it back" for name in TEXTS[:2] if name not in report.contents)
    megabytes = sum(path.stat().st_size for path in report.contents.values()) / 1e6
    if megabytes > MAX_MEGABYTES:
        yield f"{megabytes:.1f} MB are too much (allowed: {MAX_MEGABYTES}): make the figures smaller"


def reminders(notebook: Path, root: Path) -> list[str]:
    """What a person has to fill in or to look at; no reason to refuse."""
    texts = [cell for cell in read_report(notebook, root).cells if not cell.is_code]
    lines = [] if texts and NAMES.search(texts[0].source) else ["the names of the group are missing"]
    return lines + [f"{cell.where}: the needed time is missing" for cell in texts if EMPTY_TIME.search(cell.source)]


def hand_in(notebook: Path, root: Path, trial: Callable[[Path], str] | None = None, figures: Path | None = None) -> int:
    """Write the zip beside the executed notebook; or say all problems, what a `trial` of it finds too, and return 1."""
    target, part, found = notebook.with_suffix(".zip"), notebook.with_suffix(".part"), problems(notebook, root, figures)
    if not found:
        _write_zip(part, read_report(notebook, root, figures))
        try:
            with zipfile.ZipFile(part, "a", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(f"{notebook.stem}.html", page(notebook))
        except Exception as error:  # a missing package, or nbconvert and mistune that do not fit together
            print(f"The zip gets no HTML page, and is complete without: {error!r}")
        if trial and (fault := trial(part)):
            found = [f"the notebook does not run from the zip alone. {fault}"]
    if found:
        part.unlink(missing_ok=True)
        print("\n  - ".join(["No zip was written:", *found]))
        return 1
    part.replace(target)
    if lines := reminders(notebook, root):
        print("\n  - ".join(["Before you hand it in, look at this:", *lines]))
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB) is ready to be handed in.")
    return 0


def _write_zip(target: Path, report: Report) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for name, path in report.contents.items():
            archive.write(path, name)


def page(notebook: Path) -> str:
    """The notebook as one HTML page that needs no network: contents, alt texts, folded code, formulas as MathML."""
    import nbformat
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter

    def drawn(text: str) -> str:  # code stays as it is
        return FORMULA.sub(lambda m: m[1] or convert(m[2] or m[3], display="block" if m[2] else "inline"), text)

    tree = nbformat.read(notebook, as_version=4)
    tree.metadata["title"] = heading(tree.cells[0].source)
    for cell in tree.cells:
        if cell.cell_type == "markdown":
            cell.source = drawn(cell.source)
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            data.update({kind: drawn(text) for kind, text in data.items() if kind == "text/markdown"})
    exporter = HTMLExporter(template_file=str(ROOT / "commands" / "page.html.j2"))
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    text, _ = exporter.from_notebook_node(tree)
    found = re.findall(r'<h([12]) id="([^"]*)">(.*?)<a class="anchor-link"', text)
    contents = "".join(f'<p class="level{level}"><a href="#{name}">{words}</a></p>' for level, name, words in found)
    return text.replace("<main>", f"<main><nav><details><summary>Contents</summary>{contents}</details></nav>", 1)


def pack(target: Path, root: Path) -> int:
    """Write the whole course as one zip, which the notebook's first cell finds and unpacks in Colab and Kaggle."""
    _write_zip(target, read_report(root / NOTEBOOK, root))
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB): upload it beside {NOTEBOOK}, or give it to students.")
    return 0


def from_notebook() -> None:
    """What the last cell does: find the notebook as it was saved (Colab: save it), check it, zip it, offer the zip."""
    shell, path = sys.modules["__main__"], ROOT / "handin" / NOTEBOOK
    if "SEGMENTATION_BUDGET" in os.environ:
        return print("run.py checks this notebook and writes its zip.")
    if in_colab := "google.colab" in sys.modules:
        from google.colab import _message, files

        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(_message.blocking_request("get_ipynb", timeout_sec=120)["ipynb"]), encoding="utf-8")
    else:  # VS Code and Jupyter tell the kernel where its notebook lies
        told = getattr(shell, "__vsc_ipynb_file__", None) or os.environ.get("JPY_SESSION_NAME")
        path = Path(told or ROOT / NOTEBOOK)
        counts = [cell.number or 0 for cell in read_report(path, ROOT).cells if cell.is_code]
        if max(counts) < len(getattr(shell, "In", [])) - 2:
            return print("The file is older than what you see: save the notebook (Ctrl-S), then run this cell again.")
    if hand_in(path, ROOT) == 0 and in_colab:
        files.download(str(path.with_suffix(".zip")))


def main(arguments: list[str]) -> int:
    """What `run.py handin` does; 1 if a rule does not hold."""
    parser = ArgumentParser("run.py handin", description=__doc__.partition("\n")[0])
    parser.add_argument("notebook", type=Path, help="the executed notebook")
    return hand_in(parser.parse_args(arguments).notebook, ROOT)
