"""Sends spans to a collector: OTLP as JSON over HTTP, with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import logging
import ssl
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from .otlp_json import request_of

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 3.0  # of connecting, and of each wait for the answer


class OtlpJsonExporter(SpanExporter):
    """Called from one thread, that of the batches. What cannot be sent is dropped; the log says when that begins, and
    when it is over. `headers` go with each export."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self._url = urlsplit(url)
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._broken = False
        self._closing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._closing and self._broken:  # the end should not wait for a collector that is away once a batch
            return SpanExportResult.FAILURE
        try:
            self._post(json.dumps(request_of(spans)).encode())
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not self._broken:
                _log.warning("traces cannot be sent to %s, and are dropped: %s", self._url.netloc, error)
            self._broken = True
            return SpanExportResult.FAILURE
        if self._broken:
            _log.warning("traces are sent to %s again", self._url.netloc)
        self._broken = False
        return SpanExportResult.SUCCESS

    def close_soon(self) -> None:
        """From now on the first failure is the last."""
        self._closing = True

    def shutdown(self) -> None:
        self._closing = True

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True  # nothing is kept here

    def _post(self, body: bytes) -> None:
        connection = self._connection()
        try:
            connection.request("POST", self._url.path, body, self._headers)
            answer = connection.getresponse()
            answer.read()
            if not 200 <= answer.status < 300:
                raise OSError(f"it answered {answer.status} {answer.reason}")
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        assert self._url.hostname, "traces_url() wants one"
        host, port = self._url.hostname, self._url.port
        if self._url.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_SECONDS, context=context)
        return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)


def headers_from(text: str) -> dict[str, str]:
    """Of OTEL_EXPORTER_OTLP_HEADERS: `name=value,name=value`, values percent-encoded."""
    pairs = (pair.split("=", 1) for pair in text.split(",") if "=" in pair)
    return {name.strip(): unquote(value.strip()) for name, value in pairs}
