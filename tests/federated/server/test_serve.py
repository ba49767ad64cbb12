"""What is started again and what is not, with a SuperLink that is only played."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.federated.report.records import JOURNAL, RoundRecord, append_record
from penstock.federated.server import serve as serve_module
from penstock.federated.server.checkpoint import Checkpoint, write_checkpoint
from penstock.federated.server.outcome import Outcome, read_outcome, write_outcome
from penstock.federated.server.progress import append_note
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
    """`acts` are what happens to the runs that are submitted, one after the other; `failures` what
    the starts raise, None where one goes well."""

    made: PlayedLink
    acts: list[Callable[[PlayedLink, str], None]]
    failures: list[PenstockError | None]

    def __init__(self, settings: Any, folder: Path, note: Callable[[str], None]) -> None:
        type(self).made = self
        self.folder, self.running, self.starts, self.stops = folder.parent, False, 0, 0
        self.submitted: list[bool] = []
        self.word, self.trims = "running", 0

    def start(self) -> None:
        assert not self.running
        self.starts += 1
        failure = type(self).failures.pop(0) if type(self).failures else None
        if failure is not None:
            raise failure
        self.running = True

    def trim_log(self) -> None:
        self.trims += 1

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
        if not error:
            append_note(link.folder, "1 of 2 devices are ready; waiting")
            append_record(link.folder / JOURNAL, RoundRecord("ab", 5, 0, "fedavg", ("d",)))
        write_outcome(link.folder, Outcome(attempt, "ab", 5, error, message))

    return act


def dies(link: PlayedLink, attempt: str) -> None:
    link.running = False


def is_not_taken(link: PlayedLink, attempt: str) -> None:
    raise PenstockError("flwr run took over 120 s")


def dies_after_round(number: int) -> Callable[[PlayedLink, str], None]:
    def act(link: PlayedLink, attempt: str) -> None:
        (link.folder / f"round-{number:06d}.safetensors").write_bytes(b"")
        link.running = False

    return act


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

    def run(
        *acts: Callable[[PlayedLink, str], None],
        resume: bool = False,
        failures: tuple[PenstockError | None, ...] = (),
    ) -> Any:
        PlayedLink.acts, PlayedLink.failures = list(acts), list(failures)
        notes: list[str] = []
        return serve(path, settings, resume=resume, note=notes.append), notes

    return run


def test_a_run_that_ends_well(play: Callable[..., Any]) -> None:
    served, notes = play(ends())
    assert served.outcome.rounds == 5 and served.restarts == 0
    assert notes[0] == "1 of 2 devices are ready; waiting"
    assert len(notes) == 2 and notes[1].startswith("round 5 of 10: 1 of 0 devices counted")
    assert served.summary.rounds[-1].round_number == 5
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
    assert PlayedLink.made.trims > 0  # the log is looked at whenever Flower is asked


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
    with pytest.raises(PenstockError, match="started again 3 times and no round ended: giving up"):
        play(dies, dies, dies, dies)


def test_a_start_that_fails_is_tried_again(play: Callable[..., Any]) -> None:
    failures = (None, UsageError("another server answers"), StorageError("no space left"))
    served, notes = play(dies, ends(), failures=failures)
    assert served.outcome.rounds == 5 and served.restarts == 3
    assert PlayedLink.made.starts == 4 and PlayedLink.made.submitted == [False, True]
    assert "SuperLink died" in notes[0]
    assert "could not be started: another server answers" in notes[1]
    assert "could not be started: no space left" in notes[2]


def test_a_run_that_is_not_taken_is_tried_again_with_another_superlink(
    play: Callable[..., Any],
) -> None:
    served, notes = play(dies, is_not_taken, ends())
    assert served.outcome.rounds == 5 and served.restarts == 2
    assert PlayedLink.made.starts == 3
    assert "flwr run took over 120 s" in notes[1]


def test_starts_that_fail_end_it_after_so_many(play: Callable[..., Any]) -> None:
    never = (None, *[StorageError("no space left")] * 3)
    with pytest.raises(PenstockError, match="no space left; it was started again 3 times"):
        play(dies, failures=never)
    with pytest.raises(StorageError, match="no space left"):  # the first: at once
        play(failures=(StorageError("no space left"),))


def test_a_round_that_ended_makes_up_for_the_restarts_before(play: Callable[..., Any]) -> None:
    acts = [act for number in range(1, 5) for act in (dies, dies, dies_after_round(number))]
    served, _ = play(*acts, ends())
    assert served.restarts == 12


def test_an_outcome_of_another_try_is_not_taken_for_this_one(
    play: Callable[..., Any], tmp_path: Path
) -> None:
    def late(link: PlayedLink, attempt: str) -> None:
        write_outcome(link.folder, Outcome("before", "ab", 1, "ConnectError", "late"))
        link.word = "finished:failed"

    served, notes = play(late, ends())
    assert served.restarts == 1 and "ConnectError" not in notes[0]


def test_a_folder_with_a_run_needs_resume(play: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    (tmp_path / "run").mkdir()
    model = read_settings(tmp_path / "server.toml").model.to_json()
    write_checkpoint(tmp_path / "run", Checkpoint("ab", 1, "fedavg", model, 1))
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
