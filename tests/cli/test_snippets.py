"""The Python snippets of the README and of the pages run as they are written.

Those fenced as `py` are not run: they need a server, or files that only a reader has.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet(code: str, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    exec(compile(code.replace("model.gguf", str(tiny_bundle)), "<snippet>", "exec"), {})
    assert capfd.readouterr().out.strip()
