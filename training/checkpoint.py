"""Keep a training run on the disk so that no kill, power cut, full disk or second run costs a finished epoch.

A file is written beside the old one, brought to the disk (fsync), and then renamed, which no system does by half
(Pillai et al., OSDI 2014); the one before is kept.  The checksums in a file, which PyTorch ignores, are compared.
`identity` says what a stored result was made by: it is used again only if nothing that determines it has changed.
"""

import contextlib
import copyreg
import dis
import hashlib
import io
import os
import pickle
import sys
import sysconfig
import types
import weakref
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from checks import InputError, memory_is_full, reason_of

LATEST, PREVIOUS, LOCK = "latest.ckpt", "previous.ckpt", "in-use.lock"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write; after the block it becomes `path`, or the old one stays and an `InputError` says why."""
    part = path.with_name(f"{zlib.crc32(os.fsencode(path.name)):08x}.part")  # the name itself may be as long as allowed
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _sync(part, os.O_RDWR)
        os.replace(part, path)
        with contextlib.suppress(OSError):  # Windows and some network drives cannot: there the old name may return
            _sync(path.parent, os.O_RDONLY)
    except Exception as error:
        if not isinstance(error, OSError) and not memory_is_full(error):
            raise
        raise InputError(f"{path} cannot be written: {reason_of(error)}. Make room, or take another folder.") from error
    finally:
        with contextlib.suppress(OSError):  # after the rename there is nothing to remove
            part.unlink()


def _sync(path: Path, flags: int) -> None:
    number = os.open(path, flags)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (nested tensors, numbers, texts) as the latest checkpoint of `folder`; the one there is kept."""
    latest, buffer = folder / LATEST, io.BytesIO()
    with replacing(latest) as part:
        torch.save(state, buffer)  # in memory first: torch hides the reason why a disk refuses
        part.write_bytes(buffer.getbuffer())
        if latest.exists() and not is_damaged(latest.read_bytes()):  # else it must not push out the one before
            os.replace(latest, folder / PREVIOUS)


def load(folder: Path | None) -> tuple[dict[str, Any] | None, str]:
    """Return the newest whole state in `folder` (None without any), on the CPU, and a sentence on what was damaged.

    Only wrong checksums are damage; any other reason (memory, rights, disk, code in it) is an `InputError`: it stays.
    """
    damaged = ""
    for path in (folder / LATEST, folder / PREVIOUS) if folder else ():
        try:
            content = path.read_bytes()
            if not is_damaged(content):
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), damaged
        except FileNotFoundError:
            continue
        except Exception as error:  # torch and pickle raise many kinds
            if "PytorchStreamReader" not in str(error) or memory_is_full(error):  # else damage of a directory
                raise InputError(f"{path} cannot be loaded: {reason_of(error)}. Mend this or move it away.") from error
        damaged += f"{path.name} is damaged. "
    return None, damaged and f"{damaged}There is no other checkpoint: started over. "


def is_damaged(content: bytes) -> bool:
    """True unless `content` is a zip file, such as `torch.save` writes, whose checksums are all right."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            is_folder = (entry.external_attr & 0x10 for entry in archive.infolist())  # torch would read such as nothing
            return archive.testzip() is not None or any(is_folder)
    except Exception as error:  # a damaged directory raises nearly everything
        if memory_is_full(error):
            raise
        return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep `folder` for one run, until its process ends; `InputError` if another run is in it, or it is read-only."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(NotImplementedError):  # some network drives know no locks
            lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(f"Another run trains in {folder}: stop it, or choose another folder.") from error
    except OSError as error:
        raise InputError(f"{folder / LOCK} cannot be written: {reason_of(error)}. Choose another folder.") from error
    try:
        yield
    finally:
        lock.release()


def identity(trained: nn.Module | None = None, /, **values: Any) -> dict[str, str]:
    """Name → short digest of all that determines what is worked out with `values`; the same in every process.

    Functions and classes count by their compiled code, without comments and docstrings, with defaults, closures, bases
    and the globals that the code reads; those of a library by name; objects by what `pickle` would write of them, or
    `determined_by` of their class names; arrays by their bytes; the modules of `trained` without their weights; a text
    that names a file with its size and time.  What cannot be taken apart is "unknown …", which never comes again.

    >>> changed(identity(lr=0.1, seed=0, loss=lambda x: 2 * x), identity(lr=0.2, seed=0, loss=lambda x: 3 * x))
    'lr, training.checkpoint.<lambda>'
    """
    walk = _Walk(trained, values)
    for name, value in values.items():
        walk.note(name, value, split=True)
    while walk.queue:  # not by recursion: one function leads to the next, and further than Python's stack is deep
        name, thing = walk.queue.popleft()
        walk.note(name, _of_class(thing) if isinstance(thing, type) else _of_function(thing))
    return walk.found


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which entries of two identities differ, the first five by name; "" if none does."""
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    names = [name for name in names if name in before and name in now] or names  # one of those names the others
    kinds = {name: f" ({text.split()[1]}: cannot be compared)" for name, text in now.items() if text[:7] == "unknown"}
    return ", ".join(n + kinds.get(n, "") for n in names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)


