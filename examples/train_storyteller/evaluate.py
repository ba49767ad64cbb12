"""Perplexity, bits per character and FFN sparsity of a Storyteller on the validation book.

Run, in the repository's root: ``python -m examples.train_storyteller.evaluate MODEL --books DIR
[--context 256] [--stride 256] [--json FILE]``
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.train_storyteller.data import VALIDATION_BOOK, encode_book, load_tokenizer
from examples.train_storyteller.model import Storyteller, load_model

WINDOW_TOKENS = 5  # a runtime that keeps the neurons of the last five tokens in fast memory


def windows(tokens: Tensor, context: int, stride: int) -> list[tuple[Tensor, int]]:
    """Cut (N,) tokens into pieces of at most context + 1; each with how many targets to skip.

    With ``stride < context`` a window repeats the end of the last one as context, and only the
    ``stride`` new targets count; so every token but the first is predicted exactly once.
    """
    pieces = [(tokens[: context + 1], 0)]
    done = context  # targets covered so far
    while done < len(tokens) - 1:
        end = min(done + stride, len(tokens) - 1)
        start = max(0, end - context)
        pieces.append((tokens[start : end + 1], done - start))
        done = end
    return pieces


def window_shares(active: Tensor) -> tuple[Tensor, Tensor]:
    """Of (T, F) booleans: share of neurons new at a token, and share held by the window.

    A neuron is new when it is active now and was not in the WINDOW_TOKENS tokens before; the
    window holds those active in any of the last WINDOW_TOKENS tokens.
    """
    recent = active.unfold(0, WINDOW_TOKENS, 1).any(dim=-1)  # (T - 4, F); row i: tokens i .. i + 4
    new = active[WINDOW_TOKENS:] & ~recent[:-1]
    return new.float().mean(), recent.float().mean()


@torch.inference_mode()
def evaluate(
    model: Storyteller, tokens: Tensor, characters: int, context: int, stride: int
) -> dict[str, object]:
    """All numbers of ``metrics.json``; ``characters`` is the length of the text of ``tokens``."""
    layers = model.config.num_hidden_layers
    nats = 0.0
    active, new, held = torch.zeros(3, layers)
    pieces = windows(tokens, context, stride)
    for piece, skip in pieces:
        hidden, relus = model(piece[None, :-1])
        logits = F.linear(hidden[0, skip:], model.embed_tokens.weight)  # (targets, V)
        nats += float(F.cross_entropy(logits.float(), piece[1 + skip :], reduction="sum"))
        for index, relu in enumerate(relus):
            fired = relu[0] > 0  # (T, F)
            active[index] += fired.float().mean().cpu()
            if len(fired) > WINDOW_TOKENS:
                shares = window_shares(fired)
                new[index] += shares[0].cpu()
                held[index] += shares[1].cpu()
    count = len(tokens) - 1
    return {
        "nats_per_token": round(nats / count, 4),
        "perplexity": round(math.exp(nats / count), 3),
        "bits_per_character": round(nats / math.log(2) / characters, 4),
        "context": context,
        "stride": stride,
        "mean_active_fraction": round(float(active.mean()) / len(pieces), 4),
        "per_layer_active_fraction": _rounded(active / len(pieces)),
        "per_layer_new_fraction_window5": _rounded(new / len(pieces)),
        "per_layer_window5_fraction": _rounded(held / len(pieces)),
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]


def main() -> None:
    """Evaluate a Hugging Face folder and print (or write) the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="Hugging Face folder of the model")
    parser.add_argument("--books", type=Path, required=True, help="folder of the books")
    parser.add_argument("--context", type=int, default=512, help="tokens the model sees")
    parser.add_argument("--stride", type=int, help="new targets per window; default: context / 2")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    model = load_model(args.model).eval()
    book = args.books / VALIDATION_BOOK
    tokens = torch.from_numpy(encode_book(load_tokenizer(args.model), book))
    stride = args.stride or args.context // 2
    characters = len(book.read_text(encoding="utf-8"))
    metrics = evaluate(model, tokens, characters, args.context, stride)
    text = json.dumps({"validation_book": VALIDATION_BOOK} | metrics, indent=1) + "\n"
    print(text, end="")
    if args.json:
        args.json.write_text(text)


if __name__ == "__main__":
    main()
