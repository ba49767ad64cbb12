"""A contender of the decode benchmark, in a process of its own: decodes when it is told to.

Protocol, a line of JSON each: out {"ready": ...}, in {"tokens": n}, out {"seconds": [...], ...};
the end of input ends it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.ablation_rows import ROWS, row_plan
from benchmarks.active_sets import generate
from benchmarks.task_file import read_task
from penstock.loaders.probe import DeviceProfile

CONTEXT = 64


@dataclass(frozen=True)
class Job:
    """Which contender. profile: of the storage; budget: bytes of memory, in the window only."""

    role: str  # 'dense', 'sparse', 'window', 'llama', 'llama-mmap'
    model: str
    threads: int
    profile: DeviceProfile | None = None
    budget: int = 0


class Contender(Protocol):
    def step(self, position: int) -> None: ...
    def report(self) -> dict[str, Any]: ...


class Ours:
    """Penstock: all in memory, dense or with active sets of a tenth; or through the window."""

    def __init__(self, job: Job) -> None:
        from penstock.loaders.bundle import open_bundle
        from penstock.runtime.flash_engine import FlashEngine
        from penstock.runtime.planner import PlanOptions, make_plan

        bundle = open_bundle(job.model)
        sets = generate(bundle.layers, bundle.neurons, 48)
        if job.profile is None:
            raise ValueError(f"{job.role} needs the storage's profile")
        if job.role == "window":
            plan = row_plan(bundle, job.profile, ROWS[-1], sets, job.budget, job.threads)
        else:
            mode = "dense" if job.role == "dense" else "predictor"
            options = PlanOptions(
                mode=mode, ffn_share=1.0, context=CONTEXT, batch=1, threads=job.threads
            )
            plan = make_plan(bundle, job.profile, options)
        self.engine = FlashEngine(bundle, plan)
        self.layers = bundle.layers
        self.neurons = bundle.layers * bundle.neurons
        self.planned = plan.total
        if job.role != "dense":
            self.engine.decoder.script(sets.ids, sets.offsets)
        self.logits = np.empty((1, self.engine.vocab), np.float32)
        self.engine.decoder.reset_stats()

    def step(self, position: int) -> None:
        self.engine.decode_into(np.array([5 + position], np.int32), position, self.logits)

    def report(self) -> dict[str, Any]:
        decoder = self.engine.decoder
        layers = [decoder.ffn_stats(n) for n in range(self.layers)]
        stats = decoder.stats()
        return {
            "active": sum(s.active for s in layers) / max(1, sum(s.predicted for s in layers)),
            "computed": sum(s.predicted for s in layers) / max(1, stats.tokens * self.neurons),
            "bytes_per_token": stats.io_bytes / max(1, stats.tokens),
            "planned": self.planned,
            "first_logits": self.logits[0, :4].tolist(),
        }


class LlamaCpp:
    """llama.cpp through llama-cpp-python, one token at a time."""

    def __init__(self, job: Job) -> None:
        from llama_cpp import Llama

        self.model = Llama(
            job.model,
            n_ctx=CONTEXT,
            n_batch=CONTEXT,
            n_threads=job.threads,
            n_threads_batch=job.threads,
            use_mmap=job.role == "llama-mmap",
            verbose=False,
        )

    def step(self, position: int) -> None:
        if position == 0:
            self.model.reset()
        self.model.eval([5 + position])

    def report(self) -> dict[str, Any]:
        import llama_cpp

        logits = llama_cpp.llama_get_logits(self.model._ctx.ctx)
        return {"first_logits": [float(logits[i]) for i in range(4)]}


def main() -> None:
    job = read_task(Path(sys.argv[1]), Job)
    contender: Contender = LlamaCpp(job) if job.role.startswith("llama") else Ours(job)
    _say({"ready": job.role})
    for line in sys.stdin:
        seconds = []
        for position in range(json.loads(line)["tokens"]):
            began = perf_counter()
            contender.step(position)
            seconds.append(perf_counter() - began)
        _say({"seconds": seconds, **contender.report()})


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
