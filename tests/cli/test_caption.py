"""`penstock caption`: lines, JSON, the page, damaged photos, and terminals."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.errors import PenstockError
from tests.cli.conftest import Cli
from tests.conftest import ROOT
from tests.runtime.caption.colour_captioner import load_colours

Image = pytest.importorskip("PIL.Image", reason="Pillow is an extra")

COLOURS = [sys.executable, "-m", "tests.runtime.caption.colour_captioner"]


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A captioner that names the colour of a photo."""
    monkeypatch.setattr("penstock.runtime.caption.album.load_captioner", load_colours)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    here = tmp_path / "photos"
    here.mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (64, 48), name).save(here / f"{name}.jpg")
    return here


@pytest.fixture
def damaged(photos: Path) -> Path:
    path = photos / "damaged.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    return path


def test_one_line_a_photo(cli: Cli, colours: None, photos: Path) -> None:
    result = cli("caption", photos, photos / "red.jpg")
    assert result.code == 0
    assert result.out == (
        f'{photos}/blue.jpg: a blue <photo> & "so on"\n{photos}/red.jpg: a red <photo> & "so on"\n'
    )
    assert result.err.startswith("2 photos in ") and result.err.count("\n") == 1
    for word in ("a second", "reading", "preprocess", "encoder", "concepts", "decoding"):
        assert word in result.err


def test_concepts(cli: Cli, colours: None, photos: Path) -> None:
    result = cli("caption", photos / "red.jpg", "--concepts")
    assert result.out.splitlines()[1] == "  concepts: red 0.88, <b> 0.25"


def test_damaged_photos_are_named_and_the_rest_go_on(
    cli: Cli, colours: None, photos: Path, damaged: Path
) -> None:
    missing = photos / "missing.jpg"
    result = cli("caption", missing, photos)
    assert result.code == 1
    assert result.out.count("\n") == 2
    first, second, last = result.err.splitlines()
    assert first.startswith(f"Error: {missing}: cannot be read: No such file")
    assert second.startswith(f"Error: {damaged}: ")
    assert last.startswith("2 photos in ") and last.endswith("; 2 could not be captioned.")


def test_json(cli: Cli, colours: None, photos: Path, damaged: Path) -> None:
    result = cli("caption", photos, "--json")
    assert result.code == 1
    document = result.json
    assert [Path(one["path"]).name for one in document["photos"]] == ["blue.jpg", "red.jpg"]
    one = document["photos"][0]
    assert (one["caption"], one["score"]) == ('a blue <photo> & "so on"', -0.5)
    assert (one["width"], one["height"], one["note"]) == (64, 48, None)
    assert one["concepts"][0] == {"name": "blue", "score": 0.875}
    assert one["times"]["decoding_ms"] == 4.0 and one["times"]["read_ms"] > 0
    (failure,) = document["failures"]
    assert failure["path"] == str(damaged) and failure["error"]["code"] == "FormatError"
    assert document["photos_per_second"] > 0
    assert result.err == f"Error: {failure['error']['message']}\n"


