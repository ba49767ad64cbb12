"""A model that does what its prompt says, and a server process for it.

    python scripted_model.py OPTIONS

OPTIONS are of ServerOptions, as JSON. Prompts:

    count N SECONDS   N pieces '1 ', '2 ', ... with a pause before each
    say TEXT          TEXT, a character a piece
    flood N CHARS     N pieces of so many characters
    turn              the number of the generation, from 1
    fail N            N pieces, then a failed read
    crash N           N pieces, then what no model should raise
    long              a prompt longer than the context
    refuse            a prompt that is refused for another reason, before it is counted
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.errors import ContextError, StorageError, UsageError
from penstock.runtime.language_model import Cancelled, LanguageModel
from penstock.runtime.sampling import SamplingParams
from penstock.runtime.server.serve import ServerOptions, bind, serve, url

CONTEXT_TOKENS = 1000


@dataclass(frozen=True)
class ScriptedStats:
    tokens: int
    generated: int
    read_bytes: int | None
    hit_rate: float | None = 0.75

    def to_dict(self) -> dict[str, Any]:
        return {}


class ScriptedModel:
    """See above."""

    def __init__(self) -> None:
        self.context_tokens = CONTEXT_TOKENS
        self.finish_reason: str | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.turns = 0
        self.generated = 0
        self.resets = 0
        self.asked: list[object] = []

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        sampling: SamplingParams | None = None,
        cancelled: Cancelled | None = None,
        **options: Any,
    ) -> Iterator[str]:
        self.asked.append(prompt)
        most = max_tokens if sampling is None else sampling.max_tokens
        return self._run(prompt, most, cancelled or (lambda: False))

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Iterator[str]:
        pieces = self.generate(messages[-1]["content"], **options)
        self.asked[-1] = list(messages)
        return pieces

    def _run(self, prompt: str, most: int, cancelled: Cancelled) -> Iterator[str]:
        word, _, rest = prompt.partition(" ")
        self.prompt_tokens, self.completion_tokens = len(prompt.split()), 0
        if word == "long":
            self.prompt_tokens = CONTEXT_TOKENS + 1
            raise ContextError(f"the prompt has {self.prompt_tokens} tokens")
        if word == "refuse":
            self.prompt_tokens = 0
            raise UsageError("not this prompt")
        self.turns += 1
        self.finish_reason = "length"
        for piece in self._pieces(word, rest):
            if cancelled():
                self.finish_reason = "cancelled"
                return
            if self.completion_tokens == most:
                return
            self.completion_tokens += 1
            self.generated += 1
            yield piece
        self.finish_reason = "stop"

    def _pieces(self, word: str, rest: str) -> Iterator[str]:
        if word == "count":
            number, _, pause = rest.partition(" ")
            for i in range(1, int(number) + 1):
                time.sleep(float(pause or 0))
                yield f"{i} "
        elif word == "say":
            yield from rest
        elif word == "flood":
            number, _, size = rest.partition(" ")
            yield from ["x" * int(size)] * int(number)
        elif word == "turn":
            yield str(self.turns)
        elif word in ("fail", "crash"):
            yield from "x" * int(rest)
            raise StorageError("the disk is on fire") if word == "fail" else ZeroDivisionError(word)

    def stats(self) -> ScriptedStats:
        return ScriptedStats(self.generated, self.generated, 1000 * self.generated)

    def reset_stats(self) -> None:
        self.generated = 0

    def reset(self) -> None:
        self.resets += 1


def main() -> None:
    options = ServerOptions(**json.loads(sys.argv[1]))
    model: LanguageModel = ScriptedModel()
    sock = bind(options)
    serve(model, "scripted", sock, options, lambda: print(url(sock), flush=True))


if __name__ == "__main__":
    main()
