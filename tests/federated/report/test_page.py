"""The page: whole in one file, well-formed, nothing from the network, everything escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.federated.report.page import page, write_page
from penstock.federated.report.records import RoundRecord
from penstock.federated.report.summary import summarise
from penstock.federated.report.svg_plot import Series, bar_plot, line_plot, ticks

EVIL = '"><script>alert(1)</script>&<svg onload=x'
VOID = {"meta", "br", "link", "img", "hr", "input"}
SVG = "{http://www.w3.org/2000/svg}"


class Reader(HTMLParser):
    """Tags that are opened and closed, and every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def records(count: int = 8, devices: int = 3, **more: Any) -> list[RoundRecord]:
    names = [f"{i:016x}" for i in range(devices)]
    return [
        RoundRecord(
            "a" * 16,
            n,
            (n - 1) // 4,
            "fedconv",
            tuple(names),
            loss=1 / n,
            accuracy=0.4,
            global_accuracy=0.5 + 0.01 * n,
            global_macro_f1=0.5,
            bytes_down=dict.fromkeys(names, 1000),
            bytes_up=dict.fromkeys(names, 500),
            server_seconds=0.5,
            device_seconds=dict.fromkeys(names, 1.0),
            device_peak_bytes=dict.fromkeys(names, 1 << 20),
            epsilon=0.1 * n,
            figures={f"chunk_macro_f1/{c}": 0.6 - 0.05 * n for c in range((n - 1) // 4 + 1)},
            **more,
        )
        for n in range(1, count + 1)
    ]


def test_the_page_has_every_plot_and_is_whole(tmp_path: Path) -> None:
    write_page(summarise(records()), tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    reader = read(text)
    assert reader.seen.count("svg") == 10
    assert reader.seen.count("table") == 3
    assert not {"script", "link", "img", "iframe"} & set(reader.seen)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import", text)
    assert not [name for name, _ in reader.attributes if name.startswith("on") or name == "src"]
    for heading in ("Forgetting", "Participation", "Peak memory by device", "Seconds by round"):
        assert heading in reader.text


def test_plots_are_xml_with_text_alternatives() -> None:
    text = page(summarise(records()))
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    for plot in plots:
        root = ElementTree.fromstring(plot)
        assert root.get("role") == "img" and root.get("aria-label")
        title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
        assert title is not None and title.text
        assert description is not None and description.text


def test_everything_that_came_from_outside_is_escaped() -> None:
    hostile = records(2, refused={EVIL: EVIL})
    hostile = [
        RoundRecord(**{**vars(r), "algorithm": EVIL, "devices": (EVIL,), "bytes_up": {EVIL: 5}})
        for r in hostile
    ]
    text = page(summarise(hostile))
    reader = read(text)
    assert "<script" not in text and "script" not in reader.seen
    assert EVIL in reader.text


def test_a_run_with_one_round_and_nothing_measured_has_a_page() -> None:
    bare = RoundRecord("b" * 16, 1, 0, "fedavg", ())
    reader = read(page(summarise([bare])))
    assert "accuracy" in reader.text


def test_a_thousand_devices_do_not_make_a_thousand_bars() -> None:
    text = page(summarise(records(2, devices=1000)))
    assert len(text) < 150_000
    assert "The 40 of 1000 devices" in read(text).text


def test_a_gap_in_a_line_is_a_gap() -> None:
    line = Series("x", (1, 2, 3, 4, 5), (0.1, 0.2, None, 0.3, 0.4))
    root = ElementTree.fromstring(line_plot("t", [line], x="round", y="y"))
    drawn = [path for path in root.iter(f"{SVG}path") if path.get("class") == "line s0"]
    assert len(drawn) == 3  # two stretches, and the legend
    assert len(list(root.iter(f"{SVG}circle"))) == 4


def test_bars_stand_on_zero_and_go_below_it() -> None:
    root = ElementTree.fromstring(
        bar_plot("t", ["a", "b"], [Series("f", (), (0.5, -0.5))], x="x", y="y")
    )
    up, down = root.iter(f"{SVG}rect")
    bottom = float(up.get("y") or 0) + float(up.get("height") or 0)
    assert bottom == pytest.approx(float(down.get("y") or 0), abs=0.2)
    assert float(up.get("height") or 0) == pytest.approx(float(down.get("height") or 0), abs=0.2)


def test_without_a_value_there_is_no_plot() -> None:
    assert line_plot("t", [Series("x", (1, 2), (None, None))], x="x", y="y") == ""
    assert bar_plot("t", ["a"], [Series("x", (), (None,))], x="x", y="y") == ""


@given(
    st.floats(-1e9, 1e9, allow_nan=False),
    st.floats(0, 1e9, allow_nan=False).map(lambda width: width if width > 1e-6 else 0.0),
)
@example(1e8, 0.001953125)  # steps that twelve digits do not tell apart
def test_ticks_enclose_the_range_and_are_few(least: float, width: float) -> None:
    most = least + width
    found = ticks(least, most)
    slack = 1e-6 * max(1.0, abs(least), abs(most))
    assert found[0] <= least + slack and found[-1] >= most - slack
    assert 2 <= len(found) <= 12
    assert found == sorted(set(found))
