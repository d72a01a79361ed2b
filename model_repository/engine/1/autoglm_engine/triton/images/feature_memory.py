"""Memory of the engine's process into which the vision model writes the features of one image.

Not a tensor of its answer: where a model is asked for a decoupled answer, Triton's backend makes arrays of the tensors
on a thread of its own without Python's lock, and what other threads do at that moment breaks the process's memory.
"""

from __future__ import annotations

import os
import re
from types import TracebackType

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import Features
from autoglm_engine.errors import InvalidRequest

NUM_SECONDS = 3  # of decoding the file, of resizing and cutting, of the tower
_PATH = re.compile(r"/proc/\d{1,10}/fd/\d{1,10}", re.ASCII)


class FeatureMemory:
    """For `rows` x `width` features and the seconds of each part, float32; anonymous, and gone when it is left."""

    def __init__(self, rows: int, width: int) -> None:
        self._shape = rows, width
        self._file = os.memfd_create("autoglm-features", os.MFD_CLOEXEC)

    @property
    def path(self) -> str:
        """By which processes of the same user open it."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def read(self) -> tuple[Features, npt.NDArray[np.float32]]:
        """Raises ValueError where it was not written."""
        rows, width = self._shape
        size = 4 * (rows * width + NUM_SECONDS)
        raw = os.pread(self._file, size + 1, 0)
        if len(raw) != size:
            raise ValueError(f"the features of an image have {len(raw)} bytes, not {size}")
        values = np.frombuffer(raw, np.float32)
        return values[:-NUM_SECONDS].reshape(rows, width), values[-NUM_SECONDS:]

    def __enter__(self) -> FeatureMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def check_path(path: str) -> str:
    """Raises InvalidRequest for what is no path of a `FeatureMemory`."""
    if not _PATH.fullmatch(path):
        raise InvalidRequest("the memory of an image is none of the engine's")
    return path


def write_features(path: str, features: Features, seconds: npt.NDArray[np.float32]) -> None:
    """Raises OSError where there is no memory, or nobody waits for them any more."""
    file = os.open(path, os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC)
    try:
        for part in (features, seconds):
            left = np.ascontiguousarray(part, np.float32).data.cast("B")
            while left:
                left = left[os.write(file, left) :]
    finally:
        os.close(file)