@lru_cache(10_000)
def _read(code: types.CodeType) -> tuple[str, list[Any], set[str], set[str]]:
    """What a code does, the constants that it loads (so no docstrings), globals and modules it reads, all its names."""
    steps = list(dis.get_instructions(code))
    constants = [step.argval for step in steps if step.opcode in dis.hasconst]
    reads, names = {step.argval for step in steps if step.opname in _READS}, {*code.co_names}
    for inner in (constant for constant in constants if isinstance(constant, types.CodeType)):
        reads, names = reads | _read(inner)[2], names | _read(inner)[3]
    does = [(step.opname, None if step.opcode in dis.hasconst else step.argval) for step in steps]
    arguments = code.co_posonlyargcount, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    flags, handlers = code.co_flags & 0x2AC, getattr(code, "co_exceptiontable", b"")  # *args, yield, async; try
    return _sha256(repr((does, arguments, flags, handlers))), constants, {n for n in reads if n[:2] != "__"}, names


_PLAIN = (type(None), bool, int, float, complex, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format)
_OF_LOADER = "dataset batch_sampler sampler batch_size drop_last collate_fn generator num_workers worker_init_fn"
_LIBRARIES = ("site-packages", "dist-packages", "<frozen", sysconfig.get_path("stdlib"))
_READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "IMPORT_NAME")
_REDUCE: dict[type, Callable[[Any], tuple[Any, ...]]] = {  # for what has no `__reduce__`, or one that does not suit
    **{kind: lambda one: (type(one), one) for kind in (list, tuple, set, frozenset)},
    **{kind: lambda one: (dict, [x for item in one.items() for x in item]) for kind in (dict, types.MappingProxyType)},
    **{kind: lambda one: (type(one), [one.__wrapped__]) for kind in (staticmethod, classmethod, type(lru_cache(len)))},
    types.ModuleType: lambda one: (one.__name__, ()),
    types.CodeType: lambda one: _read(one)[:2],
    torch.Generator: lambda one: (one.initial_seed(), ()),
    property: lambda one: (property, (one.fget, one.fset, one.fdel)),
    cached_property: lambda one: (property, [one.func]),
    weakref.WeakValueDictionary: lambda one: ("a cache", ()),
}


