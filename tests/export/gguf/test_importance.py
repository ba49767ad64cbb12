"""Importance matrices of llama-imatrix: read, used, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize
from numpy.typing import NDArray

from penstock.errors import FormatError, UsageError
from penstock.export.gguf.export import export_gguf
from penstock.export.gguf.importance import read_importance
from tests.export.gguf.conftest import Files

Matrix = NDArray[np.float32]


def write_imatrix(path: Path, means: dict[str, Matrix], tokens: float = 512) -> Path:
    """As llama-imatrix does: sums of squares (matrices, columns), counts (matrices, 1)."""
    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["stories.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, mean in means.items():
        writer.add_tensor(f"{name}.in_sum2", (mean * tokens).astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.full((len(mean), 1), tokens, np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return path


@pytest.fixture
def means() -> Callable[[Path], dict[str, Matrix]]:
    """Random mean squares for every matrix of a file's layers."""

    def of(path: Path) -> dict[str, Matrix]:
        rng = np.random.default_rng(3)
        return {
            t.name: rng.chisquare(1, (1 if t.data.ndim < 3 else len(t.data), int(t.shape[0])))
            .astype(np.float32)
            for t in GGUFReader(path).tensors
            if t.name.startswith("blk.") and len(t.shape) > 1 and "gate_inp" not in t.name
        }  # fmt: skip

    return of


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-olmoe"])
def test_weighted_errors_fall(
    files: Files, tmp_path: Path, means: Callable[[Path], dict[str, Matrix]], shape: str
) -> None:
    experts = {"experts": 4, "used": 2} if shape == "tiny-olmoe" else {}
    source = files(shape, layers=1, **experts)
    found = means(source)
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", found)
    plain, weighted = tmp_path / "plain.gguf", tmp_path / "weighted.gguf"
    export_gguf(source, plain, "Q4_K", evaluate=False)
    report = export_gguf(source, weighted, "Q4_K", imatrix=imatrix, evaluate=False)
    assert any("importance weights for" in note for note in report.notes)
    errors = []
    wanted = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(source).tensors}
    for path in (plain, weighted):
        made = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(path).tensors}
        errors.append({
            name: float((mean[:, None] * (made[name] - wanted[name]).reshape(
                len(mean), -1, mean.shape[1]) ** 2).sum())
            for name, mean in found.items()
        })  # fmt: skip
    assert all(errors[1][name] < 0.98 * errors[0][name] for name in found)
    fields = GGUFReader(weighted).fields
    assert fields["quantize.imatrix.file"].contents() == "imatrix.gguf"
    assert fields["quantize.imatrix.dataset"].contents() == "stories.txt"
    assert fields["quantize.imatrix.entries_count"].contents() == len(found)
    assert fields["quantize.imatrix.chunks_count"].contents() == 3


def test_means_are_sums_by_tokens(tmp_path: Path) -> None:
    means = {"blk.0.a.weight": np.arange(8, dtype=np.float32).reshape(2, 4)}
    read = read_importance(write_imatrix(tmp_path / "i.gguf", means, tokens=7))
    assert np.allclose(read.weights["blk.0.a.weight"], means["blk.0.a.weight"])
    assert (read.dataset, read.chunks) == ("stories.txt", 3)


def test_what_is_no_importance_of_this_model_is_refused(files: Files, tmp_path: Path) -> None:
    source, out = files("tiny-llama"), tmp_path / "out.gguf"
    with pytest.raises(FormatError, match="general.type is None, expected 'imatrix'"):
        export_gguf(source, out, "Q4_K", imatrix=source, evaluate=False)
    old = tmp_path / "old.dat"
    old.write_bytes(b"\x01\x00\x00\x00 an older one")
    with pytest.raises(FormatError, match="llama-imatrix --in-file OLD.dat"):
        read_importance(old)
    name = "blk.0.attn_q.weight"
    narrow = write_imatrix(tmp_path / "narrow.gguf", {name: np.ones((1, 128), np.float32)})
    with pytest.raises(FormatError, match=r"importance of \(1, 128\), expected \(1, 256\)"):
        export_gguf(source, out, "Q4_K", imatrix=narrow, evaluate=False)
    other = write_imatrix(tmp_path / "other.gguf", {"x.weight": np.ones((1, 256), np.float32)})
    with pytest.raises(UsageError, match="no importance for any tensor"):
        export_gguf(source, out, "Q4_K", imatrix=other, evaluate=False)
    bad = write_imatrix(tmp_path / "bad.gguf", {name: np.full((1, 256), np.nan, np.float32)})
    with pytest.raises(FormatError, match="no sums of squares"):
        read_importance(bad)
    assert not out.exists()
