"""The body of a request as a JSON object, or one sentence about what is wrong with it.

Read in one pass, without a copy of the text, by a parser that is strict where `json` is not: bad UTF-8, lone
surrogates, NaN and Infinity, a key twice, numbers of thousands of digits and depths over 200 are errors.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import jiter
import numpy as np
from fastapi import Request, Response
from fastapi.routing import APIRoute

from autoglm_gateway.errors import ApiError

_MAX_PARTS = 100_000  # keys, lists and objects; takes some 0.1 s to read, and nothing that the schema allows comes near
_BLOCK = 1 << 16  # bytes
_FEW = 64
_MAX_SHOWN = 120  # characters of what the parser says

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonRoute(APIRoute):
    """An endpoint whose body, where it takes one, is a JSON object."""

    def get_route_handler(self) -> _Handler:
        handler = super().get_route_handler()
        return handler if self.body_field is None else _with_object(handler)


class _JsonRequest(Request):
    """As the endpoint sees it: parsed, its text gone."""

    def __init__(self, request: Request, parsed: dict[str, Any]) -> None:
        super().__init__(request.scope, request.receive)
        self._parsed: dict[str, Any] | None = parsed

    async def body(self) -> bytes:
        return b"{}"

    async def json(self) -> dict[str, Any]:
        """Once: a stream that goes on for minutes does not hold what it was asked with."""
        assert self._parsed is not None, "FastAPI reads it once"
        parsed, self._parsed = self._parsed, None
        return parsed


def _with_object(handler: _Handler) -> _Handler:
    async def handle(request: Request) -> Response:
        _check_type(request)
        parsed = parse_object(await Request(request.scope, request.receive).body())
        return await handler(_JsonRequest(request, parsed))

    return handle


def parse_object(body: bytes) -> dict[str, Any]:
    """Raises ApiError."""
    if not body.strip():
        raise _refused("the body is empty: it must be a JSON object")
    if _num_marks(body) > _MAX_PARTS and _has_too_many_parts(body):
        raise _refused(f"the body has more than {_MAX_PARTS:,} keys, lists and objects")
    try:
        parsed = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        raise _refused(f"the body is no JSON: {error!s:.{_MAX_SHOWN}}") from None
    if not isinstance(parsed, dict):
        raise _refused(f"the body is a JSON {_kind(parsed)}: it must be an object")
    return parsed


def _num_marks(text: bytes) -> int:
    return sum(_count(text, mark) for mark in (b":", b"[", b"{"))


def _count(text: bytes, mark: bytes) -> int:
    """As `text.count`, which looks at each byte by itself: where there are few, as in an image, `find` is faster."""
    place = -1
    for number in range(_FEW):
        if (place := text.find(mark, place + 1)) < 0:
            return number
    return _FEW + text.count(mark, place + 1)


def _has_too_many_parts(text: bytes) -> bool:
    """Counts outside of strings, a block at a time: what has far too many is known after the first ones."""
    plain = np.frombuffer(text.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    num_parts, is_inside = 0, False
    for start in range(0, len(plain), _BLOCK):
        block = plain[start : start + _BLOCK]
        inside = np.logical_xor.accumulate(block == ord('"')) ^ is_inside
        marks = (block == ord(":")) | (block == ord("[")) | (block == ord("{"))
        num_parts += int(np.count_nonzero(marks & ~inside))
        if num_parts > _MAX_PARTS:
            return True
        is_inside = bool(inside[-1])
    return False


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind != "application/json":
        sentence = f"Content-Type is {given[:_MAX_SHOWN]!r}: it must be application/json"
        raise ApiError(415, sentence, code="unsupported_media_type")
    if (encoding := request.headers.get("content-encoding", "identity")).lower() != "identity":
        sentence = f"Content-Encoding is {encoding[:_MAX_SHOWN]!r}: bodies are taken as they are"
        raise ApiError(415, sentence, code="unsupported_media_type")


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "array"
    return {str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def _refused(sentence: str) -> ApiError:
    return ApiError(400, sentence, code="invalid_json")
