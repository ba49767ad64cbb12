"""Opens thousands of damaged .psplat files: each must work or be refused, never crash.

    python native/tests/fuzz_psplat.py FOLDER --count 10000 [--native SANITIZED/_native.so]

Mutations are made from a seed, so a finding is repeated with --first N --count 1. The file at hand
is FOLDER/current.psplat; after a crash it is the one that did it. Exit status 1: findings, as JSON.
"""

from __future__ import annotations

import resource
import struct
import sys
from pathlib import Path

import numpy as np
from fuzzing import run  # beside it

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

NUMBERS = [
    0, 1, 2, 3, 7, 8, 15, 16, 31, 127, 128, 254, 255, 256, 4095, 65535, 65536, 1 << 20,
    (1 << 28) - 1, 1 << 28, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 62) + 1,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
]  # fmt: skip
FLOATS = [0.0, -1.0, 1e-320, 1e-30, 1e9, 1e15, 1e300, float("nan"), float("inf"), -float("inf")]
GROUP, CRC = 40, 140  # bytes of a group entry; where the head's checksum is
FILES = 12
ROOM = 128 << 20  # files of some kilobytes take 57 MiB of addresses, with all that is imported late


def limit_memory() -> None:
    """So that what takes too much raises MemoryError, which is a finding."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


class Fuzzer:
    def __init__(self, folder: Path) -> None:
        from penstock import _native
        from penstock.export.omg4.psplat_writer import write_psplat
        from tests.loaders.splats.encoded_builder import random_encoded

        self.crc32c = _native.crc32c
        self.path = folder / "current.psplat"
        self.files = []
        for number in range(FILES):
            encoded = random_encoded(
                [150, 40, 3, 400][number % 4], number % 4, dynamic=number % 3 > 0, seed=number
            )
            write_psplat(self.path, encoded, least_group=40, alignment=4 * (number % 2))
            self.files.append(self.path.read_bytes())

    # ------------------------------------------------------------ mutations

    def mutate(self, rng: np.random.Generator) -> bytes:
        content = bytearray(self.files[int(rng.integers(len(self.files)))])
        head = struct.unpack_from("<I", content, 12)[0]
        kinds = [self._flip, self._flip, self._number, self._number, self._float, self._noise,
                 self._swap, self._truncate]  # fmt: skip
        for _ in range(int(rng.integers(1, 4))):
            kinds[int(rng.integers(len(kinds)))](content, head, rng)
        return bytes(content)

    def _place(self, content: bytearray, head: int, size: int, rng: np.random.Generator) -> int:
        """In the head mostly."""
        end = head if rng.random() < 0.7 else len(content)
        return int(rng.integers(0, max(1, min(end, len(content)) - size)))

    def _flip(self, content: bytearray, head: int, rng: np.random.Generator) -> None:
        for _ in range(int(rng.integers(1, 5))):
            at = self._place(content, head, 1, rng)
            if at < len(content):
                content[at] ^= 1 << int(rng.integers(8))

    def _number(self, content: bytearray, head: int, rng: np.random.Generator) -> None:
        size = int(rng.choice([1, 2, 4, 8]))
        value = NUMBERS[int(rng.integers(len(NUMBERS)))] & (1 << 8 * size) - 1
        at = self._place(content, head, size, rng)
        if at + size <= len(content):
            content[at : at + size] = value.to_bytes(size, "little")

    def _float(self, content: bytearray, head: int, rng: np.random.Generator) -> None:
        at = self._place(content, head, 8, rng) // 8 * 8
        if at + 8 <= len(content):
            struct.pack_into("<d", content, at, FLOATS[int(rng.integers(len(FLOATS)))])

    def _noise(self, content: bytearray, head: int, rng: np.random.Generator) -> None:
        """Codes of any bits."""
        if len(content) > head:
            at = int(rng.integers(head, len(content)))
            noise = rng.bytes(min(int(rng.integers(1, 300)), len(content) - at))
            content[at : at + len(noise)] = noise

    def _swap(self, content: bytearray, head: int, rng: np.random.Generator) -> None:
        """Two stretches of the head."""
        size = int(rng.choice([1, 4, 8, 16, 40]))
        a, b = (self._place(content, head, size, rng) for _ in range(2))
        if max(a, b) + size <= len(content):
            content[a : a + size], content[b : b + size] = (
                content[b : b + size],
                content[a : a + size],
            )

    def _truncate(self, content: bytearray, head: int, rng: np.random.Generator) -> None:
        if rng.random() < 0.3:
            content.extend(rng.bytes(int(rng.integers(1, 500))))
        else:
            del content[int(rng.integers(0, len(content) + 1)) :]

    def repair(self, content: bytes) -> bytes:
        """Right lengths and checksums on a damaged file, so that the damage gets past them."""
        if len(content) < 144:
            return content
        fixed = bytearray(content)
        fixed[:10] = self.files[0][:10]
        groups, books, channels = struct.unpack_from("<HBB", fixed, 28)
        head = 144 + GROUP * groups + 40 * books + 16 * channels
        if head > len(fixed):
            return content
        struct.pack_into("<IQ", fixed, 12, head, len(fixed))
        for number in range(groups):
            at = 144 + GROUP * number
            offset, nbytes = struct.unpack_from("<QI", fixed, at + 16)
            struct.pack_into("<I", fixed, at + 32, self._crc(fixed, offset, nbytes))
        nbytes, offset, nets = struct.unpack_from("<IQI", fixed, 108)
        struct.pack_into("<I", fixed, 124, self._crc(fixed, offset, nbytes))
        struct.pack_into("<I", fixed, 128, self._crc(fixed, offset + nbytes, nets))
        struct.pack_into("<I", fixed, CRC, 0)
        struct.pack_into("<I", fixed, CRC, self._crc(fixed, 0, head))
        return bytes(fixed)

    def _crc(self, content: bytearray, offset: int, nbytes: int) -> int:
        if nbytes == 0 or offset + nbytes > len(content):
            return 0
        part = np.frombuffer(bytes(content[offset : offset + nbytes]), np.uint8)
        found: int = self.crc32c(part)
        return found

    # ------------------------------------------------------------ what is attacked

    def attempt(self, content: bytes, rng: np.random.Generator) -> None:
        """Read all of it; what is read must be a model that can be drawn."""
        from penstock.loaders.splats.model import check_model
        from penstock.loaders.splats.psplat_file import PsplatFile

        self.path.write_bytes(content)
        with PsplatFile.open(self.path) as file:
            for segment in reversed(file.info.segments):
                model = file.segment(segment.index)
                assert model.nbytes == segment.decoded_nbytes
                check_model(model, self.path)
            file.active(1.0)


def allowed() -> tuple[type[Exception], ...]:
    from penstock import errors

    return (errors.FormatError, errors.StorageError)


if __name__ == "__main__":
    sys.exit(run(__doc__, Fuzzer, allowed, repaired=0.8, limit=limit_memory))