def test_html(cli: Cli, colours: None, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = cli("caption", photos, "--html", out)
    assert result.code == 0 and result.err.endswith(f"Wrote {out}.\n")
    assert out.read_text().count("<img ") == 2
    refused = cli("caption", photos, "--html", photos / "red.jpg")
    assert refused.code == 2 and "must end in .html" in refused.err


def test_names_that_would_steer_a_terminal(cli: Cli, colours: None, photos: Path) -> None:
    data = (photos / "red.jpg").read_bytes()
    names = ["new\nline.jpg", "red\x1b[31m.jpg", os.fsdecode(b"caf\xe9.jpg"), "\u732b \u202e.jpg"]
    for name in names:
        (photos / name).write_bytes(data)
        (photos / f"bad {name}").touch()
    result = cli("caption", *(photos / name for name in names))
    assert result.code == 0 and result.out.count("\n") == 4
    wanted = ["new\\nline.jpg", "red\\x1b[31m.jpg", "caf\\udce9.jpg", "\u732b \\u202e.jpg"]
    for line, name in zip(result.out.splitlines(), wanted, strict=True):
        assert line.isprintable() and line.startswith(f"{photos}/{name}: a red")
    errors = cli("caption", *(photos / f"bad {name}" for name in names)).err.splitlines()
    assert len(errors) == 5 and all(line.isprintable() for line in errors)
    documents = cli("caption", photos, "--json").json
    assert photos / "new\nline.jpg" in [Path(one["path"]) for one in documents["photos"]]


@pytest.mark.parametrize(
    "options",
    [
        ["--beams", "0"],
        ["--beams", "11"],
        ["--max-tokens", "0"],
        ["--threads", "0"],
        ["--html"],
    ],
)
def test_wrong_usage(cli: Cli, colours: None, photos: Path, options: list[str]) -> None:
    result = cli("caption", photos, *options)
    assert (result.code, result.out) == (2, "")


def test_no_photos(cli: Cli, colours: None, tmp_path: Path) -> None:
    assert cli("caption").code == 2
    result = cli("caption", tmp_path, "--json")
    assert result.code == 2 and "no photos" in result.json["error"]["message"]


def test_options_reach_the_function(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def caption_album(paths: list[Path], **options: object) -> None:
        seen.update(options, paths=paths)
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.runtime.caption.album.caption_album", caption_album)
    line = "--model m.captioner --beams 3 --max-tokens 9 --threads 2 --html p.html"
    assert cli("caption", "a.jpg", "b", *line.split()).code == 130
    wanted = {
        "paths": [Path("a.jpg"), Path("b")], "model": Path("m.captioner"), "beams": 3,
        "max_tokens": 9, "threads": 2, "html": Path("p.html"),
    }  # fmt: skip
    assert {key: seen[key] for key in wanted} == wanted


# ---------------------------------------------------------------- as a process


def test_a_file_of_captions_while_a_bar_is_shown(
    photos: Path, damaged: Path, tmp_path: Path
) -> None:
    """stderr is a terminal and stdout is not: the bar must not take the captions with it."""
    captions = tmp_path / "captions.txt"
    terminal, end = pty.openpty()
    with open(captions, "wb") as out:
        child = subprocess.Popen(
            [*COLOURS, "caption", str(photos)], stdout=out, stderr=end, cwd=ROOT,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
        )  # fmt: skip
    os.close(end)
    shown = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(terminal)
    assert child.wait(timeout=60) == 1
    assert captions.read_text().splitlines() == [
        f'{photos}/blue.jpg: a blue <photo> & "so on"',
        f'{photos}/red.jpg: a red <photo> & "so on"',
    ]
    assert b"captions" in shown and b"damaged.png" in shown and b"a second" in shown
    assert b"a red" not in shown


def test_pipes_that_close_and_processes_that_end(photos: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*COLOURS, "caption", str(photos)], stdout=write_end, stderr=subprocess.PIPE, cwd=ROOT,
        timeout=60,
    )  # fmt: skip
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")


# ---------------------------------------------------------------- the model of the package


@pytest.fixture(scope="session")
def embedded() -> Path:
    pytest.importorskip("onnxruntime", reason="onnxruntime is an extra")
    from penstock.runtime.caption.captioner import embedded_captioner

    try:
        return embedded_captioner()
    except PenstockError as error:
        pytest.skip(str(error))


def test_the_embedded_captioner(process: Cli, embedded: Path, photos: Path, damaged: Path) -> None:
    result = process("caption", photos, "--json", "--beams", "3", "--threads", "1")
    assert result.code == 1, result.err
    document = result.json
    assert document["model"] == str(embedded)
    for one in document["photos"]:
        assert one["caption"] and one["caption"].isprintable() and one["tokens"] > 0
        assert one["score"] < 0 and one["times"]["encoder_ms"] > 0
    text = process("caption", photos, "--beams", "3", "--threads", "1")
    assert text.out.splitlines() == [f"{o['path']}: {o['caption']}" for o in document["photos"]]


def test_the_model_may_be_named(process: Cli, embedded: Path, photos: Path, tmp_path: Path) -> None:
    out = process("caption", photos, "--model", embedded, "--json", "--max-tokens", "3")
    assert out.code == 0, out.err
    assert all(one["tokens"] <= 3 for one in out.json["photos"])
    foreign = tmp_path / "foreign.captioner"
    foreign.write_bytes(b"not one")
    refused = process("caption", photos, "--model", foreign, "--json")
    assert refused.code == 1 and refused.json["error"]["code"] == "FormatError"


def test_one_call_of_the_api(embedded: Path, photos: Path) -> None:
    """What the README shows."""
    import penstock
    from penstock.runtime.caption.photo import read_photo

    with penstock.load_captioner(threads=1) as captioner:
        said = captioner.caption(read_photo(photos / "red.jpg"), beams=1)
    assert json.loads(json.dumps(said.to_dict()))["text"] == said.text
