"""An application called as a server would call it, where a test needs to leave early."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, MutableMapping
from typing import Any

from starlette.types import ASGIApp


def post(path: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The scope of a request with a JSON body."""
    given = {"content-type": "application/json", "host": "gateway", **(headers or {})}
    raw = [(name.lower().encode(), value.encode()) for name, value in given.items()]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": raw,
    }


async def leave_after(app: ASGIApp, path: str, body: object, *, bodies: int) -> list[MutableMapping[str, Any]]:
    """Ask, and be gone after so many messages with a body, of 0 as soon as the request is read; what was sent until
    then."""
    asked, gone = [json.dumps(body).encode()], asyncio.Event()
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if asked:
            if not bodies:
                asyncio.get_running_loop().call_later(0.02, gone.set)
            return {"type": "http.request", "body": asked.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if not gone.is_set():
            sent.append(message)
        if 0 < bodies <= sum(bool(one.get("body")) for one in sent):
            gone.set()
        await asyncio.sleep(0)

    await app(post(path), receive, send)
    return sent
