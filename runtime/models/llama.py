"""Llama with a ReLU gate: ReluLLaMA, ProSparse (FATReLU), Bamboo (ReLU on gate and up).

The block is Llama's: RMS norm, rotary positions in interleaved pairs, grouped-query attention,
down(act(gate x) * up x). Checked against transformers' LlamaForCausalLM; llama.cpp's `llama`
hard-codes SiLU and cannot serve as an oracle.
"""

from __future__ import annotations

from penstock.runtime.program import Program


def record(p: Program) -> None:
    """Record the forward pass."""
    c = p.config
    x = p.embed()  # (width)
    for n in range(c.layers):
        h = p.rms_norm(x, f"blk.{n}.attn_norm")
        q = p.linear(h, f"blk.{n}.attn_q", c.heads * c.head_dim, "q")
        k = p.linear(h, f"blk.{n}.attn_k", c.kv_heads * c.head_dim, "k")
        v = p.linear(h, f"blk.{n}.attn_v", c.kv_heads * c.head_dim, "v")
        p.rope(q, c.heads, interleaved=True)
        p.rope(k, c.kv_heads, interleaved=True)
        p.add(x, p.linear(p.attention(q, k, v), f"blk.{n}.attn_output", c.width, "projected"))
        h = p.rms_norm(x, f"blk.{n}.ffn_norm")
        p.add(x, p.ffn(h, n))  # three rows a bundle: gate, up, down
    p.logits(p.rms_norm(x, "output_norm"))
