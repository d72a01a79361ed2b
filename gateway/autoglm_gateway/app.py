"""The endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from autoglm_client import AsyncClient
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from . import generation
from .answers import ChatShape, CompletionShape, Head
from .errors import ApiError, unknown_model
from .generation import Asked
from .schema import ChatRequest, CompletionRequest, Generation
from .settings import GatewaySettings
from .translation import chat_options, completion_options, conversation, of_choice

MakeClient = Callable[[Sequence[str]], AsyncClient]


def create_app(settings: GatewaySettings, make_client: MakeClient = AsyncClient) -> FastAPI:
    """`make_client`: of the servers' addresses; called when the application starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with make_client(settings.servers) as client:
            app.state.client = client
            yield

    app = FastAPI(title="AutoGLM-Triton", lifespan=lifespan)
    _add_error_handlers(app)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """The next turn of a conversation."""
        model = _served(body, settings)
        options = chat_options(body, settings.deadline_ms, None)
        shape = ChatShape((body.top_logprobs or 0) if body.logprobs else None)
        count = body.n or 1
        prompts = [conversation(body.messages)] * count
        asked = Asked(
            prompts,
            [of_choice(options, number) for number in range(count)],
            Head(model, shape.prefix),
            shape,
            body.includes_usage,
        )
        return await _answer(request.app.state.client, asked, streamed=bool(body.stream))

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """What follows a text."""
        model = _served(body, settings)
        options = completion_options(body, settings.deadline_ms, None)
        shape, count = CompletionShape(body.logprobs), body.n or 1
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        prompts = [text for text in texts for _ in range(count)]
        asked = Asked(
            prompts,
            [of_choice(options, number % count) for number in range(len(prompts))],
            Head(model, shape.prefix),
            shape,
            body.includes_usage,
        )
        return await _answer(request.app.state.client, asked, streamed=bool(body.stream))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The names that requests may use."""
        return {"object": "list", "data": [_model(name) for name in settings.names]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if settings.served_as(name) is None:
            raise unknown_model(name, settings.names)
        return _model(name)

    @app.get("/health/live")
    async def live() -> dict[str, bool]:
        """The gateway's process answers."""
        return {"live": True}

    @app.get("/health/ready")
    async def ready(request: Request) -> Response:
        """A server behind it answers, too."""
        state = await request.app.state.client.health()
        return JSONResponse({"ready": state.ready, "detail": state.detail}, 200 if state.ready else 503)

    return app


async def _answer(client: AsyncClient, asked: Asked, *, streamed: bool) -> Response:
    if not streamed:
        return JSONResponse(await generation.whole(client, asked))
    events = generation.events(client, asked)
    first = await anext(events)
    return StreamingResponse(
        _resumed(first, events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


async def _resumed(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        async for event in rest:
            yield event
    finally:
        await rest.aclose()  # type: ignore[attr-defined]


def _served(body: Generation, settings: GatewaySettings) -> str:
    """The name that the answer carries: the one that was asked for."""
    if settings.served_as(body.model) is None:
        raise unknown_model(body.model, settings.names)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream to be true", param="stream_options")
    return body.model


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "autoglm-triton"}


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def of_ours(_: Request, error: ApiError) -> Response:
        return _failure(error)

    @app.exception_handler(RequestValidationError)
    async def of_validation(_: Request, error: RequestValidationError) -> Response:
        return _failure(_refusal(error))

    @app.exception_handler(HTTPException)
    async def of_routing(request: Request, error: HTTPException) -> Response:
        return _failure(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))


def _refusal(error: RequestValidationError) -> ApiError:
    """Of the first of its complaints, which names the field."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{where} is not supported by this server", param=where, code="unsupported_parameter")
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']}", code="invalid_json")
    value = "" if first["type"] == "missing" else f", not {first['input']!r:.80}"
    return ApiError(
        400, f"{where or 'the body'}: {first['msg'].lower()}{value}", param=where or None, code="invalid_value"
    )


def _failure(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)
