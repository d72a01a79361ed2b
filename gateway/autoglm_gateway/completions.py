"""The endpoints that generate: `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from autoglm_client import AsyncClient
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from . import document, generation
from .answer_schema import ChatCompletion, ChatCompletionChunk, TextCompletion, TextCompletionChunk
from .answers import ChatShape, CompletionShape, Head, Shape
from .caller import caller_of
from .departures import unless_gone
from .errors import ApiError, unknown_model
from .generation import Asked
from .json_body import JsonRoute
from .schema import ChatRequest, CompletionRequest, Generation
from .settings import GatewaySettings
from .telemetry.asking import Asking
from .telemetry.observed import observed_in
from .tools.shape import ToolShape
from .tools.use import ToolUse, tool_use
from .translation import Bounds, chat_options, completion_options, conversation, of_choice
from .upstream import Upstream

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/chat/completions", response_model=None, responses=document.generation(ChatCompletion, ChatCompletionChunk)
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """The next turn of a conversation."""
    upstream: Upstream = request.app.state.upstream
    model = _served(body, request.app.state.settings)
    turns = conversation(body.messages)
    options = chat_options(body, await _bounds(request))
    shape: Shape = (chat := ChatShape((body.top_logprobs or 0) if body.logprobs else None))
    if use := await _tool_use(body, request):
        options, shape = use.applied(options), ToolShape(chat, use)
    count = body.n or 1
    asked = Asked(
        [turns] * count,
        [of_choice(options, number) for number in range(count)],
        Head(model, chat.prefix),
        shape,
        count,
        body.includes_usage,
        observed_in(request.scope),
    )
    return await _answer(upstream.client, asked, request, streamed=bool(body.stream))


@router.post("/v1/completions", response_model=None, responses=document.generation(TextCompletion, TextCompletionChunk))
async def completions(body: CompletionRequest, request: Request) -> Response:
    """What follows a text."""
    upstream: Upstream = request.app.state.upstream
    model = _served(body, request.app.state.settings)
    options = completion_options(body, await _bounds(request))
    shape, count = CompletionShape(body.logprobs), body.n or 1
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    prompts = [text for text in texts for _ in range(count)]
    asked = Asked(
        prompts,
        [of_choice(options, number % count) for number in range(len(prompts))],
        Head(model, shape.prefix),
        shape,
        count,
        body.includes_usage,
        observed_in(request.scope),
    )
    return await _answer(upstream.client, asked, request, streamed=bool(body.stream))


async def _bounds(request: Request) -> Bounds:
    settings: GatewaySettings = request.app.state.settings
    upstream: Upstream = request.app.state.upstream
    limits = await upstream.limits()
    return Bounds(limits.max_length, settings.deadline_ms, caller_of(request).tenant)


async def _tool_use(body: ChatRequest, request: Request) -> ToolUse | None:
    upstream: Upstream = request.app.state.upstream
    return tool_use(body, request.app.state.settings.tool_format, await upstream.limits())


async def _answer(client: AsyncClient, asked: Asked, request: Request, *, streamed: bool) -> Response:
    observing = Asking(client, asked.observed)
    if not streamed:
        return JSONResponse(await unless_gone(request.receive, generation.whole(observing, asked)))
    events = generation.events(observing, asked)
    first = await unless_gone(request.receive, anext(events))
    return StreamingResponse(
        _resumed(first, events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


async def _resumed(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event


def _served(body: Generation, settings: GatewaySettings) -> str:
    """The name that the answer carries: the one that was asked for."""
    if settings.served_as(body.model) is None:
        raise unknown_model(body.model, settings.names)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream to be true", param="stream_options")
    return body.model
