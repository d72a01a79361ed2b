"""Streams on a scripted server: errors, retries, time limits, and every way to leave early."""

from __future__ import annotations

import asyncio
import gc
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from autoglm_client import (
    NO_RETRIES,
    AsyncClient,
    AutoGLMError,
    CannotConnectError,
    Client,
    ClientClosedError,
    ConnectionLost,
    ConnectTimeout,
    FirstTokenTimeout,
    InterTokenTimeout,
    InvalidRequestError,
    ProtocolError,
    QueueFullError,
    RetryPolicy,
    ServerError,
    ServerUnavailableError,
    Stream,
    Timeouts,
    TotalTimeout,
)
from autoglm_client.transport import time_limit
from tritonclient.grpc import service_pb2 as pb

from tests.support.client.client_fakes import FakeTransport, Script, control_response, inputs_of

FAST_RETRIES = RetryPolicy(attempts=3, first_delay_s=0.001, longest_delay_s=0.002)
LONG = Script(words=["w "] * 500, pause_s=0.002)


def client_of(transport: FakeTransport, **settings: object) -> AsyncClient:
    return AsyncClient("fake:1", transport=lambda address: transport, **{"retries": FAST_RETRIES, **settings})  # type: ignore[arg-type]


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with time_limit.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_stream_is_the_pieces_and_then_the_result() -> None:
    async with client_of(FakeTransport(Script(heartbeats=2))) as client:
        stream = client.stream("hi", max_tokens=3)
        pieces = [piece async for piece in stream]
    assert [piece.text for piece in pieces] == ["one ", "two ", "three"]
    result = stream.result
    assert (result.text, result.finish_reason, result.usage.completion_tokens) == ("one two three", "length", 3)
    assert result.time_to_first_token_ms is not None and result.time_to_first_token_ms <= result.total_ms


SERVER_MS = 2.1  # what the fake server says that its stages took
READER_SECONDS = 2.0


@pytest.mark.slow
async def test_each_piece_carries_what_was_neither_the_servers_nor_its_readers_time() -> None:
    async with client_of(FakeTransport(Script(pause_s=0.02))) as client:
        stream, seen = client.stream("hi"), []
        async for piece in stream:
            seen.append(piece.stages.network_ms)
            await asyncio.sleep(READER_SECONDS * (len(seen) == 1))  # the others come meanwhile
    assert stream.result.stages.server_ms == pytest.approx(SERVER_MS)
    assert 0 < seen[0] < seen[1] < seen[2] == stream.result.stages.network_ms < 1000 * READER_SECONDS - SERVER_MS
    assert stream.result.total_ms > 1000 * READER_SECONDS


async def test_a_failed_attempt_is_nobodys_network() -> None:
    busy = QueueFullError("full")
    retries = RetryPolicy(attempts=2, first_delay_s=0.4, longest_delay_s=0.4)
    async with client_of(FakeTransport(Script(errors=[busy])), retries=retries) as client:
        result = await client.generate("hi")
    assert result.stages.network_ms <= result.total_ms - 200, "half of the delay at least was no network"


async def test_generate_asks_for_one_response_and_chat_sends_messages() -> None:
    transport = FakeTransport()
    async with client_of(transport) as client:
        result = await client.generate("hi")
        await client.chat([{"role": "user", "content": "hi"}], temperature=0.0)
    assert (result.text, result.time_to_first_token_ms) == ("one two three", None)
    assert inputs_of(transport.requests[0])["stream"] == b"\x00"
    assert set(inputs_of(transport.requests[1])) == {"messages", "temperature", "stream", "deadline_ms", "heartbeat_ms"}
    assert len({request.id for request in transport.requests}) == 2


@pytest.mark.parametrize(
    ("max_tokens", "logprobs", "sent"),
    [
        (998, 20, b"\0"),
        (999, 20, b"\1"),
        (100_000, 0, b"\0"),
        (100_000, None, b"\0"),
        (None, 20, b"\0"),
        (20_000, 1, b"\1"),
    ],
)
async def test_what_may_be_too_large_for_one_piece_is_asked_for_in_several(
    max_tokens: int | None, logprobs: int | None, sent: bytes
) -> None:
    transport = FakeTransport()
    async with client_of(transport) as client:
        result = await client.generate("hi", max_tokens=max_tokens, logprobs=logprobs)
    assert (result.text, result.time_to_first_token_ms) == ("one two three", None)
    assert inputs_of(transport.requests[0])["stream"] == sent
    assert "heartbeat_ms" in inputs_of(transport.requests[0])


