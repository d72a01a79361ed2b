"""Tells an engine that is dead from one that is busy, where it does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from autoglm_cli.procfs import ProcFs

MIN_LOOKS = 3
_IDLE_SHARE = 0.02  # of a core: what an engine that can do nothing any more still uses, for looking at the time
MAX_SECONDS = 300.0  # without an answer; whatever it does then is of no use to anybody


class EngineLiveness:
    """`cpu_seconds`: what the engine's process has used so far. An engine that works and does not answer has too much
    to do; one that neither answers nor works is dead."""

    def __init__(self, cpu_seconds: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._cpu_seconds = cpu_seconds
        self._clock = clock
        self._num_silent = 0
        self._silent_since = self._looked_at = clock()
        self._used = cpu_seconds()

    def is_dead(self, *, answers: bool) -> bool:
        """To be asked at each look, whether it answered or not."""
        now, used = self._clock(), self._cpu_seconds()
        if answers:
            self._silent_since = now
        is_working = used - self._used > _IDLE_SHARE * (now - self._looked_at)
        self._num_silent = 0 if answers or is_working else self._num_silent + 1
        self._looked_at, self._used = now, used
        return self._num_silent >= MIN_LOOKS or now - self._silent_since > MAX_SECONDS


def cpu_seconds(pids: Iterable[int]) -> float:
    """Of these processes, as far as they run."""
    proc = ProcFs()
    return sum(proc.cpu_seconds(pid) or 0.0 for pid in pids)
