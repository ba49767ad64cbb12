"""Damaged, cut and foreign files: an error that says so, and never the end of the process."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.errors import FormatError, PenstockError, StorageError
from penstock.runtime.backends.open_model import open_model, read_graph

CHILD = Path(__file__).with_name("damage_child.py")
ROOT = CHILD.parents[3]
SEEDS = 150
TIMEOUT_S = 300


def try_seeds(model: Path, copy: Path, seeds: int = SEEDS) -> int:
    """How many of the damaged copies were refused, all in a process that must live."""
    done = subprocess.run(
        [sys.executable, str(CHILD), str(model), f"0-{seeds}", str(copy)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    lines = done.stdout.split("\n")
    tail = done.stderr[-2000:]
    assert done.returncode == 0, f"{done.returncode} at {lines[-3:]}: {tail}"
    assert lines[-2].startswith("done"), tail
    return int(lines[-2].split()[1])


@pytest.mark.usefixtures("onnxruntime")
def test_a_damaged_tiny_onnx(onnx_file: Path, tmp_path: Path) -> None:
    assert try_seeds(onnx_file, tmp_path / "copy.onnx") > SEEDS // 3


@pytest.mark.usefixtures("litert")
def test_a_damaged_tiny_tflite(tflite_file: Path, tmp_path: Path) -> None:
    assert try_seeds(tflite_file, tmp_path / "copy.tflite") > SEEDS // 3


@pytest.mark.slow
@pytest.mark.usefixtures("onnxruntime")
@pytest.mark.parametrize("name", ["version-RFB-320.onnx", "light_squeezenet.onnx"])
def test_a_damaged_real_onnx(models_dir: Path, tmp_path: Path, name: str) -> None:
    assert try_seeds(models_dir / name, tmp_path / "copy.onnx", 60) > 10


@pytest.mark.slow
@pytest.mark.usefixtures("litert")
@pytest.mark.parametrize("name", ["version-RFB-320.tflite", "vww_96_int8.tflite"])
def test_a_damaged_real_tflite(models_dir: Path, tmp_path: Path, name: str) -> None:
    assert try_seeds(models_dir / name, tmp_path / "copy.tflite", 60) > 10


@pytest.mark.parametrize("ending", ["onnx", "tflite"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty; expected an? (ONNX|TFLite) model"),
        (b"PK\3\4" + bytes(200), "not an? (ONNX|TFLite) model"),
        (b"<!doctype html><html></html>", "not an? (ONNX|TFLite) model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not an? (ONNX|TFLite) model"),
        (bytes(4096), "not an? (ONNX|TFLite) model"),
        (b"\x08", "not a TFLite model|cut short"),
    ],
)
def test_foreign_files(tmp_path: Path, ending: str, data: bytes, said: str) -> None:
    path = tmp_path / f"model.{ending}"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=said) as caught:
        open_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("which", ["onnx", "tflite"])
def test_every_way_to_cut_a_file(
    onnx_file: Path, tflite_file: Path, tmp_path: Path, which: str
) -> None:
    whole = (onnx_file if which == "onnx" else tflite_file).read_bytes()
    path = tmp_path / f"cut.{which}"
    for length in range(len(whole) - 4):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError) as caught:
            read_graph(path)
        assert str(path) in str(caught.value)


def test_a_tflite_model_under_the_name_of_an_onnx_one(tflite_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shutil.copyfile(tflite_file, path)
    assert read_graph(path).format == "tflite", "what is in it decides"


@pytest.mark.parametrize("name", ["missing.onnx", "missing.tflite"])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match=f"{name}: cannot be read: No such file"):
        open_model(tmp_path / name)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        open_model(tmp_path / "model.onnx")


def test_neither_format(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(FormatError, match="expected an ONNX or TFLite model"):
        open_model(path)


def test_an_offset_out_of_the_file(tflite_file: Path) -> None:
    data = bytearray(tflite_file.read_bytes())
    struct.pack_into("<I", data, 0, 1 << 30)
    tflite_file.write_bytes(data)
    with pytest.raises(PenstockError, match="at offset 1073741824: the model lies outside"):
        open_model(tflite_file)
