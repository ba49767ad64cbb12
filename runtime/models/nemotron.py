"""Nemotron and Minitron: layer norm with 1 + weight, partial rotary positions, squared ReLU.

The file's norm weights already include the 1 (the exporter adds it, as llama.cpp's converter does).
Rotary pairs lie half the rotated width apart. Checked against transformers and llama.cpp.
"""

from __future__ import annotations

from penstock.runtime.program import Program


def record(p: Program) -> None:
    """Record the forward pass."""
    c = p.config
    x = p.embed()  # (width)
    for n in range(c.layers):
        h = p.layer_norm(x, f"blk.{n}.attn_norm")
        q = p.linear(h, f"blk.{n}.attn_q", c.heads * c.head_dim, "q")
        k = p.linear(h, f"blk.{n}.attn_k", c.kv_heads * c.head_dim, "k")
        v = p.linear(h, f"blk.{n}.attn_v", c.kv_heads * c.head_dim, "v")
        p.rope(q, c.heads, interleaved=False)
        p.rope(k, c.kv_heads, interleaved=False)
        p.add(x, p.linear(p.attention(q, k, v), f"blk.{n}.attn_output", c.width, "projected"))
        h = p.layer_norm(x, f"blk.{n}.ffn_norm")
        p.add(x, p.ffn(h, n))  # relu(up x) ** 2, no gate
    p.logits(p.layer_norm(x, "output_norm"))
