"""A device's configuration: defaults that work, and every wrong field named."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.federated.daemon.config import load_config, read_certificates


def put(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "device.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_everything_is_at_its_default() -> None:
    config = load_config(None, superlink="127.0.0.1:8000")
    assert config.superlink.address == "127.0.0.1:8000"
    assert config.training.memory_bytes == 512 << 20 and config.storage.disk_bytes == 1 << 30
    assert config.daemon.engine == "node" and not config.superlink.insecure
    assert config.folder.is_absolute()


def test_paths_are_beside_the_file(tmp_path: Path) -> None:
    path = put(tmp_path, 'folder = "dev"\n[superlink]\naddress = "h:1"\ncertificates = "ca.crt"\n')
    config = load_config(path, superlink="other:2")
    assert config.folder == tmp_path / "dev" and config.store == tmp_path / "dev" / "store.db"
    assert config.superlink.certificates == str(tmp_path / "ca.crt")
    assert config.superlink.address == "other:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = [", "not TOML"),
        ("colour = 1", "'colour' is not known"),
        ("folder = 3", "folder is 3"),
        ("superlink = 3", r"\[superlink\] is 3, expected a table"),
        ("[superlink]\nadress = 'h:1'", r"\[superlink\] adress is not known; there are address"),
        ("[superlink]\naddress = 'http://h:1'", "expected host:port"),
        ("[superlink]\naddress = 'h'", "expected host:port"),
        ("[superlink]\naddress = 'h:99999'", "expected host:port"),
        ("[superlink]\nheartbeat_s = 5", "heartbeat_s is 5.0, expected 10"),
        ("[superlink]\nheartbeat_s = nan", "heartbeat_s is nan"),
        ("[superlink]\ninsecure = true\ncertificates = 'c'", "choose one"),
        ("[training]\nmemory = 512", "memory is 512, expected str"),
        ("[training]\nmemory = 'lots'", "lots"),
        ("[training]\nthreads = true", "threads is True, expected int"),
        ("[training]\nmost_ratio = 1.5", "most_ratio is 1.5"),
        ("[storage]\ndisk = '10KiB'", "disk is under 1"),
        ("[daemon]\nengine = 'docker'", "expected node or supernode"),
        ("[daemon]\nhealth_port = 70000", "health_port is 70000"),
        ("[conditions]\npower = 'maybe'", "power is 'maybe', expected \"require\""),
        ("[conditions]\nbattery = true", "a charge from 0 to 1"),
        ("[conditions]\nbattery = 30", "a charge from 0 to 1"),
        ("[conditions]\nfree_memory = 5", "a size such as"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = put(tmp_path, text)
    with pytest.raises(PenstockError, match=message) as caught:
        load_config(path)
    assert isinstance(caught.value, FormatError | UsageError)
    if "lots" not in text:
        assert str(path) in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        load_config(tmp_path / "none.toml")


def test_authorities_that_are_away_may_come_back(tmp_path: Path) -> None:
    path = put(tmp_path, '[superlink]\naddress = "h:1"\ncertificates = "ca.pem"\n')
    config, file = load_config(path), tmp_path / "ca.pem"
    with pytest.raises(StorageError, match="ca.pem cannot be read: No such file"):
        read_certificates(config, path)
    file.mkdir()
    with pytest.raises(StorageError, match="ca.pem cannot be read: Is a directory"):
        read_certificates(config, path)
    file.rmdir()
    file.write_text("none")
    with pytest.raises(UsageError, match="holds no certificate"):
        read_certificates(config, path)
    file.write_text("-----BEGIN CERTIFICATE-----\n")
    assert read_certificates(config, path) == b"-----BEGIN CERTIFICATE-----\n"
