"""Devices hear from the server why their work does not count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from penstock.errors import RefusedUpdateError
from penstock.federated.protocol import Notice
from penstock.federated.server.fleet import Node
from penstock.federated.server.keyed_fleet import KeyedFleet
from penstock.federated.server.notices import Notices
from tests.federated.server.fake_fleet import FakeFleet, capabilities, plan_of, run_of


@dataclass
class TellingFleet(FakeFleet):
    told: list[Mapping[Node, Notice]] = field(default_factory=list)

    def tell(self, notices: Mapping[Node, Notice]) -> None:
        self.told.append(notices)


def test_the_query_after_tells_who_was_left_out_or_refused(tmp_path: Path) -> None:
    fleet = TellingFleet({100 + i: capabilities(f"d{i}") for i in range(5)})
    fleet.devices[103] = capabilities("d3", input_shape="[4]")
    fleet.devices[104] = capabilities("d4", ready=False, reason="on battery")
    fleet.devices[105] = RefusedUpdateError("speaks protocol 9")  # type: ignore[assignment]
    fleet.behaviours["d0", 1] = lambda task, result, arrays: (result, {})
    fleet.behaviours["d1", 1] = lambda task, result, arrays: None
    run = run_of(tmp_path, fleet, plan_of(rounds=3))
    run.begin()
    run.run()
    first, second, third = fleet.told
    assert first == {}
    assert second == {
        100: Notice(refused="device d0: the answer holds no arrays"),
        101: Notice(refused=f"no answer within {run.plan.devices.deadline_s:g} s"),
        103: Notice(left_out="its data has shape [4], the model takes [11]"),
        105: Notice(left_out="speaks protocol 9"),
    }, "d4 knows it itself"
    assert set(third) == {103, 105}, "the others' updates count again"


def test_what_the_device_said_is_not_said_back() -> None:
    from dataclasses import replace

    from penstock.federated.protocol import TrainResult
    from penstock.federated.server.acceptance import Asked

    notices, fleet = Notices(), TellingFleet({})
    asked = {1: Asked("d1", None, None)}  # type: ignore[arg-type]
    result = TrainResult("d1", "r", 1, refused="label 9")
    notices.after_round(asked, {1: (result, None)}, {"d1": "the device refused: label 9"})
    notices.give(KeyedFleet(fleet, dict))
    notices.after_round(asked, {1: (replace(result, refused=""), None)}, {"d1": "of no run"})
    notices.after_query([], {})
    notices.after_round({}, {}, {})
    notices.give(KeyedFleet(fleet, dict))
    notices.give(FakeFleet({}))  # who cannot tell is not asked to
    assert fleet.told == [{}, {1: Notice(refused="of no run")}]
