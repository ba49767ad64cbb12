"""`penstock export lightcap`: a trained LightCap captioner becomes one file that Penstock runs.

1. read      the folder that training wrote
2. export    four ONNX graphs in float32, held against torch
3. quantize  to int8, the encoder with ranges from photos
4. check     the int8 file against the float one, on photos
5. keep      the file, if every gate held
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError, UsageError
from penstock.export.artifact_report import ArtifactReport, Gate
from penstock.export.captioner_bundle import write_captioner
from penstock.export.gates import Floors, GateError, change_gate, with_gates
from penstock.export.lightcap.agreement import (
    LightCapFile,
    caption_latency,
    compare,
    torch_difference,
)
from penstock.export.lightcap.folder import LightCapFolder, read_folder
from penstock.export.lightcap.graphs import LightCapGraphs, export_graphs
from penstock.export.lightcap.int8 import ENCODER_RECIPES, Pixels, quantize_graphs
from penstock.export.report import ProgressCallback
from penstock.export.stage_clock import StageClock
from penstock.loaders.cores import compute_threads
from penstock.loaders.partial_file import check_writable, keep_file

TORCH_TOLERANCE = 2e-3  # of log-probabilities; float32 sums in another order
LEAST_COSINE = 0.9  # of int8 log-probabilities; below is a broken graph, not rounding
MADE_UP = 8  # pictures, where no photos are given
MOST_CALIBRATION = 200  # photos


def export_lightcap(
    source: str | os.PathLike[str] | LightCapFolder,
    out: str | os.PathLike[str],
    *,
    int8: bool = True,
    recipe: str | None = None,
    calibration: Mapping[str, NDArray[np.uint8]] | None = None,
    evaluation: Mapping[str, NDArray[np.uint8]] | None = None,
    references: Mapping[str, Sequence[str]] | None = None,
    beams: int = 3,
    max_tokens: int = 20,
    length_penalty: float = 1.0,
    floors: Floors | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> ArtifactReport:
    """Export a LightCap captioner.

    Args:
        source: a folder, see `penstock.export.lightcap.folder`, or one that was read.
        out: the file.
        int8: weights in int8; else float32.
        recipe: of the encoder's quantization; None: `int8.ENCODER_RECIPES`.
        calibration: photos by name, uint8 [height, width, 3], for the ranges of activations; the
            first 200 count. None: made-up pictures, which is said in a note.
        evaluation: photos by name that the report is measured on; None: those of calibration.
        references: captions of the photos of evaluation by people; with them the report has
            CIDEr-D.
        beams, max_tokens, length_penalty: how captions are searched for unless the user says.
        floors: of `grid_sqnr_db`, `concepts_equal`, `cosine`, `captions_equal`, `cider_d`.

    Raises:
        GateError: the artifact was made and refused.
        FormatError, UsageError, StorageError, BackendMissingError.
    """
    path, clock, threads = Path(out), StageClock(progress), compute_threads(threads)
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already; give another name, or ask for overwriting")
    check_writable(path)
    with clock("read"):
        folder = source if isinstance(source, LightCapFolder) else read_folder(Path(source))
        if max_tokens >= folder.config.positions:
            raise UsageError(
                f"max_tokens is {max_tokens}, the captioner has places for "
                f"{folder.config.positions - 1}"
            )
        notes = []
        if calibration is None:
            calibration = made_up_pictures()
            notes.append("calibrated on made-up pictures; give photos (--photos) for real use")
        images = evaluation or calibration
    recipe = recipe or ENCODER_RECIPES[folder.config.encoder]
    manifest = _manifest(folder, beams, max_tokens, length_penalty)
    with clock("export"):
        graphs = export_graphs(folder)
    with tempfile.TemporaryDirectory(prefix=".penstock-", dir=path.parent) as temporary:
        plain, made = Path(temporary) / "float32", Path(temporary) / "artifact"
        _write(plain, folder, manifest, graphs, "float32")
        precisions: dict[str, str] = {}
        if int8:
            with clock("quantize"):
                pixels = _pixels(folder, calibration)
                graphs, precisions = quantize_graphs(graphs, pixels, recipe, threads)
        _write(made, folder, manifest, graphs, "int8" if int8 else "float32")
        changed = sum(kind != "float32" for kind in precisions.values())
        report = ArtifactReport(
            source=folder.card.get("name", str(source)) if isinstance(source, LightCapFolder)
            else str(source),
            artifact=str(path),
            target="captioner",
            recipe=f"encoder {recipe}, rest dynamic-int8 per-channel" if int8 else "float32",
            source_bytes=folder.float_bytes,
            artifact_bytes=made.stat().st_size,
            precisions=precisions,
            gates=(change_gate(changed, len(precisions)),) if int8 else (),
            notes=tuple(notes),
        )  # fmt: skip
        with clock("check"):
            report = _checked(report, folder, plain, made, images, references, threads)
        report = replace(report, seconds=clock.seconds)
        report = with_gates(report, floors or Floors(), shrinks=int8)  # float: as its source
        if not report.passed:
            raise GateError(report)
        keep_file(made, path)
    return report


def made_up_pictures(count: int = MADE_UP, side: int = 256) -> dict[str, NDArray[np.uint8]]:
    """Coarse random colours, always the same."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    large = coarse.repeat(side // 8, axis=1).repeat(side // 8, axis=2)
    return {f"picture {index}": image for index, image in enumerate(large)}


