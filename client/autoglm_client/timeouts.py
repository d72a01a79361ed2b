"""The four time limits of a request, and which of them is next."""

from __future__ import annotations

from dataclasses import dataclass

from .exceptions import FirstTokenTimeout, InterTokenTimeout, TimeLimitError, TotalTimeout


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Time limits in seconds; None is no limit.

    `connect` bounds one attempt to get a connection. `first_token` and `between_tokens` hold for streamed answers,
    where a heartbeat is no token. `total` runs from the call to the end of the answer, retries included.
    """

    connect: float | None = 5.0
    first_token: float | None = 120.0
    between_tokens: float | None = 60.0
    total: float | None = 600.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"the time limit {name!r} must be over 0 seconds or None, got {value!r}")


@dataclass(frozen=True, slots=True)
class Limit:
    """A moment on the caller's clock, and the error to raise when it passes."""

    at: float
    error: type[TimeLimitError]
    sentence: str

    def exceeded(self, request_id: str | None = None, endpoint: str | None = None) -> TimeLimitError:
        return self.error(self.sentence, request_id=request_id, endpoint=endpoint)


class Deadlines:
    """The limits of one request on one clock: seconds, monotonic, the same for every call."""

    def __init__(self, timeouts: Timeouts, started: float, *, streamed: bool) -> None:
        self._between = timeouts.between_tokens if streamed else None
        self._total = _limit(TotalTimeout, started, timeouts.total, "the answer was not complete after {} s")
        first = timeouts.first_token if streamed else None
        self._token = _limit(FirstTokenTimeout, started, first, "no token arrived within {} s")

    def token_arrived(self, now: float) -> None:
        self._token = _limit(InterTokenTimeout, now, self._between, "no further token arrived within {} s")

    @property
    def next(self) -> Limit | None:
        limits = [limit for limit in (self._total, self._token) if limit is not None]
        return min(limits, key=lambda limit: limit.at, default=None)


def _limit(error: type[TimeLimitError], start: float, seconds: float | None, sentence: str) -> Limit | None:
    return None if seconds is None else Limit(start + seconds, error, sentence.format(f"{seconds:g}"))
