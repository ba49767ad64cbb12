"""How a node ends, for its supervisor; 74 to 78 as in sysexits.h."""

from __future__ import annotations

LEFT = 0  # it was asked to, and has told the server
REOPEN = 74  # the store is damaged, or was moved aside: the next process salvages it
UNLOAD = 75  # it was idle for long: start it again, without torch in its memory
MISCONFIGURED = 78  # it will not get better by trying again at once
