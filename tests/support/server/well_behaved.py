"""Tenants that ask short questions, one after the other, and what they wait for: measured by phases of the test's own
naming."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

import httpx

_THINKS_SECONDS = (0.5, 1.5)
_PATIENCE_SECONDS = 300.0
_MAX_TOKENS = 8


@dataclass(slots=True)
class Seen:
    """Of one phase: seconds of each whole answer, and what went wrong."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")

    def __add__(self, other: Seen) -> Seen:
        return Seen(self.seconds + other.seconds, self.failures + other.failures)


class Tenants:
    """They ask from the start to the end, each with a key of its own; an answer counts for the phase that it was asked
    in."""

    def __init__(self, url: str, keys: Sequence[str]) -> None:
        self.seen = defaultdict[str, Seen](Seen)
        self.phase = ""  # what is asked meanwhile is not counted
        self._url, self._keys = url, keys
        self._ends = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), name="tenants")

    def __enter__(self) -> Tenants:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        self._thread.join()

    async def _all(self) -> None:
        await asyncio.gather(*(self._tenant(number, key) for number, key in enumerate(self._keys)))

    async def _tenant(self, number: int, key: str) -> None:
        chance = random.Random(number)
        transport = httpx.AsyncHTTPTransport(local_address=f"127.0.1.{number + 1}")
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(
            transport=transport, base_url=self._url, headers=headers, timeout=_PATIENCE_SECONDS
        ) as http:
            while not self._ends.is_set():
                phase, started = self.phase, time.monotonic()
                failure = await _asked(http, f"Say the number {chance.randrange(10**9)}.")
                if phase and failure:
                    self.seen[phase].failures.append(failure)
                elif phase:
                    self.seen[phase].seconds.append(time.monotonic() - started)
                await asyncio.sleep(chance.uniform(*_THINKS_SECONDS))


async def _asked(http: httpx.AsyncClient, question: str) -> str:
    """Why there is no whole answer; empty where there is one."""
    turns = [{"role": "user", "content": question}]
    body = {"model": "autoglm", "messages": turns, "max_tokens": _MAX_TOKENS, "stream": True, "temperature": 0}
    try:
        answer = await http.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    if answer.status_code != 200:
        return f"{answer.status_code}: {answer.text[:200]}"
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    if events[-1] != "[DONE]":
        return f"the stream broke off after {len(events)} events"
    last = json.loads(events[-2])
    return "" if last.get("choices", [{}])[0].get("finish_reason") in ("stop", "length") else f"it ended with {last}"
