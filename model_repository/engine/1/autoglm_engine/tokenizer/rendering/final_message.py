"""A prompt that ends inside of its last message, which the answer goes on with: transformers' `continue_final_message`.

A tag is put behind the message's text, and the rendered prompt ends where the tag is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autoglm_engine.errors import InvalidRequest

Message = dict[str, Any]

_TAG = "THE-ANSWER-GOES-ON-HERE"
_NAME = "continue_final_message"


def continued(messages: Sequence[Message], render: Callable[[list[Message]], str]) -> str:
    """What `render` makes of the messages up to the end of the last one's text. Space at its end is left out where the
    template takes it away. Raises InvalidRequest."""
    text = render([*messages[:-1], _tagged(messages[-1])])
    at = text.rfind(_TAG)
    if at < 0:
        raise InvalidRequest(f"{_NAME} is true, and the model's chat template passes over the last message")
    return text[:at] if text.startswith(f"{_TAG} ", at) else text[:at].rstrip()


def last_text(message: Message) -> str:
    """Its content, or the last text of that. Raises InvalidRequest where there is none."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    texts = [part["text"] for part in content or () if part.get("type") == "text"]
    if not texts:
        raise InvalidRequest(f"{_NAME} is true, and the last message has no text")
    return str(texts[-1])


def _tagged(message: Message) -> Message:
    if message.get("tool_calls"):
        raise InvalidRequest(
            f"{_NAME} is true, and the last message ends with calls, which an answer cannot go on with"
        )
    tagged = f"{last_text(message)}{_TAG} "
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": tagged}
    at = max(index for index, part in enumerate(content) if part.get("type") == "text")
    return {**message, "content": [*content[:at], {**content[at], "text": tagged}, *content[at + 1 :]]}
