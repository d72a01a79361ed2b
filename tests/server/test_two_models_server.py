"""Two families of models in one real server, side by side: nothing of one is the other's."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from autoglm_client import AsyncClient, AutoGLMError, Client, LocalServer, Stats
from autoglm_gateway.settings.model import GatewaySettings
from prometheus_client.parser import text_string_to_metric_families

from tests.client.test_client_server import kill_stub
from tests.support.gateway.gateway_server import GatewayThread
from tests.support.server.raw_grpc import Stream, tensor
from tests.support.server.replica import free_ports, wait_until
from tests.support.server.two_models import LENGTHS, ONE, OTHER, write_both

pytestmark = pytest.mark.server
BOTH = (ONE, OTHER)
NUM_REQUESTS = 24  # of each, which has 3 slots
GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    repository = write_both(tmp_path_factory.mktemp("two"), cache_mode="exact")
    with LocalServer(repository) as running:
        yield running


@pytest.fixture
def clients(server: LocalServer) -> Iterator[dict[str, Client]]:
    with Client(server.grpc_url, model=ONE) as one, Client(server.grpc_url, model=OTHER) as other:
        yield {ONE: one, OTHER: other}


def prompts(count: int = NUM_REQUESTS) -> list[str]:
    return [f"Question {number}: why?" for number in range(count)]


def metrics_of(server: LocalServer) -> dict[tuple[str, str], float]:
    """(sample, model) -> value, of the engines' own; several label values of one model are summed."""
    text = urllib.request.urlopen(server.metrics_url, timeout=60).read().decode()
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("autoglm_"):
                assert sample.labels["version"] == "1"
                key = sample.name, sample.labels["model"]
                found[key] = found.get(key, 0.0) + sample.value
    return found


def sums(stats: dict[str, Stats], name: str) -> dict[str, int]:
    return {model: int(stats[model].engine[name]) for model in BOTH}


def test_each_answers_as_it_does_alone_while_both_are_under_load(
    server: LocalServer, clients: dict[str, Client]
) -> None:
    alone = {
        model: [clients[model].generate(prompt, cache="bypass", **GREEDY).text for prompt in prompts()]
        for model in BOTH
    }
    assert not set(alone[ONE]) & set(alone[OTHER]), "the artifacts cannot be told apart"
    before = {model: clients[model].stats() for model in BOTH}

    async def ask(model: str) -> list[str]:
        async with AsyncClient(server.grpc_url, model=model) as client:
            answers = client.map(prompts(), cache="bypass", concurrency=NUM_REQUESTS, **GREEDY)
            return [answer.text async for answer in answers]

    async def ask_both() -> list[list[str]]:
        return await asyncio.gather(*(ask(model) for model in BOTH))

    assert dict(zip(BOTH, asyncio.run(ask_both()), strict=True)) == alone
    after = {model: clients[model].stats() for model in BOTH}
    for model in BOTH:
        assert sums(after, "tokens_out")[model] - sums(before, "tokens_out")[model] == 24 * NUM_REQUESTS
    assert {model: clients[model].limits().max_length for model in BOTH} == LENGTHS


def test_metrics_count_each_model_for_itself(server: LocalServer, clients: dict[str, Client]) -> None:
    clients[ONE].generate("once", cache="bypass", **GREEDY)
    for _ in range(3):
        clients[OTHER].generate("thrice", cache="bypass", **GREEDY)
    wanted = {
        (f"autoglm_{name}_total", model): value
        for name in ("tokens_out", "tokens_in")
        for model, value in sums({model: clients[model].stats() for model in BOTH}, name).items()
    }
    assert len(set(wanted.values())) > 2
    give_up_at = time.monotonic() + 60
    while not wanted.items() <= (found := metrics_of(server)).items():
        assert time.monotonic() < give_up_at, (wanted, found)
        time.sleep(0.05)
    assert {model for _, model in found} == set(BOTH)
    assert found["autoglm_slots", ONE] == found["autoglm_slots", OTHER] == 3
    assert found["autoglm_time_to_first_token_seconds_count", ONE] >= 1


def test_a_kept_answer_is_one_models_and_a_flush_too(clients: dict[str, Client]) -> None:
    for model in BOTH:
        clients[model].flush_cache()
    kept = clients[ONE].generate("Keep this", **GREEDY)
    assert clients[OTHER].generate("Keep this", **GREEDY).cache_hit == "none"
    assert clients[OTHER].flush_cache() == 1
    again = clients[ONE].generate("Keep this", **GREEDY)
    assert (again.cache_hit, again.text) == ("exact", kept.text)


def test_a_cancel_ends_what_its_own_model_does(clients: dict[str, Client], server: LocalServer) -> None:
    """One id in both: `control` at one engine is nothing to the other."""
    inputs = [
        tensor("text_input", b"Go on"),
        tensor("max_tokens", 10_000),
        tensor("ignore_eos", True),
        tensor("stream", True),
    ]
    with Stream(server.grpc_url) as one, Stream(server.grpc_url) as other, Stream(server.grpc_url) as control:
        for model, stream in ((ONE, one), (OTHER, other)):
            stream.send([*inputs, tensor("cache", b"bypass")], model, request_id="same")
        one.next()
        cancel = tensor("control", json.dumps({"cancel": ["same"]}).encode())
        answer = control.finish(control.send([cancel], f"{ONE}-engine"))
        assert json.loads(answer.last["event"].tobytes()) == {"cancelled": 1}
        assert one.finish("same").finish_reason == "cancelled"
        assert other.finish("same").finish_reason == "length"


