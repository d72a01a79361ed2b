"""Puts an engine behind the caches of answers that the settings ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoglm_engine.engine.engine import Engine
from autoglm_engine.metrics import Metrics
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.tokenizer.incremental import TokenText

from .coalescing import CachingEngine
from .redis.loading import load_redis_tier
from .semantic.cache import Embed, SemanticCache
from .semantic.loading import open_semantic
from .shared_request import SharedRequestGate
from .tiers import Tier

if TYPE_CHECKING:
    from .redis.tier import RedisTier


@dataclass(frozen=True, slots=True)
class AnswerCaches:
    """`no_semantic` says why there is no semantic cache, where there is none."""

    engine: CachingEngine
    redis: RedisTier | None
    semantic: SemanticCache | None
    no_semantic: str

    @property
    def stats(self) -> dict[str, object]:
        redis = self.redis.stats if self.redis else {}
        semantic = self.semantic.stats if self.semantic else {}
        return {**self.engine.cache_stats, **redis, **semantic}


def open_caches(
    engine: Engine,
    text: TokenText,
    answer_digest: str,
    settings: EngineSettings,
    gate: SharedRequestGate,
    metrics: Metrics,
    *,
    embed: Embed,
    embedder: Path | None,
    max_kept: int | None,
) -> AnswerCaches:
    """Raises as `open_semantic` and `load_redis_tier`; `max_kept` as `CachingEngine`'s."""
    semantic, no_semantic = open_semantic(settings, answer_digest, embedder, embed, metrics)
    redis = load_redis_tier(settings, metrics, lambda: caching.forget(redis))
    tiers: list[Tier] = [tier for tier in (redis, semantic) if tier is not None]
    caching = CachingEngine(
        engine, answer_digest, text, settings, gate, tiers=tiers, metrics=metrics, max_kept=max_kept
    )
    return AnswerCaches(caching, redis, semantic, no_semantic)
