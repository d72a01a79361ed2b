"""What fields ask of each other, which no schema says: with it more of the generated bodies are served.

Nothing that a schema forbids becomes allowed: only what is valid anyway is changed.
"""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    if isinstance(case.body, dict):
        case.body = _served(case.body)


def _served(body: dict[str, Any]) -> dict[str, Any]:
    if body.get("stream_options") is not None and body.get("stream", False) in (None, False):
        body = {**body, "stream": True}
    if _is_count(body.get("max_tokens")) and _is_count(body.get("max_completion_tokens")):
        body = {name: value for name, value in body.items() if name != "max_tokens"}
    if isinstance(body.get("messages"), list):
        body = {**body, "messages": [_with_content(message) for message in body["messages"]]}
    return body


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _with_content(message: Any) -> Any:
    if isinstance(message, dict) and message.get("content") is None:
        return {**message, "content": "hello"}
    return message
