"""The model that a federation trained, swapped in for inference while inference goes on.

    live = LiveModel(Path("live"))
    live.publish(arrays, options)           export, hold against torch, then swap
    live.run(windows)                       logits, by the runtime; always of one whole model
    live.roll_back()                        the model before is current again

A version is one file, `model-000007.onnx`, written whole before the small file `current` names it;
a crash between the two changes nothing. Whoever runs meanwhile, in this process or in another, goes
on with the version it began with; a version is closed when its last call has ended.

The export pipeline is imported inside `publish` only: a device that trains has torch, one that only
runs what another process publishes needs the runtime alone.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError, StorageError, UsageError
from penstock.federated.arrays import check_arrays
from penstock.federated.client.live_folder import (
    CURRENT,
    Published,
    read_current,
    read_meta,
    remove_old,
    stamp,
    versions,
    write_current,
)
from penstock.federated.client.live_session import Session
from penstock.federated.models.registry import ModelOptions, build_module, model_spec
from penstock.loaders.closing import Closing

Kind = Literal["onnx", "litert"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "litert": ".tflite"}
TOLERANCE = 1e-3  # of the largest logit, where that is over 1
CHECKED = 16  # windows of noise that a new file and torch must agree on


class LiveModel(Closing):
    """A folder of versions, one of them current. For many threads.

    Args:
        folder: made by the first `publish`; who only runs what is there gets an error without it.
        threads: of inference.

    Raises:
        FormatError: `current` is damaged, or names a file that is not there.
        StorageError: the folder cannot be read.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.folder, self.threads = folder, threads
        self._lock = threading.Lock()  # of the two below
        self._session: Session | None = None
        self._stamp: tuple[int, int] | None = None
        self._opening = threading.Lock()
        self._follow(wait=True)

    @property
    def current(self) -> Published | None:
        """What runs now; None before the first `publish` into the folder.

        Raises:
            UsageError: there is no such folder.
        """
        self._follow(wait=True)
        with self._lock:
            session = self._session
        if session is None:
            self._check_folder()
        return None if session is None else session.published

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits.

        Args:
            inputs: float32 [n, *shape of the model's input].

        Returns:
            float32 [n, classes], all by one version.

        Raises:
            UsageError: there is no such folder, nothing was published yet, or the inputs do not fit
                the model.
        """
        self._follow()
        with self._borrowed() as session:
            return session.run(inputs)

    def publish(
        self,
        arrays: Mapping[str, NDArray[Any]],
        options: ModelOptions,
        ratio: float = 1.0,
        kind: Kind = "onnx",
    ) -> Published:
        """Make these parameters the current model.

        Raises:
            RefusedUpdateError: the arrays are not this model's.
            PenstockError: the exported file computes something else than torch: it is removed, and
                the model before stays current. Or an export library is missing, or the disk full.
        """
        if kind not in SUFFIXES:
            raise UsageError(f"kind is {kind!r}, expected onnx or litert")
        checked = check_arrays(arrays, model_spec(options).at(ratio).by_name(), "the trained model")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be made: {error.strerror}") from error
        with self._publishing():
            before = read_current(self.folder)
            version = 1 + max((number for number, _ in versions(self.folder)), default=0)
            path = self.folder / f"model-{version:06d}{SUFFIXES[kind]}"
            published = Published(
                version, path.name, before.file if before else "", options.to_json(), ratio
            )
            try:
                module = _load_module(checked, options, ratio)
                _export(module, options, path, kind)
                difference = self._difference(published, module, options)
                published = replace(published, max_difference=difference)
                write_current(self.folder, published)
            except BaseException:
                if read_current(self.folder) == before:
                    path.unlink(missing_ok=True)
                raise
            self._follow(wait=True)
            remove_old(self.folder, published)
        return published

    def roll_back(self) -> Published:
        """Make the version before current again; a second call takes this back.

        Raises:
            UsageError: there is none, or no such folder.
        """
        self._check_folder()
        with self._publishing():
            now = read_current(self.folder)
            if now is None or not now.previous or not (self.folder / now.previous).is_file():
                raise UsageError(f"{self.folder}: there is no version before to go back to")
            back = replace(read_meta(self.folder, now.previous), previous=now.file)
            write_current(self.folder, back)
            self._follow(wait=True)
        return back

    def close(self) -> None:
        """Give the memory back, when the calls that run have ended."""
        with self._lock:
            session, self._session, self._stamp = self._session, None, None
        if session is not None:
            session.retire()

    # ---------------------------------------------------------------- which version runs

    def _follow(self, wait: bool = False) -> None:
        """Open what `current` names, if that is another version than the one that is open.

        While one thread opens a new version, others go on with the old one, unless they `wait`.
        """
        seen = stamp(self.folder / CURRENT)
        if seen is None or seen == self._stamp:
            return
        if not self._opening.acquire(blocking=wait or self._session is None):
            return
        try:
            seen = stamp(self.folder / CURRENT)
            if seen is None or seen == self._stamp:
                return
            made = self._open_current()
            with self._lock:
                old, self._session, self._stamp = self._session, made, seen
        finally:
            self._opening.release()
        if old is not None and old is not made:
            old.retire()

    def _open_current(self) -> Session:
        while True:
            published = read_current(self.folder)
            if published is None:
                raise UsageError(f"{self.folder}: no model was published yet")
            if self._session is not None and self._session.published == published:
                return self._session
            try:
                return Session.open(self.folder, published, self.threads)
            except PenstockError:  # it may have been removed, as two newer ones came meanwhile
                if read_current(self.folder) == published:
                    raise

    def _check_folder(self) -> None:
        if not self.folder.is_dir():
            raise UsageError(
                f"{self.folder}: there is no such folder; check the path: the first `publish` makes"
                " it"
            )

    @contextmanager
    def _borrowed(self) -> Iterator[Session]:
        with self._lock:
            session = self._session
            if session is None:
                self._check_folder()
                raise UsageError(f"{self.folder}: no model was published yet")
            session.borrow()
        try:
            yield session
        finally:
            session.give_back()

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        """One at a time, over all threads and processes."""
        try:
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _difference(self, published: Published, module: Any, options: ModelOptions) -> float:
        """Largest difference of a new version's logits to torch's.

        Raises:
            PenstockError: it is more than rounding.
        """
        import torch

        rng = np.random.default_rng(0)
        windows = rng.normal(size=(CHECKED, *options.input_shape)).astype(np.float32)
        with torch.inference_mode():
            wanted = module(torch.from_numpy(windows)).numpy()
        session = Session.open(self.folder, published, self.threads)
        try:
            found = session.run(windows)
        finally:
            session.close()
        difference = float(np.abs(found - wanted).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(wanted).max())):
            raise PenstockError(
                f"{published.file}: its logits differ from torch's by {difference:g}; the model "
                "before stays current"
            )
        return difference


def _load_module(arrays: Mapping[str, NDArray[Any]], options: ModelOptions, ratio: float) -> Any:
    import torch

    module = build_module(options, ratio)
    module.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in arrays.items()})
    return module.eval()


def _export(module: Any, options: ModelOptions, path: Path, kind: Kind) -> None:
    """Write the file, through the pipelines of `penstock export`."""
    import torch

    names: dict[str, Any] = {"input_names": ["inputs"], "output_names": ["logits"]}
    if kind == "onnx":
        from penstock.export.onnx.export import export_onnx

        example = torch.zeros(2, *options.input_shape)  # 2: a batch of 1 would be fixed
        batch = ({0: torch.export.Dim("batch")},)
        export_onnx(module, path, example_inputs=(example,), dynamic_shapes=batch, **names)
    else:
        from penstock.export.litert.convert import export_litert

        export_litert(module, (torch.zeros(1, *options.input_shape),), path, **names)
