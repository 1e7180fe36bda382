"""One command: sets everything up, executes the notebook from top to bottom, and makes the checked hand-in.

    python3 run.py                   set up, execute, check, zip: everything ends up in handin/
    python3 run.py --budget quick    the same in a few minutes, to see whether all works
    python3 run.py test              set up, then run all tests
    python3 run.py handin NOTEBOOK   check a notebook that was executed elsewhere (Colab), and write its zip
    python3 run.py reopen ZIP        unpack a hand-in into an empty folder, and run its notebook there

    python3 run.py check FOLDER      look at images and labels of your own before the training
    python3 run.py train FOLDER      a U-Net for them, without the notebook
    python3 run.py predict M FOLDER  masks for the images in a folder, from the model file M

It needs nothing but Python 3.10 or newer.  Missing packages go into an own environment, `.venv` beside this file;
the Python that started it is never changed.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - an old Python must get this far: no newer syntax below
    sys.exit(f"The course needs Python 3.10 or newer; this is {sys.version.split()[0]}. Install a newer one.")

import argparse
import ast
import asyncio
import base64
import collections
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import venv
import warnings
import zipfile
from pathlib import Path
from typing import Any

from commands import handin

ROOT = Path(__file__).resolve().parent
NOTEBOOK = ROOT / "semantic_segmentation.ipynb"
EXTRA_PACKAGES = ["jupyterlab"]  # for a student who opens the notebook; run.py does not need it


COMMANDS = {  # command: its module, whether it runs in the folder of the course, what it does
    "check": ("commands.check", False, "look at a data folder before the training"),
    "train": ("commands.train", False, "train a U-Net on a data set or a folder"),
    "predict": ("commands.predict", False, "masks for a folder of images"),
    "handin": ("commands.handin", False, "check an executed notebook, write its zip"),
    "study": ("experiments.study", True, "repeat the study of losses, a part at a time"),
    "tune": ("experiments.tuning", True, "search for hyper-parameters, then confirm them"),
}
NEEDS_ONLY = {"handin": (), "reopen": ("nbclient", "torch")}  # as in Colab; all other commands need all packages


# --- packages ---


def version_numbers(version: str) -> list[int]:
    """The leading numbers of a version, without zeros at the end, so that two can be compared.

    >>> version_numbers("2.10.0+cpu"), version_numbers("3.0rc1"), version_numbers("")
    ([2, 10], [3], [])
    """
    leading = re.split(r"[^\d.]", version)[0]
    return [int(number) for number in re.sub(r"(\.0)+$", "", leading).split(".") if number]


def missing_packages(requirements: Path = ROOT / "requirements.txt") -> list[str]:
    """The lines `name>=1.2` of a file that this interpreter does not fulfil; it imports none of them."""
    missing = []
    for name, bound in re.findall(r"^([\w.-]+)>=([\d.]+)", requirements.read_text(encoding="utf-8"), re.MULTILINE):
        version = ""
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name) or ""
        if version_numbers(version) < version_numbers(bound):
            missing.append(f"{name}>={bound}")
    return missing


def ensure_environment(arguments: list[str], root: Path = ROOT) -> None:
    """Return if this interpreter has all that is required; else go on in the environment `.venv`."""
    folder, requirements = root / ".venv", root / "requirements.txt"
    missing = missing_packages(requirements)
    if missing and Path(sys.prefix).resolve() == folder.resolve():
        sys.exit(f".venv lacks {', '.join(missing)}: delete this folder, then type: python3 run.py")
    if missing and "LOCAL_RANK" in os.environ:  # each of its processes would make the environment
        sys.exit(f"This torchrun lacks {', '.join(missing)}. Type python3 run.py once, then use .venv/bin/torchrun.")
    if missing:
        continue_as([str(make_environment(folder, requirements)), str(root / "run.py"), *arguments])


def make_environment(folder: Path, requirements: Path) -> Path:
    """Make sure that a virtual environment with all requirements is there; return its interpreter.

    Once all is installed, a note inside holds the hash of the requirements; with that note nothing is done.
    What was cut off is made anew, as pip would take half-written packages for complete.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    note, complete = folder / "made-by-run.txt", hashlib.sha256(requirements.read_bytes()).hexdigest()
    state = note.read_text() if note.exists() else ""
    if state == complete and python.exists():
        return python
    if folder.exists() and any(folder.iterdir()) and not note.exists():
        sys.exit(f"The folder {folder} was not made by run.py: rename it, or install requirements.txt there.")
    if importlib.util.find_spec("ensurepip") is None:  # Debian and Ubuntu leave it out
        package = f"python3.{sys.version_info[1]}-venv"
        sys.exit(f"This Python cannot make an environment: sudo apt install {package}, then try again.")
    if state in ("", "unfinished") or not python.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        note.write_text("unfinished")
        venv.create(folder, symlinks=os.name != "nt", with_pip=True)
    note.write_text("unfinished")
    install(python, ["-r", str(requirements), *EXTRA_PACKAGES], folder / "pip.log")
    note.write_text(complete)
    return python


