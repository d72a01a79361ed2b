"""Notices that a step never ends. A GPU that hangs says nothing: whoever waits for it waits forever, inside the
driver."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from autoglm_engine.errors import DeviceError
from autoglm_engine.system.periodic import Periodic

_POLL_SECONDS = 0.5
_STOPPED_SECONDS = 2.0  # between two looks: the process was stopped, as by SIGSTOP, a frozen container, a moved machine


class StepWatch:
    """A thread. `seconds_of_step`: for how long the step in flight runs, 0 where none is. `max_seconds`: 0 is no
    limit. `hung` is called once, with why.

    While this process is stopped nobody can see a step end: from then on the step has its time anew."""

    def __init__(
        self,
        seconds_of_step: Callable[[], float],
        max_seconds: float,
        hung: Callable[[DeviceError], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds_of_step = seconds_of_step
        self._max_seconds = max_seconds
        self._hung = hung
        self._clock = clock
        self._looked_at, self._resumed_at = math.inf, -math.inf
        self._is_told = False
        self._thread = Periodic("step-watch", _POLL_SECONDS, self._tell, "steps cannot be watched")

    def start(self) -> None:
        if self._max_seconds:
            self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        self._thread.close(timeout)

    @property
    def failure(self) -> DeviceError | None:
        """What hangs; None where nothing does."""
        seconds = min(self._seconds_of_step(), self._seconds_awake())
        if not 0 < self._max_seconds < seconds:
            return None
        return DeviceError(
            f"a step has been in flight for {seconds:.0f} s, more than the {self._max_seconds:g} s that it may take "
            "(step_timeout_seconds): the device hangs"
        )

    def check(self) -> None:
        """Raise what hangs."""
        if (failure := self.failure) is not None:
            raise failure

    def _seconds_awake(self) -> float:
        """Since the process was stopped last."""
        now = self._clock()
        is_resumed = not self._is_told and now - self._looked_at > _STOPPED_SECONDS  # who is told takes time, too
        return 0.0 if is_resumed else now - self._resumed_at

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_at > _STOPPED_SECONDS:
            self._resumed_at = now
        self._looked_at = now

    def _tell(self) -> None:
        if self._is_told:
            return
        self._look()
        if (failure := self.failure) is not None:
            self._is_told = True
            self._hung(failure)
