"""OPT: learned positions, layer norm, biases everywhere, ReLU. The paper's main model.

The file's position table starts at position 0: the exporter drops the two leading rows that
Hugging Face keeps for padding. OPT-350M normalises after each block instead of before it, and has
no final norm. Checked against transformers' OPTForCausalLM; llama.cpp has no `opt`.
"""

from __future__ import annotations

from penstock.runtime.program import Program


def record(p: Program) -> None:
    """Record the forward pass."""
    c = p.config
    x = p.embed()  # (width)
    p.add_position(x)
    for n in range(c.layers):
        h = x if c.post_norm else p.layer_norm(x, f"blk.{n}.attn_norm")
        q = p.linear(h, f"blk.{n}.attn_q", c.heads * c.head_dim, "q")
        k = p.linear(h, f"blk.{n}.attn_k", c.kv_heads * c.head_dim, "k")
        v = p.linear(h, f"blk.{n}.attn_v", c.kv_heads * c.head_dim, "v")
        p.add(x, p.linear(p.attention(q, k, v), f"blk.{n}.attn_output", c.width, "projected"))
        if c.post_norm:
            p.layer_norm(x, f"blk.{n}.attn_norm", out=x)
        h = x if c.post_norm else p.layer_norm(x, f"blk.{n}.ffn_norm")
        p.add(x, p.ffn(h, n))  # relu(up x + b), no gate
        if c.post_norm:
            p.layer_norm(x, f"blk.{n}.ffn_norm", out=x)
    p.logits(x if c.post_norm else p.layer_norm(x, "output_norm"))