def install(python: Path, packages: list[str], log: Path) -> None:
    """Let pip install the packages; what it says goes to `log`, the screen shows one line with the time."""
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *packages]
    started, pause = time.monotonic(), 1 if sys.stdout.isatty() else 60
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            print(f"\rInstalling packages, once (gigabytes): {time.monotonic() - started:.0f} s ", end="", flush=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(pause)
    print()
    if process.returncode:
        last = "".join(log.read_text(errors="replace").strip().splitlines()[-1:])
        sys.exit(f"It failed: {last}\nIt needs a network and 8 GB of disk; then try again. All that pip said: {log}")


def continue_as(command: list[str]) -> None:
    """Let another command take the place of this one."""
    sys.stdout.flush()
    if os.name == "posix":
        os.execv(command[0], command)
    sys.exit(subprocess.call(command))


# --- executing a notebook ---


def section(cell: Any, before: str) -> str:
    """The heading that holds from this cell on."""
    return (cell.cell_type == "markdown" and handin.heading(cell.source)) or before


def execute(path: Path, settings: dict[str, str]) -> tuple[Any, str]:
    """Run all cells in a new kernel of this interpreter; return the notebook, and what went wrong or nothing.

    The kernel's folder is that of the notebook, whose file is not changed.  Each cell that has run is one line:
    `[12/87]   4.1 s  A1.1a U-Net as an nn.Module`.
    """
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal

    warnings.simplefilter("ignore")  # Jupyter's own; those of a cell stand in the notebook
    logging.getLogger("traitlets").disabled = True
    notebook = nbformat.read(path, as_version=4)
    headings, order = [""], []
    for index, cell in enumerate(notebook.cells):
        headings.append(section(cell, headings[-1]))
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
            order += [index] if cell.source.strip() else []
    here, started = "", 0.0

    def begin(cell: Any, cell_index: int) -> None:
        nonlocal here, started
        here, started = headings[cell_index + 1], time.monotonic()
        if sys.stdout.isatty():  # the line is written over when the cell has ended
            print(f"[{order.index(cell_index) + 1}/{len(order)}]     … s  {here[:60]}", end="\r", flush=True)

    def end(cell: Any, cell_index: int, execute_reply: Any) -> None:
        seconds = time.monotonic() - started
        print(f"[{order.index(cell_index) + 1}/{len(order)}] {seconds:5.1f} s  {here}", flush=True)

    client: Any = NotebookClient(
        notebook, kernel_name="python3", startup_timeout=300,
        record_timing=False, store_widget_state=False, coalesce_streams=True,
        on_notebook_start=lambda notebook: stop_on_signals(client), on_cell_execute=begin, on_cell_executed=end,
    )  # fmt: skip
    # Without kernel folders "python3" means this interpreter, and not what the user's home calls so.
    client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, open(os.devnull, "w") as nowhere:
        environment = {**os.environ, **settings, "IPYTHONDIR": scratch, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        environment.pop("MPLBACKEND", None)  # it would keep the figures out of the notebook
        try:
            client.execute(cwd=str(path.parent), env=environment, stdout=nowhere, stderr=nowhere)
        except (CellControlSignal, KeyboardInterrupt) as error:
            lines = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines()[-12:]
            return notebook, "\n".join([f"Stopped in {here}:", *lines])
        except RuntimeError as error:
            reason = "Most often the memory was full: close other programs, or try --budget quick."
            return notebook, f"Stopped in {here}: {error}.\n{reason}"
    return notebook, ""


def stop_on_signals(client: Any) -> None:
    """Ctrl-C interrupts the cell that runs, so that all before it can be saved."""
    with contextlib.suppress(NotImplementedError):  # Windows
        for number in (signal.SIGINT, signal.SIGTERM):
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(number, lambda: asyncio.ensure_future(client.km.interrupt_kernel()))


def failure_of_zip(archive: Path) -> str:
    """Unpack a hand-in into an empty folder and run its notebook there, as who gets it would; what went wrong.

    The budget is quick and the data are the built-in ones: nothing that lies on this machine can help.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(scratch)
        notebooks = list(Path(scratch).glob("*.ipynb"))
        if len(notebooks) != 1:
            return f"It holds {len(notebooks)} notebooks; expected one."
        print("The zip is opened in an empty folder, and its notebook runs once more (budget quick):", flush=True)
        return execute(notebooks[0], {"SEGMENTATION_BUDGET": "quick", "SEGMENTATION_DATA": "built-in"})[1]


def save_figures(cells: list[Any], folder: Path) -> int:
    """Write all PNG images of the outputs, named after their section; return how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*-[0-9]*.png"):
        old.unlink()
    counts, heading = collections.Counter[str](), "figure"
    for cell in cells:
        heading = section(cell, heading)
        name = re.sub(r"[^\w.]+", "-", heading)[:50].strip("-.")
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            if "image/png" in data:
                counts[name] += 1
                (folder / f"{name}-{counts[name]}.png").write_bytes(base64.b64decode(data["image/png"]))
    return sum(counts.values())


# --- the commands ---


def make_hand_in(options: argparse.Namespace) -> int:
    """Execute the notebook and write the executed copy, its figures and the checked zip."""
    import nbformat

    if options.output.resolve() == ROOT:
        sys.exit("--output is the folder of the notebook itself, which would be overwritten: choose another.")
    options.output.mkdir(parents=True, exist_ok=True)  # at once: a fault here would waste the whole run
    started = time.monotonic()
    data, folder = options.data, Path(options.data).resolve()
    if Path(data).is_dir():  # relative, so that no path of this machine lands in the notebook
        data = os.path.relpath(folder, ROOT) if folder.anchor == ROOT.anchor else str(folder)
    print(f"Executing {NOTEBOOK.name}: budget {options.budget}, data {data}", flush=True)
    notebook, failure = execute(NOTEBOOK, {"SEGMENTATION_BUDGET": options.budget, "SEGMENTATION_DATA": data})
    failed = options.output / f"{NOTEBOOK.stem}_failed.ipynb"
    failed.unlink(missing_ok=True)
    executed = failed if failure else options.output / NOTEBOOK.name
    nbformat.write(notebook, executed)
    print(f"Executed notebook  {executed}")
    if failure:
        print(failure)
        return 1
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"Time               {minutes} min {seconds} s")
    figures = options.output / "figures"
    print(f"Figures            {figures} ({save_figures(notebook.cells, figures)} images)")
    try:
        again = {} if options.budget == "quick" else {"failure": failure_of_zip}  # it would take as long again
        target = handin.build_zip(executed, ROOT, options.output / f"{NOTEBOOK.stem}.zip", **again)
    except handin.HandinError as error:
        print(error)
        return 1
    print(f"Checked hand-in    {target} ({target.stat().st_size / 1e6:.1f} MB)")
    print("".join(f"Still to do        {line}\n" for line in handin.reminders(executed, ROOT)), end="")
    return 0


def reopen(options: argparse.Namespace) -> int:
    """Does a hand-in run from its zip alone?"""
    try:
        failure = failure_of_zip(Path(options.zip))
    except (OSError, zipfile.BadZipFile) as error:
        failure = f"{options.zip} cannot be opened: {error}."
    print(failure or f"{options.zip} runs from beginning to end.")
    return int(bool(failure))


def run_tests(options: argparse.Namespace) -> None:
    """All tests on up to four cores, or with --quick the fast ones; what else follows is for pytest."""
    quick = ["-m", "not slow"] if "--quick" in options.rest else []
    rest = [argument for argument in options.rest if argument != "--quick"]
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread in each of the processes
    workers = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    continue_as([sys.executable, "-m", "pytest", *workers, *quick, *rest])


def run_module(options: argparse.Namespace) -> int:
    """`main` of the command's module gets all that follows on the command line."""
    module, from_root, _ = COMMANDS[options.command]
    if from_root:
        os.chdir(ROOT)
    try:
        return importlib.import_module(module).main(options.rest) or 0
    except ValueError as error:
        if type(error).__name__ != "InputError":  # which is in checks.py, and that needs torch
            raise
        sys.exit(str(error))  # its text says all; a traceback would hide it


def show_help(options: argparse.Namespace) -> int:
    """What a command does, read from its file: to list its options, the packages would have to be installed."""
    module = COMMANDS[options.command][0] if options.command in COMMANDS else "run"
    print(ast.get_docstring(ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))))
    print(f"\nFor a list of the options: python3 run.py --budget quick, then python3 run.py {options.command} -h")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; `action` is the function that does it."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--budget", choices=["quick", "standard", "full"], default="standard", help="default: standard")
    parser.add_argument("--data", default="built-in", metavar="NAME|FOLDER", help="default: built-in")
    parser.add_argument("--output", default=ROOT / "handin", type=Path, metavar="FOLDER", help="default: handin")
    parser.set_defaults(action=make_hand_in)
    commands = parser.add_subparsers(title="commands", metavar="", dest="command")
    test = commands.add_parser("test", add_help=False, help="all tests, or the --quick ones; the rest is for pytest")
    test.set_defaults(action=run_tests)
    again = commands.add_parser("reopen", help="run the notebook of a hand-in in an empty folder")
    again.add_argument("zip", metavar="ZIP", help="the hand-in")
    again.set_defaults(action=reopen)
    for name, (_, _, text) in COMMANDS.items():
        commands.add_parser(name, add_help=False, help=f"{text} (-h: how)").set_defaults(action=run_module)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command in (None, "reopen"):
        parser.error(f"unknown: {' '.join(rest)}")
    return argparse.Namespace(**vars(options), rest=rest)


def main(arguments: list[str]) -> int:
    """Do what the command line asks for."""
    if hasattr(sys.stdout, "reconfigure"):  # a heading may hold what this terminal cannot show
        sys.stdout.reconfigure(errors="replace")
    options = parse(arguments)
    needed = NEEDS_ONLY.get(options.command)
    if needed is None or not all(map(importlib.util.find_spec, needed)):
        if {"-h", "--help"} & {*options.rest} and missing_packages():
            return show_help(options)
        ensure_environment(arguments)
    return options.action(options) or 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
