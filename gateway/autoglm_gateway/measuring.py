"""The outermost layer: sees how each request ends, and has it counted."""

from __future__ import annotations

from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .caller import Caller
from .metrics import GatewayMetrics
from .observed import Observed

ENDPOINTS = frozenset(
    ("/", "/v1/chat/completions", "/v1/completions", "/v1/models", "/health/live", "/health/ready", "/metrics", "/docs")
)
_MODEL, _OTHER = "/v1/models/{name}", "other"


def endpoint_of(path: str) -> str:
    """A name for it, of a few: what callers make up is `other`."""
    if path in ENDPOINTS:
        return path
    return _MODEL if path.startswith("/v1/models/") else _OTHER


class Measured:
    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        observed = Observed(endpoint_of(scope["path"]))
        observed.keep_in(scope)
        self._metrics.began(observed)
        try:
            await self._app(scope, _received(receive, observed), _sent(send, observed))
        except Exception:
            observed.broken = True
            raise
        finally:
            observed.ended = perf_counter()
            caller = scope["state"].get("caller")
            observed.caller = caller if isinstance(caller, Caller) else None
            self._metrics.ended(observed)


def _received(receive: Receive, observed: Observed) -> Receive:
    async def seen() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect" and not observed.complete:
            observed.left = True
        return message

    return seen


def _sent(send: Send, observed: Observed) -> Send:
    async def seen(message: Message) -> None:
        await send(message)
        if message["type"] == "http.response.start":
            observed.response = message["status"]
        elif not message.get("more_body", False):
            observed.complete = True

    return seen