async def test_pieces_that_nobody_saw_are_asked_for_again() -> None:
    scripts = iter([Script(fail_after=(2, ConnectionLost("cut"))), Script()])
    transport = FakeTransport(lambda request: next(scripts))
    async with client_of(transport) as client:
        result = await client.generate("hi", max_tokens=4000, logprobs=20)
    assert (result.text, result.attempts) == ("one two three", 2)


@pytest.mark.parametrize(
    ("total", "own", "sent"),
    [(10.0, None, 11_000), (10.0, 500, 500), (None, None, None), (1e9, None, 86_400_000)],
)
async def test_an_unstreamed_request_ends_on_the_server_soon_after_its_client_gives_up(
    total: float | None, own: int | None, sent: int | None
) -> None:
    transport = FakeTransport()
    async with client_of(transport, timeouts=Timeouts(total=total)) as client:
        await client.generate("hi", deadline_ms=own)
    expected = None if sent is None else struct.pack("<i", sent)
    assert inputs_of(transport.requests[0]).get("deadline_ms") == expected


async def test_the_result_is_there_only_at_the_end() -> None:
    async with client_of(FakeTransport()) as client, client.stream("hi") as stream:
        with pytest.raises(RuntimeError, match="no result"):
            _ = stream.result
        await anext(stream)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError("top_p"),
        ServerError("broken"),
        ProtocolError("odd"),
        QueueFullError("full"),
        ConnectionLost("cut"),
    ],
)
async def test_errors_arrive_as_they_are_with_the_request_named(error: AutoGLMError) -> None:
    transport = FakeTransport(Script(errors=[error]))
    async with client_of(transport, retries=NO_RETRIES) as client:
        with pytest.raises(type(error)) as caught:
            await client.generate("hi")
    assert caught.value.request_id == transport.requests[0].id
    assert caught.value.endpoint == "fake:1"


@pytest.mark.parametrize("error", [QueueFullError("full"), ServerUnavailableError("busy"), ConnectionLost("cut")])
async def test_what_computed_nothing_is_tried_again_under_a_new_id(error: AutoGLMError) -> None:
    transport = FakeTransport(Script(errors=[error, error]))
    async with client_of(transport) as client:
        assert (await client.generate("hi")).text == "one two three"
        result = await client.generate("hi")
    assert len({request.id for request in transport.requests}) == 4 and result.attempts == 1


@pytest.mark.parametrize(("error", "is_said"), [(ConnectionLost("cut"), True), (QueueFullError("full"), False)])
async def test_what_may_be_computed_twice_is_said(
    error: AutoGLMError, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(FakeTransport(Script(errors=[error]))) as client:
        assert (await client.generate("hi")).attempts == 2
    assert [f"{error}; request" in record.getMessage() for record in caplog.records] == [True] * is_said


UNKNOWN = InvalidRequestError("unexpected inference input 'heartbeat_ms' for model 'autoglm'")


async def test_a_server_without_heartbeats_is_asked_again_once_and_then_without() -> None:
    transport = FakeTransport(Script(errors=[UNKNOWN]))
    async with client_of(transport, retries=NO_RETRIES) as client:
        assert [(await client.generate("hi")).attempts for _ in range(2)] == [1, 1]
    assert ["heartbeat_ms" in inputs_of(request) for request in transport.requests] == [True, False, False]


async def test_heartbeats_that_the_caller_asked_for_are_not_left_out() -> None:
    transport = FakeTransport(Script(errors=[UNKNOWN, UNKNOWN]))
    async with client_of(transport) as client:
        with pytest.raises(InvalidRequestError, match="heartbeat_ms"):
            await client.generate("hi", heartbeat_ms=1000)
    assert [inputs_of(request)["heartbeat_ms"] for request in transport.requests] == [struct.pack("<i", 1000)] * 2


async def test_attempts_are_bounded_and_the_servers_faults_are_not_retried() -> None:
    full = FakeTransport(Script(errors=[QueueFullError("full")] * 9))
    async with client_of(full) as client:
        with pytest.raises(QueueFullError):
            await client.generate("hi")
    broken = FakeTransport(Script(errors=[ServerError("broken")]))
    async with client_of(broken) as client:
        with pytest.raises(ServerError):
            await client.generate("hi")
    assert (len(full.requests), len(broken.requests)) == (3, 1)


async def test_nothing_is_retried_once_a_piece_was_handed_out() -> None:
    transport = FakeTransport(Script(fail_after=(1, ConnectionLost("cut"))))
    async with client_of(transport) as client:
        stream = client.stream("hi")
        assert (await anext(stream)).text == "one "
        with pytest.raises(ConnectionLost):
            await anext(stream)
    assert len(transport.requests) == 1


async def test_an_answer_cut_short_is_an_error() -> None:
    async with client_of(FakeTransport(Script(finish_reason="")), retries=NO_RETRIES) as client:
        with pytest.raises(ConnectionLost, match="before its last piece"):
            await client.generate("hi")


async def test_a_failed_endpoint_is_passed_over_and_the_next_one_kept() -> None:
    down = FakeTransport(Script(connect_errors=[CannotConnectError("down")] * 99))
    up = FakeTransport()
    client = AsyncClient(["down:1", "up:1"], transport=lambda a: {"down:1": down, "up:1": up}[a], retries=NO_RETRIES)
    async with client:
        results = [await client.generate("hi") for _ in range(3)]
    assert {result.endpoint for result in results} == {"up:1"}
    assert (len(down.script.connect_errors), len(up.requests)) == (98, 3)  # type: ignore[union-attr]


async def test_all_endpoints_down_is_the_connections_error() -> None:
    def down(address: str) -> FakeTransport:
        return FakeTransport(Script(connect_errors=[CannotConnectError(f"cannot reach {address}")] * 9))

    async with AsyncClient(["a:1", "b:1"], transport=down, retries=FAST_RETRIES) as client:
        with pytest.raises(CannotConnectError):
            await client.generate("hi")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("timeouts", "script", "error", "pieces"),
    [
        (Timeouts(first_token=0.02), Script(pause_s=1.0), FirstTokenTimeout, 0),
        (Timeouts(first_token=0.05), Script(heartbeats=20, pause_s=1.0), FirstTokenTimeout, 0),
        (Timeouts(between_tokens=0.02), Script(words=["a", "b"], pause_s=1.0), InterTokenTimeout, 1),
        (Timeouts(total=0.05), LONG, TotalTimeout, None),
    ],
)
async def test_each_time_limit_cancels_on_the_server(
    timeouts: Timeouts, script: Script, error: type[Exception], pieces: int | None
) -> None:
    transport, seen = FakeTransport(script), 0
    async with client_of(transport, timeouts=timeouts) as client:
        with pytest.raises(error) as caught:
            async for _ in client.stream("hi"):
                seen += 1
        await until(lambda: not transport.running)
    assert pieces in (None, seen)
    assert isinstance(caught.value, AutoGLMError) and caught.value.request_id in transport.cancelled
    assert not transport.aborted


