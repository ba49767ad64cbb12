"""`penstock export lightcap` from end to end, and what it refuses."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import BackendMissingError, FormatError, UsageError
from penstock.export.gates import Floors, GateError
from penstock.export.lightcap import export
from penstock.export.lightcap.export_folder import PhotoFiles, export_lightcap_folder
from penstock.export.lightcap.folder import write_folder
from penstock.export.lightcap.int8 import ENCODER_RECIPES
from penstock.loaders.captioner_file import CaptionerFile
from penstock.runtime.caption.beam_search import BeamOptions, Hypothesis, beam_search
from penstock.runtime.caption.captioner import load_captioner
from tests.cli.conftest import Cli, cli
from tests.export.lightcap.exported_files import (
    MAX_TOKENS,
    Files,
    TorchPhoto,
    exported_files,
    network,
)
from tests.export.lightcap.tiny_lightcap import exported, pictures

__all__ = ["cli"]  # a fixture
CLOSE = 2e-4
LITTLE: dict[str, Any] = {"calibration": pictures(1), "threads": 1, "max_tokens": 4}


@pytest.fixture(scope="session")
def made() -> Files:
    return exported_files()


@pytest.fixture
def quick(made: Files, monkeypatch: pytest.MonkeyPatch) -> Files:
    """The graphs of the folder are those that torch has exported before."""
    graphs = exported()[1]
    monkeypatch.setattr(export, "export_graphs", lambda folder: graphs)
    return made


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of the pictures."""
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for name, picture in pictures().items():
        Image.fromarray(picture).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_float_graphs_compute_what_torch_does(made: Files) -> None:
    plain, random = network(made.plain), np.random.default_rng(0)
    for picture in pictures().values():
        pixels = plain.pixels(picture)
        torchs = TorchPhoto(made.folder, pixels)
        grid: Any = plain.grid(pixels)
        np.testing.assert_allclose(grid.numpy(), torchs.grid, atol=CLOSE, rtol=1e-4)
        run, concepts, _ = plain.see(picture)
        names = [made.folder.concepts[i] for i in torchs.concepts[0]]
        assert [concept.name for concept in concepts] == names
        np.testing.assert_allclose([c.score for c in concepts], torchs.scores[0], atol=CLOSE)
        tokens: tuple[int, ...] = ()
        row = run.begin()
        for token in random.integers(5, made.folder.config.vocabulary, MAX_TOKENS).tolist():
            np.testing.assert_allclose(row, torchs.log_probabilities(tokens), atol=1e-3)
            tokens = (*tokens, token)
            row = run.step(np.array([token]), np.zeros(1, np.int64))[0]


def reference_search(photo: TorchPhoto, beams: int, most: int) -> list[tuple[float, list[int]]]:
    """Beam search written as it is described, each step of each beam by torch without a cache."""
    end = photo.model.config.end
    open_beams: list[tuple[float, list[int]]] = [(0.0, [])]
    found: list[tuple[float, list[int]]] = []
    for length in range(1, most + 1):
        rows = [
            (total + float(p), [*tokens, token])
            for total, tokens in open_beams
            for token, p in enumerate(photo.log_probabilities(tuple(tokens)))
        ]
        rows.sort(key=lambda row: -row[0])
        best = rows[: 2 * beams]
        found += [(total / length, t[:-1]) for total, t in best[:beams] if t[-1] == end]
        found = sorted(found, key=lambda row: -row[0])[:beams]
        open_beams = [row for row in best if row[1][-1] != end][:beams]
        full = len(found) == beams
        hopeless = full and found[-1][0] >= open_beams[0][0] / length
        if length < most and full and (hopeless or beams == 1):
            return found
    cut = [(total / most, tokens) for total, tokens in open_beams]
    return sorted([*found, *cut], key=lambda row: -row[0])[:beams]


@pytest.mark.parametrize("beams", [1, 3, 5])
def test_captions_are_those_of_a_search_over_torch(made: Files, beams: int) -> None:
    plain, end = network(made.plain), made.folder.config.end
    lengths, captions = set(), set()
    for picture in pictures().values():
        found: list[Hypothesis] = beam_search(
            plain.see(picture)[0], BeamOptions(beams, MAX_TOKENS, end)
        )
        torchs = TorchPhoto(made.folder, plain.pixels(picture))
        wanted = reference_search(torchs, beams, MAX_TOKENS)
        assert [list(h.tokens) for h in found] == [tokens for _, tokens in wanted]
        np.testing.assert_allclose([h.score for h in found], [s for s, _ in wanted], atol=1e-3)
        lengths |= {len(h.tokens) for h in found}
        captions.add(found[0].tokens)
    assert len(captions) > 1 and (beams == 1 or len(lengths) > 1), "all alike: that shows little"


