"""A tier of the cache that gives the kept answer to a question of the same meaning.

Two requests compare only where everything but their question is equal: artifact, tenant, sampling options, the rest of
the prompt. Then the cosine of the questions' embeddings must reach a threshold, and the two must not differ in what
embeddings are blind to (`cache.semantic.guards`).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from autoglm_engine.cache.fingerprint import context_fingerprint
from autoglm_engine.cache.tiers import Found, Missed
from autoglm_engine.core import CacheHit, Event, Request, Stages
from autoglm_engine.metrics import (
    SEMANTIC_ENABLED,
    SEMANTIC_ENTRIES,
    SEMANTIC_GUARDED,
    SEMANTIC_HITS,
    SEMANTIC_MISSES,
    Metrics,
    NoMetrics,
)
from autoglm_engine.settings.model import EngineSettings

from .entries import Near, SemanticEntries
from .guards import may_mean_the_same
from .vector_index import Vector

_log = logging.getLogger(__name__)
_MAX_TO_KEEP = 256  # answers that wait to be kept
_MAX_REMEMBERED = 1024  # embeddings of questions that are being answered
Embed = Callable[[str], Vector]  # may wait; raises where there is no answer


class Checks(Protocol):
    """Gets every hit; see `cache.semantic.verifier`."""

    def offer(self, request: Request, served: Event) -> None: ...

    @property
    def stats(self) -> dict[str, float]: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class SemanticCounts:
    hits: int = 0
    misses: int = 0
    guarded: int = 0


@dataclass(frozen=True, slots=True)
class ToKeep:
    epoch: int
    key: bytes
    request: Request
    answer: Event


class SemanticCache:
    """A `Tier`. `digest`: of artifact and embedder. `checks` is set once, before the first request."""

    def __init__(
        self,
        embed: Embed,
        entries: SemanticEntries,
        digest: str,
        settings: EngineSettings,
        *,
        metrics: Metrics | None = None,
        may_match: Callable[[str, str], bool] = may_mean_the_same,
    ) -> None:
        self._embed = embed
        self._entries = entries
        self._digest = digest
        self.max_seconds = settings.semantic_timeout_ms / 1e3
        self._threshold = settings.semantic_threshold
        self._gives_to_all = settings.semantic_cache == "on"
        self._metrics = metrics or NoMetrics()
        self._may_match = may_match
        self._lock = threading.Lock()
        self._counts = SemanticCounts()
        self._epoch = 0
        self._remembered: OrderedDict[bytes, Vector] = OrderedDict()
        self._to_keep: queue.Queue[ToKeep | bytes | None] = queue.Queue(_MAX_TO_KEEP)
        self._unkept: deque[bytes] = deque(maxlen=_MAX_TO_KEEP)  # keys whose answer is to be forgotten
        self._is_on = True
        self._thread = threading.Thread(target=self._keep_all, name="semantic-keep", daemon=True)
        self._thread.start()
        self.checks: Checks | None = None
        self._metrics.set(SEMANTIC_ENABLED, 1)

    def wants(self, request: Request) -> bool:
        asks = self._gives_to_all if request.semantic is None else request.semantic
        return asks and self._is_on and request.question is not None and not request.images

    def find(self, key: bytes, request: Request) -> Found | Missed | None:
        assert request.question is not None, "a request without a question is not wanted"
        begin = time.monotonic()
        try:
            vector = self._embed(request.question.text)
        except Exception as error:
            _log.warning("the embedder gave no answer: %s", error)
            return None
        embed_ms = (time.monotonic() - begin) * 1e3
        with self._lock:
            self._remember(key, vector)
            near = self._best(request, vector) if self._is_on else None
            self._count_found(near)
        if near is None:
            return Missed(embed_ms)
        answer = _as_answer_to(request, near.entry.answer)
        if self.checks is not None:
            self.checks.offer(request, answer)
        return Found(answer, near.age, CacheHit.SEMANTIC, embed_ms)

    def keep(self, key: bytes, request: Request, answer: Event) -> None:
        """Dropped where too many wait, with the one kept before: an answer that is not kept is only computed again."""
        if self._is_on:
            try:
                self._to_keep.put_nowait(ToKeep(self._epoch, key, request, answer))
            except queue.Full:
                self._unkept.append(key)
                _log.warning("an answer is not kept: %d wait for the embedder", _MAX_TO_KEEP)

    def forget(self, key: bytes) -> None:
        """Behind what waits to be kept."""
        try:
            self._to_keep.put_nowait(key)
        except queue.Full:
            self._unkept.append(key)

    def flush(self) -> None:
        with self._lock:
            self._epoch += 1
            self._entries.clear()
            self._metrics.set(SEMANTIC_ENTRIES, 0)

    def switch_off(self, why: str) -> None:
        """For as long as this process lives; what was kept is forgotten."""
        _log.error("the semantic cache switches itself off: %s", why)
        self._is_on = False
        self._metrics.set(SEMANTIC_ENABLED, 0)
        self.flush()

    def close(self) -> None:
        if self.checks is not None:
            self.checks.close()
        self._is_on = False
        with self._to_keep.mutex:
            self._to_keep.queue.clear()
        self._to_keep.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    @property
    def stats(self) -> dict[str, float]:
        with self._lock:
            counts, entries = self._counts, len(self._entries)
        own = {"on": self._is_on, "hits": counts.hits, "misses": counts.misses, "guarded": counts.guarded}
        checked = self.checks.stats if self.checks is not None else {}
        return {f"semantic_{name}": value for name, value in {**own, "entries": entries, **checked}.items()}

    # ---- under the lock

    def _best(self, request: Request, vector: Vector) -> Near | None:
        assert request.question is not None
        question, guarded = request.question.text, False
        for near in list(self._entries.near(context_fingerprint(self._digest, request), vector, self._threshold)):
            if self._may_match(question, near.entry.question):
                self._entries.used(near.entry)
                return near
            guarded = True
        if guarded:
            self._counts.guarded += 1
            self._metrics.inc(SEMANTIC_GUARDED)
        return None

    def _count_found(self, near: Near | None) -> None:
        if near is None:
            self._counts.misses += 1
            self._metrics.inc(SEMANTIC_MISSES)
        else:
            self._counts.hits += 1
            self._metrics.inc(SEMANTIC_HITS)

    def _remember(self, key: bytes, vector: Vector) -> None:
        """So that the answer is kept without embedding its question again."""
        self._remembered[key] = vector
        while len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    # ---- the thread

    def _keep_all(self) -> None:
        while (item := self._to_keep.get()) is not None:
            if isinstance(item, bytes):
                self._unkept.append(item)
            else:
                self._keep_or_lose(item)
            self._forget_unkept()
            self._to_keep.task_done()

    def _keep_or_lose(self, item: ToKeep) -> None:
        try:
            self._keep_one(item)
        except Exception as error:
            _log.warning("an answer is not kept: %s", error)
            self._unkept.append(item.key)

    def _forget_unkept(self) -> None:
        """An answer was computed anew and could not be kept: the one before is not the answer any more."""
        with self._lock:
            while self._unkept:
                self._entries.forget(self._unkept.popleft())
            self._metrics.set(SEMANTIC_ENTRIES, len(self._entries))

    def _keep_one(self, item: ToKeep) -> None:
        question = item.request.question
        assert question is not None, "an answer without a question is not kept"
        with self._lock:
            vector = self._remembered.pop(item.key, None)
        if vector is None:
            vector = self._embed(question.text)
        answer = replace(item.answer, request_id="", stages=Stages())
        group = context_fingerprint(self._digest, item.request)
        with self._lock:
            if item.epoch == self._epoch and self._is_on:
                self._entries.keep(item.key, group, question.text, vector, answer)
                self._metrics.set(SEMANTIC_ENTRIES, len(self._entries))


def _as_answer_to(request: Request, answer: Event) -> Event:
    """What it counts is the asker's own prompt."""
    return replace(answer, usage=replace(answer.usage, prompt_tokens=len(request.prompt_ids), cached_tokens=0))
