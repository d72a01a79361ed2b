"""A line of JSON for each request, when it has ended."""

from __future__ import annotations

from typing import Any

from autoglm_client import Image
from starlette.types import Scope

from .log_writer import LogWriter
from .observed import CLIENT_LEFT, RequestRecord

_MAX_OF_A_PATH = 200  # characters


class AccessLog:
    def __init__(self, writer: LogWriter, *, log_prompts: bool) -> None:
        self._writer = writer
        self._log_prompts = log_prompts

    def began(self, observed: RequestRecord) -> None:
        pass

    def ended(self, observed: RequestRecord, scope: Scope) -> None:
        prompts = {"prompts": [_readable(prompt) for prompt in observed.prompts]} if self._log_prompts else {}
        self._writer.write({**_line(observed, scope), **prompts})


def _line(observed: RequestRecord, scope: Scope) -> dict[str, Any]:
    left = observed.status == CLIENT_LEFT
    return {
        "time": observed.began.isoformat(timespec="milliseconds"),
        "request_id": observed.request_id,
        "client": (scope.get("client") or (None,))[0],
        "tenant": observed.caller.tenant if observed.caller else None,
        "method": scope["method"],
        "path": scope["path"][:_MAX_OF_A_PATH],
        "status": observed.status,
        "error": "client_left" if left else observed.error or observed.refusal,
        "model": observed.model,
        **observed.tokens(),
        "first_byte_ms": _ms(observed, observed.first_byte_at),
        "total_ms": _ms(observed, observed.ended),
    }


def _readable(prompt: Any) -> Any:
    """Of images what they are, not their bytes."""
    if isinstance(prompt, Image):
        return {"type": "image", "media_type": prompt.media_type, "num_bytes": len(prompt.file)}
    if isinstance(prompt, list):
        return [_readable(part) for part in prompt]
    return {**prompt, "content": _readable(prompt.get("content"))} if isinstance(prompt, dict) else prompt


def _ms(observed: RequestRecord, at: float | None) -> float | None:
    """From the request."""
    return None if at is None else round((at - observed.started) * 1e3, 3)
