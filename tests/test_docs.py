"""The documentation says what the code does: errors, commands, options, links, public names."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import penstock

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # see tests/cli/conftest.py
    from penstock.cli.generate_docs import generate

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FOLDERS = ["cli", "export", "federated", "loaders", "quant", "runtime", "src/penstock"]


def error_classes() -> Iterator[str]:
    """Every class in the product whose base is an error of ours, by reading the sources."""
    known, classes = {"PenstockError"}, []
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            classes += [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    yield "PenstockError"
    for _ in range(3):  # children of children
        for node in classes:
            bases = {ast.unparse(base) for base in node.bases}
            if bases & known and node.name not in known:
                known.add(node.name)
                yield node.name


def headings(path: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    return re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)


def anchor(heading: str) -> str:
    """GitHub's rule."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def test_every_error_has_a_heading() -> None:
    assert set(error_classes()) == set(headings(ROOT / "docs" / "errors.md")[1:])


def test_the_command_line_page_is_current() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    assert page == generate(), "python -m penstock.cli.generate_docs > docs/cli.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    help_text = generate()
    commands = {re.sub("^penstock ?", "", h) for h in re.findall(r"^## (.*)$", help_text, re.M)}
    for line in re.findall(r"(?:^|`|\$ )penstock ([a-z][^`\n]*)", page.read_text(), re.MULTILINE):
        words = line.split()
        command = " ".join(words[:2]) if " ".join(words[:2]) in commands else words[0]
        if words[0] == "|":
            continue
        assert command in commands, f"{page.name}: penstock {line}"
        section = help_text.split(f"## penstock {command}\n")[1].split("\n## ")[0]
        for option in re.findall(r"--[a-z-]+", line):
            assert option in section, f"{page.name}: penstock {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        if fragment:
            assert fragment in map(anchor, headings(linked)), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_functions_named_in_the_pages_exist(page: Path) -> None:
    core = "\n".join(path.read_text() for path in (ROOT / "native" / "core").iterdir())
    for owner, name in re.findall(r"`(Decoder|NeuronWindow)::(\w+)`", page.read_text()):
        assert f"{owner}::{name}(" in core, f"{page.name} names {owner}::{name}"


def test_public_names_are_sorted_and_there() -> None:
    assert penstock.__all__ == sorted(penstock.__all__)
    assert all(hasattr(penstock, name) for name in penstock.__all__)
    errors = {name for name in dir(penstock.errors) if name.endswith("Error")}
    assert errors <= set(penstock.__all__)


def test_the_readme_opens_with_what_it_is_and_two_commands() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:20])
    sentence = first_screen.splitlines()[2]
    assert len(sentence.split()) <= 26
    assert "pip install . && penstock demo" in first_screen
    assert "pip install '.[test]' && python -m pytest" in first_screen
