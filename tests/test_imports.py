"""What imports what: layers, heavy libraries, leaking names, and the time that an import takes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The table of the design: a package and those of ours that it may import. `errors` is everyone's.
LAYERS = {
    "quant": {"_native"},
    "loaders": {"_native", "quant"},
    "runtime": {"_native", "quant", "loaders"},
    "export": {"_native", "quant", "loaders"},
    "federated": {"_native", "quant", "runtime", "loaders"},
    "cli": {"_native", "quant", "loaders", "runtime", "export", "federated"},
}
# Allowed inside functions only. Calibration runs the bundle that the export has just written, and
# what a federation has trained leaves through the export pipeline.
LATE = {"export": {"runtime"}, "federated": {"export"}}
# What `pip install .` brings; anything else is an extra and is imported where it is used.
PLAIN = {"numpy", "typer", "click", "rich", "gguf", "tokenizers", "jinja2", "platformdirs"}
NEVER = {
    "quant": {"torch", "transformers", "flwr"},
    "loaders": {"torch", "transformers", "flwr"},
    "runtime": {"torch", "transformers", "flwr"},
}
# Inside functions all the same: 4D checkpoints are opened by torch.load(weights_only=True), where
# there is torch, and one is played and viewed without the export.
CHECKPOINTS = {"loaders/splats/rotor_file.py"}
MAX_IMPORT_SECONDS = 0.3  # of the processor: others use it too; 0.08 here


@cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """(module, whether it is imported when the file is) of every import in a file."""
    return tuple(_imports(ast.parse(path.read_text(), str(path))))


def _imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(function, ast.If) and _is_for_types(function.test))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "penstock":
            names = [f"penstock.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            yield name, id(node) not in late


def _is_for_types(test: ast.expr) -> bool:
    return any(
        "TYPE_CHECKING" in (getattr(node, "id", ""), getattr(node, "attr", ""))
        for node in ast.walk(test)
    )


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("package", LAYERS)
def test_layers(package: str) -> None:
    wrong = []
    for path in sources(package):
        for module, early in imports(path):
            parts = module.split(".")
            if parts[0] != "penstock" or parts[1:2] == [package] or parts[1:2] == ["errors"]:
                continue
            layer = parts[1] if len(parts) > 1 else ""
            if layer == "" and package in ("cli", "federated"):
                continue  # the public names; the version that devices tell
            allowed = LAYERS[package] | (set() if early else LATE.get(package, set()))
            if layer not in allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def defines_networks(path: Path) -> bool:
    """Whether a file defines torch modules: a class has its base when it is made."""
    text = path.read_text()
    nodes = ast.walk(ast.parse(text)) if "nn.Module" in text else ()
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    return any(ast.unparse(base) == "nn.Module" for node in classes for base in node.bases)


@cache
def torch_files() -> dict[str, Path]:
    """Modules of the export that bring torch with them when they are imported, which others do
    inside functions: those that define networks, and those that work on them."""
    names = {
        ".".join(("penstock", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in sources("export")
    }
    early = {name: {m for m, now in imports(path) if now} for name, path in names.items()}
    found = {name for name, path in names.items() if defines_networks(path)}
    while more := {name for name in names if early[name] & found} - found:
        found |= more
    return {name: names[name] for name in found}


@pytest.mark.parametrize("package", LAYERS)
def test_extras_are_imported_where_they_are_used(package: str) -> None:
    wrong = []
    for path in sources(package):
        with_torch = path in torch_files().values()
        name = path.relative_to(ROOT).as_posix()
        never = NEVER.get(package, set()) - ({"torch"} if name in CHECKPOINTS else set())
        for module, early in imports(path):
            top = module.split(".")[0]
            ours = top == "penstock" or top in sys.stdlib_module_names or top in PLAIN
            heavy = module in torch_files() or not ours
            known = with_torch and top in {"torch", "penstock"}
            if (early and heavy and not known) or top in never:
                wrong.append(f"{name} imports {module}")
    assert wrong == []


def python(code: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = "{'torch', 'transformers', 'safetensors', 'typer', 'click', 'rich', 'tokenizers', 'jinja2'}"


def test_importing_penstock_is_quick(tmp_path: Path) -> None:
    code = (
        "import time; begin = time.process_time(); import penstock; "
        "print(time.process_time() - begin)"
    )
    best = min(float(python(code, tmp_path)) for _ in range(5))
    assert best < MAX_IMPORT_SECONDS


def test_importing_penstock_loads_nothing_heavy(tmp_path: Path) -> None:
    code = f"import sys, penstock; print(sorted({HEAVY} & set(sys.modules)))"
    assert python(code, tmp_path) == "[]"


def test_loading_an_engine_needs_no_extra(tmp_path: Path) -> None:
    code = (
        "import sys, penstock; penstock.load; "
        "print(sorted({'torch', 'transformers', 'safetensors', 'typer'} & set(sys.modules)))"
    )
    assert python(code, tmp_path) == "[]"


def test_no_top_level_leak() -> None:
    """Nothing of ours installs under a name that is not ours; what xdsl, which litert-torch
    needs, puts there (`docs`, `tests`) is its own."""
    installed = distribution("penstock").files
    assert installed is not None
    tops = {path.parts[0] for path in installed}
    allowed = {"..", "__pycache__", "penstock"}  # scripts, compiled finders, the package
    odd = {top for top in tops - allowed if not top.startswith(("penstock-", "_editable_skbc_"))}
    assert "penstock" in tops and odd == set()


def test_folders_of_the_checkout_are_no_packages(tmp_path: Path) -> None:
    names = [*LAYERS, "native", "benchmarks", "examples", "src", "build"]
    code = (
        "import importlib.util; "
        f"print([name for name in {names!r} if importlib.util.find_spec(name)])"
    )
    assert python(code, tmp_path) == "[]"
