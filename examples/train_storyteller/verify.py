"""Check an exported folder against transformers and let it tell the beginning of a story.

Run, in the repository's root: ``python -m examples.train_storyteller.verify MODEL
[--prompt TEXT] [--temperature 0.7] [--tokens 300]``
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import ArceeForCausalLM, AutoTokenizer

from examples.train_storyteller.data import load_tokenizer
from examples.train_storyteller.model import load_model

TOLERANCE = 2e-3  # of a logit in float32; the two differ in the order of their sums alone


@torch.inference_mode()
def main() -> None:
    """Compare all logits of the prompt, then sample a continuation of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="Hugging Face folder of the model")
    parser.add_argument("--prompt", default="Once upon a time there was a king who")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=300, help="length of the sample")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    theirs: Any = ArceeForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    ours = load_model(args.model).eval()
    ids = torch.tensor([load_tokenizer(args.model).encode(args.prompt).ids])  # (1, T)
    same_ids = tokenizer(args.prompt, return_tensors="pt")["input_ids"].equal(ids)
    difference = float((theirs(ids).logits - ours.logits(ids)).abs().max())
    print(f"token ids equal: {same_ids}; largest difference of a logit: {difference:.2e}")
    torch.manual_seed(args.seed)
    sample = theirs.generate(
        ids, max_new_tokens=args.tokens, do_sample=True, temperature=args.temperature, top_p=1.0
    )
    print(tokenizer.decode(sample[0]))
    if not same_ids or difference > TOLERANCE:
        raise SystemExit(f"{args.model}: transformers disagrees with the model it was trained as")


if __name__ == "__main__":
    main()
