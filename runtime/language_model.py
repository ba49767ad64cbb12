"""What every engine gives: text in, text out, and what it took.

`penstock.load` chooses the engine from the file. What uses a model (the commands, the server) is
written against these protocols and knows no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from penstock.runtime.sampling import SamplingParams

Cancelled = Callable[[], bool]
"""Asked from the generation's own thread before each token; true ends the generation."""


class ModelStats(Protocol):
    """What a model did since the last reset. Engines add figures of their own to these."""

    @property
    def tokens(self) -> int:
        """Tokens run, of prompts and of answers."""
        ...

    @property
    def generated(self) -> int:
        """Tokens of the answers."""
        ...

    @property
    def read_bytes(self) -> int | None:
        """Bytes read from storage; never less than before, until a reset.

        None, always, where the system reads the weights and nobody counts.
        """
        ...

    @property
    def hit_rate(self) -> float | None:
        """Share of the streamed weights wanted that were in memory, 0 to 1; None as above."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        ...

    def __str__(self) -> str:
        """For people."""
        ...


class LanguageModel(Protocol):
    """A loaded model: one context, one generation at a time, one thread at a time."""

    @property
    def context_tokens(self) -> int:
        """Tokens that the prompt and the answer may have together."""
        ...

    @property
    def finish_reason(self) -> str | None:
        """Why the last generation ended: 'stop', 'length', 'context' or 'cancelled'."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the last generation's prompt; 0 until they are counted.

        Also of a prompt refused because of its length, unless that shows without counting.
        """
        ...

    @property
    def completion_tokens(self) -> int:
        """Tokens that the last generation has made so far, the one that ended it not counted."""
        ...

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        sampling: SamplingParams | None = None,
        cancelled: Cancelled | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Continue a text, piece by piece: whole characters, never half of one.

        The work is done while the pieces are taken; to take no more of them ends it.

        Args:
            prompt: the text to continue.
            max_tokens: tokens at most.
            sampling: how tokens are chosen; or its fields as keywords (temperature=0.7, seed=1).
            cancelled: asked before each token, and while a long prompt is run; true ends the
                generation with what there is of it.

        Raises:
            UsageError: an option is out of its range; a ContextError: the prompt does not fit the
                context. Before any work, here or with the first piece.
            StorageError: a read failed; the model can be used again.
        """
        ...

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        sampling: SamplingParams | None = None,
        cancelled: Cancelled | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Answer a conversation: [{'role': 'user', 'content': '...'}, ...], as `generate` does.

        Raises:
            ChatTemplateError: the model's template refuses the conversation.
        """
        ...

    def stats(self) -> ModelStats:
        """What was done since the last reset_stats()."""
        ...

    def reset_stats(self) -> None:
        """Start counting anew."""
        ...

    def reset(self) -> None:
        """Forget the conversation, and what was kept of streamed weights."""
        ...
