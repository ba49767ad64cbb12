"""Splats and files of splats for tests, packed by struct and loops: no code of the readers."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.loaders.splats.model import SplatModel, SplatMotion

COEFFICIENTS = (1, 4, 9, 16)


def random_model(
    count: int = 5, degree: int = 0, *, dynamic: bool = False, seed: int = 0
) -> SplatModel:
    """Splats within some units of the origin, none of them extreme."""
    rng = np.random.default_rng(seed)
    rotations = rng.normal(size=(count, 4))
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    motion = None
    if dynamic:
        motion = SplatMotion(
            velocities=rng.normal(0, 0.5, (count, 3)).astype("f4"),
            t_centers=rng.uniform(0, 2, count).astype("f4"),
            t_sigmas=np.exp(rng.uniform(-3, 1, count)).astype("f4"),
            start=0.0,
            end=2.0,
            fps=30.0,
        )
    return SplatModel(
        means=rng.normal(0, 2, (count, 3)).astype("f4"),
        scales=np.exp(rng.uniform(-6, 0, (count, 3))).astype("f4"),
        rotations=rotations.astype("f4"),
        opacities=rng.uniform(0.02, 0.98, count).astype("f4"),
        sh=rng.uniform(-0.7, 0.7, (count, COEFFICIENTS[degree], 3)).astype("f4"),
        motion=motion,
    )


models = st.builds(
    random_model,
    count=st.integers(0, 40),
    degree=st.integers(0, 3),
    dynamic=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
static_models = st.builds(
    random_model,
    count=st.integers(0, 40),
    degree=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)


def same_rotations(a: NDArray[np.floating], b: NDArray[np.floating], tolerance: float) -> bool:
    """Whether quaternions are equal, or each other's negative, which is the same rotation."""
    return bool((1 - np.abs(np.einsum("ni,ni->n", a, b)) < tolerance).all())


def ply_bytes(
    elements: Sequence[tuple[str, Sequence[tuple[str, str]], Sequence[Sequence[float]]]],
    comments: Sequence[str] = (),
    order: str = "<",
) -> bytes:
    """A PLY file of (name, [(type, column)], rows)."""
    codes = {"float": "f", "double": "d", "uint": "I", "uchar": "B", "int": "i", "short": "h"}
    name = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    lines = ["ply", f"format {name} 1.0", *(f"comment {text}" for text in comments)]
    body = b""
    for element, columns, rows in elements:
        lines.append(f"element {element} {len(rows)}")
        lines += [f"property {kind} {column}" for kind, column in columns]
        row_format = order + "".join(codes[kind] for kind, _ in columns)
        body += b"".join(struct.pack(row_format, *row) for row in rows)
    return "\n".join([*lines, "end_header", ""]).encode() + body


def inria_columns(rest: int = 0) -> list[tuple[str, str]]:
    """INRIA's columns in their order, with so many f_rest_*."""
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(rest)]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    return [("float", name) for name in names]


def inria_row(rest: Sequence[float] = (), /, **changed: float) -> list[float]:
    """A splat of those columns: identity rotation, scales e^-3, opacity a half."""
    names = [name for _, name in inria_columns(len(rest))]
    values = dict.fromkeys(names, 0.0) | {"rot_0": 1.0}
    values |= {f"scale_{i}": -3.0 for i in range(3)}
    values |= {f"f_rest_{i}": value for i, value in enumerate(rest)}
    return list((values | changed).values())


def spz_payload(
    version: int,
    splats: Sequence[tuple[Sequence[float], int, Sequence[int], Sequence[int], bytes, bytes]],
    fraction: int = 12,
) -> list[bytes]:
    """The attributes of SPZ, of (position, alpha, colour, scales, rotation bytes, sh bytes)."""
    positions = b""
    for position, *_ in splats:
        for value in position:
            if version == 1:
                positions += struct.pack("<e", value)
            else:
                positions += struct.pack("<i", round(value * 2**fraction))[:3]
    return [
        positions,
        bytes(s[1] for s in splats),
        b"".join(bytes(s[2]) for s in splats),
        b"".join(bytes(s[3]) for s in splats),
        b"".join(s[4] for s in splats),
        b"".join(s[5] for s in splats),
    ]


def spz_gzip(
    version: int,
    parts: Sequence[bytes],
    count: int,
    degree: int = 0,
    fraction: int = 12,
    flags: int = 0,
    trailer: bytes = b"",
) -> bytes:
    """SPZ of version 1 to 3."""
    header = b"NGSP" + struct.pack("<II", version, count) + bytes([degree, fraction, flags, 0])
    packer = zlib.compressobj(6, wbits=31)
    return packer.compress(header + b"".join(parts) + trailer) + packer.flush()


def spz_zstd(
    parts: Sequence[bytes],
    count: int,
    degree: int = 0,
    fraction: int = 12,
    flags: int = 0,
    extensions: bytes = b"",
    **header: int,
) -> bytes:
    """SPZ of version 4; `header` overrides version, streams, table."""
    import zstandard

    streams = [(zstandard.compress(part), len(part)) for part in parts if part]
    values = {"version": 4, "streams": len(streams), "table": 32 + len(extensions)} | header
    head = b"NGSP" + struct.pack("<II", values["version"], count)
    head += bytes([degree, fraction, flags, values["streams"]])
    head += struct.pack("<I12x", values["table"]) + extensions
    table = b"".join(struct.pack("<QQ", len(packed), whole) for packed, whole in streams)
    return head + table + b"".join(packed for packed, _ in streams)


def spz_rotation(quaternion: Sequence[float]) -> bytes:
    """Four bytes of a unit quaternion x, y, z, w, as version 3 packs it."""
    largest = max(range(4), key=lambda i: abs(quaternion[i]))
    negate = quaternion[largest] < 0
    word = largest
    for i, value in enumerate(quaternion):
        if i != largest:
            magnitude = int(511 * abs(value) / math.sqrt(0.5) + 0.5)
            word = word << 10 | ((value < 0) != negate) << 9 | min(magnitude, 511)
    return struct.pack("<I", word)


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
