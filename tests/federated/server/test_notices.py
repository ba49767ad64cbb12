"""Devices hear from the server why their work does not count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from penstock.errors import RefusedUpdateError
from penstock.federated.protocol import Notice
from penstock.federated.server.acceptance import Asked
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
        102: Notice(),
        103: Notice(left_out="its data has shape [4], the model takes [11]"),
        105: Notice(left_out="speaks protocol 9"),
    }, "d4 knows it itself"
    well = {node for node, notice in third.items() if notice == Notice()}
    assert well == {100, 101, 102}, "the others' updates count again"
    assert set(third) - well == {103, 105}


def given(notices: Notices) -> Mapping[Node, Notice]:
    fleet = TellingFleet({})
    notices.give(fleet)
    return fleet.told[-1]


def test_that_all_is_well_is_said_by_a_server_that_knows_it() -> None:
    """One that was just started does not: a device keeps what the one before it said."""
    notices, able = Notices(), [(1, capabilities("d1")), (2, capabilities("d2"))]
    misfit = "its data has shape [4], the model takes [11]"
    notices.after_query(able, {"d2": misfit})
    assert given(notices) == {2: Notice(left_out=misfit)}, "of d1's last update nothing is known"
    notices.after_query(able, {})
    assert given(notices) == {2: Notice()}, "it was mended"
    notices.after_round({1: Asked("d1", None, None)}, {}, {})  # type: ignore[arg-type]
    assert given(notices) == {1: Notice(), 2: Notice()}
    away = [able[0], (2, capabilities("d2", ready=False, reason="on battery"))]
    notices.after_query(away, {"d2": "on battery"})
    assert given(notices) == {1: Notice()}, "whether d2 fits was not looked at"


def test_nodes_that_left_are_forgotten() -> None:
    notices, able = Notices(), [(1, capabilities("d1"))]
    asked = {node: Asked(f"d{node}", None, None) for node in (1, 2)}  # type: ignore[arg-type]
    notices.after_round(asked, {}, {"d1": "late", "d2": "late"})
    notices.after_query([], {})
    assert given(notices) == {1: Notice(refused="late"), 2: Notice(refused="late")}, "busy, perhaps"
    notices.after_round({1: asked[1]}, {}, {"d1": "late"})
    notices.after_query(able, {})
    assert given(notices) == {1: Notice(refused="late")}
    assert notices._judged == {1}, "a server that goes on for months keeps no others"


def test_what_the_device_said_is_not_said_back() -> None:
    from dataclasses import replace

    from penstock.federated.protocol import TrainResult

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
