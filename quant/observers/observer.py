"""Watches one tensor during calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.quant.observers.histogram import BINS, StreamingHistogram


class Observer:
    """What a tensor's values were.

    Attributes:
        tensor: its name.
        histogram: of the values so far.
    """

    def __init__(self, tensor: str, bins: int = BINS) -> None:
        self.tensor = tensor
        self.histogram = StreamingHistogram(bins)

    def observe(self, values: NDArray[Any], sample: str) -> None:
        """Look at the tensor's values for one sample.

        Raises:
            UsageError: NaN or infinity among them.
        """
        values = values if values.dtype.kind == "f" else np.asarray(values, np.float64)
        # min and max carry NaN and infinity; a pass over the values for each would cost a third.
        if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            kind = "NaN" if np.isnan(values).any() else "infinity"
            bad = int(values.size - np.isfinite(values).sum())
            raise UsageError(
                f"calibration: sample '{sample}' gives {kind} in tensor '{self.tensor}' ({bad} of "
                f"{values.size} values are not finite); take the sample out or mend it"
            )
        self.histogram.add(values)
