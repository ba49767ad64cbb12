"""What a measurement counts as the device."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.loaders import probe


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity of Linux")
def test_memory_is_measured_on_the_cores_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measure(threads: int, nbytes: int, rounds: int) -> float:
        asked.append(threads)
        return 1e9

    monkeypatch.setattr("penstock._native.measure_memory", measure)
    monkeypatch.setattr("os.cpu_count", lambda: 64)  # the machine's, of which a container has three
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {4, 5, 6})
    monkeypatch.setattr("penstock.loaders.cores.cpu_quotas", lambda: [])
    probe.probe(tmp_path, quick=True)
    assert asked == [3]