@pytest.mark.slow
async def test_the_total_limit_holds_for_unstreamed_answers_and_between_retries() -> None:
    async with client_of(FakeTransport(LONG), timeouts=Timeouts(total=0.05)) as client:
        with pytest.raises(TotalTimeout):
            await client.generate("hi")
    slow = RetryPolicy(attempts=9, first_delay_s=600, longest_delay_s=600)
    transport = FakeTransport(Script(errors=[QueueFullError("full")] * 9))
    async with client_of(transport, timeouts=Timeouts(total=1.0), retries=slow) as client:
        with pytest.raises(TotalTimeout) as caught:
            await client.generate("hi")
    assert isinstance(caught.value.__cause__, QueueFullError)


async def test_a_connection_that_times_out_is_tried_again() -> None:
    transport = FakeTransport(Script(connect_errors=[ConnectTimeout("slow")]))
    async with client_of(transport) as client:
        assert (await client.generate("hi")).text


async def leave_by_break(client: AsyncClient) -> None:
    async for _ in client.stream("hi"):
        break


async def leave_by_exception(client: AsyncClient) -> None:
    with pytest.raises(KeyError):
        async for _ in client.stream("hi"):
            raise KeyError("mine")


async def leave_by_with(client: AsyncClient) -> None:
    async with client.stream("hi") as stream:
        await anext(stream)


async def leave_by_cancelled_task(client: AsyncClient) -> None:
    task = asyncio.create_task(client.generate("hi"))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_by_dropping(client: AsyncClient) -> None:
    stream: Stream | None = client.stream("hi")
    assert stream is not None
    await anext(stream)
    stream = None
    gc.collect()


async def leave_by_timeout(client: AsyncClient) -> None:
    with pytest.raises(time_limit.LimitPassed):
        async with time_limit.timeout(0.02):
            await client.generate("hi")


LEAVINGS = [
    leave_by_break,
    leave_by_exception,
    leave_by_with,
    leave_by_cancelled_task,
    leave_by_dropping,
    leave_by_timeout,
]


@pytest.mark.parametrize("leave", LEAVINGS)
async def test_leaving_cancels_on_the_server_and_reads_the_stream_to_its_end(leave: Callable[..., object]) -> None:
    transport = FakeTransport(LONG)
    async with client_of(transport) as client:
        await leave(client)  # type: ignore[misc]
        await until(lambda: not transport.running)
    assert transport.cancelled == {request.id for request in transport.requests}
    assert not transport.aborted


