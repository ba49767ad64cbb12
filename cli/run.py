"""`penstock run`: continue a text."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, read_prompt, say
from penstock.cli.option_groups import Loading, Sampling, grouped
from penstock.cli.options import examples

EXAMPLES = examples(
    'penstock run model.gguf "Once upon a time"',
    'penstock run model.gguf "Once upon a time" --memory 24MiB --stats',
    'penstock run model.gguf "Once upon a time" --ffn-resident 25% --exact --temperature 0',
    "cat prompt.txt | penstock run model.gguf --max-tokens 400 --seed 1 > story.txt",
    'penstock run model.gguf "Once upon a time" --json | jq .stats.per_token_bytes',
    'penstock run experts.gguf "Once upon a time" --memory 2GiB --record-trace run.trace',
)


@grouped
def run(
    model: options.Model,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", hidden=True),
    ] = None,
    *,
    loading: Loading,
    max_tokens: options.MaxTokens = 256,
    sampling: Sampling,
    record_trace: options.RecordTrace = None,
    stats: options.Stats = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Continue a text with a model whose weights may stay on storage.

    MODEL is a Penstock bundle, made by `penstock export llm`, or any GGUF file. PROMPT is the text
    to continue; '-', or none while something is piped in, reads stdin. The continuation goes to
    stdout as it is made, everything else to stderr.
    """
    params = sampling.params(max_tokens)
    text = read_prompt(prompt)
    loaded = loading.load(model)
    with nullcontext() if record_trace is None else loaded.record_trace(record_trace):
        pieces = loaded.generate(text, sampling=params)
        if as_json:
            whole = "".join(pieces)
        else:
            for piece in pieces:
                print(piece, end="", flush=True)
            print(flush=True)
    if as_json:
        emit_json(
            {
                "model": model,
                "prompt": text,
                "text": whole,
                "finish_reason": loaded.finish_reason,
                "mode": loaded.plan.mode,
                "sampling": params,
                "stats": loaded.stats().to_dict(),
            }
        )
    if stats:
        say(str(loaded.stats()))
