"""Files of every kind behind one door, ready to be drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BudgetError, FormatError, StorageError, UsageError
from penstock.export.omg4.psplat_writer import write_psplat
from penstock.export.omg4.static_quantization import quantize_splats
from penstock.loaders.splats.inria_ply import write_inria_ply
from penstock.runtime.splats.images import to_pixels
from penstock.runtime.splats.renderer import SplatRenderer
from penstock.runtime.splats.stage import STILL_FPS, Stage, open_stage
from tests.runtime.splats.scenes import psnr, random_model

SHAPE = {"width": 80, "height": 60}


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_same_from_every_file(tmp_path: Path, dynamic: bool) -> None:
    model = random_model(400, degree=1, dynamic=dynamic)
    ply, small = tmp_path / "a.ply", tmp_path / "b.psplat"
    write_inria_ply(ply, model)
    write_psplat(small, quantize_splats(model))
    pictures = []
    for path in (ply, small):
        with open_stage(path, threads=1, background=(0.2, 0, 0)) as stage:
            assert (stage.count, stage.dynamic, stage.memory) == (400, dynamic, None)
            assert (stage.start, stage.end) == ((0, 2) if dynamic else (0, 0))
            assert stage.fps == (10 if dynamic else STILL_FPS)
            cameras = stage.orbit(4, **SHAPE)
            assert len(cameras) == 4
            pictures.append(to_pixels(stage.render(cameras[1], 0.7).image))
            assert stage.bytes > 0
            centre, radius = stage.extent
            assert np.abs(centre).max() < 0.3 and 0.3 < radius < 2
    assert pictures[0].std() > 10 and psnr(*pictures) > 30
    with Stage(model, threads=1, background=(0.2, 0, 0)) as stage:
        again = stage.render(stage.orbit(4, **SHAPE)[1], 0.7).image
    camera = Stage(model, threads=1).orbit(4, **SHAPE)[1]
    renderer = SplatRenderer(model, threads=1, background=(0.2, 0, 0))
    assert (again == renderer.render(camera, 0.7 if dynamic else None).image).all()


def test_budgets(tmp_path: Path) -> None:
    model = random_model(400, dynamic=True)
    ply, small = tmp_path / "a.ply", tmp_path / "b.psplat"
    write_inria_ply(ply, model)
    write_psplat(small, quantize_splats(model))
    with pytest.raises(UsageError, match="only .psplat"):
        open_stage(ply, memory="1GiB")
    with pytest.raises(BudgetError) as error:
        open_stage(small, memory="1KiB", picture=(80, 60))
    assert error.value.least_bytes is not None
    with open_stage(small, memory=error.value.least_bytes, picture=(80, 60)) as stage:
        assert stage.memory == error.value.least_bytes
        for time in np.linspace(0, 2, 9):
            stage.render(stage.orbit(1, **SHAPE)[0], float(time))
            assert stage.bytes <= stage.memory


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "a.psplat").write_bytes(b"something else")
    with pytest.raises(FormatError, match="a.psplat"):
        open_stage(tmp_path / "a.psplat")
    with pytest.raises(StorageError):
        open_stage(tmp_path / "missing.ply")
