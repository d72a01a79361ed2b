"""Spans of requests: they join the caller's trace, and the server behind joins theirs."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager

from autoglm_client.triton_traces import traces_url
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from .observed import RequestRecord
from .otlp import OtlpJsonExporter, headers_from
from .spans import describe

_CONTEXT = (b"traceparent", b"tracestate")
_TALKATIVE = ("opentelemetry.trace.span", "opentelemetry.trace.propagation.tracecontext")


class Tracing:
    """`endpoint`: of a collector, such as http://127.0.0.1:4318. Which requests are traced is the caller's decision, or
    OTEL_TRACES_SAMPLER's where it makes none. Has a thread until `close`. Raises ValueError where `endpoint` is no
    URL."""

    def __init__(self, endpoint: str) -> None:
        for name in _TALKATIVE:  # they warn of every header that is wrong: callers could fill the log
            logging.getLogger(name).setLevel(logging.ERROR)
        self._exporter = OtlpJsonExporter(
            traces_url(endpoint), headers_from(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
        )
        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "autoglm-gateway")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("autoglm_gateway")
        self._propagator = TraceContextTextMapPropagator()

    def headers(self) -> dict[str, str]:
        """What tells a server of the span under way; nothing of one that is not recorded, since Triton would trace it
        whatever its flags say."""
        carrier: dict[str, str] = {}
        if trace.get_current_span().is_recording():
            self._propagator.inject(carrier)
        return carrier

    def request(self, scope: Scope, observed: RequestRecord) -> AbstractContextManager[Span]:
        """The span of a request, which is the current one meanwhile."""
        carrier = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _CONTEXT}
        return self._tracer.start_as_current_span(
            f"{scope['method']} {observed.endpoint}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "http.route": observed.endpoint},
        )

    def describe(self, span: Span, observed: RequestRecord) -> None:
        """At its end."""
        if span.is_recording():
            describe(span, observed, self._tracer)

    def close(self) -> None:
        """Send what is left. May take some seconds where the collector is away."""
        self._exporter.close_soon()
        self._provider.shutdown()
