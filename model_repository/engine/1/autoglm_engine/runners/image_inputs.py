"""What a decoder that takes images is given beside token ids: each token's three positions, and rows of features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from autoglm_engine.core import Features, Positions, Span


def has_images(spans: Iterable[Span]) -> bool:
    """Whether anything in them differs from a text: without it, a token's place is its position."""
    return any(span.positions is not None or span.features is not None for span in spans)


def positions_of(spans: Sequence[Span]) -> Positions:
    """[3, number of tokens]: time, row and column of every token of the spans."""
    return np.concatenate([_positions(span) for span in spans], axis=1, dtype=np.int32)


def features_of(spans: Sequence[Span], width: int, num_parts: int = 1) -> Features:
    """[number of ids below 0, num_parts * width], in the tokens' order; behind each part stand zeros."""
    given = [span.features for span in spans if span.features is not None]
    rows = np.zeros((sum(map(len, given)), num_parts, width), np.float32)
    first = 0
    for features in given:
        parts = features.reshape(len(features), num_parts, features.shape[1] // num_parts)
        rows[first : first + len(parts), :, : parts.shape[2]] = parts
        first += len(parts)
    return rows.reshape(len(rows), num_parts * width)


def _positions(span: Span) -> Positions:
    if span.positions is not None:
        return span.positions
    along = np.arange(span.start, span.start + len(span.token_ids), dtype=np.int32)
    return np.broadcast_to(along, (3, len(along)))
