"""Stop strings against a plain search over the whole text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import PenstockError
from penstock.runtime.stop_strings import StopMatcher


def plain_search(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that ends first; of several there, the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


SHORT = st.text(alphabet="ab😀\n", max_size=12)  # few letters: many overlaps


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(SHORT, max_size=6), stops=st.lists(SHORT.filter(bool), max_size=4))
def test_any_cut_gives_what_a_search_of_the_whole_text_gives(
    pieces: list[str], stops: list[str]
) -> None:
    expected, stop = plain_search("".join(pieces), stops)
    matcher = StopMatcher(stops)
    shown = ""
    for i, piece in enumerate(pieces):
        released, stopped = matcher.push(piece)
        shown += released
        so_far = "".join(pieces[: i + 1])
        assert stopped == (plain_search(so_far, stops)[1] is not None)
        if not stopped:
            # Held back is exactly what may still turn into a stop string, not a character more.
            held = so_far[len(shown) :]
            assert so_far.startswith(shown)
            assert held == "" or any(s.startswith(held) for s in stops)
            assert not any(
                s.startswith(so_far[-n:])
                for s in stops
                for n in range(len(held) + 1, min(len(s), len(so_far) + 1))
            )
    assert shown + matcher.flush() == expected
    assert matcher.matched == stop


def test_a_stop_string_over_three_pieces() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("Yes.") == ("Yes.", False)
    assert matcher.push("\nUs") == ("", False)
    assert matcher.push("ed") == ("\nUsed", False)
    assert matcher.push(" it\nUse") == (" it", False)
    assert matcher.push("r: and more") == ("", True)
    assert matcher.push("dropped") == ("", True)
    assert (matcher.flush(), matcher.matched) == ("", "\nUser:")


def test_flush_gives_what_was_held() -> None:
    matcher = StopMatcher(("END",))
    assert matcher.push("the EN") == ("the ", False)
    assert matcher.flush() == "EN"
    assert matcher.flush() == ""


def test_no_stops_hold_nothing() -> None:
    assert StopMatcher([]).push("abc") == ("abc", False)


@pytest.mark.parametrize("stops", ["END", ["a", ""], [1]])
def test_wrong_stops_are_refused(stops: list[str]) -> None:
    with pytest.raises(PenstockError, match="non-empty strings"):
        StopMatcher(stops)


def test_a_long_near_match_takes_linear_time() -> None:
    matcher = StopMatcher(["a" * 5000 + "b"])
    start = time.process_time()
    for _ in range(100):
        matcher.push("a" * 1000)
    assert matcher.push("b") == ("", True)
    assert time.process_time() - start < 2  # quadratic: minutes
