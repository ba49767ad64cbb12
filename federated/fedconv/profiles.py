"""FedConv's settings: `PAPER`, as the authors' release has them, and `DEFAULT`, the right ones.

What differs is a switch each, so that every defect of the release can be measured by itself. Only
the choice of a model by its accuracy on test data is not offered: both profiles choose by the
public hold-out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.errors import UsageError


@dataclass(frozen=True)
class Profile:
    """Settings of the server's work in a round.

    Attributes:
        name: for reports.
        server_epochs, filter_epochs, upload_epochs, dilation_epochs, weight_epochs: over the public
            training samples: of the global model, of each ratio's compression filters, of each
            model that came back, of each device's dilation filters, of the aggregation weights.
        server_rate, filter_rate, upload_rate, weight_rate: Adam's; dilation has the filters' rate.
        halve_every: rounds after which filters' and weights' rates are halved, down to
            `least_rate`; 0: never.
        batch: public samples in a step.
        server_trains: "begin": the global model is trained at the beginning of each round, as in
            the release, so that what a round ends with is untrained; "end": before the first round
            and at the end of each, so that it is trained.
        start: "slice": compression is the plain slice plus a learned correction that starts at
            zero, dilation pads with zeros in the same way; "random": the filter is all, and starts
            at random.
        nonlinearity: how often the modified leaky ReLU is applied to what a filter gives; the
            release does it twice by mistake, which leaves weights of one sign only.
        flatten_linear: one kernel over the flattened inputs of a linear layer, channels and
            positions mixed, instead of one kernel a position over the channels.
        dilates: what comes back from a device: "change": only what its training changed is dilated
            and weighed, on top of the global model, so that a device that changes nothing changes
            nothing; "model": the whole model, with the compression's corrections in it.
        weights: how aggregation weights start: "coverage": HeteroFL's mean of the devices that hold
            a value; "ones": the plain mean; "normal": drawn from N(0, 1) as in the release.
        recompute_norm: BatchNorm's statistics are taken anew from the public samples; else cut off
            and padded with 0 and 1.
        gate: a filter, and the weighting, must beat what it replaces on the public hold-out.
        restarts: fresh filters tried before the slice is taken.
        round_seconds: limit on the server's own work in one round; 0: none.
        keep_devices: devices whose dilation filters and weights are kept, the last seen ones.
    """

    name: str
    server_epochs: int
    filter_epochs: int
    upload_epochs: int
    dilation_epochs: int
    weight_epochs: int
    server_rate: float
    filter_rate: float
    upload_rate: float
    weight_rate: float
    halve_every: int
    least_rate: float
    batch: int
    server_trains: Literal["begin", "end"]
    start: Literal["slice", "random"]
    nonlinearity: int
    flatten_linear: bool
    dilates: Literal["change", "model"]
    weights: Literal["coverage", "ones", "normal"]
    recompute_norm: bool
    gate: bool
    restarts: int
    round_seconds: float
    keep_devices: int = 1024

    def __post_init__(self) -> None:
        for name in ("server", "filter", "upload", "dilation", "weight"):
            epochs = getattr(self, f"{name}_epochs")
            if epochs < 0:
                raise UsageError(f"fedconv: {name}_epochs is {epochs}, expected 0 or more")
        for name in ("server_rate", "filter_rate", "upload_rate", "weight_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"fedconv: {name} is {getattr(self, name)}, expected 0 to 1")
        if self.batch < 2 or not 0 <= self.nonlinearity <= 2 or self.restarts < 0:
            raise UsageError(
                f"fedconv: batch is {self.batch}, nonlinearity {self.nonlinearity}, restarts "
                f"{self.restarts}; expected 2 or more, 0 to 2, 0 or more"
            )
        if self.keep_devices < 1 or not self.round_seconds >= 0:
            raise UsageError(
                f"fedconv: keep_devices is {self.keep_devices}, round_seconds "
                f"{self.round_seconds}; expected 1 or more and 0 or more"
            )

    def rate(self, rate: float, round_number: int) -> float:
        """A filter's or weight's learning rate in this round."""
        if not self.halve_every:
            return rate
        return max(rate * 0.5 ** ((round_number - 1) // self.halve_every), self.least_rate)


DEFAULT = Profile(
    name="default",
    server_epochs=16,
    filter_epochs=3,
    upload_epochs=0,
    dilation_epochs=0,
    weight_epochs=2,
    server_rate=3e-4,
    filter_rate=3e-3,
    upload_rate=3e-4,
    weight_rate=1e-3,
    halve_every=25,
    least_rate=1e-4,
    batch=32,
    server_trains="end",
    start="slice",
    nonlinearity=1,
    flatten_linear=False,
    dilates="change",
    weights="coverage",
    recompute_norm=True,
    gate=True,
    restarts=1,
    round_seconds=0.0,
)

PAPER = Profile(
    name="paper",
    server_epochs=10,
    filter_epochs=20,
    upload_epochs=10,
    dilation_epochs=20,
    weight_epochs=20,
    server_rate=1e-4,
    filter_rate=1e-3,
    upload_rate=1e-4,
    weight_rate=1e-3,
    halve_every=25,
    least_rate=1e-4,
    batch=32,
    server_trains="begin",
    start="random",
    nonlinearity=2,
    flatten_linear=True,
    dilates="model",
    weights="normal",
    recompute_norm=False,
    gate=False,
    restarts=0,
    round_seconds=0.0,
)


def profile_by_name(name: str) -> Profile:
    """DEFAULT or PAPER.

    Raises:
        UsageError: there is no such profile.
    """
    for profile in (DEFAULT, PAPER):
        if profile.name == name:
            return profile
    raise UsageError(f"fedconv: profile is {name!r}, expected default or paper")
