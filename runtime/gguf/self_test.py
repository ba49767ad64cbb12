"""A self-test of this engine: small files, streamed, must give what they give resident.

    dense     the embedded model as an ordinary `arcee` file: its numbers, widened to F32
    experts   a `llama` with random experts, behind the embedded model's tokenizer

F32, because llama.cpp repacks it nowhere: the logits must then agree to the last bit. Started by
`penstock doctor` in a process of its own, so that a library that crashes takes nothing with it:

    python -m penstock.runtime.gguf.self_test dense
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError, StorageError
from penstock.loaders.bundle import Bundle, open_bundle
from penstock.loaders.gguf_file import Value
from penstock.quant.blocks import F32, FORMATS, decode_rows
from penstock.runtime.embedded import embedded_model
from penstock.runtime.gguf.model import GgufModel
from penstock.runtime.load import load, plan

PROMPT = "Once upon a time there was a king who"
TOKENS = 12
CONTEXT = 256
WHOLE = "1GiB"  # more than these files can use

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Outcome:
    """How a file ran.

    Attributes:
        mode: of the smaller budget, as `GgufPlan.mode`.
        identical: logits of every token were those of the resident model.
        difference: the largest between two logits.
        memory: the smaller budget; read_bytes: what was read for it.
    """

    mode: str
    identical: bool
    difference: float
    memory: int
    read_bytes: int
    tokens: int


def check(path: Path) -> Outcome:
    """Run a file resident, then in the least memory it can have, over the same tokens.

    Raises:
        PenstockError: nothing was read for the second run, so that it says nothing of streaming.
    """
    with_everything = load(path, memory=WHOLE, context=CONTEXT, kv_type="f16")
    assert isinstance(with_everything, GgufModel)
    tokens, wanted = _greedy(with_everything)
    with_everything.close()
    least = plan(path, memory=WHOLE, context=CONTEXT, kv_type="f16").least
    with_least = load(path, memory=least, context=CONTEXT, kv_type="f16")
    assert isinstance(with_least, GgufModel)
    found = list(_logits(with_least, tokens))
    difference = max(float(np.abs(a - b).max()) for a, b in zip(wanted, found, strict=True))
    same = all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
    streamer = with_least.engine.streamer
    read = streamer.stats().bytes if streamer is not None else 0
    mode = with_least.plan.mode
    with_least.close()
    if mode != "mapped" and not read:
        raise PenstockError(
            f"{path.name}: nothing was read for {sum(map(len, tokens))} tokens in {least} bytes "
            f"({mode} mode), where some of the weights should have been; streaming was not tested"
        )
    return Outcome(mode, same, difference, least, int(read), sum(map(len, tokens)))


def _greedy(model: GgufModel) -> tuple[list[list[int]], list[Floats]]:
    """The prompt, then the best token again and again; with the logits after each."""
    tokens = [model.tokenize(PROMPT, add_special=True)]
    logits: list[Floats] = []
    for _ in range(TOKENS):
        logits.append(model.engine.decode(tokens[-1]).copy())
        tokens.append([int(logits[-1].argmax())])
    return tokens[:-1], logits


def _logits(model: GgufModel, tokens: list[list[int]]) -> Iterator[Floats]:
    for part in tokens:
        yield model.engine.decode(part).copy()


# ---------------------------------------------------------------- files


def write_dense(path: Path) -> None:
    """The embedded model as any other program has it: its numbers are not changed."""
    bundle = open_bundle(embedded_model())
    keys = {k: v for k, v in bundle.file.metadata.items() if k.startswith(f"{bundle.arch}.")}
    _write(path, bundle.arch, {**keys, **_tokenizer(bundle)}, dict(_dense(bundle)))


def _dense(bundle: Bundle) -> Iterator[tuple[str, Floats]]:
    forms = {form.ggml_type: form for form in (F32, *FORMATS.values())}
    for name, info in bundle.resident.items():
        if ".fc1." in name or ".fc2." in name:
            continue  # predictors, which others do not know
        raw = _bytes(bundle.path, info.offset, info.nbytes).reshape(-1, _row(info.shape, info))
        yield name, decode_rows(raw, forms[info.type]).reshape(info.shape)
    form, row = FORMATS[bundle.dtype], bundle.row_bytes
    for n, info in enumerate(bundle.bundles):
        raw = _bytes(bundle.path, info.offset, info.nbytes).reshape(bundle.neurons, bundle.stride)
        names = ("gate", "up", "down") if bundle.gated else ("up", "down")
        for at, name in enumerate(names):
            rows = decode_rows(raw[:, at * row : (at + 1) * row], form)
            yield f"blk.{n}.ffn_{name}.weight", rows.T if name == "down" else rows


def _row(shape: tuple[int, ...], info: Any) -> int:
    rows = int(np.prod(shape[:-1]))
    return int(info.nbytes) // rows


def _bytes(path: str, offset: int, nbytes: int) -> NDArray[np.uint8]:
    try:
        data = np.fromfile(path, np.uint8, nbytes, offset=offset)
    except OSError as error:
        raise StorageError(f"{path}: read at {offset}: {error.strerror}") from None
    if len(data) != nbytes:
        raise StorageError(f"{path}: the file ends at {offset + len(data)}")
    return data


LAYERS, WIDTH, HEADS, EXPERTS, USED = 2, 256, 4, 8, 2


def write_experts(path: Path) -> None:
    """Two layers of eight random experts, two of which run for a token."""
    bundle = open_bundle(embedded_model())
    vocab = bundle.file.tensors["token_embd.weight"].shape[0]
    numbers = {
        "block_count": LAYERS, "embedding_length": WIDTH, "feed_forward_length": WIDTH,
        "context_length": 2 * CONTEXT, "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS, "rope.dimension_count": WIDTH // HEADS,
        "expert_count": EXPERTS, "expert_used_count": USED, "vocab_size": vocab,
    }  # fmt: skip
    keys: dict[str, Value] = {f"llama.{name}": value for name, value in numbers.items()}
    keys["llama.attention.layer_norm_rms_epsilon"] = 1e-5
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Floats:
        return rng.normal(0.0, shape[-1] ** -0.5, shape).astype(np.float32)

    ones = np.ones(WIDTH, np.float32)
    tensors = {"token_embd.weight": drawn(vocab, WIDTH), "output_norm.weight": ones}
    for n in range(LAYERS):
        tensors[f"blk.{n}.attn_norm.weight"] = tensors[f"blk.{n}.ffn_norm.weight"] = ones
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"blk.{n}.{name}.weight"] = drawn(WIDTH, WIDTH)
        tensors[f"blk.{n}.ffn_gate_inp.weight"] = drawn(EXPERTS, WIDTH)
        for name in ("gate", "up", "down"):
            tensors[f"blk.{n}.ffn_{name}_exps.weight"] = drawn(EXPERTS, WIDTH, WIDTH)
    _write(path, "llama", {**keys, **_tokenizer(bundle)}, tensors)


def _tokenizer(bundle: Bundle) -> dict[str, Value]:
    start = "tokenizer.ggml."
    return {key: value for key, value in bundle.file.metadata.items() if key.startswith(start)}


def _write(path: Path, arch: str, keys: dict[str, Value], tensors: dict[str, Floats]) -> None:
    from gguf import GGUFWriter

    try:
        writer = GGUFWriter(str(path), arch)
        for key, value in keys.items():
            _add(writer, key, value)
        for name, values in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from None


def _add(writer: Any, key: str, value: Value) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value if isinstance(value, list) else value.tolist())


WRITERS: dict[str, Callable[[Path], None]] = {"dense": write_dense, "experts": write_experts}


def main(kind: str) -> int:
    """Print the outcome, or the error, as one line of JSON."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-doctor-") as folder:
            path = Path(folder) / f"{kind}.gguf"
            WRITERS[kind](path)
            print(json.dumps(asdict(check(path))))
    except PenstockError as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