def test_the_report(made: Files) -> None:
    report = made.report
    assert (
        report.passed
        and report.target == "captioner"
        and any(recipe in report.recipe for recipe in ENCODER_RECIPES.values())
    )
    assert report.artifact_bytes == made.int8.stat().st_size
    assert report.source_bytes == made.folder.float_bytes
    assert report.ratio == pytest.approx(report.source_bytes / report.artifact_bytes)
    assert report.ratio > 3
    gates = {gate.name: gate.passed for gate in report.gates}
    assert gates == dict.fromkeys(
        ("changed", "loads", "float graphs equal torch", "log-probabilities", "smaller"), True
    )
    values = {metric.name: metric for metric in report.metrics}
    assert list(values) == ["grid_sqnr_db", "concepts_equal", "cosine", "captions_equal"]
    assert all(metric.samples == len(pictures()) for metric in report.metrics)
    assert 20 < values["grid_sqnr_db"].after < 80 and 0.95 < values["cosine"].after < 1
    assert values["concepts_equal"].after > 0.6
    kinds = {name.split("/")[0] for name in report.precisions}
    assert kinds == {"encoder", "concepts", "prefix", "decoder"}
    assert {kind.split()[0] for kind in report.precisions.values()} == {"int8"}
    for latency in (report.latency_before, report.latency_after):
        assert latency is not None and 0 < latency.p50_ms <= latency.p95_ms
        assert latency.threads == 1
    assert set(report.seconds) == {"read", "export", "quantize", "check"}


def test_the_metrics_are_those_of_the_files(made: Files) -> None:
    plain, small = network(made.plain), network(made.int8)
    noise = signal = 0.0
    equal = 0
    options = BeamOptions(3, MAX_TOKENS, made.folder.config.end)
    for picture in pictures().values():
        grids: list[Any] = [n.grid(n.pixels(picture)) for n in (plain, small)]
        wanted, seen = (grid.numpy().astype(np.float64) for grid in grids)
        noise += ((seen - wanted) ** 2).sum()
        signal += (wanted**2).sum()
        best = [beam_search(n.see(picture)[0], options)[0].tokens for n in (plain, small)]
        equal += best[0] == best[1]
    report = made.report
    assert report.metric("grid_sqnr_db").after == pytest.approx(10 * np.log10(signal / noise))
    assert report.metric("captions_equal").after == equal / len(pictures())


def test_the_manifest(made: Files) -> None:
    for path, weights in ((made.plain, "float32"), (made.int8, "int8")):
        with CaptionerFile(path) as file:
            manifest = file.manifest
        assert (manifest["architecture"], manifest["name"]) == ("lightcap", "tiny")
        assert manifest["weights"] == weights and manifest["card"] == {"name": "tiny"}
        assert manifest["image"]["mean"] == [0.5] * 3 and manifest["image"]["size"] == 64
        assert manifest["generation"]["most_tokens"] == 31
        with load_captioner(path, threads=1) as captioner:
            assert (captioner.options.beams, captioner.options.max_tokens) == (3, MAX_TOKENS)


def test_no_caption_contains_what_is_no_word(made: Files) -> None:
    with load_captioner(made.plain, threads=1) as captioner:
        for picture in pictures().values():
            for beams in (1, 10):
                assert "[" not in captioner.caption(picture, beams=beams).text


def test_references_give_cider_d(quick: Files, tmp_path: Path) -> None:
    with load_captioner(quick.plain, threads=1) as captioner:
        said = {n: captioner.caption(p).text for n, p in pictures().items()}
    report = export.export_lightcap(
        quick.folder, tmp_path / "x", int8=False, calibration=pictures(), threads=1,
        references={n: [text, "a photo of nothing"] for n, text in said.items()},
        max_tokens=MAX_TOKENS,
    )  # fmt: skip
    metric = report.metric("cider_d")
    assert metric.before == metric.after and metric.after > 0 and metric.delta == 0
    with pytest.raises(GateError, match="cider_d: .*wanted at least 20"):
        export.export_lightcap(
            quick.folder, tmp_path / "y", int8=False, calibration=pictures(), threads=1,
            references={n: [text] for n, text in said.items()}, floors=Floors({"cider_d": 20}),
        )  # fmt: skip
    assert not (tmp_path / "y").exists()


def test_what_is_refused_leaves_nothing(quick: Files, tmp_path: Path) -> None:
    out = tmp_path / "x.captioner"
    with pytest.raises(GateError, match="grid_sqnr_db: .*wanted at least 200") as caught:
        export.export_lightcap(quick.folder, out, floors=Floors({"grid_sqnr_db": 200}), **LITTLE)
    assert caught.value.report.metric("grid_sqnr_db").after > 0
    with pytest.raises(GateError, match="min-ratio"):
        export.export_lightcap(quick.folder, out, int8=False, floors=Floors(min_ratio=2), **LITTLE)
    with pytest.raises(UsageError, match="no metric 'accuracy'"):
        export.export_lightcap(quick.folder, out, floors=Floors({"accuracy": 1}), **LITTLE)
    with pytest.raises(UsageError, match="max_tokens is 32, the captioner has places for 31"):
        export.export_lightcap(quick.folder, out, max_tokens=32)
    with pytest.raises(FormatError, match=r"none.config.json: cannot be read"):
        export.export_lightcap(tmp_path / "none", out)
    assert list(tmp_path.iterdir()) == []
    out.write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        export.export_lightcap(quick.folder, out)
    assert out.read_text() == "mine"


