"""`penstock export lightcap`: photos and captions as people have them, then the export."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, PenstockError, UsageError
from penstock.export.artifact_report import ArtifactReport
from penstock.export.gates import Floors
from penstock.export.metrics.reference_files import read_references
from penstock.export.report import ProgressCallback

READ_SIDE = 512  # of the shorter side, as `penstock caption` reads photos
NAMED = 4  # photos, in an error message

PathLike = str | os.PathLike[str]


def export_lightcap_folder(
    source: PathLike,
    out: PathLike,
    *,
    int8: bool = True,
    recipe: str | None = None,
    photos: PathLike | None = None,
    evaluation: PathLike | None = None,
    captions: PathLike | None = None,
    beams: int = 3,
    max_tokens: int = 20,
    length_penalty: float = 1.0,
    floors: Floors | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> ArtifactReport:
    """Export a LightCap folder; `export_lightcap` does the work, and has the other arguments.

    Args:
        recipe: of the encoder's quantization; None: `int8.ENCODER_RECIPES`.
        photos: a folder of photos, or one: for the ranges of activations.
        evaluation: likewise, what the report is measured on; None: `photos`.
        captions: what people say of the photos of `evaluation`, see `read_references`; by their
            file names. With it the report has CIDEr-D.

    Raises:
        GateError: the artifact was made and refused.
        UsageError: there are no photos, one cannot be read, or one has no captions.
        FormatError, StorageError, BackendMissingError.
    """
    try:
        from penstock.export.lightcap.export import export_lightcap
    except ImportError as error:
        raise BackendMissingError(
            f"LightCap captioners are exported with torch, which cannot be imported ({error}); "
            "install it with: pip install 'penstock[export]'"
        ) from None
    known = None if photos is None else PhotoFiles(photos)
    asked = known if evaluation is None else PhotoFiles(evaluation)
    references = None
    if captions is not None:
        if asked is None:
            raise UsageError(f"{captions}: captions of no photos; give the photos (--eval)")
        asked = asked.by_name()
        references = _references(Path(captions), asked)
    return export_lightcap(
        source,
        out,
        int8=int8,
        recipe=recipe,
        calibration=known,
        evaluation=asked,
        references=references,
        beams=beams,
        max_tokens=max_tokens,
        length_penalty=length_penalty,
        floors=floors,
        threads=threads,
        overwrite=overwrite,
        progress=progress,
    )


class PhotoFiles(Mapping[str, NDArray[np.uint8]]):
    """Photos by path, uint8 [height, width, 3]; each is read when it is asked for.

    Raises:
        UsageError: there are none; or, when one is read, it cannot be.
        BackendMissingError: Pillow is not installed.
    """

    def __init__(self, path: PathLike) -> None:
        from penstock.runtime.caption.photo_files import find_photos

        self.path = Path(path)
        self._files = {str(file): file for file in find_photos([path])}
        if not self._files:
            raise UsageError(f"{path}: no photos in it; give a folder of photos, or a photo")

    def by_name(self) -> PhotoFiles:
        """The same, by the names of the files.

        Raises:
            UsageError: two have the same.
        """
        named: dict[str, Path] = {}
        for file in self._files.values():
            if file.name in named:
                raise UsageError(
                    f"{named[file.name]} and {file} have the same name; captions go by the names "
                    "of files, so that each must be there once"
                )
            named[file.name] = file
        self._files = named
        return self

    def __getitem__(self, name: str) -> NDArray[np.uint8]:
        from penstock.runtime.caption.photo import read_photo

        try:
            return read_photo(self._files[name], shortest_side=READ_SIDE)
        except PenstockError as error:
            raise UsageError(f"{error}; repair the photo, or take it out") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _references(captions: Path, photos: PhotoFiles) -> dict[str, Sequence[str]]:
    said = read_references(captions)
    bare = [name for name in photos if name not in said]
    if bare:
        named = ", ".join(bare[:NAMED]) + (", ..." if len(bare) > NAMED else "")
        raise UsageError(
            f"{captions}: {len(bare)} of the {len(photos)} photos of {photos.path} have no "
            f"captions in it: {named}; take them out, or give captions of all"
        )
    return {name: said[name] for name in photos}
