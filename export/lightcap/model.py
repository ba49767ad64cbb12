"""LightCap in torch: concept extractor, cross-modal modulator, fusion, parallel heads.

    photo -> encoder (frozen) -> grid [cells, channels]
    grid -> regions -> alignment module -> nearest concept text embeddings -> top concepts
    concept words -> modulator -> a weight for each channel of the grid
    [caption tokens ; concept tokens ; modulated grid] -> fusion BERT -> heads -> next token

Concepts and grid attend to each other and never to the caption, so that their keys and values are
computed once for a photo. Captions are decoded by masked autoregression: a `[MASK]` stands behind
the known tokens, its prediction is the next one. In training all steps run at once, as two streams:
known tokens, causal, and a `[MASK]` at each position that sees the known tokens before it.

Source: arXiv 2212.08985, sections 3.1 to 3.3; what it leaves open is said where it is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penstock.export.lightcap.config import LightCapConfig
from penstock.export.lightcap.regions import region_pooling

SCORE_SCALE = 10.0  # of cosine similarities before the sigmoid; with a bias it is learnt from here


class ConceptExtractor(nn.Module):
    """Which concepts of the vocabulary a photo shows."""

    pooling: Tensor

    def __init__(self, config: LightCapConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("pooling", torch.from_numpy(region_pooling(config.grid)))
        self.align_in = nn.Linear(config.channels, config.alignment)
        self.align_out = nn.Linear(config.alignment, config.embedding)
        self.text_embeddings = nn.Parameter(torch.randn(config.concepts, config.embedding))
        self.scale = nn.Parameter(torch.tensor(SCORE_SCALE))
        self.bias = nn.Parameter(torch.tensor(-SCORE_SCALE / 2))
        self.dropout = nn.Dropout(0.1)

    def align(self, grid: Tensor) -> Tensor:
        """[batch, cells, channels] -> [batch, regions, embedding], of length 1."""
        regions = self.pooling @ grid
        aligned = self.align_out(self.dropout(torch.relu(self.align_in(self.dropout(regions)))))
        return F.normalize(aligned, dim=-1)

    def forward(self, grid: Tensor) -> Tensor:
        """[batch, cells, channels] -> logits [batch, concepts], each of its best region."""
        texts = F.normalize(self.text_embeddings, dim=-1)
        similarity = (self.align(grid) @ texts.T).amax(dim=1)
        return self.scale * similarity + self.bias

    def top(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and scores in (0, 1) [batch, top_concepts], the most certain first."""
        scores, ids = torch.topk(torch.sigmoid(self(grid)), self.config.top_concepts, dim=-1)
        return ids, scores


class Modulator(nn.Module):
    """Concept words choose which channels of the grid matter: FC, ReLU, FC, sigmoid."""

    def __init__(self, config: LightCapConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.hidden, config.modulator)
        self.outer = nn.Linear(config.modulator, config.channels)

    def forward(self, concepts: Tensor, grid: Tensor) -> Tensor:
        """Concept embeddings [batch, top, hidden] and grid [batch, cells, channels] -> the grid,
        each channel weighted in (0, 1). The weights come from the concepts' mean."""
        weights = torch.sigmoid(self.outer(torch.relu(self.inner(concepts.mean(dim=1)))))
        return grid * weights[:, None, :]


@dataclass(frozen=True)
class KeysValues:
    """Of one layer, each [batch, heads, tokens, head width]."""

    keys: Tensor
    values: Tensor


