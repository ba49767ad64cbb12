"""The model that came last goes live, once, and in a process of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from penstock.federated.arrays import Arrays
from penstock.federated.client.deploy import LiveModel
from penstock.federated.client.rounds import GLOBAL, TEACHER, StoredModel
from penstock.federated.client.store import Store
from penstock.federated.daemon.config import load_config
from penstock.federated.daemon.exit_codes import MISCONFIGURED
from penstock.federated.daemon.publish_model import FACT, Publisher, main
from penstock.federated.models.registry import ModelOptions, model_spec

for library in ("torch", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)

MODEL = ModelOptions("sensing-mlp", (6,), 3, (8,))


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(before):
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


def received(number: int, bad: bool = False) -> StoredModel:
    rng = np.random.default_rng(number)
    arrays: Arrays = {
        tensor.name: np.zeros(tensor.shape, np.int64)
        if tensor.kind == "counter"
        else np.abs(rng.normal(0, 0.3, tensor.shape)).astype(np.float32)
        for tensor in model_spec(MODEL)
    }
    if bad:
        arrays.popitem()
    return StoredModel(arrays, MODEL.to_json(), 1.0, "run", number, 1)


def test_each_model_is_published_once(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text('folder = "d"\n[training]\npublish = "round"\n')
    config = load_config(path)
    with Store.open(config.store) as store:
        assert main([str(path)]) == 0, "nothing is due"
        store.rounds.save_model(GLOBAL, received(4))
        assert main([str(path)]) == 0
        assert store.fact(FACT) == ["run", 4, 1]
        with LiveModel(config.folder / "live") as live:
            assert live.current is not None and live.current.version == 1
            assert live.run(np.zeros((2, 6), np.float32)).shape == (2, 3)
        assert main([str(path)]) == 0
        Publisher(config, path, store).look()
        assert len(list((config.folder / "live").glob("model-*"))) == 1, "not a second time"

        # What cannot be published is said, and the version before stays.
        store.rounds.save_model(GLOBAL, received(5, bad=True))
        assert main([str(path)]) == MISCONFIGURED
        assert "missing" in (config.folder / "publish.log").read_text()
        with LiveModel(config.folder / "live") as live:
            assert live.current is not None and live.current.version == 1


def test_never_and_at_the_end_of_a_chunk(tmp_path: Path) -> None:
    for when, due in (("never", False), ("chunk", True)):
        path = tmp_path / f"{when}.toml"
        path.write_text(f'folder = "{when}"\n[training]\npublish = "{when}"\n')
        config = load_config(path)
        with Store.open(config.store) as store:
            publisher = Publisher(config, path, store)
            store.rounds.save_model(GLOBAL, received(4))
            publisher.look()
            assert publisher._child is None
            store.rounds.save_model(TEACHER, received(3))
            publisher.look()
            assert (publisher._child is not None) == due
            publisher.end()
