"""`OnnxRunner`: steps on ONNX Runtime's CPU or CUDA kernels, keys and values in one block of memory that is never
copied.

The graph's inputs are described in `autoglm_export.onnx.lowering`. A slot is a row of the cache, so a run computes a
contiguous range of slots: one-token spans are grouped into as few runs as pay off, longer ones run alone. An idle slot
that lies inside a run computes a token as well, where its `CacheMemory` says. The small inputs and the logits are in
the host's memory on either device; ONNX Runtime copies them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import Logits, Span, StepBatch
from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Deferred, Limits
from autoglm_engine.runners.cpu import multiplies_int8_exactly
from autoglm_engine.runners.image_inputs import features_of, positions_of
from autoglm_engine.runners.span_checks import check_batch, check_prefix

from .device import AUTO, check_providers, open_memory, providers_of
from .interface import check_interface
from .memory import CacheMemory

# Starting another run reads every weight once more, which costs what about this many idle rows do.
_MAX_IDLE_ROWS = 12


class OnnxRunner:
    """Implements `base.Runner`. `memory`, the slots' keys and values, is its own."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        num_threads: int,
        device: str = AUTO,
        memory: CacheMemory | None = None,
    ) -> None:
        """Raises ArtifactError where the artifact cannot run on `device` here. `memory`: in place of the device's."""
        self._logits = np.empty((manifest.num_slots, manifest.vocab_size), np.float32)
        self.memory = memory or open_memory(device, manifest)
        self._limits = Limits(
            manifest.num_slots,
            manifest.max_length,
            manifest.prefill_chunk,
            manifest.vocab_size,
            on_gpu=self.memory.device != "cpu",
            feature_size=manifest.runtime_details.get("feature_size", 0),
        )
        try:
            self._session: Any = open_session(
                folder / manifest.runtime_details["model"], num_threads, self.memory.device
            )
            check_interface(self._session, self.memory.layout, manifest.vocab_size, self._limits.feature_size)
        except BaseException:
            self.memory.close()
            raise
        self._bindings: dict[tuple[int, int], Any] = {}

    @property
    def limits(self) -> Limits:
        return self._limits

    def issue(self, batch: StepBatch) -> Deferred:
        return Deferred(self.forward, batch)

    def forward(self, batch: StepBatch) -> Logits:
        if self._session is None:
            raise ValueError("the runner is closed")
        check_batch(batch, self._limits)
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
        check_prefix(source, target, length, self._limits)
        self.memory.copy_prefix(source, target, length)

    def close(self) -> None:
        if self._session is not None:
            self._bindings.clear()
            self._session = None
            self.memory.close()

    def _run(self, spans: Sequence[Span], done: list[Span]) -> None:
        """Compute one-token spans inside one range of slots, or a single span of any length."""
        first = min(span.slot for span in spans)
        num_rows = max(span.slot for span in spans) - first + 1
        inputs: dict[str, npt.NDArray[Any]] = _inputs(spans, first, num_rows, self.memory.idle_position)
        if self._limits.has_images:
            inputs |= self._image_inputs(spans, first, num_rows)
        idle = sorted(set(range(first, first + num_rows)) - {span.slot for span in spans})
        done += (wanting := [span for span in spans if span.wants_logits])
        if not wanting and self.memory.device != "cpu":
            inputs["logit_rows"] = np.zeros(1, np.int32)  # not every CUDA kernel computes no rows at all
        begin = len(done) - len(wanting)
        logits = self._logits[begin : begin + len(inputs["logit_rows"])]
        binding = self._binding(first, num_rows)
        with self.memory.running(idle):
            for name, array in inputs.items():
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            binding.bind_output("logits", "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data)
            self._session.run_with_iobinding(binding)

    def _image_inputs(self, spans: Sequence[Span], first: int, num_rows: int) -> dict[str, npt.NDArray[Any]]:
        """Spans of one token are in the order of their slots."""
        if num_rows > 1:
            positions = np.full((3, num_rows), self.memory.idle_position, np.int32)
            positions[:, [span.slot - first for span in spans]] = positions_of(spans)
        else:
            positions = np.ascontiguousarray(positions_of(spans))
        return {"positions": positions, "image_features": features_of(spans, self._limits.feature_size)}

    def _binding(self, first: int, num_rows: int) -> Any:
        """The caches of slots `first ...`, each bound as both past and present."""
        if (first, num_rows) not in self._bindings:
            binding, memory, layout = self._session.io_binding(), self.memory, self.memory.layout
            for part in range(2 * layout.num_layers):
                name = f"{('key', 'value')[part % 2]}_{part // 2}"
                address = memory.address + layout.offset(part, first)
                place = (memory.device, 0, layout.dtype, layout.rows(num_rows), address)
                binding.bind_input(f"past_{name}", *place)
                binding.bind_output(f"present_{name}", *place)
            self._bindings[first, num_rows] = binding
        return self._bindings[first, num_rows]


def decode_groups(spans: Sequence[Span]) -> list[list[Span]]:
    """One-token spans by slot, split where more idle slots lie between two than a run of its own would cost."""
    groups: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: span.slot):
        if groups and span.slot - groups[-1][-1].slot - 1 <= _MAX_IDLE_ROWS:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _inputs(spans: Sequence[Span], first: int, num_rows: int, idle_position: int) -> dict[str, npt.NDArray[np.int32]]:
    """The graph's inputs for slots `first ... first + num_rows - 1`; idle ones compute token 0 at `idle_position`."""
    token_ids = np.zeros(num_rows, np.int32) if num_rows > 1 else np.ascontiguousarray(spans[0].token_ids, np.int32)
    last_position = np.full(num_rows, idle_position, np.int32)
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


def open_session(path: Path, num_threads: int, device: str) -> Any:
    import onnxruntime

    providers = providers_of(device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between steps the cores are for others
    if not multiplies_int8_exactly():
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise ArtifactError(f"{path} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {error}") from None
    check_providers(session, device)
    return session
