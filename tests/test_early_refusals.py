"""A server that ends calls before it has read what is asked: its client learns why, however much it had to send."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest
from autoglm_client import NO_RETRIES, AsyncClient, AutoGLMError, ConnectionLost, CredentialsError, QueueFullError
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

NUM_REQUESTS = 60  # of them gRPC loses the reason of every sixth or so
PROMPT = "x" * 3_000_000


class Hasty(service_pb2_grpc.GRPCInferenceServiceServicer):
    """`end`: how each call ends, given what it has in common with the others: their number."""

    def __init__(self, end: Callable[[Any], Any]) -> None:
        self._end = end

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[pb.ModelStreamInferResponse]:  # noqa: N802
        await self._end(context)
        return
        yield


@contextlib.asynccontextmanager
async def hasty(end: Callable[[Any], Any]) -> AsyncIterator[AsyncClient]:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Hasty(end), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{port}", retries=NO_RETRIES) as client:
            yield client
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("code", "details", "kind", "sentence"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            "This protocol is restricted, expecting header 'token'",
            CredentialsError,
            "refuses this client: .*token",
        ),
        (grpc.StatusCode.UNAUTHENTICATED, "who are you?", CredentialsError, "refuses this client: who are you"),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", QueueFullError, "Exceeds maximum queue size"),
    ],
)
async def test_a_refusal_is_told_though_the_request_was_not_sent_whole(
    code: grpc.StatusCode, details: str, kind: type[AutoGLMError], sentence: str
) -> None:
    async with hasty(lambda context: context.abort(code, details)) as client:
        for _ in range(NUM_REQUESTS):
            with pytest.raises(kind, match=sentence):
                await client.generate(PROMPT)


async def test_a_call_that_ends_without_a_reason_is_a_lost_connection() -> None:
    async def end(context: Any) -> None:
        pass

    async with hasty(end) as client:
        kinds = set()
        for _ in range(NUM_REQUESTS):
            with pytest.raises(AutoGLMError) as caught:
                await client.generate(PROMPT)
            kinds.add(caught.type)
            assert "Internal error from Core" not in str(caught.value)
        assert ConnectionLost in kinds
