"""The client against the real server: streams, every way to leave one, and a server whose engine dies."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from autoglm_client import (
    AsyncClient,
    AutoGLMError,
    Client,
    InvalidRequestError,
    LocalServer,
    Message,
    Timeouts,
    TotalTimeout,
)

pytestmark = pytest.mark.server
MODEL_REPOSITORY = Path(__file__).parents[2] / "model_repository"
NUM_LEAVERS, LONG_ANSWER = 200, 400
IN_FLIGHT = 24  # more than the slots, so that some leave while they wait


@pytest.fixture
def own_server(artifact: Path, tmp_path: Path) -> Iterator[LocalServer]:
    """A server that a test may stop or break; its log stays."""
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, log_file=tmp_path / "server.log") as running:
        yield running


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.grpc_url) as made:
        yield made


def test_the_answer_is_right_and_comes_in_pieces(client: Client) -> None:
    question = [Message("user", "What is the capital of France?")]
    with client.stream(question, max_tokens=32, temperature=0.0) as stream:
        texts = [piece.text for piece in stream]
    assert "Paris" in "".join(texts) and len(texts) > 1
    result = stream.result
    assert result.text == "".join(texts) == client.chat(question, max_tokens=32, temperature=0.0).text
    assert result.finish_reason == "stop"
    assert result.usage.completion_tokens >= len(texts)
    assert 0 < result.stages.server_ms <= result.total_ms * 1.05


def test_options_arrive(client: Client) -> None:
    result = client.generate("One, two, three,", max_tokens=12, temperature=0.0, logprobs=2, ignore_eos=True)
    assert (result.usage.completion_tokens, result.finish_reason, len(result.logprobs)) == (12, "length", 12)
    assert all(len(entry.top) == 2 and entry.logprob <= 0 for entry in result.logprobs)
    stop = result.text.split()[2]
    stopped = client.generate("One, two, three,", max_tokens=12, temperature=0.0, stop=[stop], ignore_eos=True)
    assert stopped.finish_reason == "stop" and stop not in stopped.text
    drawn = [client.generate("Once", max_tokens=8, temperature=1.0, seed=7).text for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(("option", "value"), [("temperature", -1.0), ("top_p", 0.0), ("max_tokens", 0), ("top_k", -2)])
def test_the_servers_refusals_are_typed_and_name_the_option(client: Client, option: str, value: float) -> None:
    with pytest.raises(InvalidRequestError, match=option):
        client.generate("hi", **{option: value})  # type: ignore[arg-type]


def test_map_health_models_and_stats(client: Client) -> None:
    results = list(client.map((f"Number {n}:" for n in range(20)), max_tokens=4, concurrency=8, ignore_eos=True))
    assert [result.usage.completion_tokens for result in results] == [4] * 20
    assert client.health().ready
    assert {model.name for model in client.models()} == {
        *("autoglm", "tokenizer", "engine", "detokenizer", "embedder", "vision", "ensemble", "vllm_model")
    }
    stats = client.stats()
    assert stats.engine["running"] == 0 and stats.models["autoglm"].succeeded > 0


def connections_to(server: LocalServer) -> set[int]:
    """The local ports of this process' connections to the server's gRPC port."""
    found = psutil.Process().net_connections(kind="tcp")
    return {one.laddr.port for one in found if one.raddr and one.raddr.port == server.grpc_port}


def test_callers_on_many_threads_share_one_connection_and_the_batch(server: LocalServer) -> None:
    before = connections_to(server)
    with Client(server.grpc_url) as client, ThreadPoolExecutor(16) as threads:
        client.generate("warm", max_tokens=1)
        asked = [f"Caller {n} says" for n in range(16)]
        steps = client.stats().engine["steps"]
        results = list(threads.map(lambda text: client.generate(text, max_tokens=40, ignore_eos=True), asked))
        assert [result.usage.completion_tokens for result in results] == [40] * 16
        assert len(connections_to(server) - before) == 1
        # One by one they would take 640 steps; together 40 and those in which only some were there.
        assert client.stats().engine["steps"] - steps < 320


@pytest.mark.parametrize("gzip", [False, True])
def test_compression_changes_no_answer(server: LocalServer, client: Client, gzip: bool) -> None:
    text = "The sky is blue. " * 100
    expected = client.generate(text, max_tokens=8, temperature=0.0)
    with Client(server.grpc_url, gzip=gzip) as other:
        assert other.generate(text, max_tokens=8, temperature=0.0).text == expected.text
        assert "".join(piece.text for piece in other.stream(text, max_tokens=8, temperature=0.0)) == expected.text


async def leave(client: AsyncClient, draw: random.Random) -> None:
    """One long request, left in a random way at a random moment."""
    moment, prompt = draw.uniform(0.0, 0.5), f"Story {draw.random()}: once upon a time"
    options = {"max_tokens": LONG_ANSWER, "ignore_eos": True}
    match draw.choice(["break", "exception", "time limit", "cancelled task"]):
        case "break":
            leave_at = time.monotonic() + moment
            async for _ in client.stream(prompt, **options):  # type: ignore[arg-type]
                if time.monotonic() > leave_at:
                    break
        case "exception":
            with pytest.raises(KeyError):
                async with client.stream(prompt, **options) as stream:  # type: ignore[arg-type]
                    await asyncio.sleep(moment)
                    await anext(stream)
                    raise KeyError
        case "time limit":
            with pytest.raises(TotalTimeout):
                await client.generate(prompt, timeouts=Timeouts(total=moment + 0.001), **options)  # type: ignore[arg-type]
        case _:
            task = asyncio.create_task(client.generate(prompt, **options))  # type: ignore[arg-type]
            await asyncio.sleep(moment)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def leave_many(client: AsyncClient) -> None:
    draw, gate = random.Random(1), asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with gate:
            await leave(client, draw)

    await asyncio.gather(*(one() for _ in range(NUM_LEAVERS)))


async def until_idle(client: AsyncClient) -> int:
    """The number of tokens that the server has computed by then."""
    async with asyncio.timeout(60):
        while True:
            engine = (await client.stats()).engine
            if engine["running"] == engine["waiting"] == engine["slots_busy"] == 0:
                return int(engine["tokens_out"])
            await asyncio.sleep(0.01)


def test_leaving_200_streams_frees_every_slot_and_lets_the_server_stop(own_server: LocalServer) -> None:
    async def run() -> tuple[int, str]:
        async with AsyncClient(own_server.grpc_url) as client:
            await leave_many(client)
            num_tokens = await until_idle(client)
            return num_tokens, (await client.generate("Hello", max_tokens=4)).finish_reason

    num_tokens, finish_reason = asyncio.run(run())
    assert num_tokens < NUM_LEAVERS * LONG_ANSWER / 2, "they were computed to their ends"
    assert finish_reason in ("length", "stop")
    own_server.stop()
    log = own_server.log_text()
    assert "in-flight inferences" in log  # Triton counts them when it stops, and names a model that has any
    assert not re.search(r"has \d+ in-flight inferences", log)


def test_an_engine_that_dies_is_a_typed_error_and_shows_in_health(own_server: LocalServer) -> None:
    with Client(own_server.grpc_url, timeouts=Timeouts(first_token=120, between_tokens=10, total=300)) as client:
        with pytest.raises(AutoGLMError), client.stream("Once upon a time", max_tokens=900, ignore_eos=True) as stream:
            next(stream)
            kill_stub(own_server, "engine")
            for _ in stream:
                pass
        with pytest.raises(AutoGLMError):
            client.generate("hi", max_tokens=2, timeouts=Timeouts(total=5))
        # The engine does not answer, then its server shuts down because of that and closes connections, then none is
        # there.
        started = time.monotonic()
        while "no server answers" not in (state := client.health(timeout=30)).detail:
            assert not state.ready and re.search("engine|is shutting down|broke", state.detail), state
            assert time.monotonic() - started < 120
        assert not state.ready and not state.live


def kill_stub(server: LocalServer, model: str) -> None:
    assert server.pid is not None
    stubs = [
        child.pid
        for child in psutil.Process(server.pid).children(recursive=True)
        if any(f"/{model}/" in argument for argument in child.cmdline())
    ]
    assert stubs, f"no stub process of {model}"
    for pid in stubs:
        os.kill(pid, signal.SIGKILL)
