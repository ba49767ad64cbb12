"""Muon for the matrices, AdamW for embeddings and norms, with a state that fits safetensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Run = Callable[[Callable[[Any], None], Iterable[Any]], object]


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Move all singular values of a matrix near 1, by Newton-Schulz iteration.

    The quintic's coefficients trade exactness (values end in about 0.7 to 1.2) for speed: five
    steps do, whatever the spectrum. The smaller side is put first to keep the products small.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / (torch.linalg.matrix_norm(x) + 1e-7)
    for _ in range(steps):
        gram = x @ x.T  # (rows, rows)
        x = 3.4445 * x + torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315) @ x
    return x.T if tall else x


class Optimizer:
    """One step over named parameters; ``run`` maps the work over threads.

    ``muon_lr`` is the step of a matrix in units of its spectral norm, ``adam_lr`` that of one
    embedding or norm weight. ``scale`` (0 to 1) is the schedule's factor on both.
    """

    def __init__(
        self, named: Mapping[str, Tensor], muon_lr: float, adam_lr: float, weight_decay: float
    ) -> None:
        self.named = named
        self.muon_lr, self.adam_lr, self.weight_decay = muon_lr, adam_lr, weight_decay
        self.state: dict[str, Tensor] = {}
        for name, weight in named.items():
            self.state[f"{name}.momentum"] = torch.zeros_like(weight)
            if not self.uses_muon(name):
                self.state[f"{name}.square"] = torch.zeros_like(weight)

    @staticmethod
    def uses_muon(name: str) -> bool:
        """Matrices inside the layers go to Muon; the tied embedding and all norms do not."""
        return "_proj." in name

    @torch.no_grad()
    def step(self, grads: Mapping[str, Tensor], step: int, scale: float, run: Run) -> None:
        """Apply the summed gradients; ``step`` counts from 0 and corrects Adam's first averages."""

        def update(name: str) -> None:
            with torch.no_grad():
                if self.uses_muon(name):
                    self._muon(name, grads[name], scale)
                else:
                    self._adam(name, grads[name], step, scale)

        run(update, self.named)

    def _muon(self, name: str, grad: Tensor, scale: float) -> None:
        weight, momentum = self.named[name], self.state[f"{name}.momentum"]
        momentum.lerp_(grad, 0.05)
        direction = orthogonalize(grad.lerp(momentum, 0.95))  # Nesterov's look ahead
        rate = self.muon_lr * scale
        weight.mul_(1.0 - rate * self.weight_decay)
        weight.add_(direction, alpha=-rate * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)

    def _adam(self, name: str, grad: Tensor, step: int, scale: float) -> None:
        mean, square = self.state[f"{name}.momentum"], self.state[f"{name}.square"]
        mean.lerp_(grad, 0.1)
        square.lerp_(grad * grad, 0.05)
        size = (square / (1.0 - 0.95 ** (step + 1))).sqrt_().add_(1e-8)
        rate = self.adam_lr * scale / (1.0 - 0.9 ** (step + 1))
        self.named[name].addcdiv_(mean, size, value=-rate)
