"""`penstock export litert`, and `penstock quantize` of TFLite files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock.loaders.tflite_file import read_tflite
from tests.cli.conftest import Cli
from tests.export.litert.model_maker import SIDE, small_cnn


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A float model with operator codes of the old kind, and without a signature."""
    maker = small_cnn()
    for code in maker.model.operatorCodes:
        code.builtinCode = 0
    return maker.save(tmp_path / "old.tflite")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    images = np.random.default_rng(0).random((6, SIDE, SIDE, 3)).astype(np.float32)
    np.savez(path, x=images)
    return path


def test_a_file_is_repaired(cli: Cli, old: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.tflite"
    done = cli("export", "litert", old, out)
    assert done.code == 0 and "computes the same" in done.out
    assert "repaired 3 of 3 operator codes" in " ".join(done.out.split())
    assert read_tflite(out).operations == read_tflite(old).operations
    again = cli("export", "litert", out, tmp_path / "newer.tflite")
    assert again.code == 2 and "nothing to repair" in again.err


def test_a_file_is_quantized(cli: Cli, old: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.tflite"
    done = cli(
        "export", "litert", old, out, "--recipe", "static-int8 percentile", "--calibration", data,
        "--threads", "1", "--json",
    )  # fmt: skip
    assert done.code == 0
    report = done.json
    assert report["target"] == "litert" and report["recipe"] == "static-int8 percentile"
    assert report["passed"] and report["artifact_bytes"] == out.stat().st_size


def test_quantize_takes_tflite_files(cli: Cli, old: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "mix.tflite"
    done = cli(
        "quantize", old, out, "--target-size", "6kB", "--calibration", data, "--threads", "1",
        "--json",
    )  # fmt: skip
    assert done.code == 0 and out.stat().st_size <= 6000
    assert {"int4"} < set(done.json["precisions"].values())


def test_what_is_refused_leaves_nothing(cli: Cli, old: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.tflite"
    done = cli("quantize", old, out, "--recipe", "weight-int4", "--fail-below", "sqnr_db=90")
    assert done.code == 1 and "refused, nothing was written: sqnr_db" in " ".join(done.err.split())
    assert not out.exists()
    done = cli("export", "litert", old, out, "--recipe", "weight-int3")
    assert done.code != 0 and "weight-int3" in done.err and not out.exists()
    pickled = tmp_path / "model.pt"
    pickled.write_bytes(b"\x80\x04.")
    done = cli("export", "litert", pickled, out)
    assert done.code != 0 and "*.pt2" in done.err and not out.exists()
