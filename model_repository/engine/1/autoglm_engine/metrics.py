"""What the engine counts and measures, and the seam to whatever publishes it.

The engine calls these from its step thread, several times a step: an implementation must be cheap, and may hand on
what it gathered from another thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    name: str
    kind: Kind
    description: str
    label: str = ""  # the name of its one label; empty: none
    buckets: tuple[float, ...] = ()  # upper bounds, ascending
    unit: str = "seconds"  # of a histogram; it ends the published name


_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LOOKUP_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)

_TOKEN_BUCKETS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 131_072)
_QUEUE_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_REQUEST_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)

REQUESTS = MetricSpec("requests", Kind.COUNTER, "Requests that ended, by finish reason", label="finish_reason")
TOKENS_IN = MetricSpec("tokens_in", Kind.COUNTER, "Prompt tokens of admitted requests")
TOKENS_OUT = MetricSpec("tokens_out", Kind.COUNTER, "Tokens generated")
PREFIX_HIT_TOKENS = MetricSpec("prefix_hit_tokens", Kind.COUNTER, "Prompt tokens whose keys and values were reused")
TOKENS_DRAFTED = MetricSpec("tokens_drafted", Kind.COUNTER, "Tokens that prompt lookup drafted")
DRAFTS_ACCEPTED = MetricSpec("drafts_accepted", Kind.COUNTER, "Drafted tokens that were what the model says")
TIME_TO_FIRST_TOKEN = MetricSpec(
    "time_to_first_token", Kind.HISTOGRAM, "Seconds from arrival to the first token", buckets=_TTFT_BUCKETS
)
INTER_TOKEN_LATENCY = MetricSpec(
    "inter_token_latency", Kind.HISTOGRAM, "Seconds between two tokens of a request", buckets=_ITL_BUCKETS
)
REQUEST_PROMPT_TOKENS = MetricSpec(
    "request_prompt", Kind.HISTOGRAM, "Prompt tokens of a request", buckets=_TOKEN_BUCKETS, unit="tokens"
)
REQUEST_GENERATION_TOKENS = MetricSpec(
    "request_generation", Kind.HISTOGRAM, "Tokens of a request's answer", buckets=_TOKEN_BUCKETS, unit="tokens"
)
REQUEST_QUEUE_TIME = MetricSpec(
    "request_queue_time", Kind.HISTOGRAM, "Seconds that a request waited for a slot", buckets=_QUEUE_BUCKETS
)
E2E_REQUEST_LATENCY = MetricSpec(
    "e2e_request_latency", Kind.HISTOGRAM, "Seconds from a request's arrival to its end", buckets=_REQUEST_BUCKETS
)
IMAGES = MetricSpec("images", Kind.COUNTER, "Images of admitted requests")
IMAGES_REUSED = MetricSpec(
    "images_reused", Kind.COUNTER, "Images of admitted requests whose keys and values were reused"
)
IMAGE_ENCODE_TIME = MetricSpec(
    "image_encode_time", Kind.HISTOGRAM, "Seconds of encoding an image", buckets=_QUEUE_BUCKETS
)
IMAGE_DECODE_TIME = MetricSpec(
    "image_decode_time", Kind.HISTOGRAM, "Seconds of decoding an image's file", buckets=_QUEUE_BUCKETS
)
IMAGE_RESIZE_TIME = MetricSpec(
    "image_resize_time", Kind.HISTOGRAM, "Seconds of resizing an image and cutting its patches", buckets=_QUEUE_BUCKETS
)
IMAGE_TOWER_TIME = MetricSpec(
    "image_tower_time", Kind.HISTOGRAM, "Seconds of the vision tower on an image", buckets=_QUEUE_BUCKETS
)
IMAGE_FEATURE_USAGE = MetricSpec(
    "image_feature_usage", Kind.GAUGE, "Share of the memory for image features that requests use, 0 to 1"
)
RUNNING = MetricSpec("running", Kind.GAUGE, "Requests in a slot")
WAITING = MetricSpec("waiting", Kind.GAUGE, "Requests in the queue")
KV_CACHE_USAGE = MetricSpec("kv_cache_usage", Kind.GAUGE, "Share of the slots in which requests run, 0 to 1")
SLOTS = MetricSpec("slots", Kind.GAUGE, "Slots by state: free, busy, retained", label="state")
CACHE_HITS = MetricSpec("cache_hits", Kind.COUNTER, "Requests answered with a kept answer")
CACHE_MISSES = MetricSpec("cache_misses", Kind.COUNTER, "Requests that looked for a kept answer and found none")
CACHE_COALESCED = MetricSpec("cache_coalesced", Kind.COUNTER, "Requests that shared the slot of an equal one")
CACHE_STORES = MetricSpec("cache_stores", Kind.COUNTER, "Answers kept")
CACHE_EVICTIONS = MetricSpec("cache_evictions", Kind.COUNTER, "Kept answers that made room for others")
CACHE_EXPIRED = MetricSpec("cache_expired", Kind.COUNTER, "Kept answers that were found too old")
CACHE_CORRUPTED = MetricSpec("cache_corrupted", Kind.COUNTER, "Kept answers that were found damaged, and not used")
CACHE_BYTES = MetricSpec("cache_bytes", Kind.GAUGE, "Bytes of kept answers")
CACHE_ENTRIES = MetricSpec("cache_entries", Kind.GAUGE, "Kept answers")
REDIS_HITS = MetricSpec("cache_redis_hits", Kind.COUNTER, "Lookups in Redis that found the answer")
REDIS_MISSES = MetricSpec("cache_redis_misses", Kind.COUNTER, "Lookups in Redis that found none")
REDIS_ERRORS = MetricSpec("cache_redis_errors", Kind.COUNTER, "Lookups in Redis that failed or took too long")
REDIS_SKIPPED = MetricSpec("cache_redis_skipped", Kind.COUNTER, "Lookups that were not made because Redis was away")
REDIS_STORES = MetricSpec("cache_redis_stores", Kind.COUNTER, "Answers put into Redis")
REDIS_DROPPED = MetricSpec("cache_redis_dropped", Kind.COUNTER, "Answers that could not be put into Redis")
REDIS_UP = MetricSpec("cache_redis_up", Kind.GAUGE, "1 while Redis is used, 0 while it is away or there is none")
REDIS_LOOKUP = MetricSpec("cache_redis_lookup", Kind.HISTOGRAM, "Seconds of a lookup in Redis", buckets=_LOOKUP_BUCKETS)
SEMANTIC_HITS = MetricSpec("semantic_hits", Kind.COUNTER, "Requests answered as a question of the same meaning was")
SEMANTIC_MISSES = MetricSpec("semantic_misses", Kind.COUNTER, "Requests that looked for such a question and found none")
SEMANTIC_GUARDED = MetricSpec(
    "semantic_guarded", Kind.COUNTER, "Misses with a near question that differs in a number or the like"
)
SEMANTIC_ENTRIES = MetricSpec("semantic_entries", Kind.GAUGE, "Answers kept with the meaning of their question")
SEMANTIC_ENABLED = MetricSpec(
    "semantic_enabled", Kind.GAUGE, "1 while the semantic cache answers, 0 where it switched itself off"
)
SEMANTIC_CHECKS = MetricSpec(
    "semantic_checks",
    Kind.COUNTER,
    "Hits chosen to be computed again, by verdict: right, false, skipped",
    label="verdict",
)
SEMANTIC_FALSE_RATE = MetricSpec(
    "semantic_false_rate", Kind.GAUGE, "Share of false hits among the latest that were compared"
)

ALL_METRICS = (
    REQUESTS,
    TOKENS_IN,
    TOKENS_OUT,
    PREFIX_HIT_TOKENS,
    TOKENS_DRAFTED,
    DRAFTS_ACCEPTED,
    TIME_TO_FIRST_TOKEN,
    INTER_TOKEN_LATENCY,
    REQUEST_PROMPT_TOKENS,
    REQUEST_GENERATION_TOKENS,
    REQUEST_QUEUE_TIME,
    E2E_REQUEST_LATENCY,
    IMAGES,
    IMAGES_REUSED,
    IMAGE_ENCODE_TIME,
    IMAGE_DECODE_TIME,
    IMAGE_RESIZE_TIME,
    IMAGE_TOWER_TIME,
    IMAGE_FEATURE_USAGE,
    RUNNING,
    WAITING,
    KV_CACHE_USAGE,
    SLOTS,
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_COALESCED,
    CACHE_STORES,
    CACHE_EVICTIONS,
    CACHE_EXPIRED,
    CACHE_CORRUPTED,
    CACHE_BYTES,
    CACHE_ENTRIES,
    REDIS_HITS,
    REDIS_MISSES,
    REDIS_ERRORS,
    REDIS_SKIPPED,
    REDIS_STORES,
    REDIS_DROPPED,
    REDIS_UP,
    REDIS_LOOKUP,
    SEMANTIC_HITS,
    SEMANTIC_MISSES,
    SEMANTIC_GUARDED,
    SEMANTIC_ENTRIES,
    SEMANTIC_ENABLED,
    SEMANTIC_CHECKS,
    SEMANTIC_FALSE_RATE,
)


class Metrics(Protocol):
    """`label` is the value of the metric's one label, empty where it has none."""

    def inc(self, metric: MetricSpec, amount: float = 1.0, label: str = "") -> None: ...

    def set(self, metric: MetricSpec, value: float, label: str = "") -> None: ...

    def observe(self, metric: MetricSpec, value: float) -> None: ...


class NoMetrics:
    def inc(self, metric: MetricSpec, amount: float = 1.0, label: str = "") -> None:
        pass

    def set(self, metric: MetricSpec, value: float, label: str = "") -> None:
        pass

    def observe(self, metric: MetricSpec, value: float) -> None:
        pass