async def test_a_cancel_that_came_too_early_is_repeated() -> None:
    transport = FakeTransport(LONG)
    transport.ignored_cancels = 2
    async with client_of(transport) as client:
        await leave_by_break(client)
        await until(lambda: not transport.running)
    assert len(transport.controls) >= 3


@pytest.mark.slow
async def test_leaving_while_connecting_sends_nothing() -> None:
    transport = FakeTransport(Script(connect_s=0.5))
    async with client_of(transport) as client:
        await leave_by_timeout(client)
        await asyncio.sleep(1.0)
    assert not transport.requests


async def test_many_leavers_share_cancels() -> None:
    transport = FakeTransport(LONG)
    async with client_of(transport) as client:
        streams = [client.stream("hi") for _ in range(50)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        for stream in streams:
            await stream.aclose()
        await until(lambda: not transport.running)
    assert len(transport.cancelled) == 50
    assert len(transport.controls) <= 25


async def test_close_cancels_what_is_under_way_and_waits_for_it() -> None:
    transport = FakeTransport(LONG)
    client = client_of(transport)
    stream = client.stream("hi")
    await anext(stream)
    await client.close()
    assert transport.closed and not transport.running and not transport.aborted
    with pytest.raises(ClientClosedError):
        client.stream("hi")


@pytest.mark.slow
async def test_a_reader_that_stops_reading_holds_few_pieces() -> None:
    transport = FakeTransport(Script(words=["w"] * 10_000))
    async with client_of(transport) as client:
        stream = client.stream("hi")
        await anext(stream)
        await asyncio.sleep(0.05)
        assert stream._call is not None and len(stream._call._unread) <= 64
        assert len("".join([piece.text async for piece in stream])) == 9_999


def test_a_client_serves_one_event_loop() -> None:
    client = client_of(FakeTransport())
    asyncio.run(client.generate("hi"))
    with pytest.raises(ClientClosedError, match="one event loop"):
        asyncio.run(client.generate("hi"))


async def test_health_models_and_stats() -> None:
    async with client_of(FakeTransport()) as client:
        state = await client.wait_until_ready(timeout=60)
        assert state.ready and set(state.models) == {"autoglm", "tokenizer", "engine", "detokenizer"}
        stats = await client.stats()
        assert stats.engine == {"running": 0} and stats.models["autoglm"].requests == 7
        assert [model.name for model in await client.models()] == ["autoglm"]


async def test_health_tells_of_an_engine_that_does_not_answer() -> None:
    class DeadEngine(FakeTransport):
        async def stream(self, request: object) -> AsyncIterator[object]:  # type: ignore[override]
            raise ServerError("Stub process 'engine_0_0' is not healthy.")
            yield

    async with client_of(DeadEngine()) as client:
        state = await client.health()
        assert (state.live, state.ready, state.models["engine"]) == (True, False, False)
        assert "not healthy" in state.detail
        with pytest.raises(ServerUnavailableError, match=r"was not ready within 0\.01 s"):
            await client.wait_until_ready(timeout=0.01)


async def test_health_tells_of_an_engine_that_answers_and_has_stopped() -> None:
    class StoppedEngine(FakeTransport):
        def _control(self, command: dict[str, Any]) -> pb.ModelInferResponse:
            return control_response({"healthy": False, "running": 0})

    async with client_of(StoppedEngine()) as client:
        state = await client.health()
        assert (state.live, state.ready, state.models["engine"]) == (True, False, False)
        assert state.detail == "the engine has stopped"


def test_the_blocking_client_is_the_same_client() -> None:
    transport = FakeTransport(Script(words=["a ", "b"]))
    with Client("fake:1", transport=lambda address: transport) as client:
        assert client.generate("hi").text == "a b"
        stream = client.stream("hi")
        assert [piece.text for piece in stream] == ["a ", "b"]
        assert stream.result.text == "a b"
        assert client.chat([{"role": "user", "content": "x"}]).text == "a b"
        assert client.health().ready and client.stats().models
    with pytest.raises(ClientClosedError):
        client.generate("hi")


def test_breaking_off_a_blocking_stream_cancels_on_the_server() -> None:
    transport = FakeTransport(LONG)
    with Client("fake:1", transport=lambda address: transport) as client:
        for _ in client.stream("hi"):
            break
        with pytest.raises(KeyError), client.stream("hi") as stream:
            next(stream)
            raise KeyError("mine")
    assert len(transport.cancelled) == 2 and not transport.running and not transport.aborted
