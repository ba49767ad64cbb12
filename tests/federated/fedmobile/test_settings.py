"""Settings: a round trip through JSON; everything else is named and refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from penstock.errors import FormatError, UsageError
from penstock.federated.fedmobile.settings import FedMobileSettings


def test_round_trip() -> None:
    changed = FedMobileSettings(
        consistency=0.5, threshold=0.9, teacher="ema", augment=False, exemplars_per_class=3
    )
    assert FedMobileSettings.from_json(changed.to_json()) == changed
    assert FedMobileSettings.from_json("{}") == FedMobileSettings()
    assert FedMobileSettings.from_json('{"temperature": 3}').temperature == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected an object"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"thresh": 0.5}', "no setting 'thresh'"),
        ('{"threshold": "0.5"}', "threshold is a str, expected float"),
        ('{"augment": 1}', "augment is a int, expected bool"),
        ('{"exemplars_per_class": true}', "bool, expected int"),
    ],
)
def test_another_format(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        FedMobileSettings.from_json(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 1.1),
        ("consistency", -0.1),
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("distillation", float("inf")),
        ("teacher", "mean"),
        ("confident_weight", 2.0),
        ("exemplars_per_class", -1),
    ],
)
def test_out_of_range(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"fedmobile: {name} is"):
        FedMobileSettings(**{name: value})  # type: ignore[arg-type]
    text = json.dumps({name: value})
    with pytest.raises((UsageError, FormatError), match=name):
        FedMobileSettings.from_json(text)


def test_every_number_has_a_range() -> None:
    from penstock.federated.fedmobile.settings import _RANGES

    numbers = {f.name for f in dataclasses.fields(FedMobileSettings) if f.type in ("float", "int")}
    assert numbers == set(_RANGES)
