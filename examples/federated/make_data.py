"""Synthetic sensor windows for a first federation: three axes of an accelerometer, four activities.

    python examples/federated/make_data.py windows.npz --users 40

Writes inputs float32 [n, 3, 64], labels int64 [n] and users int64 [n]. An activity is a rhythm and
a strength on each axis; every user moves a little faster or slower, wears the sensor turned by
another angle, and does some activities more than others. So users differ as real ones do, and a
model that has seen only a few of them does worse on the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

NAMES = ("rest", "walk", "run", "stairs")
SECONDS, RATE = 3.2, 20.0  # of a window; samples a second
RHYTHM = np.array([0.0, 1.8, 2.8, 1.4])  # steps a second
STRENGTH = np.array(  # of x, y and z, in g
    [[0.02, 0.02, 0.02], [0.3, 0.5, 0.2], [0.8, 1.1, 0.5], [0.3, 0.7, 0.6]]
)


def make(users: int, windows: int, seed: int) -> dict[str, np.ndarray]:
    """Windows of all users, in time."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(SECONDS * RATE)) / RATE
    inputs, labels, owners = [], [], []
    for user in range(users):
        pace, angle = rng.normal(1, 0.12), rng.normal(0, 0.6)
        turn = np.array(
            [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
        )
        habit = rng.dirichlet(np.full(len(NAMES), 0.7))
        for label in rng.choice(len(NAMES), size=windows, p=habit):
            phase = rng.uniform(0, 2 * np.pi)
            beat = 2 * np.pi * RHYTHM[label] * pace * time + phase
            waves = np.stack([np.sin(beat), np.sin(beat + 1.0), np.sin(2 * beat)])
            strength = STRENGTH[label][:, None] * rng.lognormal(0, 0.25)
            moved = turn @ (strength * waves) + np.array([0.0, 0.0, 1.0])[:, None]
            inputs.append(moved + rng.normal(0, 0.15, moved.shape))
            labels.append(label)
            owners.append(user)
    return {
        "inputs": np.array(inputs, np.float32),
        "labels": np.array(labels, np.int64),
        "users": np.array(owners, np.int64),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Synthetic sensor windows for a federation.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--windows", type=int, default=60, help="of each user")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    arrays = make(args.users, args.windows, args.seed)
    np.savez(args.out, **arrays)  # type: ignore[arg-type]
    print(f"{args.out}: {len(arrays['labels'])} windows of {args.users} users, {', '.join(NAMES)}")


if __name__ == "__main__":
    main()
