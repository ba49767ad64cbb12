"""The tensors of a TorchScript archive, which is what OpenAI distributes, without running it.

`torch.jit.load` compiles and may run code from the file, and `torch.load(weights_only=True)`
refuses such a file. But the tensors lie in it plainly, in a ZIP that compresses none of them:

    NAME/data.pkl       says, as a pickle, what tensors the modules have and where their bytes are
    NAME/data/0, 1...   the bytes of each storage
    NAME/code/...       the program; never looked at here

The pickle is not given to Python's unpickler. It is read as the list of instructions that it is,
by a machine that can make lists, dictionaries, numbers, texts and descriptions of tensors, and has
no instruction that calls or imports anything.
https://github.com/pytorch/pytorch/blob/main/torch/csrc/jit/serialization/pickler.h
"""

from __future__ import annotations

import math
import pickletools
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError
from penstock.loaders.zip_errors import ZIP_ERRORS, zip_error

MAX_PICKLE_BYTES = 16 << 20  # OpenAI's have a few hundred KB
MAX_ELEMENTS = 1 << 40
MAX_NAMES = 100_000
MAX_DEPTH = 32  # of modules in modules
STORAGES = {
    "HalfStorage": np.float16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "BoolStorage": np.bool_,
}


@dataclass(frozen=True)
class Name:
    """What a pickle would import: `module` and `name` in it. Here it stays a name."""

    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """Elements that tensors share; `key` is its file under `data/`."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class TensorView:
    """A tensor: `offset` and `strides` count elements of its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class Module:
    """An object of the program: a module with its parameters, buffers and modules by name."""

    attributes: dict[str, Any] = field(default_factory=dict)


class ScriptArchive:
    """One file. Raises FormatError when it is damaged or not a TorchScript archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)  # closes with the last reference
        except ZIP_ERRORS as error:
            raise zip_error(path, error, _damaged(error)) from None
        self._members = _members(path, self._archive)
        pickle = self._read("data.pkl", MAX_PICKLE_BYTES)
        try:
            self.tensors = _named_tensors(unpack(pickle))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise FormatError(f"{path}: {_damaged(error)}") from None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: view.shape for name, view in self.tensors.items()}

    def read(self, name: str) -> NDArray[Any]:
        """A tensor, in its own dtype. Raises FormatError where its bytes are not all there."""
        view = self.tensors[name]
        dtype = np.dtype(STORAGES[view.storage.kind])
        nbytes = view.storage.count * dtype.itemsize
        key = f"data/{view.storage.key}"
        data = self._read(key, nbytes)
        steps = zip(view.shape, view.strides, strict=True)
        last = view.offset + sum((size - 1) * stride for size, stride in steps)
        if len(data) != nbytes or (0 not in view.shape and last >= view.storage.count):
            raise FormatError(
                f"{self.path}: tensor '{name}' {view.shape} needs {max(last + 1, 0)} elements, but "
                f"'{key}' has {len(data)} bytes of {dtype}; the file is cut short or damaged"
            )
        flat = np.frombuffer(data, dtype.newbyteorder("<"))[view.offset :]
        strides = tuple(stride * dtype.itemsize for stride in view.strides)
        return np.lib.stride_tricks.as_strided(flat, view.shape, strides, writeable=False)

    def _read(self, name: str, limit: int) -> bytes:
        member = self._members.get(name)
        if member is None or member.file_size > limit:
            found = "is not there" if member is None else f"has {member.file_size} bytes"
            raise FormatError(f"{self.path}: '{name}' {found}, expected at most {limit} bytes")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise FormatError(
                f"{self.path}: '{name}' is compressed, which torch never does; another program "
                "packed the file again: fetch the original"
            )
        try:
            return self._archive.read(member)
        except ZIP_ERRORS as error:
            raise zip_error(self.path, error, _damaged(error)) from None


def is_script_archive(path: Path) -> bool:
    """Whether it is a ZIP with a TorchScript program in it."""
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except ZIP_ERRORS:
        return False


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """By their names after the first folder, which is the name of the archive."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.partition("/")[2]
        if name in found:
            raise FormatError(f"{path}: has '{name}' twice; the file is damaged")
        found[name] = info
    return found


def _damaged(error: Exception) -> str:
    return (
        f"not a whole TorchScript archive ({type(error).__name__}: {error}); fetch it again, or "
        "convert it where you trust it: torch.jit.load(FILE).state_dict() saved with "
        "safetensors.torch.save_file"
    )


