"""What would end a run at its beginning is found before anything is started.

SuperLink takes 20 s and Ray 10 s to come up, and the run in it 5 s more to import torch. So all
that can be known without them is looked at first.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from penstock.federated.server.build import algorithm_name, algorithm_settings, public_parts
from penstock.federated.server.checkpoint import check_new_run, check_same_run, read_newest
from penstock.federated.server.privacy import Ledger
from penstock.federated.server.settings import ServerSettings


def check_settings_fit(settings: ServerSettings) -> None:
    """Refuse settings that `build_run` would refuse; the public samples are read for it.

    Raises:
        PenstockError: something they name is not there or does not fit.
    """
    algorithm_settings(settings)
    train, hold_out, _ = public_parts(settings)
    if settings.chooses and train is not None and hold_out is not None:
        from penstock.federated.public_training import PublicSet

        PublicSet(train, hold_out)
    if settings.privacy.noise_multiplier:
        Ledger(settings.privacy)


def check_folder(settings: ServerSettings, *, resume: bool) -> None:
    """Refuse a run's folder in which this run can neither begin nor go on.

    Raises:
        UsageError: it holds a run and `resume` was not asked for, or one of another algorithm,
            model or seed, or with differential privacy where the settings have none.
        FormatError: all its checkpoints are damaged.
    """
    folder = Path(settings.run.folder)
    if not resume:
        check_new_run(folder)
        return
    found = read_newest(folder, lambda text: None)  # the run tells of damaged ones
    if found is None:
        return
    check_same_run(
        folder,
        found,
        algorithm=algorithm_name(settings),
        model=settings.model.to_json(),
        seed=settings.run.seed,
        private=settings.privacy.noise_multiplier > 0,
    )


def open_to_others(host: str) -> bool:
    """Whether other machines may reach a server that listens at this address."""
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host != "localhost"
