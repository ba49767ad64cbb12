"""What values a tensor takes, seen sample by sample, in memory that does not grow.

`Observer` watches one tensor; `minmax_range`, `percentile_range` and `entropy_range` choose from
what it saw the range that a quantized tensor shall represent.
"""

from penstock.quant.observers.entropy import entropy_range
from penstock.quant.observers.histogram import StreamingHistogram
from penstock.quant.observers.observer import Observer
from penstock.quant.observers.ranges import ValueRange, minmax_range, percentile_range

__all__ = [
    "Observer",
    "StreamingHistogram",
    "ValueRange",
    "entropy_range",
    "minmax_range",
    "percentile_range",
]
