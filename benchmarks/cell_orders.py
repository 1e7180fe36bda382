"""Does the notebook stand being used as notebooks are: cells run twice, skipped, and in any order?

    python3 benchmarks/cell_orders.py --twice                   every code cell twice in a row
    python3 benchmarks/cell_orders.py --orders 100 --seed 0     random orders

Both work on a copy of the project (`--folder`: one that is kept, with its finished trainings; `--trained`: it has all
of them), in quick budget, without a GPU and without a network.  Each order runs in the IPython of a process of its own;
what all of them import is loaded once, before the forks.  (So it is not for Windows.)  A run from the top comes first,
and all others must show what it shows, times masked and pictures as files.  The number format of a training is not
chosen by timing here: the noise of the timing would decide about results.

With `--twice`, both outputs of each pair must be those of the run from the top: then no cell changes what it or a later
one depends on.

A random order goes on after an error, as a student does who clicks around.  Of a hundred orders:

any       20: all code cells in any order.
set up    30: the cells up to the settings in their order, then all others in any order.
sections  30: the cells up to the settings, then the sections in any order, the cells of each in their order.
clicks    10: from the top, but one cell of forty is left out, one of ten comes twice, and one of ten is followed by a
          cell from anywhere.
asking    10: the cells up to the settings, then two cells from anywhere: where one is answered with advice, the
          sections that it names are run, and the same is done for their cells; then the cell must run.

What a cell may come to: it ran, and shows what it shows in a run from the top; or our one line of advice (cell_order);
or an InputError of at most four lines.  Everything else is foreign: another traceback, another result, advice that
leads nowhere, and a cell that does not end.  Python cannot know our advice before the second code cell has run: what
goes wrong before it is counted on its own.  The exit status is 1 if anything was foreign.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
NAME = "semantic_segmentation.ipynb"
KINDS = {"any": 4, "set up": 6, "sections": 6, "clicks": 2, "asking": 2}  # how many of twenty orders
SECONDS = 300  # a cell that takes longer does not end
MOST = 600  # cells that a student runs for one cell that asks for others
NOWHERE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
SETTINGS = NOWHERE | {"CUDA_VISIBLE_DEVICES": "", "SEGMENTATION_BUDGET": "quick", "SEGMENTATION_DATA": "built-in"}
TIMES = re.compile(r" *\d[\d.,]*(?=\s*(?:s|ms|µs|seconds?|min|minutes?|milliseconds?)\b)")
ADVICE = re.compile(r"“.+ made in the section “.+: run .+ first, or all cells from the top\.")
EARLY = "error before the second cell"
Run = Callable[[str], dict[str, Any]]
Plan = Callable[[Run], None]


class Notebook:
    """The code cells of a folder's notebook, by their ids, and how they lie in sections."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources: dict[str, str] = {}
        self.sections: dict[str, list[str]] = {}  # the same headings as in cell_order
        heading = "the first cells"
        for cell in json.loads((folder / NAME).read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code":
                self.sources[cell["id"]] = source
                self.sections.setdefault(heading, []).append(cell["id"])
            elif titles := re.findall(r"^#+ +(.+?) *$", source, re.MULTILINE):
                heading = titles[-1]
        self.keys = list(self.sources)
        number = next(i for i, key in enumerate(self.keys) if "SEGMENTATION_BUDGET" in self.sources[key])
        self.set_up, self.rest = self.keys[: number + 1], self.keys[number + 1 :]

    def name_of(self, key: str) -> str:
        return f"{key} `{self.sources[key].strip().splitlines()[0][:70]}`"


def in_order(keys: list[str]) -> Plan:
    """The plan to run these cells, whatever they come to."""

    def plan(run: Run) -> None:
        for key in keys:
            run(key)

    return plan


def random_plan(kind: str, notebook: Notebook, chance: random.Random) -> Plan:
    """One random order; the kinds are told above."""
    rest = notebook.rest
    if kind == "any":
        return in_order(chance.sample(notebook.keys, len(notebook.keys)))
    if kind == "set up":
        return in_order(notebook.set_up + chance.sample(rest, len(rest)))
    if kind == "sections":
        groups = [[key for key in group if key in rest] for group in notebook.sections.values()]
        return in_order(notebook.set_up + sum(chance.sample(groups, len(groups)), []))
    if kind == "asking":
        return asking(notebook, chance.sample(rest, 2))
    clicks = []
    for key in notebook.keys:
        lot = chance.randrange(40)
        clicks += [] if lot == 0 else [key, key] if lot < 5 else [key, chance.choice(rest)] if lot < 9 else [key]
    return in_order(clicks)


def asking(notebook: Notebook, targets: list[str]) -> Plan:
    """The plan of a student who wants these cells, and does what the advice says."""

    def plan(run: Run) -> None:
        in_order(notebook.set_up)(run)
        for target in targets:
            left = [MOST]
            if wanted(target, run, left)["kind"] == "advised":
                run("")  # the advice led nowhere

    def wanted(key: str, run: Run, left: list[int]) -> dict[str, Any]:
        told = run(key)
        while told["kind"] == "advised" and left[0] > 0:
            for section in re.findall(r"(?:section|in) “(.+?)”(?=[,: ])", told["error"]):
                for other in notebook.sections[section]:
                    left[0] -= 1
                    if left[0] > 0 and notebook.keys.index(other) < notebook.keys.index(key):
                        wanted(other, run, left)
            told = run(key)
        return told

    return plan


# What is seen of a cell


def masked(text: str) -> str:
    """The text without colours, and with # for each number of seconds or minutes, and for shares of milliseconds."""
    text = TIMES.sub(" #", re.sub(r"\x1b\[[\d;]*m", "", text))
    return re.sub(r"(# ms.*?) *\d[\d.]*(?=%)", r"\1 #", text)


def shown(text: str, displayed: list[dict]) -> list[str]:
    """What a student sees of a cell: its masked texts, and a short hash for each picture."""
    found = [masked(text)]
    for output in displayed:
        bundle = output["data"]
        if "image/png" in bundle:
            found.append(f"picture {hashlib.sha256(str(bundle['image/png']).encode()).hexdigest()[:8]}")
        else:
            found.append(masked("".join(bundle.get("text/markdown", bundle.get("text/plain", "")))))
    return [part for part in found if part.strip()]


class Shell:
    """A notebook kernel without its messages: IPython that keeps what a cell shows."""

    def __init__(self) -> None:
        from IPython.core.displaypub import CapturingDisplayPublisher
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        settings = Config({"HistoryManager": {"enabled": False}})
        self.shell = InteractiveShell.instance(config=settings)
        self.shell.display_pub = CapturingDisplayPublisher()
        self.shell._showtraceback = self._keep
        self.told: tuple[str, list[str]] | None = None

    def _keep(self, kind: type, error: object, lines: list[str]) -> None:
        self.told = kind.__name__, "\n".join(lines).splitlines()

    def run(self, source: str) -> dict[str, Any]:
        """What a cell came to, why, and what it showed."""
        from matplotlib import pyplot

        self.told, self.shell.display_pub.outputs = None, []
        with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(text):
            result = self.shell.run_cell(source, store_history=False)
        pyplot.close("all")  # as the notebook's backend does
        kind, why = self.outcome(result.error_before_exec or result.error_in_exec)
        return {"kind": kind, "error": why, "shown": shown(text.getvalue(), self.shell.display_pub.outputs)}

    def outcome(self, error: BaseException | None) -> tuple[str, str]:
        if error is None and self.told is None:
            return "ran", ""
        name, lines = self.told or (type(error).__name__, [])
        if len(lines) == 1 and ADVICE.fullmatch(lines[0]):
            return "advised", lines[0]
        if name == "InputError" and len(str(error).splitlines()) <= 4:
            return "InputError", str(error)
        if not any(type(one).__module__ == "cell_order" for one in self.shell.ast_transformers):
            return EARLY, str(error)
        return "foreign", f"{name}: {error}"


# Processes


def load_libraries(notebook: Notebook) -> None:
    """Import, once and before the forks, all that the notebook imports; the modules of the course from its folder."""
    os.chdir(notebook.folder)
    os.environ.pop("SEGMENTATION_MIRROR", None)
    os.environ.update(SETTINGS)
    sys.path[:] = [str(notebook.folder), *(entry for entry in sys.path if Path(entry).resolve() != ROOT)]
    import matplotlib
    import torch
    from IPython.core import displaypub, interactiveshell  # noqa: F401

    matplotlib.use("Agg")
    torch.set_num_threads(1)  # a process with threads must not fork
    torch.optim.AdamW([torch.zeros(1)])  # imports what every child would import, which takes seconds
    text = "\n".join(notebook.sources.values())
    for name in sorted(set(re.findall(r"^(?:import|from) +([\w.]+)", text, re.MULTILINE))):
        importlib.import_module(name)
    from training import modes

    modes.fastest = lambda *_, **__: modes.Mode()


def run_plan(plan: Plan, notebook: Notebook) -> list[dict]:
    """Carry out a plan in a fork; for each cell its id, what it came to, and what it showed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_and_exit(plan, notebook, writing)
    os.close(writing)
    text, ended = b"", False
    while not ended and select.select([reading], [], [], SECONDS)[0]:
        new = os.read(reading, 1 << 20)
        text, ended = text + new, not new
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(reading)
    outcomes = [json.loads(line) for line in text.decode().splitlines()]
    if not ended or status not in (0, -signal.SIGKILL):
        why = f"no end within {SECONDS} s" if not ended else f"the process ended with status {status}"
        outcomes.append({"id": outcomes[-1]["id"], "kind": "foreign", "shown": [], "error": f"after this cell: {why}"})
    return outcomes


def _run_and_exit(plan: Plan, notebook: Notebook, writing: int) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)
        with tempfile.TemporaryDirectory() as scratch, open(writing, "w", encoding="utf-8") as pipe:
            os.environ["IPYTHONDIR"] = scratch
            shell, last = Shell(), {"id": "", "kind": "", "error": "", "shown": []}

            def run(key: str) -> dict[str, Any]:
                if key:
                    last.update({"id": key} | shell.run(notebook.sources[key]))
                else:
                    last.update(kind="foreign", error=f"the advice led nowhere: {last['error']}")
                print(json.dumps(last), file=pipe, flush=True)
                return dict(last)

            plan(run)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


# The two questions


def from_the_top(notebook: Notebook, trained: bool) -> dict[str, list[str]]:
    """What each cell shows in a run from the top, when all trainings are finished."""
    if not trained:
        run_plan(in_order(notebook.keys), notebook)
    outcomes = run_plan(in_order(notebook.keys), notebook)
    if bad := [f"{notebook.name_of(one['id'])}: {one['error']}" for one in outcomes if one["kind"] != "ran"]:
        raise SystemExit("\n".join(["A run from the top already fails:", *bad]))
    return {one["id"]: one["shown"] for one in outcomes}


def judge(outcomes: list[dict], reference: dict[str, list[str]]) -> list[dict]:
    """The outcomes, where a cell that ran but did not show what it shows in a run from the top is foreign."""
    for one in outcomes:
        if one["kind"] == "ran" and one["shown"] != reference[one["id"]]:
            one["kind"], one["error"] = "foreign", "not as from the top: " + change(reference[one["id"]], one["shown"])
    return outcomes


def change(expected: list[str], found: list[str]) -> str:
    lines, others = ("\n".join(texts).splitlines() for texts in (expected, found))
    pairs = [(a, b) for a, b in zip(lines, others) if a != b] or [(f"{len(lines)} lines", f"{len(others)} lines")]
    return " | ".join(line[:150] for line in pairs[0])


def report(where: str, outcomes: list[dict], notebook: Notebook) -> int:
    """Print each foreign outcome; returns their number."""
    bad = [one for one in outcomes if one["kind"] == "foreign"]
    for one in bad:
        print(f"FOREIGN ({where}) {notebook.name_of(one['id'])}: {one['error'][:400]}", flush=True)
    return len(bad)


def run_twice(notebook: Notebook, reference: dict[str, list[str]]) -> int:
    """Run every cell twice in a row; returns how many outcomes are not as from the top."""
    outcomes = judge(run_plan(in_order([key for key in notebook.keys for _ in range(2)]), notebook), reference)
    bad = report("twice", outcomes, notebook) + sum(one["kind"] not in ("ran", "foreign") for one in outcomes)
    print(f"every cell twice: {len(outcomes)} cells, {dict(Counter(one['kind'] for one in outcomes))}", flush=True)
    return bad


def run_orders(
    notebook: Notebook, reference: dict[str, list[str]], number: int, kinds: Sequence[str], seed: int
) -> int:
    """Run random orders and print what their cells came to; returns how many outcomes are foreign."""
    counts, bad = {kind: Counter[str]() for kind in kinds}, 0
    for index in range(number):
        kind, began = kinds[index % len(kinds)], time.monotonic()
        plan = random_plan(kind, notebook, random.Random(f"{seed} {index}"))
        outcomes = judge(run_plan(plan, notebook), reference)
        counts[kind].update(one["kind"] for one in outcomes)
        print(f"[{index + 1}/{number}] {kind}: {len(outcomes)} cells, {time.monotonic() - began:.0f} s", flush=True)
        bad += report(f"order {index}, {kind}", outcomes, notebook)
    for kind, count in counts.items():
        print(f"{kind}: {count.total()} cells, {dict(count)}")
    together = sum(counts.values(), Counter[str]())
    print(f"{number} orders: {together.total()} cells, {dict(together)}", flush=True)
    return bad


def copy_of_project(folder: Path) -> None:
    """All that the notebook needs, in a new folder."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for path in [*ROOT.glob("*.py"), ROOT / NAME, *(ROOT / name for name in ("README.md", "LICENSE"))]:
        shutil.copy(path, folder / path.name)
    for table in ROOT.glob("figures/*.csv"):
        shutil.copy(table, folder / "figures" / table.name)


def main() -> int:
    """Answer what is asked for, in a copy of the project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twice", action="store_true", help="every cell twice")
    parser.add_argument("--orders", type=int, default=0, help="how many random orders")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="of orders, in turn; default: all, as above")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a copy of the project that is there, or is to be made and kept")
    parser.add_argument("--trained", action="store_true", help="all trainings in this folder are finished")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch) / "course").resolve()
        if not (folder / NAME).exists():
            copy_of_project(folder)
        notebook = Notebook(folder)
        load_libraries(notebook)
        reference = from_the_top(notebook, options.trained)
        bad = run_twice(notebook, reference) if options.twice else 0
        kinds = options.kinds or [kind for kind, share in KINDS.items() for _ in range(share)]
        if options.orders:
            bad += run_orders(notebook, reference, options.orders, kinds, options.seed)
        os.chdir(ROOT)  # the folder may go now
    print(f"{bad} foreign outcomes, {time.monotonic() - began:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
