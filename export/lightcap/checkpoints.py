"""The checkpoints that a full-size LightCap captioner begins from, brought by the user.

    CLIP RN50         openai/CLIP's RN50.pt (a TorchScript archive), open_clip's, or safetensors
    TinyBERT 4L-312D  huawei-noah/TinyBERT_General_4L_312D: a folder, or its weights alone

Every tensor that the models have must be there in its shape, and none that they do not have:
that is how RN101 or a 6-layer TinyBERT is told from what is expected. Weights become float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.errors import FormatError, StorageError, UnsupportedModelError
from penstock.export.hf_config import read_json
from penstock.export.lightcap.tensor_file import Shape, TensorFile, open_tensors
from penstock.export.predictor import import_torch

if TYPE_CHECKING:
    from torch import Tensor

Weights = dict[str, "Tensor"]

VISUAL, POOL = "visual.", "attnpool."
CLIP_BESIDE = ("logit_scale", "input_resolution", "context_length", "vocab_size", "attn_mask")
STEPS = ".num_batches_tracked"  # counters of training in batch norms

TINYBERT = {
    "num_hidden_layers": 4,
    "hidden_size": 312,
    "intermediate_size": 1200,
    "num_attention_heads": 12,
    "vocab_size": 30_522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
ACTIVATION = "gelu"
TINYBERT_FILES = ("model.safetensors", "pytorch_model.bin")
TINYBERT_BESIDE = ("pooler.", "cls.", "fit_dense", "classifier.", "embeddings.position_ids")
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}  # of layer norms, as TensorFlow has them


@dataclass(frozen=True)
class ClipWeights:
    """CLIP RN50, under the names of the modules that take them.

    Attributes:
        backbone: of `clip_resnet.ClipResNet`.
        attention_pool: of `clip_resnet.AttentionPool2d`; only training needs it.
        text: of `clip_text.ClipText`.
    """

    backbone: Weights
    attention_pool: Weights
    text: Weights


def load_clip_rn50(path: Path) -> ClipWeights:
    """Read CLIP RN50.

    Raises:
        BackendMissingError: torch is not installed.
        FormatError: the file is damaged, or a tensor is missing, wrong or not one of RN50's.
        StorageError: it cannot be read.
    """
    file = open_tensors(path)
    shapes = clip_shapes()
    _check(path, "CLIP RN50", shapes, {name: name for name in file.shapes}, file, CLIP_BESIDE)
    read = {name: file.read(name) for name in shapes}
    visual = _under(read, VISUAL)
    return ClipWeights(
        backbone={name: t for name, t in visual.items() if not name.startswith(POOL)},
        attention_pool=_under(visual, POOL),
        text={name: t for name, t in read.items() if not name.startswith(VISUAL)},
    )


def load_tinybert(path: Path) -> Weights:
    """Read TinyBERT's encoder, under Hugging Face's names without `bert.`.

    Args:
        path: the folder, or the file with the weights.

    Raises:
        BackendMissingError: torch is not installed.
        FormatError: the file is damaged, or a tensor is missing, wrong or not one of a 4L-312D.
        StorageError: it cannot be read.
        UnsupportedModelError: config.json says that it is another model.
    """
    file_path = _tinybert_file(path) if path.is_dir() else path
    file = open_tensors(file_path)
    stored = {_bert_name(name): name for name in file.shapes}
    if len(stored) < len(file.shapes):
        raise FormatError(f"{file_path}: has the same tensor under an old and a new name")
    shapes = bert_shapes()
    _check(file_path, "TinyBERT 4L-312D", shapes, stored, file, TINYBERT_BESIDE)
    return {name: file.read(stored[name]) for name in shapes}


def read_wordpieces(path: Path) -> tuple[str, ...]:
    """The word pieces of a TinyBERT folder, or of a vocab.txt, in the order of their ids.

    Raises:
        FormatError: they are not bert-base-uncased's in number, a piece stands twice, or one of
            BERT's special tokens is missing.
        StorageError: the file cannot be read.
    """
    file = path / "vocab.txt" if path.is_dir() else path
    try:
        text = file.read_bytes().decode("utf-8")
    except OSError as error:
        raise StorageError(f"{file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{file}: not UTF-8 at byte {error.start}; fetch it again") from None
    pieces = tuple(line.rstrip("\r") for line in text.removesuffix("\n").split("\n"))
    vocabulary = TINYBERT["vocab_size"]
    if len(pieces) != vocabulary or len(set(pieces)) != vocabulary:
        raise FormatError(
            f"{file}: has {len(pieces)} word pieces, {len(set(pieces))} of them different; "
            f"TinyBERT has {vocabulary}, those of bert-base-uncased"
        )
    missing = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} - set(pieces)
    if missing:
        raise FormatError(f"{file}: has no {', '.join(sorted(missing))}; not BERT's word pieces")
    return pieces


# ---------------------------------------------------------------- what is expected


@cache
def clip_shapes() -> Mapping[str, Shape]:
    """Of the modules themselves, built without memory for their values."""
    torch = import_torch()
    from penstock.export.lightcap.clip_resnet import AttentionPool2d, ClipResNet
    from penstock.export.lightcap.clip_text import ClipText

    with torch.device("meta"):
        parts: dict[str, Any] = {
            VISUAL: ClipResNet(),
            VISUAL + POOL: AttentionPool2d(),
            "": ClipText(),
        }
    return {
        prefix + name: tuple(tensor.shape)
        for prefix, part in parts.items()
        for name, tensor in part.state_dict().items()
        if not name.endswith(STEPS)
    }


def bert_shapes() -> dict[str, Shape]:
    """Of TinyBERT 4L-312D without its pooler: 14,252,592 parameters."""
    hidden, inner = TINYBERT["hidden_size"], TINYBERT["intermediate_size"]
    linears: dict[str, tuple[int, int]] = {}
    norms = ["embeddings.LayerNorm"]
    for at in range(TINYBERT["num_hidden_layers"]):
        layer = f"encoder.layer.{at}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linears[f"{layer}attention.{name}"] = (hidden, hidden)
        linears[layer + "intermediate.dense"] = (inner, hidden)
        linears[layer + "output.dense"] = (hidden, inner)
        norms += [layer + "attention.output.LayerNorm", layer + "output.LayerNorm"]
    shapes: dict[str, Shape] = {
        "embeddings.word_embeddings.weight": (TINYBERT["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (TINYBERT["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (TINYBERT["type_vocab_size"], hidden),
    }
    for name, (rows, columns) in linears.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for name in norms:
        shapes |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
    return shapes


def _check(
    path: Path,
    model: str,
    expected: Mapping[str, Shape],
    stored: Mapping[str, str],
    file: TensorFile,
    beside: tuple[str, ...],
) -> None:
    """Compare names and shapes.

    Args:
        stored: a tensor's name in the file by the name that it has here.
        beside: beginnings of names that may be there and are not used.
    """
    for name, shape in expected.items():
        if name not in stored:
            raise FormatError(
                f"{path}: has no tensor '{name}' {shape} of {model}; it has "
                f"{_some(stored)}. Give the checkpoint of {model} itself."
            )
        found = file.shapes[stored[name]]
        if found != shape:
            raise FormatError(
                f"{path}: tensor '{stored[name]}' has shape {found}, in {model} it has {shape}; "
                "the checkpoint is of another model"
            )
    others = [
        stored[name]
        for name in stored
        if name not in expected and not name.startswith(beside) and not name.endswith(STEPS)
    ]
    if others:
        raise FormatError(
            f"{path}: has {_some(others)}, which {model} does not have; the checkpoint is of "
            "another model"
        )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(f"'{name}'" for name in listed[:3]) + more if listed else "no tensors"


def _under(weights: Mapping[str, Tensor], prefix: str) -> Weights:
    return {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}


# ---------------------------------------------------------------- TinyBERT's quirks


def _bert_name(stored: str) -> str:
    name = stored.removeprefix("bert.")
    for old, new in OLD_NAMES.items():
        if name.endswith(f"LayerNorm{old}"):
            name = name.removesuffix(old) + new
    return name


def _tinybert_file(folder: Path) -> Path:
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        for key, value in {**TINYBERT, "hidden_act": ACTIVATION}.items():
            if config.get(key, value) != value:
                raise UnsupportedModelError(
                    f"{folder / 'config.json'}: {key} is {config[key]!r}, in TinyBERT 4L-312D it "
                    f"is {value!r}; give huawei-noah/TinyBERT_General_4L_312D"
                )
    for name in TINYBERT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise FormatError(f"{folder}: has neither {' nor '.join(TINYBERT_FILES)}; fetch the weights")
