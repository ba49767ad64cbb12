"""A live model: what torch computes, swapped under load, rolled back, never half a model."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="publishing needs torch")
pytest.importorskip("onnxruntime", reason="inference needs onnxruntime")
pytest.importorskip("onnxscript", reason="publishing needs the extra 'export'")

import torch

from penstock.errors import FormatError, PenstockError, RefusedUpdateError, UsageError
from penstock.federated.arrays import Arrays
from penstock.federated.client import deploy
from penstock.federated.client.deploy import LiveModel
from penstock.federated.client.live_folder import CURRENT, Published, read_current
from penstock.federated.client.live_session import Session
from penstock.federated.models import ModelOptions, build_module, model_spec
from penstock.federated.server.build import initial_model

MLP = ModelOptions("sensing-mlp", (5,), 3, (8,))
WINDOWS = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)


def constant(value: float) -> Arrays:
    """A model whose logits are this number everywhere."""
    arrays = {t.name: np.zeros(t.shape, t.dtype) for t in model_spec(MLP)}
    arrays["classifier.bias"][:] = value
    return arrays


def write_mlp(module: Any, options: ModelOptions, path: Path, kind: deploy.Kind) -> None:
    """The network as an ONNX file, written by hand: torch's exporter takes seconds."""
    from onnx import TensorProto, helper, numpy_helper, save

    held = {name: value.numpy() for name, value in module.state_dict().items()}
    gemm = {"transB": 1}
    nodes = [
        helper.make_node("Gemm", ["inputs", "hidden1.weight", "hidden1.bias"], ["a"], **gemm),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "classifier.weight", "classifier.bias"], ["logits"], **gemm),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("inputs", options.input_shape[0]), ("logits", options.classes))
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "mlp", ports[:1], ports[1:], weights)
    opset = [helper.make_opsetid("", 20)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))


