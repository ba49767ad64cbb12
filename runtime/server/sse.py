"""Server-sent events: one JSON document each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

CONTENT_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"

# Not line ends to the standard, but to clients that split lines as Python's str does.
_ESCAPED = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


def event(document: Mapping[str, Any]) -> bytes:
    """One event. JSON writes line ends as \\n, so the data is one line."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text.translate(_ESCAPED)}\n\n".encode()
