"""Line and bar plots as inline SVG: readable without scripts, in light and dark, and aloud.

    line_plot("Accuracy", [Series("global", (1, 2, 3), (0.5, 0.7, 0.8))], x="round", y="share")

Colours come from the page's CSS variables --c0 to --c3 (Okabe and Ito's palette, distinct for the
colour-blind); lines differ in their dashes too. Every plot has a <title> and a <desc> with its last
values, and every bar and point a <title> of its own, which browsers show as a tip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 280  # of the view box
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 34, 44  # margins
DASHES = ("", "7 3", "2 3", "9 3 2 3")
COLOURS = len(DASHES)
MOST_POINTS = 60  # of a line that gets marks
STYLE = """
svg.plot{width:100%;height:auto;font:12px system-ui,sans-serif}
svg.plot text{fill:var(--ink)}
svg.plot .soft{fill:var(--soft)}
svg.plot .grid{stroke:var(--rule);stroke-width:1}
svg.plot .axis{stroke:var(--soft);stroke-width:1}
svg.plot .mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3}
svg.plot .line{fill:none;stroke-width:2;stroke-linejoin:round}
""" + "".join(
    f"svg.plot .s{i}{{stroke:var(--c{i})}}svg.plot .f{i}{{fill:var(--c{i})}}"
    for i in range(COLOURS)
)


@dataclass(frozen=True)
class Series:
    """One line, or one set of bars; a None is a gap."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]


def line_plot(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    marks: Sequence[tuple[float, str]] = (),
    floor: float | None = None,
) -> str:
    """Lines over a common axis.

    Args:
        x, y: what the axes are, with the unit.
        marks: upright lines at an x, with a label: where a chunk begins.
        floor: the axis of y begins at this or below; None: at the least value.

    Returns:
        One <svg> element, or an empty text when there is not one value.
    """
    points = [[(a, b) for a, b in zip(s.xs, s.ys, strict=True) if _there(b)] for s in series]
    flat = [point for line in points for point in line]
    if not flat:
        return ""
    xs = [float(a) for a, _ in flat]
    ys = [float(b) for _, b in flat if b is not None] + ([] if floor is None else [floor])
    frame = _Frame(min(xs), max(xs), ticks(min(ys), max(ys)))
    body = frame.axes(x, y)
    whole = all(value == int(value) for value in xs)
    body += frame.x_ticks(_whole_ticks(min(xs), max(xs)) if whole else ticks(min(xs), max(xs)))
    for at, label in marks:
        if frame.x0 <= at <= frame.x1:
            left = frame.x(at)
            body.append(f'<path class="mark" d="M{left:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
            body.append(
                f'<text class="soft" x="{left + 3:.1f}" y="{TOP + 10}">{escape(label)}</text>'
            )
    for number, (one, found) in enumerate(zip(series, points, strict=True)):
        colour, dash = number % COLOURS, DASHES[number % COLOURS]
        for run in _runs(one):
            path = "L".join(f"{frame.x(a):.1f} {frame.y(b):.1f}" for a, b in run)
            style = f' stroke-dasharray="{dash}"' if dash else ""
            body.append(f'<path class="line s{colour}"{style} d="M{path}"/>')
        if len(found) <= MOST_POINTS:
            for a, b in found:
                if b is not None:
                    tip = f"{one.name}, {x} {_number(a)}: {_number(b)}"
                    body.append(
                        f'<circle class="f{colour}" cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" '
                        f'r="3"><title>{escape(tip)}</title></circle>'
                    )
    body += _legend([one.name for one in series], dashed=True)
    said = [
        f"{one.name}: {_number(found[-1][1] or 0.0)} at last"
        for one, found in zip(series, points, strict=True)
        if found
    ]
    return _svg(title, f"Lines over {x}, in {y}. {'; '.join(said)}.", body)


def bar_plot(title: str, labels: Sequence[str], series: Sequence[Series], *, x: str, y: str) -> str:
    """Groups of bars, one group a label; `xs` of the series are not used.

    Returns:
        One <svg> element, or an empty text when there is not one value.
    """
    values = [value for one in series for value in one.ys if _there(value) and value is not None]
    if not values:
        return ""
    frame = _Frame(0, len(labels), ticks(min(0.0, *values), max(0.0, *values)))
    body = frame.axes(x, y)
    group = (WIDTH - LEFT - RIGHT) / len(labels)
    bar = min(40.0, group * 0.8 / len(series))
    for index, label in enumerate(labels):
        middle = LEFT + group * (index + 0.5)
        for number, one in enumerate(series):
            value = one.ys[index]
            if value is None or not _there(value):
                continue
            left = middle + bar * (number - len(series) / 2)
            top, bottom = sorted((frame.y(value), frame.y(0.0)))
            tip = f"{label}, {one.name}: {_number(value)}"
            body.append(
                f'<rect class="f{number % COLOURS}" x="{left:.1f}" y="{top:.1f}" '
                f'width="{bar * 0.92:.1f}" height="{max(bottom - top, 0.5):.1f}">'
                f"<title>{escape(tip)}</title></rect>"
            )
        every = max(1, math.ceil(len(labels) * (8 * max(map(len, labels)) + 8) / (WIDTH - LEFT)))
        if index % every == 0:
            body.append(_text(middle, HEIGHT - BOTTOM + 16, _short(label), "middle", "soft"))
    body += _legend([one.name for one in series], dashed=False)
    said = f"from {_number(min(values))} to {_number(max(values))}"
    return _svg(title, f"{len(labels)} groups of bars by {x}, in {y}, {said}.", body)


def ticks(least: float, most: float, about: int = 5) -> list[float]:
    """Round numbers that enclose a range: steps of 1, 2 or 5 times a power of ten."""
    if not most - least > 1e-9 * max(abs(least), abs(most)):  # or steps are lost in the 12 digits
        pad = abs(least) / 2 or 0.5
        least, most = least - (pad if least < 0 or least > 1 else 0), most + pad
    rough = (most - least) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    """From values to places on the view box."""

    x0: float
    x1: float
    levels: list[float]

    def x(self, value: float) -> float:
        span = self.x1 - self.x0
        share = (value - self.x0) / span if span else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.levels[0], self.levels[-1]
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x: str, y: str) -> list[str]:
        body = []
        for level in self.levels:
            at = self.y(level)
            body.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
            body.append(_text(LEFT - 6, at + 4, _number(level), "end", "soft"))
        body.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
        body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x, "middle", "soft"))
        middle = (TOP + HEIGHT - BOTTOM) / 2
        body.append(
            f'<text class="soft" text-anchor="middle" transform="translate(13 {middle:.0f}) '
            f'rotate(-90)">{escape(y)}</text>'
        )
        return body

    def x_ticks(self, values: Sequence[float]) -> list[str]:
        return [
            _text(self.x(value), HEIGHT - BOTTOM + 16, _number(value), "middle", "soft")
            for value in values
            if self.x0 <= value <= self.x1
        ]


