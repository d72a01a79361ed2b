"""The seam between what is said and how it travels: two calls, and gRPC as one way to make them."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from . import time_limit
from .exceptions import AutoGLMError, CannotConnectError, ConnectionLost, ConnectTimeout, ServerUnavailableError
from .requests import is_control
from .responses import error_of

_RECONNECT_S = 0.7  # the longest back-off and a little more
_MAX_MESSAGE_BYTES = 2**31 - 1
_READY, _BROKEN = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE

RequestHeaders = Callable[[], Mapping[str, str]]  # of the request that begins


class Transport(Protocol):
    """All raise only errors of `exceptions.py`. Whoever iterates a stream must do so to its end."""

    async def connect(self, timeout: float | None) -> None: ...

    def stream(self, request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferResponse]: ...

    async def unary(self, method: str, request: Any, timeout: float | None) -> Any: ...

    async def close(self) -> None: ...


class GrpcTransport:
    """One long-lived HTTP/2 channel; every request is a stream of its own on it. Used from one event loop. `headers` go
    with unary calls, what `request_headers` returns with each generation: it is called in the context of whoever asks."""

    def __init__(
        self,
        address: str,
        *,
        gzip: bool = False,
        headers: Mapping[str, str] | None = None,
        request_headers: RequestHeaders | None = None,
    ) -> None:
        self.address = address
        self._headers = tuple((headers or {}).items())
        self._request_headers = request_headers or dict
        compression = grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression
        self._channel = grpc.aio.insecure_channel(address, options=_channel_options(address), compression=compression)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def connect(self, timeout: float | None) -> None:
        """Wait for the connection, and fail as soon as an attempt to connect does."""
        state = self._channel.get_state(try_to_connect=True)
        if state is _READY:
            return
        if state is _BROKEN:  # gRPC shows no further state until an attempt succeeds
            await self._reconnect(timeout)
            return
        try:
            async with time_limit.timeout(timeout):
                while state is not _READY:
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
                    if state is _BROKEN:
                        raise _unreachable(self.address)
        except time_limit.LimitPassed:
            raise ConnectTimeout(
                f"no connection to {self.address} within {timeout:g} s", endpoint=self.address
            ) from None

    async def _reconnect(self, timeout: float | None) -> None:
        """Wait long enough for one more attempt."""
        try:
            async with time_limit.timeout(min(_RECONNECT_S, timeout or _RECONNECT_S)):
                await self._channel.wait_for_state_change(_BROKEN)
        except time_limit.LimitPassed:
            raise _unreachable(self.address) from None

    async def stream(self, request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferResponse]:
        # Not with the header `triton_grpc_error`: a coded error after the first response ends tritonserver 2.51 itself.
        try:
            call = self._stub.ModelStreamInfer(metadata=self._metadata(request))
            await call.write(request)
            await call.done_writing()
            async for response in call:
                if response.error_message:
                    raise error_of(response.error_message)
                yield response.infer_response
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await _typed(error, call, self.address) from None

    def _metadata(self, request: pb.ModelInferRequest) -> tuple[tuple[str, str], ...]:
        """Control requests are no part of what the caller does."""
        return () if is_control(request) else tuple(self._request_headers().items())

    async def unary(self, method: str, request: Any, timeout: float | None) -> Any:
        await self.connect(timeout)
        try:
            return await getattr(self._stub, method)(request, timeout=timeout, metadata=self._headers)
        except grpc.aio.AioRpcError as error:
            raise _error_of_status(error.code(), error.details() or "", self.address) from None

    async def close(self) -> None:
        await self._channel.close()


_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # without it 60 s hold for the answer to a ping of the keepalive, too
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),  # two clients share no connection and no back-off
)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _channel_options(address: str) -> tuple[tuple[str, int], ...]:
    """No proxy (`http_proxy`) leads to a server on this machine; gRPC would ask it all the same."""
    is_here = _is_loopback(address.rpartition(":")[0].strip("[]"))
    return (*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)) if is_here else _CHANNEL_OPTIONS


# How gRPC words the loss of a connection, which it reports with the same code as a busy server.
_CONNECT_WORDS = ("failed to connect", "connection refused", "name resolution", "dns resolution")
_LOST_WORDS = ("socket closed", "connection reset", "broken pipe", "goaway", "recvmsg", "ping timeout", "keepalive")
_EXITING_WORDS = "server exiting"  # how Triton answers between the signal that ends it and its end


def _unreachable(address: str) -> CannotConnectError:
    return CannotConnectError(f"cannot reach {address}: no server answers there", endpoint=address)


async def _typed(error: Exception, call: Any, address: str) -> AutoGLMError:
    if isinstance(error, grpc.aio.AioRpcError):
        return _error_of_status(error.code(), error.details() or "", address)
    return _error_of_status(await call.code(), await call.details() or "", address)


def _error_of_status(code: grpc.StatusCode, details: str, address: str) -> AutoGLMError:
    words = details.lower()
    if code is grpc.StatusCode.UNAVAILABLE and any(word in words for word in _CONNECT_WORDS):
        return _unreachable(address)
    if code is grpc.StatusCode.UNAVAILABLE and any(word in words for word in _LOST_WORDS):
        return ConnectionLost(f"the connection to {address} broke: {details}", endpoint=address)
    if code is grpc.StatusCode.UNAVAILABLE and _EXITING_WORDS in words:
        return ServerUnavailableError(f"the server at {address} is shutting down", endpoint=address)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ConnectTimeout(f"{address} did not answer in time", endpoint=address)
    failure = error_of(details, code.name)
    failure.endpoint = address
    return failure
