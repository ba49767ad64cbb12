"""One version of a live model, open for inference until its last call has ended."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.federated.client.live_folder import Published
from penstock.runtime.backends.open_model import open_model
from penstock.runtime.backends.tensor_model import TensorModel


class Session:
    """One opened version; its calls take turns, as a `TensorModel` is for one thread at a time.

    Closed by the last call that ends after `retire`.
    """

    def __init__(self, model: TensorModel, published: Published) -> None:
        self._model, self.published = model, published
        self._busy = threading.Lock()
        self._state = threading.Lock()
        self._users = 0
        self._retired = False

    @classmethod
    def open(cls, folder: Path, published: Published, threads: int) -> Session:
        """Load the version's file."""
        return cls(open_model(folder / published.file, threads=threads), published)

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """One call, or one for each window where the file has a batch of one."""
        (port,), (out,) = self._model.inputs, self._model.outputs
        single = port.shape is not None and port.shape[0] == 1
        parts = [inputs[i : i + 1] for i in range(len(inputs))] if single else [inputs]
        if not len(inputs):
            raise UsageError("there are no windows to run; give one or more")
        with self._busy:
            made = [self._model.run({port.name: np.ascontiguousarray(p)})[out.name] for p in parts]
        logits: NDArray[np.float32] = np.concatenate(made)
        return logits

    def borrow(self) -> None:
        """A call begins; before `retire`."""
        with self._state:
            self._users += 1

    def give_back(self) -> None:
        """A call has ended."""
        with self._state:
            self._users -= 1
            last = self._retired and not self._users
        if last:
            self.close()

    def retire(self) -> None:
        """No new call comes; close with the last one."""
        with self._state:
            self._retired = True
            idle = not self._users
        if idle:
            self.close()

    def close(self) -> None:
        """Give its memory back."""
        self._model.close()
