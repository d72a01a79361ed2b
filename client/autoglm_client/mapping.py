"""Runs a call for each of many items, some at once, looking only so far ahead. Knows nothing of requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Progress = Callable[[int, int | None], None]  # (done, total where known)


@dataclass(frozen=True, slots=True)
class MapLimits:
    concurrency: int
    prefetch_factor: int
    ordered: bool

    def __post_init__(self) -> None:
        for name in ("concurrency", "prefetch_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def window(self) -> int:
        """Most items taken whose answers were not handed out yet."""
        return self.concurrency * self.prefetch_factor


async def bounded_map(
    call: Callable[[Item], Awaitable[Answer]], items: Iterable[Item] | AsyncIterable[Item], limits: MapLimits
) -> AsyncGenerator[Answer | Exception, None]:
    """Answers, or the exceptions in their place, in the items' order or as they complete. When `items` itself raises,
    that is raised after the answers of what came before. Closing the generator cancels the calls under way.
    """
    run = _Run(call, limits)
    feeder = asyncio.create_task(run.feed(items))
    try:
        while (task := await run.finished.get()) is not None:
            outcome = await _outcome(task)
            run.window.release()
            yield outcome
        await feeder
    finally:
        feeder.cancel()
        for task in run.tasks:
            task.cancel()
        await asyncio.gather(feeder, *run.tasks, return_exceptions=True)


class _Run(Generic[Item, Answer]):
    """Feeds items into tasks. `finished` gets each task to hand out next, then None."""

    def __init__(self, call: Callable[[Item], Awaitable[Answer]], limits: MapLimits) -> None:
        self._call = call
        self._ordered = limits.ordered
        self._running = asyncio.Semaphore(limits.concurrency)
        self.window = asyncio.Semaphore(limits.window)
        self.finished: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()
        self.tasks: set[asyncio.Task[Answer]] = set()

    async def feed(self, items: Iterable[Item] | AsyncIterable[Item]) -> None:
        iterator = _async_iterator(items)
        try:
            while True:
                await self.window.acquire()
                try:
                    item = await anext(iterator)
                except StopAsyncIteration:
                    break
                self._start(item)
        finally:
            if self.tasks:
                await asyncio.wait(self.tasks)
            self.finished.put_nowait(None)

    def _start(self, item: Item) -> None:
        task = asyncio.create_task(self._one(item))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        if self._ordered:
            self.finished.put_nowait(task)
        else:
            task.add_done_callback(self.finished.put_nowait)

    async def _one(self, item: Item) -> Answer:
        async with self._running:
            return await self._call(item)


async def _outcome(task: asyncio.Task[Answer]) -> Answer | Exception:
    try:
        return await asyncio.shield(task)
    except Exception as error:
        return error


async def _async_iterator(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
