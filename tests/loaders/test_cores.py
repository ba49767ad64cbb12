"""Cores are those that the process may run on, and no more than its cgroups give it the time of."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from penstock.errors import UsageError
from penstock.loaders.cores import THREADS_MOST, compute_threads, cpu_quotas, usable_cores
from tests.runtime.cgroups import make_cgroup

Find = Callable[..., list[int]]


@pytest.fixture
def find(tmp_path: Path) -> Find:
    """Quotas, given the files of groups and what names the groups of this process."""

    def get(files: Mapping[str, str | bytes], own: str = "0::/box/job\n") -> list[int]:
        root, names = tmp_path / "cgroup", tmp_path / "own"
        names.write_text(own)
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return cpu_quotas(root, names)

    return get


def v1(folder: str, quota: str, period: str = "100000\n") -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("50000 20000", 3)],
)
def test_a_quota_is_rounded_up(find: Find, quota: str, cores: int) -> None:
    assert find({"box/job/cpu.max": quota + "\n"}) == [cores]
    time, period = quota.split()
    assert find(v1("cpu/box/job", time, period), "3:cpu:/box/job\n") == [cores]


def test_groups_above_count_too(find: Find) -> None:
    files = {"box/job/cpu.max": "max 100000\n", "box/cpu.max": "400000 100000\n"}
    assert find(files) == [4]
    assert sorted(find({**files, "cpu.max": "300000 100000\n"})) == [3, 4]
    assert find({"other/cpu.max": "100000 100000\n", "box/cpu.max": "max 100000\n"}) == [3]


def test_other_mounts_of_both_versions(find: Find) -> None:
    own = "4:memory:/box/job\n2:cpu,cpuacct:/box/job\n0::/\n"
    files = v1("cpu,cpuacct/box", "250000\n") | v1("cpu/box/job", "-1\n") | v1("memory/box", "1\n")
    assert find(files, own) == [3]
    assert sorted(find({"unified/cpu.max": "100000 100000\n"}, own)) == [1, 3]


def test_the_hosts_path_in_a_container_that_has_only_its_own_group(find: Find) -> None:
    assert find(v1("cpu", "200000\n"), "2:cpu,cpuacct:/docker/0123\n") == [2]
    assert find({"cpu.max": "100000 100000\n"}, "0::/../elsewhere\n") == [1]


@pytest.mark.parametrize(
    "odd",
    [
        "",
        "max",
        "100000",
        "-1 100000",
        "0 100000",
        "100000 0",
        "1 2 3",
        "a b",
        b"\xff\xfe 1",
        "∞ 1",
    ],
)
def test_what_makes_no_sense_is_no_quota(find: Find, odd: str | bytes) -> None:
    assert find({"box/job/cpu.max": odd, "box/cpu.max": "100000 100000"}) == [1]
    raw = odd if isinstance(odd, bytes) else odd.encode()
    files: dict[str, str | bytes] = {"cpu/cpu.cfs_quota_us": raw, "cpu/cpu.cfs_period_us": "0"}
    assert find(files, "2:cpu:/\n") == []


@pytest.mark.parametrize("own", ["", "\n", "0:", "0::", "what is this", "a:b:c:d", "0::/no\x00:\n"])
def test_a_list_of_groups_that_makes_no_sense(find: Find, own: str) -> None:
    assert find({"box/cpu.max": "100000 100000\n"}, own) == []


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "own").write_bytes(b"0::/\xff\n")
    assert cpu_quotas(tmp_path, tmp_path / "own") == cpu_quotas(tmp_path, tmp_path / "none") == []
    assert cpu_quotas(tmp_path, tmp_path) == [], "a folder"


@pytest.mark.parametrize(("quotas", "cores"), [([], 3), ([8], 3), ([5, 2], 2), ([0], 1)])
def test_the_least_of_all_counts(
    monkeypatch: pytest.MonkeyPatch, quotas: list[int], cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {4, 5, 6}, raising=False)
    monkeypatch.setattr("penstock.loaders.cores.cpu_quotas", lambda: quotas)
    assert usable_cores() == cores


def test_without_affinity_it_is_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("penstock.loaders.cores.cpu_quotas", lambda: [])
    for count, cores in ((6, 6), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda count=count: count)
        assert usable_cores() == cores


def test_threads_are_as_asked_for_or_one_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.loaders.cores.usable_cores", lambda: 5)
    assert [compute_threads(asked) for asked in (None, 1, 7, THREADS_MOST)] == [5, 1, 7, 256]
    monkeypatch.setattr("penstock.loaders.cores.usable_cores", lambda: 512)
    assert compute_threads(None) == THREADS_MOST


@pytest.mark.parametrize("asked", [0, -1, 257, 99_999])
def test_threads_that_no_machine_has_a_use_for_are_refused(asked: int) -> None:
    with pytest.raises(UsageError, match=f"threads is {asked}, expected 1 to 256"):
        compute_threads(asked)


CHILD = """
import os, sys
with open(sys.argv[1], "w") as procs:
    procs.write(str(os.getpid()))
from penstock.loaders.cores import cpu_quotas, usable_cores
print(usable_cores(), min(cpu_quotas()))
"""


def test_a_real_quota() -> None:
    above = cpu_quotas()
    with make_cgroup("cpu") as cgroup:
        for given, cores in ((0.5, 1), (1.5, 2)):
            cgroup.limit_cores(given)
            done = subprocess.run(
                [sys.executable, "-c", CHILD, cgroup.path / "cgroup.procs"],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            least = min([cores, *above])
            assert done.stdout == f"{min(usable_cores(), cores)} {least}\n"
