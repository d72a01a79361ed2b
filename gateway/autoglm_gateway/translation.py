"""From a request of OpenAI's API to what the client is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoglm_client import GenerationOptions

from .errors import ApiError, unsupported
from .schema import ChatMessage, ChatRequest, CompletionRequest, Extensions, Generation, ImagePart, TextPart

_SMALLEST_TOP_P = 1e-6  # OpenAI allows 0, which keeps the likeliest token alone; so does this
_EXTENSIONS = tuple(Extensions.model_fields)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of the answers to one caller. `max_length`: most tokens of prompt and answer together."""

    max_length: int
    deadline_ms: int | None = None
    tenant: str | None = None


def conversation(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    return [{"role": _role(message), "content": _text(message, place)} for place, message in enumerate(messages)]


def chat_options(request: ChatRequest, bounds: Bounds) -> GenerationOptions:
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens and max_completion_tokens are the same: set one of them", param="max_tokens")
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    count = max(1, request.top_logprobs or 0) if request.logprobs else None
    return _options(request, request.max_completion_tokens or request.max_tokens, count, bounds)


def completion_options(request: CompletionRequest, bounds: Bounds) -> GenerationOptions:
    count = None if request.logprobs is None else max(1, request.logprobs)
    return _options(request, request.max_tokens, count, bounds)


def of_choice(options: GenerationOptions, number: int) -> GenerationOptions:
    """Of the choice `number` of `n`: each draws with a seed of its own."""
    if options.seed is None or not number:
        return options
    return options.with_changes({"seed": (options.seed + number) % 2**63})


def _options(request: Generation, max_tokens: int | None, logprobs: int | None, bounds: Bounds) -> GenerationOptions:
    extensions = {name: getattr(request, name) for name in _EXTENSIONS}
    return GenerationOptions(
        max_tokens=None if max_tokens is None else min(max_tokens, bounds.max_length),
        temperature=request.temperature,
        top_p=None if request.top_p is None else max(request.top_p, _SMALLEST_TOP_P),
        stop=request.stop,
        seed=request.seed,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logprobs=logprobs,
        deadline_ms=bounds.deadline_ms,
        tenant=bounds.tenant,
        user=request.user,
        **extensions,
    )


def _role(message: ChatMessage) -> str:
    return "system" if message.role == "developer" else message.role


def _text(message: ChatMessage, place: int) -> str:
    content = message.content
    if content is None:
        raise ApiError(400, f"messages[{place}].content is null: it must be text", param=f"messages[{place}].content")
    if isinstance(content, str):
        return content
    return "".join(_part(part, f"messages[{place}].content[{number}]") for number, part in enumerate(content))


def _part(part: TextPart | ImagePart, name: str) -> str:
    if isinstance(part, ImagePart):
        raise unsupported(name, "this model has no vision encoder, so it takes no image_url")
    return part.text
