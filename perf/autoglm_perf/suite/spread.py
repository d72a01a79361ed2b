"""Medians with their spread, and ratios of medians."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of repeated runs between the least and the greatest of them."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError where there is nothing, or something that is not a number."""
        if not values or any(value != value for value in values):
            raise ValueError(f"a spread needs numbers, not {list(values)}")
        return cls(statistics.median(values), min(values), max(values), len(values))


def improvement(before: float, after: float, *, higher_is_better: bool) -> float | None:
    """How many times better `after` is: over 1 is a gain either way. None where it cannot be said."""
    above, below = (after, before) if higher_is_better else (before, after)
    return above / below if below > 0 else None


def shown(value: float, decimals: int | None = None) -> str:
    """Three significant digits, or so many decimals; thousands with commas, no exponent."""
    if decimals is not None:
        return f"{value:,.{decimals}f}"
    magnitude = abs(value)
    digits = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 1 or value == 0 else 3
    return f"{value:,.{digits}f}"
