"""Guides are compiled on a few threads of their own, so that neither who brings a request nor the step waits.

A request comes to the engine with its guide on its way, and waits in the queue until that is ready: there it may be
cancelled, be late, or be told that it waits, as everybody else. The threads yield to the engine's own (they are nice),
and serve tenants in turn. One tenant never has all of them, and only so many of its guides may wait.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from autoglm_engine.core import AskedGuide, SamplingOptions
from autoglm_engine.errors import EngineError, QueueFull, Unavailable
from autoglm_engine.own_failures import own_failure

from .grammar import Grammar, GuideState, Key, guide_text

NUM_THREADS = 2
MAX_OF_TENANT = 16  # guides that wait, of one tenant,
MAX_WAITING = 256  # and of all
MAX_SECONDS = 30.0  # from asking for a guide until it is compiled
_NICENESS = 10  # more than the process's own


class Compiler(Protocol):
    """`grammar.GuideCompiler`."""

    def find(self, sampling: SamplingOptions, tenant: str) -> Grammar | None: ...

    def compile(self, sampling: SamplingOptions, tenant: str) -> Grammar | None: ...


class PendingGuide:
    """A guide on its way. It is not compiled for nobody: once all requests that hold it have ended, it leaves the
    pool."""

    def __init__(self, pool: GuidePool, sampling: SamplingOptions, tenant: str) -> None:
        self.sampling = sampling
        self.tenant = tenant
        self.asked_at: float | None = None
        self._pool = pool
        self._guide: Grammar | None = None
        self._failure: EngineError | None = None

    @property
    def is_ready(self) -> bool:
        return self._guide is not None

    @property
    def failure(self) -> EngineError | None:
        if self._failure is None and self._guide is None and self._pool.is_late(self):
            kind = guide_text(self.sampling)[0]
            self._failure = Unavailable(
                f"{kind} was not compiled within {self._pool.max_seconds:g} s, which is the limit; try again later"
            )
        return self._failure

    def start(self) -> None:
        self._pool.start(self)

    def begin(self) -> GuideState:
        assert self._guide is not None, "a guide that is not compiled"
        return self._guide.begin()

    def settle(self, compile_guide: Callable[[SamplingOptions, str], Grammar | None]) -> None:
        """Called once, by the pool."""
        try:
            self._guide = compile_guide(self.sampling, self.tenant)
        except BaseException as error:
            self._failure = own_failure(error)


class GuidePool:
    """`wake` is called, on any thread, when a guide is ready or will never be. The threads begin with the first
    guide."""

    def __init__(
        self,
        guides: Compiler,
        *,
        num_threads: int = NUM_THREADS,
        max_seconds: float = MAX_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.wake: Callable[[], object] = lambda: None
        self.max_seconds = max_seconds
        self._guides = guides
        self._num_threads = num_threads
        self._max_running = max(1, num_threads - 1)
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[weakref.ref[PendingGuide]]] = (
            OrderedDict()
        )  # the tenant whose turn it is first
        self._running: Counter[str] = Counter()
        self._pending: weakref.WeakValueDictionary[Key, PendingGuide] = weakref.WeakValueDictionary()
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def guide_of(self, sampling: SamplingOptions, tenant: str) -> AskedGuide | None:
        """None where the request has no guide. Equal guides of a tenant that are on their way are one."""
        if not sampling.is_guided:
            return None
        if (kept := self._guides.find(sampling, tenant)) is not None:
            return kept
        key = (tenant, *guide_text(sampling))
        with self._changed:
            pending = self._pending.get(key)
            if pending is None or pending.failure is not None:
                pending = self._pending[key] = PendingGuide(self, sampling, tenant)
        return pending

    def start(self, pending: PendingGuide) -> None:
        """Raises QueueFull, and Unavailable where there is no thread to compile it."""
        with self._changed:
            if pending.asked_at is not None:
                return
            self._check_room(pending.tenant)
            self._start_threads()
            pending.asked_at = self._clock()
            self._waiting.setdefault(pending.tenant, deque()).append(weakref.ref(pending))
            self._changed.notify()

    def is_late(self, pending: PendingGuide) -> bool:
        return pending.asked_at is not None and self._clock() - pending.asked_at >= self.max_seconds

    def close(self) -> None:
        """Compile nothing more. What is being compiled cannot be stopped, and is not waited for."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    # ---- under the lock

    def _check_room(self, tenant: str) -> None:
        for refs in self._waiting.values():
            while refs and refs[0]() is None:
                refs.popleft()
        num_own, num_all = (sum(ref() is not None for ref in refs) for refs in (self._of(tenant), self._all()))
        if num_own >= MAX_OF_TENANT:
            raise QueueFull(f"{num_own} guides of this tenant wait to be compiled, which is the limit; try again later")
        if num_all >= MAX_WAITING:
            raise QueueFull(f"{num_all} guides wait to be compiled, which is the limit; try again later")

    def _of(self, tenant: str) -> list[weakref.ref[PendingGuide]]:
        return list(self._waiting.get(tenant, ()))

    def _all(self) -> list[weakref.ref[PendingGuide]]:
        return [ref for refs in self._waiting.values() for ref in refs]

    def _start_threads(self) -> None:
        """One is enough: the others are tried again with the next guide."""
        while len(self._threads) < self._num_threads and not self._is_closed:
            thread = threading.Thread(target=self._run, name=f"guides-{len(self._threads)}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    raise Unavailable("the system refuses a thread to compile guides; try again later") from None
                return
            self._threads.append(thread)

    def _take(self) -> PendingGuide | None:
        """The next one of the tenant whose turn it is."""
        for tenant in [tenant for tenant in self._waiting if self._running[tenant] < self._max_running]:
            refs = self._waiting.pop(tenant)
            while refs:
                pending = refs.popleft()()
                if pending is None or pending.failure is not None:
                    continue
                if refs:
                    self._waiting[tenant] = refs  # behind the others
                self._running[tenant] += 1
                return pending
        return None

    # ---- the threads

    def _run(self) -> None:
        with suppress(OSError):
            thread = os.PRIO_PROCESS, threading.get_native_id()
            os.setpriority(*thread, os.getpriority(*thread) + _NICENESS)
        while self._compile_one():
            pass

    def _compile_one(self) -> bool:
        """False: there is an end."""
        with self._changed:
            while (pending := self._take()) is None and not self._is_closed:
                self._changed.wait()
            if pending is None or self._is_closed:
                return False
        try:
            pending.settle(self._guides.compile)
        finally:
            with self._changed:
                self._running -= Counter([pending.tenant])  # also forgets the tenant
                self._changed.notify_all()
        self.wake()
        return True
