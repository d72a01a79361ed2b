"""The seam between what is said and how it travels: two calls, and gRPC as one way to make them."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from autoglm_client.exceptions import AutoGLMError, ConnectionLost, ConnectTimeout

from . import silence, time_limit
from .channel_failures import error_of_status, no_connection, unreachable
from .headers import Headers, Metadata, checked, source_of, without_trace
from .requests import is_control
from .responses import error_of
from .silence import SilenceWatch
from .tls import TLS

_RECONNECT_SECONDS = 0.7  # the longest back-off and a little more
_REASON_SECONDS = 5.0  # the attempt that is under way may have to read all public authorities
_MAX_MESSAGE_BYTES = 2**31 - 1
_NOT_TAKEN = (
    "Internal error from Core"  # of gRPC, where a message cannot be sent any more, whatever status the call ended with
)
_READY, _BROKEN = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Transport(Protocol):
    """All raise only errors of `exceptions.py`. Whoever iterates a stream must do so to its end."""

    async def connect(self, timeout: float | None) -> None: ...

    def stream(self, request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferResponse]: ...

    async def unary(self, method: str, request: Any, timeout: float | None) -> Any: ...

    async def close(self) -> None: ...


class GrpcTransport:
    """One long-lived HTTP/2 channel; every request is a stream of its own on it. Used from one event loop. `headers` go
    with every call: fixed ones, or what a function returns, which is called in the context of whoever asks.
    `unary_headers` go with unary calls, too."""

    def __init__(
        self,
        address: str,
        *,
        gzip: bool = False,
        tls: TLS | None = None,
        headers: Headers | None = None,
        unary_headers: Mapping[str, str] | None = None,
    ) -> None:
        self.address = address
        self._tls = tls
        self._headers = source_of(headers)
        self._unary_headers = checked(unary_headers or {})
        self._compression = grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression
        self._watch = SilenceWatch(self._is_there, self._connect_anew)
        self._open()

    def _open(self) -> None:
        self._channel = self._new_channel()
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def _new_channel(self) -> grpc.aio.Channel:
        return _channel(self.address, self._tls, self._compression)

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
                        raise await self._why_broken()
        except time_limit.LimitPassed:
            raise ConnectTimeout(
                f"no connection to {self.address} within {timeout:g} s", endpoint=self.address
            ) from None

    async def _reconnect(self, timeout: float | None) -> None:
        """Wait long enough for one more attempt."""
        try:
            async with time_limit.timeout(min(_RECONNECT_SECONDS, timeout or _RECONNECT_SECONDS)):
                await self._channel.wait_for_state_change(_BROKEN)
        except time_limit.LimitPassed:
            raise await self._why_broken() from None

    async def _why_broken(self) -> AutoGLMError:
        """A call on a channel that has no connection fails at once, and says why there is none."""
        try:
            await self._stub.ServerLive(
                pb.ServerLiveRequest(), timeout=_REASON_SECONDS, metadata=self._control_headers()
            )
        except grpc.aio.AioRpcError as error:
            return no_connection(error.details() or "", self.address, self._tls)
        return unreachable(self.address)  # it was there for a moment

    async def stream(self, request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferResponse]:
        # Not with the header `triton_grpc_error`: a coded error after the first response ends tritonserver up to 26.03
        # itself.
        metadata = self._metadata(request)
        call = self._stub.ModelStreamInfer(metadata=metadata)
        clock = asyncio.get_running_loop().time
        with self._watch.of(call) as watched:
            try:
                await call.write(request)
                await call.done_writing()
                async for response in call:
                    watched.heard_at = clock()
                    if response.error_message:
                        raise error_of(response.error_message)
                    yield response.infer_response
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError) as error:
                if watched.is_given_up:
                    raise self._gone() from None
                if isinstance(error, asyncio.CancelledError):
                    raise
                if isinstance(error, grpc.aio.AioRpcError) and error.details() == _NOT_TAKEN:
                    raise await self._why_not_taken(metadata) from None
                raise await self._typed(error, call) from None

    async def _why_not_taken(self, metadata: Metadata) -> AutoGLMError:
        """A call that asks for nothing is refused as the one was that had ended before its request was sent."""
        call = self._stub.ModelStreamInfer(timeout=_REASON_SECONDS, metadata=metadata)
        try:
            await call.done_writing()
            await call.read()
        except grpc.aio.AioRpcError as error:
            return await self._typed(error, call)
        finally:
            call.cancel()
        return ConnectionLost(f"{self.address} ended a call before it took the request", endpoint=self.address)

    async def _is_there(self) -> bool:
        """Whether a server that was silent for long answers at all."""
        return await self._answers() or await self._takes_connections()

    async def _takes_connections(self) -> bool:
        channel = self._new_channel()
        try:
            async with time_limit.timeout(silence.ASK_SECONDS):
                while (state := channel.get_state(try_to_connect=True)) not in (_READY, _BROKEN):
                    await channel.wait_for_state_change(state)
            return state is _READY
        except time_limit.LimitPassed:
            return False
        finally:
            await channel.close()

    async def _answers(self) -> bool:
        try:
            metadata = self._control_headers()
            await self._stub.ServerLive(pb.ServerLiveRequest(), timeout=silence.ASK_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
        return True

    async def _connect_anew(self) -> None:
        """What lies on the connection to a server that is gone would wait there for ever."""
        gone = self._channel
        self._open()
        await gone.close()

    def _gone(self) -> ConnectionLost:
        seconds = f"{silence.SILENT_SECONDS:g}"
        return ConnectionLost(
            f"the server at {self.address} was silent for {seconds} s and then answered nothing", endpoint=self.address
        )

    def _metadata(self, request: pb.ModelInferRequest) -> Metadata:
        """Control requests are no part of what the caller does."""
        return self._control_headers() if is_control(request) else self._headers()

    def _control_headers(self) -> Metadata:
        return without_trace(self._headers())

    async def unary(self, method: str, request: Any, timeout: float | None) -> Any:
        metadata = (*self._control_headers(), *self._unary_headers)
        await self.connect(timeout)
        try:
            return await getattr(self._stub, method)(request, timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise await self._typed(error, error) from None

    async def _typed(self, error: Exception, call: Any) -> AutoGLMError:
        if isinstance(error, grpc.aio.AioRpcError):
            code, details = error.code(), error.details()
        else:
            code, details = await call.code(), await call.details()
        return error_of_status(code, details or "", self.address, self._tls)

    async def close(self) -> None:
        self._watch.close()
        await self._channel.close()


_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # Triton takes one ping in 300 s from a client that it sends nothing, and ends the connection with the third before
    # its time (--grpc-http2-min-recv-ping-interval-without-data, --grpc-http2-max-ping-strikes).
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # without it 60 s hold for the answer to a ping of the keepalive, too
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    (
        "grpc.min_reconnect_backoff_ms",
        20_000,
    ),  # how long one attempt may take; `Timeouts.connect` bounds the wait for it
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),  # two clients share no connection and no back-off
)


def _channel(address: str, tls: TLS | None, compression: grpc.Compression) -> grpc.aio.Channel:
    options = _channel_options(address)
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options, compression=compression)
    options = (*options, *tls.channel_options)
    return grpc.aio.secure_channel(address, tls.credentials(), options=options, compression=compression)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _channel_options(address: str) -> tuple[tuple[str, int | str], ...]:
    """No proxy (`http_proxy`) leads to a server on this machine; gRPC would ask it all the same."""
    is_here = _is_loopback(address.rpartition(":")[0].strip("[]"))
    return (*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)) if is_here else _CHANNEL_OPTIONS
