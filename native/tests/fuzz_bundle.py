"""Opens and runs thousands of damaged bundles: each must work or be refused, never crash.

    python native/tests/fuzz_bundle.py FOLDER --count 10000 [--native SANITIZED/_native.so]

Mutations are made from a seed, so a finding is repeated with --first N --count 1. The file at hand
is FOLDER/current.gguf; after a crash it is the one that did it. Exit status 1: findings, as JSON.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import run  # beside it

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

NUMBERS = [
    0, 1, 2, 3, 31, 33, 127, 128, 255, 4095, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
    1 << 32, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096,
]  # fmt: skip
FLOATS = [0.0, -1.0, 1e-45, 1e38, -1e38, float("nan"), float("inf"), -float("inf")]


class Fuzzer:
    def __init__(self, folder: Path) -> None:
        from tests import bundle_builder

        self.lib = bundle_builder
        self.path = folder / "current.gguf"
        self.made: dict[Any, Any] = {}
        shape = bundle_builder.Shape(
            width=32, neurons=40, heads=2, kv_heads=1, head_dim=16, vocab=48, context=24, rank=4
        )
        variants: list[dict[str, Any]] = [
            {"arch": "arcee", "dtype": "F16", "layers": 2},
            {"arch": "llama", "dtype": "Q8_0", "activation": "fatrelu", "gated": True, "layers": 1},
            {"arch": "opt", "dtype": "Q4_0", "activation": "relu", "kv_heads": 2, "layers": 1},
            {"arch": "nemotron", "dtype": "F16", "layers": 1, "rank": 0},
        ]
        self.shapes = [bundle_builder.Shape(**{**shape.__dict__, **v}) for v in variants]
        self.files = [self._serialize(self._parts(s)) for s in self.shapes]
        self.header_sizes = [self._header_size(content) for content in self.files]

    def _parts(self, shape: Any) -> Any:
        """Of a model of this shape; the caller may change them."""
        if shape not in self.made:
            parts = self.lib.tiny_parts(shape)
            parts.alignment = 512  # smaller files; the reader takes any power of two
            self.made[shape] = parts
        made = self.made[shape]
        tensors = {name: replace(stored) for name, stored in made.tensors.items()}
        return replace(made, metadata=dict(made.metadata), tensors=tensors)  # values are replaced

    def _serialize(self, parts: Any) -> bytes:
        content: bytes = self.lib.serialize(parts)
        return content

    def _header_size(self, content: bytes) -> int:
        from penstock.loaders.gguf_file import read_gguf

        self.path.write_bytes(content)
        return read_gguf(self.path).data_offset

    # ------------------------------------------------------------ mutations

    def mutate(self, rng: np.random.Generator) -> bytes:
        which = int(rng.integers(len(self.files)))
        if rng.random() < 0.4:
            return self._mutate_parts(which, rng)
        content = bytearray(self.files[which])
        kinds = [self._flip, self._flip, self._number, self._number, self._truncate, self._noise]
        for _ in range(int(rng.integers(1, 4))):
            kinds[int(rng.integers(len(kinds)))](content, self.header_sizes[which], rng)
        return bytes(content)

    def _flip(self, content: bytearray, header: int, rng: np.random.Generator) -> None:
        end = header if rng.random() < 0.8 else len(content)
        for at in rng.integers(0, max(1, min(end, len(content))), int(rng.integers(1, 5))):
            if at < len(content):
                content[at] ^= 1 << int(rng.integers(8))

    def _number(self, content: bytearray, header: int, rng: np.random.Generator) -> None:
        size = int(rng.choice([1, 4, 8]))
        at = int(rng.integers(0, header))
        value = NUMBERS[int(rng.integers(len(NUMBERS)))] & (1 << 8 * size) - 1
        if at + size <= len(content):
            content[at : at + size] = value.to_bytes(size, "little")

    def _truncate(self, content: bytearray, header: int, rng: np.random.Generator) -> None:
        if rng.random() < 0.3:
            content.extend(rng.bytes(int(rng.integers(1, 5000))))
        else:
            del content[int(rng.integers(0, len(content) + 1)) :]

    def _noise(self, content: bytearray, header: int, rng: np.random.Generator) -> None:
        """Weights of any bits: NaN, infinities and huge scales among them."""
        if len(content) > header:
            at = int(rng.integers(header, len(content)))
            noise = rng.bytes(min(int(rng.integers(1, 2000)), len(content) - at))
            content[at : at + len(noise)] = noise

    def _mutate_parts(self, which: int, rng: np.random.Generator) -> bytes:
        """A well-formed file with a wrong value, type, shape or tensor, its checksums right."""
        parts = self._parts(self.shapes[which])
        for _ in range(int(rng.integers(1, 3))):
            if rng.random() < 0.6:
                key = str(rng.choice(list(parts.metadata)))
                if key.startswith("penstock.checksum") and rng.random() < 0.8:
                    continue
                parts.metadata[key] = self._value(parts.metadata[key], rng)
            else:
                self._mutate_tensor(parts, rng)
        try:
            return self._serialize(parts)
        except (struct.error, OverflowError):  # the builder cannot write this one
            return self.files[which]

    def _value(self, old: Any, rng: np.random.Generator) -> Any:
        if isinstance(old, np.ndarray) and old.size and rng.random() < 0.7:
            new = old.copy()
            if rng.random() < 0.3:
                return new[: int(rng.integers(0, new.size + 1))]
            if new.dtype.kind == "f":
                new[int(rng.integers(new.size))] = FLOATS[int(rng.integers(len(FLOATS)))]
                return new.astype(rng.choice(["float32", "float64"]))
            number = NUMBERS[int(rng.integers(len(NUMBERS)))] & 0xFFFFFFFF
            new[int(rng.integers(new.size))] = number
            return new.astype(rng.choice(["uint32", "int32", "uint64", "int64", "float32", "bool"]))
        choice = int(rng.integers(7))
        if choice == 0:
            return str(rng.choice(["", "arcee", "llama", "opt", "nemotron", "relu", "../x", "F16"]))
        if choice == 1:
            return bool(rng.integers(2))
        if choice == 2:
            return FLOATS[int(rng.integers(len(FLOATS)))]
        if choice == 3:
            return np.array(NUMBERS[: int(rng.integers(0, 8))], np.uint64)
        if choice == 4:
            return ["a"] * int(rng.integers(0, 4))
        if isinstance(old, int) and rng.random() < 0.5:
            return max(0, int(old) + int(rng.integers(-2, 3)))
        return NUMBERS[int(rng.integers(len(NUMBERS)))] & 0xFFFFFFFF

    def _mutate_tensor(self, parts: Any, rng: np.random.Generator) -> None:
        name = str(rng.choice(list(parts.tensors)))
        stored = parts.tensors[name]
        choice = int(rng.integers(6))
        if choice == 0:
            del parts.tensors[name]
        elif choice == 1:
            stored.type = int(rng.choice([0, 1, 2, 8, 24, 30, 3, 99]))
        elif choice == 2:
            stored.shape = stored.shape[::-1]
        elif choice == 3:
            other = str(rng.choice(list(parts.tensors)))
            parts.tensors[name], parts.tensors[other] = parts.tensors[other], stored
        elif choice == 4:
            dims = list(stored.shape)
            dims[int(rng.integers(len(dims)))] = NUMBERS[int(rng.integers(len(NUMBERS)))]
            stored.shape = tuple(dims)
        else:
            stored.data = rng.bytes(len(stored.data))

    def repair(self, content: bytes) -> bytes:
        """Right checksums on a damaged file, so that the damage gets past them."""
        from penstock.errors import PenstockError
        from penstock.loaders.gguf_file import read_gguf

        self.path.write_bytes(content)
        try:
            file = read_gguf(self.path)
        except PenstockError:
            return content
        fixed = bytearray(content)
        at = file.value_offsets.get("penstock.checksum.tensors")
        for i, info in enumerate(file.tensors.values()):
            if at is not None and at + 4 * i + 4 <= file.data_offset:
                stored = bytes(fixed[info.offset : info.offset + info.nbytes])
                fixed[at + 4 * i : at + 4 * i + 4] = struct.pack("<I", self.lib.crc32c(stored))
        at = file.value_offsets.get("penstock.checksum.header")
        if at is not None and at + 4 <= file.data_offset <= len(fixed):
            fixed[at : at + 4] = bytes(4)
            header = self.lib.crc32c(bytes(fixed[: file.data_offset]))
            fixed[at : at + 4] = struct.pack("<I", header)
        return bytes(fixed)

    # ------------------------------------------------------------ what is attacked

    def attempt(self, content: bytes, rng: np.random.Generator) -> None:
        from penstock.loaders.bundle import open_bundle
        from penstock.runtime.flash_engine import FlashEngine, verify_bundles
        from penstock.runtime.planner import PlanOptions, make_plan

        self.path.write_bytes(content)
        bundle = open_bundle(self.path)
        verify_bundles(bundle)
        options = PlanOptions(
            memory=int(rng.choice([1 << 20, 1 << 22, 1 << 25])),
            ffn_share=[None, 0.0, 0.4, 1.0][int(rng.integers(4))],
            mode=str(rng.choice(["predictor", "exact", "dense"])),
            context=int(rng.choice([12, 24])),
            threads=1,
        )
        device = self.lib.profile(
            direct=bool(rng.random() < 0.1),
            backend=str(rng.choice(["threads", "auto"])),
            merge_gap=int(rng.choice([0, 4096])),
        )
        plan = make_plan(bundle, device, options)
        engine = FlashEngine(bundle, plan)
        long = bool(rng.integers(2))
        engine.prefill(np.arange(9 if long else 3, dtype=np.int32) % engine.vocab)
        for _ in range(2):
            engine.decode(0)


def allowed() -> tuple[type[Exception], ...]:
    from penstock import errors

    return (
        errors.FormatError, errors.UnsupportedModelError, errors.BudgetError, errors.UsageError,
        errors.StorageError,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(__doc__, Fuzzer, allowed, repaired=0.5))
