"""How Flower's Fleet protocol travels over HTTP: the headers, the bound on an answer, and what the
answer of a server that does not do as asked means."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from penstock.federated.daemon.fleet_errors import (
    BadMessage,
    ClockWrong,
    FleetError,
    ForeignVersion,
    Forgotten,
    NotAdmitted,
    NotTaken,
    RunOver,
    ServerFault,
    Unreachable,
)
from penstock.federated.daemon.flower_messages import FLOWER

if TYPE_CHECKING:
    import httpx

REGISTRATION_OFF, KEY_IN_USE, NOT_ACTIVATED, RUN_OVER = 2001, 23, 2004, 2007  # Flower's codes
MOST_SKEW_S = 4.0  # Flower takes a signature 5 s from the future, 305 s from the past
MOST_ANSWER_BYTES = 16 << 20  # of one answer of the server; Flower's parts have 5 MiB
PASSING = (408, 425, 429, 502, 503, 504)  # HTTP: a server or a proxy that is busy or away


class BoundedSender:
    """Sends a request, and reads no more of the answer than it may have; Flower's own sending reads
    it whole, however large.

    Attributes:
        http: sends; set before the first request.
    """

    http: httpx.Client

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        """Flower calls this instead of sending."""
        import httpx

        del call_next
        body = bytearray()
        answer = self.http.send(context.request, stream=True)
        try:
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise BadMessage("the server sent a compressed answer, which was not asked for")
            for some in answer.iter_raw():
                body += some
                if len(body) > MOST_ANSWER_BYTES:
                    raise BadMessage(
                        f"the server sent an answer of more than {MOST_ANSWER_BYTES:,} bytes"
                    )
        finally:
            answer.close()
        return httpx.Response(
            answer.status_code, headers=answer.headers, content=bytes(body), request=answer.request
        )


class VersionHeaders:
    """Says which version we are, as Flower does, but does not end the process by itself."""

    def __init__(self) -> None:
        from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

        self._headers = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        """Flower calls this around every request."""
        context.request.headers.update(self._headers)
        return call_next(context)


def typed_error(error: Any) -> FleetError:
    """What an `httpx.HTTPStatusError` means."""
    from flwr.supercore.error import FlowerError
    from flwr.supercore.runtime_version_compatibility import (
        get_runtime_version_incompatibility_exit_message,
    )

    response = error.response
    text = response.text
    foreign = get_runtime_version_incompatibility_exit_message(text)
    if foreign:
        return ForeignVersion(f"this device has Flower {FLOWER}; the server says: {foreign}")
    known = FlowerError.from_json(text)
    if known is not None:
        if known.code == KEY_IN_USE:
            return NotAdmitted("the lease of this device's last process still runs", lease=True)
        if known.code in (NOT_ACTIVATED, REGISTRATION_OFF):
            return NotAdmitted(known.message, lease=False)
        if known.code == RUN_OVER:
            return RunOver(known.message)
    if response.status_code == 401:
        skew = _clock_skew(response.headers.get("date", ""))
        if skew is not None and not -300 < -skew < MOST_SKEW_S:
            side = "behind" if skew > 0 else "ahead of"
            return ClockWrong(
                f"this device's clock is {abs(skew):.0f} s {side} the server's, which refuses its "
                "signatures: set the clock (timedatectl set-ntp true)"
            )
        return Forgotten("the server does not know this node's key and number")
    said = f"HTTP {response.status_code}: {(known.message if known else text)[:200]}"
    if response.status_code == 413:
        return NotTaken(f"too large for the server, or for a proxy before it: {said}")
    fault = Unreachable if response.status_code in PASSING else ServerFault
    return fault(f"the server answered {said}")


def _clock_skew(date: str) -> float | None:
    """Seconds that the server's clock is ahead of ours, by its answer's Date header."""
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    except (TypeError, ValueError):
        return None
