"""The one thread that runs the one model, and the queue before it: first come, first served."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.errors import ContextError, PenstockError, UsageError
from penstock.runtime.chat_template import ChatTemplateError
from penstock.runtime.language_model import LanguageModel
from penstock.runtime.server.api_error import ApiError
from penstock.runtime.server.metrics import Metrics
from penstock.runtime.server.schema import Asked

STATS_SECONDS = 0.5  # between two looks at the model's counters while it generates
RETRY_SECONDS_MOST = 60


@dataclass(frozen=True)
class Finished:
    """The end of an answer: why, and the tokens."""

    reason: str
    prompt_tokens: int
    completion_tokens: int


Event = str | Finished | ApiError
"""A piece of text, and last why there are no more."""


@dataclass(eq=False)
class Job:
    """A request in the queue, or with the model.

    Attributes:
        deliver: is given the events; called from the worker's thread.
        nbytes: memory that it takes.
        cancelled: why it need not be answered; None: it must be.
    """

    asked: Asked
    deliver: Callable[[Event], None]
    nbytes: int
    arrived: float = field(default_factory=time.monotonic)
    cancelled: ApiError | None = None

    def is_cancelled(self) -> bool:
        return self.cancelled is not None


class Worker:
    """Runs requests one after the other. Every job ends with one `Finished` or `ApiError`.

    Args:
        model: used from this thread only, until `close`.
        max_queue: jobs that may wait; one more is with the model.
        max_bytes: memory that those that wait may take, where there are two or more.
    """

    def __init__(
        self,
        model: LanguageModel,
        metrics: Metrics,
        max_queue: int,
        max_bytes: int = sys.maxsize,
    ) -> None:
        self._model = model
        self._metrics = metrics
        self._max_queue = max_queue
        self._max_bytes = max_bytes
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._refuses = False
        self._closed = False
        metrics.model(model.stats())  # a figure that it does not know is never shown as zero
        # A daemon: a read that never returns must not keep the process.
        self._thread = threading.Thread(target=self._loop, name="penstock-model", daemon=True)
        self._thread.start()

    @property
    def queue_length(self) -> int:
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        return int(self._running is not None)

    def submit(self, asked: Asked, deliver: Callable[[Event], None]) -> Job:
        """Put a request at the end of the queue.

        Raises:
            ApiError: 503, the queue is full or the server stops.
        """
        job = Job(asked, deliver, asked.nbytes)
        with self._changed:
            if self._refuses:
                raise _stopping()
            if len(self._waiting) + self.in_flight > self._max_queue:
                raise self._full(f"{self._max_queue} requests are waiting, which is the most")
            together = sum(waiting.nbytes for waiting in self._waiting) + job.nbytes
            if self._waiting and together > self._max_bytes:
                raise self._full(
                    f"the requests that wait and this one take {together} bytes, "
                    f"{self._max_bytes} is the most"
                )
            self._waiting.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job, why: ApiError) -> bool:
        """Take a job out of the queue, or end its generation before the next token.

        Its events end at once: nobody waits for a long batch to learn that.

        Returns:
            False when it had ended, or was cancelled, already.
        """
        with self._changed:
            if job.cancelled is not None:
                return False
            if job in self._waiting:
                self._waiting.remove(job)
            elif job is not self._running:
                return False
            job.cancelled = why
        job.deliver(why)
        return True

    def refuse(self) -> None:
        """Take no more jobs, and send away those that wait; the one that runs may finish."""
        with self._changed:
            self._refuses = True
            waiting, self._waiting = list(self._waiting), deque()
        for job in waiting:
            job.cancelled = _stopping()
            job.deliver(job.cancelled)

    def abort(self) -> None:
        """End the generation that runs before its next token."""
        running = self._running
        if running is not None:
            self.cancel(running, _stopping())

    def close(self, timeout_seconds: float) -> bool:
        """Stop the thread, after the token in hand.

        Returns:
            False when that takes longer; the model is still at work then.
        """
        self.refuse()
        self.abort()
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _full(self, why: str) -> ApiError:
        # A place comes free with the end of a generation.
        seconds = math.ceil(self._metrics.mean_generation_seconds())
        return ApiError(
            503,
            f"{why}; try again later.",
            code="queue_full",
            headers={"retry-after": str(min(max(1, seconds), RETRY_SECONDS_MOST))},
        )

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
            self._metrics.left_queue(time.monotonic() - job.arrived)
            last = self._run(job)
            with self._changed:
                self._running = None
            if job.cancelled is not None:  # and told so
                continue
            if isinstance(last, Finished):
                self._metrics.finished(time.monotonic() - job.arrived)
            job.deliver(last)

    def _run(self, job: Job) -> Event:
        try:
            return self._counted(job)
        except Exception as error:  # a fault of ours; the next request must find a worker
            traceback.print_exc(file=sys.stderr)
            with contextlib.suppress(Exception):
                self._model.reset()
            return ApiError(500, f"{type(error).__name__} in the model.", code="internal_error")

    def _counted(self, job: Job) -> Event:
        model, begun = self._model, time.monotonic()
        try:
            last = self._generate(job)
        except (UsageError, ChatTemplateError) as error:  # before any work
            field = "messages" if job.asked.is_chat else "prompt"
            code = "context_length_exceeded" if isinstance(error, ContextError) else None
            return ApiError(400, str(error), param=field, code=code)
        except PenstockError as error:
            last = ApiError(500, str(error), code=type(error).__name__)
        seconds = time.monotonic() - begun
        self._metrics.ran(model.prompt_tokens, model.completion_tokens, seconds)
        self._metrics.model(model.stats())
        return last

    def _generate(self, job: Job) -> Event:
        model = self._model
        looked = time.monotonic()
        for piece in job.asked.begin(model, job.is_cancelled):
            job.deliver(piece)
            if time.monotonic() - looked > STATS_SECONDS:
                self._metrics.model(model.stats())
                looked = time.monotonic()
        if job.cancelled is not None:
            return job.cancelled
        reason = "stop" if model.finish_reason == "stop" else "length"
        return Finished(reason, model.prompt_tokens, model.completion_tokens)


def _stopping() -> ApiError:
    return ApiError(503, "the server is stopping.", code="stopping", headers={"retry-after": "5"})
