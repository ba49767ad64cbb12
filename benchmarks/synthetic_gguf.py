"""Writes synthetic GGUF models of any size, which stock llama.cpp loads and runs.

python -m benchmarks.synthetic_gguf olmoe-7b /work/bench/olmoe.gguf --reuse 0.4
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGUFValueType
from gguf.gguf_writer import SHARD_NAME_FORMAT, WriterState
from numpy.typing import NDArray

from benchmarks.gguf_blocks import FORMATS, Pool, constant_blocks, read_pool
from benchmarks.gguf_shapes import SHAPES, Shape, metadata
from benchmarks.gguf_tensors import CONTROL_TOKENS, Tensor, layout

ALIGNMENT = 32
CHUNK_BYTES = 8 << 20
CONTROL = ["<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "i n", "e r", "o n", "r e", "Ġ t", "Ġ a", "Ġt he", "a t", "Ġ s", "o r", "in g"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(shape: Shape, path: Path, seed: int = 0, parts: int = 1) -> list[Path]:
    """Write a model; memory stays under some tens of megabytes, whatever its size.

    Args:
        parts: over one: files named -00001-of-0000N.gguf beside `path`, as llama.cpp splits them.

    Returns:
        The files.
    """
    everything = layout(shape)
    shares = [list(a) for a in np.array_split(np.arange(len(everything)), parts)]
    groups = [[everything[i] for i in share] for share in shares]
    paths = part_paths(path, parts)
    with ExitStack() as stack:
        handles = [stack.enter_context(open(p, "wb")) for p in paths]
        _write_headers(handles, shape.arch, {**metadata(shape), **tokenizer(shape.vocab)}, groups)
        source = _Source(seed)
        for handle, group in zip(handles, groups, strict=True):
            for tensor in group:
                for chunk in source.chunks(tensor):
                    handle.write(chunk.data)
                handle.write(bytes(-handle.tell() % ALIGNMENT))
    return paths


def part_paths(path: Path, parts: int) -> list[Path]:
    """The files of a model in so many parts."""
    if parts == 1:
        return [path]
    names = [SHARD_NAME_FORMAT.format(path.stem, n + 1, parts) for n in range(parts)]
    return [path.with_name(name) for name in names]


def tensor_bytes(shape: Shape) -> int:
    """Size of a model's tensors; its file is some hundred kilobytes larger."""
    return sum(t.nbytes + -t.nbytes % ALIGNMENT for t in layout(shape))


def write_lora(
    shape: Shape, path: Path, seed: int = 0, rank: int = 4, alpha: float = 8.0
) -> list[str]:
    """Write a low-rank adapter for the queries and values of a dense model.

    Returns:
        The names of the weights that it changes.
    """
    found = [t for t in layout(shape) if t.name.endswith(("attn_q.weight", "attn_v.weight"))]
    pairs = []
    for t in found:
        rows, columns = t.shape
        for end, size in (("a", (rank, columns)), ("b", (rows, rank))):
            # The two give about the deviation of the weights that they are added to.
            deviation = size[1] ** -0.5
            pairs.append(_normal(f"{t.name}.lora_{end}", size, deviation))
    keys: dict[str, Any] = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
    source = _Source(seed)
    with open(path, "wb") as handle:
        _write_headers([handle], shape.arch, keys, [pairs])
        for t in pairs:
            for chunk in source.chunks(t):
                handle.write(chunk.data)
            handle.write(bytes(-handle.tell() % ALIGNMENT))
    return [t.name for t in found]