def _runs(series: Series) -> list[list[tuple[float, float]]]:
    """Stretches of a line without a gap."""
    made: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(series.xs, series.ys, strict=True):
        if b is not None and math.isfinite(b):
            made[-1].append((float(a), float(b)))
        elif made[-1]:
            made.append([])
    return [run for run in made if len(run) > 1]


def _whole_ticks(least: float, most: float) -> list[float]:
    step = max(1, math.ceil((most - least) / 10))
    step = next(m for m in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, step) if m >= step)
    first = math.ceil(least / step) * step
    return [least, *range(first + (first == least) * step, int(most) + 1, step)]


def _legend(names: Sequence[str], dashed: bool) -> list[str]:
    body, left = [], float(LEFT)
    for number, name in enumerate(names):
        colour, dash = number % COLOURS, DASHES[number % COLOURS] if dashed else ""
        style = f' stroke-dasharray="{dash}"' if dash else ""
        if dashed:
            body.append(f'<path class="line s{colour}"{style} d="M{left:.0f} 18h22"/>')
        else:
            body.append(f'<path class="f{colour}" d="M{left + 8:.0f} 12h12v12h-12z"/>')
        body.append(_text(left + 27, 22, name, "start", ""))
        left += 27 + 7 * len(name) + 18
    return body


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, description: str, body: Sequence[str]) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(body)}</svg>"
    )


def _there(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: float) -> str:
    """Short: 0.853, 1,200, 3.4e+06."""
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.4g}"


def _short(label: str) -> str:
    return label if len(label) <= 10 else f"{label[:8]}…"
