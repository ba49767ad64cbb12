"""The windows that a device trains on, and their door checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import RefusedUpdateError, UsageError
from penstock.federated.models.registry import ModelOptions

UNLABELLED = -1


@dataclass(frozen=True)
class TrainingData:
    """Windows and their labels, checked when they are made.

    Attributes:
        inputs: float32 [n, *shape]: features, or channels and time.
        labels: int64 [n]; -1: unlabelled.

    Raises:
        UsageError: another type, lengths that differ, a value that is not finite, a label under -1.
    """

    inputs: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)

    def __post_init__(self) -> None:
        check_array("inputs", self.inputs, np.float32)
        check_array("labels", self.labels, np.int64)
        if self.inputs.ndim < 2 or self.labels.ndim != 1:
            raise UsageError(
                f"training data: inputs have shape {self.inputs.shape}, labels "
                f"{self.labels.shape}; expected [n, ...] and [n]"
            )
        if len(self.inputs) != len(self.labels):
            raise UsageError(
                f"training data: {len(self.inputs)} inputs but {len(self.labels)} labels"
            )
        finite = np.isfinite(self.inputs)
        if not finite.all():
            at = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise UsageError(
                f"training data: inputs{list(at)} is {self.inputs[at]}, expected finite values "
                f"({int((~finite).sum())} others are not); drop or repair the window"
            )
        if len(self.labels) and self.labels.min() < UNLABELLED:
            raise UsageError(
                f"training data: a label is {self.labels.min()}, expected a class from 0 on, or "
                "-1 for none"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> NDArray[np.intp]:
        """Positions of windows that have a label."""
        return np.flatnonzero(self.labels != UNLABELLED)

    @property
    def unlabelled(self) -> NDArray[np.intp]:
        """Positions of windows that have none."""
        return np.flatnonzero(self.labels == UNLABELLED)

    @property
    def nbytes(self) -> int:
        """Bytes of windows and labels."""
        return self.inputs.nbytes + self.labels.nbytes

    def subset(self, positions: NDArray[np.intp]) -> TrainingData:
        """Copies of these windows, in this order."""
        return TrainingData(self.inputs[positions], self.labels[positions])

    def with_more(self, other: TrainingData | None) -> TrainingData:
        """These windows, then the other ones."""
        if other is None or not len(other):
            return self
        if other.inputs.shape[1:] != self.inputs.shape[1:]:
            raise UsageError(
                f"training data: windows of shape {other.inputs.shape[1:]} cannot be joined to "
                f"windows of shape {self.inputs.shape[1:]}"
            )
        return TrainingData(
            np.concatenate([self.inputs, other.inputs]),
            np.concatenate([self.labels, other.labels]),
        )


def empty_data(shape: tuple[int, ...]) -> TrainingData:
    """No windows, of this shape."""
    return TrainingData(np.zeros((0, *shape), np.float32), np.zeros(0, np.int64))


def check_fits(data: TrainingData, options: ModelOptions) -> None:
    """Refuse a model that the device's data does not match.

    Raises:
        RefusedUpdateError: the windows have another shape than the model's input, or a label is
            beyond its classes.
    """
    if data.inputs.shape[1:] != options.input_shape:
        raise RefusedUpdateError(
            f"the model {options.name} takes windows of shape {options.input_shape}, the data "
            f"here has {data.inputs.shape[1:]}; the federation is for other sensors"
        )
    if len(data) and data.labels.max() >= options.classes:
        raise RefusedUpdateError(
            f"the data here has label {data.labels.max()}, the model {options.name} knows "
            f"{options.classes} classes (0 to {options.classes - 1})"
        )


def check_array(name: str, array: Any, dtype: type[np.generic]) -> None:
    """Refuse anything but an array of this type.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype):
        seen = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise UsageError(f"training data: {name} is {seen}, expected {np.dtype(dtype)}")
