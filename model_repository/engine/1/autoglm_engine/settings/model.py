"""The settings: one frozen object, built whole in one place and checked when it is built. `settings.file` reads
them."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from autoglm_engine.errors import InvalidRequest

from .redis_url import check_redis_url

DEVICES = ("auto", "cpu", "cuda")
CACHE_MODES = ("off", "exact")
SEMANTIC_MODES = ("off", "asked", "on")
SPECULATION = ("off", "auto", "on")
POLICIES = ("fifo", "features", "static")
DAY_MS = 86_400_000
_GPU_STEP_SECONDS = 30.0  # the longest steps take a tenth of a second
_SHORTEST_STEP_TIMEOUT = 1.0  # below, a busy machine's pause would end a server that is well
_RANGES: dict[str, tuple[float, float]] = {
    "max_queue": (1, 1_000_000),
    "max_batch_size": (0, 4096),
    "token_budget": (0, 1_000_000),
    "step_timeout_seconds": (0, 3600),
    "heartbeat_ms": (1, 3_600_000),
    "max_events_per_second": (0, 1_000_000),
    "default_deadline_ms": (0, DAY_MS),
    "cache_bytes": (1024, 1 << 40),
    "cache_ttl_seconds": (0.001, 1e9),
    "redis_timeout_ms": (1, 60_000),
    "redis_retry_seconds": (0.01, 3600),
    "semantic_threshold": (0, 1),
    "semantic_entries": (1, 10_000_000),
    "semantic_timeout_ms": (1, 60_000),
    "semantic_verify_share": (0, 1),
    "semantic_max_false_rate": (0, 1),
    "speculation_tokens": (1, 16),
    "speculation_ngram": (1, 8),
    "num_threads": (0, 4096),
    "prefetch_factor": (1, 1000),
    "admission_window": (1, 4096),
    "admission_path_weight": (0, 1),
    "admission_burst_weight": (0, 1),
    "admission_user_weight": (0, 1),
    "admission_burst_ms": (0, 60_000),
    "admission_max_passed": (0, 1_000_000),
    "admission_max_delay_ms": (0, 3_600_000),
    "image_feature_bytes": (1 << 16, 1 << 40),
    "image_queue_bytes": (1 << 16, 1 << 40),
    "static_size": (0, 4096),
    "static_window_ms": (0, 60_000),
}
_PLAIN: dict[str, Any] = {
    "max_events_per_second": 0.0,
    "default_deadline_ms": 0,
    "cache_mode": "off",
    "semantic_cache": "off",
    "speculation": "off",
}
_PREFIX = re.compile(r"[A-Za-z0-9.:_-]{1,64}")
_CHOICES = {
    "device": DEVICES,
    "cache_mode": CACHE_MODES,
    "semantic_cache": SEMANTIC_MODES,
    "speculation": SPECULATION,
    "admission": POLICIES,
}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`InvalidRequest` is raised for a value outside its range, naming both.

    `max_queue`: requests that may wait for a slot; one more is refused with QueueFull. As many may share another's
    slot. `max_batch_size`: most slots used at once, at most those of the artifact; 0 uses all of them. `token_budget`:
    most tokens a step computes, decode and prefill together. More makes prefill faster and the gap between two tokens
    of a running stream longer. Running requests always get their token: the budget counts as the number of slots where
    that is more. 0 leaves it to the runner: 2048 with TensorRT, which computes several prompts at once, else 256.
    `step_timeout_seconds`: a step that takes longer hangs, and ends the engine's process. 0 is 30 on a GPU, and no
    limit on a CPU, where a step that is slow goes on all the same. `prefix_reuse`: keep finished slots, and start a
    request from the longest prefix that is in a slot already. `heartbeat_ms`: a streamed request that was silent for so
    long gets an empty event. `max_events_per_second`: over all streams; 0 sends each token as it comes. Beyond it
    tokens share an event; the first and the last event of a stream never wait. `device`: where ONNX Runtime computes;
    auto is a GPU where this machine and the artifact allow it. Every other runtime has a device of its own.
    `default_deadline_ms`: of requests that set none; 0 is none. `cache_mode`: exact keeps complete answers and lets
    equal requests in flight share a slot; off does neither. `cache_bytes`: most bytes of kept answers.
    `cache_ttl_seconds`: how long an answer is kept. `cache_sampled`: also answers that are drawn at random without a
    seed, so that they repeat. `redis_url`: where answers are kept for other servers and the next start, too; empty:
    nowhere. `redis_timeout_ms`: most time that a lookup there may take. `redis_retry_seconds`: after a failure Redis is
    left alone for so long. `redis_prefix`: begins its keys. `speculation`: of greedy requests, draft what followed
    their last tokens before: off; auto, where it pays; on, always. `speculation_tokens`: most tokens drafted at a time.
    `speculation_ngram`: so many of the last tokens are looked up.

    `semantic_cache`: give kept answers also to questions of the same meaning: to nobody, to requests that ask for it,
    or to all that do not refuse. It needs the embedder, and `cache_mode` exact. `semantic_threshold`: least cosine of
    the embeddings of two questions that mean the same. `semantic_entries`: most answers kept for it.
    `semantic_timeout_ms`: most time that a lookup there may take; a request whose question is not embedded by then is
    computed. `semantic_verify_share`: of its hits, chosen at random, that are computed anew while nobody waits, and
    compared. `semantic_max_false_rate`: of the compared ones; where more are wrong, the semantic cache switches itself
    off.

    `admission`: who of those that wait gets the next slot: fifo, the oldest; features, by what a request has in common
    with those that are served (`admission_features`); static, batches that run to their end, to compare with.
    `admission_window`: of the oldest waiting requests so many are looked at. `admission_path_weight`,
    `admission_burst_weight`, `admission_user_weight`: what the share of a prompt that a slot holds, having come within
    `admission_burst_ms` of the oldest, and being of a running request's user count for. `admission_max_passed`,
    `admission_max_delay_ms`: a request that was passed over so often, or for the first time so long ago, goes first; of
    a class of priority that was, one does (`priorities`). `static_size`, `static_window_ms`: a static batch is closed
    when it has so many requests (0: one for each slot), or so long after the first of them came.

    `image_feature_bytes`: of a model that reads images, memory for what its vision tower made of them: for requests
    that wait and that begin, and for images that come again. `image_queue_bytes`: most bytes of images, as they came,
    that requests hold until they have a slot.
    """

    max_queue: int = 512
    max_batch_size: int = 0
    token_budget: int = 0
    step_timeout_seconds: float = 0.0
    prefix_reuse: bool = True
    heartbeat_ms: float = 300.0
    max_events_per_second: float = 400.0
    device: str = "auto"
    default_deadline_ms: int = 3_600_000
    cache_mode: str = "exact"
    cache_bytes: int = 64 << 20
    cache_ttl_seconds: float = 300.0
    cache_sampled: bool = False
    redis_url: str = field(default="", repr=False)  # there may be a password in it
    redis_timeout_ms: float = 50.0
    redis_retry_seconds: float = 1.0
    redis_prefix: str = "autoglm"
    semantic_cache: str = "asked"
    semantic_threshold: float = 0.9
    semantic_entries: int = 10_000
    semantic_timeout_ms: float = 2000.0
    semantic_verify_share: float = 0.1
    semantic_max_false_rate: float = 0.5
    speculation: str = "auto"
    speculation_tokens: int = 8
    speculation_ngram: int = 3
    admission: str = "fifo"
    admission_window: int = 64
    admission_path_weight: float = 0.4
    admission_burst_weight: float = 0.3
    admission_user_weight: float = 0.3
    admission_burst_ms: float = 50.0
    admission_max_passed: int = 64
    admission_max_delay_ms: float = 5000.0
    image_feature_bytes: int = 512 << 20
    image_queue_bytes: int = 256 << 20
    static_size: int = 0
    static_window_ms: float = 50.0

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            name, value = setting.name, getattr(self, setting.name)
            if name in _RANGES:
                low, high = _RANGES[name]
                if not low <= value <= high:  # also refuses NaN
                    raise InvalidRequest(
                        f"the setting {name} is {value}; it must be between {_number(low)} and {_number(high)}"
                    )
            if name in _CHOICES and value not in _CHOICES[name]:
                allowed = ", ".join(_CHOICES[name])
                raise InvalidRequest(f"the setting {name} is {value!r}; allowed are {allowed}")
        if 0 < self.step_timeout_seconds < _SHORTEST_STEP_TIMEOUT:
            raise InvalidRequest(
                f"the setting step_timeout_seconds is {self.step_timeout_seconds:g}; it must be 0 or between "
                f"{_SHORTEST_STEP_TIMEOUT:g} and {_RANGES['step_timeout_seconds'][1]:g}"
            )
        check_redis_url(self.redis_url)
        if not _PREFIX.fullmatch(self.redis_prefix):
            raise InvalidRequest(
                f"the setting redis_prefix is {self.redis_prefix!r:.80}; it must be 1 to 64 letters, digits "
                "and any of . : _ -"
            )

    def seconds_of_step(self, on_gpu: bool) -> float:
        """Most that one may take; 0 is no limit."""
        return self.step_timeout_seconds or (_GPU_STEP_SECONDS if on_gpu else 0.0)

    def num_slots(self, available: int) -> int:
        """Slots to use of the artifact's `available` ones. Raises InvalidRequest where it has fewer."""
        if self.max_batch_size > available:
            raise InvalidRequest(
                f"the setting max_batch_size is {self.max_batch_size}; it must be between 0 and {available}, "
                "which is what the artifact has slots for"
            )
        return self.max_batch_size or available


def plain_settings(**changes: Any) -> EngineSettings:
    """Of an engine that generates and does nothing beside, unless `changes` say so: a token an event, no deadline, no
    cache, no drafts. What is not named here is as it is served."""
    return EngineSettings(**(_PLAIN | changes))


@dataclass(frozen=True, slots=True)
class ServingSettings(EngineSettings):
    """All that one file may set: the engine's settings, those of its neighbours and those of the `autoglm` commands.

    `num_threads`: of the runtime; 0 takes all cores that the process may use.
    `exit_with_engine`: the server ends when the engine's process dies.
    `prefetch_factor`: how far commands that ask many prompts read ahead, as a multiple of the requests in flight.
    `use_streaming`: commands show an answer while it is made.
    """

    num_threads: int = 0
    exit_with_engine: bool = True
    prefetch_factor: int = 2
    use_streaming: bool = True


def _number(bound: float) -> str:
    """Whole ones with all their digits."""
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"
