"""What a run says of its devices in one line: a few are named, the others counted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

NAMED = 5  # devices of a line


def waiting_line(members: Collection[str], out: Mapping[str, str], least: int) -> str:
    """Who is ready, and why others sit out, while there are fewer than `least`."""
    here = f" ({_some(sorted(members), ', ')})" if members else ""
    why = f"; {reasons_line(out)}" if out else ""
    return f"{len(members)} of {least} devices are ready{here}; waiting{why}"


def reasons_line(reasons: Mapping[str, str]) -> str:
    """Reasons by device."""
    return _some([f"{device}: {reason}" for device, reason in sorted(reasons.items())], "; ")


def _some(facts: Sequence[str], between: str) -> str:
    left = len(facts) - NAMED
    return between.join([*facts[:NAMED], *([f"and {left} more"] if left > 0 else [])])
