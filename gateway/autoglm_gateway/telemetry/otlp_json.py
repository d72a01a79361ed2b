"""Spans as OTLP's JSON: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding. Ids are hexadecimal, 64-bit
numbers are strings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, SpanContext, format_span_id, format_trace_id
from opentelemetry.util.types import AttributeValue


def request_of(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """The body of one export: spans of one resource and scope lie together."""
    return {"resourceSpans": [_resource(list(group)) for _, group in groupby(spans, lambda span: span.resource)]}


def _resource(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    groups = groupby(spans, lambda span: span.instrumentation_scope)
    return {
        "resource": {"attributes": _attributes(spans[0].resource.attributes)},
        "scopeSpans": [
            {
                "scope": {"name": scope.name, "version": scope.version or ""} if scope else {},
                "spans": [_span(span) for span in group],
            }
            for scope, group in groups
        ],
    }


def _span(span: ReadableSpan) -> dict[str, Any]:
    written = {
        **_ids(span.context),
        "name": span.name,
        "kind": span.kind.value + 1,  # OTLP's 0 is "unspecified"
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "events": [_event(event) for event in span.events],
        "links": [_link(link) for link in span.links],
        "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
        "flags": span.context.trace_flags,
    }
    return {**written, "parentSpanId": format_span_id(span.parent.span_id)} if span.parent else written


def _ids(context: SpanContext) -> dict[str, Any]:
    return {
        "traceId": format_trace_id(context.trace_id),
        "spanId": format_span_id(context.span_id),
        "traceState": context.trace_state.to_header(),
    }


def _event(event: Event) -> dict[str, Any]:
    return {
        "timeUnixNano": str(event.timestamp),
        "name": event.name,
        "attributes": _attributes(event.attributes or {}),
    }


def _link(link: Link) -> dict[str, Any]:
    return {**_ids(link.context), "attributes": _attributes(link.attributes or {})}


def _attributes(attributes: Mapping[str, AttributeValue]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case str():
            return {"stringValue": value}
        case Iterable():
            return {"arrayValue": {"values": [_value(one) for one in value]}}
    return {"stringValue": str(value)}
