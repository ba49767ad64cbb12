"""Everything a person may ask about a device: the daemon, the data, the last round."""

from __future__ import annotations

from typing import Any

from penstock.federated.daemon.config import DeviceConfig
from penstock.federated.daemon.status import read_status


def device_status(config: DeviceConfig) -> dict[str, Any]:
    """Facts by name; "running" and "phase" are always there, "standing" where there is a store.

    Raises:
        PenstockError: the status or the store cannot be read.
    """
    facts = read_status(config.folder)
    found: dict[str, Any] = {
        name: facts.pop(name, None) for name in ("running", "phase", "reason", "since")
    }
    found |= {"folder": str(config.folder), "superlink": config.superlink.address} | facts
    return found | (_stored(config) if config.store.exists() else {})


def _stored(config: DeviceConfig) -> dict[str, Any]:
    from penstock.federated.client.journal import Journal
    from penstock.federated.client.standing import Standings
    from penstock.federated.client.store import Store

    with Store.open(config.store) as store:
        counts, last = store.counts(), store.rounds.last_answer()
        journal = Journal(store.database)
        found: dict[str, Any] = {
            **Standings(store.database).now().facts,
            "chunk": counts.chunk,
            "labelled": counts.labelled,
            "unlabelled": counts.unlabelled,
            "waiting_for_later_chunks": counts.waiting,
            "store_bytes": counts.nbytes,
            "open_messages": len(journal.open_messages()),
            "ended_messages": journal.outcomes(),
        }
        if last is not None:
            found |= {
                "last_run": last.run,
                "last_round": last.round_number,
                "last_refused": last.refused,
                "last_examples": last.examples,
                "last_loss": last.loss,
                "last_seconds": round(last.seconds, 3),
            }
    return found
