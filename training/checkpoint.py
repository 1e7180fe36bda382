"""Keep a training run on the disk so that no kill, power cut, full disk or second run costs a finished epoch.

A file is written beside the old one, brought to the disk (fsync), and only then renamed, which no system does by half;
the checkpoint before the last is kept.  PyTorch writes a zip file with a CRC-32 of each entry but does not compare them
when it loads, so they are compared here first, and loading runs no code that a file may bring (`weights_only`).
Source: Pillai et al., "All file systems are not created equal", OSDI 2014.

`identity` says what a stored result was made by: it is used again only if nothing that determines it has changed.
"""

import contextlib
import dis
import enum
import functools
import hashlib
import io
import logging
import os
import pickle
import sys
import sysconfig
import threading
import types
import uuid
import weakref
import zipfile
import zlib
from collections import ChainMap, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
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
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # after the rename there is nothing to remove
            part.unlink()


def _sync(path: Path, flags: int) -> None:
    number = os.open(path, flags)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _cannot_write(path: Path, error: Exception) -> InputError:
    what = f"{path} cannot be written: {reason_of(error)}. What was saved before stays."
    return InputError(f"{what}\nMake room, or choose a folder where you may write; then run the same cell again.")


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (nested tensors, numbers, texts) as the latest checkpoint of `folder`; the one there is kept."""
    latest, buffer = folder / LATEST, io.BytesIO()
    with replacing(latest) as part:
        torch.save(state, buffer)  # in memory first: torch hides the reason why a disk refuses
        part.write_bytes(buffer.getbuffer())
        if latest.exists() and not is_damaged(latest.read_bytes()):  # else it must not push out the one before
            os.replace(latest, folder / PREVIOUS)


def load(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the newest whole state in `folder` (None without any), on the CPU, and a sentence on what was damaged.

    Only wrong checksums are damage.  `InputError` if a checkpoint cannot be loaded for another reason (memory, rights,
    disk, code in it): it may be whole, and stays.
    """
    damaged = ""
    for path in (folder / LATEST, folder / PREVIOUS):
        try:
            content = path.read_bytes()
            if not is_damaged(content):
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), damaged
        except FileNotFoundError:
            continue
        except Exception as error:  # torch and pickle raise many kinds
            if "PytorchStreamReader" not in str(error) or memory_is_full(error):  # else damage of a directory
                advice = "It stays as it is: mend this and run again, or move it away to start over."
                raise InputError(f"{path} cannot be loaded: {reason_of(error)}\n{advice}") from error
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
        advice = "Wait for it, stop it (or restart its kernel), or give this run another folder."
        raise InputError(f"Another run trains in {folder} at this moment.\n{advice}") from error
    except OSError as error:
        raise _cannot_write(folder / LOCK, error) from error
    try:
        yield
    finally:
        lock.release()


