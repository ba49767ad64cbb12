"""A refusal or failure as OpenAI's servers write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


class ApiError(Exception):
    """What a client is told instead of an answer.

    Args:
        status: of HTTP.
        message: what is wrong with the value seen, what was expected.
        param: the field at fault.
        code: for programs.
        headers: of HTTP, beside the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def document(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = SERVER_ERROR if self.status >= 500 else INVALID_REQUEST
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}
