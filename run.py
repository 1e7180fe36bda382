"""One command: sets everything up, executes the notebook from top to bottom, and makes the checked hand-in.

    python3 run.py                   set up, execute, check, zip: everything ends up in handin/
    python3 run.py --budget quick    the same in a few minutes, to see whether all works
    python3 run.py test              set up, then run all tests (--quick: the fast ones)

Other commands follow below; `python3 run.py COMMAND -h` explains one.  Nothing but Python 3.10 or newer is needed:
missing packages go into an own environment, `.venv` beside this file; the Python that started it is never changed.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - an old Python must get this far: no newer syntax below
    sys.exit(f"The course needs Python 3.10 or newer; this is {sys.version.split()[0]}. Install a newer one.")

import argparse
import asyncio
import contextlib
import difflib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from commands import handin

ROOT = Path(__file__).resolve().parent
NOTEBOOK = ROOT / handin.NOTEBOOK
VERSION = "0.6.0"
COMMANDS = {  # command: its module, whether it runs in the folder of the course, what it does
    "check": ("commands.check", False, "look at a data folder before the training"),
    "train": ("commands.train", False, "train a U-Net on a data set or a folder"),
    "predict": ("commands.predict", False, "masks for a folder of images"),
    "handin": ("commands.handin", False, "check a notebook that was executed elsewhere, write its zip"),
    "study": ("experiments.study", True, "repeat the study of losses, a part at a time"),
    "compare": ("experiments.comparisons", True, "networks and recipes side by side, a set at a time"),
    "tune": ("experiments.tuning", True, "search for hyper-parameters, then confirm them"),
}
PAGE = ("nbconvert", "latex2mathml") if (ROOT / ".venv").exists() else ()  # no reason to set up all packages
NEEDS_ONLY = {"handin": PAGE, "pack": (), "publish": (), "reopen": ("nbclient", "torch")}  # others need all packages
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch without the libraries of a GPU


def missing_packages(requirements: Path = ROOT / "requirements.txt") -> list[str]:
    """The lines `name>=1.2` of a file that this interpreter does not fulfil; it imports none of them."""
    missing = []
    for name, bound in re.findall(r"^([\w.-]+)>=([\d.]+)", requirements.read_text(encoding="utf-8"), re.MULTILINE):
        found = "0"
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.version(name)
        have, need = ([int(number) for number in re.findall(r"\d+", version)] for version in (found, bound))
        missing += [f"{name}>={bound}"] if have < need else []
    return missing


def ensure_environment(arguments: list[str], root: Path = ROOT) -> None:
    """Return if this interpreter has all that is required; else go on in the environment `.venv`."""
    folder, missing = root / ".venv", missing_packages(root / "requirements.txt")
    if not missing:
        return
    if Path(sys.prefix).resolve() == folder.resolve() or "LOCAL_RANK" in os.environ:  # one process of torchrun
        sys.exit(f"{sys.prefix} lacks {', '.join(missing)}. Delete .venv, type python3 run.py, use .venv/bin/torchrun.")
    python = make_environment(folder, root / "requirements.txt", "--cpu" in arguments)
    continue_as([str(python), str(root / "run.py"), *arguments])


def make_environment(folder: Path, requirements: Path, cpu: bool = False) -> Path:
    """The interpreter of an environment with all requirements; a note holds them, and what was cut off is made anew."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    note, complete = folder / "made-by-run.txt", requirements.read_text(encoding="utf-8")
    state = note.read_text(encoding="utf-8") if note.exists() else ""
    if state == complete and python.exists():
        return python
    if folder.exists() and not state:
        sys.exit(f"The folder {folder} was not made by run.py, or cut off while it was: delete or rename it.")
    if importlib.util.find_spec("ensurepip") is None:  # Debian and Ubuntu leave it out
        sys.exit("This Python cannot make an environment: sudo apt install python3-venv, then try again.")
    if state in ("", "unfinished") or not python.exists():
        venv.create(folder, clear=True, symlinks=os.name != "nt", with_pip=True)
    note.write_text("unfinished")
    size, log = ("1.5 GB" if cpu else "6 GB, or 1.5 GB with --cpu"), folder / "install.log"
    print(f"Setting up {folder}, once: {size}, a few minutes. Details: {log}", flush=True)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--retries", "2"]
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        if cpu and subprocess.call([*pip, "torch>=2.6", "--index-url", CPU_INDEX], stdout=output, stderr=output):
            print("PyTorch for the CPU alone cannot be reached; the usual one follows.", flush=True)
        if subprocess.call([*pip, "jupyterlab", "-r", str(requirements)], stdout=output, stderr=output):
            sys.exit(f"pip failed, see {log}. It needs a network and {size} of disk; then try again.")
    print(f"Set up in {(time.monotonic() - began) / 60:.1f} minutes.", flush=True)
    note.write_text(complete, encoding="utf-8")
    return python


