"""How captions are searched for, from `generation_config.json`: sections of the manifest.

Prompt, ends and what is forbidden are those of transformers' `generate`; what it does beyond that
and this runtime does not is named in a note.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penstock.errors import UnsupportedModelError, UsageError

MAX_LENGTH = 20  # transformers' own, the prompt counted
MOST_BEAMS, MOST_TOKENS = 10, 1024  # that the runtime takes
IGNORED: dict[str, tuple[Any, ...]] = {
    # key: values that mean that it is not used
    "do_sample": (None, False), "repetition_penalty": (None, 1.0), "num_beam_groups": (None, 1),
    "encoder_repetition_penalty": (None, 1.0), "encoder_no_repeat_ngram_size": (None, 0),
    "forced_bos_token_id": (None,), "forced_eos_token_id": (None,), "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,), "penalty_alpha": (None, 0.0),
    "guidance_scale": (None, 1.0), "constraints": (None,), "force_words_ids": (None,),
}  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """What a folder and the caller say about generating.

    Attributes:
        search: the manifest's section `generation`; rules: part of its section `decoder`.
        notes: settings of the folder that are left out.
    """

    search: dict[str, Any]
    rules: dict[str, Any]
    notes: tuple[str, ...]


def read_generation(
    config: Any,
    prompt: list[int],
    ends: list[int],
    positions: int,
    *,
    beams: int | None = None,
    max_tokens: int | None = None,
) -> Generation:
    """Settings for the runtime.

    Args:
        config: transformers' GenerationConfig, or None.
        positions: tokens that the decoder has places for.
        beams, max_tokens: that the caller wants instead of the folder's.

    Raises:
        UsageError: beams or max_tokens is out of range.
        UnsupportedModelError: the prompt leaves no room for a caption.
    """
    room = min(positions + 1 - len(prompt), MOST_TOKENS)
    if room < 1:
        raise UnsupportedModelError(
            f"the prompt has {len(prompt)} tokens and the decoder places for {positions}; give a "
            "shorter prompt"
        )
    if max_tokens is not None and not 1 <= max_tokens <= room:
        raise UsageError(f"max_tokens is {max_tokens}, this captioner takes 1 to {room}")
    if beams is not None and not 1 <= beams <= MOST_BEAMS:
        raise UsageError(f"beams is {beams}, expected 1 to {MOST_BEAMS}")

    def asked(key: str, default: Any) -> Any:
        value = getattr(config, key, None)
        return default if value is None else value

    length = asked("max_length", MAX_LENGTH)
    tokens = asked("max_new_tokens", max(length - len(prompt), 1))
    least = max(asked("min_length", 0) - len(prompt), asked("min_new_tokens", 0), 0)
    early = asked("early_stopping", False)
    search = {
        "beams": beams or min(asked("num_beams", 1), MOST_BEAMS),
        "max_tokens": max_tokens or min(tokens, room),
        "most_tokens": room,
        "end": ends[0],
        "length_penalty": float(asked("length_penalty", 1.0)),
        "early_stopping": early is True,
    }
    rules = {
        "prompt": prompt,
        "ends": ends,
        "min_tokens": min(least, room),
        "no_repeat": asked("no_repeat_ngram_size", 0),
        "suppress": list(asked("suppress_tokens", [])),
        "suppress_first": list(asked("begin_suppress_tokens", [])),
        "bad_words": [list(word) for word in asked("bad_words_ids", []) if list(word) != ends[:1]],
    }
    return Generation(search, rules, _notes(config, early))


def _notes(config: Any, early: Any) -> tuple[str, ...]:
    notes = [
        f"generation_config asks for {key}={value!r}, which is left out"
        for key, unused in IGNORED.items()
        if (value := getattr(config, key, None)) not in unused
    ]
    if early not in (True, False):
        notes.append(f"early_stopping={early!r} is taken as false")
    return tuple(notes)
