"""When requests come."""

from __future__ import annotations

import random
from collections.abc import Iterator


def poisson_times(rate: float, seed: int) -> Iterator[float]:
    """Moments in seconds from the beginning, ascending, without an end: `rate` of them a second, whatever has been
    answered by then (open loop)."""
    draw, now = random.Random(seed), 0.0
    while True:
        now += draw.expovariate(rate)
        yield now
