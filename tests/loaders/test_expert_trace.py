"""Trace files: what is written is read, what is damaged is refused, a full disk leaves nothing."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock import _native
from penstock.errors import FormatError, PenstockError, StorageError
from penstock.loaders.expert_trace import ExpertTrace, TraceRecorder, read_trace, write_trace
from penstock.loaders.partial_file import check_writable

# A prompt of two passes, then two tokens; layers 0 and 1 of 8 experts. -1 -1 begins a pass.
PROMPT = [-1, -1, 0, 1, 0, 4, 0, 7, 1, 0, 1, 2, -1, -1, 0, 3, 1, 5]
TOKENS = [[-1, -1, 0, 1, 0, 2, 1, 6, 1, 7], [-1, -1, 0, 0, 0, 2, 1, 6, 1, 3]]


def recorded() -> ExpertTrace:
    recorder = TraceRecorder(2, 8)
    recorder.add(PROMPT, prompt=True)
    recorder.add(TOKENS[0], prompt=False)
    recorder.add([-1, -1, 0, 0, 0, 2, 1, 3, 1, 6], prompt=False)
    return recorder.trace("tiny.gguf", "olmoe", 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    out = tmp_path / "run.trace"
    write_trace(out, recorded())
    return out


def same(a: ExpertTrace, b: ExpertTrace) -> bool:
    plain = (a.model, a.arch, a.layers, a.experts, a.used)
    return plain == (b.model, b.arch, b.layers, b.experts, b.used) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("prompt", "counts", "ids")
    )


def test_what_is_recorded() -> None:
    trace = recorded()
    assert (trace.passes, trace.tokens) == (4, 2)
    assert trace.prompt.tolist() == [1, 1, 0, 0]
    assert trace.counts.tolist() == [[3, 2], [1, 1], [2, 2], [2, 2]]
    assert trace.ids.tolist() == [1, 4, 7, 0, 2, 3, 5, 1, 2, 6, 7, 0, 2, 3, 6]


def test_steps_are_those_of_single_tokens() -> None:
    ids, offsets = recorded().steps()
    assert ids.tolist() == [1, 2, 14, 15, 0, 2, 11, 14]
    assert offsets.tolist() == [0, 2, 4, 6, 8]
    assert (ids.dtype.name, offsets.dtype.name) == ("int32", "int64")


def test_a_layer_that_chose_nothing_is_a_step_too() -> None:
    recorder = TraceRecorder(2, 8)
    recorder.add([-1, -1, 0, 5], prompt=False)
    trace = recorder.trace("m", "a", 1)
    assert trace.counts.tolist() == [[1, 0]]
    assert trace.steps()[1].tolist() == [0, 1, 1]


def test_written_is_read(path: Path) -> None:
    assert same(read_trace(path), recorded())
    assert [p.name for p in path.parent.iterdir()] == ["run.trace"]


def test_an_empty_trace(tmp_path: Path) -> None:
    trace = TraceRecorder(3, 4).trace("m", "a", 2)
    write_trace(tmp_path / "t", trace)
    assert same(read_trace(tmp_path / "t"), trace)
    assert read_trace(tmp_path / "t").tokens == 0


# ---------------------------------------------------------------- damage


def test_every_changed_byte_of_the_choices_is_noticed(path: Path) -> None:
    data = path.read_bytes()
    payload = len(data) - 4 * (4 + 8 + 15)
    for at in [*range(16), *range(payload, len(data))]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        with pytest.raises(FormatError, match=path.name):
            read_trace(path)


def test_a_changed_header_is_an_error_of_ours_or_another_name(path: Path) -> None:
    data = path.read_bytes()
    for at in range(16, len(data) - 4 * 27):
        for flip in (0x01, 0x20, 0x80):
            path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
            try:
                found = read_trace(path)
            except PenstockError:
                continue
            assert np.array_equal(found.ids, recorded().ids)


def test_cut_anywhere(path: Path) -> None:
    data = path.read_bytes()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(FormatError):
            read_trace(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(FormatError, match="cut short or damaged"):
        read_trace(path)


def rewritten(path: Path, values: list[int], **changes: Any) -> None:
    """A file that is whole, checksum and all, with these choices and header fields."""
    payload = np.array(values, "<i4").view(np.uint8)
    head = {
        "model": "m", "arch": "a", "layers": 1, "experts": 4, "used": 2, "passes": 1, "chosen": 2,
        "crc32c": _native.crc32c(payload), **changes,
    }  # fmt: skip
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<8sII", b"PENTRACE", 1, len(text)) + text + payload.tobytes())


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        ([0, 2, 1, 3], {}, None),
        ([2, 2, 1, 3], {}, "marked 2"),
        ([0, 5, 1, 3], {}, "chose 5 of"),
        ([0, -1, 1, 3], {}, "chose -1 of"),
        ([0, 1, 1, 3], {}, "chose 1 experts together, the file has 2"),
        ([0, 2, 1, 4], {}, "expert 4 was chosen"),
        ([0, 2, -3, 3], {}, "expert -3 was chosen"),
        ([0, 2, 3, 1], {}, "do not ascend"),
        ([0, 2, 3, 3], {}, "do not ascend"),
        ([0, 2, 1, 3], {"layers": 0}, "'layers' is 0"),
        ([0, 2, 1, 3], {"experts": True}, "'experts' is True"),
        ([0, 2, 1, 3], {"passes": 1 << 39, "layers": 1 << 16}, "cut short or damaged"),
        ([0, 2, 1, 3], {"experts": 1 << 14}, None),
        (
            [0, 2, 1, 3], {"layers": 65, "experts": 1 << 14},
            "65 layers of 16384 experts, expected 1048576 experts at most",
        ),
        ([0, 2, 1, 3], {"layers": 1 << 16, "experts": 1 << 14}, "65536 layers of 16384 experts"),
        ([0, 2, 1, 3], {"passes": -1}, "'passes' is -1"),
        ([0, 2, 1, 3], {"chosen": 2.0}, "'chosen' is 2.0"),
        ([0, 2, 1, 3], {"model": None}, "'model' is None"),
        ([0, 2, 1, 3], {"crc32c": 0}, "checksum"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be(
    tmp_path: Path, values: list[int], changes: dict[str, Any], message: str | None
) -> None:
    path = tmp_path / "t"
    rewritten(path, values, **changes)
    if message is None:
        assert read_trace(path).ids.tolist() == values[2:]
        return
    with pytest.raises(FormatError, match=message):
        read_trace(path)


def test_two_layers_may_each_begin_anew(tmp_path: Path) -> None:
    rewritten(tmp_path / "t", [0, 1, 1, 3, 0], layers=2)
    assert read_trace(tmp_path / "t").ids.tolist() == [3, 0]


def test_of_another_kind_or_version(tmp_path: Path, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:8] + struct.pack("<I", 2) + data[12:])
    with pytest.raises(FormatError, match="version 2, expected 1; use a newer Penstock"):
        read_trace(path)
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(FormatError, match="not a trace of experts"):
        read_trace(path)
    path.write_bytes(struct.pack("<8sII", b"PENTRACE", 1, 8) + b"[" * 8)
    with pytest.raises(FormatError, match="no JSON object"):
        read_trace(path)
    with pytest.raises(StorageError, match="cannot be read"):
        read_trace(tmp_path / "missing")
    with pytest.raises(StorageError, match="cannot be read"):
        read_trace(tmp_path)


# ---------------------------------------------------------------- writing

FULL_DISK = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from penstock.errors import StorageError
from penstock.loaders.expert_trace import ExpertTrace, write_trace

passes = 100_000
trace = ExpertTrace(
    "m", "a", 1, 4, 1, np.zeros(passes, np.int32), np.ones((passes, 1), np.int32),
    np.zeros(passes, np.int32),
)
resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, 256 << 10))
try:
    write_trace(Path(sys.argv[1]), trace)
except StorageError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no RLIMIT_FSIZE")
def test_a_full_disk_leaves_what_was_there(path: Path) -> None:
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"{path}: cannot be written" in done.stdout and "free space" in done.stdout
    assert [p.name for p in path.parent.iterdir()] == ["run.trace"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("write", [check_writable, lambda path: write_trace(path, recorded())])
def test_a_folder_that_is_not_there(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write(tmp_path / "missing" / "run.trace")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="this is a folder"):
        check_writable(tmp_path)
    check_writable(tmp_path / "run.trace")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.loaders.partial_file.os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_trace(tmp_path / "run.trace", replace(recorded(), model="other"))
    assert list(tmp_path.iterdir()) == []
