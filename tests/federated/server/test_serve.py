"""What is started again and what is not, with a SuperLink that is only played."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.federated.server import serve as serve_module
from penstock.federated.server.outcome import Outcome, read_outcome, write_outcome
from penstock.federated.server.serve import only_one, serve
from penstock.federated.server.settings import ServerSettings, read_settings

TEXT = """
[run]
folder = "run"
[model]
name = "sensing-mlp"
input_shape = [4]
classes = 2
[superlink]
restarts = 3
"""


class PlayedLink:
    """`acts` are what happens to the runs that are submitted, one after the other."""

    made: PlayedLink
    acts: list[Callable[[PlayedLink, str], None]]

    def __init__(self, settings: Any, folder: Path, note: Callable[[str], None]) -> None:
        type(self).made = self
        self.folder, self.running, self.starts, self.stops = folder.parent, False, 0, 0
        self.submitted: list[bool] = []
        self.word = "running"

    def start(self) -> None:
        self.running = True
        self.starts += 1

    def stop(self) -> None:
        self.running = False
        self.stops += 1

    def alive(self) -> bool:
        return self.running

    def submit(self, settings_file: Path, *, resume: bool, attempt: str) -> str:
        assert settings_file.is_absolute()
        self.submitted.append(resume)
        type(self).acts.pop(0)(self, attempt)
        return "17"

    def status(self, run: str) -> str:
        assert run == "17"
        return self.word


def ends(error: str = "", message: str = "") -> Callable[[PlayedLink, str], None]:
    def act(link: PlayedLink, attempt: str) -> None:
        write_outcome(link.folder, Outcome(attempt, "ab", 5, error, message))

    return act


def dies(link: PlayedLink, attempt: str) -> None:
    link.running = False


def vanishes(link: PlayedLink, attempt: str) -> None:
    link.word = "finished:failed"


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[str]]]:
    monkeypatch.setattr(serve_module, "SuperLink", PlayedLink)
    for name in ("WATCH_S", "ASK_FLOWER_S", "MOST_PAUSE_S"):
        monkeypatch.setattr(serve_module, name, 0.001)
    path = tmp_path / "server.toml"
    path.write_text(TEXT)
    settings: ServerSettings = read_settings(path)

    def run(*acts: Callable[[PlayedLink, str], None], resume: bool = False) -> Any:
        PlayedLink.acts = list(acts)
        notes: list[str] = []
        return serve(path, settings, resume=resume, note=notes.append), notes

    return run


def test_a_run_that_ends_well(play: Callable[..., Any]) -> None:
    served, notes = play(ends())
    assert served.outcome.rounds == 5 and served.restarts == 0 and notes == []
    assert PlayedLink.made.submitted == [False]
    assert not PlayedLink.made.running


def test_a_superlink_that_dies_is_started_again_with_its_run_resumed(
    play: Callable[..., Any],
) -> None:
    served, notes = play(dies, dies, ends())
    assert served.restarts == 2
    assert PlayedLink.made.starts == 3
    assert PlayedLink.made.submitted == [False, True, True]
    assert "SuperLink died" in notes[0]


def test_a_run_that_vanishes_is_known_by_flowers_word(play: Callable[..., Any]) -> None:
    served, notes = play(vanishes, ends())
    assert served.restarts == 1 and PlayedLink.made.starts == 1
    assert "finished:failed and says nothing" in notes[0]


@pytest.mark.parametrize("error", ["StorageError", "ConnectError", "MemoryError"])
def test_what_may_pass_is_tried_again(error: str, play: Callable[..., Any]) -> None:
    served, notes = play(ends(error, "no space left"), ends())
    assert served.restarts == 1 and f"{error}: no space left" in notes[0]


@pytest.mark.parametrize("kind", [UsageError, FormatError])
def test_what_stays_is_raised_as_it_was(
    kind: type[PenstockError], play: Callable[..., Any]
) -> None:
    with pytest.raises(kind, match="public.file is missing"):
        play(ends(kind.__name__, "public.file is missing"))
    assert not PlayedLink.made.running


def test_it_gives_up_after_so_many_restarts(play: Callable[..., Any]) -> None:
    with pytest.raises(PenstockError, match="started again 3 times: giving up"):
        play(dies, dies, dies, dies)


def test_an_outcome_of_another_try_is_not_taken_for_this_one(
    play: Callable[..., Any], tmp_path: Path
) -> None:
    def late(link: PlayedLink, attempt: str) -> None:
        write_outcome(link.folder, Outcome("before", "ab", 1, "ConnectError", "late"))
        link.word = "finished:failed"

    served, notes = play(late, ends())
    assert served.restarts == 1 and "ConnectError" not in notes[0]


def test_a_folder_with_a_run_needs_resume(play: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "round-000001.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="--resume"):
        play(ends())
    served, _ = play(ends(), resume=True)
    assert PlayedLink.made.submitted == [True] and served.outcome.rounds == 5


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    with only_one(tmp_path / "lock"), pytest.raises(UsageError, match="another process"):
        with only_one(tmp_path / "lock", wait_s=0.2):
            pass
    with only_one(tmp_path / "lock"):
        pass
    with pytest.raises(StorageError, match="cannot be made"), only_one(tmp_path / "no" / "lock"):
        pass


def test_a_damaged_outcome_is_an_error(tmp_path: Path) -> None:
    assert read_outcome(tmp_path, "a") is None
    (tmp_path / "outcome.json").write_text("[1, 2")
    with pytest.raises(FormatError, match="not an outcome"):
        read_outcome(tmp_path, "a")
