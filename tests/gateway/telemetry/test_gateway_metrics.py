"""What the gateway counts, in front of a server that lives in the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from autoglm_client import AsyncClient, Piece, Result, StageTimes, Usage
from autoglm_client.exceptions import AutoGLMError, CannotConnectError, InvalidRequestError, QueueFullError, ServerError
from autoglm_gateway.app import create_app
from autoglm_gateway.caller import Caller
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_gateway.telemetry.metrics import FAILURE_KINDS, GatewayMetrics
from autoglm_gateway.telemetry.observed import Answered, RequestRecord
from autoglm_gateway.telemetry.observing import ENDPOINTS, endpoint_of
from autoglm_gateway.telemetry.recording_client import kind_of
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from tests.support.client.client_fakes import FakeTransport, Script
from tests.support.gateway.asgi import leave_after
from tests.support.gateway.gateway_fakes import bearer, made_keys, opened

CHAT = "/v1/chat/completions"
HELLO = {"model": "autoglm", "messages": [{"role": "user", "content": "hello"}]}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@asynccontextmanager
async def running(transport: FakeTransport) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    settings = GatewaySettings()
    app = create_app(settings, lambda urls, model: AsyncClient(urls, model=model, transport=lambda _: transport))  # type: ignore[arg-type, return-value]
    inner = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=inner, base_url="http://gateway") as http,
    ):
        yield app, http


def samples(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


async def counted(http: httpx.AsyncClient) -> Callable[..., float]:
    """Of one scrape: `value(name, label=...)`, whatever the other labels are."""
    found = samples((await http.get("/metrics")).text)

    def value(name: str, **labels: str) -> float:
        wanted = f"autoglm_gateway_{name}"
        return sum(seen for (one, has), seen in found.items() if one == wanted and labels.items() <= has)

    return value


async def test_a_stream_and_a_whole_answer_are_counted_with_their_times_and_tokens() -> None:
    async with running(FakeTransport(Script(pause_s=0.01))) as (_, http):
        assert (await http.post(CHAT, json=HELLO)).status_code == 200
        assert (await http.post(CHAT, json={**HELLO, "stream": True, "n": 2})).text.endswith("[DONE]\n\n")
        value = await counted(http)
    assert value("requests_total", endpoint=CHAT, status="200") == 2
    assert value("request_seconds_count", endpoint=CHAT) == 2
    assert (value("in_flight", endpoint=CHAT), value("in_flight", endpoint="/metrics")) == (0, 1)
    assert value("tokens_in_total", endpoint=CHAT) == 9 == value("tokens_out_total", endpoint=CHAT)
    assert value("tokens_cached_total", endpoint=CHAT) == 3
    assert value("time_to_first_token_seconds_count", endpoint=CHAT) == 1
    assert value("time_per_output_token_seconds_count", endpoint=CHAT) == 2
    assert (
        0.02 <= value("time_per_output_token_seconds_sum", endpoint=CHAT) < value("request_seconds_sum", endpoint=CHAT)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (QueueFullError("the queue is full"), "queue_full", 429),
        (CannotConnectError("no server there"), "unavailable", 503),
        (ServerError("broken"), "server_error", 500),
        (InvalidRequestError("top_k is 9"), "invalid_value", 400),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failures_of_the_server_are_counted_by_kind(
    error: AutoGLMError, kind: str, status: int, stream: bool
) -> None:
    async with running(FakeTransport(Script(errors=[error] * 9))) as (_, http):
        assert (await http.post(CHAT, json={**HELLO, "stream": stream})).status_code == status
        value = await counted(http)
    assert {one: value("upstream_errors_total", kind=one) for one in FAILURE_KINDS if one != kind}.keys() == {
        one for one in FAILURE_KINDS if one != kind
    }
    assert [one for one in FAILURE_KINDS if value("upstream_errors_total", kind=one)] == [kind]
    assert value("requests_total", endpoint=CHAT, status=str(status)) == 1


async def test_a_failure_amid_a_stream_is_counted_though_its_status_was_sent() -> None:
    async with running(FakeTransport(Script(fail_after=(2, ServerError("broken"))))) as (_, http):
        await http.post(CHAT, json={**HELLO, "stream": True})
        value = await counted(http)
    assert (
        value("requests_total", endpoint=CHAT, status="200") == 1 == value("upstream_errors_total", kind="server_error")
    )


async def test_a_client_that_leaves_its_stream_is_status_499_and_a_cancelled_stream() -> None:
    transport = FakeTransport(Script(words=["one "] * 5000, pause_s=0.01))
    async with running(transport) as (app, http):
        await leave_after(app, CHAT, {**HELLO, "stream": True}, bodies=3)
        value = await counted(http)
    assert value("requests_total", endpoint=CHAT, status="499") == 1 == value("streams_cancelled_total", endpoint=CHAT)
    assert value("in_flight", endpoint=CHAT) == 0 and transport.cancelled


async def test_a_client_that_does_not_wait_for_its_whole_answer_is_status_499() -> None:
    transport = FakeTransport(Script(words=["one "] * 5000, pause_s=0.01))
    async with running(transport) as (app, http):
        await leave_after(app, CHAT, HELLO, bodies=0)
        value = await counted(http)
    assert (
        value("requests_total", endpoint=CHAT, status="499") == 1
        and value("requests_total", endpoint=CHAT, status="200") == 0
    )
    assert value("streams_cancelled_total", endpoint=CHAT) == 0 == value("in_flight", endpoint=CHAT)


async def test_with_keys_tenants_and_refusals_are_counted_and_keys_are_not_shown() -> None:
    keys, (alice, prometheus) = made_keys("alice", "prometheus", more=", metrics = true")
    async with opened(GatewaySettings(keys=keys, metrics_by_tenant=True), FakeTransport()) as gateway:
        assert (await gateway.http.post(CHAT, json=HELLO, headers=bearer(alice))).status_code == 200
        assert (await gateway.http.post(CHAT, json=HELLO, headers=bearer("ak-wrong"))).status_code == 401
        assert (await gateway.http.get("/metrics")).status_code == 401
        page = (await gateway.http.get("/metrics", headers=bearer(prometheus))).text
    found = samples(page)

    def requests(model: str = "", **labels: str) -> float:
        return found["autoglm_gateway_requests_total", frozenset({**labels, "model": model}.items())]

    assert requests("autoglm", endpoint=CHAT, status="200", tenant="alice") == 1
    assert (
        requests(endpoint=CHAT, status="401", tenant="") == 1 == requests(endpoint="/metrics", status="401", tenant="")
    )
    assert not any(secret in page for secret in (alice, prometheus, "ak-", *(key.digests[0].hex() for key in keys)))


async def test_refusals_and_unknown_paths_are_counted_under_few_names() -> None:
    async with running(FakeTransport()) as (_, http):
        for path in ("/wp-admin", "/v1/chat/completions/x", "/..%2f", "/v1/models/one", "/v1/models/two"):
            await http.get(path)
        await http.post(CHAT, json={**HELLO, "model": "gpt-4o"})
        value, text = await counted(http), (await http.get("/metrics")).text
    assert value("requests_total", endpoint="other", status="404") == 3
    assert value("requests_total", endpoint="/v1/models/{name}", status="404") == 2
    assert value("requests_total", endpoint=CHAT, status="404") == 1
    assert "wp-admin" not in text and "gpt-4o" not in text


@pytest.mark.slow
async def test_every_documented_endpoint_has_a_name_of_its_own() -> None:
    documented = create_app(GatewaySettings()).openapi()["paths"]
    assert {endpoint_of(path) for path in documented} == set(documented) and len(documented) > 5
    assert all(endpoint_of(path) == path for path in ENDPOINTS)


async def test_two_applications_count_apart() -> None:
    async with running(FakeTransport()) as (_, one), running(FakeTransport()) as (_, other):
        await one.post(CHAT, json=HELLO)
        first, second = await counted(one), await counted(other)
    asked = {"endpoint": CHAT, "status": "200"}
    assert (first("requests_total", **asked), second("requests_total", **asked)) == (1, 0)


def ended(tenant: str | None = None, cache_hit: str = "none") -> RequestRecord:
    usage, stages = Usage(8, 5, 2), StageTimes(1, 1, 1, 1, 1)
    piece = Piece("", "stop", usage, stages, cache_hit=cache_hit)
    seen = RequestRecord(
        CHAT, 10.0, 11.0, streamed=True, first_at=10.25, response=200, complete=True, caller=Caller(tenant)
    )
    seen.served = "autoglm"
    seen.answers.append(Answered(piece, 10.75, 10.25))
    return seen


def recorded(metrics: GatewayMetrics, observed: RequestRecord) -> None:
    metrics.began(observed)
    metrics.ended(observed, {})


@pytest.mark.slow
def test_tenants_are_told_apart_only_where_the_settings_say_so() -> None:
    apart, together = GatewayMetrics(by_tenant=True), GatewayMetrics()
    for metrics in (apart, together):
        recorded(metrics, ended("acme"))
    of_acme = {"endpoint": CHAT, "model": "autoglm", "tenant": "acme"}
    assert apart.registry.get_sample_value("autoglm_gateway_tokens_in_total", of_acme) == 8
    assert apart.registry.get_sample_value("autoglm_gateway_requests_total", {**of_acme, "status": "200"}) == 1
    assert (
        together.registry.get_sample_value("autoglm_gateway_tokens_in_total", {"endpoint": CHAT, "model": "autoglm"})
        == 8
    )


def test_kept_answers_count_as_hits_and_not_as_fast_tokens() -> None:
    metrics = GatewayMetrics()
    for kind in ("none", "exact", "semantic", "coalesced"):
        recorded(metrics, ended(cache_hit=kind))
    value, tokens = metrics.registry.get_sample_value, "autoglm_gateway_time_per_output_token_seconds"
    assert [
        value("autoglm_gateway_cache_hits_total", {"model": "autoglm", "kind": kind})
        for kind in ("exact", "semantic", "coalesced")
    ] == [
        1,
        1,
        1,
    ]
    labels = {"endpoint": CHAT, "model": "autoglm"}
    assert value(f"{tokens}_count", labels) == 2 and value(f"{tokens}_sum", labels) == 0.25


def test_every_error_of_the_client_has_a_known_kind() -> None:
    def below(kind: type[AutoGLMError]) -> set[type[AutoGLMError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    assert {kind_of(error("said")) for error in below(AutoGLMError)} == set(FAILURE_KINDS)


def test_an_answer_that_came_whole_has_no_time_to_first_token() -> None:
    usage, stages = Usage(8, 5, 2), StageTimes(1, 1, 1, 1, 1)
    answer = Answered(Result("", "stop", usage, stages, 1.0, None, "id", "endpoint"), 10.5)
    assert answer.seconds_per_token is None and RequestRecord(CHAT).time_to_first_token is None
