"""When a request is sent again: never after a part of its answer was handed out."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .exceptions import AutoGLMError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`attempts` counts the first one too. Delays double from `first_delay_s` to `longest_delay_s`, and each is drawn
    uniformly between half of it and all of it, so that clients turned away together do not come back together.
    """

    attempts: int = 3
    first_delay_s: float = 0.1
    longest_delay_s: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")

    def allows(self, error: AutoGLMError, *, failed_attempts: int, endpoints: int = 1) -> bool:
        """With several endpoints each of them is tried at least once."""
        return error.retryable and failed_attempts < max(self.attempts, endpoints)

    def delay_s(self, failed_attempts: int, *, endpoints: int = 1, draw: float | None = None) -> float:
        """No delay while an endpoint is left that was not tried. `draw` in 0 ... 1 replaces the random number."""
        if failed_attempts < endpoints:
            return 0.0
        longest = min(self.first_delay_s * 2.0 ** (failed_attempts - endpoints), self.longest_delay_s)
        return longest * (0.5 + 0.5 * (random.random() if draw is None else draw))


NO_RETRIES = RetryPolicy(attempts=1)
