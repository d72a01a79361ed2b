"""What many users ask: few prompts often, many seldom."""

from __future__ import annotations

import random
from itertools import accumulate


def zipf_weights(count: int, exponent: float) -> list[float]:
    """The probability of each rank: proportional to rank ** -exponent, ranks from 1. They sum to 1."""
    raw = [rank**-exponent for rank in range(1, count + 1)]
    total = sum(raw)
    return [weight / total for weight in raw]


def zipf_ranks(count: int, exponent: float, num_draws: int, seed: int) -> list[int]:
    """`num_draws` places in 0 ... count - 1; the first one is the likeliest."""
    cumulative = list(accumulate(zipf_weights(count, exponent)))
    return random.Random(seed).choices(range(count), cum_weights=cumulative, k=num_draws)
