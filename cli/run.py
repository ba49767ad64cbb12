"""`penstock run`: continue a text."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, read_prompt, say
from penstock.cli.options import examples

EXAMPLES = examples(
    'penstock run model.gguf "Once upon a time"',
    'penstock run model.gguf "Once upon a time" --memory 24MiB --stats',
    'penstock run model.gguf "Once upon a time" --ffn-resident 25% --exact --temperature 0',
    "cat prompt.txt | penstock run model.gguf --max-tokens 400 --seed 1 > story.txt",
    'penstock run model.gguf "Once upon a time" --json | jq .stats.per_token_bytes',
)


def run(
    model: options.Model,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", hidden=True),
    ] = None,
    memory: options.Memory = None,
    ffn_resident: options.FfnResident = None,
    exact: options.Exact = False,
    dense: options.Dense = False,
    stats: options.Stats = False,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = options.TEMPERATURE,
    top_k: options.TopK = 0,
    top_p: options.TopP = options.TOP_P,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    context: options.Context = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Continue a text with a model whose weights may stay on storage.

    MODEL is a Penstock bundle, made by `penstock export llm`. PROMPT is the text to continue; '-',
    or none while something is piped in, reads stdin. The continuation goes to stdout as it is
    made, everything else to stderr.
    """
    options.check_modes(exact, dense)
    import penstock
    from penstock.runtime.sampling import SamplingParams

    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    text = read_prompt(prompt)
    loaded = penstock.load(
        model,
        memory=memory,
        ffn_resident=ffn_resident,
        exact=exact,
        dense=dense,
        context=context,
        threads=threads,
    )
    pieces = loaded.generate(text, sampling=sampling)
    if as_json:
        whole = "".join(pieces)
        emit_json(
            {
                "model": model,
                "prompt": text,
                "text": whole,
                "finish_reason": loaded.finish_reason,
                "mode": loaded.plan.mode,
                "sampling": sampling,
                "stats": loaded.stats().to_dict(),
            }
        )
    else:
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
    if stats:
        say(str(loaded.stats()))
