"""ICC profiles written by hand from the specification (ICC.1:2001-04), with known answers."""

from __future__ import annotations

import struct
from collections.abc import Mapping

D50 = (0.9642, 1.0, 0.8249)


def linear_rgb() -> bytes:
    """sRGB's colours without its curve: half the light is 128, which sRGB writes as 188."""
    columns = {  # sRGB's, adapted to D50
        "rXYZ": (0.43607, 0.22249, 0.01392),
        "gXYZ": (0.38515, 0.71687, 0.09708),
        "bXYZ": (0.14307, 0.06061, 0.71410),
    }
    tags = {name: b"XYZ \0\0\0\0" + _fixed(*values) for name, values in columns.items()}
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)  # no entries: the identity
    return _profile(b"RGB ", b"XYZ ", {**tags, "rTRC": curve, "gTRC": curve, "bTRC": curve})


def grey_ink() -> bytes:
    """A CMYK whose inks are all grey: paper is white, any full ink is black; L* between."""
    # lut8: a grid of 2 for each of 4 inks, and Lab as 8 bits (L* 0..255, a* and b* around 128).
    grid = b"".join(bytes([0 if inks else 255, 128, 128]) for inks in range(16))
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return _profile(b"CMYK", b"Lab ", {"A2B0": lut + ramp * 4 + grid + ramp * 3})


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _profile(space: bytes, connection: bytes, tags: Mapping[str, bytes]) -> bytes:
    everything = {
        "desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        "cprt": b"text\0\0\0\0none\0",
        "wtpt": b"XYZ \0\0\0\0" + _fixed(*D50),
        **tags,
    }
    table, body = struct.pack(">I", len(everything)), b""
    start = 128 + 4 + 12 * len(everything)
    for name, data in everything.items():
        table += name.encode() + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    device = b"prtr" if space == b"CMYK" else b"mntr"
    header = struct.pack(">I4sI", start + len(body), b"test", 0x02100000) + device
    header += space + connection + bytes(12) + b"acsp" + bytes(28) + _fixed(*D50)
    return header.ljust(128, b"\0") + table + body
