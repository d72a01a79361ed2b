"""The endpoints that generate: `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from autoglm_client import GenerationOptions, ModelLimits
from autoglm_client.types import Prompt
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from autoglm_gateway.api import document
from autoglm_gateway.api.answer_schema import ChatCompletion, ChatCompletionChunk, TextCompletion, TextCompletionChunk
from autoglm_gateway.api.answers import ChatShape, CompletionShape, Head, Shape
from autoglm_gateway.api.json_body import JsonRoute
from autoglm_gateway.api.reasoning_answers import ChatParts, ReasoningShape
from autoglm_gateway.api.schema import ChatRequest, CompletionRequest, Generation
from autoglm_gateway.api.tool_answers import ToolShape
from autoglm_gateway.api.translation import (
    Bounds,
    ImageRules,
    after_thinking,
    chat_options,
    completion_options,
    conversation,
    image_bytes,
    of_choice,
)
from autoglm_gateway.caller import caller_of
from autoglm_gateway.errors import ApiError
from autoglm_gateway.middleware.limits import Reservation
from autoglm_gateway.reasoning.formats import marks_of
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_gateway.telemetry.observed import observed_in
from autoglm_gateway.telemetry.recording_client import RecordingClient
from autoglm_gateway.tools.use import tool_use
from autoglm_gateway.upstream import Upstream

from . import generation
from .asked_model import check_size, limits_of, upstream_of
from .departures import cancel_on_disconnect
from .generation import GenerationJob

MAX_CHOICES = 64  # of one request, over all its prompts

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/chat/completions", response_model=None, responses=document.generation(ChatCompletion, ChatCompletionChunk)
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """The next turn of a conversation."""
    upstream = _upstream(body, request)
    check_size(request, image_bytes(body.messages))
    limits = await limits_of(request, upstream)
    turns = conversation(body.messages, ImageRules.of(body.mm_processor_kwargs, limits.max_images))
    options = chat_options(body, _bounds(request, limits))
    settings: GatewaySettings = request.app.state.settings
    shape: ChatParts = (chat := ChatShape((body.top_logprobs or 0) if body.logprobs else None))
    if use := tool_use(body, settings.tool_format, limits):
        options, shape = use.applied(options), ToolShape(chat, use)
    marks = None if body.separate_reasoning is False else marks_of(settings.reasoning_format, limits)
    answers: Shape = shape
    if marks is not None:
        answers = ReasoningShape(shape, marks, is_told=body.include_reasoning is not False)
        options = after_thinking(options)
    return await _answer(body, request, upstream, [turns], options, Head(body.model, chat.prefix), answers)


@router.post("/v1/completions", response_model=None, responses=document.generation(TextCompletion, TextCompletionChunk))
async def completions(body: CompletionRequest, request: Request) -> Response:
    """What follows a text."""
    upstream = _upstream(body, request)
    options = completion_options(body, _bounds(request, await limits_of(request, upstream)))
    shape = CompletionShape(body.logprobs)
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    return await _answer(body, request, upstream, texts, options, Head(body.model, shape.prefix), shape)


def _bounds(request: Request, limits: ModelLimits) -> Bounds:
    settings: GatewaySettings = request.app.state.settings
    caller = caller_of(request)
    return Bounds(limits.max_length, settings.deadline_ms, caller.tenant, caller.priority)


async def _answer(
    body: Generation,
    request: Request,
    upstream: Upstream,
    prompts: Sequence[Prompt],
    options: GenerationOptions,
    head: Head,
    shape: Shape,
) -> Response:
    """`n` choices of each prompt, whole or as they are generated."""
    count = body.n or 1
    _take_places(request, count * len(prompts))
    asked = GenerationJob(
        [prompt for prompt in prompts for _ in range(count)],
        [of_choice(options, number) for _ in prompts for number in range(count)],
        head,
        shape,
        count,
        body.includes_usage,
        observed_in(request.scope),
    )
    observing = RecordingClient(upstream.client, asked.observed)
    if not body.stream:
        return JSONResponse(await cancel_on_disconnect(request.receive, generation.whole(observing, asked)))
    events = generation.events(observing, asked)
    first = await cancel_on_disconnect(request.receive, anext(events))
    return StreamingResponse(
        _resumed(first, events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


async def _resumed(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event


def _take_places(request: Request, num_choices: int) -> None:
    """Each choice is a request to the server. Raises ApiError where they are too many, or more than the caller may
    have."""
    if num_choices > MAX_CHOICES:
        raise ApiError(400, f"{num_choices} choices are asked at once; at most {MAX_CHOICES} are made", param="n")
    places: Reservation | None = getattr(request.state, "places", None)
    if places and num_choices > 1:
        places.take(num_choices - 1)


def _upstream(body: Generation, request: Request) -> Upstream:
    """Of the model that was asked for; the answer carries the very name."""
    upstream = upstream_of(body.model, request)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream to be true", param="stream_options")
    return upstream
