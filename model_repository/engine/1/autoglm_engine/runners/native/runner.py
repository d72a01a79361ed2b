"""Runs an artifact of the native CPU runtime: libraries compiled at export, their program and its packed weights.

The library computes a whole step in one call, without the interpreter's lock; the engine's other threads go on
meanwhile. A token's numbers do not depend on what else is in the step, nor on how its sequence was cut into spans.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np

from autoglm_engine.core import Features, Logits, StepBatch
from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Deferred, Limits
from autoglm_engine.runners.host_memory import check_memory
from autoglm_engine.runners.image_inputs import features_of, has_images, positions_of
from autoglm_engine.runners.span_checks import check_batch, check_prefix

from .library import choose_library, open_library
from .program import (
    IMAGE_PROGRAM_FORMAT,
    PANEL,
    PROGRAM_FORMAT,
    feature_size,
    num_feature_parts,
    padded,
    read_program,
)

MAX_ROWS = 256  # tokens computed together; a larger step is taken in parts. More would not fit the cores' caches
_TILE_POSITIONS = 128
_BFLOAT16 = 2  # bytes

_SETTINGS = ("num_slots", "max_length", "max_rows", "num_threads", "max_logits_per_span")


class _Settings(ctypes.Structure):
    """`autoglm::Settings` of native/csrc/decoder.h."""

    _fields_ = [(name, ctypes.c_int32) for name in _SETTINGS]


class NativeRunner:
    """See `base.Runner`. `num_threads`: None for one a usable core."""

    def __init__(self, folder: Path, manifest: Manifest, *, num_threads: int | None = None) -> None:
        """Raises ArtifactError when this CPU runs none of the artifact's libraries, or the slots do not fit its
        memory."""
        details = manifest.runtime_details
        _check_format(manifest)
        check_memory(manifest, pool_bytes(manifest))
        self.target = choose_library(details["libraries"])
        self._limits = Limits(
            manifest.num_slots,
            manifest.max_length,
            manifest.prefill_chunk,
            manifest.vocab_size,
            max_logits_per_span=details["max_logits_per_span"],
            feature_size=feature_size(manifest),
        )
        self._weights = np.memmap(folder / details["weights"], np.uint8, mode="r")
        self._program = read_program(folder / details["program"], manifest, self._weights.nbytes)
        self._num_feature_parts = num_feature_parts(self._program, manifest)
        self._library = open_library(folder / details["libraries"][self.target]["file"])
        settings = _Settings(
            manifest.num_slots,
            manifest.max_length,
            MAX_ROWS,
            num_threads or len(os.sched_getaffinity(0)),
            self._limits.max_logits_per_span,
        )
        lacks_threads = ctypes.c_int32()
        self._decoder: int | None = self._library.autoglm_create(
            self._program.ctypes.data, self._weights.ctypes.data, ctypes.byref(settings), ctypes.byref(lacks_threads)
        )
        if not self._decoder and lacks_threads:
            raise ArtifactError(f"the system refuses one of the {settings.num_threads} threads of num_threads")
        if not self._decoder:
            raise ArtifactError(
                f"there is not enough memory for {manifest.num_slots} slots of {manifest.max_length} tokens"
            )
        self._logits = self._view_logits()

    @property
    def limits(self) -> Limits:
        return self._limits

    def issue(self, batch: StepBatch) -> Deferred:
        return Deferred(self.forward, batch)

    def forward(self, batch: StepBatch) -> Logits:
        if self._decoder is None:
            raise ValueError("the runner is closed")
        check_batch(batch, self._limits)
        spans = np.array(
            [(span.slot, span.start, len(span.token_ids), span.num_logits) for span in batch.spans], np.int32
        )
        token_ids = np.concatenate([span.token_ids for span in batch.spans], dtype=np.int32)
        told = self._decoder, spans.ctypes.data, len(spans), token_ids.ctypes.data
        if has_images(batch.spans):
            positions = np.ascontiguousarray(positions_of(batch.spans).T)
            features = self._features(batch)
            self._library.autoglm_forward_images(*told, positions.ctypes.data, features.ctypes.data)
        else:
            self._library.autoglm_forward(*told)
        return self._logits[: int(spans[:, 3].sum())]

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        check_prefix(source, target, length, self._limits)
        if source != target:
            self._library.autoglm_copy_prefix(self._decoder, source, target, length)

    def close(self) -> None:
        if self._decoder is not None:
            self._library.autoglm_destroy(self._decoder)
            self._decoder = None

    def _features(self, batch: StepBatch) -> Features:
        """[number of ids below 0, parts * padded hidden size]"""
        num_parts = self._num_feature_parts
        return features_of(batch.spans, padded(self._limits.feature_size // num_parts), num_parts)

    def _view_logits(self) -> Logits:
        width = padded(self._limits.vocab_size)
        address = ctypes.cast(self._library.autoglm_logits(self._decoder), ctypes.POINTER(ctypes.c_float))
        rows: Logits = np.ctypeslib.as_array(
            address, (self._limits.num_slots * self._limits.max_logits_per_span, width)
        )
        return rows[:, : self._limits.vocab_size]


def pool_bytes(manifest: Manifest) -> int:
    """Of the keys and values of all slots: `CacheLayout` of native/csrc/cache.h."""
    cache = manifest.cache
    head = cache.head_size + -(-cache.head_size // PANEL) * PANEL  # a key, and a value that fills panels
    length = -(-manifest.max_length // _TILE_POSITIONS) * _TILE_POSITIONS
    return manifest.num_slots * cache.num_layers * cache.num_kv_heads * length * head * _BFLOAT16


def _check_format(manifest: Manifest) -> None:
    expected = IMAGE_PROGRAM_FORMAT if feature_size(manifest) else PROGRAM_FORMAT
    if (version := manifest.runtime_details.get("program_format")) != expected:
        raise ArtifactError(
            f"the artifact's native program has format {version!r}, this engine runs {expected}; export it again"
        )
