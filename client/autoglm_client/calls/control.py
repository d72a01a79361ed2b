"""Control requests: a word with the engine itself, past the ensemble."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from tritonclient.grpc import service_pb2 as pb

from autoglm_client.exceptions import ProtocolError, ServerUnavailableError
from autoglm_client.transport.requests import control_request
from autoglm_client.transport.responses import parse_control, parse_tokens
from autoglm_client.transport.time_limit import LimitPassed
from autoglm_client.transport.transport import Transport

_TOKENIZER_SECONDS = 60.0  # what waits there for 30 s is refused


T = TypeVar("T")


async def ask_engine(
    transport: Transport, command: Mapping[str, Any], timeout: float | None, model: str
) -> dict[str, Any]:
    """As `send_control`, for at most `timeout` seconds. Raises ServerUnavailableError after them."""
    return await _within(timeout, send_control(transport, command, timeout, model), "engine")


async def ask_tokenizer(
    transport: Transport, request: pb.ModelInferRequest, connect_timeout: float | None
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Token ids and what is told of them. Raises ServerUnavailableError where there is no answer in a minute."""
    answer = await _within(_TOKENIZER_SECONDS, _answer(transport, request, connect_timeout, "tokenizer"), "tokenizer")
    return parse_tokens(answer)


async def send_control(
    transport: Transport, command: Mapping[str, Any], connect_timeout: float | None, model: str
) -> dict[str, Any]:
    """`{"cancel": [request_id, ...]}` or `{"stats": true}`, to the engine behind the ensemble `model`."""
    return parse_control(await _answer(transport, control_request(command, model), connect_timeout, "engine"))


async def _within(seconds: float | None, asked: Coroutine[Any, Any, T], of: str) -> T:
    """A task of its own, shielded: a stream must be read to its end, also when the answer comes too late, or when who
    asked has left."""
    asking = asyncio.create_task(asked)
    asking.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        return await asyncio.wait_for(asyncio.shield(asking), seconds)
    except LimitPassed:
        raise ServerUnavailableError(f"the {of} did not answer within {seconds:g} s") from None


async def _answer(
    transport: Transport, request: pb.ModelInferRequest, connect_timeout: float | None, of: str
) -> pb.ModelInferResponse:
    """The one answer; reads the stream to its end, as every stream must be."""
    await transport.connect(connect_timeout)
    answers = [response async for response in transport.stream(request) if response.outputs]
    if not answers:
        raise ProtocolError(f"the {of} gave no answer")
    return answers[0]
