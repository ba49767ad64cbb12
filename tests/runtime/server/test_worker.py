"""The queue and the thread behind it, without HTTP."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pytest

from penstock.runtime.server.api_error import ApiError
from penstock.runtime.server.metrics import Metrics
from penstock.runtime.server.schema import Asked, parse_completion
from penstock.runtime.server.worker import Event, Finished, Job, Worker
from tests.runtime.server.scripted_model import ScriptedModel, ScriptedStats

LEFT = ApiError(499, "left")
SECONDS_MOST = 30


def asked(prompt: str) -> Asked:
    return parse_completion({"prompt": prompt, "max_tokens": 500}, "scripted", 1000)


class Bench:
    """A worker with a queue of two, and what it delivers."""

    def __init__(self) -> None:
        self.model = ScriptedModel()
        self.metrics = Metrics()
        self.worker = Worker(self.model, self.metrics, max_queue=2)

    def ask(self, prompt: str) -> tuple[Job, queue.Queue[Event]]:
        events: queue.Queue[Event] = queue.Queue()
        return self.worker.submit(asked(prompt), events.put), events

    def number(self, name: str) -> float:
        lines = self.metrics.text(0, 0).splitlines()
        return next(
            float(line.split()[1]) for line in lines if line.startswith(f"penstock_{name} ")
        )


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.worker.close(SECONDS_MOST)
    assert "penstock-model" not in [thread.name for thread in threading.enumerate()]


def collect(events: queue.Queue[Event]) -> tuple[str, Finished | ApiError]:
    text = ""
    while isinstance(event := events.get(timeout=SECONDS_MOST), str):
        text += event
    return text, event


def test_first_come_first_served(bench: Bench) -> None:
    answers = [bench.ask(prompt)[1] for prompt in ("count 3 0.02", "turn", "turn")]
    texts = [collect(events)[0] for events in answers]
    assert texts == ["1 2 3 ", "2", "3"]


def test_the_end_says_why_and_how_much(bench: Bench) -> None:
    assert collect(bench.ask("count 3")[1]) == ("1 2 3 ", Finished("stop", 2, 3))
    assert bench.number("generated_tokens_total") == 3
    assert bench.number("prompt_tokens_total") == 2
    assert bench.number("read_bytes_total") == 3000
    assert bench.number("request_seconds_count") == 1


def test_a_figure_that_the_model_does_not_know_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = ScriptedStats(tokens=0, generated=0, read_bytes=None, hit_rate=None)
    monkeypatch.setattr(ScriptedModel, "stats", lambda model: unknown)
    bench = Bench()
    for prompt in ("", "count 3"):
        if prompt:
            collect(bench.ask(prompt)[1])
        page = bench.metrics.text(0, 0)
        assert "read_bytes" not in page and "hit_rate" not in page
    assert bench.number("generated_tokens_total") == 3
    bench.worker.close(SECONDS_MOST)


def test_a_full_queue_refuses_at_once_and_takes_again(bench: Bench) -> None:
    job, slow = bench.ask("count 400 0.05")
    assert slow.get(timeout=SECONDS_MOST) == "1 "
    waiting = [bench.ask("turn")[1] for _ in range(2)]
    with pytest.raises(ApiError, match="2 requests are waiting") as caught:
        bench.ask("turn")
    assert (caught.value.status, caught.value.headers) == (503, {"retry-after": "1"})
    assert bench.worker.queue_length == 2
    bench.worker.cancel(job, LEFT)
    assert collect(slow)[1] is LEFT
    assert [collect(events)[0] for events in waiting] == ["2", "3"]
    assert collect(bench.ask("turn")[1])[0] == "4"


def test_the_memory_of_those_that_wait_is_limited(bench: Bench) -> None:
    one = asked("say " + "x" * 1000).nbytes
    bench.worker._max_bytes = 2 * one - 1
    job, slow = bench.ask("count 400 0.05")
    assert slow.get(timeout=SECONDS_MOST) == "1 "
    first = bench.ask("say " + "y" * 5000)[1]  # alone it may be larger than the limit
    with pytest.raises(ApiError, match=f"take .* bytes, {2 * one - 1} is the most") as caught:
        bench.ask("turn")
    assert (caught.value.status, caught.value.code) == (503, "queue_full")
    bench.worker.cancel(job, LEFT)
    assert collect(first)[0] == "y" * 500
    job, slow = bench.ask("count 400 0.05")
    assert slow.get(timeout=SECONDS_MOST) == "1 "
    bench.ask("say " + "z" * 1000)
    with pytest.raises(ApiError):
        bench.ask("say " + "z" * 1000)
    waits = bench.ask("turn")[1]
    bench.worker.cancel(job, LEFT)
    assert collect(waits)[0] == "5"


def test_a_waiting_job_is_taken_out(bench: Bench) -> None:
    first, events = bench.ask("count 400 0.05")
    assert events.get(timeout=SECONDS_MOST) == "1 "
    second, gone = bench.ask("turn")
    _, third = bench.ask("turn")
    assert bench.worker.cancel(second, LEFT)
    assert not bench.worker.cancel(second, LEFT), "once is enough"
    assert collect(gone) == ("", LEFT)
    assert bench.worker.queue_length == 1
    bench.worker.cancel(first, LEFT)
    collect(events)
    assert collect(third)[0] == "2", "the second never ran"


def test_a_running_job_ends_within_a_token(bench: Bench) -> None:
    job, events = bench.ask("count 400 0.02")
    assert events.get(timeout=SECONDS_MOST) == "1 "
    assert bench.worker.in_flight == 1
    assert bench.worker.cancel(job, LEFT)
    text, end = collect(events)
    assert end is LEFT
    while bench.worker.in_flight:
        time.sleep(0.01)
    assert bench.model.generated <= 1 + len(text.split()) + 2
    while not events.empty():
        assert isinstance(events.get(), str), "one end is enough"
    assert not bench.worker.cancel(job, LEFT)


def test_a_finished_job_cannot_be_cancelled(bench: Bench) -> None:
    job, events = bench.ask("turn")
    collect(events)
    assert not bench.worker.cancel(job, LEFT)


@pytest.mark.parametrize(
    "prompt, code", [("fail 2", "StorageError"), ("crash 2", "internal_error")]
)
def test_a_failure_is_told_and_the_next_is_answered(
    bench: Bench, prompt: str, code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text, error = collect(bench.ask(prompt)[1])
    assert isinstance(error, ApiError)
    assert (text, error.status, error.code) == ("xx", 500, code)
    assert ("ZeroDivisionError" in capfd.readouterr().err) == (code == "internal_error")
    assert bench.model.resets == (code == "internal_error")
    assert collect(bench.ask("turn")[1])[0] == "2"


def test_too_long_a_prompt_is_the_clients_fault(bench: Bench) -> None:
    _, error = collect(bench.ask("long")[1])
    assert isinstance(error, ApiError)
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "prompt")
    assert bench.number("prompt_tokens_total") == 0


def test_what_is_refused_after_a_prompt_that_was_too_long_is_not_called_so(bench: Bench) -> None:
    bench.model.prompt_tokens = 2000
    _, error = collect(bench.ask("refuse")[1])
    assert isinstance(error, ApiError)
    assert (error.status, error.code, error.param) == (400, None, "prompt")
    bench.model.context_tokens = 0  # however long a prompt seems
    _, error = collect(bench.ask("refuse")[1])
    assert isinstance(error, ApiError) and error.code is None
    assert bench.number("prompt_tokens_total") == 0


def test_stopping_sends_the_waiting_away_and_lets_one_finish(bench: Bench) -> None:
    _, running = bench.ask("count 5 0.05")
    _, waiting = bench.ask("turn")
    assert running.get(timeout=SECONDS_MOST) == "1 "
    bench.worker.refuse()
    _, error = collect(waiting)
    assert isinstance(error, ApiError) and error.status == 503
    with pytest.raises(ApiError, match="stopping"):
        bench.ask("turn")
    assert collect(running) == ("2 3 4 5 ", Finished("stop", 3, 5))


def test_closing_aborts_what_runs(bench: Bench) -> None:
    _, events = bench.ask("count 400 0.05")
    assert events.get(timeout=SECONDS_MOST) == "1 "
    begin = time.monotonic()
    assert not bench.worker.close(0), "the token in hand takes longer"
    assert bench.worker.close(SECONDS_MOST)
    assert time.monotonic() - begin < 10
    _, error = collect(events)
    assert isinstance(error, ApiError) and error.status == 503


def test_metrics_are_prometheus_text(bench: Bench) -> None:
    bench.metrics.answered("/health", 200)
    lines = bench.metrics.text(3, 1).splitlines()
    assert 'penstock_requests_total{path="/health",code="200"} 1' in lines
    assert "penstock_queue_length 3" in lines and "penstock_in_flight 1" in lines
    named = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    for line in lines:
        if line.startswith("#"):
            continue
        name, value = line.rsplit(" ", 1)
        float(value)
        name = name.partition("{")[0]
        assert name in named or name.removesuffix("_sum").removesuffix("_count") in named
