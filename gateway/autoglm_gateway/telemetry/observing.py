"""The outermost layer: each request has an id, is watched to its end, and is reported then."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoglm_gateway.caller import Caller
from autoglm_gateway.errors import ApiError
from autoglm_gateway.failures import failure
from autoglm_gateway.paths import HEALTH, WITH_BODY

from .observed import RequestRecord

ENDPOINTS = frozenset((*WITH_BODY, *HEALTH, "/", "/v1/models", "/version", "/metrics", "/docs"))
REQUEST_ID = "x-request-id"
_MODEL, _OTHER = "/v1/models/{name}", "other"
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_BROKEN = ApiError(500, "something went wrong in the gateway", "server_error", code="internal_error")


class Report(Protocol):
    def began(self, observed: RequestRecord) -> None: ...

    def ended(self, observed: RequestRecord, scope: Scope) -> None: ...


class Observing:
    """What nobody caught is answered here, so that it has the id, too, and raised."""

    def __init__(self, app: ASGIApp, reports: Sequence[Report]) -> None:
        self._app = app
        self._reports = reports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        observed = RequestRecord(endpoint_of(scope["path"]), _request_id(scope))
        observed.keep_in(scope)
        for report in self._reports:
            report.began(observed)
        exchange = _Exchange(observed, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            observed.broken, observed.error = True, _BROKEN.code
            if observed.response is None:
                await failure(_BROKEN)(scope, receive, exchange.send)
            raise
        finally:
            observed.ended = perf_counter()
            caller = scope["state"].get("caller")
            observed.caller = caller if isinstance(caller, Caller) else None
            for report in self._reports:
                report.ended(observed, scope)


@dataclass(frozen=True, slots=True)
class _Exchange:
    """What is received and sent, watched. Servers report a disconnect after a complete answer, too. The code of an
    error is read as the client reads it, whichever layer refused."""

    observed: RequestRecord
    inner_receive: Receive
    inner_send: Send

    async def receive(self) -> Message:
        message = await self.inner_receive()
        if message["type"] == "http.disconnect" and not self.observed.complete:
            self.observed.left = True
        return message

    async def send(self, message: Message) -> None:
        observed = self.observed
        if message["type"] == "http.response.start":
            observed.response = message["status"]
            MutableHeaders(scope=message)[REQUEST_ID] = observed.request_id
        elif message["type"] == "http.response.body":
            if observed.first_byte_at is None:
                observed.first_byte_at = perf_counter()
                if observed.response is not None and observed.response >= 400:
                    observed.refusal = _code_of(message.get("body", b""))
            observed.complete = not message.get("more_body", False)
        await self.inner_send(message)


def endpoint_of(path: str) -> str:
    """A name for it, of a few: what callers make up is `other`."""
    if path in ENDPOINTS:
        return path
    return _MODEL if path.startswith("/v1/models/") else _OTHER


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
