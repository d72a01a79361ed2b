"""A collector of traces: takes OTLP over HTTP, as JSON from the gateway and as protobuf from Triton, and keeps the spans."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

_EIGHT_BYTES, _FOUR_BYTES = 1, 5  # wire types of protobuf


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """`parent_id`: empty for none. `start`, `end`: nanoseconds since 1970."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: int
    end: int
    trace_state: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    status: int = 0


class Collector:
    """`status`: what each export is answered."""

    def __init__(self, status: int = 200) -> None:
        self.spans: list[CollectedSpan] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.status = status
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(self.path, dict(self.headers), body)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.paths.append(path)
        self.headers.append(headers)
        if headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        as_json = headers["Content-Type"].startswith("application/json")
        self.spans.extend(spans_of_json(json.loads(body)) if as_json else spans_of_protobuf(body))

    def wait_for(self, enough: Callable[[list[CollectedSpan]], bool], timeout: float = 15.0) -> list[CollectedSpan]:
        give_up_at = time.monotonic() + timeout
        while not enough(self.spans):
            assert time.monotonic() < give_up_at, f"these spans came: {[(s.service, s.name) for s in self.spans]}"
            time.sleep(0.02)
        return list(self.spans)


def spans_of_json(request: dict[str, Any]) -> Iterator[CollectedSpan]:
    for resource in request["resourceSpans"]:
        service = _plain(resource["resource"]["attributes"])["service.name"]
        for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
            yield CollectedSpan(
                service,
                span["name"],
                span["traceId"],
                span["spanId"],
                span.get("parentSpanId", ""),
                span["kind"],
                int(span["startTimeUnixNano"]),
                int(span["endTimeUnixNano"]),
                span["traceState"],
                _plain(span["attributes"]),
                span["status"]["code"],
            )


def _plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["key"]: _value(one["value"]) for one in attributes}


def _value(value: dict[str, Any]) -> Any:
    ((kind, content),) = value.items()
    if kind == "arrayValue":
        return [_value(one) for one in content["values"]]
    return int(content) if kind == "intValue" else content


def spans_of_protobuf(request: bytes) -> Iterator[CollectedSpan]:
    """Field numbers are those of opentelemetry/proto/trace/v1/trace.proto; attributes that are no strings are left out."""
    for _, resource in fields(request):  # ExportTraceServiceRequest.resource_spans
        parts = list(fields(resource))
        attributes = [one for number, part in parts if number == 1 for _, one in fields(part)]
        service = dict(_pair(one) for one in attributes)["service.name"]
        for span in (s for number, scope in parts if number == 2 for n, s in fields(scope) if n == 2):
            yield _span(service, list(fields(span)))


def _span(service: str, parts: list[tuple[int, Any]]) -> CollectedSpan:
    found = dict(parts)
    return CollectedSpan(
        service,
        found[5].decode(),
        found[1].hex(),
        found[2].hex(),
        found.get(4, b"").hex(),
        found.get(6, 0),
        found[7],
        found[8],
        found.get(3, b"").decode(),
        dict(_pair(part) for number, part in parts if number == 9),
    )


def _pair(key_value: bytes) -> tuple[str, Any]:
    found = dict(fields(key_value))
    value = dict(fields(found[2]))
    return found[1].decode(), value[1].decode() if 1 in value else next(iter(value.values()), None)


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message: whole numbers, or bytes of strings, messages and the like."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                value, at = _varint(message, at)
            case 2:
                length, at = _varint(message, at)
                value, at = message[at : at + length], at + length
            case kind:
                size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}[kind]
                value, at = int.from_bytes(message[at : at + size], "little"), at + size
        yield tag >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
