"""A `Runner` over a TensorRT network that numpy computes: what an engine built from it would do, without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorrt_rtx as trt
from autoglm_engine.core import Candidates, Span, StepBatch, TokenIds
from autoglm_engine.runners.base import Limits
from autoglm_engine.runners.image_inputs import features_of, positions_of
from autoglm_export.tensorrt.profiles import attention_lengths_of

from tests.support.tensorrt.tensorrt_networks import Defined
from tests.support.tensorrt.trt_interpreter import Interpreter
from tests.support.tensorrt.trt_interpreter.dtypes import native
from tests.support.tensorrt.trt_interpreter.layers import Intercept

Arrays = dict[str, npt.NDArray[Any]]


class NetworkRunner:
    """Row i is slot i; one-token spans are decoded together, longer ones are prefilled alone.

    `precise` and `intercept`: see `Interpreter`. `unwritten`: what a cache holds where nothing was written. NaN, which
    the interpreter refuses to read, is for attention layers; products read all, so it must be a number there, however
    large.
    """

    def __init__(
        self,
        defined: Defined,
        limits: Limits,
        *,
        cache_length: int,
        precise: bool = False,
        intercept: Intercept | None = None,
        unwritten: float = float("nan"),
    ) -> None:
        self._limits, self._spec, self._cache_length = limits, defined.spec, cache_length
        self._interpreter = Interpreter(defined.definition, trt, precise=precise, intercept=intercept)
        shape = (limits.num_slots, self._spec.num_kv_heads, cache_length, self._spec.head_size)
        names = [f"past_{kind}_{layer}" for layer in range(self._spec.num_layers) for kind in ("key", "value")]
        dtype = np.dtype(np.float32) if precise else native(self._interpreter.inputs[names[0]].dtype)
        # Idle rows read position 0 of their slot.
        self.caches: Arrays = {name: np.full(shape, unwritten, dtype) for name in names}
        for cache in self.caches.values():
            cache[:, :, 0] = 0
        vocabulary = (limits.num_slots, limits.vocab_size)
        self.factor, self.offset = np.ones(vocabulary, np.float32), np.zeros(vocabulary, np.float32)
        self.temperature = np.ones((limits.num_slots, 1), np.float32)

    @property
    def limits(self) -> Limits:
        return self._limits

    def issue(self, batch: StepBatch) -> Issued:
        return Issued(self, batch)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        for cache in self.caches.values():
            cache[target, :, :length] = cache[source, :, :length]

    def close(self) -> None:
        pass

    def compute(self, batch: StepBatch) -> Candidates:
        rows: dict[int, Arrays] = {}
        for span in batch.spans:
            self._adjust(span)
        if decoded := [span for span in batch.spans if len(span.token_ids) == 1]:
            outputs = self._run(decoded, slice(0, max(span.slot for span in decoded) + 1))
            rows |= {id(s): {name: value[s.slot] for name, value in outputs.items()} for s in decoded}
        for span in batch.spans:
            if len(span.token_ids) > 1:
                outputs = self._run([span], slice(span.slot, span.slot + 1))
                rows[id(span)] = {name: value[0] for name, value in outputs.items()}
        return _candidates([rows[id(span)] for span in batch.spans if span.wants_logits], self._limits)

    def _adjust(self, span: Span) -> None:
        if (changes := span.adjustments) is None:
            return
        if changes.reset:
            self.factor[span.slot], self.offset[span.slot] = 1.0, 0.0
        self.factor[span.slot, changes.token_ids] = changes.factors
        self.offset[span.slot, changes.token_ids] = changes.offsets
        self.temperature[span.slot] = changes.inverse_temperature

    def _run(self, spans: Sequence[Span], slots: slice) -> Arrays:
        inputs = self._inputs(spans, slots)
        inputs |= {name: cache[slots] for name, cache in self.caches.items()}
        outputs = self._interpreter.run(inputs, in_place=True)
        return {name: value for name, value in outputs.items() if not name.startswith("present_")}

    def _inputs(self, spans: Sequence[Span], slots: slice) -> Arrays:
        batch, sequence = slots.stop - slots.start, len(spans[0].token_ids)
        token_ids, position_ids = np.zeros((batch, sequence), np.int32), np.zeros((batch, sequence), np.int32)
        write_indices = np.full(batch, self._cache_length - 1, np.int32)  # of idle rows: the spare position
        for span in spans:
            row = span.slot - slots.start
            token_ids[row], position_ids[row] = span.token_ids, np.arange(span.start, span.start + sequence)
            write_indices[row] = span.start
        return self._of_images(spans, slots, token_ids) | {
            "token_ids": token_ids,
            "position_ids": position_ids,
            "write_indices": write_indices,
            "key_positions": np.arange(self._keys(spans), dtype=np.int32),
            "logit_indices": np.full((batch, 1), sequence - 1, np.int32),
            "inverse_temperature": self.temperature[slots],
            "logit_factor": self.factor[slots],
            "logit_offset": self.offset[slots],
        }

    def _of_images(self, spans: Sequence[Span], slots: slice, token_ids: TokenIds) -> Arrays:
        """What stands for tokens of images is put into `token_ids`."""
        if not self._spec.takes_images:
            return {}
        positions = np.zeros((len(token_ids), 3, token_ids.shape[1]), np.int32)
        for span in spans:
            positions[span.slot - slots.start] = positions_of([span])
        width = self._interpreter.inputs["image_features"].shape[0]
        features = np.full((width, self._spec.feature_size), 1e4, np.float32)
        rows = features_of(spans, self._spec.feature_size)
        features[: len(rows)] = rows
        ordered = np.concatenate([token_ids[span.slot - slots.start] for span in spans])
        ordered[ordered < 0] = -1 - np.arange(len(rows))
        for span, ids in zip(spans, ordered.reshape(len(spans), -1), strict=True):
            token_ids[span.slot - slots.start] = ids
        return {"rope_positions": positions, "image_features": features}

    def _keys(self, spans: Sequence[Span]) -> int:
        """The fewest positions that attention may read."""
        end = max(span.start + len(span.token_ids) for span in spans)
        return next(length for length in attention_lengths_of(self._cache_length) if length >= end)


@dataclass(frozen=True)
class Issued:
    runner: NetworkRunner
    batch: StepBatch

    def result(self) -> Candidates:
        return self.runner.compute(self.batch)


def _candidates(rows: list[Arrays], limits: Limits) -> Candidates:
    count = len(rows)
    ids = np.array([row["candidate_ids"] for row in rows], np.int32).reshape(count, limits.num_candidates)
    logits = np.array([row["candidate_logits"] for row in rows], np.float32).reshape(ids.shape)
    log_sum_exp = np.array([row["log_sum_exp"][0] for row in rows], np.float32)
    return Candidates(ids, logits, log_sum_exp, lambda row: rows[row]["logits"])
