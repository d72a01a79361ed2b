"""Artifacts on the GPU and what they compute: logits of a runner, and of transformers on the same card."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import Candidates, Logits, Span, StepBatch
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.registry import load_runner
from autoglm_export.export import export
from autoglm_export.parity.reference import Reference

Ids = npt.NDArray[np.int32]
Rows = npt.NDArray[np.float32]
# Beyond the first of the lengths that attention reads (256). The capacities that are served: test_gpu_capacity.py.
LIMITS: dict[str, Any] = {"max_slots": 8, "max_length": 400, "prefill_chunk": 32}


@dataclass(frozen=True)
class GpuModel:
    """An exported artifact, loaded on the GPU, and float32 transformers of its checkpoint on the same GPU."""

    folder: Path
    manifest: Manifest
    runner: Any
    reference: GpuReference


@dataclass(frozen=True)
class GpuReference:
    model: Any  # float32, on the GPU

    @classmethod
    def load(cls, checkpoint: Path) -> GpuReference:
        return cls(Reference.load(checkpoint).model.to("cuda"))

    def logits(self, ids: Ids) -> Rows:
        """[len(ids), vocab_size] of one pass over the whole text."""
        import torch

        with torch.inference_mode(), exact_float32():
            inputs = torch.from_numpy(ids.astype(np.int64))[None].to("cuda")
            output = self.model(inputs, use_cache=False)
        return np.asarray(output.logits[0].float().cpu().numpy())


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """TF32 would make the reference no better than what it judges."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


Make = Callable[[str, str], GpuModel]  # family, precision -> a tiny model on the GPU


def export_for_gpu(checkpoint: str | Path, folder: Path, runtime: str, precision: str, **limits: Any) -> Manifest:
    return export(checkpoint, folder, runtime=runtime, precision=precision, **limits)


def load_on_gpu(folder: Path, manifest: Manifest) -> Any:
    """The runner; ONNX Runtime computes on the CPU unless told otherwise."""
    device = {"device": "cuda"} if manifest.runtime == "onnx" else {}
    return load_runner(folder, manifest, num_threads=os.cpu_count() or 1, **device)


def step(runner: Any, *spans: Span) -> Rows:
    """Unmodified logits [spans that want them, vocab_size] of one step, also of a runner that keeps them on the
    device."""
    result: Logits | Candidates = runner.issue(StepBatch(spans)).result()
    if isinstance(result, Candidates):
        return np.array([result.full_row(row) for row in range(len(result.token_ids))], np.float32)
    return np.array(result)


def candidates(runner: Any, *spans: Span) -> Candidates | None:
    """None of a runner that gives whole logits."""
    result = runner.issue(StepBatch(spans)).result()
    return result if isinstance(result, Candidates) else None


def span(slot: int, start: int, ids: Ids, wants_logits: bool = True) -> Span:
    return Span(slot, start, ids, wants_logits)


def prefill(runner: Any, ids: Ids, slot: int, chunk: int | None = None, start: int = 0) -> Rows:
    """Logits [vocab_size] after the last token; what is before `start` is in the slot already."""
    size = chunk or runner.limits.prefill_chunk
    for begin in range(start, len(ids), size):
        last = begin + size >= len(ids)
        rows = step(runner, span(slot, begin, ids[begin : begin + size], wants_logits=last))
    return rows[0]


def teacher_forced(runner: Any, ids: Ids, slot: int = 0) -> Rows:
    """[len(ids), vocab_size], one decode step a token."""
    return np.concatenate([step(runner, span(slot, place, ids[place : place + 1])) for place in range(len(ids))])


def greedy(runner: Any, prompts: dict[int, Ids], count: int) -> dict[int, list[int]]:
    """Slot -> `count` greedy tokens after its prompt; all slots decode in the same steps."""
    tokens = {slot: [int(prefill(runner, ids, slot).argmax())] for slot, ids in prompts.items()}
    for index in range(count - 1):
        spans = [span(slot, len(ids) + index, np.array([tokens[slot][-1]], np.int32)) for slot, ids in prompts.items()]
        for slot, row in zip(prompts, step(runner, *spans), strict=True):
            tokens[slot].append(int(row.argmax()))
    return tokens


def relative(actual: Rows, expected: Rows) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def loss(logits: Rows, ids: Ids) -> float:
    """Mean negative log-likelihood of each token but the first, nats."""
    rows = logits[:-1].astype(np.float64)
    largest = rows.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(rows - largest).sum(axis=1)) + largest[:, 0]
    return float(np.mean(log_sum - rows[np.arange(len(rows)), ids[1:]]))
