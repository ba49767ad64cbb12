"""The model that a run trained, live for inference: published, run, and compared with its labels.

    python examples/federated/use_model.py run windows.npz

Takes the newest checkpoint of the run's folder, exports it to ONNX into `live/`, holds it against
torch, makes it current, and lets Penstock's runtime classify the windows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from penstock.federated.algorithm import GLOBAL
from penstock.federated.client.deploy import LiveModel
from penstock.federated.models import ModelOptions
from penstock.federated.server.checkpoint import read_newest


def main() -> None:
    run, windows = Path(sys.argv[1]), Path(sys.argv[2])
    checkpoint = read_newest(run, print)
    if checkpoint is None:
        sys.exit(f"{run}: there is no checkpoint; run the simulation first")
    arrays = {
        name.removeprefix(GLOBAL): array
        for name, array in checkpoint.state.items()
        if name.startswith(GLOBAL)
    }
    with np.load(windows) as data, LiveModel(Path("live")) as live:
        published = live.publish(arrays, ModelOptions.from_json(checkpoint.model))
        print(
            f"round {checkpoint.round_number} is live as live/{published.file}; "
            f"its logits differ from torch's by {published.max_difference:.1e} at most"
        )
        right = live.run(data["inputs"]).argmax(axis=1) == data["labels"]
        print(f"{100 * right.mean():.1f} % of {len(right)} windows are classified right")


if __name__ == "__main__":
    main()
