"""Adam, without what torch's optimizer objects bring with them.

`torch.optim.Adam` imports the compiler (dynamo, sympy) when it is made: 71 MB and seconds that a
device never gets back. The same kernel, called as a function, brings nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Kingma and Ba, ICLR 2015


class Adam:
    """For one local update: its moments begin at zero.

    Args:
        parameters: what it changes; those that want no gradient stay.
        learning_rate: of every step.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], learning_rate: float) -> None:
        import torch

        self._rate = learning_rate
        self._parameters = [p for p in parameters if p.requires_grad]
        self._means = [torch.zeros_like(p) for p in self._parameters]
        self._squares = [torch.zeros_like(p) for p in self._parameters]
        self._counts = [torch.zeros(()) for _ in self._parameters]

    def clear_gradients(self) -> None:
        """Before the backward pass."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Change the parameters by their gradients; one without any stays."""
        import torch
        from torch.optim.adam import adam

        have = [i for i, p in enumerate(self._parameters) if p.grad is not None]
        gradients = [g for p in self._parameters if (g := p.grad) is not None]
        with torch.no_grad():
            adam(
                [self._parameters[i] for i in have],
                gradients,
                [self._means[i] for i in have],
                [self._squares[i] for i in have],
                [],
                [self._counts[i] for i in have],
                fused=True,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=self._rate,
                weight_decay=0.0,
                eps=EPSILON,
                maximize=False,
            )