def identity(trained: nn.Module | None = None, /, **values: Any) -> dict[str, str]:
    """Name → short digest of all that determines what is worked out with `values`; the same in every process.

    Functions and classes count by their compiled code: comments, docstrings and moved lines do not matter, and a file
    that was edited but not imported again does not claim to have run.  With them count defaults, closures, bases, and
    the globals that the code reads, which are followed further.  What belongs to a library counts by its name.
    An object counts by its class and attributes, or those that `determined_by` of its class names; arrays by their
    bytes; the modules of `trained` without their weights; a text that names a file with the size and time of the file.
    The rest is pickled; what cannot be has a digest that begins with "unknown" and never comes again.

    >>> changed(identity(lr=0.1, seed=0, loss=lambda x: 2 * x), identity(lr=0.2, seed=0, loss=lambda x: 3 * x))
    'lr, training.checkpoint.<lambda>'
    """
    walk = _Walk(trained, values)
    for name, value in values.items():
        walk.enter(name, value)
    while walk.queue:  # not by recursion: one function leads to the next, and further than Python's stack is deep
        name, thing = walk.queue.popleft()
        walk.note(name, walk.of_class if isinstance(thing, type) else walk.of_function, thing)
    return walk.found


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which entries of two identities differ, the first five by name; "" if none does."""
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    names = [name for name in names if name in before and name in now] or names  # one of those names the others
    kinds = [now.get(name, "").split() for name in names[:5]]
    texts = [f"{n} ({k[1]}: cannot be compared)" if k[:1] == ["unknown"] else n for n, k in zip(names, kinds)]
    return ", ".join(texts) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


_PLAIN = (type(None), bool, int, float, complex, bytes, range, slice, type(...), np.generic, np.dtype, logging.Logger)
_OF_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_NO_DATA: tuple[type, ...] = (type(threading.Lock()), type(threading.RLock()))
_NO_DATA += (weakref.ref, weakref.WeakValueDictionary, weakref.WeakKeyDictionary, weakref.WeakSet)
_SLOTS = (types.GetSetDescriptorType, types.MemberDescriptorType)
_WRAPPERS = (types.MethodType, staticmethod, classmethod, property, functools.partial, type(functools.cache(len)))
_WRAPPED = ("__func__", "__self__", "__wrapped__", "fget", "fset", "fdel", "func", "args", "keywords")
_OF_LOADER = "dataset batch_sampler sampler batch_size drop_last collate_fn generator num_workers worker_init_fn"
_LIBRARIES = ("site-packages", "dist-packages", "<frozen", sysconfig.get_path("stdlib"))
_READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "IMPORT_NAME")


class _Walk:
    """Goes through values and all that they refer to; functions and classes are entries of their own."""

    def __init__(self, trained: nn.Module | None, names: Iterable[str]) -> None:
        self.found = dict.fromkeys(names, "") | {"Python": ".".join(map(str, sys.version_info[:2]))}  # it compiles
        self.seen: dict[int, tuple[str, Any]] = {}  # functions, classes and arrays by id; held, so that no id returns
        self.queue = deque[tuple[str, Any]]()
        self.open: list[int] = []  # the objects that the walk is inside of: circles end
        self.trained = {id(module) for module in trained.modules()} if trained is not None else set()

    def enter(self, name: str, value: Any, depth: int = 2) -> None:
        """Make an entry of a value, and of its attributes, so that a message can name them."""
        whole = id(value) in self.open or depth == 0 or self.simple(value) is not None or _inside(value) is not None
        state = {} if whole else self.attributes(value)
        self.note(name, self.simple if state else lambda one: [self.digest(one)], type(value) if state else value)
        self.open.append(id(value))
        for key in sorted(state):
            self.enter(f"{name}.{key}", state[key], depth - 1)
        self.open.pop()

    def note(self, name: str, parts: Callable[[Any], Any], value: Any) -> None:
        try:
            self.found[name] = _sha256(*parts(value))
        except pickle.PicklingError as error:
            self.found[name] = f"unknown {error} {uuid.uuid4().hex}"

    def follow(self, thing: Any) -> str:
        """The name of a function or class, which gets an entry unless it belongs to a library."""
        if id(thing) not in self.seen:
            name, own = f"{thing.__module__}.{thing.__qualname__}".removeprefix("__main__."), not _of_library(thing)
            while own and name in self.found:
                name += "'"
            self.seen[id(thing)] = name, thing
            if own:
                self.found[name] = ""
                self.queue.append((name, thing))
            elif cells := _cells(thing):  # the wrapper of a decorator
                self.seen[id(thing)] = f"{name} {self.digest(cells)}", thing
        return self.seen[id(thing)][0]

    def of_function(self, function: types.FunctionType) -> list[str]:
        _, _, reads, names = _steps(function.__code__)
        loaded = {name: sys.modules[name] for name in reads if name in sys.modules}
        own = {name: module for name, module in loaded.items() if not _of_library(module)}  # others come when they like
        scope = ChainMap(function.__globals__, own)
        used = [(name, _named_in(scope[name], names)) for name in sorted(reads) if name in scope]
        state = function.__defaults__, function.__kwdefaults__, _cells(function), vars(function), used
        return [self.digest(part) for part in (function.__code__, *state)]

    def of_class(self, kind: type) -> list[str]:
        own = []
        for name, value in sorted(vars(kind).items()):
            is_code = isinstance(value, (types.FunctionType, *_WRAPPERS))
            if is_code or not (name[0] == name[-1] == "_" or name == "_abc_impl" or isinstance(value, _SLOTS)):
                own.append((name, value))
        return [self.digest(part) for part in (own, kind.__bases__, type(kind))]

    def of_array(self, array: Any) -> list[str]:
        if id(array) not in self.seen:
            flat = array.detach().cpu().reshape(-1).view(torch.uint8).numpy() if isinstance(array, Tensor) else array
            content = hashlib.sha256(np.ascontiguousarray(flat).data).hexdigest()
            self.seen[id(array)] = f"{array.dtype} {tuple(array.shape)} {content}", array
        return [self.seen[id(array)][0]]

    def attributes(self, value: Any) -> dict[str, Any]:
        """What determines an object, beside its class."""
        kind, state = type(value), dict[str, Any](getattr(value, "__dict__", {}))
        if names := getattr(kind, "determined_by", ()):
            return {name: getattr(value, name) for name in names}
        slots = [name for one in kind.__mro__ for name in vars(one).get("__slots__", ())]
        state |= {name: getattr(value, name) for name in slots if hasattr(value, name)}
        if hasattr(kind, "set_epoch"):
            state.pop("epoch", None)  # the training sets it
        if isinstance(value, DataLoader):
            unused = vars(DataLoader([0])).keys() - {*_OF_LOADER.split()}  # type: ignore[arg-type]
            return {name: part for name, part in state.items() if name not in unused}
        if isinstance(value, nn.Module):
            own = {name: state.pop(name, {}) for name in vars(nn.Module())}
            state |= own["_modules"] | {name: [*v.values()] for name, v in own.items() if name[-6:] == "_hooks" and v}
            weights, buffers, changing = own["_parameters"], own["_buffers"], own["_non_persistent_buffers_set"]
            if id(value) in self.trained:  # its weights are a value of their own
                weights = {name: part for name, part in weights.items() if not getattr(part, "requires_grad", True)}
                buffers = {name: buffers[name] for name in changing}
            state |= weights | buffers
        return state

    def digest(self, value: Any) -> str:
        if id(value) in self.open:
            return f"circle {len(self.open) - self.open.index(id(value))}"
        if len(self.open) > 100:
            raise pickle.PicklingError(type(value).__qualname__)
        self.open.append(id(value))
        try:
            return _sha256(type(value).__qualname__, *(self.simple(value) or self.made_of(value)))
        finally:
            self.open.pop()

    def simple(self, value: Any) -> list[str] | None:
        """What a value is that has a text, a name or bytes; None for others."""
        if isinstance(value, enum.Enum):
            return [self.follow(type(value)), value.name]
        if isinstance(value, (*_PLAIN, *_OF_TORCH)):
            return [repr(value)]
        if isinstance(value, (str, Path)):
            state = os.stat(value) if os.path.isfile(value) else None
            return [str(value), *([str(state.st_size), str(state.st_mtime_ns)] if state else [])]
        if isinstance(value, (types.FunctionType, type)):
            return [self.follow(value)]
        if isinstance(value, types.CodeType):
            return [_steps(value)[0], *map(self.digest, _steps(value)[1])]
        if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and not value.dtype.hasobject):
            return self.of_array(value)
        if isinstance(value, torch.Generator):
            return [str(value.initial_seed())]
        if isinstance(value, _WRAPPERS):
            return [self.digest(getattr(value, name, None)) for name in _WRAPPED]
        named = callable(value) and hasattr(value, "__name__") and not getattr(value, "__dict__", None)
        if isinstance(value, types.ModuleType) or (named and _of_library(value)):  # `len`, `torch.relu`, `[].append`
            return [value.__name__, self.digest(getattr(value, "__self__", None))]
        return [""] if isinstance(value, _NO_DATA) else None

    def made_of(self, value: Any) -> list[str]:
        """The digests of what is in a container, and of the attributes of an object."""
        kind, inside, state = type(value), _inside(value), self.attributes(value)
        has_own_way = getattr(kind, "__reduce__", None) is not getattr(object, "__reduce__", None)
        if inside is None and _of_library(kind) and (has_own_way or not state):
            return [self.pickled(value)]
        parts = [*map(self.digest, inside or ()), *(f"{name} {self.digest(state[name])}" for name in sorted(state))]
        return [self.follow(kind), *(sorted(parts) if isinstance(value, (set, frozenset)) else parts)]

    def pickled(self, value: Any) -> str:
        """The digest of what a library writes of its object."""

        class Pickler(pickle.Pickler):
            def persistent_id(_, part: Any) -> str | None:
                known = isinstance(part, (types.FunctionType, type, Tensor, np.ndarray, nn.Module))
                return self.digest(part) if known else None

        buffer = io.BytesIO()
        try:
            Pickler(buffer, 4).dump(value)
        except Exception as error:  # nearly everything is raised
            raise pickle.PicklingError(type(value).__qualname__) from error
        return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _inside(value: Any) -> list[Any] | None:
    """The values in a container; None for other objects."""
    if isinstance(value, (dict, types.MappingProxyType)):
        return [part for item in value.items() for part in item]
    if isinstance(value, np.ndarray):  # of objects
        return [value.shape, value.tolist()]
    return list(value) if isinstance(value, (list, tuple, set, frozenset, deque)) else None


def _of_library(thing: Any) -> bool:
    """Whether a function, class or module belongs to Python or to an installed package."""
    if isinstance(thing, types.FunctionType):
        place = thing.__code__.co_filename
    else:
        name = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", None)
        root = str(name or type(thing).__module__).partition(".")[0]
        place = "" if root == "__main__" else str(getattr(sys.modules.get(root), "__file__", ""))
        place = "<frozen" if root in sys.stdlib_module_names else place
    return any(name in place for name in _LIBRARIES)


def _named_in(value: Any, names: set[str], inside: tuple[Any, ...] = ()) -> Any:
    """Of a module that is no library those parts that a code names; anything else as it is."""
    if not isinstance(value, types.ModuleType) or _of_library(value) or value in inside:
        return value
    found = sorted(names & vars(value).keys())
    return {name: _named_in(getattr(value, name), names, (*inside, value)) for name in found}


@functools.lru_cache(10_000)
def _steps(code: types.CodeType) -> tuple[str, list[Any], set[str], set[str]]:
    """What a code does, the constants that it loads (so no docstrings), globals and modules it reads, all its names."""
    steps, constants, reads, names, number = list[int](), list[Any](), set[str](), {*code.co_names}, 0
    for op, low in zip(code.co_code[::2], code.co_code[1::2]):
        number = number << 8 | low
        if op == dis.EXTENDED_ARG:
            continue
        if op in dis.hasconst:
            constants.append(code.co_consts[number])
            number = 0
        elif (name := dis.opname[op]) in _READS:  # since Python 3.11 the last bit of this one means something else
            reads.add(code.co_names[number >> (name == "LOAD_GLOBAL" and sys.version_info >= (3, 11))])
        steps += [op, number]
        number = 0
    for inner in (constant for constant in constants if isinstance(constant, types.CodeType)):
        reads, names = reads | _steps(inner)[2], names | _steps(inner)[3]
    arguments = code.co_posonlyargcount, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    flags, handlers = code.co_flags & 0x2AC, getattr(code, "co_exceptiontable", b"")  # *args, yield, async; try
    text = _sha256(repr((steps, code.co_names, arguments, flags, handlers)))
    return text, constants, {name for name in reads if name[:2] != "__"}, names


def _cells(function: Any) -> list[Any]:
    """The values that a function has from the functions around it."""
    values = []
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # empty
            values.append(cell.cell_contents)
    return values


def _sha256(*parts: str) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
