"""Where the training of a full-size LightCap begins: CLIP RN50 and TinyBERT put into its parts.

    CLIP's backbone          the visual encoder, which stays as it is
    CLIP's text encoder      an embedding for the name of each concept
    TinyBERT                 word, place and kind embeddings, and the layers of the fusion

What neither has begins at random: alignment module, modulator, the way of the grid into the
fusion, and the prediction heads but for the words they share (arXiv 2212.08985, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import UsageError
from penstock.export.lightcap.checkpoints import TINYBERT, ClipWeights, Weights
from penstock.export.lightcap.concept_pieces import concept_pieces
from penstock.export.predictor import import_torch

if TYPE_CHECKING:
    from penstock.export.lightcap.clip_resnet import ClipResNet
    from penstock.export.lightcap.config import LightCapConfig
    from penstock.export.lightcap.model import LightCap
    from penstock.export.report import ProgressCallback

EMBEDDINGS = {
    "words.weight": "embeddings.word_embeddings.weight",
    "places.weight": "embeddings.position_embeddings.weight",
    "kinds.weight": "embeddings.token_type_embeddings.weight",
    "embedding_norm.weight": "embeddings.LayerNorm.weight",
    "embedding_norm.bias": "embeddings.LayerNorm.bias",
}
LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
TEMPLATE = ("a photo of a {}.",)


def initialise_from_checkpoints(
    model: LightCap,
    clip: ClipWeights,
    tinybert: Weights,
    concepts: Sequence[str],
    *,
    merges: Path,
    wordpieces: Sequence[str],
    templates: Sequence[str] = TEMPLATE,
    progress: ProgressCallback | None = None,
) -> ClipResNet:
    """Fill a LightCap of the paper's widths; `LightCapConfig()` has them.

    Args:
        clip, tinybert: of `load_clip_rn50` and `load_tinybert`.
        concepts: names, of `read_concepts`, as many as the model has.
        merges: CLIP's, bpe_simple_vocab_16e6.txt.gz.
        wordpieces: TinyBERT's, of `read_wordpieces`.
        templates: sentences that a concept's embedding is the mean of.

    Returns:
        The visual encoder, in evaluation mode; its parameters want no gradient.

    Raises:
        BackendMissingError: torch is not installed.
        FormatError, StorageError: of the merges.
        UsageError: the model has other widths, or another number of concepts.
    """
    torch = import_torch()
    from penstock.export.lightcap.clip_resnet import ClipResNet
    from penstock.export.lightcap.clip_text import ClipText, encode_concepts
    from penstock.export.lightcap.clip_tokenizer import clip_tokenizer

    _check_widths(model.config, len(concepts))
    tokenizer = clip_tokenizer(merges)
    with torch.device("meta"):
        text, backbone = ClipText().eval(), ClipResNet().eval()
    text.load_state_dict(clip.text, assign=True)
    embeddings = encode_concepts(concepts, text, tokenizer, templates=templates, progress=progress)
    initialise_fusion(model, tinybert)
    model.set_concept_names(concept_pieces(concepts, wordpieces))
    with torch.no_grad():
        model.extractor.text_embeddings.copy_(torch.from_numpy(embeddings))
    counters = {
        name: torch.zeros((), dtype=torch.long)
        for name in backbone.state_dict()
        if name.endswith("num_batches_tracked")
    }
    backbone.load_state_dict({**clip.backbone, **counters}, assign=True)
    return backbone.requires_grad_(False)


def initialise_fusion(model: LightCap, tinybert: Weights) -> None:
    """TinyBERT's embeddings and layers into those of the fusion, which are the same."""
    names = dict(EMBEDDINGS)
    for at in range(TINYBERT["num_hidden_layers"]):
        for ours, theirs in LAYER.items():
            for kind in ("weight", "bias"):
                names[f"layers.{at}.{ours}.{kind}"] = f"encoder.layer.{at}.{theirs}.{kind}"
    own = model.state_dict()
    for name, stored in names.items():
        own[name].copy_(tinybert[stored])


def _check_widths(config: LightCapConfig, concepts: int) -> None:
    wanted = {
        "encoder": "clip-resnet50",
        "channels": 2048,
        "embedding": 1024,
        "concepts": concepts,
        "vocabulary": TINYBERT["vocab_size"],
        "hidden": TINYBERT["hidden_size"],
        "layers": TINYBERT["num_hidden_layers"],
        "heads": TINYBERT["num_attention_heads"],
        "ffn": TINYBERT["intermediate_size"],
        "positions": TINYBERT["max_position_embeddings"],
    }
    for key, value in wanted.items():
        if getattr(config, key) != value:
            raise UsageError(
                f"the model's {key} is {getattr(config, key)!r}; with CLIP RN50, TinyBERT 4L-312D "
                f"and {concepts} concepts it must be {value!r}: "
                f"LightCapConfig(concepts={concepts})"
            )
