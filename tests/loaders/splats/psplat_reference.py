"""A second reader of .psplat files, written from docs/psplat-format.md alone: plain Python, slow.

It imports nothing of Penstock. `read(path)` gives, of each group, the positions and the summed
columns of each attribute, in float64, before clipping and exponentials.
"""

from __future__ import annotations

import copy
import struct
from dataclasses import dataclass, field
from math import expm1
from pathlib import Path
from typing import Any

WIDTHS = [3, 4, 3, 1, 1, 3, 3, 45, 3, 1, 1, 6]
NAMES = [
    "scale", "rotation", "smallest_three", "largest", "opacity", "dc", "opponent", "rest",
    "displacement", "t_center", "t_sigma", "appearance",
]  # fmt: skip


class Model:
    def __init__(self, symbols: int) -> None:
        n = symbols
        self.c = [i * ((32752 + n) // n) if i < n else 32752 + i for i in range(16)] + [32768]
        self.seen = 0

    def learn(self, symbol: int, slowest: int) -> None:
        rate = min((self.seen + 8).bit_length() - 1, slowest)
        for i in range(16):
            target = i if i <= symbol else 32752 + i
            self.c[i] += min(32767, target - self.c[i] + (1 << rate - 1)) >> rate
        self.seen = min(self.seen + 1, 504)


class Family:
    def __init__(self, symbols: int) -> None:
        self.symbols = symbols
        self.base = Model(symbols)
        self.members: dict[int, Model] = {}


class Payload:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.states = list(struct.unpack("<4I", data[:16]))
        self.at = 16

    def turn(self) -> None:
        self.states = [*self.states[1:], self.states[0]]

    def _go_on(self, x: int) -> None:
        if x < 1 << 16:
            x = x << 16 | struct.unpack_from("<H", self.data, self.at)[0]
            self.at += 2
        self.states[3] = x

    def symbol(self, model: Model, slowest: int, learns: bool = True) -> int:
        self.turn()
        x = self.states[3]
        slot = x % 32768
        s = max(i for i in range(16) if model.c[i] <= slot)
        self._go_on((model.c[s + 1] - model.c[s]) * (x >> 15) + slot - model.c[s])
        if learns:
            model.learn(s, slowest)
        return s

    def member(self, family: Family, context: int, slowest: int, spares: int = 1 << 62) -> int:
        model = family.members.setdefault(context, Model(family.symbols))
        if model.seen == 0:
            model.c = list(family.base.c)
        learns = model.seen < spares
        s = self.symbol(model, slowest, learns)
        if learns and model.seen <= 24:
            family.base.learn(s, slowest)
        return s

    def raw(self, bits: int) -> int:
        x = self.states[3]
        self._go_on(x >> bits)
        return int(x % (1 << bits))

    def finish(self) -> None:
        assert self.states == [1 << 16] * 4
        assert not any(self.data[self.at :])


@dataclass
class Coding:
    size: int
    fields: bytes
    models: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.mode, self.low, self.predictor, self.reference, self.buckets,
         self.reference_buckets, self.slowest, self.sparse) = self.fields  # fmt: skip
        assert self.sparse <= (self.mode in (0, 3))
        self.width = (self.size - 1).bit_length()
        self.known = 0

    def model(self, name: Any, symbols: int) -> Model:
        model: Model = self.models.setdefault(name, Model(symbols))
        return model

    def spares(self, i: int) -> int:
        """Symbols after which a model does not learn from number i."""
        return (1 << self.slowest) - 8 if self.sparse and i % 4 else 1 << 62

    def family(self, name: str, symbols: int) -> Family:
        family: Family = self.models.setdefault(name, Family(symbols))
        return family


def channel(
    p: Payload,
    coding: Coding,
    neighbours: list[int],
    r: list[int] | None,
    reference_size: int,
) -> list[int]:
    """The numbers of a channel."""
    v: list[int] = []
    if coding.size == 1:
        return [0] * len(neighbours)
    rw = (reference_size - 1).bit_length()
    kinds: list[int] = []
    for i, n in enumerate(neighbours):
        bucket = 0
        if coding.reference_buckets:
            assert r is not None
            bucket = r[i] >> max(0, rw - coding.reference_buckets)
        if coding.mode == 2:
            v.append(_fresh(p, coding, n, v, kinds))
            continue
        predicted = _predicted(coding, neighbours, v, r, rw, i)
        if coding.mode in (0, 3):
            context = predicted >> max(0, coding.width - coding.buckets) if coding.buckets else 0
            of_mode = _direct if coding.mode == 0 else _narrow
            v.append(of_mode(p, coding, (context << coding.reference_buckets) + bucket, i))
        else:
            context = kinds[n] if n >= 0 else 0
            u = _magnitude(p, coding, "top", (context << coding.reference_buckets) + bucket, kinds)
            e = u // 2 if u % 2 == 0 else -(u + 1) // 2
            v.append((predicted + e) % coding.size)
    return v


def _predicted(
    coding: Coding, near: list[int], v: list[int], r: list[int] | None, rw: int, i: int
) -> int:
    top = coding.size - 1
    if coding.predictor == 5:
        assert r is not None
        shift = rw - coding.width
        return min(r[i] >> shift if shift >= 0 else r[i] << -shift, top)
    p = near[i]
    if p < 0 or coding.predictor == 0:
        return coding.size // 2
    chain = [p]
    for _ in range(3):
        chain.append(near[chain[-1]] if near[chain[-1]] >= 0 else chain[-1])
    if coding.predictor == 1:
        return v[p]
    if coding.predictor == 2:
        return (v[p] + v[chain[1]] + 1) // 2
    if coding.predictor == 3:
        return (sum(v[k] for k in chain) + 2) // 4
    assert r is not None
    return min(max(v[p] + r[i] - r[p], 0), top)


def _direct(p: Payload, coding: Coding, context: int, i: int) -> int:
    left, number = coding.width - coding.low, 0
    spares = coding.spares(i)
    if left == 0:
        p.turn()
    name: Any = "top"
    while left > 0:
        bits = min(left, 4)
        if name == "top":
            number = p.member(coding.family("top", 1 << bits), context, coding.slowest, spares)
        else:
            model = coding.model(name, 1 << bits)
            number = number << bits | p.symbol(model, coding.slowest, model.seen < spares)
        name = (coding.width - coding.low - left, number)
        left -= bits
    if coding.low:
        number = number << coding.low | p.raw(coding.low)
    assert number < coding.size
    return number


def _narrow(p: Payload, coding: Coding, context: int, i: int) -> int:
    symbol = p.member(coding.family("numbers", 16), context, coding.slowest, coding.spares(i))
    number = coding.low + symbol if symbol < 15 else p.raw(coding.width)
    assert number < coding.size
    return number


def _magnitude(p: Payload, coding: Coding, name: str, context: int, kinds: list[int]) -> int:
    kind = p.member(coding.family(name, 16), context, coding.slowest)
    kinds.append(kind)
    if kind == 15:
        return p.raw(16)
    if kind < 2:
        return kind
    modelled = min(kind - 1, 3)
    number = 1 << modelled | p.symbol(coding.model(("below", kind), 1 << modelled), coding.slowest)
    rest = kind - 1 - modelled
    return number << rest | p.raw(rest) if rest else number


def _fresh(p: Payload, coding: Coding, n: int, v: list[int], kinds: list[int]) -> int:
    kind = p.member(coding.family("kinds", 3), 0 if n < 0 else 1 + kinds[n], coding.slowest)
    kinds.append(kind)
    if kind == 0:
        coding.known += 1
        return coding.known - 1
    if kind == 1:
        return v[n]
    return coding.known - 1 - _magnitude(p, coding, "distance", 0, [])


class Positions:
    def __init__(self) -> None:
        self.shared = Family(11)
        self.models: dict[Any, Model] = {}

    def codes(
        self, p: Payload, bits: int, modelled: int, slowest: int, kept: list[int]
    ) -> list[int]:
        found: list[int] = []
        last = [0, 0]
        before = 0

        def digit(level: int) -> int:
            return before >> 3 * (bits - 1 - level) & 7

        def symbol(name: Any, symbols: int) -> int:
            return p.symbol(self.models.setdefault(name, Model(symbols)), slowest)

        for k in kept:
            context = 4 * max(last) + min(3, (bits - k) // 2)
            upper = p.member(self.shared, context, slowest)
            shared = 2 * upper + symbol(("low", upper), 2)
            assert shared <= k
            last = [last[1], shared]
            code = before >> 3 * (bits - shared)
            level = shared
            if level < k:
                code = code << 3 | symbol(("differs", digit(level)), 8)
                level += 1
                for place in range(modelled):
                    if level < k:
                        code = code << 3 | symbol(("next", min(place, 2), digit(level)), 8)
                        level += 1
                while level < k:
                    take = min(5, k - level)
                    code = code << 3 * take | p.raw(3 * take)
                    level += take
            before = code << 3 * (bits - k)
            found.append(before)
        return found


def _cell(code: int, bits: int) -> tuple[int, int, int]:
    cell = [0, 0, 0]
    for level in range(bits):
        digit = code >> 3 * (bits - 1 - level) & 7
        cell = [cell[axis] << 1 | digit >> axis & 1 for axis in range(3)]
    return cell[0], cell[1], cell[2]


def _neighbours(cells: list[tuple[int, int, int]], kept: list[int], bits: int) -> list[int]:
    middles = [
        [c + (1 << (bits - k)) // 2 for c in cell] for cell, k in zip(cells, kept, strict=True)
    ]
    found = []
    for i, own in enumerate(middles):
        near, least = -1, 1 << 62
        for j in range(max(0, i - 32), i):
            distance = sum(abs(a - b) for a, b in zip(own, middles[j], strict=True))
            if distance <= least:
                near, least = j, distance
        found.append(near)
    return found


@dataclass
class Group:
    start: float
    end: float
    positions: list[tuple[float, float, float]]
    columns: dict[str, list[list[float]]]


def read(path: Path) -> list[Group]:
    """Every group of the file."""
    data = path.read_bytes()
    h = struct.unpack_from("<8sHHIQIHBBBBBBBB2x6d2dfIQIII8sI", data)
    assert h[0] == b"\x89PSPLAT\n" and h[1] == 1 and h[4] == len(data)
    flags, bits, logarithm, modelled, slowest = h[2], h[10], h[11], h[12], h[13]
    low, step = h[15:18], h[18:21]
    at = 144
    groups = [struct.unpack_from("<2dQIIII", data, at + 40 * k) for k in range(h[6])]
    at += 40 * len(groups)
    entries = [struct.unpack_from("<BBHIII2d8s", data, at + 40 * k) for k in range(h[7])]
    at += 40 * len(entries)
    channels = [struct.unpack_from("<BBHI8s", data, at + 16 * k) for k in range(h[8])]
    books = _books(data[h[25] : h[25] + h[24]], entries)
    learned: Any = None
    found = []
    for number, (start, end, offset, nbytes, count, _, _) in enumerate(groups):
        if number and flags & 2:
            positions, digits, codings = copy.deepcopy(learned)
        else:
            positions = Positions()
            digits = None if flags & 8 else Coding(bits, h[29])
            codings = [Coding(len(books[c[2]]), c[4]) for c in channels]
        p = Payload(data[offset : offset + nbytes])
        kept = [bits] * count
        if digits is not None:
            kept = [k + 1 for k in channel(p, digits, list(range(-1, count - 1)), None, 1)]
        codes = positions.codes(p, bits, modelled, slowest, kept)
        cells = [_cell(code, bits) for code in codes]
        near = _neighbours(cells, kept, bits)
        values: list[list[int]] = []
        for coding in codings:
            r, size = None, 1
            if coding.reference == 254:
                r, size = [k - 1 for k in kept], bits
            elif coding.reference != 255:
                r, size = values[coding.reference], codings[coding.reference].size
            values.append(channel(p, coding, near, r, size))
        p.finish()
        if number == 0:
            learned = (positions, digits, codings)
        columns: dict[str, list[list[float]]] = {}
        for (attribute, first, book, _, _), own in zip(channels, values, strict=True):
            rows = columns.setdefault(
                NAMES[attribute], [[0.0] * WIDTHS[attribute] for _ in range(count)]
            )
            for row, index in zip(rows, own, strict=True):
                for k, number_ in enumerate(books[book][index]):
                    row[first + k] += number_
        places = []
        for cell, k in zip(cells, kept, strict=True):
            u = [low[a] + step[a] * (cell[a] + 2.0 ** (bits - k) / 2) for a in range(3)]
            if logarithm:
                u = [expm1(abs(x)) * (1 if x >= 0 else -1) for x in u]
            places.append((u[0], u[1], u[2]))
        found.append(Group(start, end, places, columns))
    return found


def _books(section: bytes, entries: list[Any]) -> list[list[list[float]]]:
    p = Payload(section) if section else None

    def sheet(rows: int, columns: int, size: int, fields: bytes) -> list[int]:
        assert p is not None
        coding = Coding(size, fields)
        return _sheet(p, coding, rows, columns)

    books = []
    for kind, stored, columns, size, levels, table, low, step, fields in entries:
        numbers: list[float] = []
        if table:
            upper = sheet(table, 1, 65536, bytes([1, 0, 1, 255, 0, 0, 5, 0]))
            lower = sheet(table, 1, 65536, bytes([0, 16, 0, 255, 0, 0, 8, 0]))
            for m in (a << 16 | b for a, b in zip(upper, lower, strict=True)):
                own = m ^ 0x80000000 if m >> 31 else m ^ 0xFFFFFFFF
                numbers.append(struct.unpack("<f", struct.pack("<I", own))[0])
        flat = sheet(size, columns, levels, fields) if stored else list(range(size))
        if kind == 0:
            halves = [m ^ 0x8000 if m >= 0x8000 else m ^ 0xFFFF for m in flat]
            values = [struct.unpack("<e", struct.pack("<H", one))[0] for one in halves]
        elif kind == 1:
            values = [low + m * step for m in flat]
        else:
            values = [numbers[m] for m in flat]
        books.append([values[k * columns : (k + 1) * columns] for k in range(size)])
    if p is not None:
        p.finish()
    return books


def _sheet(p: Payload, coding: Coding, rows: int, columns: int) -> list[int]:
    """Number by number, as the reference is the value before."""
    v: list[int] = []
    if coding.size == 1:
        return [0] * (rows * columns)
    kinds: list[int] = []
    left: list[int] = []
    near = [i - columns if i >= columns else -1 for i in range(rows * columns)]
    rw = coding.width
    for i, n in enumerate(near):
        left.append(v[-1] if v else coding.size // 2)
        predicted = _predicted(coding, near, v, left, rw, i)
        bucket = 0
        if coding.reference_buckets:
            bucket = left[i] >> max(0, rw - coding.reference_buckets)
        if coding.mode in (0, 3):
            context = predicted >> max(0, coding.width - coding.buckets) if coding.buckets else 0
            of_mode = _direct if coding.mode == 0 else _narrow
            v.append(of_mode(p, coding, (context << coding.reference_buckets) + bucket, i))
        else:
            context = kinds[n] if n >= 0 else 0
            u = _magnitude(p, coding, "top", (context << coding.reference_buckets) + bucket, kinds)
            e = u // 2 if u % 2 == 0 else -(u + 1) // 2
            v.append((predicted + e) % coding.size)
    return v