def _checked(
    report: ArtifactReport, folder: LightCapFolder, plain: Path, made: Path,
    images: Mapping[str, NDArray[np.uint8]], references: Mapping[str, Sequence[str]] | None,
    threads: int,
) -> ArtifactReport:  # fmt: skip
    """The report with metrics, latencies and gates that come from running the files."""
    try:
        before, after = LightCapFile(plain, threads), LightCapFile(made, threads)
        first = next(iter(images.values()))
        off = torch_difference(folder, before, first)
        metrics = compare(before, after, images, references)
        latency = caption_latency([before, after], first)
    except UsageError:  # of photos and references, not of the file
        raise
    except PenstockError as error:
        detail = str(error).replace(str(made), report.artifact)
        detail = detail.replace(str(plain), f"{report.artifact} in float32")
        return replace(report, gates=(*report.gates, Gate("loads", False, detail)))
    cosine = next(metric.after for metric in metrics if metric.name == "cosine")
    gates = (
        Gate("loads", True, "loaded back and run"),
        Gate(
            "float graphs equal torch",
            off <= TORCH_TOLERANCE,
            f"log-probabilities off by at most {off:.1e}, wanted {TORCH_TOLERANCE:g}",
        ),
        Gate("log-probabilities", cosine >= LEAST_COSINE,
             f"cosine {cosine:.4f} to the float graphs', wanted at least {LEAST_COSINE}"),
    )  # fmt: skip
    return replace(
        report, metrics=metrics, latency_before=latency[0], latency_after=latency[1],
        gates=(*report.gates, *gates),
    )  # fmt: skip


def _manifest(
    folder: LightCapFolder, beams: int, max_tokens: int, length_penalty: float
) -> dict[str, Any]:
    config = folder.config
    mean, std = folder.pixels()
    return {
        "architecture": "lightcap",
        "name": folder.card.get("name", "LightCap captioner"),
        "card": folder.card,
        "image": {
            "size": config.image_size, "resize": "stretch", "resample": "bilinear",
            "mean": list(mean), "std": list(std),
        },
        "fusion": {
            "layers": config.layers, "heads": config.heads, "head_width": config.head_width,
            "vocabulary": config.vocabulary, "concepts": config.concepts, "begin": config.begin,
            "positions": config.positions,
        },
        "generation": {
            "beams": beams, "max_tokens": max_tokens, "end": config.end,
            "most_tokens": min(64, config.positions - 1), "length_penalty": length_penalty,
        },
    }  # fmt: skip


def _pixels(folder: LightCapFolder, images: Mapping[str, NDArray[np.uint8]]) -> Pixels:
    from penstock.runtime.caption.manifest import ImageInput
    from penstock.runtime.caption.preprocess import prepare

    mean, std = folder.pixels()
    wanted = ImageInput(folder.config.image_size, "stretch", "bilinear", mean, std)
    chosen = islice(images.items(), MOST_CALIBRATION)
    return Pixels("photos", [(name, prepare(image, wanted)) for name, image in chosen])


def _write(
    out: Path, folder: LightCapFolder, manifest: dict[str, Any], graphs: LightCapGraphs,
    weights: str,
) -> None:  # fmt: skip
    members = graphs.members() | {
        "vocab.txt": ("\n".join(folder.vocabulary) + "\n").encode(),
        "concepts.txt": ("\n".join(folder.concepts) + "\n").encode(),
    }
    write_captioner(out, {**manifest, "weights": weights}, members)