class _Walk:
    """Goes through values and all that they refer to; functions and classes are entries of their own."""

    def __init__(self, trained: nn.Module | None, names: Iterable[str]) -> None:
        self.found = dict.fromkeys(names, "") | {"Python": ".".join(map(str, sys.version_info[:2]))}  # it compiles
        self.seen: dict[int, tuple[str, Any]] = {}  # functions, classes and arrays by id; held, so that no id returns
        self.queue = deque[tuple[str, Any]]()
        self.trained = {id(module) for module in trained.modules()} if trained is not None else set()

    def note(self, name: str, value: Any, outer: tuple[int, ...] = (), *, split: bool = False) -> None:
        """Make an entry of a value; with `split` its attributes are entries of their own."""
        try:
            self.found[name] = self.digest(value, outer, name if split else "")
        except pickle.PicklingError as error:
            self.found[name] = f"unknown {error} {os.urandom(8).hex()}"

    def digest(self, value: Any, outer: tuple[int, ...] = (), prefix: str = "") -> str:
        """The digest of a value inside of those with the ids `outer`, where circles end."""
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, (str, Path)):
            file = os.stat(value) if os.path.isfile(value) else None
            return repr((value, file.st_size, file.st_mtime_ns) if file else value)
        if id(value) in outer:
            return f"circle {len(outer) - outer.index(id(value))}"
        try:
            made, parts, state, *items = (*self.reduced(value), None) if len(outer) < 100 else ()
        except Exception as error:  # nearly everything is raised
            raise pickle.PicklingError(type(value).__qualname__) from error
        outer = (*outer, id(value))
        inside = [self.digest(part, outer) for part in (made, *parts, *items)]
        if prefix and isinstance(state, dict):
            for name, part in state.items():
                self.note(f"{prefix}.{name}", part, outer)
        else:
            inside.append(self.digest(state, outer))
        return _sha256(*(sorted(inside) if isinstance(value, (set, frozenset)) else inside))

    def reduced(self, value: Any) -> tuple[Any, ...]:
        """As `__reduce__` does: what makes a value, or its name, and from which parts; its state or attributes."""
        kind = type(value)
        if reduce := _REDUCE.get(kind):
            return reduce(value)
        if isinstance(value, (types.FunctionType, type)):
            return self.name_of(value), _cells(value) if _of_library(value) else ()  # of a decorator
        if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and not value.dtype.hasobject):
            if id(value) not in self.seen:
                flat = value.detach().cpu().reshape(-1).view(torch.uint8) if isinstance(value, Tensor) else value
                content = hashlib.sha256(np.ascontiguousarray(flat).data).hexdigest()
                self.seen[id(value)] = f"{value.dtype} {tuple(value.shape)} {content}", value
            return self.seen[id(value)][0], ()
        if isinstance(value, nn.Module):
            return kind, (), self.of_module(value)
        if names := getattr(kind, "determined_by", _OF_LOADER.split() if isinstance(value, DataLoader) else ()):
            return kind, (), {name: getattr(value, name) for name in names}
        if hasattr(kind, "set_epoch"):  # which the training calls
            return kind, (), {name: part for name, part in vars(value).items() if name != "epoch"}
        known = copyreg.dispatch_table.get(kind)
        reduced = known(value) if known else value.__reduce_ex__(4)
        return (f"{kind} {getattr(value, '__module__', '')}.{reduced}", ()) if isinstance(reduced, str) else reduced

    def name_of(self, thing: Any) -> str:
        """The name of a function or class, which gets an entry unless it belongs to a library."""
        if id(thing) not in self.seen:
            name = f"{thing.__module__}.{thing.__qualname__}".removeprefix("__main__.")
            while name in self.found:
                name += "'"
            if not _of_library(thing):
                self.found[name] = ""
                self.queue.append((name, thing))
            self.seen[id(thing)] = name, thing
        return self.seen[id(thing)][0]

    def of_module(self, module: nn.Module) -> dict[str, Any]:
        """Attributes, inner modules and hooks of a module, and those tensors that are no weights to be trained."""
        state = dict(vars(module))
        own = {name: state.pop(name, {}) for name in vars(nn.Module())}
        hooks = {name: [*part.values()] for name, part in own.items() if name.endswith("_hooks") and part}
        weights, buffers = own["_parameters"], own["_buffers"]
        if id(module) in self.trained:  # its weights are a value of their own
            weights = {name: weight for name, weight in weights.items() if not getattr(weight, "requires_grad", True)}
            buffers = {name: buffers[name] for name in own["_non_persistent_buffers_set"]}
        return state | own["_modules"] | hooks | weights | buffers


def _of_function(function: types.FunctionType) -> list[Any]:
    """What determines a function: its code, what it was given, and the globals that it reads."""
    _, _, reads, names = _read(function.__code__)
    own = {name: sys.modules[name] for name in reads if name in sys.modules and not _of_library(sys.modules[name])}
    scope = own | function.__globals__  # modules of libraries come when they like
    used = [(name, _named_in(scope[name], names)) for name in sorted(reads) if name in scope]
    return [function.__code__, function.__defaults__, function.__kwdefaults__, _cells(function), vars(function), used]


def _of_class(kind: type) -> list[Any]:
    """What determines a class: its methods and values, bases, and metaclass; no docstring, slots and the like."""
    own = sorted((name, value) for name, value in vars(kind).items() if name != "_abc_impl")
    return [[(n, v) for n, v in own if callable(v) or not n[0] == n[-1] == "_"], kind.__bases__, type(kind)]


def _of_library(thing: Any) -> bool:
    """Whether a function, class or module belongs to Python or to an installed package."""
    if isinstance(thing, types.FunctionType):  # a wrapper bears the name of what it wraps
        place = thing.__code__.co_filename
    else:
        name = str(thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__).partition(".")[0]
        module = sys.modules.get(name) if name != "__main__" else None
        place = "<frozen" if name in sys.stdlib_module_names else str(getattr(module, "__file__", ""))
    return any(name in place for name in _LIBRARIES)


def _named_in(value: Any, names: set[str], inside: tuple[Any, ...] = ()) -> Any:
    """Of a module that is no library those parts that a code names; anything else as it is."""
    if not isinstance(value, types.ModuleType) or _of_library(value) or value in inside:
        return value
    found = sorted(names & vars(value).keys())
    return {name: _named_in(getattr(value, name), names, (*inside, value)) for name in found}


def _cells(function: Any) -> list[Any]:
    """The values that a function has from the functions around it."""
    cells = getattr(function, "__closure__", None) or ()
    return [cell.cell_contents for cell in cells if cell != types.CellType()]  # not the empty ones


def _sha256(*parts: str) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
