"""Training within a number of bytes: what it will take, and the largest batch part that fits.

Weights, their gradients and Adam's two moments stay (four values a parameter); activations grow
with the windows that are trained at once, and are measured on a few windows of the device's own
data. A batch that does not fit is trained in parts whose gradients add up to the batch's own, so
that the budget costs time and not accuracy. (BatchNorm alone sees the parts: its statistics are
those of a part.) Only when one window at a time does not fit, the training is refused.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.errors import BudgetError

if TYPE_CHECKING:
    import torch
    from torch import nn

VALUES_PER_PARAMETER = 4  # weight, gradient, Adam's mean and variance
ACTIVATION_FACTOR = (
    4.0  # gradients, unfolded convolutions, freed blocks that stay: 3.1 was measured
)
STEADY_BYTES = 2 << 20  # the loop's own: batches, optimizer, Python
PROBE_WINDOWS = (2, 6)


@dataclass(frozen=True)
class MemoryNeed:
    """What training takes beyond the idle process.

    Attributes:
        fixed_bytes: whatever the batch: parameters, data, teachers.
        window_bytes: of activations for each window that is trained at once.
    """

    fixed_bytes: int
    window_bytes: int

    def total(self, windows: int) -> int:
        """Bytes with so many windows at once."""
        return self.fixed_bytes + windows * self.window_bytes

    def largest_part(self, memory_bytes: int, batch: int) -> int:
        """Windows at once within the budget, at most a batch.

        Args:
            memory_bytes: the budget; 0: no limit.

        Raises:
            BudgetError: not even one window fits; `least_bytes` says what would.
        """
        if not memory_bytes:
            return batch
        least = self.total(1)
        if memory_bytes < least:
            raise BudgetError(
                f"training needs {least:,} bytes of memory at least ({self.fixed_bytes:,} for the "
                f"model and the data, {self.window_bytes:,} for one window), the budget is "
                f"{memory_bytes:,}; raise it, or take a smaller ratio",
                least,
            )
        return min(batch, (memory_bytes - self.fixed_bytes) // max(1, self.window_bytes))


def measure_need(
    module: nn.Module, loss_of: Callable[[int], torch.Tensor], held_bytes: int
) -> MemoryNeed:
    """The need, from the tensors that autograd keeps for two small batches.

    Args:
        module: in training mode.
        loss_of: the loss of a batch of so many windows.
        held_bytes: of data and teachers.
    """
    parameters = sum(p.numel() * p.element_size() for p in module.parameters())
    few, more = PROBE_WINDOWS
    kept_few, kept_more = (_kept_bytes(module, loss_of, windows) for windows in PROBE_WINDOWS)
    each = max(1, -(-(kept_more - kept_few) // (more - few)))
    constant = max(0, kept_few - few * each)
    return MemoryNeed(
        VALUES_PER_PARAMETER * parameters + held_bytes + constant + STEADY_BYTES,
        math.ceil(ACTIVATION_FACTOR * each),
    )


def _kept_bytes(module: nn.Module, loss_of: Callable[[int], torch.Tensor], windows: int) -> int:
    """Bytes of the distinct tensors that the backward pass would use, without parameters."""
    import torch

    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}  # holding them keeps addresses distinct

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(windows)
    return sum(size for size, _ in kept.values())


# ---------------------------------------------------------------- what it really took


def reset_peak() -> None:
    """Start the kernel's high-water mark of resident memory anew, where it allows that."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # then the peak is that of the whole process so far


def peak_resident_bytes() -> int:
    """Most resident bytes of this process since `reset_peak`."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
