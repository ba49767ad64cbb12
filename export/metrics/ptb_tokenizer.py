"""The Penn Treebank tokenizer of COCO's caption metrics, without its Java.

Does what pycocoevalcap does with Stanford CoreNLP 3.4.1: tokens in lower case, most punctuation
left out. Quirks are kept: `(` is `-lrb-`, two exclamation marks are one token and stay, `dog.The`
is one word. It looks at each text alone; the Java program sees the next one too, and where that
begins with `A` takes a last initial, as in `sign K.`, for the end of a sentence.
"""

from __future__ import annotations

import re
from typing import Final

from penstock.export.metrics.ptb_patterns import PATTERNS

# Tokens that pycocoevalcap leaves out. Brackets are not among them: it names them in capitals.
DROPPED: Final = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_REPLACED: Final = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    '"': "''",
    "\u2018": "`",
    "\u201b": "`",
    "\u2039": "`",
    "\u0091": "`",
    "\u2019": "'",
    "\u203a": "'",
    "\u0092": "'",
    "\u201c": "``",
    "\u00ab": "``",
    "\u0093": "``",
    "\u201d": "''",
    "\u00bb": "''",
    "\u0094": "''",
    "\u2013": "--",
    "\u2014": "--",
    "\u2015": "--",
    "\u0096": "--",
    "\u0097": "--",
    "\u2026": "...",
    "\u00a2": "cents",
    "\u00a3": "#",
    "\u00a4": "$",
    "\u20a0": "$",
    "\u20ac": "$",
    "\u0080": "$",
    "\u00bc": "1/4",
    "\u00bd": "1/2",
    "\u00be": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": "''",
    "&apos;": "'",
    "&nbsp;": "",
}
_SPLIT: Final = frozenset(["cannot", "gonna", "gotta", "wanna", "gimme", "lemme"])

# Most of any caption: words of plain letters between spaces.
_PLAIN: Final = re.compile(r"[A-Za-z]+(?=,? |$)")
_ENTITY: Final = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp);")
_CURLY: Final = frozenset("\u2018\u2019\u201c\u201d")
_CLITIC: Final = re.compile("\u2019(?:[msd]|re|ve|ll)|n\u2019t")
_BRACKET: Final = re.compile(r"[()]")


def tokenize_ptb(text: str) -> list[str]:
    """The tokens that the caption metrics count."""
    return [token for token in split_ptb(text) if token not in DROPPED]


def split_ptb(text: str) -> list[str]:
    """All tokens, punctuation included."""
    tokens: list[str] = []
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        plain = _PLAIN.match(text, place)
        if plain and plain.group().lower() not in _SPLIT:
            token = plain.group()
        else:
            token = _longest(text, place)
        place += len(token) or 1  # a character that is in no token is passed over
        if token:
            tokens.append(_normalize(token))
    return [token for token in tokens if token]


def _longest(text: str, place: int) -> str:
    """The token that begins at a place in the text; empty: none does."""
    best, reach = "", place
    for pattern in PATTERNS:
        match = pattern.match(text, place)
        if match and match.end() > reach:
            reach = match.end()
            best = match.group(pattern.groups)  # group 0 where there are no others
    return best


def _normalize(token: str) -> str:
    """A token in the Treebank's notation; empty: it is none."""
    replaced = _REPLACED.get(token)
    if replaced is not None:
        return replaced
    word = token.lower()
    if word.isalpha():
        return word
    if set(word) <= {"-"}:
        return "--" if 2 <= len(word) <= 4 else word
    if set(word) <= {".", " "}:
        return "..."
    if len(word) == 2 and set(word) <= _CURLY:
        return "".join(_REPLACED[mark] for mark in word)
    if _CLITIC.fullmatch(word):
        word = word.replace("\u2019", "'")
    word = _ENTITY.sub(lambda found: _REPLACED[found.group()], word)
    word = _BRACKET.sub(lambda found: _REPLACED[found.group()], word)
    return re.sub(r"\s", "\u00a0", word).replace("\u00ad", "")
