"""`penstock export captioner` from end to end, what it refuses, and damaged captioner files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import BackendMissingError, FormatError, PenstockError, UsageError
from penstock.export.captioner import convert
from penstock.export.captioner.graphs import Graphs
from penstock.export.captioner_bundle import write_captioner
from penstock.export.gates import Floors, GateError
from penstock.loaders.captioner_file import CaptionerFile
from penstock.runtime.caption.captioner import load_captioner
from tests.cli.conftest import Cli, cli
from tests.export.captioner.conftest import Images, Made

__all__ = ["cli"]  # a fixture


@pytest.fixture
def quick(blip: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The graphs of the folder are those that torch has exported before."""
    monkeypatch.setattr(convert, "export_graphs", lambda network: blip.graphs)
    return blip


def test_the_command(cli: Cli, quick: Made, tmp_path: Path, images: Images) -> None:
    from PIL import Image

    photo, out = tmp_path / "photo.png", tmp_path / "blip.captioner"
    Image.fromarray(images[0]).save(photo)
    args = ("export", "captioner", quick.folder, out, "--beams", "2", "--photos", photo)
    done = cli(*args, "--max-tokens", "6", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["artifact_bytes"] == out.stat().st_size
    assert done.json["passed"] and done.json["ratio"] > 2
    assert "1 photos" in done.json["notes"][0]
    assert {gate["name"] for gate in done.json["gates"]} >= {
        "loads",
        "changed",
        "smaller",
        "logits",
    }
    with load_captioner(out, threads=1) as captioner:
        assert (captioner.options.beams, captioner.options.max_tokens) == (2, 6)
        wanted = captioner.caption(images[0]).text
    said = cli("caption", photo, "--model", out, "--json")
    assert said.code == 0 and wanted in said.out

    refused = cli(*args, "--json")
    assert refused.code == 2 and "is there already" in refused.json["error"]["message"]
    again = cli(*args, "--overwrite")
    assert again.code == 0 and "Wrote" in again.err and "cosine" in again.out


def test_what_is_refused_leaves_nothing(quick: Made, tmp_path: Path) -> None:
    out = tmp_path / "blip.captioner"
    with pytest.raises(GateError, match="sqnr_db: .*wanted at least 200") as caught:
        convert.export_captioner(quick.folder, out, floors=Floors({"sqnr_db": 200}), threads=1)
    assert caught.value.report.metric("sqnr_db").after > 0
    with pytest.raises(GateError, match="min-ratio"):
        convert.export_captioner(
            quick.folder, out, int8=False, floors=Floors(min_ratio=2), threads=1
        )
    with pytest.raises(UsageError, match="no metric 'accuracy'"):
        convert.export_captioner(quick.folder, out, floors=Floors({"accuracy": 0.5}), threads=1)
    assert list(tmp_path.iterdir()) == []


def test_graphs_of_other_weights_are_refused(
    quick: Made, vit_gpt2: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that computes something else must not pass for the folder's model."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(quick.graphs.decoder)
    matrix = next(t for t in model.graph.initializer if len(t.dims) == 2 and t.dims[0] == 64)
    changed = numpy_helper.to_array(matrix) * np.float32(1.5)
    matrix.CopyFrom(numpy_helper.from_array(changed, matrix.name))
    graphs = Graphs(quick.graphs.encoder, model.SerializeToString())
    monkeypatch.setattr(convert, "export_graphs", lambda network: graphs)
    with pytest.raises(GateError, match="float graphs equal torch"):
        convert.export_captioner(quick.folder, tmp_path / "x", int8=False, threads=1)
    monkeypatch.setattr(convert, "export_graphs", lambda network: vit_gpt2.graphs)
    with pytest.raises(GateError, match=r"loads: .*/x: encoder.*missing or not known"):
        convert.export_captioner(
            quick.folder, tmp_path / "x", int8=False, floors=Floors({"cosine": 0.9}), threads=1
        )
    assert list(tmp_path.iterdir()) == []


def test_without_torch(quick: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackendMissingError, match=r"penstock\[export\]"):
        convert.export_captioner(quick.folder, tmp_path / "x")


def _set(section: str, **values: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def change(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        manifest[section] = {**manifest[section], **values}

    return change


def _member(name: str, data: bytes | None) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def change(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        if data is None:
            del members[name]
        else:
            members[name] = data

    return change


def _swap(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    members["encoder.onnx"], members["decoder.onnx"] = (
        members["decoder.onnx"],
        members["encoder.onnx"],
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("decoder", layers=3), "missing or not known"),
        (_set("decoder", layers=0), "layers"),
        (_set("decoder", prompt=[]), "prompt"),
        (_set("decoder", prompt=[10**6]), "prompt"),
        (_set("decoder", prompt="abc"), "prompt"),
        (_set("decoder", bad_words=[[True]]), "bad_words"),
        (_set("decoder", ends=[5]), "ends"),
        (_set("decoder", positions=4), "positions"),
        (_set("decoder", crop=4096), "crop"),
        (_swap, "missing or not known"),
        (_member("decoder.onnx", None), "names no member"),
        (_member("decoder.onnx", b""), "empty"),
        (_member("decoder.onnx", b"not ONNX at all"), "not an ONNX model"),
        (_member("tokenizer.json", b"{}"), "tokenizer"),
        (_member("tokenizer.json", b"\xff\xfe"), "not UTF-8"),
    ],
)
def test_captioner_files_that_are_refused(
    blip: Made,
    tmp_path: Path,
    change: Callable[[dict[str, Any], dict[str, bytes]], None],
    said: str,
) -> None:
    with pytest.raises(FormatError, match=said):
        load_captioner(_changed(blip, tmp_path, change), threads=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("decoder", heads=5), "onnxruntime failed"),
        (_set("decoder", vocabulary=51, prompt=[5], bad_words=[]), "gave logits"),
        (_set("decoder", crop=8), "onnxruntime failed"),
    ],
)
def test_a_manifest_that_lies_about_shapes_is_an_error_not_a_crash(
    blip: Made,
    tmp_path: Path,
    images: Images,
    change: Callable[[dict[str, Any], dict[str, bytes]], None],
    said: str,
) -> None:
    path = _changed(blip, tmp_path, change)
    with load_captioner(path, threads=1) as captioner:
        with pytest.raises(PenstockError, match=said):
            captioner.caption(images[0])


def _changed(
    made: Made, tmp_path: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]
) -> Path:
    with CaptionerFile(made.plain) as file:
        manifest = {**file.manifest}
        members = {name: file.read(name) for name in manifest.pop("members")}
    change(manifest, members)
    out = tmp_path / "changed.captioner"
    write_captioner(out, manifest, members)
    return out
