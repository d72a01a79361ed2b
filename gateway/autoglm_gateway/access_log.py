"""The outermost layer: each request has an id, and a line in the access log when it has ended."""

from __future__ import annotations

import json
import re
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .entry import Entry
from .errors import ApiError
from .failures import failure
from .log_writer import LogWriter

REQUEST_ID = "x-request-id"
CLIENT_LEFT = 499
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_MOST_OF_A_PATH = 200  # characters
_BROKEN = ApiError(500, "something went wrong in the gateway", "server_error", code="internal_error")


class AccessLog:
    """Pure ASGI. `writer` None: no line is kept. What nobody caught is answered here, so that it has the id, too, and raised."""

    def __init__(self, app: ASGIApp, writer: LogWriter | None, *, log_prompts: bool) -> None:
        self._app, self._writer, self._log_prompts = app, writer, log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        entry = scope.setdefault("state", {})["entry"] = Entry(_request_id(scope))
        exchange = _Exchange(receive, send, entry.request_id)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            entry.error = _BROKEN.code
            if not exchange.started:
                await failure(_BROKEN)(scope, receive, exchange.send)
            raise
        finally:
            if self._writer:
                self._writer.write(self._line(scope, entry, exchange))

    def _line(self, scope: Scope, entry: Entry, exchange: _Exchange) -> dict[str, Any]:
        line = {
            "time": exchange.began.isoformat(timespec="milliseconds"),
            "request_id": entry.request_id,
            "client": (scope.get("client") or (None,))[0],
            "tenant": entry.tenant,
            "method": scope["method"],
            "path": scope["path"][:_MOST_OF_A_PATH],
            "status": CLIENT_LEFT if exchange.left else exchange.status,
            "error": "client_left" if exchange.left else entry.error or exchange.refusal,
            "model": entry.model,
            **entry.tokens(),
            "first_byte_ms": exchange.first_byte_ms,
            "total_ms": _since(exchange.began_at),
        }
        return {**line, "prompts": entry.prompts} if self._log_prompts else line


@dataclass(slots=True)
class _Exchange:
    """What is received and sent, watched. `left`: the client did, before the answer was complete; servers report a disconnect
    after that, too. An answer that never began counts as left: nobody was there to be told. `refusal`: the code of an error, as
    the client reads it, whichever layer refused."""

    inner_receive: Receive
    inner_send: Send
    request_id: str
    status: int = CLIENT_LEFT
    started: bool = False
    complete: bool = False
    left: bool = False
    refusal: str | None = None
    first_byte_ms: float | None = None
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    began_at: float = field(default_factory=time.monotonic)

    async def receive(self) -> Message:
        message = await self.inner_receive()
        if message["type"] == "http.disconnect" and not self.complete:
            self.left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            MutableHeaders(scope=message)[REQUEST_ID] = self.request_id
        elif message["type"] == "http.response.body":
            if self.first_byte_ms is None:
                self.first_byte_ms = _since(self.began_at)
                self.refusal = None if self.status < 400 else _code_of(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        await self.inner_send(message)


def _request_id(scope: Scope) -> str:
    """The caller's own where it is one that can be shown as it is."""
    said: list[bytes] = [value for name, value in scope["headers"] if name == REQUEST_ID.encode()]
    if len(said) == 1 and _ID.fullmatch(said[0]):
        return said[0].decode("ascii")
    return f"req-{uuid.uuid4().hex}"


def _code_of(body: bytes) -> str | None:
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, LookupError, TypeError):
        return None
    return code if isinstance(code, str) else None


def _since(then: float) -> float:
    """ms"""
    return round((time.monotonic() - then) * 1e3, 3)
