"""Bodies within bounds: of one, of all together, and of the time that one takes to arrive.

What passes has its body complete; what does not is answered here, and nothing of its body is kept.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoglm_gateway.errors import ApiError, body_too_large
from autoglm_gateway.failures import failure
from autoglm_gateway.paths import WITH_BODY, WITH_IMAGES
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_gateway.upstream import Upstreams

BODY_BYTES = "body_bytes"  # in a request's state
_LINGER_SECONDS = 2.0  # what is still being sent is read that long, so that the client gets to read the answer


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """`max_bytes`: of one body; `max_image_bytes`: of the images in it, beside that; `max_total_bytes`: of all that are
    held at one time; `seconds`: for one to arrive."""

    max_bytes: int
    max_image_bytes: int
    max_total_bytes: int
    seconds: float

    @classmethod
    def of(cls, settings: GatewaySettings) -> BodyBounds:
        for_images = min(settings.max_image_bytes, settings.max_held_bytes - settings.max_body_bytes)
        return cls(settings.max_body_bytes, for_images, settings.max_held_bytes, settings.connections.body_s)

    async def of_request(self, scope: Scope) -> BodyBounds:
        """Larger where the body may hold images that a model reads. Raises ApiError."""
        if scope["path"] not in WITH_IMAGES or 0 < _declared(scope) <= self.max_bytes:
            return self
        upstreams: Upstreams = scope["app"].state.upstreams
        if not await upstreams.reads_images():
            return self
        return replace(self, max_bytes=self.max_bytes + self.max_image_bytes)


class BodyLimit:
    """A layer of the application. A body counts as held until its request is answered. Its size is kept for the
    endpoint, which knows how much of it are images."""

    def __init__(self, app: ASGIApp, bounds: BodyBounds) -> None:
        self._app = app
        self._bounds = bounds
        self.num_held = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in WITH_BODY or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        held = _Held(self)
        try:
            bounds = await self._bounds.of_request(scope)
            held.check(_declared(scope), bounds)
            async with asyncio.timeout(bounds.seconds):
                body = await held.read(receive, bounds)
        except ApiError as error:
            held.give_back()
            await _refuse(error, scope, receive, send)
        except TimeoutError:
            held.give_back()
            await _refuse(_too_slow(self._bounds), scope, receive, send)
        else:
            if body is not None:
                scope.setdefault("state", {})[BODY_BYTES] = len(body)
                replayed, body = _Replayed(body, receive), None  # it is gone once it is parsed
                await self._app(scope, replayed, send)
        finally:
            held.give_back()


class _Held:
    """The bytes of one request, among those of all."""

    def __init__(self, among: BodyLimit) -> None:
        self._among = among
        self._num_bytes = 0

    async def read(self, receive: Receive, bounds: BodyBounds) -> bytes | None:
        """None: the client is gone."""
        chunks: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            if chunk := message.get("body", b""):
                self.check(len(chunk), bounds)
                self._num_bytes += len(chunk)
                self._among.num_held += len(chunk)
                chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    def check(self, num_more: int, bounds: BodyBounds) -> None:
        """Raises ApiError where `num_more` bytes would be too many."""
        if self._num_bytes + num_more > bounds.max_bytes:
            raise body_too_large(bounds.max_bytes)
        if self._among.num_held + num_more > bounds.max_total_bytes:
            raise ApiError(503, "too many large bodies at once", "server_error", code="overloaded", retry_after=1)

    def give_back(self) -> None:
        self._among.num_held -= self._num_bytes
        self._num_bytes = 0


class _Replayed:
    """The body in one piece, then what comes after it: that the client is gone."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _declared(scope: Scope) -> int:
    """Bytes that are announced; 0 where nothing is."""
    given = Headers(scope=scope).get("content-length", "0")
    return int(given) if given.isascii() and given.isdigit() else 0


def _too_slow(bounds: BodyBounds) -> ApiError:
    sentence = f"the body did not arrive within {bounds.seconds:g} s"
    return ApiError(408, sentence, "timeout_error", code="body_timeout")


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers, lets the client read the answer, and ends the connection: closing it with bytes unread would reset
    it."""
    response = failure(error)
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    if error.status != 408 and "expect" not in Headers(scope=scope):  # else it is late, or nothing was sent yet
        await _discard(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while (message := await receive())["type"] != "http.disconnect" and message.get("more_body", False):
                pass
