"""The two threads of a serving engine: one steps, one publishes, so that a slow reader never stalls a step."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from autoglm_engine.core import Event, Request
from autoglm_engine.errors import EngineError, ShuttingDown

_log = logging.getLogger(__name__)
_LAST_ANSWERS_SECONDS = 5.0  # that a loop which died waits for readers of its last answers

Sink = Callable[[Event], None]


class Steps(Protocol):
    """What is driven: `Engine`, or `coalescing.CachingEngine` in front of it, whose `submit` may answer at once."""

    def submit(self, request: Request) -> list[Event] | None: ...

    def cancel(self, request_ids: Iterable[str]) -> int: ...

    @property
    def has_work(self) -> bool: ...

    @property
    def rest_seconds(self) -> float | None: ...

    def step(self) -> list[Event]: ...

    def refuse(self, failure: EngineError) -> None: ...

    def shut_down(self, failure: EngineError | None = None) -> list[Event]: ...


class EngineLoop:
    """Runs `engine` until `close`. `sink` gets every event, in order, on one thread of its own; what it raises is
    logged and costs only that event. If stepping fails for good, every request is answered with an error, `healthy`
    turns False, `submit` raises, and `died` is called once the answers were handed to `sink`.
    """

    def __init__(self, engine: Steps, sink: Sink, died: Callable[[], object] = lambda: None) -> None:
        self._engine = engine
        self._sink = sink
        self._died = died
        self._wake = threading.Condition()
        self._submitting = threading.Lock()  # so that nothing is published behind the end
        self._closing = False
        self._healthy = True
        self._steps_ended = False
        self._step_began: float | None = None
        self._releases: list[Callable[[], object]] = []
        self._published: queue.SimpleQueue[list[Event] | None] = queue.SimpleQueue()
        self._stepper = threading.Thread(target=self._run, name="engine-step", daemon=True)
        self._publisher = threading.Thread(target=self._publish, name="engine-publish", daemon=True)

    def start(self) -> None:
        self._publisher.start()
        self._stepper.start()

    def close(self, timeout: float | None = None) -> bool:
        """Refuse new requests, end all others with ShuttingDown, publish what is left, and join both threads (each
        within `timeout` seconds): whether they ended. A step that runs, and a reader that blocks, take the time they
        take. May be called twice."""
        self._engine.refuse(ShuttingDown("the server is shutting down"))
        with self._wake:
            self._closing = True
            self._wake.notify()
        threads = [thread for thread in (self._stepper, self._publisher) if thread.ident is not None]  # those started
        for thread in threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in threads)

    def after_steps(self, release: Callable[[], object]) -> None:
        """Call `release` when no step runs, nor will: at once, or else on the thread that steps, as the last thing it
        does. After `close`."""
        with self._wake:
            if self._stepper.ident is not None and not self._steps_ended:
                self._releases.append(release)
                return
        release()

    @property
    def healthy(self) -> bool:
        return self._healthy and self._stepper.is_alive()

    @property
    def seconds_of_step(self) -> float:
        """For how long the step in flight runs; 0 where none is. Any thread."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def submit(self, request: Request) -> None:
        """As `Engine.submit`, and wakes the loop."""
        with self._submitting:
            if answer := self._engine.submit(request):
                self._published.put(answer)
                return
        self.wake()

    def cancel(self, request_ids: Iterable[str]) -> int:
        """As `Engine.cancel`, and wakes the loop."""
        count = self._engine.cancel(request_ids)
        self.wake()
        return count

    def wake(self) -> None:
        """Look whether there is work. Any thread."""
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        try:
            self._step_until_closed()
        finally:
            with self._wake:
                self._steps_ended = True
            for release in self._releases:
                release()

    def _step_until_closed(self) -> None:
        failure: EngineError | None = None
        try:
            while self._wait_for_work():
                self._published.put(self._step())
        except BaseException as error:
            _log.critical("the engine's loop died", exc_info=error)
            self._healthy = False
            failure = EngineError(f"the engine stopped: {error}")
        finally:
            with self._submitting:
                self._published.put(self._engine.shut_down(failure))
                self._published.put(None)
        if failure is not None:
            self._publisher.join(_LAST_ANSWERS_SECONDS)
            self._died()

    def _step(self) -> list[Event]:
        self._step_began = time.monotonic()
        try:
            return self._engine.step()
        finally:
            self._step_began = None

    def _wait_for_work(self) -> bool:
        """Or until something is due that nobody brings."""
        with self._wake:
            while not self._closing and (rest := self._engine.rest_seconds) != 0:
                if not self._wake.wait(rest):
                    break
            return not self._closing

    def _publish(self) -> None:
        while (events := self._published.get()) is not None:
            for event in events:
                try:
                    self._sink(event)
                except Exception as error:
                    _log.error("an event was not sent", exc_info=error, extra={"request_id": event.request_id})
