"""When requests come."""

from __future__ import annotations

import random
from collections.abc import Iterator


def poisson_times(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Moments in 0 ... `seconds`, ascending: `rate` of them a second, whatever has been answered by then (open loop)."""
    draw, now = random.Random(seed), 0.0
    while (now := now + draw.expovariate(rate)) < seconds:
        yield now
