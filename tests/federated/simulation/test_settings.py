"""The settings of a simulation: read, changed by the command line, refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import FormatError, PenstockError, StorageError
from penstock.federated.simulation.settings import read_simulation

GOOD = """
[run]
folder = "out"
rounds = 3
[model]
name = "sensing-mlp"
input_shape = [5]
classes = 3
[simulation]
data = "windows.npz"
devices = 7
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "simulation.toml"
    path.write_text(text)
    return path


def test_paths_start_at_the_file_s_folder_and_the_command_line_wins(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    simulation, server = read_simulation(path)
    assert simulation.data == str(tmp_path / "windows.npz") and simulation.devices == 7
    assert server.run.folder == str(tmp_path / "out") and server.run.rounds == 3
    simulation, server = read_simulation(path, {"devices": 1000, "alpha": 0.1}, rounds=9)
    assert (simulation.devices, simulation.alpha, server.run.rounds) == (1000, 0.1, 9)
    assert simulation.processes >= 1
    few, _ = read_simulation(path, {"devices": 2, "actors": 64})
    assert few.processes == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[simulation]", "[simulations]", "lacks the section \\[simulation\\]"),
        ('data = "windows.npz"', "", "lacks simulation.data"),
        ("devices = 7", "devices = 0", "simulation.devices is 0"),
        ("devices = 7", 'devices = "7"', "simulation.devices is '7'"),
        ("devices = 7", "device = 7", "simulation.device is not known"),
        ("devices = 7", 'partition = "zipf"', "simulation.partition is 'zipf'"),
        ("devices = 7", "labelled = 0.0", "simulation.labelled is 0"),
        ("rounds = 3", "rounds = -3", "run.rounds is -3"),
        ("[run]", "[run", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(PenstockError, match=said) as caught:
        read_simulation(path)
    assert str(path) in str(caught.value)


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        read_simulation(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="not TOML"):
        read_simulation(tmp_path / "b.toml")
