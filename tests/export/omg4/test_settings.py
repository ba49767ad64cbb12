"""Settings: the paper's numbers, and what is refused."""

from __future__ import annotations

import json

import pytest

from penstock.errors import UsageError
from penstock.export.omg4.settings import BookSizes, CompressionSettings


def test_the_paper_s_numbers() -> None:
    paper = CompressionSettings.omg4()
    assert (paper.keep, paper.pruning_quantile, paper.merge_rounds) == (0.2, 0.8, 2)
    assert (paper.merge_similarity, paper.merge_quantile, paper.merge_growth) == (-0.0003, 0.7, 1.2)
    assert (paper.score, paper.merge_shape, paper.appearance) == (
        "signed",
        "representative",
        "nets",
    )
    books = paper.books
    vectors = (*books.scale, *books.rotation, *books.appearance, *books.t_sigma)
    # 118 of the paper's bits, less the right quaternion's 26, whose place the displacement takes.
    assert sum(vectors) == 118 - 26
    assert 3 * books.position + books.time == 64


def test_settings_go_to_json_and_change() -> None:
    changed = CompressionSettings.static().with_changes(seed=3)
    assert changed.seed == 3 and not changed.sampling
    assert json.loads(json.dumps(changed.to_dict()))["books"]["scale"] == [8, 8, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 0.0}, "keep is 0"),
        ({"keep": 1.5}, "keep is 1.5; expected 0 to 1"),
        ({"keep": float("nan")}, "keep is nan"),
        ({"score": "best"}, "score is 'best'; expected 'absolute' or 'signed'"),
        ({"appearance": "mlp"}, "appearance is 'mlp'"),
        ({"loss": "l3"}, "loss is 'l3'"),
        ({"merge_shape": "mean"}, "merge_shape"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"degree": 4}, "degree is 4; expected 0 to 3"),
        ({"threads": 0}, "threads is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"merge_rounds": 0}, "merge_rounds"),
        ({"merge_growth": 0.5}, "merge_growth"),
        ({"refine_steps": -1}, "refine_steps"),
        ({"books": BookSizes(scale=(17, 8, 8))}, "books.scale"),
        ({"books": BookSizes(rotation=(8, 8, 8, 8))}, "books.rotation"),
        ({"books": BookSizes(position=22)}, "books.position is 22"),
        ({"books": BookSizes(time=2)}, "books.time 2"),
        ({"books": BookSizes(bytes_a_splat=0)}, "bytes_a_splat is 0"),
        ({"books": BookSizes(position_parts=0)}, "position_parts is 0"),
        ({"coding": "huffman"}, "coding is 'huffman'"),
        ({"finer": 0}, "finer is 0"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CompressionSettings().with_changes(**changes)