class FusionLayer(nn.Module):
    """A layer of BERT: attention, then FFN, each with its norm behind the sum."""

    def __init__(self, config: LightCapConfig, dropout: float) -> None:
        super().__init__()
        self.heads, self.width = config.heads, config.head_width
        self.query = nn.Linear(config.hidden, config.hidden)
        self.key = nn.Linear(config.hidden, config.hidden)
        self.value = nn.Linear(config.hidden, config.hidden)
        self.attention_out = nn.Linear(config.hidden, config.hidden)
        self.attention_norm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.ffn_in = nn.Linear(config.hidden, config.ffn)
        self.ffn_out = nn.Linear(config.ffn, config.hidden)
        self.ffn_norm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Of tokens [batch, tokens, hidden]."""
        return KeysValues(self._split(self.key(x)), self._split(self.value(x)))

    def forward(
        self, x: Tensor, memory: list[KeysValues], mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [batch, tokens, hidden] look at the memory's, one part after the other.

        Args:
            mask: added to attention scores, broadcast to [batch, heads, tokens, memory].

        Returns:
            Tokens of the same shape, and the attention probabilities.
        """
        queries = self._split(self.query(x)) * self.width**-0.5
        scores = torch.cat([queries @ part.keys.transpose(-1, -2) for part in memory], dim=-1)
        if mask is not None:
            scores = scores + mask
        attention = torch.softmax(scores, dim=-1)
        sizes = [part.keys.shape[2] for part in memory]
        shares = torch.split(attention, sizes, dim=-1)
        seen = sum(share @ part.values for share, part in zip(shares, memory, strict=True))
        merged = torch.as_tensor(seen).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.dropout(self.attention_out(merged)))
        inner = F.gelu(self.ffn_in(x))
        made: Tensor = self.ffn_norm(x + self.dropout(self.ffn_out(inner)))
        return made, attention

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, self.width).transpose(1, 2)


class PredictionHead(nn.Module):
    """BERT's transform before the vocabulary, whose matrix is the embedding's."""

    def __init__(self, config: LightCapConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        made: Tensor = self.norm(F.gelu(self.dense(x)))
        return made


@dataclass(frozen=True)
class FusionOutput:
    """Of the training pass.

    Attributes:
        logits: [prediction heads, batch, steps, vocabulary].
        hidden: the `[MASK]` stream after each layer, [batch, steps, hidden].
        attention: the `[MASK]` stream's over prefix and known tokens, mean over heads, by layer.
    """

    logits: Tensor
    hidden: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)


