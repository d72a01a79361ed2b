"""What is measured of a whole request, once, with its last event: how it ended, how long it was, where its time
went."""

from __future__ import annotations

from autoglm_engine.core import Event
from autoglm_engine.metrics import (
    E2E_REQUEST_LATENCY,
    REQUEST_GENERATION_TOKENS,
    REQUEST_PROMPT_TOKENS,
    REQUEST_QUEUE_TIME,
    REQUESTS,
    Metrics,
)


def count_ended(metrics: Metrics, event: Event) -> None:
    """`event` is the request's last. One that failed is counted and not measured."""
    if event.finish_reason is None:
        metrics.inc(REQUESTS, label="error")
        return
    stages = event.stages
    total_ms = stages.queue_ms + stages.tokenize_ms + stages.embed_ms + stages.prefill_ms + stages.decode_ms
    metrics.inc(REQUESTS, label=event.finish_reason.value)
    metrics.observe(REQUEST_PROMPT_TOKENS, event.usage.prompt_tokens)
    metrics.observe(REQUEST_GENERATION_TOKENS, event.usage.completion_tokens)
    metrics.observe(REQUEST_QUEUE_TIME, stages.queue_ms / 1e3)
    metrics.observe(E2E_REQUEST_LATENCY, total_ms / 1e3)