def tokenizer(vocab: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer: control tokens, bytes, a few merges, then words that no text has.

    Any text can be encoded, and every token has its own text.
    """
    merged = [m.replace(" ", "") for m in MERGES]
    words = CONTROL + list(_byte_letters()) + merged
    if vocab < len(words):
        raise ValueError(f"a vocabulary of {vocab} is too small: at least {len(words)}")
    words += [f"Ġw{i}" for i in range(len(words), vocab)]
    kinds = np.ones(vocab, np.int32)
    kinds[:CONTROL_TOKENS] = 3
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _byte_letters() -> Iterator[str]:
    """GPT-2's letter for each byte, in the order of the bytes."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    for byte in range(256):
        yield chr(byte) if byte in plain else chr(next(others))


class _Source:
    """The bytes of tensors, some megabytes at a time."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._pools: dict[str, Pool] = {}
        self._buffer = np.empty(CHUNK_BYTES, np.uint8)

    def chunks(self, t: Tensor) -> Iterator[NDArray[np.uint8]]:
        key = zlib.crc32(t.name.encode())
        if t.draw is not None:
            rng = np.random.Generator(np.random.SFC64([self.seed, key]))
            values = np.ascontiguousarray(t.draw(rng), np.float32)
            yield values.reshape(-1).view(np.uint8)
            return
        form = t.form
        if form.name not in self._pools:
            self._pools[form.name] = Pool(form, self.seed)
        pool = self._pools[form.name].scaled(t.deviation)
        per_row, rows_each = t.shape[-1] // form.block, t.shape[-2]
        first = None
        if t.first is not None:
            values = np.ascontiguousarray(t.first).reshape(-1)
            first = constant_blocks(form, values).reshape(*t.first.shape, -1)
        step = max(1, CHUNK_BYTES // (per_row * form.block_bytes))
        for at in range(0, t.rows, step):
            rows = np.arange(at, min(at + step, t.rows))
            size = len(rows) * per_row * form.block_bytes
            out = self._buffer[:size].reshape(-1, form.block_bytes)
            read_pool(pool, key + at * per_row, out)
            wide = out.reshape(len(rows), per_row, form.block_bytes)
            if first is not None:
                wide[:, : first.shape[1]] = first[rows % rows_each]
            if t.zero_rows:
                wide[rows % rows_each < t.zero_rows] = 0
            yield out.reshape(-1)


def _normal(name: str, shape: tuple[int, int], deviation: float) -> Tensor:
    def draw(rng: np.random.Generator) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32) * np.float32(deviation)

    return Tensor(name, FORMATS["F32"], shape, draw=draw)


def _write_headers(
    handles: Sequence[IO[bytes]], arch: str, keys: dict[str, Any], groups: list[list[Tensor]]
) -> None:
    """Everything before the first tensor's bytes; further parts have only the keys of a part."""
    writer: Any = GGUFWriter(None, arch)
    for key, value in keys.items():
        _add(writer, key, value)
    infos = []
    for group in groups:
        writer.tensors = [{}]
        for t in group:
            shape = t.shape
            kind = t.form.kind
            writer.add_tensor_info(t.name, shape, np.dtype(np.float32), t.nbytes, kind)
        infos += writer.tensors
    writer.tensors = infos
    writer.fout, writer.state = list(handles), WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for handle in handles:
        handle.write(bytes(-handle.tell() % ALIGNMENT))


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, np.ndarray):
        writer.add_key_value(key, value.tolist(), GGUFValueType.ARRAY, sub_type=GGUFValueType.INT32)
    else:
        writer.add_array(key, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1, help="split the file as llama.cpp does")
    parser.add_argument("--dtype", choices=[f for f in FORMATS if f != "F32"])
    parser.add_argument(
        "--reuse", type=float, help="share of a token's experts that the next token uses too"
    )
    args = parser.parse_args()
    shape = replace(SHAPES[args.shape], reuse=args.reuse)
    if args.dtype:
        shape = shape.typed(args.dtype)
    started = time.perf_counter()
    paths = write_gguf(shape, args.path, args.seed, args.parts)
    seconds = time.perf_counter() - started
    size = sum(p.stat().st_size for p in paths)
    print(
        f"{paths[0]}: {size / 1e9:.3f} GB of synthetic weights in {len(paths)} "
        f"file(s), {size / seconds / 1e6:.0f} MB/s"
    )


if __name__ == "__main__":
    main()
