"""Scenes in files for the splat commands, and cameras to see them by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from penstock.export.omg4.psplat_writer import write_psplat
from penstock.export.omg4.static_quantization import quantize_splats
from penstock.loaders.splats.inria_ply import write_inria_ply
from penstock.runtime.splats.camera import look_at
from tests.runtime.splats.scenes import random_model


def scene_files(folder: Path) -> dict[str, Path]:
    """The same kinds of scene in files: still, moving, and both as .psplat."""
    made = {}
    for name, dynamic in (("still", False), ("moving", True)):
        model = random_model(500, degree=1, dynamic=dynamic, seed=4)
        made[name] = folder / f"{name}.ply"
        write_inria_ply(made[name], model)
        made[f"{name} psplat"] = folder / f"{name}.psplat"
        write_psplat(made[f"{name} psplat"], quantize_splats(model))
    return made


def cameras_file(folder: Path) -> Path:
    """Two cameras in the convention of NeRF's data sets: y up, z backward."""
    frames = []
    for eye in ((0.0, 0.0, -3.0), (2.0, -1.0, -2.0)):
        camera = look_at(eye, (0, 0, 0), width=80, height=40)
        matrix = np.eye(4)
        matrix[:3, :3] = camera.rotation.T * (1, -1, -1)
        matrix[:3, 3] = camera.eye
        frames.append(
            {
                "transform_matrix": matrix.tolist(),
                "time": 0.0,
                "fl_x": camera.fx,
                "fl_y": camera.fy,
                "cx": camera.cx,
                "cy": camera.cy,
                "w": 80,
                "h": 40,
            }
        )
    path = folder / "transforms.json"
    path.write_text(json.dumps({"frames": frames}))
    return path
