"""The memory budget of an ordinary GGUF file, spent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from penstock.loaders.probe import DeviceProfile

KV_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}  # ggml type numbers
POLICIES = ("adaptive", "lfu", "lru", "last-k")  # the first is the default


@dataclass(frozen=True)
class GgufPlan:
    """Sizes are bytes.

    Attributes:
        mode: 'resident' (all weights in memory, llama.cpp as it is), 'stream' (parts of dense
            tensors pass through a ring) or 'experts' (an expert window); both at once is 'experts'.
            'mapped' where the system has no streaming: llama.cpp's mapping, which is not counted,
            and of which the system decides what is in memory.
        budget: what was allowed; None: as much as the model can use.
        least: the smallest budget that works with this context.
        kv_type: number format of the KV cache.
        state: of recurrent layers; tokenizer: llama.cpp's tables of the vocabulary.
        batch: prompt tokens that are run at once; weights are read once a batch.
        pinned: weights that stay in memory.
        tables: embeddings that are read by rows from the file; they take a few pages.
        streamed: bytes of dense weights read for every token; share: of each matrix.
        ring: memory that streamed weights pass through.
        window: memory for experts, of all experts' bytes.
        adapters: LoRA adapters, whole.
        policy: which expert leaves the window; depth, backend, direct: how parts are read. 'none',
            0 and False when mapped.
        read_bytes: expected to be read for a token, in steady state; None, and tokens_per_second
            too, when mapped: nobody knows.
        note: what the person should know of this plan, or ''.
    """

    path: str
    arch: str
    mode: str
    budget: int | None
    least: int
    context: int
    batch: int
    threads: int
    kv_type: str
    kv_cache: int
    state: int
    buffers: int
    tokenizer: int
    pinned: int
    tables: int
    adapters: int
    streamed: int
    share: float
    largest_part: int
    ring: int
    experts: int
    experts_used: int
    expert_bytes: int
    expert_total: int
    window: int
    policy: str
    depth: int
    backend: str
    direct: bool
    read_bytes: float | None
    tokens_per_second: float | None
    profile: DeviceProfile
    note: str = ""

    @property
    def total(self) -> int:
        """All of the above that takes memory."""
        weights = self.pinned + self.ring + self.window + self.adapters
        return weights + self.kv_cache + self.state + self.buffers + self.tokenizer

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "total": self.total}
