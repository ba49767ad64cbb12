"""Writes export/metrics/ptb_words.py: the words that the Java tokenizer treats apart.

Nothing is looked up: hundreds of thousands of strings go through the program, each in a sentence,
and what comes out decides. Which strings: the words of vocabularies and texts, how abbreviations
are made of them, and every string of up to four letters. Needs a `java` and `pip install
pycocoevalcap==1.2` in an environment of its own. From the root of the checkout, with the shared
data folder beside it:

    python -m tests.export.metrics.observe_words
"""

from __future__ import annotations

import itertools
import re
import string
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.export.metrics.make_fixtures import tokenize

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"
OUT = ROOT / "export" / "metrics" / "ptb_words.py"
BATCH = 250_000
FORMS: dict[str, Callable[[str], str]] = {
    "lower": str.lower,
    "capital": str.capitalize,
    "upper": str.upper,
}
HEAD = '''"""Words that the Java tokenizer treats apart, by what it did to {count} strings.

Written by tests/export/metrics/observe_words.py; do not edit.
"""

from __future__ import annotations

from typing import Final
'''


def words() -> set[str]:
    """Of vocabularies and texts, in lower case."""
    files = [*sorted((DATA / "vocab").glob("*.txt")), *sorted((DATA / "fairytales").glob("*.txt"))]
    files.append(DATA / "photos" / "coco" / "captions_val2017_full.json")
    found: set[str] = set()
    for file in files:
        found |= set(re.findall(r"[a-z]+", file.read_text(encoding="utf-8").lower()))
    return {word for word in found if len(word) <= 16}


def abbreviations(whole: Iterable[str]) -> set[str]:
    """As people do it: the beginning, or the beginning and the last consonants; and plurals."""
    short: set[str] = set()
    for word in whole:
        consonants = re.sub("[aeiouy]", "", word[1:])
        for start in range(1, 7):
            short.add(word[:start])
            if start <= 4:
                short |= {word[:start] + consonants[-ends:] for ends in (1, 2)}
    return {form for one in short for form in (one, f"{one}s") if len(form) <= 7}


def every(letters: int) -> Iterable[str]:
    """All strings of so many letters."""
    return ("".join(parts) for parts in itertools.product(string.ascii_lowercase, repeat=letters))


def observe(strings: list[str], line: str) -> list[list[str]]:
    """The tokens of a line with each string in it."""
    tokens: list[list[str]] = []
    for begin in range(0, len(strings), BATCH):
        lines = [line.format(text) for text in strings[begin : begin + BATCH]]
        tokens += [text.split() for text in tokenize(lines)]
    return tokens


def whole(strings: list[str], line: str, token: str) -> set[str]:
    """Those whose line has the token, in both of which {} is the string."""
    found = zip(strings, observe(strings, line), strict=True)
    return {text for text, tokens in found if token.format(text.lower()) in tokens}


def main() -> None:
    """Observe, group, write."""
    plain = words()
    likely = plain | abbreviations(plain) | {w for n in (1, 2, 3) for w in every(n)}
    likely |= {f"{a}.{b}" for a in every(2) for b in string.ascii_lowercase}
    candidates = sorted(likely | set(every(4)))
    stopped: dict[str, set[str]] = {}
    first = whole([w.capitalize() for w in candidates if len(w) > 1], "x {}. y", "{}.")
    kept = sorted({word.lower() for word in first})
    for form, change in FORMS.items():
        found = whole([change(word) for word in kept], "x {}. y", "{}.")
        stopped[form] = {word.lower() for word in found}
    letter = {word.lower() for word in whole([w.capitalize() for w in kept], "x {}.z y", "{}.")}
    numbered = whole(sorted(likely), "x {}. 5 y", "{}.") - whole(sorted(likely), "x {}. y", "{}.")
    capitals = sorted({*map(str.capitalize, plain), *(f"{w.capitalize()}." for w in kept)})
    after_initial = zip(capitals, observe(capitals, "sign K. {} y"), strict=True)
    starters = {word for word, tokens in after_initial if "k." not in tokens}
    endings = {word for word in candidates if "." not in word} | {
        f"{a}{n}" for a in every(2) for n in string.digits
    }
    extensions = whole(sorted(endings), "x 1.{} y", "1.{}")
    always = stopped["lower"] & stopped["upper"]
    tables = {
        "# With a full stop they are one token, in any case.\nTITLES": always - letter,
        "# The same, and what follows right after is a token of its own.\nLAST_WORDS": always
        & letter,
        "# Not in capitals alone: `MTG.` is two tokens.\nTITLES_IN_SMALL_LETTERS": stopped["lower"]
        - stopped["upper"]
        - letter,
        "LAST_WORDS_IN_SMALL_LETTERS": (stopped["lower"] - stopped["upper"]) & letter,
        "# With a capital only, as they are words too; these, too, end what they stand in.\n"
        "LAST_WORDS_WITH_A_CAPITAL": stopped["capital"] - stopped["lower"],
        "# Before a number only.\nNUMBERED": numbered,
        "# An initial before one of these ends a sentence: `sign K. The`.\nSTARTERS": starters,
        "# What follows the full stop in names of files: `1.jpg`.\nEXTENSIONS": extensions,
    }
    text = HEAD.format(count=f"{len(candidates) + len(endings):,}")
    for name, members in tables.items():
        comment, _, constant = name.rpartition("\n")
        body = textwrap.fill(" ".join(sorted(members)), 92, break_on_hyphens=False)
        body = textwrap.indent(body, "    ")
        text += f"\n{comment}{comment and chr(10)}{constant}: Final = tuple(\n"
        text += f'    """\n{body}\n    """.split()\n)\n'
    OUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