class LightCap(nn.Module):
    """Everything behind the visual encoder."""

    concept_pieces: Tensor
    concept_weights: Tensor

    def __init__(self, config: LightCapConfig, dropout: float = 0.1) -> None:
        super().__init__()
        self.config = config
        self.extractor = ConceptExtractor(config)
        self.modulator = Modulator(config)
        self.words = nn.Embedding(config.vocabulary, config.hidden)
        self.places = nn.Embedding(config.positions, config.hidden)
        self.kinds = nn.Embedding(2, config.hidden)  # caption; concepts and grid
        self.embedding_norm = nn.LayerNorm(config.hidden, eps=1e-12)
        self.confidence = nn.Linear(1, config.hidden, bias=False)
        self.grid_in = nn.Linear(config.channels, config.hidden)
        self.grid_places = nn.Parameter(torch.zeros(config.cells, config.hidden))
        self.layers = nn.ModuleList(FusionLayer(config, dropout) for _ in range(config.layers))
        self.prediction = nn.ModuleList(
            PredictionHead(config) for _ in range(config.prediction_heads)
        )
        self.dropout = nn.Dropout(dropout)
        # Word pieces of each concept's name, padded; a concept's embedding is their mean.
        self.register_buffer("concept_pieces", torch.zeros(config.concepts, 4, dtype=torch.long))
        self.register_buffer("concept_weights", torch.full((config.concepts, 4), 0.25))
        self.apply(_initialise)
        nn.init.normal_(self.grid_places, std=0.02)

    def set_concept_names(self, pieces: list[list[int]]) -> None:
        """Give each concept the word pieces of its name, of which the first four count."""
        for row, ids in enumerate(pieces):
            kept = ids[:4]
            self.concept_pieces[row] = torch.tensor(kept + [0] * (4 - len(kept)))
            self.concept_weights[row] = torch.tensor(
                [1 / len(kept)] * len(kept) + [0.0] * (4 - len(kept))
            )

    def concept_table(self) -> Tensor:
        """Embeddings of all concepts' names [concepts, hidden], of the fusion's own words."""
        pieces: Tensor = self.words(self.concept_pieces)
        return (pieces * self.concept_weights[..., None]).sum(dim=1)

    def prefix_tokens(
        self, concepts: Tensor, scores: Tensor, grid: Tensor | None, table: Tensor | None = None
    ) -> Tensor:
        """Concept tokens [batch, top + cells, hidden] and behind them the modulated grid's.

        Args:
            concepts, scores: [batch, top].
            grid: [batch, cells, channels]; None in pre-training on text.
            table: `concept_table()`, where it was computed before.
        """
        names = F.embedding(concepts, self.concept_table() if table is None else table)
        tokens = names + self.confidence(scores[..., None])
        if grid is not None:
            cells = self.grid_in(self.modulator(names, grid)) + self.grid_places
            tokens = torch.cat([tokens, cells], dim=1)
        made: Tensor = self.dropout(self.embedding_norm(tokens + self.kinds.weight[1]))
        return made

    def caption_tokens(self, ids: Tensor, places: Tensor) -> Tensor:
        """Embedded caption tokens [batch, tokens, hidden]."""
        embedded = self.words(ids) + self.places(places) + self.kinds.weight[0]
        made: Tensor = self.dropout(self.embedding_norm(embedded))
        return made

    def forward(
        self, known: Tensor, concepts: Tensor, scores: Tensor, grid: Tensor | None
    ) -> FusionOutput:
        """All steps of all captions of photos at once.

        Captions of a photo stand in one sequence, share its prefix and do not see each other.

        Args:
            known: [batch, captions, steps], each from `begin` on; what is predicted at a step is
                the next token.
            concepts, scores: [batch, top]; grid: [batch, cells, channels] or None.

        Returns:
            With `captions * steps` steps.
        """
        _, captions, steps = known.shape
        device = known.device
        prefix = self.prefix_tokens(concepts, scores, grid)
        places = torch.arange(steps, device=device).repeat(captions)
        caption = self.caption_tokens(known.flatten(1), places)
        asked = torch.full_like(known.flatten(1), self.config.mask)
        query = self.caption_tokens(asked, places + 1)
        of = torch.arange(captions, device=device).repeat_interleave(steps)
        unseen = (of[:, None] != of[None]) | (places[:, None] < places[None])
        causal = torch.zeros(unseen.shape, device=device).masked_fill(unseen, -1e4)
        itself = torch.full(unseen.shape, -1e4, device=device).fill_diagonal_(0)
        nothing = torch.zeros(len(places), prefix.shape[1], device=device)
        caption_mask = torch.cat([nothing, causal], dim=1)
        query_mask = torch.cat([nothing, causal, itself], dim=1)
        hidden, maps = [], []
        for layer in self.layers:
            assert isinstance(layer, FusionLayer)
            of_prefix, of_caption = layer.keys_values(prefix), layer.keys_values(caption)
            of_query = layer.keys_values(query)
            query, attention = layer(query, [of_prefix, of_caption, of_query], query_mask)
            caption, _ = layer(caption, [of_prefix, of_caption], caption_mask)
            prefix, _ = layer(prefix, [of_prefix], None)
            hidden.append(query)
            maps.append(attention[..., : -len(places)].mean(dim=1))
        return FusionOutput(self.predict(query), hidden, maps)

    def predict(self, x: Tensor) -> Tensor:
        """[..., hidden] -> logits [prediction heads, ..., vocabulary]: one product for all."""
        asked = torch.stack([head(x) for head in self.prediction])
        biases = torch.stack([_bias(head) for head in self.prediction])
        biases = biases.view(len(biases), *[1] * (x.ndim - 1), -1)
        return F.linear(asked, self.words.weight) + biases


def _bias(head: nn.Module) -> Tensor:
    assert isinstance(head, PredictionHead)
    return head.bias


def mean_log_probabilities(logits: Tensor) -> Tensor:
    """Heads' logits [heads, ..., vocabulary] -> log of the mean of their probabilities."""
    return torch.softmax(logits, dim=-1).mean(dim=0).clamp_min(1e-30).log()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
