"""What a step may ask of a runner. Everything is checked before anything is computed: a device writes where it is
told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoglm_engine.core import Adjustments, Positions, Span, StepBatch, TokenIds

from .base import Limits

_ANY = np.iinfo(np.int32).min


def check_batch(batch: StepBatch, limits: Limits) -> None:
    """Raises ValueError with the offending value and the allowed range."""
    if not batch.spans:
        raise ValueError("a step needs at least one span")
    for span in batch.spans:
        _check_span(span, limits)
    if len({span.slot for span in batch.spans}) != len(batch.spans):
        raise ValueError("a slot appears twice in one step")
    _check_token_ids(
        [(span.slot, span.token_ids) for span in batch.spans], limits, lowest=_ANY if limits.has_images else 0
    )
    for span in batch.spans:
        _check_images(span, limits)
    if limits.num_candidates:
        _check_adjustments([(span.slot, span.adjustments) for span in batch.spans if span.adjustments], limits)


def check_prefix(source: int, target: int, length: int, limits: Limits) -> None:
    """Raises ValueError where `copy_prefix` would leave the slots."""
    check_slot(source, limits)
    check_slot(target, limits)
    if not 0 <= length <= limits.max_length:
        raise ValueError(f"a prefix of {length} tokens is not in 0 ... {limits.max_length}")


def check_slot(slot: int, limits: Limits) -> None:
    if not 0 <= slot < limits.num_slots:
        raise ValueError(f"slot {slot} is not in 0 ... {limits.num_slots - 1}")


def _check_span(span: Span, limits: Limits) -> None:
    end = span.start + len(span.token_ids)
    check_slot(span.slot, limits)
    if not 1 <= len(span.token_ids) <= limits.prefill_chunk:
        raise ValueError(f"a span of {len(span.token_ids)} tokens is not in 1 ... {limits.prefill_chunk}")
    if not span.num_drafts < min(len(span.token_ids), limits.max_logits_per_span) or span.num_drafts < 0:
        most = min(len(span.token_ids), limits.max_logits_per_span) - 1
        raise ValueError(f"{span.num_drafts} drafts of {len(span.token_ids)} tokens are not in 0 ... {most}")
    if span.start < 0 or end > limits.max_length:
        raise ValueError(f"positions {span.start} ... {end - 1} are not in 0 ... {limits.max_length - 1}")


def _check_adjustments(changes: Sequence[tuple[int, Adjustments]], limits: Limits) -> None:
    for slot, told in changes:
        if not len(told.token_ids) == len(told.factors) == len(told.offsets):
            raise ValueError(
                f"slot {slot} has {len(told.token_ids)} adjusted tokens, {len(told.factors)} factors and "
                f"{len(told.offsets)} offsets; there must be as many of each"
            )
    if changes:
        _check_token_ids([(slot, told.token_ids) for slot, told in changes], limits)


def _check_images(span: Span, limits: Limits) -> None:
    if span.positions is None and span.features is None and (not limits.has_images or span.token_ids.min() >= 0):
        return
    if not limits.has_images:
        raise ValueError(f"slot {span.slot} has positions or features of images, which the artifact does not take")
    features, num_rows = span.features, int(np.count_nonzero(span.token_ids < 0))
    if num_rows != (0 if features is None else len(features)):
        given = 0 if features is None else len(features)
        raise ValueError(f"slot {span.slot} has {num_rows} tokens of images and {given} rows of features")
    if features is not None and features.shape[1:] != (limits.feature_size,):
        raise ValueError(
            f"slot {span.slot} has features of the shape {features.shape}; rows have {limits.feature_size} numbers"
        )
    if span.positions is not None:
        _check_positions(span, span.positions, limits)


def _check_positions(span: Span, positions: Positions, limits: Limits) -> None:
    if positions.shape != (3, len(span.token_ids)):
        raise ValueError(
            f"slot {span.slot} has positions of the shape {positions.shape}; (3, {len(span.token_ids)}) is right"
        )
    if positions.min() < 0 or positions.max() >= limits.max_length:
        raise ValueError(
            f"slot {span.slot} has positions of {positions.min()} ... {positions.max()}, which are not in 0 ... "
            f"{limits.max_length - 1}"
        )


def _check_token_ids(found: Sequence[tuple[int, TokenIds]], limits: Limits, lowest: int = 0) -> None:
    """All at once: most of them are one token, and a reduction costs more than that."""
    together = np.concatenate([token_ids for _, token_ids in found])
    if not len(together) or (together.min() >= lowest and together.max() < limits.vocab_size):
        return
    for slot, token_ids in found:
        if len(token_ids) and (token_ids.min() < lowest or token_ids.max() >= limits.vocab_size):
            why = "" if limits.has_images else "; ids below 0 are tokens of images, which the artifact does not take"
            raise ValueError(f"slot {slot} has a token id that is not in 0 ... {limits.vocab_size - 1}{why}")
