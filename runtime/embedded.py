"""The model that comes with Penstock, and its demonstration at several memory budgets."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from penstock.errors import StorageError
from penstock.runtime.load import load_bundle, plan_bundle
from penstock.runtime.run_stats import RunStats
from penstock.runtime.sampling import SamplingParams

TEMPERATURE, TOP_P = 0.8, 0.95
EXACT_SHARE = 0.75  # half is up rows, which exact mode needs; the rest is window


@dataclass(frozen=True)
class DemoSetting:
    """One way to run the demonstration.

    Attributes:
        name: for people.
        mode: 'predictor', 'exact' or 'dense'.
        ffn_resident: share of the feed-forward weights in memory, instead of `memory`.
        memory: the whole budget, as `penstock.load` takes it.
    """

    name: str
    mode: str
    ffn_resident: float | None
    memory: str | None = None


@dataclass(frozen=True)
class DemoRun:
    """What one setting gave: the text, and what it took."""

    setting: DemoSetting
    text: str
    stats: RunStats


def embedded_model() -> Path:
    """The bundle in the package.

    Raises:
        StorageError: this installation has none.
    """
    path = Path(str(files("penstock.runtime").joinpath("data", "storyteller.gguf")))
    if not path.is_file():
        raise StorageError(
            f"{path}: the embedded model is not in this installation; install Penstock again"
        )
    return path


def demo_settings(memory: str | None = None) -> list[DemoSetting]:
    """The settings in their order. The last two are exact and dense, whose texts must agree."""
    exact_share = EXACT_SHARE if memory is None else None
    exact = DemoSetting("exact", "exact", exact_share, memory)
    dense = DemoSetting("dense", "dense", 1.0)
    if memory is not None:
        return [DemoSetting(memory, "predictor", None, memory), exact, dense]
    shares = (1.0, 0.5, 0.25)
    return [DemoSetting(f"{s:.0%} resident", "predictor", s) for s in shares] + [exact, dense]


def check_setting(model: str | os.PathLike[str], setting: DemoSetting) -> None:
    """Raise BudgetError now if the model does not fit the setting's budget."""
    plan_bundle(
        model,
        memory=setting.memory,
        ffn_resident=setting.ffn_resident,
        exact=setting.mode == "exact",
        dense=setting.mode == "dense",
    )


def demo_run(
    model: str | os.PathLike[str],
    setting: DemoSetting,
    prompt: str,
    *,
    seed: int = 1,
    max_tokens: int = 120,
    on_piece: Callable[[str], None] | None = None,
) -> DemoRun:
    """Continue the prompt in one setting; `on_piece` is given the text as it is made."""
    loaded = load_bundle(
        model,
        memory=setting.memory,
        ffn_resident=setting.ffn_resident,
        exact=setting.mode == "exact",
        dense=setting.mode == "dense",
    )
    _reset_peak_memory()
    sampling = SamplingParams(
        temperature=TEMPERATURE, top_p=TOP_P, seed=seed, max_tokens=max_tokens
    )
    pieces = []
    for piece in loaded.generate(prompt, sampling=sampling):
        pieces.append(piece)
        if on_piece is not None:
            on_piece(piece)
    return DemoRun(setting, "".join(pieces), loaded.stats())


def _reset_peak_memory() -> None:
    """Measure the process's peak from here, so that a smaller run does not show a larger one's."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # not Linux, or not allowed: the peak is that of the whole process
