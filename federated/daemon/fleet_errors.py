"""What can go wrong between a node and its SuperLink; the node acts on each in its own way."""

from __future__ import annotations


class FleetError(Exception):
    """Base: a call to the SuperLink did not do what it should."""


class Unreachable(FleetError):
    """No answer, or a passing failure of the server: try again."""


class ServerFault(Unreachable):
    """The server fails at this request, or refuses it (HTTP 500, 404, 400): others may succeed."""


class NotAdmitted(FleetError):
    """The key is not registered, or the lease of this device's last process still runs.

    Attributes:
        lease: it is the lease for certain; else it may be either.
    """

    def __init__(self, message: str, lease: bool) -> None:
        super().__init__(message)
        self.lease = lease


class Forgotten(FleetError):
    """The server does not know this node any more: join again."""


class ClockWrong(FleetError):
    """The device's clock is so far off that the server refuses its signatures."""


class RunOver(FleetError):
    """The run that a message belongs to has ended."""


class NotTaken(FleetError):
    """The server does not take this reply: it came too late, or it is too large."""


class ForeignVersion(FleetError):
    """The server runs another version of Flower."""


class BadMessage(FleetError):
    """What the server handed out is no message, or too large."""
