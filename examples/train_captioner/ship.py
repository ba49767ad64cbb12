"""Export a trained folder in int8 as the captioner that Penstock ships.

Ranges of the encoder's activations come from training photos, the figures from held-out ones. The
artifact is refused where int8 costs more than one point of CIDEr-D (x 100).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from examples.train_captioner.data import Photo, read_corpus
from penstock.export.artifact_report import render_artifact
from penstock.export.gates import Floors
from penstock.export.lightcap.export import export_lightcap
from penstock.export.lightcap.folder import read_folder
from penstock.runtime.caption.photo import read_photo

CARD = {
    "name": "snapshot",
    "licence": "Apache-2.0",
    "encoder": "MobileNetV2 1.0 of google-coral/test_data, trained on ImageNet, Apache-2.0",
    "trained on": "760 photos of Flickr8k, 176 of COCO 2017, and captions of COCO 2017",
    "use": "shows that captioning works; real use wants a model trained on millions of photos",
}
CALIBRATION = 150
MOST_LOSS = 0.01  # of CIDEr-D


def main() -> None:
    """Write the file and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("photos", "folder", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--length-penalty", type=float, default=0.7)
    options = parser.parse_args()
    corpus = read_corpus(options.photos)
    report = export_lightcap(
        replace(read_folder(options.folder), card=CARD),
        options.out,
        calibration=_images(corpus.train[:: len(corpus.train) // CALIBRATION]),
        evaluation=_images(corpus.held_out),
        references={photo.path.name: photo.captions for photo in corpus.held_out},
        beams=options.beams,
        length_penalty=options.length_penalty,
        floors=Floors({"concepts_equal": 0.8}, min_ratio=3.0),
        overwrite=True,
    )
    Console(width=120).print(render_artifact(report))
    loss = -(report.metric("cider_d").delta or 0.0)
    if loss > MOST_LOSS:
        raise SystemExit(f"int8 costs {100 * loss:.1f} points of CIDEr-D: not good enough to ship")


def _images(photos: list[Photo]) -> dict[str, NDArray[np.uint8]]:
    return {photo.path.name: read_photo(photo.path) for photo in photos}


if __name__ == "__main__":
    main()
