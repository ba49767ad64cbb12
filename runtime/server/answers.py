"""Answers in OpenAI's shape, whole and in pieces."""

from __future__ import annotations

import time
import uuid
from typing import Any

from penstock.runtime.server.worker import Finished

Document = dict[str, Any]


class Answer:
    """The documents of one answer; all carry the same id and time.

    Args:
        model: its name.
        is_chat: a message of the assistant's, not a plain text.
        include_usage: whether the chunks have a field for it, filled in the last one.
    """

    def __init__(self, model: str, is_chat: bool, include_usage: bool = False) -> None:
        self._is_chat = is_chat
        self._include_usage = include_usage
        self._head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, end: Finished) -> Document:
        """All of it."""
        if self._is_chat:
            content: Document = {"message": {"role": "assistant", "content": text}}
        else:
            content = {"text": text}
        kind = "chat.completion" if self._is_chat else "text_completion"
        choice = self._choice(content, end.reason)
        return {**self._head, "object": kind, "choices": [choice], "usage": _usage(end)}

    def opening(self) -> list[Document]:
        """The chunks before the first piece."""
        if not self._is_chat:
            return []
        return [self._chunk({"delta": {"role": "assistant", "content": ""}}, None)]

    def piece(self, text: str) -> Document:
        """The chunk of a piece."""
        return self._chunk({"delta": {"content": text}} if self._is_chat else {"text": text}, None)

    def ending(self, end: Finished) -> list[Document]:
        """The chunks after the last piece."""
        last = self._chunk({"delta": {}} if self._is_chat else {"text": ""}, end.reason)
        if not self._include_usage:
            return [last]
        return [last, {**last, "choices": [], "usage": _usage(end)}]

    def _chunk(self, content: Document, reason: str | None) -> Document:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        usage = {"usage": None} if self._include_usage else {}
        choice = self._choice(content, reason)
        return {**self._head, "object": kind, "choices": [choice], **usage}

    def _choice(self, content: Document, reason: str | None) -> Document:
        return {"index": 0, **content, "logprobs": None, "finish_reason": reason}


def _usage(end: Finished) -> Document:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.prompt_tokens + end.completion_tokens,
    }
