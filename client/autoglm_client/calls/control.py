"""Control requests: a word with the engine itself, past the ensemble."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from autoglm_client.exceptions import ProtocolError, ServerUnavailableError
from autoglm_client.transport.requests import control_request
from autoglm_client.transport.responses import parse_control, parse_tokens
from autoglm_client.transport.time_limit import LimitPassed
from autoglm_client.transport.transport import Transport

_TOKENIZER_SECONDS = 60.0  # what waits there for 30 s is refused


async def ask_engine(
    transport: Transport, command: Mapping[str, Any], timeout: float | None, model: str
) -> dict[str, Any]:
    """As `send_control`, for at most `timeout` seconds. Raises ServerUnavailableError after them."""
    # A task of its own, shielded: a stream must be read to its end, also when the answer comes too late.
    asking = asyncio.create_task(send_control(transport, command, timeout, model))
    asking.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        return await asyncio.wait_for(asyncio.shield(asking), timeout)
    except LimitPassed:
        raise ServerUnavailableError(f"the engine did not answer within {timeout:g} s") from None


async def ask_tokenizer(
    transport: Transport, request: pb.ModelInferRequest, connect_timeout: float | None
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Token ids and what is told of them. A caller that leaves early leaves the stream to be read to its end."""
    asking = asyncio.create_task(_sent_to_tokenizer(transport, request, connect_timeout))
    asking.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        return await asyncio.wait_for(asyncio.shield(asking), _TOKENIZER_SECONDS)
    except LimitPassed:
        raise ServerUnavailableError(f"the tokenizer did not answer within {_TOKENIZER_SECONDS:g} s") from None


async def _sent_to_tokenizer(
    transport: Transport, request: pb.ModelInferRequest, connect_timeout: float | None
) -> tuple[tuple[int, ...], dict[str, Any]]:
    await transport.connect(connect_timeout)
    answers = [response async for response in transport.stream(request) if response.outputs]
    if not answers:
        raise ProtocolError("the tokenizer gave no answer to a question about tokens")
    return parse_tokens(answers[0])


async def send_control(
    transport: Transport, command: Mapping[str, Any], connect_timeout: float | None, model: str
) -> dict[str, Any]:
    """`{"cancel": [request_id, ...]}` or `{"stats": true}`, to the engine behind the ensemble `model`; reads the stream
    to its end, as every stream must be."""
    await transport.connect(connect_timeout)
    answers = [response async for response in transport.stream(control_request(command, model)) if response.outputs]
    if not answers:
        raise ProtocolError("the engine gave no answer to a control request")
    return parse_control(answers[0])
