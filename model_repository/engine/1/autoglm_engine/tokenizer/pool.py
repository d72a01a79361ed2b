"""Who renders and encodes what is not sure to be quick: a few threads, each with processes of its own, in two lanes.

What is short has a lane for itself, so that it never waits behind what is long. In each lane tenants take turns, and in
the lane of long texts one tenant never has all threads. Only so much may wait, of a tenant and of all, and only for so
long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from autoglm_engine.errors import EngineError, QueueFull, Unavailable

_log = logging.getLogger(__name__)
SHORT_BYTES = 16_384
MAX_SECONDS = 30.0  # from asking until a thread takes it
IDLE_SECONDS = 60.0  # after that a thread for long texts lets go of its processes, and of their memory


class Tool(Protocol):
    """What a thread works with: a `Prompter`."""

    def close(self) -> None: ...

    def kill(self) -> None: ...


T = TypeVar("T", bound=Tool)


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """`work` answers, and must not raise; else `fail` is called, once. Either may be called on any thread."""

    tenant: str
    num_bytes: int
    work: Callable[[T], object]
    fail: Callable[[EngineError], object]


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Of what waits, each for one tenant and for all."""

    max_of_tenant: int
    most: int
    max_bytes_of_tenant: int
    max_bytes: int


SHORT = LaneLimits(max_of_tenant=4096, most=16_384, max_bytes_of_tenant=32 << 20, max_bytes=128 << 20)
LONG = LaneLimits(max_of_tenant=64, most=512, max_bytes_of_tenant=64 << 20, max_bytes=256 << 20)


