"""CLIP's text encoder in plain torch, and the embeddings of concept names that it makes.

A GPT-2 style transformer with causal attention and layer norms before each part; the features of
the end token, after a last norm and a projection, are the text's embedding (Radford et al. 2021,
arXiv 2103.00020, section 2.4). Parameters have the names of OpenAI's checkpoints. Shapes in
comments: B texts, T tokens, D width (512), E embedding (1024).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from penstock.errors import UsageError
from penstock.export.report import Progress, ProgressCallback

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEMPLATES = ("a photo of a {}.",)  # CLIP's own, section 3.1.4 of the paper
BATCH = 64


class ClipText(nn.Module):
    """(B, T) token ids, begun and ended -> (B, E), not normalised. Sizes are those of RN50."""

    def __init__(
        self,
        vocabulary: int = 49_408,
        context: int = 77,
        width: int = 512,
        heads: int = 8,
        layers: int = 12,
        embedding: int = 1024,
    ) -> None:
        super().__init__()
        self.context = context
        self.token_embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            _random(vocabulary, width, scale=0.02), freeze=False
        )
        self.positional_embedding = nn.Parameter(_random(context, width, scale=0.01))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(TextBlock(width, heads) for _ in range(layers))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(_random(width, embedding, scale=width**-0.5))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for block in self.transformer.resblocks:  # type: ignore[union-attr]
            x = block(x)
        ends = ids.argmax(-1)  # the end token has the highest id; what follows it is padding
        x = self.ln_final(x[torch.arange(len(x)), ends])
        out: Tensor = x @ self.text_projection
        return out


class TextBlock(nn.Module):
    """(B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict[str, nn.Module](
                c_fc=nn.Linear(width, width * 4),
                gelu=QuickGELU(),
                c_proj=nn.Linear(width * 4, width),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class CausalAttention(nn.Module):
    """Each token sees itself and those before it; query, key and value in one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(_random(3 * width, width, scale=width**-0.5))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        split = qkv.view(*x.shape[:2], 3, self.heads, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D/heads)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out_proj(seen.transpose(1, 2).flatten(2))
        return out


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def _random(*shape: int, scale: float) -> Tensor:
    """Uniform: on the meta device a normal distribution makes torch import 800 modules."""
    return nn.init.uniform_(torch.empty(*shape), -scale, scale)


def encode_concepts(
    names: Sequence[str],
    text: ClipText,
    tokenizer: Tokenizer,
    *,
    templates: Sequence[str] = TEMPLATES,
    progress: ProgressCallback | None = None,
) -> NDArray[np.float32]:
    """(names, E): the mean over the templates of a name's embeddings, each of length 1.

    Args:
        tokenizer: of `clip_tokenizer`.
        templates: sentences with `{}` where the name goes.

    Raises:
        UsageError: there are no names or templates, a template has no `{}`, or a name makes a
            sentence longer than the encoder's context.
    """
    if not names or not templates:
        raise UsageError("no concepts to encode: at least one name and one template are needed")
    lost = [template for template in templates if "{}" not in template]
    if lost:
        raise UsageError(f"template '{lost[0]}' has no {{}} where the concept's name would go")
    made = []
    for first in range(0, len(names), BATCH):
        batch = names[first : first + BATCH]
        embeddings = [
            F.normalize(_encode([t.replace("{}", name) for name in batch], text, tokenizer))
            for t in templates
        ]
        made.append(F.normalize(torch.stack(embeddings).mean(0)).numpy())
        if progress is not None:
            progress(Progress("encoding concepts", first + len(batch), len(names), "concepts"))
    out: NDArray[np.float32] = np.concatenate(made)
    return out


@torch.inference_mode()
def _encode(sentences: list[str], text: ClipText, tokenizer: Tokenizer) -> Tensor:
    found = [encoding.ids for encoding in tokenizer.encode_batch(sentences)]
    longest = max(map(len, found))
    if longest > text.context:
        at = [len(ids) for ids in found].index(longest)
        raise UsageError(
            f"'{sentences[at]}' has {longest} tokens, more than the {text.context} of CLIP's text "
            "encoder; shorten the concept's name or the template"
        )
    ids = torch.zeros(len(found), longest, dtype=torch.long)
    for row, of in zip(ids, found, strict=True):
        row[: len(of)] = torch.tensor(of)
    out: Tensor = text(ids.to(text.text_projection.device)).float().cpu()
    return out
