"""The bars of issue 4 on real models: visual wake words on labelled photos, and RFB-320.

Calibration photos are those without labels; the report is on the labelled ones.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.export.dataset import Dataset, Sample, open_dataset
from penstock.export.litert.quantize import quantize_tflite
from penstock.export.precision_search import PrecisionSearch
from penstock.loaders.tflite_file import read_tflite

CALIBRATION = 24
pytestmark = pytest.mark.slow


class Decoded:
    """Photos that are decoded once, not in each of some ten passes over them."""

    def __init__(self, photos: Dataset) -> None:
        self.name, self.labels = photos.name, photos.labels
        self._samples = list(photos.samples())

    def __len__(self) -> int:
        return len(self._samples)

    def samples(self, limit: int | None = None) -> Iterator[Sample]:
        return iter(self._samples[:limit])


@pytest.fixture(scope="module")
def photos(shared_dir: Path) -> Path:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    path = shared_dir / "data" / "photos" / "coco"
    if not (path / "person_labels.csv").is_file():
        pytest.skip(f"the labelled photos in {path} are not there")
    return path


@pytest.fixture(scope="module")
def vww(models_dir: Path) -> Path:
    return models_dir / "vww_96_float.tflite"


@pytest.fixture(scope="module")
def labelled(photos: Path, vww: Path) -> Dataset:
    labels = photos / "person_labels.csv"
    return Decoded(open_dataset(photos, read_tflite(vww).inputs, labels=labels))


@pytest.fixture(scope="module")
def unlabelled(photos: Path, vww: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    with open(photos / "person_labels.csv", newline="") as handle:
        seen = {row[0] for row in csv.reader(handle)}
    folder = tmp_path_factory.mktemp("photos")
    others = sorted(p for p in photos.glob("*2017/*.jpg") if p.stem not in seen)[:CALIBRATION]
    assert len(others) == CALIBRATION
    for photo in others:
        os.symlink(photo, folder / photo.name)
    return Decoded(open_dataset(folder, read_tflite(vww).inputs))


def test_int8_is_within_a_point_and_three_times_smaller(
    vww: Path, unlabelled: Dataset, labelled: Dataset, tmp_path: Path
) -> None:
    least_db = {"weight-int8": 38, "static-int8": 27, "static-int8 entropy": 22}
    for recipe, least in least_db.items():
        report = quantize_tflite(
            vww,
            tmp_path / f"{recipe}.tflite",
            recipe,
            calibration=unlabelled,
            evaluation=labelled,
            threads=1,
        )
        accuracy = report.metric("accuracy")
        assert accuracy.before is not None and accuracy.samples == 96
        assert accuracy.after >= accuracy.before - 0.0105  # one photo of 96
        assert report.source_bytes == 866_284 and report.ratio >= 3.0
        assert report.metric("sqnr_db").after > least


def test_a_mix_of_int4_and_int8_in_220_kilobytes(
    vww: Path, unlabelled: Dataset, labelled: Dataset, tmp_path: Path
) -> None:
    report = quantize_tflite(
        vww,
        tmp_path / "mix.tflite",
        "weight-int4",
        calibration=unlabelled,
        evaluation=labelled,
        search=PrecisionSearch(target_bytes=220_000, samples=8),
        threads=1,
    )
    assert report.artifact_bytes <= 220_000
    assert report.metric("accuracy").after >= 0.85 and report.metric("agreement").after >= 0.97
    assert {"int4", "int8"} <= set(report.precisions.values())


def test_int4_alone_keeps_what_rounding_to_nearest_loses(
    vww: Path, unlabelled: Dataset, labelled: Dataset, tmp_path: Path
) -> None:
    report = quantize_tflite(
        vww,
        tmp_path / "int4.tflite",
        "weight-int4",
        calibration=unlabelled,
        evaluation=labelled,
        threads=1,
    )
    assert report.artifact_bytes < 160_000 and report.metric("accuracy").after >= 0.83


def test_rfb_is_repaired_and_quantized(models_dir: Path, tmp_path: Path) -> None:
    """Of this file AI Edge Quantizer alone writes a copy, and says that it is done."""
    report = quantize_tflite(
        models_dir / "version-RFB-320.tflite", tmp_path / "rfb.tflite", "dynamic-int8", threads=1
    )
    assert report.ratio > 2.8 and set(report.precisions.values()) == {"int8"}
    assert report.notes[0].startswith("repaired 12 of 13 operator codes")
    assert report.metric("cosine").after > 0.98
