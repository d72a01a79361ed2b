"""How long a server falls silent while it should speak."""

from __future__ import annotations


class PauseWatch:
    """The longest time between two events of all watched streams together, while at least one of them decodes: from its
    first event to its last. Times are seconds of one clock that never goes back. Kept by whole second, so that a run of
    any length costs little."""

    def __init__(self) -> None:
        self.longest_by_second: dict[int, float] = {}
        self._num_decoding = 0
        self._last = 0.0

    @property
    def longest(self) -> float:
        return max(self.longest_by_second.values(), default=0.0)

    def began(self, now: float) -> None:
        """A stream's first event."""
        self.event(now)
        self._num_decoding += 1

    def event(self, now: float) -> None:
        """What came of any stream that decodes, or ends a silence in which none did."""
        if self._num_decoding:
            second = int(now)
            self.longest_by_second[second] = max(self.longest_by_second.get(second, 0.0), now - self._last)
        self._last = now

    def ended(self, now: float) -> None:
        """A stream's last event."""
        self.event(now)
        self.left()

    def left(self) -> None:
        """A stream that decodes is no longer listened to: no event."""
        assert self._num_decoding > 0, "only a stream that began can end"
        self._num_decoding -= 1
