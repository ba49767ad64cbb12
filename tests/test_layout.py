"""The top-level folders, the links in src/penstock and every list of them must agree."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["cli", "export", "federated", "loaders", "quant", "runtime"]
MAX_LINES = 600  # of a product file; a longer one holds more than one idea


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return found


def test_packaging_table_lists_every_folder(config: dict[str, Any]) -> None:
    table = config["tool"]["scikit-build"]["wheel"]["packages"]
    assert table == {f"penstock/{name}": name for name in FOLDERS}


def test_pyright_checks_every_folder(config: dict[str, Any]) -> None:
    assert set(FOLDERS) <= set(config["tool"]["pyright"]["include"])


def test_no_folder_may_be_imported_by_its_bare_name(config: dict[str, Any]) -> None:
    banned = config["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert banned == {name: {"msg": f"import penstock.{name}"} for name in FOLDERS}


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_is_a_package(name: str) -> None:
    text = (ROOT / name / "__init__.py").read_text()
    assert text.startswith('"""'), "say what it is for"


@pytest.mark.parametrize("name", FOLDERS)
def test_link(name: str) -> None:
    link = ROOT / "src" / "penstock" / name
    if not link.is_symlink():
        pytest.skip("checkout without symlinks")
    assert link.resolve() == ROOT / name


def test_the_stub_is_linked() -> None:
    link = ROOT / "src" / "penstock" / "_native.pyi"
    if not link.is_symlink():
        pytest.skip("checkout without symlinks")
    assert link.resolve() == ROOT / "native" / "_native.pyi"


def test_no_product_file_grows_without_limit() -> None:
    product = [path for name in FOLDERS for path in (ROOT / name).rglob("*.py")]
    product += [path for end in ("cpp", "h") for path in (ROOT / "native").rglob(f"*.{end}")]
    long = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in product}
    assert {name: lines for name, lines in long.items() if lines > MAX_LINES} == {}
