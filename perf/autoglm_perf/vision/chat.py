"""Chats with screens over OpenAI's HTTP API, as an agent sends them, each timed as its user sees it.

Every server gets the same bodies.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from autoglm_perf.load.measures import RequestTiming

ANSWER_TOKENS = 30  # of an answer that taps
_DATA = b"data: "
_SYSTEM = "You operate a phone. Answer with one action, as do(action=..., element=[x,y])."
_QUESTION = "Tap the red button\n\n** Screen Info **\n\n" + json.dumps({"current_app": "System Home"})
_TAP = 'do(action="Tap", element=[500,250])'

Body = dict[str, Any]


def body(model: str, screen: bytes, num_steps: int = 0) -> bytes:
    """A request with one screen, after so many steps of the same conversation, whose screens the agent took out."""
    url = "data:image/png;base64," + base64.b64encode(screen).decode()
    asked = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": _QUESTION}]
    before: list[Body] = []
    for step in range(num_steps):
        before.append({"role": "user", "content": [{"type": "text", "text": f"Step {step}. {_QUESTION}"}]})
        before.append({"role": "assistant", "content": _TAP})
    messages = [{"role": "system", "content": _SYSTEM}, *before, {"role": "user", "content": asked}]
    options = {"max_tokens": ANSWER_TOKENS, "temperature": 0.0, "ignore_eos": True}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps({"model": model, "messages": messages, **options, **streamed}).encode()


def ask_all(url: str, chats: Sequence[Sequence[bytes]], concurrency: int) -> list[RequestTiming]:
    """Every body of every chat, `concurrency` chats at any time, the bodies of one in their order."""
    return asyncio.run(_ask_all(f"{url}/v1/chat/completions", chats, concurrency))


async def _ask_all(url: str, chats: Sequence[Sequence[bytes]], concurrency: int) -> list[RequestTiming]:
    import aiohttp

    waiting: Iterator[Sequence[bytes]] = iter(chats)
    timings: list[RequestTiming] = []

    async def work(session: aiohttp.ClientSession) -> None:
        for chat in waiting:
            for one in chat:
                timing = await _ask(session, url, one)
                timings.append(timing)

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as workers:
        for _ in range(concurrency):
            workers.create_task(work(session))
    return timings


async def _ask(session: Any, url: str, content: bytes) -> RequestTiming:
    started, first, usage = time.monotonic(), 0.0, None
    async with session.post(url, data=content, headers={"Content-Type": "application/json"}) as response:
        if response.status != 200:
            now = time.monotonic()
            return RequestTiming(started, now, now, 0, (), f"{response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            if line.startswith(_DATA + b"{"):
                event = json.loads(line[len(_DATA) :])
                usage = event.get("usage") or usage
                first = first or (time.monotonic() if _has_text(event) else 0.0)
    now = time.monotonic()
    if not usage or usage["completion_tokens"] != ANSWER_TOKENS:
        return RequestTiming(started, first or now, now, 0, (), f"the answer ended with the usage {usage}")
    return RequestTiming(started, first or now, now, ANSWER_TOKENS, ())


def _has_text(event: Body) -> bool:
    """The first event of a chat names its role alone."""
    return any(choice.get("delta", {}).get("content") for choice in event.get("choices", ()))
