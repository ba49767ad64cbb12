"""The metrics against pycocoevalcap, whose scores `make_fixtures.py` has written down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from penstock.export.metrics import ptb_tokenizer
from penstock.export.metrics.caption_scores import CaptionScores, score_captions
from penstock.export.metrics.caption_set import MetricScore
from penstock.export.metrics.coco_captions import read_coco_references, read_coco_results

FIXTURES = Path(__file__).resolve().parent / "fixtures"
TOLERANCE = 1e-6  # the goal is 1e-4
# Of another run with Java, by other hands, to four digits.
FAKECAP = [0.5855, 0.4047, 0.2825, 0.1983, 0.4080, 0.6277]


@pytest.fixture(scope="module", autouse=True)
def texts_are_split_once() -> Iterator[None]:
    """The same 25,000 references in several tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptb_tokenizer, "split_ptb", cache(ptb_tokenizer.split_ptb))
        yield


@pytest.fixture(scope="module")
def oracle() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIXTURES / "oracle_sets.json").read_text())
    return found


@pytest.fixture(scope="module")
def coco(shared_dir: Path) -> Path:
    return shared_dir / "data" / "photos" / "coco"


@pytest.fixture(scope="module")
def full(coco: Path) -> dict[int, list[str]]:
    return read_coco_references(coco / "captions_val2017_full.json")


def named(scores: CaptionScores[int]) -> Iterator[tuple[str, MetricScore[int]]]:
    yield from ((f"BLEU-{n}", score) for n, score in enumerate(scores.bleu, start=1))
    yield "ROUGE-L", scores.rouge_l
    yield "CIDEr-D", scores.cider_d


def check(scores: CaptionScores[int], expected: Mapping[str, Any]) -> None:
    assert scores.corpus() == pytest.approx(expected["corpus"], abs=TOLERANCE)
    if "images" in expected:
        for name, score in named(scores):
            values = [score.images[image] for image in expected["ids"]]
            assert values == pytest.approx(expected["images"][name], abs=TOLERANCE), name


def test_captions_of_our_own() -> None:
    references = read_coco_references(FIXTURES / "references.json")
    scores = score_captions(read_coco_results(FIXTURES / "results.json"), references)
    check(scores, json.loads((FIXTURES / "scores.json").read_text()))


def test_outputs_of_a_captioner(
    coco: Path, full: dict[int, list[str]], oracle: dict[str, Any]
) -> None:
    results = read_coco_results(coco / "fakecap_results.json")
    both = {image: text for image, text in results.items() if image in full}
    scores = score_captions(both, {image: full[image] for image in both})
    assert len(both) == 126
    check(scores, oracle["sets"]["fakecap"])


def test_a_human_caption_against_the_others(
    full: dict[int, list[str]], oracle: dict[str, Any]
) -> None:
    scores = score_captions(
        {image: texts[0] for image, texts in full.items()},
        {image: texts[1:] for image, texts in full.items()},
    )
    check(scores, oracle["sets"]["first human caption"])


def test_a_human_caption_against_the_others_in_the_subset(
    coco: Path, oracle: dict[str, Any]
) -> None:
    subset = read_coco_references(coco / "captions_val2017_subset.json")
    scores = score_captions(
        {image: texts[0] for image, texts in subset.items()},
        {image: texts[1:] for image, texts in subset.items()},
    )
    check(scores, oracle["sets"]["first human caption of the subset"])


def test_the_same_caption_for_all(full: dict[int, list[str]], oracle: dict[str, Any]) -> None:
    scores = score_captions(dict.fromkeys(full, "a man is standing in a field"), full)
    check(scores, oracle["sets"]["constant"])


def test_the_fixture_is_the_known_value(oracle: dict[str, Any]) -> None:
    values = list(oracle["sets"]["fakecap"]["corpus"].values())
    assert values == pytest.approx(FAKECAP, abs=6e-5)


def test_it_takes_neither_java_nor_any_library() -> None:
    code = (
        "import sys\n"
        "for name in ('numpy', 'torch', 'subprocess', 'requests'): sys.modules[name] = None\n"
        "from penstock.export.metrics.caption_scores import score_captions\n"
        "captions = {1: 'a dog', 2: 'a cat'}\n"
        "scores = score_captions(captions, {n: [text] for n, text in captions.items()})\n"
        "print(round(scores.corpus()['BLEU-1'], 6))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PATH": ""}, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("1.0\n", "")
