"""Settings: what a file says, or an error that names the file, the value and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.federated.server.settings import read_settings

GOOD = """
[run]
folder = "out"
rounds = 5
[algorithm]
name = "heterofl"
[model]
name = "sensing-mlp"
input_shape = [43]
classes = 6
[devices]
ratios = [[1, 0.2], [0.75, 0.4], [0.5625, 0.4]]
deadline_s = 30
[superlink]
node_keys = "keys"
"""


def test_a_file_is_read_and_its_paths_start_at_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(GOOD)
    found = read_settings(path)
    assert found.run.folder == str(tmp_path / "out")
    assert found.superlink.node_keys == str(tmp_path / "keys")
    assert found.model.input_shape == (43,)
    assert found.devices.ratios == ((1.0, 0.2), (0.75, 0.4), (0.5625, 0.4))
    assert found.devices.deadline_s == 30.0
    assert found.public.file == ""


@pytest.mark.parametrize(
    ("old", "new", "kind", "words"),
    [
        ("[run]", "[run", FormatError, "not TOML"),
        ('folder = "out"', "", FormatError, "lacks run.folder"),
        ("[model]", "[modle]", UsageError, "[modle] is not a section"),
        ("rounds = 5", "rounds = 0", UsageError, "run.rounds is 0, expected 1"),
        ("rounds = 5", 'rounds = "5"', UsageError, "run.rounds is '5', expected int"),
        ("rounds = 5", "rounds = true", UsageError, "run.rounds is True, expected int"),
        ("rounds = 5", "rouns = 5", UsageError, "run.rouns is not known"),
        ("rounds = 5", "secure_aggregation = true", UsageError, "FedConv"),
        ('"heterofl"', '"fedsgd"', UsageError, "algorithm.name is 'fedsgd'"),
        ('"heterofl"', '"fedconv"', UsageError, "public.file is missing"),
        ("[superlink]", "[public]\ntest = 1\n[superlink]", UsageError, "public.test is 1"),
        (
            "[superlink]",
            '[public]\nfile = "p"\ntune_epochs = 1\nhold_out = 0.8\n[superlink]',
            UsageError,
            "public.hold_out 0.8 and public.test 0.2 leave no sample",
        ),
        ('"heterofl"', '"fedavg"', UsageError, "fedavg has ratio 1 only"),
        ("[43]", "[43, 2]", UsageError, "sensing-mlp"),
        ("[43]", '["x"]', UsageError, "model.input_shape[0] is 'x'"),
        ("classes = 6", "", FormatError, "lacks model.classes"),
        ("0.2]", "0.3]", UsageError, "the shares sum to 1.1"),
        ("[1, 0.2]", "[1.5, 0.2]", UsageError, "a ratio is 1.5"),
        ("[1, 0.2]", "[1]", UsageError, "expected [ratio, share]"),
        ("deadline_s = 30", "deadline_s = nan", UsageError, "deadline_s is nan"),
        ('node_keys = "keys"', 'certificate = "a"', UsageError, "go together"),
        ("[superlink]", "[privacy]\nnoise_multiplier = 1.0\n[superlink]", UsageError, "population"),
    ],
)
def test_a_bad_value_is_named(
    old: str, new: str, kind: type[PenstockError], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "server.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(kind) as raised:
        read_settings(path)
    assert str(raised.value).startswith(f"{path}: ") and words in str(raised.value)


def test_privacy_is_refused_for_what_has_no_epsilon(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    text = GOOD.replace('"heterofl"', '"fedmobile"')
    path.write_text(text + "\n[privacy]\nnoise_multiplier = 1.0\npopulation = 9\n")
    with pytest.raises(UsageError, match="no epsilon can be told"):
        read_settings(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        read_settings(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(FormatError, match="not UTF-8 at byte 8"):
        read_settings(tmp_path / "latin.toml")
