"""What shrinks when a model is made narrower: the channels of every tensor, by a ratio.

HeteroFL, FedRolex and FedConv all give a device of ratio s a model whose hidden layers have
int(N s) of N channels. A `ModelSpec` says, tensor by tensor, which axis carries which group of
channels; input channels and classes are in no group and never shrink. The shapes of a sub-model
follow from a spec and a ratio alone, so no shape has to be trusted that came over the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

Kind = Literal["conv", "linear", "bias", "norm", "running_mean", "running_var", "counter"]

RATIOS = (1.0, 0.75, 0.5625, 0.5, 0.25)  # FedConv's 0.75^k, and HeteroFL's halves


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor.

    Attributes:
        channels: how many of `group`; positions when the axis is in no group.
        group: the channels that this axis carries; None: it never shrinks.
        span: consecutive positions a channel has on this axis: height times width where a
            convolution's output was flattened before a linear layer.
    """

    channels: int
    group: str | None = None
    span: int = 1

    @property
    def size(self) -> int:
        """Positions."""
        return self.channels * self.span

    def at(self, ratio: float) -> Axis:
        """The same axis of the sub-model."""
        return self if self.group is None else replace(self, channels=width(self.channels, ratio))

    def positions(self, channels: NDArray[np.intp]) -> NDArray[np.intp]:
        """Positions on this axis of these channels, in their order."""
        spread = channels[:, None] * self.span + np.arange(self.span, dtype=np.intp)
        return spread.reshape(-1)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a state dict: what it is, and what its axes carry (output channels first)."""

    name: str
    kind: Kind
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(axis.size for axis in self.axes)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """float32, but int64 for BatchNorm's counter of batches."""
        return np.dtype(np.int64 if self.kind == "counter" else np.float32)

    @property
    def averaged(self) -> bool:
        """Whether the server averages it by itself: a counter is taken from the largest."""
        return self.kind != "counter"


@dataclass(frozen=True)
class ModelSpec:
    """Every tensor of a model, in the order of its state dict."""

    name: str
    tensors: tuple[TensorSpec, ...]

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.tensors)

    def by_name(self) -> dict[str, TensorSpec]:
        """Specs by tensor name; what `check_arrays` takes."""
        return {tensor.name: tensor for tensor in self.tensors}

    def groups(self) -> dict[str, int]:
        """Channels of each group, in the order of first use.

        Raises:
            UsageError: two axes of one group have different numbers of channels.
        """
        found: dict[str, int] = {}
        for tensor in self.tensors:
            for axis in tensor.axes:
                if axis.group is not None and found.setdefault(axis.group, axis.channels) != (
                    axis.channels
                ):
                    raise UsageError(
                        f"{self.name}: {tensor.name} has {axis.channels} channels of group "
                        f"{axis.group!r}, other tensors have {found[axis.group]}"
                    )
        return found

    def at(self, ratio: float) -> ModelSpec:
        """The sub-model of this ratio; ratio 1 is the model itself.

        Raises:
            UsageError: the ratio is not in (0, 1].
        """
        check_ratio(ratio)
        return replace(
            self,
            tensors=tuple(
                replace(tensor, axes=tuple(axis.at(ratio) for axis in tensor.axes))
                for tensor in self.tensors
            ),
        )

    def parameters(self) -> int:
        """Values in all tensors."""
        return sum(int(np.prod(tensor.shape)) for tensor in self.tensors)

    def index(
        self, tensor: TensorSpec, channels: Mapping[str, NDArray[np.intp]]
    ) -> tuple[NDArray[np.intp], ...]:
        """For `np.ix_`: the positions on each axis of one of this model's tensors that belong to
        the given channels of each group."""
        return tuple(
            np.arange(axis.size, dtype=np.intp)
            if axis.group is None
            else axis.positions(channels[axis.group])
            for axis in tensor.axes
        )


def width(channels: int, ratio: float) -> int:
    """Channels of a layer in the sub-model: int(N s), at least one.

    1e-9 is added first: 0.1 * 30 is 2.9999999999999996 in some orders of multiplication.
    """
    return max(1, int(channels * ratio + 1e-9))


def check_ratio(ratio: float) -> float:
    """The ratio.

    Raises:
        UsageError: it is not in (0, 1].
    """
    if not 0.0 < ratio <= 1.0:
        raise UsageError(f"ratio is {ratio}, expected more than 0 and at most 1")
    return ratio


# ---------------------------------------------------------------- for the files in models/


def conv(name: str, out: Axis, into: Axis, *kernel: int) -> tuple[TensorSpec, ...]:
    """A convolution's weight [out, in, *kernel] and bias."""
    spatial = tuple(Axis(size) for size in kernel)
    return (
        TensorSpec(f"{name}.weight", "conv", (out, into, *spatial)),
        TensorSpec(f"{name}.bias", "bias", (out,)),
    )


def linear(name: str, out: Axis, into: Axis) -> tuple[TensorSpec, ...]:
    """A linear layer's weight [out, in] and bias."""
    return (
        TensorSpec(f"{name}.weight", "linear", (out, into)),
        TensorSpec(f"{name}.bias", "bias", (out,)),
    )


def batch_norm(name: str, channels: Axis) -> tuple[TensorSpec, ...]:
    """BatchNorm's scale, shift, running statistics and counter."""
    return (
        TensorSpec(f"{name}.weight", "norm", (channels,)),
        TensorSpec(f"{name}.bias", "bias", (channels,)),
        TensorSpec(f"{name}.running_mean", "running_mean", (channels,)),
        TensorSpec(f"{name}.running_var", "running_var", (channels,)),
        TensorSpec(f"{name}.num_batches_tracked", "counter", ()),
    )