# ---------------------------------------------------------------- the pickle


def unpack(data: bytes) -> object:
    """What a pickle describes, out of dict, list, tuple, str, numbers, and the classes above.

    Raises:
        ValueError, TypeError, KeyError, IndexError: it is damaged, or wants something else.
    """
    with warnings.catch_warnings():  # of instructions that torch does not write, before we refuse
        warnings.simplefilter("ignore", DeprecationWarning)
        return _follow(data)


def _follow(data: bytes) -> object:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, object] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    for opcode, value, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT"
                | "BINUNICODE" | "SHORT_BINUNICODE"
            ):  # fmt: skip
                stack.append(value)
            case "BINPUT" | "LONG_BINPUT":
                memo[_whole(value)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[_whole(value)])
            case "GLOBAL":
                module, _, name = str(value).partition(" ")
                stack.append(Name(module, name))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                if len(stack) < count:
                    raise IndexError("a tuple of more than there is")
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                item = stack.pop()
                _list(stack[-1]).append(item)
            case "APPENDS":
                items = since_mark()
                _list(stack[-1]).extend(items)
            case "SETITEM":
                item, key = stack.pop(), stack.pop()
                _put(stack[-1], [key, item])
            case "SETITEMS":
                items = since_mark()
                _put(stack[-1], items)
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "NEWOBJ":
                arguments, kind = stack.pop(), stack.pop()
                if not isinstance(kind, Name) or arguments != ():
                    raise ValueError("an object that is not a module")
                stack.append(Module())
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Module) and isinstance(state, dict):
                    stack[-1].attributes.update(state)
                elif not isinstance(stack[-1], Module):
                    raise ValueError("a state of what is not a module")
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_made(function, arguments))
            case "STOP":
                return stack.pop()
            case other:
                raise ValueError(f"the instruction {other}, which torch does not write")
    raise ValueError("a pickle without an end")


def _made(function: object, arguments: object) -> object:
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise ValueError("a call of what is not a name")
    if function == Name("torch._utils", "_rebuild_tensor_v2"):
        storage, offset, shape, strides = arguments[:4]
        sizes, steps = _sizes(shape), _sizes(strides)
        if not isinstance(storage, Storage) or len(sizes) != len(steps) or len(sizes) > 8:
            raise ValueError("a tensor without storage or with strides of another length")
        elements: int = math.prod(sizes)
        if elements > MAX_ELEMENTS:
            raise ValueError(f"a tensor of {elements} elements")
        return TensorView(storage, _whole(offset), sizes, steps)
    if function == Name("collections", "OrderedDict") and arguments == ():
        return {}
    if function.module == "torch.jit._pickle" and arguments:  # lists that say what they are of
        return arguments[0]
    raise ValueError(f"a call of {function.module}.{function.name}, which is not made here")


def _storage(value: object) -> Storage:
    if not isinstance(value, tuple) or len(value) != 5 or value[0] != "storage":
        raise ValueError("a reference that is not to a storage")
    _, kind, key, _, count = value
    if not isinstance(kind, Name) or kind.module != "torch" or kind.name not in STORAGES:
        raise ValueError(f"a storage of {kind}; expected one of {', '.join(STORAGES)}")
    if not isinstance(key, str):
        raise ValueError("a storage without a name")
    return Storage(kind.name, key, _whole(count))


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple):
        raise ValueError("a shape that is not a tuple")
    return tuple(map(_whole, value))


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 48:
        raise ValueError("a size that is not a whole number from 0 on")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("an item of what is not a list")
    return value


def _put(into: object, items: list[Any]) -> None:
    if not isinstance(into, dict) or len(items) % 2:
        raise TypeError("an entry of what is not a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, int, Storage)):
            raise TypeError("an entry under what is neither a text nor a number")
        into[key] = value


def _named_tensors(root: object) -> dict[str, TensorView]:
    """Tensors of a module and the modules in it: `visual.conv1.weight`."""
    if not isinstance(root, Module):
        raise TypeError("an archive that holds no module")
    found: dict[str, TensorView] = {}
    waiting: list[tuple[str, Module, int]] = [("", root, 0)]
    seen = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        for key, value in module.attributes.items():
            seen += 1
            if seen > MAX_NAMES or depth > MAX_DEPTH:
                raise ValueError("modules in modules without end")
            if isinstance(value, TensorView):
                found[f"{prefix}{key}"] = value
            elif isinstance(value, Module):
                waiting.append((f"{prefix}{key}.", value, depth + 1))
    return found