def test_leaving_a_stream_frees_its_models_slot(clients: dict[str, Client]) -> None:
    for model in BOTH:
        for _ in clients[model].stream("Leave", cache="bypass", max_tokens=10_000, ignore_eos=True):
            break
        give_up_at = time.monotonic() + 60
        while clients[model].stats().engine["slots_busy"]:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)


@pytest.mark.parametrize(("own", "strange"), list(itertools.permutations(BOTH)))
def test_what_one_models_steps_say_to_each_other_is_refused_by_the_others(
    server: LocalServer, own: str, strange: str
) -> None:
    def request_of(stream: Stream) -> list[Any]:
        made = stream.finish(stream.send([tensor("text_input", b"Hello"), tensor("max_tokens", 3)], f"{own}-tokenizer"))
        ids, packed = made.last["token_ids"].reshape(-1), made.last["request"].reshape(-1)
        return [tensor("token_ids", ids.tolist(), "INT32"), tensor("request", packed.tolist(), "UINT8")]

    with Stream(server.grpc_url) as stream:
        refused = stream.finish(stream.send(request_of(stream), f"{strange}-engine"))
        assert "INVALID_ARG: request has no valid seal" in refused.error
        taken = stream.finish(stream.send(request_of(stream), f"{own}-engine"))
        event = tensor("event", taken.last["event"].reshape(-1).tolist(), "UINT8")
        refused = stream.finish(stream.send([event], f"{strange}-detokenizer"))
        assert "INVALID_ARG: event has no valid seal" in refused.error
        read = stream.finish(stream.send([event], f"{own}-detokenizer"))
        assert read.finish_reason == "length", read.error


def test_health_is_of_the_model_that_is_asked_about(clients: dict[str, Client], server: LocalServer) -> None:
    for model in BOTH:
        state = clients[model].health()
        assert state.ready and set(state.models) == {
            model,
            *(f"{model}-{step}" for step in ("tokenizer", "engine", "detokenizer")),
        }
    assert server.is_healthy()
    with Client(server.grpc_url) as nobody:
        assert "'autoglm' is not ready" in nobody.health().detail
        with pytest.raises(AutoGLMError, match="autoglm"):
            nobody.generate("hi")


def test_one_gateway_serves_both(server: LocalServer, clients: dict[str, Client]) -> None:
    settings = GatewaySettings(servers=(server.grpc_url,), models={ONE: ONE, "fast": OTHER}, aliases={})
    alone = {model: clients[model].generate("Through HTTP", cache="bypass", **GREEDY).text for model in BOTH}
    with GatewayThread(settings) as gateway, httpx.Client(base_url=gateway.url, timeout=300) as http:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == [ONE, "fast"]
        assert http.get("/health/ready").status_code == 200
        for name, model in ((ONE, ONE), ("fast", OTHER)):
            answer = http.post("/v1/completions", json={"model": name, "prompt": "Through HTTP", **GREEDY}).json()
            assert (answer["model"], answer["choices"][0]["text"]) == (name, alone[model])


def test_without_exit_with_engine_the_other_model_goes_on(tmp_path: Path) -> None:
    with (
        LocalServer(write_both(tmp_path, exit_with_engine="false")) as server,
        Client(server.grpc_url, model=OTHER) as other,
        Client(server.grpc_url, model=ONE) as one,
    ):
        expected = other.generate("Hello", **GREEDY).text
        one.generate("Hello", **GREEDY)
        kill_stub(server, f"{ONE}-engine")
        give_up_at = time.monotonic() + 60
        while one.health().ready:
            assert time.monotonic() < give_up_at
        time.sleep(1)  # two looks of the watches
        assert other.health().ready and not server.is_healthy()
        assert other.generate("Hello", **GREEDY).text == expected
        with pytest.raises(AutoGLMError):
            one.generate("Hello", **GREEDY)


def test_serve_of_both_ends_when_one_engine_dies(tmp_path: Path) -> None:
    """`autoglm serve`, with a gateway that serves both; its owner starts it again."""
    ports, log = free_ports(), tmp_path / "serve.log"
    named = [word for option, port in ports.items() for word in (option, str(port))]
    command = [sys.executable, "-m", "autoglm_cli", "serve", "--gateway", "--repository", write_both(tmp_path)]
    with log.open("wb") as output:
        # An artifact for the whole server is none for models that have their own.
        environment = {**os.environ, "TMPDIR": str(tmp_path), "AUTOGLM_ARTIFACT": "/nowhere"}
        serving = psutil.Popen([*map(str, command), *named], stdout=output, stderr=output, env=environment)
    try:
        wait_until(lambda: "ready; Ctrl-C" in log.read_text() or serving.poll() is not None)
        assert serving.poll() is None, log.read_text()
        url = f"http://127.0.0.1:{ports['--gateway-port']}/v1/completions"
        answers = [
            httpx.post(url, json={"model": model, "prompt": "Hello", **GREEDY}, timeout=300).json() for model in BOTH
        ]
        assert len({answer["choices"][0]["text"] for answer in answers}) == 2, answers
        engines = [
            child
            for child in serving.children(recursive=True)
            if any(f"/{ONE}-engine/" in word for word in child.cmdline())
        ]
        engines[0].kill()
        assert serving.wait(120) == 1
        assert re.search(rf"the process of the model .*{ONE}-engine.*|the server ended", log.read_text()), (
            log.read_text()
        )
    finally:
        if serving.is_running():
            serving.terminate()
            serving.wait(120)
