"""`penstock plan`: what would stay in memory and how fast that should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.cli import options
from penstock.cli.console import emit_json, percent, print_facts, print_table, say, size
from penstock.cli.option_groups import Loading, grouped
from penstock.cli.options import examples

if TYPE_CHECKING:
    from penstock.loaders.bundle import Bundle
    from penstock.runtime.gguf.plan import GgufPlan
    from penstock.runtime.plan import Plan

EXAMPLES = examples(
    "penstock plan model.gguf --memory 24MiB",
    "penstock plan model.gguf --ffn-resident 25% --exact",
    "penstock plan model.gguf --memory 50% --json | jq .tokens_per_second",
)
RESIDENCY = {
    "resident": "all in memory",
    "window": "neuron window",
    "exact": "up rows + window",
    "stream": "streamed",
}
MODES = {
    "resident": "all in memory, on llama.cpp as it is",
    "stream": "dense layers streamed under llama.cpp",
    "experts": "experts streamed under llama.cpp",
    "mapped": "in llama.cpp's own mapping",
}


@grouped
def plan(
    model: options.Model,
    *,
    loading: Loading,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show how a memory budget would be spent, before anything runs.

    MODEL is a Penstock bundle or any GGUF file. Takes the options of `penstock run` and prints what
    stays in memory, what is read for each token, and how fast that should be on this device.
    """
    import penstock
    from penstock.loaders.bundle import open_bundle
    from penstock.runtime.gguf.plan import GgufPlan

    made = penstock.plan(model, **loading.arguments())
    if as_json:
        emit_json(made.to_dict())
        return
    if isinstance(made, GgufPlan):
        _print_gguf(made)
        return
    _print_budget(made)
    _print_layers(made, open_bundle(model))
    _print_outlook(made)


def _print_gguf(p: GgufPlan) -> None:
    rows = [
        ("weights", p.pinned, "stay in memory"),
        ("ring", p.ring, f"{size(p.streamed)} of dense weights pass through it for each token"),
        ("expert window", p.window, f"of {size(p.expert_total)}, {p.policy}"),
        ("KV cache", p.kv_cache, f"{p.context} tokens in {p.kv_type}"),
        ("state", p.state, "of recurrent layers"),
        ("buffers", p.buffers, f"prompts in batches of {p.batch}"),
        ("tokenizer", p.tokenizer, ""),
        ("LoRA adapters", p.adapters, ""),
        ("together", p.total, "" if p.budget is None else f"of {size(p.budget)} allowed"),
    ]
    shown = [(name, size(nbytes), note) for name, nbytes, note in rows if nbytes]
    print_table(["memory", ">bytes", ""], shown, f"{p.path}: {p.arch}, {MODES[p.mode]}")
    _print_outlook(p)
    if p.note:
        say(f"Note: {p.note}.")


def _print_budget(p: Plan) -> None:
    rows = [
        ("weights", p.weights, "embeddings, attention, norms"),
        ("predictors", p.predictors, ""),
        ("KV cache", p.kv_cache, f"{p.context} tokens"),
        ("buffers", p.buffers, f"prompts in batches of {p.batch}"),
        ("tokenizer", p.tokenizer, ""),
        ("feed-forward", p.ffn, f"of {size(p.ffn_whole)}, {percent(p.ffn / p.ffn_whole)}"),
        ("together", p.total, "" if p.budget is None else f"of {size(p.budget)} allowed"),
    ]
    title = f"{p.path}: {p.arch}, {p.mode} mode"
    print_table(
        ["memory", ">bytes", ""], [(name, size(nbytes), note) for name, nbytes, note in rows], title
    )


def _print_layers(p: Plan, bundle: Bundle) -> None:
    rows = []
    for layer, predictor in zip(p.layers, bundle.predictors, strict=True):
        used = predictor if layer.predictor else None
        rows.append(
            (
                str(layer.layer),
                RESIDENCY.get(layer.residency, layer.residency),
                str(layer.rows),
                percent(layer.share),
                size(layer.nbytes),
                "-" if used is None else str(used.rank),
                "-" if used is None else percent(used.false_negative_rate, 2),
                size(layer.read_bytes),
            )
        )
    columns = ["layer", "feed-forward", ">rows", ">share", ">memory"]
    columns += [">predictor rank", ">false negatives", ">read per token"]
    print_table(columns, rows)


def _print_outlook(p: Plan | GgufPlan) -> None:
    profile = p.profile
    if p.read_bytes is None or p.tokens_per_second is None:
        per_token = "unknown, as the system decides what of the weights is in memory"
        speed, reads = "unknown", "by the system, in llama.cpp's own mapping"
    else:
        per_token, speed = size(p.read_bytes), f"{p.tokens_per_second:.3g} expected"
        how = "direct" if p.direct else "buffered"
        reads = f"{how}, {p.backend}, {p.depth} in flight"
    print_facts(
        [
            ("read per token", per_token),
            ("tokens per second", f"{speed}, on {p.threads} threads"),
            ("least budget", f"{size(p.least)} in this mode and context"),
            ("reads", reads),
            (
                "device",
                f"{profile.device}: {size(profile.sequential_bytes_per_second)}/s in order, memory "
                f"{size(profile.memory_bytes_per_second)}/s"
                + (" (measured quickly; `penstock probe` does it well)" if profile.quick else ""),
            ),
        ]
    )
