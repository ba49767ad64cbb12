"""Logs: one JSON object a line, in files that cannot grow without bound."""

from __future__ import annotations

import json
import logging
import logging.handlers
import time
from pathlib import Path

FILES_KEPT = 2  # older ones beside the current
MOST_TEXT = 4000  # letters of one message


class JsonLines(logging.Formatter):
    """A record as one line: time, level, name, text, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "from": record.name.removeprefix("penstock.federated."),
            "text": record.getMessage()[:MOST_TEXT],
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)[-MOST_TEXT:]
        return json.dumps(line, ensure_ascii=False)


class _QuietWhenFull(logging.handlers.RotatingFileHandler):
    """A log that cannot be written, on a full disk, is no reason to stop working."""

    def handleError(self, record: logging.LogRecord) -> None:
        del record


def log_to(path: Path, most_bytes: int, level: int = logging.INFO) -> None:
    """Send what this process logs to a file."""
    handler = _QuietWhenFull(
        path, maxBytes=most_bytes, backupCount=FILES_KEPT, encoding="utf-8", delay=True
    )
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
