"""What a request's span says, in the words of OpenTelemetry's conventions for generative AI, and its children: the
stages.

The server tells how long each stage took, not when: their spans lie end to end, in their order, before the answer's
arrival. No span carries what was asked or answered.
"""

from __future__ import annotations

from typing import Any

from autoglm_client import GenerationOptions, StageTimes
from opentelemetry.trace import Span, Status, StatusCode, Tracer, set_span_in_context

from .observed import CLIENT_LEFT, Answered, RequestRecord

STAGES = ("tokenize", "queue", "embed", "prefill", "decode", "detokenize")
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
_MAX_ANSWERS = 16  # whose stages are shown
_TOLD_OPTIONS = ("max_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")


def describe(span: Span, observed: RequestRecord, tracer: Tracer) -> None:
    """At the request's end."""
    attributes = {**_asked(observed), **_answered(observed)}
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
    if observed.model:
        span.update_name(f"{_OPERATIONS[observed.endpoint]} {observed.model}")
    if observed.failures:
        span.set_attribute("error.type", observed.failures[0])
    if (observed.status >= 500 and observed.status != CLIENT_LEFT) or (observed.failures and observed.status < 400):
        span.set_status(Status(StatusCode.ERROR, ", ".join(observed.failures) or None))
    for answer in observed.answers[:_MAX_ANSWERS]:
        _show_stages(span, observed, answer, tracer)


def _asked(observed: RequestRecord) -> dict[str, Any]:
    options = observed.options or GenerationOptions()
    told = {f"gen_ai.request.{name}": getattr(options, name) for name in _TOLD_OPTIONS}
    return {
        **told,
        "gen_ai.operation.name": _OPERATIONS[observed.endpoint],
        "gen_ai.provider.name": "autoglm",
        "gen_ai.request.model": observed.model or None,
        "gen_ai.request.stream": observed.streamed,
        "http.response.status_code": observed.status,
    }


def _answered(observed: RequestRecord) -> dict[str, Any]:
    if not observed.answers:
        return {}
    lasts = [answer.last for answer in observed.answers]
    return {
        "gen_ai.response.model": observed.model,
        "gen_ai.response.finish_reasons": [str(last.finish_reason) for last in lasts],
        "gen_ai.response.time_to_first_chunk": observed.time_to_first_token,
        "gen_ai.usage.input_tokens": sum(last.usage.prompt_tokens for last in lasts),
        "gen_ai.usage.output_tokens": sum(last.usage.completion_tokens for last in lasts),
        "gen_ai.usage.cache_read.input_tokens": sum(last.usage.cached_tokens for last in lasts),
        "autoglm.cache_hit": [last.cache_hit for last in lasts],
    }


def _show_stages(span: Span, observed: RequestRecord, answer: Answered, tracer: Tracer) -> None:
    stages = answer.last.stages
    begun_ns = int(getattr(span, "start_time", 0))
    arrived_ns = begun_ns + int((answer.at - observed.started) * 1e9)
    at = max(begun_ns, arrived_ns - int(stages.server_ms * 1e6))
    for name in STAGES:
        if milliseconds := _of(stages, name):
            stage = tracer.start_span(name, set_span_in_context(span), start_time=at)
            at += int(milliseconds * 1e6)
            stage.end(at)


def _of(stages: StageTimes, name: str) -> float:
    milliseconds: float = getattr(stages, f"{name}_ms")
    return milliseconds
