"""What the tokens of the Penn Treebank look like, as Stanford CoreNLP 3.4.1 finds them.

Written from what that program makes of texts, not from its source, which is under the GPL: each
pattern says what was observed, and the lists of words come from `ptb_words`, which a script fills
by asking the program. docs/metrics.md says more. The notation of quotes, brackets and contractions
is the Treebank's own: web.archive.org/web/1997/http://www.cis.upenn.edu/~treebank/tokenization.html
"""

from __future__ import annotations

import re
from re import Pattern
from typing import Final

from penstock.export.metrics import ptb_words

_LETTER = r"(?:[^\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209c\u2150-\u218b\u2460-\u24ff]"
_LETTER += r"|[\u0300-\u036f\u00ad])"
_ALNUM = rf"(?:{_LETTER}|\d)"
_WORD = rf"{_LETTER}{_ALNUM}*"
# Word, hyphen, word; in French and Irish names with an article: L'Oréal, O'Brien.
_PART = rf"(?:[dDlLoOnN]['’]{_ALNUM})?{_ALNUM}+"
_COMPOUND = rf"{_PART}(?:[-_\u058a\u2010\u2011]{_PART})*"
_LINK = r"[^\s\"<>|(){}]"
_LINK_END = r"[^\s\"<>|.!?(){},-]"
_ENDINGS = "(?:[msdMSD]|re|ve|ll|RE|VE|LL|Re|Ve|Ll)"
_CLITIC = rf"(?:'{_ENDINGS}(?![A-Za-z])|’{_ENDINGS})"
_SIDE = rf"[A-Za-z0-9]+(?:-{_LETTER}+){{0,2}}"  # of a slash


def _any(words: tuple[str, ...]) -> str:
    return "|".join(re.escape(word) for word in words)


def _in_small_letters(words: tuple[str, ...]) -> str:
    return _any((*words, *map(str.capitalize, words)))


def _with_a_capital(words: tuple[str, ...]) -> str:
    return _any((*map(str.capitalize, words), *map(str.upper, words)))


# The longest match wins, and of several as long the first. Where a pattern has a group, that is
# the token, and what follows only counts for the length.
PATTERNS: Final[tuple[Pattern[str], ...]] = tuple(
    re.compile(pattern)
    for pattern in (
        # markup, links and addresses; parts as long as can be, or long texts would take forever
        r"<[!?/]?[A-Za-z][^<>\r\n]*>",
        rf"https?://{_LINK}+{_LINK_END}",
        rf"(?:[^\s\"<>|.!?(){{}},/:]{{1,63}}\.){{1,9}}(?:com|net|org|edu)(?:/{_LINK}+{_LINK_END})?(?!{_ALNUM})",
        r"[A-Za-z0-9][^\s\"<>|(){}@]{0,63}@(?:[^\s\"<>|(){}.@]{1,63}\.){0,9}[^\s\"<>|(){}.]+",
        rf"#{_LETTER}+",
        r"@[A-Za-z_][A-Za-z_0-9]*",
        r"&(?i:amp|lt|gt|quot|apos|nbsp);|&#\d+;",
        # contractions
        r"([A-Za-z]*[A-MO-Za-mo-z])[nN]['’][tT]",
        r"[nN]['’][tT]",
        rf"({_WORD})['’]{_ENDINGS}",
        _CLITIC,
        r"['’][nN]['’]",
        r"'[nN](?!\S)|’[nN]",
        r"['’](?i:em|cause|till?)",
        r"('[tT])(?i:is|was)",
        r"['’]\d\d(?!\S)|['’]\d\ds(?!\w)",
        r"((?i:can))(?i:not)",
        r"((?i:gon|wan))(?i:na)",
        r"((?i:got))(?i:ta)",
        r"((?i:gim|lem))(?i:me)",
        r"(?i:c['’](?:est|mon)|cap['’]n|e['’]er|li['’]l|hallowe['’]en|s['’]mores|o['’]o|ev'ry)",
        r"(?i:dunkin|somethin|ol)['’]",
        rf"[lLdDjJ]['’]|[yY]['’](?={_LETTER})",
        rf"[A-HJ-XZ]['’]{_LETTER}{{2,}}",
        rf"{_LETTER}+[aeiouyAEIOUY]['’][aeiouA-Z]{_LETTER}*",
        # abbreviations
        rf"(?i:{_any(ptb_words.TITLES)})\.",
        rf"(?:{_in_small_letters(ptb_words.TITLES_IN_SMALL_LETTERS)})\.",
        rf"((?i:{_any(ptb_words.LAST_WORDS)})\.).?",
        rf"((?:{_in_small_letters(ptb_words.LAST_WORDS_IN_SMALL_LETTERS)})\.).?",
        rf"((?:{_with_a_capital(ptb_words.LAST_WORDS_WITH_A_CAPITAL)})\.).?",
        rf"((?i:{_any(ptb_words.NUMBERED)})\.)\s?\d",
        r"[A-Za-z](?:\.[A-Za-z])+\.",
        rf"[A-Za-z]\.(?!\s+(?:(?:{_with_a_capital(ptb_words.STARTERS)})(?:\s|$)|<[A-Za-z]))",
        rf"((?:{_ALNUM}+[-.!?])*{_ALNUM}+\.)[,;:]",
        # words and compounds
        rf"{_WORD}(?:[.!?]{_WORD})*",
        _COMPOUND,
        rf"{_ALNUM}(?:{_ALNUM}|[.,])*(?:-(?:(?:[A-Za-z]\.){{2,}}|{_ALNUM}+))+",
        rf"{_SIDE}(?:/{_SIDE}){{1,2}}",
        rf"{_ALNUM}+(?:\.{_ALNUM}+)*\.(?i:{_any(ptb_words.EXTENSIONS)})(?!\w)",
        r"[A-Z]+(?:&(?:amp;)?[A-Z]+)+",
        r"[cC]\+\+|[cCfF]#",
        # numbers and money
        r"[-+]?(?:\d+(?:[.:,]\d+)*|(?:[.:,]\d+)+)",
        r"(?:\d{1,4}[- \u00a0])?\d{1,4}/\d{1,4}(?:/\d{2,4})?",
        r"(?:\(\d{3}\)[ \u00a0]?|\d{3}[- \u00a0])\d{3}[- \u00a0]\d{4}",
        r"[A-Z]+\$",
        # marks
        r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z])",
        r"\(['<=>^~x-][-._]?['<=>^~x-]\)|['<=>^~x-]_['<=>^~x-]",
        r"[?!]+|_+|\*+|#+|@+|-+|<<|>>|''|``|[\u2018\u2019\u201c\u201d]{2}",
        r"\.{3,}|\.(?: \.){2,}",
        # what the program knows no more of than that it is something
        r"[!-/:-@\[-`{-~\u0080\u0091-\u0094\u0096\u0097\u00a1-\u00ac\u00ae-\u00bf\u00d7\u00f7]",
        r"[\u02c2-\u02df\u2013-\u2023\u2026\u2030-\u203b\u203e-\u2042\u2044\u2070-\u208e\u20a0"
        r"\u20a4\u20ac\u2100-\u214f\u2153\u2154\u2190-\u245f\u2460-\u24e9\u2500-\u2775\u2794-\u2bff"
        r"\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffe6]",
    )
)
