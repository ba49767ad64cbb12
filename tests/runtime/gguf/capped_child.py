"""Run by test_budget.py in a process of its own: a prompt and some tokens of a GGUF file.

    python capped_child.py CGROUP_PROCS PATH OPTIONS PROMPT TOKENS

It first moves itself into the memory cgroup. PATH '-' stops before anything is loaded: that is the
baseline. OPTIONS are of penstock.load, as JSON. Prints JSON: the plan and what was read.
"""

from __future__ import annotations

import json
import os
import sys

with open(sys.argv[1], "w") as procs:
    procs.write(str(os.getpid()))

import numpy as np  # noqa: E402

import penstock.runtime.load as runtime  # noqa: E402
from penstock.runtime.gguf.library import llama  # noqa: E402
from penstock.runtime.gguf.model import GgufModel  # noqa: E402


def main() -> None:
    path, options = sys.argv[2], json.loads(sys.argv[3])
    prompt, tokens = int(sys.argv[4]), int(sys.argv[5])
    llama()
    if path == "-":
        print("{}")
        return
    model = runtime.load(path, threads=2, **options)
    assert isinstance(model, GgufModel)
    random = np.random.default_rng(1)
    ids: list[int] = random.integers(4, model.engine.vocab, prompt + tokens).tolist()
    logits = model.engine.decode(ids[:prompt])
    for token in ids[prompt:]:
        logits = model.engine.decode([token])
    print(
        json.dumps(
            {
                "plan": model.plan.to_dict(),
                "read": model.stats().read_bytes,
                "hit_rate": model.stats().hit_rate,
                "sum": float(np.abs(logits).sum()),
            }
        )
    )


if __name__ == "__main__":
    main()
