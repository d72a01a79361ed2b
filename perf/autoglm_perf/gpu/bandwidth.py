"""What the card's memory gives, measured in the same run as everything that is compared with it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from .samples import time_each

BUFFER_BYTES = 2 << 30  # far more than any cache on the chip
_WARM_UP, _SAMPLES = 5, 20


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes a second; medians. `copy` counts each byte twice, as it is read and written."""

    read: float
    copy: float


def measure_bandwidth(device: str = "cuda", buffer_bytes: int = BUFFER_BYTES) -> Bandwidth:
    """Read: a sum over a buffer, which writes next to nothing. Copy: from one buffer to another on the device."""
    import torch

    source = torch.ones(buffer_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    result = torch.empty((), dtype=torch.float32, device=device)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def read(_: int) -> None:
        torch.sum(source, dim=0, out=result)
        wait()

    def copy(_: int) -> None:
        target.copy_(source)
        wait()

    read_seconds = statistics.median(time_each(read, _WARM_UP, _SAMPLES))
    copy_seconds = statistics.median(time_each(copy, _WARM_UP, _SAMPLES))
    return Bandwidth(read=buffer_bytes / read_seconds, copy=2 * buffer_bytes / copy_seconds)
