"""What the engine counts while it runs: its statistics, and the metrics it publishes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autoglm_engine.core import Event
from autoglm_engine.metrics import (
    DRAFTS_ACCEPTED,
    INTER_TOKEN_LATENCY,
    KV_CACHE_USAGE,
    PREFIX_HIT_TOKENS,
    RUNNING,
    SLOTS,
    TIME_TO_FIRST_TOKEN,
    TOKENS_DRAFTED,
    TOKENS_IN,
    TOKENS_OUT,
    WAITING,
    Metrics,
)

from .request_metrics import count_ended
from .scheduler import Scheduler
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot; those from `steps` on count since the engine began."""

    running: int = 0
    waiting: int = 0
    slots_free: int = 0
    slots_busy: int = 0
    slots_retained: int = 0
    steps: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    prefix_hit_tokens: int = 0
    tokens_drafted: int = 0
    drafts_accepted: int = 0

    @property
    def kv_cache_usage(self) -> float:
        """Share of the slots in which requests run: a slot holds the keys and values of one, at its full length."""
        return self.slots_busy / max(1, self.slots_free + self.slots_busy + self.slots_retained)


class EngineMetrics:
    """The step thread counts; `stats` may be read from any thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.steps = 0
        self._tokens_in = self._tokens_out = self._prefix_hit_tokens = 0
        self._tokens_drafted = self._drafts_accepted = 0
        self._tokens_published = 0
        self.stats = EngineStats()

    def admitted(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            self._tokens_in += sequence.num_prompt_tokens
            self._prefix_hit_tokens += sequence.num_cached
            self._metrics.inc(TOKENS_IN, sequence.num_prompt_tokens)
            self._metrics.inc(PREFIX_HIT_TOKENS, sequence.num_cached)

    def token(self, sequence: Sequence, now: float) -> None:
        """The sequence is about to take a token."""
        self._tokens_out += 1
        if sequence.first_token_at is None:
            self._metrics.observe(TIME_TO_FIRST_TOKEN, now - sequence.arrival)
        else:
            self._metrics.observe(INTER_TOKEN_LATENCY, now - sequence.last_token_at)

    def drafted(self, num_drafts: int, num_accepted: int) -> None:
        """A step has verified drafts of one sequence."""
        if num_drafts:
            self._tokens_drafted += num_drafts
            self._drafts_accepted += num_accepted
            self._metrics.inc(TOKENS_DRAFTED, num_drafts)
            self._metrics.inc(DRAFTS_ACCEPTED, num_accepted)

    def ended(self, event: Event) -> None:
        count_ended(self._metrics, event)

    def report(self, scheduler: Scheduler) -> None:
        """Take the snapshot and publish it, once a step; gauges only where they changed, since publishing may be
        slow."""
        before, now = self.stats, self._snapshot(scheduler)
        self.stats = now
        if self._tokens_out > self._tokens_published:
            self._metrics.inc(TOKENS_OUT, self._tokens_out - self._tokens_published)
            self._tokens_published = self._tokens_out
        for metric, label, old, new in (
            (RUNNING, "", before.running, now.running),
            (WAITING, "", before.waiting, now.waiting),
            (KV_CACHE_USAGE, "", before.kv_cache_usage, now.kv_cache_usage),
            (SLOTS, "free", before.slots_free, now.slots_free),
            (SLOTS, "busy", before.slots_busy, now.slots_busy),
            (SLOTS, "retained", before.slots_retained, now.slots_retained),
        ):
            if old != new:
                self._metrics.set(metric, new, label)

    def _snapshot(self, scheduler: Scheduler) -> EngineStats:
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            slots_free=scheduler.slots.num_free,
            slots_busy=scheduler.slots.num_busy,
            slots_retained=scheduler.slots.num_retained,
            steps=self.steps,
            tokens_in=self._tokens_in,
            tokens_out=self._tokens_out,
            prefix_hit_tokens=self._prefix_hit_tokens,
            tokens_drafted=self._tokens_drafted,
            drafts_accepted=self._drafts_accepted,
        )
