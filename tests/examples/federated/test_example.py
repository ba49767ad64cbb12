"""The example's data and settings fit each other and the product."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.federated.make_data import NAMES, make
from penstock.federated.simulation.settings import read_simulation
from penstock.federated.simulation.simulate import share_out

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "federated"


def test_the_settings_take_the_data(tmp_path: Path) -> None:
    arrays = make(users=40, windows=6, seed=1)
    np.savez(tmp_path / "windows.npz", **arrays)  # type: ignore[arg-type]
    (tmp_path / "simulation.toml").write_text((EXAMPLE / "simulation.toml").read_text())
    simulation, server = read_simulation(tmp_path / "simulation.toml")
    assert server.model.classes == len(NAMES)
    shards, test = share_out(simulation, server, tmp_path)
    assert shards.devices == 40 and len(test) == 48
    assert len(shards.labels) == 240 - 48


def test_activities_can_be_told_apart_and_the_data_is_the_same_every_time() -> None:
    arrays, again = make(10, 40, 3), make(10, 40, 3)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    movement = arrays["inputs"].std(axis=(1, 2))
    rest, run = (movement[arrays["labels"] == NAMES.index(name)] for name in ("rest", "run"))
    assert rest.max() < run.min() + 0.2 and rest.mean() < run.mean() / 1.3
