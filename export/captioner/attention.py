"""Attention of a decoder that keeps keys and values, written so that it exports as one graph.

The same operations serve a prompt and a single token, no past and a long one: the axes of rows
(beams), new tokens and past tokens are free.

Shapes: B beams, H heads, N new tokens, T past tokens, P positions of the image, D of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    KeyValue = tuple[Tensor, Tensor]


def self_attention(
    query: Tensor, key: Tensor, value: Tensor, past: KeyValue, later: Tensor, scale: float
) -> tuple[Tensor, KeyValue]:
    """Attention to what came before and to the token itself.

    Args:
        query, key, value: of the new tokens, (B, H, N, D).
        past: keys and values of the tokens before, (B, H, T, D) each.
        later: from `token_places`.

    Returns:
        (B, N, H * D), and keys and values with the new tokens added.
    """
    import torch

    key = torch.cat((past[0], key), dim=2)
    value = torch.cat((past[1], value), dim=2)
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(later, float("-inf"))
    return merge_heads(torch.softmax(scores, dim=-1) @ value), (key, value)


def token_places(tokens: Tensor, past: list[KeyValue]) -> tuple[Tensor, Tensor]:
    """Where the new tokens (B, N) stand after those in the past: (N,): T, T + 1, ...

    And what stands after each of them, which it may not attend to: (N, T + N).
    """
    import torch

    before, new = past[0][0].shape[2], tokens.shape[1]
    places = torch.arange(new) + before
    return places, torch.arange(before + new).unsqueeze(0) > places.unsqueeze(1)


def cross_attention(query: Tensor, cross: KeyValue, scale: float) -> Tensor:
    """Attention to the image, whose keys and values all beams share.

    The beams stand below each other in one matrix per head, so that the image's keys and values
    are read once for all of them.

    Args:
        query: (B, H, N, D).
        cross: from `image_keys`: (H, D, P) and (H, P, D).

    Returns:
        (B, N, H * D).
    """
    import torch

    beams, heads, new, width = query.shape
    rows = query.transpose(0, 1).reshape(heads, beams * new, width)
    mixed = torch.softmax(rows @ cross[0] * scale, dim=-1) @ cross[1]
    return merge_heads(mixed.reshape(heads, beams, new, width).transpose(0, 1))


def image_keys(key: Tensor, value: Tensor, heads: int) -> KeyValue:
    """(1, P, H * D) each, as `cross_attention` wants them; made once for an image."""
    return split_heads(key, heads)[0].transpose(1, 2), split_heads(value, heads)[0]


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(B, N, H * D) to (B, H, N, D)."""
    rows, new, width = states.shape
    return states.reshape(rows, new, heads, width // heads).transpose(1, 2)


def merge_heads(states: Tensor) -> Tensor:
    """(B, H, N, D) to (B, N, H * D)."""
    rows, heads, new, width = states.shape
    return states.transpose(1, 2).reshape(rows, new, heads * width)
