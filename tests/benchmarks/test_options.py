"""The options that every benchmark takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import flash_ablation, options, quantization, resident_decode, splats


def test_what_is_not_given_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "a" / "b"
    monkeypatch.setattr("sys.argv", ["benchmark", "--work", str(work), "--threads", "0"])
    args = options.parse(options.parser("what it measures"))
    assert args.threads >= 1 and work.is_dir()
    assert (args.quick, args.check, args.keep, args.json) == (False, False, False, None)


@pytest.mark.parametrize(
    "main", [flash_ablation.main, quantization.main, resident_decode.main, splats.main]
)
def test_every_benchmark_takes_them(
    main: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", "--help"])
    assert callable(main)
    with pytest.raises(SystemExit, match="0"):
        main()
    shown = capsys.readouterr().out
    for name in ("--quick", "--json", "--check", "--keep", "--work", "--threads"):
        assert name in shown