def test_graphs_of_other_weights_are_refused(quick: Files, tmp_path: Path) -> None:
    other = replace(quick.folder, model=type(quick.folder.model)(quick.folder.config).eval())
    with pytest.raises(GateError, match="float graphs equal torch: .*off by at most"):
        export.export_lightcap(other, tmp_path / "x", int8=False, **LITTLE)
    assert list(tmp_path.iterdir()) == []


def test_graphs_that_do_not_load_are_refused(
    quick: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped = replace(exported()[1], prefix=exported()[1].concepts)
    monkeypatch.setattr(export, "export_graphs", lambda folder: swapped)
    with pytest.raises(GateError, match="loads: .*prefix.onnx.*missing or not known"):
        export.export_lightcap(quick.folder, tmp_path / "x", int8=False, **LITTLE)
    assert list(tmp_path.iterdir()) == []


def test_the_command(quick: Files, cli: Cli, photos: Path, tmp_path: Path) -> None:
    write_folder(quick.folder, tmp_path / "folder")
    out, table = tmp_path / "x.captioner", tmp_path / "captions.txt"
    rows = [f"{name},a cat on the grass\n{name},the old dog" for name in pictures()]
    table.write_text("\n".join(["image,caption", *rows, "other.jpg,a house"]))
    args = ("export", "lightcap", tmp_path / "folder", out, "--photos", photos, "--threads", "1")
    done = cli(*args, "--captions", table, "--beams", "2", "--max-tokens", "6", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["passed"] and done.json["artifact_bytes"] == out.stat().st_size
    assert "cider_d" in {metric["name"] for metric in done.json["metrics"]}
    with load_captioner(out, threads=1) as captioner:
        assert (captioner.options.beams, captioner.options.max_tokens) == (2, 6)
    photo = photos / "0.png"
    said = cli("caption", photo, "--model", out, "--concepts", "--threads", "1")
    assert said.code == 0 and said.out.startswith(f"{photo}: ") and "concepts: " in said.out

    refused = cli(*args, "--json")
    assert refused.code == 2 and "is there already" in refused.json["error"]["message"]
    failed = cli(*args, "--overwrite", "--float", "--fail-below", "cosine=1.1", "--max-tokens", "4")
    assert failed.code == 1 and "FAILED" in failed.out.upper() and "cosine" in failed.err
    both = cli(*args, "--float", "--recipe", "static-int8")
    assert both.code == 2 and "not both" in both.err


def test_made_up_pictures_are_confessed(quick: Files, tmp_path: Path) -> None:
    write_folder(quick.folder, tmp_path / "folder")
    report = export_lightcap_folder(
        tmp_path / "folder", tmp_path / "x", int8=False, max_tokens=4, threads=1
    )
    assert any("made-up pictures" in note for note in report.notes)


def test_photos_and_captions_that_do_not_go_together(
    quick: Files, photos: Path, tmp_path: Path
) -> None:
    table, folder = tmp_path / "c.csv", tmp_path / "folder"
    write_folder(quick.folder, folder)
    table.write_text("image,caption\n0.png,a cat\n")
    before = sorted(tmp_path.iterdir())

    def run(**options: Any) -> None:
        export_lightcap_folder(folder, tmp_path / "x", threads=1, **options)

    with pytest.raises(UsageError, match=r"3 of the 4 photos .* no captions in it: 1.png, 2.png"):
        run(evaluation=photos, captions=table)
    with pytest.raises(UsageError, match="captions of no photos"):
        run(captions=table)
    with pytest.raises(UsageError, match="no photos in it"):
        run(photos=folder)
    assert sorted(tmp_path.iterdir()) == before


def test_photos_are_read_when_they_are_asked_for(photos: Path) -> None:
    (photos / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (photos / "deeper").mkdir()
    files = PhotoFiles(photos)
    assert len(files) == 5 and all(Path(name).parent == photos for name in files)
    assert np.array_equal(files[str(photos / "1.png")], pictures()["1.png"])
    with pytest.raises(UsageError, match=r"4.png.*; repair the photo, or take it out"):
        files[str(photos / "4.png")]
    assert set(files.by_name()) == {f"{i}.png" for i in range(5)}
    (photos / "1.png").rename(photos / "deeper" / "0.png")
    with pytest.raises(UsageError, match="have the same name"):
        PhotoFiles(photos).by_name()


def test_a_damaged_photo_is_named_and_nothing_written(
    quick: Files, photos: Path, tmp_path: Path
) -> None:
    write_folder(quick.folder, tmp_path / "folder")
    (photos / "9.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    for known, asked in ((photos, None), (None, photos)):
        with pytest.raises(UsageError, match=r"9.png"):
            export_lightcap_folder(
                tmp_path / "folder", tmp_path / "x", threads=1, max_tokens=4,
                photos=known, evaluation=asked,
            )  # fmt: skip
    assert not (tmp_path / "x").exists()


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("penstock.export.lightcap.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendMissingError, match=r"torch.*penstock\[export\]"):
        export_lightcap_folder(tmp_path, tmp_path / "x")
