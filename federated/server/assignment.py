"""Which devices take part in a round, and how wide a model each of them gets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.errors import PenstockError
from penstock.federated.models.registry import ModelOptions, model_spec
from penstock.federated.printable import printable
from penstock.federated.protocol import Capabilities
from penstock.federated.server.fleet import Node

BYTES_PER_PARAMETER = 16  # float32 weights, gradients and Adam's two moments


@dataclass(frozen=True)
class Member:
    """A device that can be asked: where it is and what it said."""

    node: Node
    capabilities: Capabilities

    @property
    def device(self) -> str:
        """Its stable identity."""
        return self.capabilities.device


def sort_out(
    answers: Sequence[tuple[Node, Capabilities | PenstockError]], model: ModelOptions
) -> tuple[dict[str, Member], dict[str, str]]:
    """Devices that are ready, by identity, and those that sit out, with the reason.

    Two nodes that say they are the same device both sit out: one of them is an impostor or a copy
    of the other's disk, and its samples would count twice.
    """
    ready: dict[str, Member] = {}
    out: dict[str, str] = {}
    for node, answer in sorted(answers, key=lambda pair: pair[0]):
        if isinstance(answer, PenstockError):
            out[f"node {node}"] = printable(str(answer))
            continue
        device = answer.device
        reason = _unfit(answer, model)
        if device in ready or device in out:
            ready.pop(device, None)
            out[device] = "two nodes answer as this device; each device needs a key of its own"
        elif reason:
            out[device] = printable(reason)
        else:
            ready[device] = Member(node, answer)
    return ready, out


def _unfit(device: Capabilities, model: ModelOptions) -> str:
    """Why this device cannot take part now; empty: it can."""
    if not device.ready:
        return device.reason or "not ready"
    if device.labelled + device.unlabelled == 0:
        return "holds no samples; add some with `penstock federated ingest`"
    if not 0 < device.most_ratio <= 1:
        return f"most_ratio is {device.most_ratio}, expected more than 0 and at most 1"
    try:
        shape, labels = json.loads(device.input_shape), json.loads(device.labels)
    except (ValueError, RecursionError):
        return "input_shape and labels are not JSON lists"
    if not isinstance(shape, list) or not isinstance(labels, list):
        return "input_shape and labels are not JSON lists"
    if shape and tuple(shape) != model.input_shape:
        return f"its data has shape {shape}, the model takes {list(model.input_shape)}"
    if labels and len(labels) != model.classes:
        return f"its data has {len(labels)} labels, the model has {model.classes} classes"
    return ""


def select(devices: Sequence[str], fraction: float, least: int, seed: int) -> list[str]:
    """A random part of the devices, sorted; the same for the same devices and seed.

    Args:
        fraction: of the devices, rounded up.
        least: take at least so many, where there are so many.
    """
    wanted = max(least, int(np.ceil(fraction * len(devices))))
    order = np.random.default_rng(seed).permutation(len(devices))
    chosen = order[: min(wanted, len(devices))]
    ranked = sorted(devices)
    return sorted(ranked[i] for i in chosen)


def assign_ratios(
    members: Mapping[str, Member],
    mix: Sequence[tuple[float, float]],
    held: Mapping[str, float],
    model: ModelOptions,
) -> dict[str, float]:
    """The width of each device's model.

    A device keeps the ratio it has (FedConv's dilation filters belong to device and ratio), unless
    it can no longer hold it. New devices fill the mix: the strongest get the widest model that
    still has room and fits their `most_ratio` and memory; a device that fits none gets the
    narrowest of the mix that its `most_ratio` allows, or else `most_ratio` itself.

    Args:
        mix: ratio and the share of devices that should have it.
        held: ratios given before, of any device.
    """
    ratios = sorted({ratio for ratio, _ in mix}, reverse=True)
    bytes_at = {r: BYTES_PER_PARAMETER * model_spec(model).at(r).parameters() for r in ratios}
    given: dict[str, float] = {}
    for device, member in members.items():
        before = held.get(device)
        if before is not None and before <= member.capabilities.most_ratio:
            given[device] = before
    known = {**{d: r for d, r in held.items() if d not in members}, **given}
    total = len({*held, *members})
    room = {ratio: round(share * total) for ratio, share in mix}
    for ratio in known.values():
        room[ratio] = room.get(ratio, 0) - 1
    new = [member for device, member in members.items() if device not in given]
    new.sort(
        key=lambda m: (-(m.capabilities.memory_bytes or math.inf), -m.capabilities.cores, m.device)
    )
    for member in new:
        able = member.capabilities
        memory = able.memory_bytes or math.inf  # 0: the device sets no bound
        fits = [r for r in ratios if r <= able.most_ratio and bytes_at[r] <= memory]
        free = [ratio for ratio in fits if room[ratio] > 0]
        if free:
            chosen = free[0]
        elif fits:  # the mix is full: the one that lacks most
            chosen = max(fits, key=lambda ratio: (room[ratio], -ratio))
        else:
            allowed = [ratio for ratio in ratios if ratio <= able.most_ratio]
            chosen = allowed[-1] if allowed else able.most_ratio
        given[member.device] = chosen
        room[chosen] = room.get(chosen, 0) - 1
    return given
