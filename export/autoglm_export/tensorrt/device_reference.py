"""What a GPU must compute with an engine, worked out in numpy: the reference that
`autoglm_engine.runners.device_check.check` compares with.

It is float32 on the weights that the engine holds (of 4 or 8 bits where these are what it multiplies by), from one
reading of the weights. The tokens are not generated one by one, which would read a model of 9 billion weights 32 times:
the likeliest token after each of the last places of a fixed text needs one pass and says as much. No GPU has a part in
it, nor has the engine that is to be checked, so an engine that was built ahead of time has the same reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from autoglm_engine.core import TokenIds
from autoglm_engine.runners.device_check.pattern import KINDS, LARGEST, pattern, scaled
from autoglm_engine.runners.device_check.reference import REFERENCE_FILE, DeviceReference

from autoglm_export.checkpoint.weights import Array
from autoglm_export.model.decoder import build_layer
from autoglm_export.model.spec import ModelSpec
from autoglm_export.runtimes import Progress, no_progress

from .reference_ops import CachedTokens, HeldWeights, ReferenceOps

# Of rows, and one less than a slot holds. Kernels are chosen by how many positions attention may read: each of
# `profiles.ATTENTION_LENGTHS` has a row that leaves some of them to poison.
LENGTHS = (1, 7, 1000, 4000, 16000)
NEW_TOKENS = 33  # of a row that is prefilled: an odd number, which is padded
TEXT_TOKENS, PLACES, LIKELIEST = 64, 32, 16
# Of a layer: relative L2 distance that rounding explains. fp8 rounds activations, too, to 4 bits: scores move with them
# (0.2 seen).
BOUNDS = {"fp16": 0.02, "bf16": 0.05, "int4": 0.05, "fp8": 0.4}
# Of the whole model's logits, as a share of their standard deviation; and how many of the PLACES may differ all the
# same.
LOGIT_ERRORS = {"fp16": 0.02, "bf16": 0.06, "int4": 0.06, "fp8": 0.2}
MAX_MISSED = {"fp16": 1, "bf16": 1, "int4": 1, "fp8": 4}
_SCORE_DEVIATION = 2.0  # of a query's scores: some keys count a lot, and many a little
_PATTERN_DEVIATION = LARGEST / 3**0.5


def write_reference(
    spec: ModelSpec,
    weights: HeldWeights,
    folder: Path,
    *,
    precision: str,
    max_length: int,
    prefill_chunk: int,
    text: TokenIds | None = None,
    progress: Progress = no_progress,
) -> str:
    """Returns the file's name. `text`: at least two tokens, of
    which the first count; None: tokens of no meaning."""
    text = (spread_ids(spec.vocab_size, TEXT_TOKENS) if text is None else text)[: min(TEXT_TOKENS, max_length)]
    places = min(PLACES, len(text) - 1)
    lengths = lengths_of(max_length)
    counts = [min(length, NEW_TOKENS, prefill_chunk) for length in lengths]
    layer = LayerReference(spec, weights, lengths, counts)
    logits = text_logits(spec, weights, text, places, progress)
    likely = np.argsort(-logits, axis=1, kind="stable")[:, :LIKELIEST].astype(np.int32)
    reference = DeviceReference(
        lengths=lengths,
        exponents=layer.exponents,
        token_ids=layer.token_ids,
        decode=layer.decode(),
        prefill=layer.prefill(),
        bound=BOUNDS[precision],
        text=text,
        likely_ids=likely,
        likely_logits=np.take_along_axis(logits, likely, axis=1),
        slack=(2 * LOGIT_ERRORS[precision] * logits.std(axis=1)).astype(np.float32),
        max_missed=MAX_MISSED[precision],
    )
    reference.save(folder / REFERENCE_FILE)
    return REFERENCE_FILE


def lengths_of(max_length: int) -> tuple[int, ...]:
    """What a slot has room for, rising."""
    return tuple(sorted({length for length in (*LENGTHS, max_length - 1) if 1 <= length <= max_length}))


def spread_ids(vocab_size: int, count: int, first: int = 0) -> TokenIds:
    """Token ids all over the vocabulary, the same for every machine."""
    return ((np.arange(first, first + count) * 7919 + 3) % vocab_size).astype(np.int32)


def text_logits(
    spec: ModelSpec,
    weights: HeldWeights,
    text: TokenIds,
    places: int,
    progress: Progress = no_progress,
) -> Array:
    """`[places, vocab_size]`: after each of the last tokens of `text`, by one pass, layer by layer."""
    ops = ReferenceOps(spec, weights, [CachedTokens(text)])
    residual = ops.embed("embed")
    normed = ops.rms_norm(residual, "layers.0.attention_norm")
    for layer in range(spec.num_layers):
        progress("reference", layer / (spec.num_layers + 1))
        residual, normed = build_layer(spec, ops, layer, residual, normed)
    ops.logits(normed[-places:], "embed" if spec.tied_embeddings else "lm_head")
    progress("reference", 1.0)
    assert ops.result is not None
    return ops.result


class LayerReference:
    """The first layer over rows whose caches hold the pattern. `counts`: new tokens of each row that is prefilled."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: HeldWeights,
        lengths: Sequence[int],
        counts: Sequence[int],
    ) -> None:
        self._spec, self._weights = spec, weights
        self._lengths, self._counts = lengths, counts
        most = max(counts)
        self.token_ids = np.stack([spread_ids(spec.vocab_size, most, 100 * row) for row in range(len(lengths))])
        self.exponents = self._exponents()

    def decode(self) -> Array:
        """[R, width]"""
        return np.stack([rows[-1] for rows in self._computed([1] * len(self._lengths))])

    def prefill(self) -> Array:
        """[R, C, width], zeroes before a row's own; [R, 1, width] of a model of one layer, whose width is the
        vocabulary."""
        found = self._computed(self._counts)
        most = max(map(len, found))
        return np.stack([np.pad(rows, ((most - len(rows), 0), (0, 0))) for rows in found])

    def _computed(self, counts: Sequence[int]) -> list[Array]:
        """Of each row, `counts` new tokens: what the next layer writes of them, or the last one's logits."""
        sequences = [self._sequence(row, count) for row, count in enumerate(counts)]
        ops = ReferenceOps(self._spec, self._weights, sequences)
        residual = ops.embed("embed")
        _, normed = build_layer(self._spec, ops, 0, residual, ops.rms_norm(residual, "layers.0.attention_norm"))
        if self._spec.num_layers == 1:
            ops.logits(normed[np.cumsum(counts) - 1], "embed" if self._spec.tied_embeddings else "lm_head")
            assert ops.result is not None
            return list(ops.result[:, None])
        written = np.concatenate(ops.keys_and_values(normed, 1), axis=1).reshape(len(normed), -1)
        return np.split(written, np.cumsum(counts)[:-1])

    def _sequence(self, row: int, count: int) -> CachedTokens:
        spec, start = self._spec, self._lengths[row] - count
        size = (spec.num_kv_heads, start, spec.head_size)
        keys, values = (scaled(pattern(kind, *size), self.exponents[kind]) for kind in KINDS)
        return CachedTokens(self.token_ids[row, -count:], keys, values)

    def _exponents(self) -> dict[str, int]:
        """Keys so large that scores have _SCORE_DEVIATION, and values as large as the model's own, which a quantised
        engine was calibrated on: both as nearly as a power of two allows."""
        ops = ReferenceOps(self._spec, self._weights, [CachedTokens(ids) for ids in self.token_ids])
        normed = ops.rms_norm(ops.embed("embed"), "layers.0.attention_norm")
        _, values = ops.keys_and_values(normed, 0)
        return {
            "key": _exponent(_SCORE_DEVIATION / _deviation(ops.queries(normed, 0))),
            "value": _exponent(_deviation(values)),
        }


def _deviation(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) or 1.0


def _exponent(deviation: float) -> int:
    """Of a pattern of about that deviation."""
    return int(np.clip(np.rint(np.log2(deviation / _PATTERN_DEVIATION)), -16, 6))
