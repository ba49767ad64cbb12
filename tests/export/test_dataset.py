"""Datasets: what an input holds is what Pillow and NumPy say it should."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.export.dataset import Dataset, Preprocessing, open_dataset, synthetic
from penstock.loaders.tensor_graph import Quantization, TensorSpec

NHWC = TensorSpec("image", "float32", (None, 8, 12, 3))
NCHW = TensorSpec("image", "float32", (1, 3, 8, 12))
VECTOR = TensorSpec("x", "float32", (1, 4))


def arrays(dataset: Dataset, name: str = "image") -> list[np.ndarray[Any, Any]]:
    return [sample.arrays[name] for sample in dataset.samples()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos of the inputs' own size, in two folders."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for name in ("c.png", "a.bmp", "b/d.png"):
        pixels = rng.integers(0, 256, (8, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not one either")
    return folder


def pixels_of(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_images_come_sorted_and_scaled(photos: Path) -> None:
    dataset = open_dataset(photos, [NHWC])
    samples = list(dataset.samples())
    names = [Path(sample.name).relative_to(photos).as_posix() for sample in samples]
    assert names == ["a.bmp", "b/d.png", "c.png"] and len(dataset) == 3
    for sample in samples:
        wanted = pixels_of(Path(sample.name)).astype(np.float64) / 255
        made = sample.arrays["image"]
        assert made.dtype == np.float32 and made.shape == (1, 8, 12, 3)
        assert np.abs(made[0] - wanted).max() < 1e-6
        assert sample.label is None
    assert len(list(dataset.samples(2))) == 2 and dataset.labels is None
    first = [sample.name for sample in dataset.samples()]
    assert first == [sample.name for sample in samples]  # it can be gone through again


def test_layout_colours_mean_and_std(photos: Path) -> None:
    how = Preprocessing((0, 255), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), colours="BGR")
    (first, *_) = arrays(open_dataset(photos, [NCHW], preprocessing=how))
    pixels = pixels_of(photos / "a.bmp").astype(np.float64)[:, :, ::-1]
    wanted = (pixels - [1, 2, 3]) / [4, 5, 6]
    assert first.shape == (1, 3, 8, 12) and first.flags.c_contiguous
    assert np.abs(first[0].transpose(1, 2, 0) - wanted).max() < 1e-4


def test_quantized_inputs_get_floats_of_their_range(photos: Path) -> None:
    spec = TensorSpec("image", "int8", (1, 8, 12, 3), Quantization((1 / 127.5,), (0,)))
    (first, *_) = arrays(open_dataset(photos, [spec]))
    pixels = pixels_of(photos / "a.bmp").astype(np.float64)
    assert first.dtype == np.float32
    assert np.abs(first[0] - (-128 / 127.5 + pixels / 255 * (255 / 127.5))).max() < 1e-5
    stored = spec.quantization.quantize(first, "int8") if spec.quantization else first
    assert np.abs(stored[0].astype(int) - (pixels - 128)).max() == 0
    raw = TensorSpec("image", "uint8", (1, 8, 12, 3))
    (first, *_) = arrays(open_dataset(photos, [raw]))
    assert (first[0] == pixels).all()


def test_resizing(tmp_path: Path) -> None:
    """A photo twice as wide as it should be: its middle, or all of it, squeezed."""
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 6:18] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (cropped,) = arrays(
        open_dataset(tmp_path, [NHWC], preprocessing=Preprocessing(resize="centre-crop"))
    )
    assert cropped.min() == 1.0
    (stretched,) = arrays(open_dataset(tmp_path, [NHWC]))
    assert stretched[0, 0, 0, 0] == 0 and stretched[0, 0, 6, 0] == 1
    open_sides = TensorSpec("image", "float32", (1, 3, "height", "width"))
    with pytest.raises(UsageError, match="height and width are open"):
        open_dataset(tmp_path, [open_sides])
    how = Preprocessing(size=(5, 7))
    (sized,) = arrays(open_dataset(tmp_path, [open_sides], preprocessing=how))
    assert sized.shape == (1, 3, 5, 7)
    with pytest.raises(UsageError, match=r"size is \(5, 7\), and input 'image' is .* 8 x 12"):
        open_dataset(tmp_path, [NCHW], preprocessing=how)
    open_dataset(tmp_path, [NCHW], preprocessing=Preprocessing(size=(8, 12)))


def test_odd_images_become_upright_rgb(tmp_path: Path) -> None:
    grey = np.tile(np.linspace(0, 255, 12).astype(np.uint8), (8, 1))
    Image.fromarray(grey).save(tmp_path / "a_grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b_sixteen.png")
    Image.fromarray(grey).convert("RGB").convert("CMYK").save(tmp_path / "c_cmyk.tif")
    turned = Image.fromarray(np.rot90(grey))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show it
    turned.save(tmp_path / "d_turned.png", exif=exif)
    clear = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    Image.fromarray(clear).save(tmp_path / "e_clear.png")
    plain, sixteen, cmyk, upright, transparent = arrays(open_dataset(tmp_path, [NHWC]))
    assert np.abs(plain[0, :, :, 1] - grey / 255).max() < 1e-6
    assert np.abs(sixteen - plain).max() < 1e-6
    assert np.abs(cmyk - plain).max() <= 1.01 / 255
    assert (upright == plain).all()
    assert (transparent == 1).all()


def test_labels(photos: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("file,person\nc,1\nb/d.png,0\n")
    dataset = open_dataset(photos, [NHWC], labels=labels)
    found = {Path(s.name).name: s.label for s in dataset.samples()}
    assert found == {"d.png": 0, "c.png": 1} and dataset.labels == (0, 1)
    for text, message in (
        ("file,person\nc,1\nmissing.png,0\n", "1 of 2 labels name files .* 'missing.png'"),
        ("file,person\nc,one\n", "line 2 is 'c,one', expected FILE,NUMBER"),
        ("file,person\nc,-1\n", "line 2 is 'c,-1'"),
        ("a,-1\nb,1\n", "line 1 is 'a,-1'"),
        ("a,0.5\nb,1\n", "line 1 is 'a,0.5'"),
        ("file,person\nc,1,2\n", "line 2 is 'c,1,2'"),
        ("file,person\nc,1\nc,0\n", "'c' has labels 1, 0"),
        ("file,person\nc,1\nc.png,0\n", "two labels under two names"),
        ("file,person\n", "no labels in it"),
    ):
        labels.write_text(text)
        with pytest.raises(PenstockError, match=message):
            open_dataset(photos, [NHWC], labels=labels)
    Image.new("RGB", (4, 4)).save(photos / "b" / "c.png")
    labels.write_text("file,person\nc,1\n")
    with pytest.raises(UsageError, match="'c' is both .* give the path"):
        open_dataset(photos, [NHWC], labels=labels)


def test_label_files_that_are_none(photos: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    with pytest.raises(StorageError, match="labels.csv: cannot be read: No such file"):
        open_dataset(photos, [NHWC], labels=labels)
    labels.write_bytes(b"\x89PNG\xff")
    with pytest.raises(FormatError, match="labels.csv: expected a text of lines FILE,NUMBER"):
        open_dataset(photos, [NHWC], labels=labels)


def test_what_does_not_fit_images_is_said(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="inputs 'image', 'x': images fit one; give an .npz"):
        open_dataset(photos, [NHWC, VECTOR])
    with pytest.raises(UsageError, match="'x' is float32 1 x 4, expected one image"):
        open_dataset(photos, [VECTOR])
    with pytest.raises(UsageError, match="mean is .* expected one number or 3"):
        open_dataset(photos, [NHWC], preprocessing=Preprocessing(mean=(1.0, 2.0)))
    with pytest.raises(UsageError, match="std is"):
        Preprocessing(std=(0.0,))
    (photos / "empty").mkdir()
    with pytest.raises(UsageError, match="no images in it"):
        open_dataset(photos / "empty", [NHWC])
    with pytest.raises(UsageError, match="not found"):
        open_dataset(tmp_path / "nowhere", [NHWC])
    whole = (photos / "c.png").read_bytes()
    (photos / "c.png").write_bytes(whole[: len(whole) // 2])
    samples = open_dataset(photos, [NHWC]).samples()
    next(samples)
    with pytest.raises(FormatError, match=r"c.png: this .*damaged or cut short"):
        list(samples)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_rows(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "data.npz"
    x = np.random.default_rng(0).normal(size=(5, 4))
    ids = np.arange(10, dtype=np.int32).reshape(5, 1, 2)
    save(path, x=x, ids=ids, labels=np.array([0, 1, 2, 1, 0]), other=np.zeros(3))
    inputs = [VECTOR, TensorSpec("ids", "int64", (None, 1, 2))]
    dataset = open_dataset(path, inputs)
    samples = list(dataset.samples())
    assert len(dataset) == len(samples) == 5 and dataset.labels == (0, 1, 2, 1, 0)
    for index, sample in enumerate(samples):
        assert sample.name == f"data.npz[{index}]" and sample.label == dataset.labels[index]
        assert sample.arrays["x"].dtype == np.float32
        assert (sample.arrays["x"] == x[index : index + 1].astype(np.float32)).all()
        assert (sample.arrays["ids"] == ids[index : index + 1]).all()
        assert sample.arrays["ids"].dtype == np.int64
    assert [s.name for s in dataset.samples(2)] == ["data.npz[0]", "data.npz[1]"]


def test_memory_holds_one_row(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.zeros((64, 1 << 18), np.float32))
    dataset = open_dataset(path, [TensorSpec("x", "float32", (1, 1 << 18))])
    tracemalloc.start()
    count = sum(1 for _ in dataset.samples())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 64 and peak < 8 << 20


def test_what_does_not_fit_an_npz_is_said(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    x = np.zeros((3, 4), np.float32)
    for saved, message in (
        ({"y": x}, "no array for input 'x'; it holds y"),
        ({"x": x[:, :3]}, "samples of 1 x 3, and the input is 1 x 4"),
        ({"x": x.astype(np.int32)}, "'x' is int32, and the input is float32"),
        ({"x": x, "labels": np.zeros(2, int)}, "samples differ.*'x' 3, 'labels' 2"),
        ({"x": x, "labels": np.zeros(3)}, "'labels' is float64"),
        ({"x": x, "labels": np.array([0, -1, 0])}, "a label is -1"),
        ({"x": x[:0]}, "there are none"),
        ({"x": np.asfortranarray(x)}, "Fortran order"),
        ({"x": np.array(["a"])}, "expected numbers"),
        ({"x": np.float32(1)}, "scalar"),
    ):
        np.savez(path, **saved)
        with pytest.raises(PenstockError, match=message):
            open_dataset(path, [VECTOR])
    bad = x.copy()
    bad[1, 2] = np.nan
    np.savez(path, x=bad)
    with pytest.raises(UsageError, match=r"data.npz\[1\]: 'x' has NaN or infinity"):
        list(open_dataset(path, [VECTOR]).samples())


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(FormatError, match="expected a folder of images or an .npz"):
        open_dataset(path, [VECTOR])
    np.savez(path, x=np.array([object()], dtype=object))
    with pytest.raises(FormatError, match="expected numbers"):  # never unpickled
        open_dataset(path, [VECTOR])
    member = tmp_path / "x.npy"
    np.save(member, np.zeros((3, 4), np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member.read_bytes()[:-8])
    with pytest.raises(FormatError, match="says 3 x 4 float32, 48 bytes, and holds 40"):
        open_dataset(path, [VECTOR])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00garbage")
    with pytest.raises(FormatError, match="'x' is not a NumPy array"):
        open_dataset(path, [VECTOR])
    np.savez(path, x=np.arange(4000, dtype=np.float32).reshape(1000, 4))
    data = bytearray(path.read_bytes())
    data[9000] ^= 255
    path.write_bytes(data)
    with pytest.raises(FormatError, match="'x' is damaged"):  # the zip's checksum
        list(open_dataset(path, [VECTOR]).samples())


def test_synthetic_is_the_same_for_a_seed() -> None:
    quantized = TensorSpec("q", "uint8", (1, 50), Quantization((0.5,), (100,)))
    inputs = [NHWC, quantized, TensorSpec("ids", "int64", ("batch", 7))]
    first, again, other = (list(synthetic(inputs, 3, seed).samples()) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        assert all((a.arrays[name] == b.arrays[name]).all() for name in a.arrays)
        assert (a.arrays["image"] != c.arrays["image"]).any()
    sample = first[0].arrays
    assert sample["image"].shape == (1, 8, 12, 3) and sample["ids"].shape == (1, 7)
    assert -50 <= sample["q"].min() < 0 < sample["q"].max() <= 77.5
    assert sample["q"].dtype == np.float32
    with pytest.raises(UsageError, match="its shape is open"):
        synthetic([TensorSpec("x", "float32", (1, None))], 3)
    with pytest.raises(UsageError, match="0 samples"):
        synthetic(inputs, 0)


def test_the_photos_of_visual_wake_words(shared_dir: Path) -> None:
    """What the research notes say of the vendor's model, over the labelled photos."""
    pytest.importorskip("ai_edge_litert")
    from penstock.export.comparison import compare_models
    from penstock.runtime.backends.open_model import open_model

    data = shared_dir / "data"
    with (
        open_model(data / "models/vww_96_float.tflite", threads=1) as before,
        open_model(data / "models/vww_96_int8.tflite", threads=1) as after,
    ):
        dataset = open_dataset(
            data / "photos/coco", before.inputs, labels=data / "photos/coco/person_labels.csv"
        )
        assert len(dataset) == 96
        metrics = {metric.name: metric for metric in compare_models(before, after, dataset)}
    accuracy = metrics["accuracy"]
    assert accuracy.before is not None and 0.84 < accuracy.before < 0.90
    assert abs(accuracy.after - accuracy.before) <= 0.02
    assert metrics["agreement"].after > 0.96
