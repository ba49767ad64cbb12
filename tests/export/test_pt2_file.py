"""Exported programs: what torch saves loads; what would run code is refused and does not run."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import FormatError, PenstockError, StorageError, UnsupportedModelError
from penstock.export.pt2_file import load_pt2

torch = pytest.importorskip("torch", reason="torch is not installed")
ROOT = "program"
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear layer of any batch size, with a buffer and arithmetic on sizes."""

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 4)
            self.register_buffer("shift", torch.ones(4))

        def forward(self, x: Any) -> Any:
            wide = torch.relu(self.linear(x)).reshape(x.shape[0] * 2, 2)
            return {"wide": wide, "sum": (wide + self.shift[:2]).sum()}

    torch.manual_seed(0)
    model = Model().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (torch.rand(3, 8),), dynamic_shapes=({0: batch},))
    path = tmp_path_factory.mktemp("pt2") / f"{ROOT}.pt2"
    torch.export.save(program, path)
    return path


def edited(
    saved: Path,
    path: Path,
    program: Edit | None = None,
    entries: dict[str, bytes] | None = None,
) -> Path:
    """A copy of the archive with the program changed, and entries added or replaced."""
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        changed = {f"{ROOT}/{name}": data for name, data in (entries or {}).items()}
        for name in old.namelist():
            data = old.read(name)
            if program is not None and name.endswith("models/model.json"):
                found = json.loads(data)
                program(found)
                data = json.dumps(found).encode()
            new.writestr(name, changed.pop(name, data))
        for name, data in changed.items():
            new.writestr(name, data)
    return path


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def test_what_torch_saved_computes_the_same(saved: Path) -> None:
    program = load_pt2(saved)
    expected = torch.export.load(saved).module()
    for rows in (2, 5):
        x = torch.randn(rows, 8)
        made, wanted = program.module()(x), expected(x)
        assert made.keys() == wanted.keys()
        assert torch.equal(made["wide"], wanted["wide"]) and made["wide"].shape == (2 * rows, 2)


def test_an_evil_size_would_run_in_torch_and_is_refused(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    def poison(program: dict[str, Any]) -> None:
        size = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]
        size["expr_str"] = f"__import__('os').mkdir({str(mark)!r})"

    path = edited(saved, tmp_path / "evil.pt2", program=poison)
    with pytest.raises(UnsupportedModelError, match=r"evil\.pt2: the size .*more than arithmetic"):
        load_pt2(path)
    assert not mark.exists()
    with pytest.raises(Exception):  # noqa: B017  torch fails after it ran the code
        torch.export.load(path)
    assert mark.exists(), "torch is safe by itself now: the check could go"


@pytest.mark.parametrize(
    "target",
    [
        "torch.serialization.os.system",
        "torch.hub.load",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.from_file.default",
        "torch.ops.mylib.op.default",
        "_operator.methodcaller",
        "#extension:op",
        "builtins.eval",
        3,
    ],
)
def test_operators_that_do_more_than_compute(saved: Path, tmp_path: Path, target: object) -> None:
    def poison(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(UnsupportedModelError, match="none of PyTorch's that only compute"):
        load_pt2(edited(saved, tmp_path / "evil.pt2", program=poison))


@pytest.mark.parametrize(
    "size",
    [
        "Symbol('a b')", "s77.__class__", "(lambda: 1)()", "[1][0]", "eval('1')", "f'{1}'",
        "Symbol(**{'a': 1})", "__s", "1 if s else 2", "x" * 5000, "s77 +",
    ],
)  # fmt: skip
def test_sizes_that_are_more_than_arithmetic(saved: Path, tmp_path: Path, size: str) -> None:
    def poison(program: dict[str, Any]) -> None:
        value = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]
        value["expr_str"] = size

    with pytest.raises(UnsupportedModelError, match="size"):
        load_pt2(edited(saved, tmp_path / "evil.pt2", program=poison))


def test_pickles_of_more_than_tensors(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save(Evil(mark), buffer)
    for name in ("data/sample_inputs/model.pt", "data/weights/model.pt"):
        path = edited(saved, tmp_path / "evil.pt2", entries={name: buffer.getvalue()})
        with pytest.raises(UnsupportedModelError, match="is not loaded"):
            load_pt2(path)
    assert not mark.exists()


@pytest.mark.parametrize("where", ["weights", "constants"])
@pytest.mark.parametrize("name", ["opaque_obj_0", "custom_obj_0", "../sample_inputs/model.pt"])
def test_payloads_that_are_unpickled(saved: Path, tmp_path: Path, where: str, name: str) -> None:
    mark = tmp_path / "ran"
    payload = {"path_name": name, "is_param": False, "use_pickle": False, "tensor_meta": None}
    config = json.dumps({"config": {"a": payload}}).encode()
    entries = {
        f"data/{where}/model_{where}_config.json": config,
        "data/constants/tensor_0": pickle.dumps(Evil(mark)),
    }
    with pytest.raises(UnsupportedModelError, match="stored as a pickle or an object"):
        load_pt2(edited(saved, tmp_path / "evil.pt2", entries=entries))
    pickled = payload | {"path_name": "tensor_0", "use_pickle": True}
    entries[f"data/{where}/model_{where}_config.json"] = json.dumps(
        {"config": {"a": pickled}}
    ).encode()
    with pytest.raises(UnsupportedModelError, match="stored as a pickle or an object"):
        load_pt2(edited(saved, tmp_path / "evil.pt2", entries=entries))
    assert not mark.exists()


def test_guards_are_left_out(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    def poison(program: dict[str, Any]) -> None:
        program["guards_code"] = [f"__import__('os').mkdir({str(mark)!r}) or True"]

    program = load_pt2(edited(saved, tmp_path / "guards.pt2", program=poison))
    program.module()(torch.randn(3, 8))
    assert not mark.exists()


def test_trees_that_name_classes(saved: Path, tmp_path: Path) -> None:
    def poison(program: dict[str, Any]) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
        node = {"type": "collections.defaultdict", "context": "{}", "children_spec": [leaf]}
        signature["out_spec"] = json.dumps([1, node])

    with pytest.raises(UnsupportedModelError, match="collections.defaultdict"):
        load_pt2(edited(saved, tmp_path / "evil.pt2", program=poison))


def test_what_is_no_archive(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for name, data in (
        ("empty", b""),
        ("text", b"not a program"),
        ("cut", whole[: len(whole) // 2]),
        ("pickle", pickle.dumps([1, 2])),
    ):
        path = tmp_path / f"{name}.pt2"
        path.write_bytes(data)
        with pytest.raises(FormatError, match=rf"{name}\.pt2"):
            load_pt2(path)
    with pytest.raises(StorageError, match=r"absent\.pt2"):
        load_pt2(tmp_path / "absent.pt2")
    compressed = tmp_path / "compressed.pt2"
    with (
        zipfile.ZipFile(saved) as old,
        zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(FormatError, match="compressed"):
        load_pt2(compressed)


def test_damage_is_an_error_and_no_crash(saved: Path, tmp_path: Path) -> None:
    def drop(program: dict[str, Any]) -> None:
        del program["graph_module"]["signature"]

    with pytest.raises(PenstockError, match=r"damaged\.pt2"):
        load_pt2(edited(saved, tmp_path / "damaged.pt2", program=drop))
    with pytest.raises(FormatError, match="not JSON"):
        load_pt2(edited(saved, tmp_path / "json.pt2", entries={"models/model.json": b"{"}))
