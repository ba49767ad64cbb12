"""Ranges of activations from calibration data, in memory that does not grow with the samples.

Every activation becomes an output of the graph; what a sample makes of it is counted in a
histogram of fixed size and dropped. (onnxruntime's own calibrators keep what they saw until the
end.) Where all activations of one sample are too large to hold at once, the data is gone through
again for the next group of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penstock.errors import PenstockError, UsageError
from penstock.export.dataset import Dataset, Sample
from penstock.export.onnx.libraries import (
    onnx_library,
    onnxruntime_library,
    quantization,
    quiet_libraries,
)
from penstock.export.onnx.preparation import PreparedModel
from penstock.export.onnx.recipe import OnnxRecipe
from penstock.export.report import Progress, ProgressCallback
from penstock.quant.observers import (
    Observer,
    ValueRange,
    entropy_range,
    minmax_range,
    percentile_range,
)

GROUP_BYTES = 128 << 20
"""Of activations that one run gives out."""


def calibrate(
    prepared: PreparedModel,
    dataset: Dataset,
    recipe: OnnxRecipe,
    *,
    limit: int | None = None,
    threads: int = 1,
    group_bytes: int = GROUP_BYTES,
    progress: ProgressCallback | None = None,
) -> dict[str, ValueRange]:
    """The range of every float activation, by its name.

    Args:
        limit: samples at most.

    Raises:
        UsageError: there are no samples, one does not fit the inputs, or one makes NaN or
            infinity: the sample and the tensor are named.
        PenstockError: onnxruntime fails on a sample.
    """
    observers = observe(prepared, dataset, limit, threads, group_bytes, progress)
    return {name: choose_range(seen, recipe) for name, seen in observers.items()}


def choose_range(observer: Observer, recipe: OnnxRecipe) -> ValueRange:
    """By the recipe's method."""
    histogram = observer.histogram
    if recipe.method == "percentile":
        return percentile_range(histogram, recipe.percentile, recipe.symmetric)
    if recipe.method == "entropy":
        return entropy_range(histogram, symmetric=recipe.symmetric)
    return minmax_range(histogram, recipe.symmetric)


def observe(
    prepared: PreparedModel,
    dataset: Dataset,
    limit: int | None,
    threads: int,
    group_bytes: int,
    progress: ProgressCallback | None,
) -> dict[str, Observer]:
    """Histograms of the inputs and of all activations; see `calibrate`."""
    groups = activation_groups(prepared.model, group_bytes)
    inputs = {value.name for value in prepared.model.graph.input if _is_float(value)}
    observers = {name: Observer(name) for group in (inputs, *groups) for name in group}
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count < 1:
        raise UsageError(f"{dataset.name}: no samples to calibrate on")
    for number, group in enumerate(groups or [[]]):
        session = _session(prepared, group, threads)
        for done, sample in enumerate(dataset.samples(limit)):
            if progress is not None:
                at = number * count + done
                progress(Progress("calibration", at, count * max(len(groups), 1), "samples"))
            if number == 0:
                for name in inputs & sample.arrays.keys():
                    observers[name].observe(sample.arrays[name], sample.name)
            for name, values in zip(group, _run(prepared, session, group, sample), strict=True):
                observers[name].observe(values, sample.name)
    return observers


def activation_groups(model: Any, group_bytes: int) -> list[list[str]]:
    """Float tensors that nodes make, in groups of so many bytes for one sample."""
    made = {name for node in model.graph.node for name in node.output}
    values = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    groups: list[list[str]] = []
    room = 0
    for name, value in values.items():
        if name not in made or not _is_float(value):
            continue
        nbytes = 4 * int(np.prod([max(d.dim_value, 1) for d in value.type.tensor_type.shape.dim]))
        if not groups or nbytes > room:
            groups.append([])
            room = group_bytes
        groups[-1].append(name)
        room -= nbytes
    return groups


def _is_float(value: Any) -> bool:
    return value.type.tensor_type.elem_type in (1, 10)


def _session(prepared: PreparedModel, names: Sequence[str], threads: int) -> Any:
    """The model with these tensors as outputs, as it is: nothing fused, nothing folded."""
    from penstock.runtime.backends.onnx_model import PROVIDER

    ort, onnx, model = onnxruntime_library(), onnx_library(), prepared.model
    augmented = onnx.ModelProto()
    augmented.CopyFrom(model)
    values = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    del augmented.graph.output[:]
    augmented.graph.output.extend(values[name] for name in names or [model.graph.output[0].name])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(augmented.SerializeToString(), options, providers=[PROVIDER])
    except Exception as error:  # onnxruntime's own kinds have no common base
        raise PenstockError(
            f"{prepared.source}: onnxruntime refuses the model with its activations as outputs: "
            f"{' '.join(str(error).split())}"
        ) from None


def _run(
    prepared: PreparedModel, session: Any, names: Sequence[str], sample: Sample
) -> Sequence[Any]:
    if not names:
        return []
    try:
        made: Sequence[Any] = session.run(list(names), sample.arrays)
    except Exception as error:  # onnxruntime's own kinds have no common base
        raise PenstockError(
            f"{prepared.source}: onnxruntime failed on calibration sample '{sample.name}': "
            f"{' '.join(str(error).split())}"
        ) from None
    return made


def tensors_data(prepared: PreparedModel, ranges: Mapping[str, ValueRange]) -> Any:
    """Ranges as onnxruntime's writer takes them, in the type of each tensor."""
    with quiet_libraries():
        module = quantization("calibrate")
    graph = prepared.model.graph
    halves = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == 10
    }
    data = {}
    for name, found in ranges.items():
        dtype = np.float16 if name in halves else np.float32
        data[name] = module.TensorData(
            lowest=np.array(found.low, dtype), highest=np.array(found.high, dtype)
        )
    return module.TensorsData(module.CalibrationMethod.MinMax, data)