class TokenizerPool(Generic[T]):
    """Two lanes. `tool` is the short one's; `another` makes one for a thread of the long lane, when it has something to
    do."""

    def __init__(
        self,
        tool: T,
        another: Callable[[], T],
        *,
        num_long: int = 2,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._short = Lane("tokenizer-short", lambda: tool, SHORT, num_threads=1, idle_seconds=None, clock=clock)
        self._long = Lane("tokenizer-long", another, LONG, num_threads=num_long, idle_seconds=idle_seconds, clock=clock)

    def put(self, job: Job[T]) -> None:
        """Raises QueueFull, what it was closed with, and Unavailable where there is no thread for it."""
        (self._short if job.num_bytes <= SHORT_BYTES else self._long).put(job)

    def close(self, failure: EngineError, seconds: float) -> None:
        """What waits fails with `failure`; what is under way is ended, and waited for as long as `seconds`."""
        for lane in (self._short, self._long):
            lane.end(failure)
        for lane in (self._short, self._long):
            lane.join(seconds)


class Lane(Generic[T]):
    """`idle_seconds` None: a thread keeps its tool for ever. Each thread makes a tool when it has something to do."""

    def __init__(
        self,
        name: str,
        make_tool: Callable[[], T],
        limits: LaneLimits,
        *,
        num_threads: int,
        idle_seconds: float | None,
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._make_tool = make_tool
        self._limits = limits
        self._num_threads = num_threads
        self._max_running = max(1, num_threads - 1)  # of one tenant
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[tuple[float, Job[T]]]] = (
            OrderedDict()
        )  # the tenant whose turn it is first
        self._num_waiting = 0
        self._bytes: Counter[str] = Counter()  # that wait, by tenant
        self._num_idle = 0
        self._running: Counter[str] = Counter()
        self._tools: dict[int, T] = {}  # by thread
        self._threads: list[threading.Thread] = []
        self._end: EngineError | None = None

    def put(self, job: Job[T]) -> None:
        """As `TokenizerPool.put`."""
        with self._changed:
            if self._end is not None:
                raise self._end
            self._check_room(job)
            self._start_thread()
            self._waiting.setdefault(job.tenant, deque()).append((self._clock(), job))
            self._count(job, 1)
            self._changed.notify()

    def end(self, failure: EngineError) -> None:
        with self._changed:
            self._end = failure
            left = [job for jobs in self._waiting.values() for _, job in jobs]
            self._waiting.clear()
            tools = list(self._tools.values())
            self._changed.notify_all()
        for tool in tools:
            tool.kill()
        self._fail(left, failure)

    def join(self, seconds: float) -> None:
        for thread in self._threads:
            thread.join(seconds)

    # ---- under the lock

    def _check_room(self, job: Job[T]) -> None:
        limits, own = self._limits, len(self._waiting.get(job.tenant, ()))
        if own >= limits.max_of_tenant or (
            own and self._bytes[job.tenant] + job.num_bytes > limits.max_bytes_of_tenant
        ):
            raise QueueFull(f"{own} prompts of this tenant wait to be encoded, which is the limit; try again later")
        is_over = self._num_waiting and self._bytes.total() + job.num_bytes > limits.max_bytes
        if self._num_waiting >= limits.most or is_over:
            raise QueueFull(f"{self._num_waiting} prompts wait to be encoded, which is the limit; try again later")

    def _count(self, job: Job[T], change: int) -> None:
        self._num_waiting += change
        self._bytes[job.tenant] += change * job.num_bytes
        if not self._bytes[job.tenant] and job.tenant not in self._waiting:
            del self._bytes[job.tenant]

    def _start_thread(self) -> None:
        """One more, where nobody is idle. One is enough: the others are tried again with the next job."""
        if self._num_idle > self._num_waiting or len(self._threads) >= self._num_threads:
            return
        thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise Unavailable("the system refuses a thread to encode prompts; try again later") from None
            return
        self._threads.append(thread)

    def _take(self) -> tuple[float, Job[T]] | None:
        """The next one of the tenant whose turn it is."""
        free = (tenant for tenant in self._waiting if self._running[tenant] < self._max_running)
        if (tenant := next(free, None)) is None:
            return None
        jobs = self._waiting.pop(tenant)
        taken = jobs.popleft()
        if jobs:
            self._waiting[tenant] = jobs  # behind the others
        self._count(taken[1], -1)
        self._running[tenant] += 1
        return taken

    def _is_late(self, asked_at: float) -> bool:
        return self._clock() - asked_at >= MAX_SECONDS

    # ---- the threads

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            asked_at, job = taken
            try:
                if self._is_late(asked_at):
                    self._fail(
                        [job], Unavailable(f"the prompt was not encoded within {MAX_SECONDS:g} s; try again later")
                    )
                else:
                    self._work(job)
            finally:
                with self._changed:
                    self._running -= Counter([job.tenant])  # also forgets the tenant
                    self._changed.notify_all()
        self._let_go()

    def _next(self) -> tuple[float, Job[T]] | None:
        """None: there is an end."""
        with self._changed:
            self._num_idle += 1
            try:
                while (taken := self._take()) is None and self._end is None:
                    has_tool = self._idle_seconds is not None and threading.get_ident() in self._tools
                    if not self._changed.wait(self._idle_seconds if has_tool else None) and has_tool:
                        self._let_go()
                return taken
            finally:
                self._num_idle -= 1

    def _work(self, job: Job[T]) -> None:
        try:
            tool = self._own_tool()
        except Exception as error:  # the system has no file descriptors, say; the thread lives on, and tries again
            _log.error("a thread that encodes prompts cannot begin", exc_info=error)
            self._fail([job], Unavailable(f"the tokenizer cannot begin on the prompt ({error}); try again later"))
            return
        if self._end is not None:
            self._fail([job], self._end)
            return
        try:
            job.work(tool)
        except Exception as error:  # the thread is everybody's
            _log.error("a prompt's work failed", exc_info=error)

    def _own_tool(self) -> T:
        me = threading.get_ident()
        with self._changed:
            if me not in self._tools:
                self._tools[me] = self._make_tool()
            return self._tools[me]

    def _let_go(self) -> None:
        with self._changed:
            tool = self._tools.pop(threading.get_ident(), None)
        if tool is not None:
            tool.close()

    def _fail(self, jobs: Iterable[Job[T]], error: EngineError) -> None:
        for job in jobs:
            try:
                job.fail(error)
            except Exception:
                _log.exception("a request could not be told that its prompt is not encoded")
