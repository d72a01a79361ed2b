"""A collector of traces: takes OTLP as JSON over HTTP, from the gateway and from Triton, and keeps the spans."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tests.support.server.http_servers import ManyAtOnce, QuietHandler


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

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(self.path, dict(self.headers), body)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self._server = ManyAtOnce(("127.0.0.1", 0), Handler)
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
        self._thread.join()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.paths.append(path)
        self.headers.append(headers)
        assert headers["Content-Type"].startswith("application/json"), headers
        self.spans.extend(spans_of_json(json.loads(body)))

    def wait_for(
        self, trace_id: str, enough: Callable[[list[CollectedSpan]], bool], timeout: float = 60.0
    ) -> list[CollectedSpan]:
        """The spans of the trace, once they are enough. Raises TimeoutError."""

        def of_trace() -> list[CollectedSpan]:
            return [span for span in self.spans if span.trace_id == trace_id]

        self.wait(lambda: enough(of_trace()), timeout)
        return of_trace()

    def wait(self, condition: Callable[[], bool], timeout: float) -> None:
        give_up_at = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"{len(self.spans)} spans came: {[(one.trace_id, one.name) for one in self.spans]}")
            time.sleep(0.02)


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
                span.get("traceState", ""),
                _plain(span.get("attributes", [])),
                span.get("status", {}).get("code", 0),
            )


def _plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["key"]: _value(one["value"]) for one in attributes}


def _value(value: dict[str, Any]) -> Any:
    ((kind, content),) = value.items()
    if kind == "arrayValue":
        return [_value(one) for one in content["values"]]
    return int(content) if kind == "intValue" else content
