"""Threads that keep no process from ending: what they wait for may never come."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)


class DaemonExecutor(ThreadPoolExecutor):
    """For an event loop, which wants such a class: a thread a call, and Python's end waits for none of them. (It joins
    those of every other ThreadPoolExecutor, so that a name which cannot be resolved would hold it up.)"""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="event-loop-call", daemon=True).start()
        return future


class DaemonThreads:
    """At most `most` threads, which begin when they are needed, do what is put into their queue. What is done must not
    raise. Where the system refuses a thread, the others do it, or the one that begins next."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._lock = threading.Lock()
        self._num_idle = 0
        self._num_threads = 0
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()

    def put(self, work: Callable[[], object]) -> None:
        self._work.put(work)
        with self._lock:
            if self._num_idle >= self._work.qsize() or self._num_threads >= self._most:
                return
            self._num_threads += 1
            number = self._num_threads
        try:
            threading.Thread(target=self._run, name=f"{self._name}-{number}", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._num_threads -= 1
            _log.error("the system refuses a thread for %s: %s", self._name, error)

    def close(self) -> None:
        """Nobody is waited for: a thread ends once it has nothing to do."""
        for _ in range(self._most):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._next()) is not None:
            work()

    def _next(self) -> Callable[[], object] | None:
        with self._lock:
            self._num_idle += 1
        try:
            return self._work.get()
        finally:
            with self._lock:
                self._num_idle -= 1
