"""`penstock export captioner`: a Hugging Face captioner becomes one file that Penstock runs.

1. read      weights, tokenizer, how photos are prepared, how captions are searched for
2. export    encoder and decoder with cache, as ONNX graphs in float32
3. quantize  to int8, unless float is wanted
4. check     the float file against torch, the int8 file against the float one
5. keep      the file, if every gate held
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError, UsageError
from penstock.export.artifact_report import ArtifactReport, Gate
from penstock.export.captioner.agreement import (
    STEPS,
    caption_latency,
    compare,
    open_exported,
    sample_images,
    torch_difference,
)
from penstock.export.captioner.graphs import Graphs, export_graphs
from penstock.export.captioner.int8 import quantize_graphs
from penstock.export.captioner.source import CaptionerSource, open_captioner_source
from penstock.export.captioner_bundle import write_captioner
from penstock.export.gates import Floors, GateError, change_gate, with_gates
from penstock.export.report import ProgressCallback
from penstock.export.stage_clock import StageClock
from penstock.loaders.cores import compute_threads
from penstock.loaders.partial_file import check_writable, keep_file

MOST_PHOTOS = 32  # that the check looks at, the first of those given
TORCH_TOLERANCE = 1e-3  # of the largest logit; float32 sums in another order
LEAST_COSINE = 0.9  # of int8 logits; below is a broken graph, not rounding


def export_captioner(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    int8: bool = True,
    beams: int | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
    photos: str | os.PathLike[str] | None = None,
    floors: Floors | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> ArtifactReport:
    """Export a captioner folder of Hugging Face.

    Args:
        source: the folder; see `penstock.export.captioner.source.SUPPORTED`.
        out: the file.
        int8: weights in int8; else float32.
        beams, max_tokens: what captions are searched with when the caller of the captioner does not
            say; None: the folder's generation_config.
        prompt: words that captions go on from; None: the architecture's own.
        photos: a folder of photos, or one photo, to compare on; None: made-up pictures.
        floors: of the metrics `cosine`, `sqnr_db`, `token_agreement`, `captions_equal`, and of the
            ratio of sizes.
        threads: of compute while measuring; None: all cores.

    Raises:
        GateError: the artifact was made and refused.
        FormatError, UnsupportedModelError: the folder is damaged or of another kind.
        BackendMissingError: torch, transformers, onnx, onnxruntime or Pillow is not installed.
        StorageError, UsageError.
    """
    path, threads = Path(out), compute_threads(threads)
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already; give another name, or ask for overwriting")
    check_writable(path)
    floors = floors or Floors()
    clock = StageClock(progress)
    with clock("read"):
        images = _images(photos)
        read = open_captioner_source(source, beams=beams, max_tokens=max_tokens, prompt=prompt)
    with clock("export"):
        graphs = export_graphs(read.network)
    with tempfile.TemporaryDirectory(prefix=".penstock-", dir=path.parent) as folder:
        plain = Path(folder) / "float32"
        _write(plain, read, graphs, "float32")
        made, precisions, changed = plain, dict[str, str](), 0
        if int8:
            with clock("quantize"):
                quantized = quantize_graphs(graphs)
                precisions, changed = quantized.precisions, quantized.changed
                made = Path(folder) / "int8"
                _write(made, read, quantized.graphs, "int8")
        report = ArtifactReport(
            source=str(source),
            artifact=str(path),
            target="captioner",
            recipe="dynamic-int8 per-channel" if int8 else "float32",
            source_bytes=read.weight_bytes,
            artifact_bytes=made.stat().st_size,
            precisions=precisions,
            gates=(change_gate(changed, len(precisions)),) if int8 else (),
            notes=_notes(read, photos, len(images)),
        )
        with clock("check"):
            report = _checked(report, read, plain, made, images, threads)
        report = with_gates(report, floors, shrinks=int8)  # float is as large as its source
        report = replace(report, seconds=clock.seconds)
        if not report.passed:
            raise GateError(report)
        keep_file(made, path)
    return report


def _checked(
    report: ArtifactReport,
    read: CaptionerSource,
    plain: Path,
    made: Path,
    images: list[NDArray[np.uint8]],
    threads: int,
) -> ArtifactReport:
    """The report with metrics, latencies and gates that come from running the files."""
    steps = min(STEPS, read.manifest["generation"]["most_tokens"])
    try:
        with open_exported(plain, threads) as before:
            off = torch_difference(read.network, before.network, images[0], steps)
            report = replace(report, latency_before=caption_latency(before, images[0]))
            if made != plain:
                with open_exported(made, threads) as after:
                    report = replace(
                        report,
                        metrics=compare(before, after, images, steps),
                        latency_after=caption_latency(after, images[0]),
                    )
    except PenstockError as error:
        detail = str(error).replace(str(made), report.artifact)
        detail = detail.replace(str(plain), f"{report.artifact} in float32")
        return replace(report, gates=(*report.gates, Gate("loads", False, detail)))
    gates = [
        *report.gates,
        Gate("loads", True, "loaded back and run"),
        Gate(
            "float graphs equal torch",
            off <= TORCH_TOLERANCE,
            f"logits off by at most {off:.1e} of the largest over {steps} steps, "
            f"wanted {TORCH_TOLERANCE:g}",
        ),
    ]
    if report.metrics:
        cosine = report.metric("cosine").after
        detail = f"cosine {cosine:.4f} to the float graphs', wanted at least {LEAST_COSINE}"
        gates.append(Gate("logits", cosine >= LEAST_COSINE, detail))
    return replace(report, gates=tuple(gates))


def _write(out: Path, read: CaptionerSource, graphs: Graphs, weights: str) -> None:
    from penstock.runtime.caption.encoder_decoder import DECODER, ENCODER, TOKENIZER

    members = {
        ENCODER: graphs.encoder,
        DECODER: graphs.decoder,
        TOKENIZER: read.tokenizer.encode(),
    }
    write_captioner(out, {**read.manifest, "weights": weights}, members)


def _images(photos: str | os.PathLike[str] | None) -> list[NDArray[np.uint8]]:
    if photos is None:
        return sample_images()
    from penstock.runtime.caption.photo import read_photo
    from penstock.runtime.caption.photo_files import find_photos

    found = find_photos([photos])
    if not found:
        raise UsageError(f"{photos}: no photos in it; give a folder of photos, or a photo")
    return [read_photo(photo, shortest_side=768) for photo in found[:MOST_PHOTOS]]


def _notes(
    read: CaptionerSource, photos: str | os.PathLike[str] | None, count: int
) -> tuple[str, ...]:
    if photos is None:
        looked_at = f"compared on {count} made-up pictures; give photos for figures that count"
    else:
        looked_at = f"compared on {count} photos of {photos}"
    return (looked_at, *read.notes)
