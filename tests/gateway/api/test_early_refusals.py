"""A server that ends calls before it has read what is asked: its client learns why, however much it had to send."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc.aio
import pytest
from autoglm_client import NO_RETRIES, AutoGLMError, Client, ConnectionLost, CredentialsError, QueueFullError
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

NUM_REQUESTS = 60  # of them gRPC loses the reason of every sixth or so
PROMPT = "x" * 3_000_000


class Hasty(service_pb2_grpc.GRPCInferenceServiceServicer):
    """`end`: how each call ends, given what it has in common with the others: their number."""

    def __init__(self, end: Callable[[Any], Any]) -> None:
        self._end = end

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[pb.ModelStreamInferResponse]:
        await self._end(context)
        return
        yield


@contextlib.contextmanager
def hasty(end: Callable[[Any], Any]) -> Iterator[str]:
    """Its address. It has a thread of its own, so that a call may end at any moment of its client's."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Hasty(end), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


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
def test_a_refusal_is_told_though_the_request_was_not_sent_whole(
    code: grpc.StatusCode, details: str, kind: type[AutoGLMError], sentence: str
) -> None:
    with hasty(lambda context: context.abort(code, details)) as url, Client(url, retries=NO_RETRIES) as client:
        for _ in range(NUM_REQUESTS):
            with pytest.raises(kind, match=sentence):
                client.generate(PROMPT)


def test_a_call_that_ends_without_a_reason_is_a_lost_connection() -> None:
    async def end(context: Any) -> None:
        pass

    with hasty(end) as url, Client(url, retries=NO_RETRIES) as client:
        for _ in range(NUM_REQUESTS):
            with pytest.raises(ConnectionLost, match="ended"):
                client.generate(PROMPT)
