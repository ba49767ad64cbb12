"""Run by test_budget.py in a process of its own: load a model, write tokens, say what it took.

    python capped_child.py CGROUP_PROCS PATH OPTIONS TOKENS

It first moves itself into the memory cgroup. PATH '-' stops before anything is loaded: that is the
baseline. OPTIONS are of penstock.load, as JSON. Prints JSON: peaks of the process and of
the engine, in bytes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

with open(sys.argv[1], "w") as procs:
    procs.write(str(os.getpid()))

import jinja2.sandbox  # noqa: E402, F401  all that a generation will import
import numpy as np  # noqa: E402
import tokenizers  # noqa: E402, F401

import penstock.runtime.load as runtime  # noqa: E402
from penstock.runtime.budget import peak_memory  # noqa: E402
from penstock.runtime.models import arcee, llama, nemotron, opt  # noqa: E402, F401


def main() -> None:
    path, options, tokens = sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
    before = peak_memory()
    if path == "-":
        print(json.dumps({"peak": before}))
        return
    model = runtime.load_bundle(Path(path), threads=2, **options)
    after_load = peak_memory()
    engine, plan = model.engine, model.plan
    prompt = np.array(model.tokenizer.encode("Once upon a time there was a king"), np.int32)
    logits = engine.prefill(prompt)
    for _ in range(tokens):
        logits = engine.decode(int(logits.argmax()))
    text = "".join(model.generate("The old woman said", max_tokens=8, temperature=0.7, seed=1))
    result = {
        "peak": peak_memory(),
        "before": before,
        "after_load": after_load,
        "total": plan.total,
        "decoder": engine.decoder.memory_bytes,
        "buffers": plan.buffers,
        "tokenizer": plan.tokenizer,
        "ffn": plan.ffn,
        "ffn_whole": plan.ffn_whole,
        "read": engine.decoder.stats().io_bytes,
        "text": text,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
