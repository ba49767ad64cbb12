"""Memory of one device's processes, and seconds per empty round, ours and stock Flower's."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.federated_daemon_processes import Federation
from benchmarks.federated_daemon_stock import Stock

PATIENCE_S = 600.0


@dataclass(frozen=True)
class Footprint:
    """Bytes of one device: resident, and proportional, which counts shared pages once.

    Attributes:
        idle_*: connected, before any training. training_*: the most that was seen in the rounds.
        round_s: median over the rounds, from one's end to the next one's.
    """

    who: str
    idle_rss: int
    idle_pss: int
    training_rss: int
    training_pss: int
    round_s: float
    rounds: int


def memory(family: Iterable[int]) -> tuple[int, int]:
    """Resident and proportional bytes of these processes."""
    rss = pss = 0
    for pid in family:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    rss += int(line.split()[1]) << 10
                elif line.startswith("Pss:"):
                    pss += int(line.split()[1]) << 10
    return rss, pss


def settled(family: Callable[[], set[int]]) -> tuple[int, int]:
    """Memory of these processes, once all are there and none has grown for five seconds."""
    seen: list[int] = []
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = memory(family())
        seen = [*seen[-9:], found[0]]
        # Each side has two processes: a supervisor and a node, a SuperNode and a SuperExec.
        if len(family()) >= 2 and len(seen) == 10 and max(seen) - min(seen) < 1 << 20:
            return found
        time.sleep(0.5)
    raise RuntimeError(f"the memory did not settle in {PATIENCE_S:g} s")


class Peak:
    """Looks at a device's memory twenty times a second until it is told to stop."""

    def __init__(self, family: Callable[[], set[int]]) -> None:
        self.rss = self.pss = 0
        self._family, self._stop = family, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            rss, pss = memory(self._family())
            self.rss, self.pss = max(self.rss, rss), max(self.pss, pss)

    def end(self) -> tuple[int, int]:
        """The most that was seen."""
        self._stop.set()
        self._thread.join()
        return self.rss, self.pss


def ours(folder: Path, rounds: int) -> Footprint:
    """Three devices under our daemon, our server."""
    federation = Federation(folder, (1.0, 1.0, 1.0), rounds=rounds, epochs=1)
    try:
        device = federation.devices[0]
        federation.start_server()
        # The third device comes later: until then the run waits, and the first is idle.
        for early in federation.devices[:2]:
            early.start()
        status = device.folder / "state" / "status.json"
        federation.wait_for(
            "the first device joins",
            lambda: status.exists() and '"waiting"' in status.read_text(),
            PATIENCE_S,
        )
        idle = settled(device.family)
        peak = Peak(device.family)
        federation.devices[2].start()
        ends = []
        for number in range(1, rounds + 1):
            federation.wait_for_round(number, PATIENCE_S)
            ends.append(time.monotonic())
        most = peak.end()
        federation.finish(PATIENCE_S)
    finally:
        federation.close()
    return _footprint("penstock", idle, most, ends)


def stock(folder: Path, rounds: int) -> Footprint:
    """Three stock SuperNodes, stock FedAvg."""
    flower = Stock(folder, nodes=3, rounds=rounds, epochs=1)
    try:
        flower.start_superlink()
        nodes = [flower.start_supernode(number) for number in range(3)]
        idle = settled(lambda: flower.family(nodes[0]))
        peak = Peak(lambda: flower.family(nodes[0]))
        flower.run()
        until = time.monotonic() + PATIENCE_S
        while len(flower.rounds()) < rounds:
            if time.monotonic() > until:
                raise RuntimeError(f"stock Flower: {flower.rounds()} after {PATIENCE_S:g} s")
            time.sleep(0.05)
        ends = [at for at, _, _ in flower.rounds()]
        most = peak.end()
    finally:
        flower.close()
    return _footprint("stock Flower", idle, most, ends)


def _footprint(
    who: str, idle: tuple[int, int], most: tuple[int, int], ends: list[float]
) -> Footprint:
    gaps = [later - sooner for sooner, later in zip(ends, ends[1:], strict=False)]
    return Footprint(who, *idle, *most, statistics.median(gaps), len(ends))
