"""Streams and maps for callers without an event loop: each step is one step of the asynchronous ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

from autoglm_client.calls.event_loop import EventLoopThread

from .mapping import Progress
from .stream import Stream
from .types import Piece, Result

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class BlockingStream:
    """`Stream` for `for` loops and `with`."""

    def __init__(self, stream: Stream, thread: EventLoopThread) -> None:
        self._stream = stream
        self._thread = thread

    @property
    def request_id(self) -> str | None:
        return self._stream.request_id

    @property
    def result(self) -> Result:
        return self._stream.result

    def __iter__(self) -> BlockingStream:
        return self

    def __next__(self) -> Piece:
        piece = self._thread.run(_next(self._stream))
        if piece is None:
            raise StopIteration
        return piece

    def __enter__(self) -> BlockingStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._thread.run(self._stream.aclose())

    def read_all(self) -> Result:
        return self._thread.run(self._stream.read_all())


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None


class Feed(Generic[Item]):
    """Items taken in the caller's thread, on their way to the event loop."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[Item | _End] = asyncio.Queue()

    async def add(self, items: Sequence[Item | _End]) -> None:
        for item in items:
            self._items.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[Item]:
        while not isinstance(item := await self._items.get(), _End):
            yield item
        if item.error is not None:
            raise item.error


def pull(
    thread: EventLoopThread,
    feed: Feed[Item],
    items: Iterable[Item],
    answers: AsyncIterator[Answer],
    *,
    window: int,
    progress: Progress | None,
) -> Iterator[Answer]:
    """`answers` come of what `feed` gets; `items` stays at most `window` ahead of them."""
    iterator = iter(items)
    total = len(items) if isinstance(items, Sequence) else None
    done = 0
    try:
        thread.run(feed.add(_take(iterator, window)))
        while (answer := thread.run(_next(answers))) is not None:
            done += 1
            if progress is not None:
                progress(done, total)
            yield answer
            thread.run(feed.add(_take(iterator, 1)))
    finally:
        thread.run(_close(answers))


def _take(iterator: Iterator[Item], number: int) -> list[Item | _End]:
    """What came before the end, or before an error, is kept."""
    taken: list[Item | _End] = []
    while len(taken) < number and not (taken and isinstance(taken[-1], _End)):
        taken.append(_take_one(iterator))
    return taken


def _take_one(iterator: Iterator[Item]) -> Item | _End:
    try:
        return next(iterator)
    except StopIteration:
        return _End(None)
    except Exception as error:
        return _End(error)


async def _next(iterator: AsyncIterator[Answer]) -> Answer | None:
    return await anext(iterator, None)


async def _close(answers: Any) -> None:
    async with aclosing(answers):
        pass
