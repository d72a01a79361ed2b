"""How much one caller may ask: requests a minute, and requests at once. Each choice of a request is one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from autoglm_gateway.errors import ApiError

_BURST_SECONDS = 10.0  # so many seconds' worth of requests may come at once
_ROUNDING = 1e-6  # of a token: who waited as long as was said is not refused for the last bit of a sum
_RETRY_SECONDS = 1  # nobody can tell when another request ends


@dataclass(frozen=True, slots=True)
class Limits:
    """0: no limit."""

    requests_per_minute: int = 0
    concurrency: int = 0


class TokenBucket:
    """`rate` tokens a second, of which at most `capacity` are kept. What asks for more than that needs a full one, and
    leaves a debt that is paid first."""

    def __init__(self, rate: float, capacity: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._capacity, self._clock = rate, capacity, clock
        self._tokens, self._filled_at = capacity, clock()

    def take(self, num: int = 1) -> float:
        """0 where `num` tokens were taken; otherwise none is, and so many seconds pass until it will be worth another
        try."""
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        missing = min(num, self._capacity) - self._tokens
        if missing > _ROUNDING:
            return missing / self._rate
        self._tokens -= num
        return 0.0

    def give_back(self, num: int) -> None:
        self._tokens += num


class Meter:
    """Of one caller. What is refused counts for nothing."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self.running = 0
        rate = limits.requests_per_minute / 60
        self._bucket = TokenBucket(rate, max(1.0, rate * _BURST_SECONDS), clock) if rate else None

    def enter(self) -> Reservation:
        """To be left in the end. Raises ApiError."""
        self._check_room(1)
        self._take_tokens(1)
        self.running += 1
        return Reservation(self)

    def widen(self, more: int) -> None:
        """For `more` choices of a request that entered. Raises ApiError; then the request itself counts for nothing
        either."""
        if self._bucket:
            self._bucket.give_back(1)
        self._check_room(more)
        self._take_tokens(1 + more)
        self.running += more

    def _check_room(self, more: int) -> None:
        if self._limits.concurrency and self.running + more > self._limits.concurrency:
            raise _too_many_at_once(self.running, more, self._limits.concurrency)

    def _take_tokens(self, num: int) -> None:
        wait_s = self._bucket.take(num) if self._bucket else 0.0
        if wait_s:
            raise _too_many_a_minute(self._limits.requests_per_minute, num, wait_s)


class Reservation:
    """What one request takes of what its caller may have under way: one, and one more for each further choice."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._num = 1

    def take(self, more: int) -> None:
        """Raises ApiError."""
        self._meter.widen(more)
        self._num += more

    def leave(self) -> None:
        self._meter.running -= self._num
        self._num = 0


def _too_many_at_once(running: int, more: int, limit: int) -> ApiError:
    asked = "this one" if more == 1 else f"{more} choices"
    sentence = (
        f"{running} requests of this key are under way, and with {asked} there were more than the {limit} it may have"
    )
    return ApiError(429, sentence, "rate_limit_error", code="concurrency_limit_exceeded", retry_after=_RETRY_SECONDS)


def _too_many_a_minute(limit: int, num: int, wait_s: float) -> ApiError:
    asked = "the next one" if num == 1 else f"one of {num} choices, which counts as {num},"
    sentence = f"this key may send {limit} requests a minute; {asked} may come in {wait_s:.1f} s"
    return ApiError(429, sentence, "rate_limit_error", code="rate_limit_exceeded", retry_after=math.ceil(wait_s))
