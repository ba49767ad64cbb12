"""A simulation's fleet without Ray: each virtual device is asked in this process."""

from __future__ import annotations

from typing import Any

from penstock.federated.server.fleet import Answer, Kind, Node, Request
from penstock.federated.simulation.ray_fleet import RayFleet
from penstock.federated.simulation.samples import Shards
from penstock.federated.simulation.virtual_device import VirtualDevice, VirtualPlan


class FleetInProcess(RayFleet):
    """All but Flower's engine is `RayFleet`'s."""

    def __init__(self, shards: Shards, plan: VirtualPlan, actors: int) -> None:
        self.shards, self.plan, self.actors = shards, plan, 1
        self._backend: Any = None
        self.teacher = None

    def _ask(self, node: Node, request: Request, kind: Kind) -> Answer:
        device = VirtualDevice(self.plan, self.shards, node)
        if kind == "evaluate":
            return device.evaluate(*request), None
        return device.train(*request)
