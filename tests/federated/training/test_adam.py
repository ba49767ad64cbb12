"""Adam against NumPy, and against what it must not import."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from penstock.federated.training.adam import Adam  # noqa: E402


def test_it_steps_as_the_paper_says() -> None:
    module = torch.nn.Linear(5, 3, bias=False)
    weight = module.weight.detach().numpy().astype(np.float64)
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    adam = Adam(module.parameters(), 0.03)
    rng = np.random.default_rng(0)
    for step in range(1, 21):
        inputs = rng.normal(size=(7, 5)).astype(np.float32)
        adam.clear_gradients()
        module(torch.from_numpy(inputs)).square().sum().backward()
        adam.step()
        gradient = 2 * (weight @ inputs.T) @ inputs
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = square / (1 - 0.999**step)
        weight = weight - 0.03 * (mean / (1 - 0.9**step)) / (np.sqrt(unbiased) + 1e-8)
    assert module.weight.detach().numpy() == pytest.approx(weight, rel=1e-3, abs=1e-4)


def test_a_parameter_without_a_gradient_stays() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    before = module[1].weight.clone()
    module[0](torch.ones(1, 2)).sum().backward()
    Adam(module.parameters(), 0.1).step()
    assert torch.equal(module[1].weight, before)


def test_training_does_not_bring_the_compiler_along() -> None:
    code = """
import sys
import numpy as np
from penstock.federated.models.registry import ModelOptions, build_module
from penstock.federated.protocol import TrainTask
from penstock.federated.training.data import TrainingData
from penstock.federated.training.trainer import Trainer
options = ModelOptions("sensing-mlp", (4,), 2)
arrays = {n: t.numpy().copy() for n, t in build_module(options).state_dict().items()}
data = TrainingData(np.ones((9, 4), np.float32), np.array([0, 1, -1] * 3))
for algorithm in ("fedavg", "fedmobile"):
    task = TrainTask("0" * 16, 1, 0, algorithm, options.to_json(), 1.0, "{}", 1, 4, 1e-3, 0, 0.0)
    found = Trainer(options, 1.0).train(arrays, data, task, memory_bytes=1 << 30, teacher=arrays)
    assert found.steps
print(sorted({"torch._dynamo", "sympy", "torch._inductor"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
