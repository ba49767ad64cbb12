"""MP4 through an ffmpeg process, where there is one."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, PenstockError

# The chroma of yuv420p, which every player takes, has half the picture's sides.
EVEN = "pad=ceil(iw/2)*2:ceil(ih/2)*2"
# Said in the file, too: players guess by the picture's size where it is not.
COLOURS = "scale=out_color_matrix=bt709:out_range=tv"
TAGS = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
TAGS += ["-color_range", "tv"]
END_SECONDS = 120.0  # for the last frames and the index, after the last frame was given


class VideoWriter:
    """Gives raw frames to ffmpeg, which chooses the encoder: H.264 where it has one.

    Args:
        out: the file that ffmpeg writes; what is there is replaced.
        width, height: pixels; odd ones get a black line more.
        fps: frames a second.

    Raises:
        BackendMissingError: there is no ffmpeg in PATH.
    """

    def __init__(self, out: Path, width: int, height: int, fps: float) -> None:
        program = find_ffmpeg()
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        command = [
            program, "-v", "error", "-y",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:.6g}",
            "-i", "pipe:0",
            "-an", "-vf", f"{EVEN},{COLOURS}", "-pix_fmt", "yuv420p", *TAGS,
            "-movflags", "+faststart", "-f", "mp4",
            f"file:{out}",  # or a name with a colon would be taken for a protocol
        ]  # fmt: skip
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._errors
            )
        except OSError as error:
            self._errors.close()
            raise PenstockError(f"{program} cannot be started: {error.strerror}") from error

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """The next frame [height, width, 3]."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(pixels).data)
        except OSError:  # it ended; its own words say why
            self._process.kill()
            self._process.wait()
            raise self._failed() from None

    def close(self) -> None:
        """Wait until the file is whole."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the exit code tells
            self._process.stdin.close()
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.abort()
            raise PenstockError(
                f"ffmpeg did not end in {END_SECONDS:.0f} s; write .webp or .apng instead"
            ) from None
        if code:
            raise self._failed()
        self._errors.close()

    def abort(self) -> None:
        """End ffmpeg, whatever it does; the file is then worth nothing."""
        self._process.kill()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.wait()
        self._errors.close()

    def _failed(self) -> PenstockError:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"exit code {self._process.returncode}"
        return PenstockError(f"ffmpeg could not make the video: {reason}; write .webp or .apng")


def find_ffmpeg() -> str:
    """The program's path.

    Raises:
        BackendMissingError: there is none.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise BackendMissingError(
            "MP4 is made by ffmpeg, which is not in PATH; install it with your system's packages "
            "(apt install ffmpeg), or write .webp or .apng"
        )
    return program