def continue_as(command: list[str]) -> None:
    """Let another command take the place of this one."""
    if os.name == "posix":
        os.execv(command[0], command)
    sys.exit(subprocess.call(command))


def execute(path: Path, settings: dict[str, str]) -> tuple[Any, str]:
    """Run all cells in a new kernel, in the notebook's folder; return the notebook, and what went wrong or nothing."""
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal

    notebook, budget = nbformat.read(path, as_version=4), settings.get("SEGMENTATION_BUDGET")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    is_like_last = notebook.metadata.get("budget") == budget
    notebook.metadata["budget"] = budget
    seconds = [is_like_last * cell.metadata.get("seconds", 0.0) for cell in notebook.cells]  # maybe of a faster machine
    here, started, began = "", 0.0, time.monotonic()

    def start(cell: Any, cell_index: int) -> None:
        nonlocal here, started
        here, started = (cell.cell_type == "markdown" and handin.heading(cell.source)) or here, time.monotonic()
        if os.name == "posix":  # Ctrl-C stops the cell, so that all before it can be saved
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGINT, lambda: asyncio.ensure_future(client.km.interrupt_kernel()))

    def end(cell: Any, cell_index: int, execute_reply: Any) -> None:
        cell.metadata["seconds"] = round(time.monotonic() - started, 1)
        done, left = sum(seconds[: cell_index + 1]), sum(seconds[cell_index + 1 :])
        minutes = f"{(time.monotonic() - began) * left / done / 60:3.0f} min left" if done else ""
        print(f"[{cell_index + 1}/{len(notebook.cells)}] {minutes}  {here}", flush=True)

    options: dict[str, Any] = {"startup_timeout": 300, "record_timing": False, "coalesce_streams": True}
    client: Any = NotebookClient(notebook, kernel_name="python3", on_cell_start=start, on_cell_executed=end, **options)
    # Without kernel folders "python3" means this interpreter, and not what the user's home calls so.
    client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    environment = {**os.environ, **settings, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    try:
        client.execute(cwd=str(path.parent), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (CellControlSignal, KeyboardInterrupt) as error:
        lines = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines()[-12:]
        return notebook, "\n".join([f"Stopped in {here}:", *lines])
    except RuntimeError as error:
        return notebook, f"Stopped in {here}: {error}.\nMost often the memory was full: close other programs."
    return notebook, ""


def failure_of_zip(archive: Path) -> str:
    """Run the notebook of a zip in an empty folder, quick and with built-in data, as who gets it; what went wrong."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        shutil.unpack_archive(archive, scratch, "zip")
        (notebook,) = Path(scratch).glob("*.ipynb")
        print("The zip is opened in an empty folder, and its notebook runs once more (budget quick):", flush=True)
        return execute(notebook, {"SEGMENTATION_BUDGET": "quick", "SEGMENTATION_DATA": "built-in"})[1]


def make_hand_in(options: argparse.Namespace) -> int:
    """Execute the notebook and write the executed copy and the checked zip."""
    import nbformat

    from commands import check

    if options.output.resolve() == ROOT:
        sys.exit("--output is the folder of the notebook itself, which would be overwritten: choose another.")
    options.output.mkdir(parents=True, exist_ok=True)  # at once: a fault here would waste the whole run
    # A folder is named relative to the kernel's, so that no path of this machine lands in the notebook.
    data = os.path.relpath(options.data, ROOT) if Path(options.data).is_dir() else options.data
    settings = {"SEGMENTATION_BUDGET": options.budget, "SEGMENTATION_DATA": data}
    settings |= {"SEGMENTATION_MAP": options.map} if options.map else {}
    if options.data not in ("auto", "built-in", *check.NAMES):  # problems are told here, not in a notebook that failed
        arguments = [options.data, "--picture", str(options.output / "data_check.png")]
        if check.main(arguments + (["--map", options.map] if options.map else [])):
            return 1
    print(f"Executing {NOTEBOOK.name}: budget {options.budget}, data {data}", flush=True)
    figures = ROOT / "figures" if options.commit else options.output.resolve() / "figures"  # git knows the former
    if not options.commit:
        shutil.copytree(ROOT / "figures", figures, dirs_exist_ok=True)
    notebook, failure = execute(NOTEBOOK, settings | {"SEGMENTATION_FIGURES": os.path.relpath(figures, ROOT)})
    executed = options.output / f"{NOTEBOOK.stem}{'_failed' if failure else ''}.ipynb"
    nbformat.write(notebook, executed)
    print(f"Executed notebook  {executed}\n{failure}")
    if failure:
        return 1
    if options.commit:
        shutil.copy(executed, NOTEBOOK)
    again = None if options.budget == "quick" else failure_of_zip  # it would take as long again
    return handin.hand_in(executed, ROOT, again, figures)


def reopen(options: argparse.Namespace) -> int:
    """Does a hand-in run from its zip alone?"""
    failure = failure_of_zip(options.zip)
    print(failure or f"{options.zip} runs from beginning to end.")
    return int(bool(failure))


def run_tests(options: argparse.Namespace) -> None:
    """All tests on up to four cores; with --quick the fast ones only.  All else is for pytest."""
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread in each of the processes
    workers = ["-n", "auto", "--maxprocesses=4", "--dist=loadfile"]
    rest = [part for word in options.rest for part in (("-m", "not slow") if word == "--quick" else (word,))]
    continue_as([sys.executable, "-m", "pytest", *workers, *rest])


def publish(options: argparse.Namespace, root: Path = ROOT) -> None:
    """Write USER/NAME of a GitHub repository wherever the course names its home: README, notebook, citation."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.repository):
        sys.exit(f"{options.repository!r} is no repository of GitHub: write USER/NAME.")
    badge = f"https://colab.research.google.com/github/{options.repository}/blob/main/{handin.NOTEBOOK}"
    home = f'repository-code: "https://github.com/{options.repository}"'
    changes = [(r"https://colab\.research\.google\.com/(?!assets)[^)\s\\]*", badge)]
    changes += [(r'(REPOSITORY = \\")[^"\\]*', rf"\g<1>{options.repository}"), (r"(# )?repository-code: .*", home)]
    for name in ("README.md", handin.NOTEBOOK, "CITATION.cff"):
        text = (root / name).read_text(encoding="utf-8")
        for pattern, new in changes:
            text = re.sub(pattern, new, text)
        (root / name).write_text(text, encoding="utf-8")
    print(f"README, notebook and citation name {options.repository}: commit, and push the branch main.")


def help_text(command: str) -> str:
    """What a command does and its options, as the text of its module says: nothing has to be installed for it."""
    if command == "test":
        return f"{run_tests.__doc__}"
    source = (ROOT / f"{COMMANDS[command][0].replace('.', '/')}.py").read_text(encoding="utf-8")
    options = re.findall(r'parser\.add_argument\("([\w-]+)"(?:.*help=f?"(.*?)")?', source)
    return "\n".join([source.split('"""')[1], *(f"  {name:<12}{re.sub('{.*?}', '…', text)}" for name, text in options)])


def run_module(options: argparse.Namespace) -> int:
    """`main` of the command's module gets all that follows on the command line."""
    module, from_root, _ = COMMANDS[options.command]
    os.chdir(ROOT if from_root else Path.cwd())
    try:
        return importlib.import_module(module).main(options.rest) or 0
    except ValueError as error:
        if all(kind.__name__ != "InputError" for kind in type(error).__mro__):  # it is in checks.py, which needs torch
            raise
        sys.exit(str(error))  # its text says all; a traceback would hide it


def refuse_mistyped(words: list[str], names: list[str]) -> None:
    """Leave with one sentence if a word is no command or option, but nearly one."""
    for word in (word.partition("=")[0] for word in words):
        near = difflib.get_close_matches(word, names, n=1, cutoff=0.8)
        if near and not any(name.startswith(word) for name in names if name[0] == "-" or name == word):
            sys.exit(f"{word} is unknown: did you mean {near[0]}?")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; `rest` is for a command that reads its own options."""
    parser = argparse.ArgumentParser(description=__doc__, exit_on_error=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--budget", choices=["quick", "standard", "full"], default="standard", help="default: standard")
    parser.add_argument("--data", default="built-in", metavar="NAME|FOLDER", help="default: built-in")
    parser.add_argument("--map", metavar="VALUE=CLASS,…", help="the class of each value in the masks of your FOLDER")
    parser.add_argument("--output", default=ROOT / "handin", type=Path, metavar="FOLDER", help="default: handin")
    parser.add_argument("--commit", action="store_true", help="keep outputs and figures as those of the course itself")
    parser.add_argument("--cpu", action="store_true", help="set up PyTorch for the CPU alone, which is much smaller")
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(title="commands", metavar="", dest="command")
    commands.add_parser("test", add_help=False, help="all tests; the rest is for pytest")
    again = commands.add_parser("reopen", help="run the notebook of a hand-in in an empty folder")
    again.add_argument("zip", type=Path, metavar="ZIP", help="the hand-in")
    packing = commands.add_parser("pack", help="the course as one zip, for Colab, Kaggle, or students")
    packing.add_argument("zip", nargs="?", type=Path, default="course.zip", metavar="ZIP", help="default: course.zip")
    publishing = commands.add_parser("publish", help="write the name of your GitHub repository into the course")
    publishing.add_argument("repository", metavar="USER/NAME")
    for name, (_, _, text) in COMMANDS.items():
        commands.add_parser(name, add_help=False, help=text)
    names = [*commands.choices, *re.findall(r"--\w+", parser.format_help())]
    try:
        options, rest = parser.parse_known_args(arguments)
        if rest and options.command not in (*COMMANDS, "test"):
            raise argparse.ArgumentError(None, f"unknown: {' '.join(rest)}")
    except argparse.ArgumentError as error:
        refuse_mistyped(arguments, names)
        parser.error(str(error))
    if options.command in COMMANDS:  # before anything is set up for it
        options_of_it = re.findall(r"--\w+", f"{help_text(options.command)} --help")
        refuse_mistyped([word for word in rest if word[:2] == "--"], options_of_it)
    return argparse.Namespace(**vars(options), rest=rest)


def main(arguments: list[str]) -> int:
    """Do what the command line asks for."""
    options = parse(arguments)
    command, needed = options.command, NEEDS_ONLY.get(options.command)
    if command == "test" and not (ROOT / "tests").is_dir():
        sys.exit("This copy of the course came without its tests.")
    if needed is None or not all(map(importlib.util.find_spec, needed)):
        if {"-h", "--help"} & {*options.rest} and missing_packages():
            print(help_text(command))
            return 0
        ensure_environment(arguments)
    if command == "pack":
        return handin.pack(options.zip, ROOT)
    own: dict[str | None, Any] = {None: make_hand_in, "test": run_tests, "reopen": reopen, "publish": publish}
    return own.get(command, run_module)(options) or 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a heading may hold what a terminal cannot show
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where it can.")
        sys.exit(130)
