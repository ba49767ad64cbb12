"""The tiny captioner as files, float32 and int8, made once a process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.export.artifact_report import ArtifactReport
from penstock.export.lightcap import export
from penstock.export.lightcap.folder import LightCapFolder
from penstock.export.lightcap.model import mean_log_probabilities
from penstock.loaders.captioner_file import CaptionerFile
from penstock.runtime.caption.lightcap import LightCapNetwork
from tests.export.lightcap.tiny_lightcap import exported, pictures

MAX_TOKENS = 8


@dataclass(frozen=True)
class Files:
    """Attributes:
    folder: as it is after the export, which forbids what no caption contains.
    plain, int8: captioner files; report: of the int8 one.
    """

    folder: LightCapFolder
    plain: Path
    int8: Path
    report: ArtifactReport


@cache
def exported_files() -> Files:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    folder, graphs = exported()
    root = Path(tempfile.mkdtemp(prefix="penstock-test-lightcap-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_graphs", lambda _: graphs)  # which takes most of the time
        plain, int8 = root / "plain.captioner", root / "int8.captioner"
        common = {"calibration": pictures(), "threads": 1, "max_tokens": MAX_TOKENS}
        export.export_lightcap(folder, plain, int8=False, **common)  # type: ignore[arg-type]
        report = export.export_lightcap(folder, int8, **common)  # type: ignore[arg-type]
    return Files(folder, plain, int8, report)


def network(path: Path) -> LightCapNetwork:
    with CaptionerFile(path) as file:
        return LightCapNetwork(file, 1)


class TorchPhoto:
    """What torch says about a photo: every step computed anew, in the training pass."""

    def __init__(self, folder: LightCapFolder, pixels: NDArray[np.float32]) -> None:
        self.model = folder.model
        with torch.no_grad():
            self.grid: Tensor = folder.encoder(torch.from_numpy(pixels))
            self.concepts, self.scores = self.model.extractor.top(self.grid)

    def log_probabilities(self, tokens: tuple[int, ...]) -> Tensor:
        """[vocabulary], of what follows the tokens behind the begin."""
        known = torch.tensor([[[self.model.config.begin, *tokens]]])
        with torch.no_grad():
            made = self.model(known, self.concepts, self.scores, self.grid)
        return mean_log_probabilities(made.logits)[0, -1]
