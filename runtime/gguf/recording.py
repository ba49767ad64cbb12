"""Records what the routers of a model choose while it runs, for `penstock bench replay`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import UsageError
from penstock.loaders.expert_trace import TraceRecorder, write_trace
from penstock.loaders.partial_file import check_writable
from penstock.runtime.gguf.engine import GgufEngine


@contextmanager
def record_trace(engine: GgufEngine, path: str | os.PathLike[str]) -> Iterator[None]:
    """See `GgufModel.record_trace`."""
    out, plan = Path(path), engine.plan
    if not plan.experts:
        raise UsageError(f"{plan.path}: this model has no experts, so there is no router to record")
    if engine.streamer is None:
        raise UsageError(
            f"{plan.path}: its experts are not streamed ({plan.mode} mode), so routers are not "
            "watched; load the model with a memory budget that not all experts fit"
        )
    check_writable(out)
    recorder = TraceRecorder(len(engine.weights.expert_blocks), engine.weights.experts)
    engine.start_recording(recorder)
    try:
        yield
    finally:
        engine.stop_recording()
    write_trace(out, recorder.trace(Path(plan.path).name, plan.arch, plan.experts_used))
