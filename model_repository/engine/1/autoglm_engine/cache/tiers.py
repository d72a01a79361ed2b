"""Answers that are kept where looking for them takes a while: behind a socket, or behind a model of its own.

The response cache of this process is asked first, by whoever submits. What it does not hold is looked up in the tiers
(`lookups`), one after the other, while nobody's step waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from autoglm_engine.core import CacheHit, Event, Request


@dataclass(frozen=True, slots=True)
class Found:
    """`answer`: all of it as one event without a request id. `age`: seconds."""

    answer: Event
    age: float
    hit: CacheHit
    embed_ms: float = 0.0
    is_kept_here: bool = False  # by the cache of this process


@dataclass(frozen=True, slots=True)
class Missed:
    """There is none, and finding that out took this long to embed the question."""

    embed_ms: float


class Tier(Protocol):
    @property
    def max_seconds(self) -> float:
        """So long `find` may take, with the time that it waits for a thread. After that it has missed."""
        ...

    def wants(self, request: Request) -> bool:
        """Whether this tier is to be asked for it, and to be given its answer. Called with each request: it must be
        quick."""
        ...

    def find(self, key: bytes, request: Request) -> Found | Missed | None:
        """Called on a thread that may wait."""
        ...

    def keep(self, key: bytes, request: Request, answer: Event) -> None:
        """Called by the thread that steps: it must not wait."""
        ...

    def forget(self, key: bytes) -> None:
        """What is kept, or about to be kept, is not the answer any more. As `keep`."""
        ...

    def flush(self) -> None: ...

    def close(self) -> None: ...
