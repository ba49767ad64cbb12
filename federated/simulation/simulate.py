"""A whole simulated federation: data shared out, Ray started, rounds run, everything cleaned up.

    simulation, server = read_simulation(Path("simulation.toml"), {"devices": 1000})
    records = simulate(simulation, server)

The rounds, checks, checkpoints and journal are the server's own (`server/run.py`); only the devices
are virtual.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from penstock.errors import UsageError
from penstock.federated.arrays import Arrays
from penstock.federated.fedmobile.fedmobile import FedMobile
from penstock.federated.report.records import RoundRecord
from penstock.federated.report.run_report import report_at_end
from penstock.federated.server.build import build_run, score_on
from penstock.federated.server.preflight import check_folder, check_settings_fit
from penstock.federated.server.run import FederatedRun, GlobalScore, ScoreGlobal
from penstock.federated.server.settings import ServerSettings
from penstock.federated.simulation.partition import partition
from penstock.federated.simulation.ray_fleet import RayFleet
from penstock.federated.simulation.samples import (
    HeldOut,
    Shards,
    chunks_of_held,
    hold_out,
    read_samples,
    write_shards,
)
from penstock.federated.simulation.settings import SimulationSettings
from penstock.federated.simulation.virtual_device import VirtualPlan
from penstock.federated.training.data import check_fits


def simulate(
    simulation: SimulationSettings,
    server: ServerSettings,
    *,
    resume: bool = False,
    note: Callable[[str], None] = print,
    started: Callable[[Shards], None] | None = None,
) -> tuple[RoundRecord, ...]:
    """Run all rounds; their records, checkpoints, journal and report lie in the run's folder.

    Args:
        resume: go on after the newest checkpoint there.
        note: told in words what happens, and each round's result.
        started: called when the actors are up, before the first round.

    Raises:
        PenstockError: the data, the settings or the folder do not fit; see `FederatedRun`.
    """
    _check(server)
    if simulation.test:  # its samples measure, so the public file needs no test part
        server = replace(server, public=replace(server.public, test=0.0))
    check_settings_fit(server)
    check_folder(server, resume=resume)
    with (
        report_at_end(Path(server.run.folder), note),
        tempfile.TemporaryDirectory(prefix="penstock-simulation-") as scratch,
    ):
        shards, test = share_out(simulation, server, Path(scratch))
        note(
            f"{shards.devices} virtual devices with {len(shards.labels)} samples, "
            f"{simulation.partition}; {len(test)} samples measure the global model"
        )
        note("Starting Ray…")
        plan = VirtualPlan(scratch, server.run.seed, memory_bytes=simulation.memory_bytes)
        with RayFleet(shards, plan, simulation.processes) as fleet:
            run = build_run(server, fleet, note)
            if isinstance(run.algorithm, FedMobile):
                fleet.teacher = run.algorithm.teacher
            if len(test):
                run.score = score_on(test.data, server.model, test.chunks)
            run.score = _telling(run, note)
            if resume:
                run.resume()
            else:
                run.begin()
            if started is not None:
                started(shards)
            return run.run()


def share_out(
    simulation: SimulationSettings, server: ServerSettings, folder: Path
) -> tuple[Shards, HeldOut]:
    """Read the data, keep the test samples aside, and write each device's samples to `folder`.

    Raises:
        PenstockError: the data does not fit the model or the partition.
    """
    samples = read_samples(Path(simulation.data))
    check_fits(samples.data, server.model)
    kept, held = hold_out(samples.data, simulation.test, server.run.seed)
    rest = samples.subset(kept)
    parts = partition(
        simulation.partition,
        rest.data.labels,
        rest.users,
        simulation.devices,
        alpha=simulation.alpha,
        seed=server.run.seed,
        least=simulation.least,
    )
    per_chunk = server.run.rounds_per_chunk
    chunks = -(-server.run.rounds // per_chunk) if per_chunk else 1
    shards = write_shards(
        folder,
        rest.data,
        parts,
        chunks=chunks,
        labelled=simulation.labelled,
        seed=server.run.seed,
    )
    groups = {"by-user": samples.users, "dirichlet": samples.data.labels}.get(simulation.partition)
    when = chunks_of_held(kept, held, parts, chunks, groups)
    return shards, HeldOut(samples.data.subset(held), when)


def _telling(run: FederatedRun, note: Callable[[str], None]) -> ScoreGlobal:
    """The run's score, which also tells the round's result as it goes on."""
    inner = run.score

    def score(arrays: Arrays, chunk: int) -> GlobalScore:
        found = inner(arrays, chunk) if inner else GlobalScore()
        measured = f": accuracy {found.accuracy:.4f}, macro-F1 {found.macro_f1:.4f}"
        note(
            f"round {run.algorithm.round_number} of {run.plan.rounds}"
            + (measured if found.accuracy >= 0 else "")
        )
        return found

    return score


def _check(server: ServerSettings) -> None:
    if server.algorithm == "fedmobile" and server.algorithm_settings.get("exemplars_per_class"):
        raise UsageError(
            "algorithm.exemplars_per_class: virtual devices have no store to keep exemplars in; "
            "leave it out, or run real devices"
        )
