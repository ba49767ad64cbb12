"""Real routers, small: trains a mixture of experts on the fairy tales and records what it chooses.

    python benchmarks/router_traces.py [--minutes 8] [--out routers.trace]
    penstock bench replay routers.trace

Policies that decide what stays in the expert window are compared on such traces. The model is OLMoE
as transformers implements it, with its load-balancing loss, of a size that two cores can train; its
routers are trained, its text is the validation book. The router's scores are kept beside the trace
(`routers.npz`), for looking at what a policy could know besides the choices.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.expert_trace import TraceRecorder, write_trace

sys.path.append(str(Path(__file__).resolve().parent.parent))

from examples.train_storyteller.data import (
    VALIDATION_BOOK,
    encode_book,
    load_tokenizer,
    training_books,
)

SHARED = Path("../shared")
LAYERS, EXPERTS, USED, WIDTH, NEURONS = 6, 64, 8, 192, 96
LENGTH, WINDOWS = 256, 8
TRACED = 4096  # tokens


def model_of(vocab: int):  # type: ignore[no-untyped-def]
    """OLMoE with random weights."""
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(1)
    config = OlmoeConfig(
        vocab_size=vocab, hidden_size=WIDTH, intermediate_size=NEURONS, num_hidden_layers=LAYERS,
        num_attention_heads=6, num_key_value_heads=6, num_experts=EXPERTS,
        num_experts_per_tok=USED, max_position_embeddings=2 * LENGTH, router_aux_loss_coef=0.01,
        output_router_logits=True, norm_topk_prob=True, tie_word_embeddings=True,
    )  # fmt: skip
    return OlmoeForCausalLM(config)


def train(model, books: list[NDArray[np.int64]], minutes: float) -> int:  # type: ignore[no-untyped-def]
    """AdamW over random windows for so long; returns the steps that were made."""
    import torch

    rng = np.random.default_rng(1)
    sizes = np.array([len(b) for b in books], float)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    began, step = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < 60 * minutes:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * max(0.05, 1 - spent / (60 * minutes))
        chosen = rng.choice(len(books), WINDOWS, p=sizes / sizes.sum())
        starts = [int(rng.integers(0, len(books[b]) - LENGTH)) for b in chosen]
        rows = [books[b][s : s + LENGTH] for b, s in zip(chosen, starts, strict=True)]
        ids = torch.from_numpy(np.stack(rows))
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 25 == 0:
            print(f"step {step}, {spent:.0f} s, loss {float(out.loss.detach()):.3f}", flush=True)
    return step


def scores_of(model, tokens: NDArray[np.int64]) -> NDArray[np.float32]:  # type: ignore[no-untyped-def]
    """(tokens, layers, experts) logits of every router, the text read in windows."""
    import torch

    parts = []
    with torch.no_grad():
        for start in range(0, len(tokens) - LENGTH + 1, LENGTH):
            out = model(input_ids=torch.from_numpy(tokens[None, start : start + LENGTH]))
            parts.append(torch.stack(list(out.router_logits), dim=1).float().numpy())
    scores: NDArray[np.float32] = np.concatenate(parts)
    return scores


def main() -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--minutes", type=float, default=8.0, help="of training")
    made.add_argument("--out", type=Path, default=Path("routers.trace"))
    args = made.parse_args()
    tokenizer = load_tokenizer(SHARED / "models" / "storyteller-start")
    folder = SHARED / "data" / "fairytales"
    books = [encode_book(tokenizer, path) for path in training_books(folder)]
    model = model_of(tokenizer.get_vocab_size())
    steps = train(model, books, args.minutes)
    scores = scores_of(model.eval(), encode_book(tokenizer, folder / VALIDATION_BOOK)[:TRACED])
    recorder = TraceRecorder(LAYERS, EXPERTS)
    chosen = np.sort(np.argsort(-scores, axis=2)[:, :, :USED], axis=2)
    for token in chosen:
        pairs = [-1, -1]
        for layer, experts in enumerate(token):
            for expert in experts:
                pairs += [layer, int(expert)]
        recorder.add(pairs, prompt=False)
    write_trace(args.out, recorder.trace(f"olmoe-tales-{steps}-steps", "olmoe", USED))
    np.savez_compressed(args.out.with_suffix(".npz"), scores=scores.astype(np.float16))
    same = (chosen[1:, :, :, None] == chosen[:-1, :, None, :]).any(axis=3).mean()
    print(f"{steps} steps; {len(scores)} tokens; {same:.1%} of the experts chosen again")


if __name__ == "__main__":
    main()
