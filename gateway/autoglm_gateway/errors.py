"""Errors in the shape and with the statuses of OpenAI's API.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoglm_client import exceptions as client

_RETRY_SECONDS = 1


@dataclass(eq=False)
class ApiError(Exception):
    """`param`: the field at fault. `retry_after`: seconds until it is worth another try."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None
    final: bool = False  # OpenAI's package does not try again

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        after = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return after | ({"X-Should-Retry": "false"} if self.final else {})


def unsupported(name: str, why: str) -> ApiError:
    return ApiError(400, f"{name} is not supported: {why}", param=name, code="unsupported_parameter")


def body_too_large(max_bytes: int, what: str = "the body") -> ApiError:
    sentence = f"{what} is larger than {max_bytes:,} bytes, the most that this gateway takes"
    return ApiError(413, sentence, code="body_too_large")


def unknown_model(name: str, known: tuple[str, ...]) -> ApiError:
    sentence = f"there is no model {name!r:.80}; there are {', '.join(known)}"
    return ApiError(404, sentence, param="model", code="model_not_found")


def api_error(error: client.AutoGLMError) -> ApiError:
    """What the client's error is to a caller of this API."""
    match error:
        case client.NotCachedError():
            return ApiError(404, str(error), param="cache", code="not_cached")
        case client.InvalidRequestError():
            return ApiError(400, str(error), code="invalid_value")
        case client.QueueFullError():
            return ApiError(429, str(error), "rate_limit_error", code="queue_full", retry_after=_RETRY_SECONDS)
        case client.ServerUnavailableError() | client.ConnectTimeout():
            return ApiError(503, str(error), "server_error", code="unavailable", retry_after=_RETRY_SECONDS)
        case client.TotalTimeout():
            return _too_late(str(error))
        case client.TimeLimitError():  # it stands still
            return ApiError(504, str(error), "server_error", code="unavailable")
        case client.ConnectionLost():
            return ApiError(502, str(error), "server_error", code="connection_lost")
    return ApiError(500, str(error), "server_error", code="server_error")


def deadline_passed(deadline_ms: int | None) -> ApiError:
    limit = "its time limit" if deadline_ms is None else f"its time limit of {deadline_ms} ms"
    return _too_late(f"the answer was not complete within {limit}")


def _too_late(sentence: str) -> ApiError:
    """Routers and clients send what ends with 408 or 504 again, to be as late once more, and take its server for
    broken."""
    return ApiError(422, sentence, "timeout_error", code="deadline", final=True)
