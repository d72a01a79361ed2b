"""`OnnxRunner`: steps on ONNX Runtime's CPU kernels, keys and values in one block of memory that is never copied.

The graph's inputs are described in `autoglm_export.onnx_lowering`. A slot is a row of the cache, so a run computes a
contiguous range of slots: one-token spans are grouped into as few runs as pay off, longer ones run alone. An idle slot that
lies inside a run computes a token at position 0, which is put back afterwards.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .core import Logits, Span, StepBatch
from .errors import ArtifactError
from .manifest import Manifest
from .runner import Deferred, Limits

# Starting another run reads every weight once more, which costs what about this many idle rows do.
_MOST_IDLE_ROWS = 12


class OnnxRunner:
    """Implements `runner.Runner`. Memory: the cache, `[layers, 2, slots, kv heads, max_length, head_size]`, is its own."""

    def __init__(self, folder: Path, manifest: Manifest, *, num_threads: int) -> None:
        self._limits = Limits(manifest.num_slots, manifest.max_length, manifest.prefill_chunk, manifest.vocab_size)
        shape = manifest.cache
        slots = (manifest.num_slots, shape.num_kv_heads, manifest.max_length, shape.head_size)
        self._cache = np.zeros((shape.num_layers, 2, *slots), np.dtype(shape.dtype))
        self._logits = np.empty((manifest.num_slots, manifest.vocab_size), np.float32)
        self._session = open_session(folder / manifest.runtime_details["model"], num_threads)
        self._bindings: dict[tuple[int, int], Any] = {}

    @property
    def limits(self) -> Limits:
        return self._limits

    def issue(self, batch: StepBatch) -> Deferred:
        return Deferred(self.forward, batch)

    def forward(self, batch: StepBatch) -> Logits:
        for span in batch.spans:
            self._check(span)
        done: list[Span] = []  # those with logits, in the order of their rows in `_logits`
        for group in decode_groups([span for span in batch.spans if len(span.token_ids) == 1]):
            self._run(group, done)
        for span in batch.spans:
            if len(span.token_ids) > 1:
                self._run([span], done)
        wanted = [span for span in batch.spans if span.wants_logits]
        if all(a is b for a, b in zip(wanted, done, strict=True)):
            return self._logits[: len(done)]
        rows = {id(span): row for row, span in enumerate(done)}
        return self._logits[[rows[id(span)] for span in wanted]]

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self._cache[:, :, target, :, :length] = self._cache[:, :, source, :, :length]

    def close(self) -> None:
        self._bindings.clear()
        del self._session

    def _check(self, span: Span) -> None:
        end, limits = span.start + len(span.token_ids), self._limits
        if not 0 <= span.slot < limits.num_slots:
            raise ValueError(f"slot {span.slot} is out of range; allowed is 0 ... {limits.num_slots - 1}")
        if span.start < 0 or end > limits.max_length:
            raise ValueError(
                f"positions {span.start} ... {end - 1} are out of range; a slot has 0 ... {limits.max_length - 1}"
            )
        if not 1 <= len(span.token_ids) <= limits.prefill_chunk:
            raise ValueError(f"a span of {len(span.token_ids)} tokens; allowed is 1 ... {limits.prefill_chunk}")

    def _run(self, spans: Sequence[Span], done: list[Span]) -> None:
        """Compute one-token spans inside one range of slots, or a single span of any length."""
        first = min(span.slot for span in spans)
        num_rows = max(span.slot for span in spans) - first + 1
        inputs = _inputs(spans, first, num_rows)
        idle = sorted(set(range(first, first + num_rows)) - {span.slot for span in spans})
        kept = self._cache[:, :, idle, :, 0] if idle else None
        done += (wanting := [span for span in spans if span.wants_logits])
        binding = self._binding(first, num_rows)
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        logits = self._logits[len(done) - len(wanting) : len(done)]
        binding.bind_output("logits", "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        if idle:
            self._cache[:, :, idle, :, 0] = kept

    def _binding(self, first: int, num_rows: int) -> Any:
        """The caches of slots `first ...`, each bound as both past and present."""
        if (first, num_rows) not in self._bindings:
            binding = self._session.io_binding()
            for layer, pair in enumerate(self._cache):
                for kind, buffer in zip(("key", "value"), pair, strict=True):
                    rows = buffer[first : first + num_rows]
                    place = ("cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
                    binding.bind_input(f"past_{kind}_{layer}", *place)
                    binding.bind_output(f"present_{kind}_{layer}", *place)
            self._bindings[first, num_rows] = binding
        return self._bindings[first, num_rows]


def decode_groups(spans: Sequence[Span]) -> list[list[Span]]:
    """One-token spans by slot, split where more idle slots lie between two than a run of its own would cost."""
    groups: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: span.slot):
        if groups and span.slot - groups[-1][-1].slot - 1 <= _MOST_IDLE_ROWS:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _inputs(spans: Sequence[Span], first: int, num_rows: int) -> dict[str, npt.NDArray[np.int32]]:
    """The graph's inputs for slots `first ... first + num_rows - 1`; idle ones compute token 0 at position 0."""
    token_ids = np.zeros(num_rows, np.int32) if num_rows > 1 else np.ascontiguousarray(spans[0].token_ids, np.int32)
    last_position = np.zeros(num_rows, np.int32)
    for span in spans:
        last_position[span.slot - first] = span.start + len(span.token_ids) - 1
        if num_rows > 1:
            token_ids[span.slot - first] = span.token_ids[0]
    last_row = len(spans[0].token_ids) - 1 if num_rows == 1 else 0
    rows = [span.slot - first + last_row for span in spans if span.wants_logits]
    return {
        "token_ids": token_ids,
        "last_position": last_position,
        "total_length": np.array(last_position.max() + 1, np.int32),
        "logit_rows": np.array(rows, np.int32),
    }


def open_session(path: Path, num_threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between steps the cores are for others
    if not multiplies_int8_exactly():
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(f"{path} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {error}") from None


def multiplies_int8_exactly() -> bool:
    """Whether unsigned-by-signed int8 products need no slower kernels to be right on this processor.

    Without VNNI, x86 adds pairs of products in 16 bits, where they saturate; other architectures do not.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return platform.machine() not in ("x86_64", "AMD64")
    return platform.machine() not in ("x86_64", "AMD64") or bool({"avx512_vnni", "avx_vnni"} & set(flags))
