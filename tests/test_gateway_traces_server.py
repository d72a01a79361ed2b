"""One trace from the caller through the gateway to the models of the real tritonserver, as a collector receives it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import openai
import pytest
from autoglm_client import AsyncClient
from autoglm_client.local_server import LocalServer
from autoglm_client.triton_traces import trace_arguments
from autoglm_gateway.settings import GatewaySettings
from collector import CollectedSpan, Collector
from conftest import MODEL_REPOSITORY
from gateway_server import GatewayThread

pytestmark = pytest.mark.server

TRITON, GATEWAY = "autoglm-triton", "autoglm-gateway"
STEPS = {"tokenizer", "engine", "detokenizer"}
BODY = {"model": "autoglm", "messages": [{"role": "user", "content": "Name three colours."}], "temperature": 0}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(artifact: Path, collector: Collector) -> Iterator[LocalServer]:
    env = {"AUTOGLM_CACHE_MODE": "off", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, env=env, arguments=trace_arguments(collector.url)) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(traced: LocalServer, collector: Collector) -> Iterator[GatewayThread]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with GatewayThread(GatewaySettings(servers=(traced.grpc_url,), otlp=collector.url)) as running:
            yield running


def context(*, sampled: bool = True) -> tuple[str, str, dict[str, str]]:
    """A caller's (trace id, span id, headers)."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, {"traceparent": f"00-{trace_id}-{span_id}-0{int(sampled)}"}


def of(spans: Sequence[CollectedSpan], trace_id: str, service: str) -> list[CollectedSpan]:
    return [span for span in spans if span.trace_id == trace_id and span.service == service]


def whole_trace(collector: Collector, trace_id: str) -> tuple[CollectedSpan, list[CollectedSpan]]:
    """The gateway's span, and Triton's, once all are there."""

    def is_whole(spans: list[CollectedSpan]) -> bool:
        models = {span.attributes.get("triton.model_name") for span in of(spans, trace_id, TRITON)}
        return models >= STEPS and any(span.kind == 2 for span in of(spans, trace_id, GATEWAY))

    spans = collector.wait_for(is_whole)
    (ours,) = (span for span in of(spans, trace_id, GATEWAY) if span.kind == 2)
    return ours, of(spans, trace_id, TRITON)


@pytest.mark.parametrize("stream", [False, True])
def test_caller_gateway_and_models_share_one_trace(gateway: GatewayThread, collector: Collector, stream: bool) -> None:
    trace_id, caller, headers = context()
    body = {**BODY, "stream": stream, "max_tokens": 12}
    httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=60).raise_for_status()
    ours, tritons = whole_trace(collector, trace_id)
    assert (ours.parent_id, ours.name) == (caller, "chat autoglm")
    (entry,) = (span for span in tritons if span.name == "InferRequest")
    assert entry.parent_id == ours.span_id
    known = {span.span_id: span for span in tritons}
    assert all(span.parent_id in known for span in tritons if span is not entry)
    assert all(ours.start <= span.start <= span.end for span in tritons)
    stages = [span for span in of(collector.spans, trace_id, GATEWAY) if span.parent_id == ours.span_id]
    assert {"tokenize", "prefill", "decode"} <= {span.name for span in stages}
    assert ours.attributes["gen_ai.usage.output_tokens"] == 12


def test_only_sampled_requests_with_a_context_are_traced(
    gateway: GatewayThread, traced: LocalServer, collector: Collector
) -> None:
    unsampled, _, headers = context(sampled=False)
    before = {span.trace_id for span in collector.spans}
    httpx.post(f"{gateway.url}/v1/chat/completions", json={**BODY, "max_tokens": 3}, headers=headers, timeout=60)
    sampled, _, headers = context()
    httpx.post(f"{gateway.url}/v1/chat/completions", json={**BODY, "max_tokens": 3}, headers=headers, timeout=60)
    whole_trace(collector, sampled)
    new = {span.trace_id for span in collector.spans if span.service == GATEWAY} - before
    assert new == {sampled} and unsampled not in {span.trace_id for span in collector.spans}


async def test_the_client_alone_hands_a_trace_to_the_server(traced: LocalServer, collector: Collector) -> None:
    trace_id, caller, headers = context()
    async with AsyncClient(traced.grpc_url, headers=lambda: headers) as client:
        await client.generate("Once", max_tokens=3)
    spans = collector.wait_for(lambda spans: len(of(spans, trace_id, TRITON)) >= 4)
    (entry,) = (span for span in of(spans, trace_id, TRITON) if span.name == "InferRequest")
    assert entry.parent_id == caller


async def test_many_at_once_are_each_in_their_own_trace(gateway: GatewayThread, collector: Collector) -> None:
    import asyncio

    contexts = [context() for _ in range(12)]
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:

        async def ask(headers: dict[str, str]) -> None:
            stream = await client.chat.completions.create(
                **{**BODY, "stream": True},
                max_tokens=8,
                extra_headers=headers,  # type: ignore[call-overload]
            )
            async for _ in stream:
                pass

        await asyncio.gather(*(ask(headers) for _, _, headers in contexts))
    for trace_id, caller, _ in contexts:
        ours, tritons = whole_trace(collector, trace_id)
        assert ours.parent_id == caller
        assert [span.parent_id for span in tritons if span.name == "InferRequest"] == [ours.span_id]


def test_a_stream_that_is_left_ends_in_its_trace_and_frees_its_slot(
    gateway: GatewayThread, traced: LocalServer, collector: Collector
) -> None:
    trace_id, _, headers = context()
    body = {**BODY, "stream": True, "max_tokens": 400, "ignore_eos": True}
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=60) as answer:
        next(answer.iter_lines())
    ours, _ = whole_trace(collector, trace_id)
    assert ours.attributes["http.response.status_code"] == 499
    give_up_at = time.monotonic() + 10
    while "autoglm_running 0" not in httpx.get(traced.metrics_url).text:
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
