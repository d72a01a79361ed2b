"""Puts the semantic cache together, or says why it cannot be had."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from autoglm_engine.embedder import EmbedderManifest, is_exported
from autoglm_engine.errors import ArtifactError, EngineError, InvalidRequest
from autoglm_engine.metrics import Metrics
from autoglm_engine.settings.model import EngineSettings

from .cache import Embed, SemanticCache
from .entries import SemanticEntries
from .vector_index import VectorIndex


def open_semantic(
    settings: EngineSettings,
    answer_digest: str,
    embedder: Path | None,
    embed: Embed,
    metrics: Metrics,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[SemanticCache | None, str]:
    """(the cache, ""), or (None, why not). Where the settings want it for every request it must be there: then raises
    InvalidRequest or ArtifactError instead.

    `embedder`: the folder of its artifact, None where these models have none; `embed` asks the model that serves it."""
    if settings.semantic_cache == "off":
        return None, "the server's setting semantic_cache is off"
    try:
        if settings.cache_mode == "off":
            raise InvalidRequest("the semantic cache needs the setting cache_mode exact; it is off")
        if embedder is None:
            raise ArtifactError(
                "the semantic cache needs an embedder, and these models have none: embedder_model is empty"
            )
        if not is_exported(embedder):
            raise ArtifactError(
                f"the semantic cache needs the embedder, and there is none at {embedder}; make it with "
                "`autoglm export-embedder`"
            )
        manifest = EmbedderManifest.load(embedder)
        index = VectorIndex(manifest.num_dimensions)
    except EngineError as error:
        if settings.semantic_cache == "on":
            raise
        return None, str(error)
    entries = SemanticEntries(index, settings.semantic_entries, settings.cache_ttl_seconds, clock)
    return SemanticCache(embed, entries, answer_digest + manifest.digest, settings, metrics=metrics), ""
