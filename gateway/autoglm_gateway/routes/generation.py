"""One answer of `n` choices: whole, or as server-sent events while they are generated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from autoglm_client import AutoGLMError, GenerationOptions, Piece
from autoglm_client.types import Prompt

from autoglm_gateway.api.answers import Head, Shape, about, usage_of
from autoglm_gateway.errors import ApiError, api_error, deadline_passed
from autoglm_gateway.telemetry.observed import RequestRecord
from autoglm_gateway.telemetry.recording_client import GenerationClient

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """`prompts`, `options`: one for each choice, those of one prompt next to each other."""

    prompts: Sequence[Prompt]
    options: Sequence[GenerationOptions]
    head: Head
    shape: Shape
    choices_per_prompt: int = 1
    includes_usage: bool = False
    observed: RequestRecord = field(default_factory=lambda: RequestRecord(""))

    def __post_init__(self) -> None:
        self.observed.model, self.observed.prompts = self.head.model, self.prompts
        self.observed.choices_per_prompt = self.choices_per_prompt


async def whole(client: GenerationClient, asked: GenerationJob) -> dict[str, Any]:
    """Raises ApiError. The first failure ends the other choices."""
    try:
        async with asyncio.TaskGroup() as group:
            pairs = zip(asked.prompts, asked.options, strict=True)
            tasks = [group.create_task(client.generate(prompt, options)) for prompt, options in pairs]
    except* AutoGLMError as errors:
        raise api_error(_first(errors)) from None
    results = [task.result() for task in tasks]
    asked.observed.usages = dict(enumerate(result.usage for result in results))
    choices = [
        asked.shape.choice(number, result, _reason(result.finish_reason, asked.options[number]))
        for number, result in enumerate(results)
    ]
    usage = usage_of([result.usage for result in results], asked.choices_per_prompt)
    return asked.head.object(asked.shape.whole, choices, usage=usage, autoglm=about(results[0]))


async def events(client: GenerationClient, asked: GenerationJob) -> AsyncGenerator[bytes]:
    """Server-sent events, first those of the first piece: what fails before it is raised as ApiError, what fails later
    is an event. Closing the iterator cancels what is under way."""
    usages = asked.observed.usages
    pieces = _merged(client, asked)
    try:
        async for number, piece in pieces:
            if number not in usages:
                _check_begun(piece, asked.options[number])
                if opening := asked.shape.opening(number):
                    yield _event(asked, [opening])
            usages[number] = piece.usage
            if part := asked.shape.part(number, piece):
                yield _event(asked, [part])
            if piece.finish_reason is not None:
                closing = asked.shape.closing(number, _reason(piece.finish_reason, asked.options[number]))
                yield _event(asked, [closing] if closing else [], autoglm=about(piece))
        if asked.includes_usage:
            yield _event(
                asked, [], usage=usage_of([usages[number] for number in sorted(usages)], asked.choices_per_prompt)
            )
    except (AutoGLMError, ApiError) as error:
        failure = api_error(error) if isinstance(error, AutoGLMError) else error
        if not usages:
            raise failure from None
        asked.observed.error = failure.code
        yield _data(failure.body)
    finally:
        await pieces.aclose()
    yield DONE


async def _merged(client: GenerationClient, asked: GenerationJob) -> AsyncGenerator[tuple[int, Piece]]:
    """(choice, piece) as they come."""
    async with AsyncExitStack() as stack:
        streams = []
        for prompt, options in zip(asked.prompts, asked.options, strict=True):
            streams.append(await stack.enter_async_context(client.stream(prompt, options)))
        if len(streams) == 1:
            async for only in streams[0]:
                yield 0, only
            return
        waiting = {asyncio.ensure_future(anext(stream, None)): number for number, stream in enumerate(streams)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    number = waiting.pop(task)
                    if (piece := task.result()) is not None:
                        waiting[asyncio.ensure_future(anext(streams[number], None))] = number
                        yield number, piece
        finally:
            for task in waiting:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*waiting, return_exceptions=True)


def _check_begun(first: Piece, options: GenerationOptions) -> None:
    """An answer that is cut off before it has begun is an error with a status of its own."""
    if first.finish_reason is not None and not first.text:
        _reason(first.finish_reason, options)


def _reason(reason: str, options: GenerationOptions) -> str:
    if reason == "deadline":
        raise deadline_passed(options.deadline_ms)
    if reason == "cancelled":
        raise ApiError(503, "the server cancelled the answer", "server_error", code="cancelled")
    return reason


def _event(asked: GenerationJob, choices: list[dict[str, Any]], **more: Any) -> bytes:
    return _data(asked.head.object(asked.shape.chunk, choices, **more))


def _data(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _first(errors: BaseExceptionGroup[AutoGLMError]) -> AutoGLMError:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
