"""Gives TensorRT a plan piece by piece: a plan of 18.8 GB passes through host memory without ever being in it whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_PIECE = 64 << 20  # bytes; TensorRT asks again for what is missing


def new_reader(trt: Any, path: Path) -> Any:
    """A `trt.IStreamReaderV2` of the file, which has `close`."""

    class Reader(trt.IStreamReaderV2):
        def __init__(self) -> None:
            trt.IStreamReaderV2.__init__(self)
            self._file = path.open("rb", buffering=0)

        def read(self, num_bytes: int, stream: int) -> bytes:
            """At most so many; none at the end."""
            return self._file.read(min(num_bytes, _PIECE))

        def seek(self, offset: int, where: Any) -> bool:
            """False where the place is outside the file."""
            whence = {trt.SeekPosition.SET: 0, trt.SeekPosition.CUR: 1, trt.SeekPosition.END: 2}[where]
            try:
                self._file.seek(offset, whence)
            except OSError:
                return False
            return self._file.tell() <= path.stat().st_size

        def close(self) -> None:
            self._file.close()

    return Reader()
