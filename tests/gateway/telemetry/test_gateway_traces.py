"""Spans of the gateway, in front of a server that lives in the test, as a collector receives them."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import httpx
import pytest
from autoglm_cli import app
from autoglm_client import AsyncClient
from autoglm_client.exceptions import QueueFullError, ServerError
from autoglm_client.triton_traces import trace_arguments, traces_url
from autoglm_gateway.app import create_app
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_gateway.telemetry.otlp import OtlpJsonExporter, headers_from
from autoglm_gateway.telemetry.otlp_json import request_of
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from typer.testing import CliRunner

from tests.support.client.client_fakes import FakeTransport, Script
from tests.support.gateway.collector import CollectedSpan, Collector, spans_of_json

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
HELLO = {"model": "autoglm", "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 24, "temperature": 0}
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=opaque"}
INTERNAL, SERVER = 1, 2


class MetadataTransport(FakeTransport):
    """Notes what a gRPC transport would send along."""

    def __init__(self, headers: Any, script: Script | None = None) -> None:
        super().__init__(script)
        self._headers = headers
        self.metadata: list[dict[str, str]] = []

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        if request.model_name != "engine":
            self.metadata.append(self._headers())
        async for response in super().stream(request):
            yield response


@asynccontextmanager
async def running(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, script: Script | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, list[dict[str, str]]]]:
    """By its end, all spans are at the collector."""
    from autoglm_gateway import app as wiring

    transports: list[MetadataTransport] = []
    metadata: list[dict[str, str]] = []

    def connected(urls: Any, *, headers: Any, **others: Any) -> AsyncClient:
        transports.append(MetadataTransport(headers, script))
        transports[0].metadata = metadata
        return AsyncClient(urls, transport=lambda _: transports[0])  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(wiring, "AsyncClient", connected)
    app = create_app(GatewaySettings(otlp=collector.url))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http,
    ):
        yield http, metadata


def of_request(collector: Collector) -> CollectedSpan:
    (found,) = (span for span in collector.spans if span.kind == SERVER)
    return found


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_joins_its_callers_trace_and_hands_it_on(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        async with running(collector, monkeypatch) as (http, metadata):
            await http.post(CHAT, json={**HELLO, "stream": stream}, headers=SAMPLED)
            await http.get("/health/live", headers=SAMPLED)
        span = of_request(collector)
    assert (span.service, span.name, span.trace_id, span.parent_id) == (
        "autoglm-gateway",
        "chat autoglm",
        TRACE,
        CALLER,
    )
    assert span.trace_state == "vendor=opaque" and collector.paths == ["/v1/traces"]
    assert metadata == [{"traceparent": f"00-{TRACE}-{span.span_id}-01", "tracestate": "vendor=opaque"}]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "autoglm",
        "gen_ai.request.max_tokens": 24,
        "gen_ai.request.stream": stream,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 1,
        "gen_ai.response.finish_reasons": ["length"],
        "http.response.status_code": 200,
        "http.route": CHAT,
    }
    assert {name: span.attributes[name] for name in expected} == expected
    assert ("gen_ai.response.time_to_first_chunk" in span.attributes) == stream
    assert "secret" not in str(collector.spans)


async def test_stages_are_its_children_end_to_end_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        async with running(collector, monkeypatch, Script(pause_s=0.01)) as (http, _):
            await http.post(CHAT, json=HELLO, headers=SAMPLED)
        span = of_request(collector)
        stages = sorted((one for one in collector.spans if one is not span), key=lambda one: one.start)
    # as the test's server says: 0.1 ms of queue, 0.2 of tokenize, ...
    assert [(one.name, round((one.end - one.start) / 1e5)) for one in stages] == [
        ("tokenize", 2),
        ("queue", 1),
        ("embed", 6),
        ("prefill", 3),
        ("decode", 4),
        ("detokenize", 5),
    ]
    assert all(one.parent_id == span.span_id and one.kind == INTERNAL and one.trace_id == TRACE for one in stages)
    assert all(one.end == after.start for one, after in pairwise(stages))
    assert span.start <= stages[0].start and stages[-1].end <= span.end


async def test_what_the_caller_does_not_sample_leaves_no_span_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        async with running(collector, monkeypatch) as (http, metadata):
            await http.post(CHAT, json=HELLO, headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    assert metadata == [{}] and not collector.spans


@pytest.mark.parametrize("context", [{}, {"traceparent": "nonsense"}, {"traceparent": f"00-{'0' * 32}-{CALLER}-01"}])
async def test_without_a_context_a_trace_begins_here(context: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        async with running(collector, monkeypatch) as (http, metadata):
            await http.post(CHAT, json=HELLO, headers=context)
        span = of_request(collector)
    assert span.parent_id == "" and span.trace_id != TRACE
    (version, trace_id, span_id, flags) = metadata[0]["traceparent"].split("-")
    assert (version, trace_id, span_id) == ("00", span.trace_id, span.span_id) and int(flags, 16) & 1


@pytest.mark.parametrize("state", ["nonsense", "a=b,a=c", ",".join(f"k{n}=v" for n in range(40)), "x" * 600, "a=\xff"])
async def test_a_wrong_tracestate_is_left_out_and_fills_no_log(
    state: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Collector() as collector:
        async with running(collector, monkeypatch) as (http, metadata):
            headers = [
                (name.encode(), value.encode("latin-1")) for name, value in {**SAMPLED, "tracestate": state}.items()
            ]
            await http.post(CHAT, json=HELLO, headers=headers)
        span = of_request(collector)
    assert (span.trace_id, span.parent_id) == (TRACE, CALLER) and "tracestate" not in metadata[0]
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_choices_and_concurrent_requests_hand_on_their_own_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    with Collector() as collector:
        async with running(collector, monkeypatch, Script(pause_s=0.001)) as (http, metadata):
            await asyncio.gather(*(http.post(CHAT, json={**HELLO, "n": 2}) for _ in range(5)))
        roots = {span.span_id for span in collector.spans if span.kind == SERVER}
    assert len(roots) == 5
    assert sorted(one["traceparent"].split("-")[2] for one in metadata) == sorted([*roots, *roots])


@pytest.mark.parametrize(
    ("script", "stream", "status", "kind", "failed"),
    [
        (Script(errors=[QueueFullError("full")] * 9), False, 429, "queue_full", False),
        (Script(errors=[ServerError("broken")] * 9), False, 500, "server_error", True),
        (Script(fail_after=(2, ServerError("broken"))), True, 200, "server_error", True),
    ],
)
async def test_failures_are_told(
    script: Script, stream: bool, status: int, kind: str, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector() as collector:
        async with running(collector, monkeypatch, script) as (http, _):
            await http.post(CHAT, json={**HELLO, "stream": stream}, headers=SAMPLED)
        span = of_request(collector)
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (status, kind)
    assert (span.status == 2) == failed


async def test_a_collector_that_is_away_costs_requests_nothing_and_one_line_of_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Collector(status=503) as collector, caplog.at_level(logging.WARNING, "autoglm_gateway"):
        async with running(collector, monkeypatch) as (http, _):
            assert (await http.post(CHAT, json=HELLO)).status_code == 200
        assert [record.getMessage() for record in caplog.records] == [
            f"traces cannot be sent to {collector.url[7:]}, and are dropped: it answered 503 Service Unavailable"
        ]


def test_the_exporter_tells_when_a_collector_goes_and_comes(caplog: pytest.LogCaptureFixture) -> None:
    with Collector() as collector, caplog.at_level(logging.WARNING, "autoglm_gateway"):
        exporter = OtlpJsonExporter(f"{collector.url}/v1/traces", headers_from("api-key=a%20b, x = y,bad"))
        results = []
        for collector.status in (200, 500, 500, 200):
            results.append(exporter.export([]))
        exporter.close_soon()
        collector.status = 500
        results += [exporter.export([]), exporter.export([])]
    good, bad = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
    assert results == [good, bad, bad, good, bad, bad] and len(collector.paths) == 5
    assert (collector.headers[0]["api-key"], collector.headers[0]["x"]) == ("a b", "y")
    assert len(caplog.records) == 3 and "again" in caplog.records[1].getMessage()


VALUES = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text())


@given(st.dictionaries(st.text(min_size=1), st.one_of(VALUES, st.lists(st.text(), min_size=1))), st.text())
def test_spans_are_written_as_otlp_says(attributes: dict[str, Any], name: str) -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "one"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("scope")
    with tracer.start_as_current_span("outer", kind=SpanKind.CLIENT) as outer:
        inner = tracer.start_span(name, attributes=attributes, links=[Link(outer.get_span_context())])
        inner.add_event("happened", {"n": 1})
        inner.set_status(Status(StatusCode.ERROR, "why"))
        inner.end()
    request = request_of(kept.get_finished_spans())
    written, parent = spans_of_json(request)
    assert (written.name, written.attributes, written.parent_id) == (name, attributes, parent.span_id)
    assert (written.status, written.kind, parent.kind) == (2, 1, 3) and written.trace_id == parent.trace_id
    (span, _) = request["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert span["events"][0]["name"] == "happened" and span["links"][0]["spanId"] == parent.span_id
    assert span["events"][0]["attributes"] == [{"key": "n", "value": {"intValue": "1"}}]
    assert len(written.trace_id) == 32 and len(written.span_id) == 16


def test_a_collectors_address_is_completed_or_refused() -> None:
    assert (
        traces_url("http://127.0.0.1:4318")
        == "http://127.0.0.1:4318/v1/traces"
        == traces_url("http://127.0.0.1:4318/v1/traces/")
    )
    assert traces_url("https://host/otlp") == "https://host/otlp/v1/traces"
    assert "--trace-config=rate=0" in trace_arguments("http://127.0.0.1:4318")
    for wrong in ("127.0.0.1:4318", "grpc://host:4317", "http://", "http://host?x=1", ""):
        with pytest.raises(ValueError, match="it must be a URL such as"):
            traces_url(wrong)


@pytest.mark.parametrize("command", ["gateway", "serve"])
def test_the_command_line_refuses_what_is_no_address(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--otlp", "127.0.0.1:4318"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2 and "it must be a URL such as http://127.0.0.1:4318" in result.output


def test_the_sdk_is_loaded_only_where_there_are_traces() -> None:
    code = (
        "import sys; from autoglm_gateway.app import *; create_app(GatewaySettings()); print('opentelemetry.sdk' "
        "in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
