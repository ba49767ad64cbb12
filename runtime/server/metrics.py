"""What the server has done, in Prometheus' text format."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from penstock.runtime.language_model import ModelStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class _Summary:
    """How often, and seconds in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


class Metrics:
    """Counters, all since the start. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.time()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._aborted = 0
        self._read_bytes: int | None = 0
        self._hit_rate: float | None = 1.0
        self._request = _Summary()
        self._queued = _Summary()
        self._generation = _Summary()

    def answered(self, path: str, status: int) -> None:
        """A request was answered, whatever with."""
        with self._lock:
            self._requests[path, status] += 1

    def left_queue(self, seconds: float) -> None:
        """A request waited this long for its turn."""
        with self._lock:
            self._queued.add(seconds)

    def ran(self, prompt_tokens: int, generated_tokens: int, seconds: float) -> None:
        """The model worked on a request, to its end or not."""
        with self._lock:
            self._prompt_tokens += prompt_tokens
            self._generated_tokens += generated_tokens
            self._generation.add(seconds)

    def finished(self, seconds: float) -> None:
        """A request to the model got its whole answer, this long after it came."""
        with self._lock:
            self._request.add(seconds)

    def aborted(self) -> None:
        """A client left before its answer was whole."""
        with self._lock:
            self._aborted += 1

    def model(self, stats: ModelStats) -> None:
        """What the model says of itself."""
        with self._lock:
            self._read_bytes, self._hit_rate = stats.read_bytes, stats.hit_rate

    def mean_generation_seconds(self) -> float:
        with self._lock:
            return (
                self._generation.seconds / self._generation.count if self._generation.count else 0
            )

    def text(self, queue_length: int, in_flight: int) -> str:
        """The page."""
        with self._lock:
            return "\n".join(self._lines(queue_length, in_flight)) + "\n"

    def _lines(self, queue_length: int, in_flight: int) -> Iterator[str]:
        yield from _head("requests_total", "counter", "HTTP requests answered.")
        for (path, status), count in sorted(self._requests.items()):
            yield f'penstock_requests_total{{path="{path}",code="{status}"}} {count}'
        counters: tuple[tuple[str, str, int | None], ...] = (
            ("prompt_tokens_total", "Tokens of the prompts that were run.", self._prompt_tokens),
            ("generated_tokens_total", "Tokens of the answers.", self._generated_tokens),
            ("read_bytes_total", "Bytes of weights read from storage.", self._read_bytes),
            ("aborted_total", "Requests whose client left first.", self._aborted),
        )
        gauges: tuple[tuple[str, str, float | None], ...] = (
            ("hit_rate", "Share of streamed weights that were in memory.", self._hit_rate),
            ("queue_length", "Requests that wait for the model.", queue_length),
            ("in_flight", "Requests that the model works on.", in_flight),
            ("start_time_seconds", "When the server started, in Unix time.", self._started),
        )
        for kind, values in (("counter", counters), ("gauge", gauges)):
            for name, text, value in values:
                if value is not None:  # what nobody knows is left out
                    yield from _head(name, kind, text)
                    yield f"penstock_{name} {value}"
        summaries = (
            ("request_seconds", "From a request to its whole answer.", self._request),
            ("queue_seconds", "From a request to its turn.", self._queued),
            ("generation_seconds", "The model at work on a request.", self._generation),
        )
        for name, text, summary in summaries:
            yield from _head(name, "summary", text)
            yield f"penstock_{name}_sum {summary.seconds}"
            yield f"penstock_{name}_count {summary.count}"


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP penstock_{name} {text}", f"# TYPE penstock_{name} {kind}"
