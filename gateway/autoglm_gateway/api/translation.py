"""From a request of OpenAI's API to what the client is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoglm_client import GenerationOptions, Image, InvalidRequestError
from autoglm_client.types import Content

from autoglm_gateway import priorities
from autoglm_gateway.errors import ApiError, unsupported

from .extensions import Extensions
from .schema import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    Generation,
    ImageEdges,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
    ProcessorOptions,
    TemplateFields,
    TextPart,
)
from .tool_turns import tool_fields

_SMALLEST_TOP_P = 1e-6  # OpenAI allows 0, which keeps the likeliest token alone; so does this
_EXTENSIONS = tuple(Extensions.model_fields)
GUIDES = ("guided_json", "guided_regex", "guided_grammar")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of the answers to one caller. `max_length`: most tokens of prompt and answer together. `priority`: the caller's
    own."""

    max_length: int
    deadline_ms: int | None = None
    tenant: str | None = None
    priority: int = priorities.DEFAULT


@dataclass(frozen=True, slots=True)
class ImageRules:
    """`max_images`: what the model takes. `limits`: of pixels, by the names of `autoglm_client.Image`."""

    max_images: int = 0
    limits: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, asked: ProcessorOptions | None, max_images: int) -> ImageRules:
        """Raises ApiError where a limit is given twice, and differs."""
        if asked is None:
            return cls(max_images)
        edges = asked.size or ImageEdges()
        pairs = {"min_pixels": edges.shortest_edge, "max_pixels": edges.longest_edge}
        for name, edge in pairs.items():
            if (value := getattr(asked, name)) is not None:
                if edge not in (None, value):
                    sentence = f"mm_processor_kwargs has {name} {value} and in size {edge}: they are the same limit"
                    raise ApiError(400, sentence, param="mm_processor_kwargs", code="invalid_value")
                pairs[name] = value
        return cls(max_images, {name: value for name, value in pairs.items() if value is not None})


def conversation(messages: list[ChatMessage], rules: ImageRules | None = None) -> list[dict[str, Any]]:
    """Raises ApiError for an image too many, and for what is no image."""
    rules = rules or ImageRules()
    turns = [_turn(message, place, rules) for place, message in enumerate(messages)]
    if (num_images := sum(1 for _ in _image_parts(messages))) > rules.max_images:
        sentence = f"the request has {num_images} images; this model takes {rules.max_images} at most"
        raise ApiError(400, sentence, param="messages", code="invalid_value")
    return turns


def image_bytes(messages: list[ChatMessage]) -> int:
    """Of their data URLs, in the body of the request."""
    return sum(len(part.image_url.url) for part in _image_parts(messages))


def chat_options(request: ChatRequest, bounds: Bounds) -> GenerationOptions:
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens and max_completion_tokens are the same: set one of them", param="max_tokens")
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    count = max(1, request.top_logprobs or 0) if request.logprobs else None
    options = _options(request, request.max_completion_tokens or request.max_tokens, count, bounds)
    return dataclasses.replace(
        options,
        guided_json=options.guided_json if (schema := _schema(request)) is None else schema,
        chat_template_kwargs=template_variables(request),
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message or None,
    )


def template_variables(asked: TemplateFields) -> dict[str, Any] | None:
    """Raises ApiError where `reasoning_effort` is said twice, and differs."""
    given, effort = asked.chat_template_kwargs, asked.reasoning_effort
    if effort is None:
        return given
    if (other := (given or {}).get("reasoning_effort", effort)) != effort:
        sentence = f"reasoning_effort is {effort!r}, and {other!r:.80} in chat_template_kwargs: set one of them"
        raise ApiError(400, sentence, param="reasoning_effort", code="invalid_value")
    return {**(given or {}), "reasoning_effort": effort}


def completion_options(request: CompletionRequest, bounds: Bounds) -> GenerationOptions:
    count = None if request.logprobs is None else max(1, request.logprobs)
    return _options(request, request.max_tokens, count, bounds)


def after_thinking(options: GenerationOptions) -> GenerationOptions:
    """With guides that hold for what is said, and not for what is thought before."""
    if all(getattr(options, guide) is None for guide in GUIDES):
        return options
    return options.with_changes({"guide_after": "thinking"})


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
        logit_bias=request.logit_bias,
        logprobs=logprobs,
        deadline_ms=bounds.deadline_ms,
        priority=priorities.admission_class(request.priority, bounds.priority),
        tenant=bounds.tenant,
        user=request.user,
        **extensions,
    )


def _image_parts(messages: list[ChatMessage]) -> Iterator[ImagePart]:
    for message in messages:
        if isinstance(message.content, list):
            yield from (part for part in message.content if isinstance(part, ImagePart))


def _turn(message: ChatMessage, place: int, rules: ImageRules) -> dict[str, Any]:
    fields = tool_fields(message.role, message, f"messages[{place}]")
    said = None if message.content is None and "tool_calls" in fields else _content(message, place, rules)
    turn = {"role": _role(message), "content": said, **fields}
    if message.reasoning_content is not None:
        turn["reasoning_content"] = _reasoning(message, place)
    return turn if message.name is None else {**turn, "name": message.name}


def _schema(request: ChatRequest) -> dict[str, Any] | None:
    """That `response_format` asks an answer to keep to."""
    match request.response_format:
        case JsonSchemaFormat() as asked:
            schema: dict[str, Any] | None = asked.json_schema.schema_ or {}
        case JsonObjectFormat():
            schema = {"type": "object"}
        case _:
            return None
    guides = [name for name in GUIDES if getattr(request, name) is not None]
    if guides:
        raise ApiError(400, f"{guides[0]} is set beside response_format: a request has one of them", param=guides[0])
    return schema


def _reasoning(message: ChatMessage, place: int) -> str | None:
    if message.role != "assistant":
        name = f"messages[{place}].reasoning_content"
        sentence = f"{name}: only an assistant's message has it; the role is {message.role!r}"
        raise ApiError(400, sentence, param=name, code="invalid_value")
    return message.reasoning_content


def _role(message: ChatMessage) -> str:
    return "system" if message.role == "developer" else message.role


def _content(message: ChatMessage, place: int, rules: ImageRules) -> Content:
    """In one text, where there are no images."""
    content = message.content
    if content is None and message.reasoning_content is not None:
        return ""  # an answer that was cut short while it thought
    if content is None:
        raise ApiError(400, f"messages[{place}].content is null: it must be text", param=f"messages[{place}].content")
    if isinstance(content, str):
        return content
    parts = [_part(part, f"messages[{place}].content[{number}]", rules) for number, part in enumerate(content)]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else parts


def _part(part: TextPart | ImagePart, name: str, rules: ImageRules) -> str | Image:
    if isinstance(part, TextPart):
        return part.text
    if not rules.max_images:
        raise unsupported(name, "this model has no vision encoder, so it takes no image_url")
    try:
        return Image(part.image_url.url, detail=part.image_url.detail, **rules.limits)
    except InvalidRequestError as error:
        raise ApiError(
            400, f"{name}.image_url.url: {error}", param=f"{name}.image_url.url", code="invalid_value"
        ) from None
