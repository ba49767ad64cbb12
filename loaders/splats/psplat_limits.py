"""How many bytes a .psplat file's parts have, at least and at most. docs/psplat-format.md.

No part is taken into memory that is larger than its numbers could be, and no small file becomes
splats that fill the memory.
"""

from __future__ import annotations

from penstock.loaders.splats.file_access import FREE_BYTES

VALUES_A_BYTE = 8  # of the codebook section, at most
MAX_VALUE_BYTES = 8  # at most three symbols of 15 bits and some raw ones
STATES_BYTES = 16  # of a coder, that a payload begins with
MAX_POSITION_BYTES = 64  # the number of digits kept, then at most 23 symbols
MAX_RATIO = 100
"""Decoded splats are at most so many times as large as their file, over `FREE_BYTES`: the best
files of scenes reach 30 (degree 3, colours by nets), many equal splats would reach 224."""


def splat_nbytes(degree: int, dynamic: bool) -> int:
    """Of a splat of a decoded model."""
    return 4 * (3 + 3 + 4 + 1 + 3 * (degree + 1) ** 2 + (5 if dynamic else 0))


def least_file_bytes(count: int, degree: int, dynamic: bool) -> int:
    """Of a file of so many splats, by `MAX_RATIO`."""
    decoded = count * splat_nbytes(degree, dynamic)
    return -(-decoded // MAX_RATIO) if decoded > FREE_BYTES else 0


def group_bytes(count: int, channels: int) -> tuple[int, int]:
    """The least and the most of a group's payload, whose number is even."""
    each = MAX_POSITION_BYTES + MAX_VALUE_BYTES * channels
    return max(STATES_BYTES, count), 2 * STATES_BYTES + count * each


def codebook_bytes(values: int) -> tuple[int, int]:
    """The least and the most of a codebook section with so many numbers, whose number is even."""
    if values == 0:
        return 0, 0
    least = max(STATES_BYTES, values // VALUES_A_BYTE)
    return least, 2 * STATES_BYTES + values * MAX_VALUE_BYTES
