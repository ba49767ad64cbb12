"""Exported programs (`torch.export.save`, *.pt2), loaded without running code that is in them.

`torch.export.load` trusts its file. It unpickles sample inputs and odd weights with
`weights_only=False`, evaluates the sizes of tensors as Python (through sympy), looks operators up
by any path under `torch`, and compiles guards. So nothing reaches it here but a copy of the archive
in which
  - every pickle has loaded with `weights_only=True`,
  - every size is built of numbers, symbols and arithmetic,
  - every operator is one of PyTorch's own that computes,
  - there are no guards, custom objects or compiled libraries.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penstock.errors import BackendMissingError, FormatError, StorageError, UnsupportedModelError

# All that an archive may hold, under its root folder.
PROGRAM = re.compile(r"models/[\w.-]+\.json")
CONFIG = re.compile(r"data/(weights|constants)/[\w.-]+_config\.json")
TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_[0-9]+")
PAYLOAD = re.compile(r"(weight|tensor)_[0-9]+")
SAMPLES = re.compile(r"data/sample_inputs/[\w.-]+\.pt")
PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|extra/.+"
)
MAX_ENTRIES = 1 << 17
MAX_EXPRESSION = 4096  # characters of one size
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|higher_order)(\.[A-Za-z0-9_]+){1,2}"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|pos|abs|eq|ne|lt|le|gt|ge|getitem"
    r"|and_|or_|not_|truth)"
    r"|math\.(ceil|floor|trunc|sqrt)"
    r"|torch\.sym_(int|float|not|max|min|ite|sum|sqrt)"
)
TOUCH_FILES = re.compile(r"from_file|save|load|_print|call_torchbind|triton", re.IGNORECASE)
# Of sizes: sympy's classes, and those of torch.utils._sympy.functions.
SIZE_CLASSES = frozenset(
    "Symbol Integer Rational Float Add Mul Pow Max Min Mod Abs Eq Ne Lt Le Gt Ge And Or Not "
    "Equality Unequality StrictLessThan StrictGreaterThan LessThan GreaterThan FloorDiv PythonMod "
    "ModularIndexing CleanDiv CeilDiv CeilToInt FloorToInt TruncToInt TruncToFloat ToFloat "
    "IntTrueDiv FloatTrueDiv PowByNatural FloatPow Where Identity LShift RShift Piecewise".split()
)
TREE_TYPES = frozenset({
    None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict",
    "torch.fx.immutable_collections.immutable_list",
    "torch.fx.immutable_collections.immutable_dict",
})  # fmt: skip


def load_pt2(path: str | os.PathLike[str]) -> Any:
    """The `ExportedProgram` of a file.

    Raises:
        FormatError: it is no archive of `torch.export.save`, or damaged.
        UnsupportedModelError: it holds what cannot be loaded without trusting it; it is named.
        StorageError: it cannot be read.
        BackendMissingError: torch is not installed.
    """
    path = Path(path)
    try:
        import torch
    except ImportError as error:
        raise BackendMissingError(
            f"exported programs are read with torch, which cannot be imported ({error}); install "
            "it with: pip install 'penstock[export]' or 'penstock[litert-export]'"
        ) from None
    entries = _entries(path)
    copied = io.BytesIO()
    with zipfile.ZipFile(copied, "w", zipfile.ZIP_STORED) as copy:
        for name, data in entries:
            copy.writestr(name, _checked(path, name, data))
    copied.seek(0)
    try:
        return torch.export.load(copied)
    except Exception as error:  # whatever torch comes upon
        raise FormatError(
            f"{path}: torch {torch.__version__} cannot load it ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}); export it again with this version"
        ) from None


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
            names = {entry.filename.lower() for entry in found}  # torch ignores case
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in found)
            if len(names) < len(found) or len(found) > MAX_ENTRIES or not stored:
                raise FormatError(
                    f"{path}: not an archive of torch.export.save: names appear twice, are too "
                    "many, or are compressed"
                )
            if not any(re.search(r"/models/[^/]+\.json$", name) for name in names):
                raise FormatError(
                    f"{path}: there is no model in it (models/*.json); expected a file that "
                    "torch.export.save wrote"
                )
            for entry in found:
                yield entry.filename, archive.read(entry)
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise FormatError(
            f"{path}: not an archive of torch.export.save, or cut short: {error}"
        ) from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None


def _checked(path: Path, name: str, data: bytes) -> bytes:
    """An entry as it may be loaded.

    Raises:
        UnsupportedModelError, FormatError.
    """
    inside = name.partition("/")[2]
    if PROGRAM.fullmatch(inside):
        return _checked_program(path, name, data)
    if CONFIG.fullmatch(inside):
        return _checked_config(path, name, data)
    if SAMPLES.fullmatch(inside):
        _check_pickle(path, name, data)
    elif not (TENSOR.fullmatch(inside) or PLAIN.fullmatch(inside)):
        raise _refusal(path, f"'{name}' is not a part of it that is known to be plain data")
    return data


def _checked_config(path: Path, name: str, data: bytes) -> bytes:
    """Where tensors lie: all as plain bytes, as torch.export.save stores ordinary ones."""
    config = _json(path, name, data)
    payloads = config.get("config") if isinstance(config, dict) else None
    if not isinstance(payloads, dict):
        raise FormatError(f"{path}: '{name}' is no list of tensors")
    for tensor, payload in payloads.items():
        plain = isinstance(payload, dict) and payload.get("use_pickle") is False
        if not plain or not PAYLOAD.fullmatch(str(payload.get("path_name"))):
            raise _refusal(path, f"'{tensor}' in '{name}' is stored as a pickle or an object")
    return json.dumps(config).encode()


def _check_pickle(path: Path, name: str, data: bytes) -> None:
    import torch

    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise _refusal(path, f"'{name}' is a pickle of more than tensors ({text})") from None


def _checked_program(path: Path, name: str, data: bytes) -> bytes:
    program = _json(path, name, data)
    if not isinstance(program, dict):
        raise FormatError(f"{path}: '{name}' is no program")
    for key, value in _walk(program):
        if key == "target":
            _check_operator(path, value)
        elif key == "expr_str":
            _check_size(path, value)
        elif key in ("in_spec", "out_spec") and value:
            _check_tree(path, value)
        elif key == "range_constraints" and isinstance(value, dict):
            for symbol in value:
                _check_size(path, symbol)
        elif key == "custom_obj_values" and value:
            raise _refusal(path, "it has custom objects")
        elif key == "treespec_namedtuple_fields" and value:
            raise _refusal(path, "its inputs or outputs are named tuples")
    program["guards_code"] = []
    return json.dumps(program).encode()


def _check_operator(path: Path, target: object) -> None:
    if (
        not isinstance(target, str)
        or not OPERATORS.fullmatch(target)
        or any(part.startswith("__") for part in target.split("."))
        or TOUCH_FILES.search(target)
    ):
        raise _refusal(path, f"the operator '{target}' is none of PyTorch's that only compute")


def _check_size(path: Path, text: object) -> None:
    """Arithmetic of numbers and symbols, or nothing: sympy evaluates it as Python."""
    if not isinstance(text, str) or len(text) > MAX_EXPRESSION:
        raise _refusal(path, "a size is no expression")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refusal(path, f"the size '{text[:80]}' is no expression") from None
    allowed = (
        ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp,
        ast.UnaryOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub,
        ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
    )  # fmt: skip
    for node in ast.walk(tree):
        fine = isinstance(node, allowed)
        if isinstance(node, ast.Call):
            fine = isinstance(node.func, ast.Name) and node.func.id in SIZE_CLASSES
        elif isinstance(node, ast.Name):
            fine = node.id in SIZE_CLASSES or re.fullmatch(r"[a-z]\w{0,31}", node.id) is not None
            fine = fine and "__" not in node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            fine = re.fullmatch(r"[A-Za-z]\w{0,31}", node.value) is not None
        if not fine:
            raise _refusal(path, f"the size '{text[:80]}' is more than arithmetic")


def _check_tree(path: Path, text: object) -> None:
    """How inputs and outputs are nested: tuples, lists and dicts."""
    try:
        tree = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        raise FormatError(f"{path}: '{str(text)[:80]}' is no tree") from None
    for key, value in _walk(tree):
        if key == "type" and (isinstance(value, dict | list) or value not in TREE_TYPES):
            raise _refusal(path, f"its inputs or outputs are in a '{value}'")


def _walk(value: object) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    waiting = [value]
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            yield from at.items()
            waiting += at.values()
        elif isinstance(at, list):
            waiting += at


def _json(path: Path, name: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: '{name}' is not JSON: {error}") from None


def _refusal(path: Path, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{path}: {what}, and is not loaded: files may come from anywhere. If you made it, load it "
        "with torch.export.load and pass the program to the Python API"
    )
