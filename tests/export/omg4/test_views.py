"""Views: photos of several kinds, and the model's own pictures where there are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import FormatError, StorageError, UsageError
from penstock.export.omg4.drawing import draw_model
from penstock.export.omg4.rasteriser import NativeRasteriser, Scene
from penstock.export.omg4.views import Truth, held_out, own_views, read_picture
from penstock.runtime.splats.camera import Camera, View
from tests.export.omg4.scenes import cameras, cloud, views

CAMERA = replace(cameras(1)[0], width=5, height=4)


def photo(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 5, channels), np.uint8)


def test_bytes_floats_and_files_are_the_same_picture(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    image = photo()
    path = tmp_path / "photo.png"
    image_module.fromarray(image).save(path)
    expected = image.astype(np.float32) / 255
    for source in (image, expected, expected.astype(np.float64), path, str(path)):
        found = read_picture(source, CAMERA)
        assert found.dtype == np.float32 and found == pytest.approx(expected, abs=1e-6)


def test_transparent_pictures_are_over_black(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    image = photo(4)
    path = tmp_path / "photo.png"
    image_module.fromarray(image).save(path)
    expected = image[:, :, :3] / 255 * (image[:, :, 3:] / 255)
    assert read_picture(path, CAMERA) == pytest.approx(expected, abs=1e-5)
    grey = tmp_path / "grey.png"
    image_module.fromarray(image[:, :, 0]).save(grey)
    assert read_picture(grey, CAMERA)[:, :, 2] == pytest.approx(image[:, :, 0] / 255, abs=1e-5)


def test_pictures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    with pytest.raises(UsageError, match=r"\(5, 4, 3\).*\(4, 5, 3\).*scale the images"):
        read_picture(np.zeros((5, 4, 3), np.uint8), CAMERA)
    with pytest.raises(UsageError, match="int32"):
        read_picture(np.zeros((4, 5, 3), np.int32), CAMERA)
    with pytest.raises(UsageError, match="not finite"):
        read_picture(np.full((4, 5, 3), np.nan, np.float32), CAMERA)
    with pytest.raises(StorageError, match="missing.png: cannot be read"):
        read_picture(tmp_path / "missing.png", CAMERA)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(FormatError, match="text.png: is not an image"):
        read_picture(text, CAMERA)


def test_a_picture_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    path = tmp_path / "photo.png"
    image_module.fromarray(np.random.default_rng(1).integers(0, 256, (4, 5, 3), np.uint8)).save(
        path
    )
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(FormatError, match=r"photo\.png: .*image"):
        read_picture(path, CAMERA)


def test_without_photos_the_model_is_the_truth() -> None:
    model = cloud(30)
    rasteriser = NativeRasteriser(1)
    shots = views(3)
    truth = Truth(shots, model, rasteriser)
    assert truth.own and len(truth) == 3
    wanted = draw_model(rasteriser, model, shots[1].camera, shots[1].time)
    assert (truth.picture(1) == wanted).all()
    mixed = Truth([replace(shots[0], image=wanted), shots[1]], model, rasteriser)
    assert not mixed.own and (mixed.picture(0) == wanted).all()


def test_views_need_times_where_the_scene_moves() -> None:
    rasteriser = NativeRasteriser(1)
    with pytest.raises(UsageError, match="view 0 has time None"):
        Truth(views(2, moving=False), cloud(3), rasteriser)
    with pytest.raises(UsageError, match="view 1 has time nan"):
        shots = views(2)
        Truth([shots[0], replace(shots[1], time=float("nan"))], cloud(3), rasteriser)
    with pytest.raises(UsageError, match="no views"):
        Truth([], cloud(3), rasteriser)
    Truth(views(2, moving=False), cloud(3, moving=False), rasteriser)


def test_own_views_go_around_and_through_time() -> None:
    still = own_views(cloud(40, moving=False), width=32, height=24)
    assert len(still) == 24 and all(view.time is None for view in still)
    moving = own_views(cloud(40), width=32, height=24)
    times = sorted({view.time for view in moving if view.time is not None})
    assert len(moving) == 24 * 8 and times[0] == 0 and times[-1] == 2
    model = cloud(40, size=0.2)
    seen = [
        draw_model(NativeRasteriser(1), model, view.camera, view.time).max() > 0
        for view in own_views(model, width=32, height=24)[::16]
    ]
    assert all(seen)


def test_every_seventh_view_is_held_out() -> None:
    shots: list[View] = views(20)
    train, test = held_out(shots)
    assert [shots.index(view) for view in test] == [6, 13] and len(train) == 18
    few = views(3)
    assert held_out(few) == (few, few)


def test_pictures_are_drawn_once_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    class Counting(NativeRasteriser):
        def draw(self, scene: Scene, camera: Camera, time: float) -> np.ndarray:
            drawn.append(scene.count)
            return super().draw(scene, camera, time)

    size = 48 * 48 * 3 * 4
    monkeypatch.setattr("penstock.export.omg4.views.MOST", 2 * size)
    shots = views(4)
    shots[3] = replace(shots[3], image=np.zeros((48, 48, 3), np.float32))
    truth = Truth(shots, cloud(30, size=0.3), Counting(1))
    first = [truth.picture(number) for number in range(4)]
    again = [truth.picture(number) for number in range(4)]
    assert len(drawn) == 4  # of view 2, for which there is no room, both times
    assert first[0] is again[0] and first[1] is again[1]
    for a, b in zip(first, again, strict=True):
        assert (a == b).all()
    assert first[2].max() > 0 == first[3].max()
