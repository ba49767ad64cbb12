"""Words that the Java tokenizer treats apart, by what it did to 1,488,398 strings.

Written by tests/export/metrics/observe_words.py; do not edit.
"""

from __future__ import annotations

from typing import Final

# With a full stop they are one token, in any case.
TITLES: Final = tuple(
    """
    adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col comdr cpl dept det dr drs
    elec ens ft gen gov govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt
    natl pfc ph pres prof profs pvt rep reps rev sen sens sfc sgt spc st ste supt supts treas vs
    wm
    """.split()
)

# The same, and what follows right after is a token of its own.
LAST_WORDS: Final = tuple(
    """
    al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec ed.d esq
    est etc ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo
    mon mont neb nev nov oct okla penn ph.d plc rd rt sep sept seq sq sr sys tel tenn thu thurs
    tue tues univ va vt wed wis wisc wyo
    """.split()
)

# Not in capitals alone: `MTG.` is two tokens.
TITLES_IN_SMALL_LETTERS: Final = tuple(
    """
    mfg mtg
    """.split()
)

LAST_WORDS_IN_SMALL_LETTERS: Final = tuple(
    """
    ppte ppty pte ptes pty ptys
    """.split()
)

# With a capital only, as they are words too; these, too, end what they stand in.
LAST_WORDS_WITH_A_CAPITAL: Final = tuple(
    """
    ark az del ill la mass miss ore pa tex wash
    """.split()
)

# Before a number only.
NUMBERED: Final = tuple(
    """
    art ca fig figs no nos op pp prop
    """.split()
)

# An initial before one of these ends a sentence: `sign K. The`.
STARTERS: Final = tuple(
    """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last
    Many More Mr. Ms. Now Once One Other Our She Since So Some Such That The Their Then There
    These They This We What When While Yet You
    """.split()
)

# What follows the full stop in names of files: `1.jpg`.
EXTENSIONS: Final = tuple(
    """
    bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php
    pl png ppt ps py sql tar txt wav x xml zip
    """.split()
)