@pytest.fixture
def two_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with versions 1 and 2, whose logits are 1 and 2; no exporter from here on."""
    monkeypatch.setattr(deploy, "_export", write_mlp)
    folder = tmp_path / "live"
    with LiveModel(folder) as live:
        live.publish(constant(1), MLP)
        live.publish(constant(2), MLP)
    return folder


@pytest.mark.parametrize(
    ("options", "ratio"),
    [
        (MLP, 1.0),
        (ModelOptions("sensing-cnn", (3, 16), 4, (4, 6)), 0.5),
        (ModelOptions("image-cnn", (1, 8, 8), 4, (4, 6)), 1.0),
    ],
)
def test_it_computes_what_torch_does(tmp_path: Path, options: ModelOptions, ratio: float) -> None:
    module = build_module(options, ratio).eval()
    arrays = {name: value.numpy().copy() for name, value in module.state_dict().items()}
    windows = np.random.default_rng(0).normal(size=(9, *options.input_shape)).astype(np.float32)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(windows)).numpy()
    with LiveModel(tmp_path) as live:
        published = live.publish(arrays, options, ratio)
        assert published.max_difference < 1e-4
        assert np.allclose(live.run(windows), wanted, atol=1e-4)
        assert live.run(windows[:1]).shape == (1, options.classes)
        assert ModelOptions.from_json(published.model) == options


def test_threads_see_whole_models_only_while_versions_swap(
    two_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Session] = []
    closed: list[Session] = []
    close = Session.close
    real_open = Session.open

    def counted_open(folder: Path, published: Published, threads: int) -> Session:
        session = real_open(folder, published, threads)
        opened.append(session)
        return session

    def counted_close(self: Session) -> None:
        assert self._users == 0, "closed under a call"
        closed.append(self)
        close(self)

    monkeypatch.setattr(Session, "open", counted_open)
    monkeypatch.setattr(Session, "close", counted_close)
    seen: set[float] = set()
    failures: list[BaseException] = []
    stop = threading.Event()
    calls = [0, 0, 0]

    def infer(number: int, live: LiveModel) -> None:
        try:
            while not stop.is_set():
                logits = live.run(WINDOWS)
                values = set(np.unique(logits).tolist())
                assert len(values) == 1, "a mix of two models"
                seen.update(values)
                calls[number] += 1
        except BaseException as error:
            failures.append(error)

    with LiveModel(two_versions) as live:
        workers = [threading.Thread(target=infer, args=(n, live)) for n in range(3)]
        for worker in workers:
            worker.start()
        for swap in range(20):
            before = list(calls)
            back = live.roll_back()
            assert back.version == (1 if swap % 2 == 0 else 2)
            while not failures and any(
                now <= then for now, then in zip(calls, before, strict=True)
            ):
                stop.wait(0.001)  # every thread has run since
        stop.set()
        for worker in workers:
            worker.join(30)
    assert not failures
    assert seen == {1.0, 2.0}
    assert len(opened) == 21  # the first, and one a swap
    assert sorted(map(id, closed)) == sorted(map(id, opened))


def test_another_process_s_swap_is_followed(two_versions: Path) -> None:
    with LiveModel(two_versions) as reader, LiveModel(two_versions) as writer:
        first = reader.run(WINDOWS)[0, 0]
        writer.roll_back()
        assert reader.run(WINDOWS)[0, 0] == 3 - first
        writer.roll_back()
        assert reader.run(WINDOWS)[0, 0] == first


def test_only_the_current_version_and_the_one_before_stay(two_versions: Path) -> None:
    with LiveModel(two_versions) as live:
        live.publish(constant(3), MLP)
        assert sorted(p.name for p in two_versions.glob("model-*")) == [
            "model-000002.onnx",
            "model-000003.onnx",
        ]
        assert live.roll_back().version == 2
        assert live.publish(constant(4), MLP).version == 4
        assert live.run(WINDOWS)[0, 0] == 4
        assert live.roll_back().version == 2


def test_a_file_that_computes_something_else_is_never_current(
    two_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(module: object, options: ModelOptions, path: Path, kind: deploy.Kind) -> None:
        arrays = {n: torch.from_numpy(a) for n, a in initial_model(MLP, 5).items()}
        other = build_module(options)
        other.load_state_dict(arrays)
        write_mlp(other.eval(), options, path, kind)

    monkeypatch.setattr(deploy, "_export", wrong)
    before = read_current(two_versions)
    with LiveModel(two_versions) as live:
        with pytest.raises(PenstockError, match="differ from torch's"):
            live.publish(constant(9), MLP)
        assert live.current == before
    assert len(list(two_versions.glob("model-*"))) == 2


def test_a_crash_before_the_swap_changes_nothing(
    two_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, published: Published) -> None:
        raise KeyboardInterrupt

    before = read_current(two_versions)
    monkeypatch.setattr(deploy, "write_current", killed)
    with LiveModel(two_versions) as live:
        with pytest.raises(KeyboardInterrupt):
            live.publish(constant(9), MLP)
        assert live.current == before and live.run(WINDOWS).shape == (7, 3)


def test_a_folder_that_is_not_there_is_named_by_who_reads_and_made_by_who_publishes(
    tmp_path: Path,
) -> None:
    typo = tmp_path / "typo" / "live"
    with LiveModel(typo) as live:
        for read in (lambda: live.current, lambda: live.run(WINDOWS), live.roll_back):
            with pytest.raises(UsageError, match="typo.*there is no such folder"):
                read()
        assert not typo.parent.exists()
        with pytest.raises(RefusedUpdateError):
            live.publish({}, MLP)
        assert not typo.parent.exists()
        live.publish(constant(1), MLP)
        assert live.run(WINDOWS).shape == (7, 3)


def test_what_does_not_fit_is_refused(two_versions: Path, tmp_path: Path) -> None:
    with LiveModel(tmp_path) as empty:
        assert empty.current is None
        with pytest.raises(UsageError, match="no model was published yet"):
            empty.run(WINDOWS)
        with pytest.raises(UsageError, match="no version before"):
            empty.roll_back()
    with LiveModel(two_versions) as live:
        bad = constant(1)
        bad["classifier.bias"][0] = np.nan
        with pytest.raises(RefusedUpdateError, match="classifier.bias"):
            live.publish(bad, MLP)
        with pytest.raises(UsageError):
            live.run(WINDOWS[:, :4])
        with pytest.raises(UsageError, match="no windows"):
            live.run(WINDOWS[:0])


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1}', "\x00\xff"])
def test_a_damaged_pointer_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / CURRENT).write_text(text, "latin-1")
    with pytest.raises(FormatError, match="current"):
        LiveModel(tmp_path)


def test_a_pointer_to_a_file_outside_or_gone_is_refused(tmp_path: Path) -> None:
    plain = {"version": 1, "previous": "", "model": "{}", "ratio": 1.0}
    for file in ("../secret.onnx", "model-000001.onnx"):
        (tmp_path / CURRENT).write_text(json.dumps(plain | {"file": file}))
        with pytest.raises(FormatError):
            LiveModel(tmp_path)


@pytest.mark.slow
def test_a_tflite_file_does_too(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="needs the extra 'litert-export'")
    with LiveModel(tmp_path) as live:
        live.publish(initial_model(MLP, 3), MLP, kind="litert")
        module = build_module(MLP)
        module.load_state_dict({n: torch.from_numpy(a) for n, a in initial_model(MLP, 3).items()})
        with torch.inference_mode():
            wanted = module.eval()(torch.from_numpy(WINDOWS)).numpy()
        assert np.allclose(live.run(WINDOWS), wanted, atol=1e-4)
        assert (tmp_path / "model-000001.tflite").is_file()
