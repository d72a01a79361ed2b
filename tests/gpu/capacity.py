"""Two layers of GLM-4's width at a large capacity on the card: which form of attention computes what torch does there.

Each row's cache holds a pattern up to the row's length and poison beyond, in both layers; rows of length 1, 7, 1,000
and one less than the slot are computed in one step. What was found is appended to the file that AUTOGLM_GPU_RECORD
names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoglm_engine.core import Span, StepBatch
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.device_check.caches import DeviceCaches
from autoglm_engine.runners.device_check.pattern import KINDS, pattern, scaled
from autoglm_engine.runners.device_check.reference import DeviceReference
from autoglm_engine.runners.tensorrt.load import open_runner
from autoglm_engine.runners.tensorrt.shapes import TensorShapes
from autoglm_export.auto_runtime.random_weights import RandomWeights
from autoglm_export.model.spec import ModelSpec
from autoglm_perf.gpu.shapes import Shape
from autoglm_perf.gpu.steps import EngineLimits, build_artifact

from tests.support.tensorrt.torch_decoder import TorchDecoder, TorchWeights

LENGTHS = (1, 7, 1000)  # and one less than a slot holds
NUM_SLOTS, CHUNK, NEW_TOKENS = 4, 512, 33
VOCAB_SIZE = 4096  # the head is not what is asked for
# Relative L2 distance of logits after two layers that rounding explains.
BOUNDS = {"bf16": 0.05, "fp16": 0.02}
Rows = Any


@dataclass(frozen=True)
class Built:
    folder: Path
    manifest: Manifest
    spec: ModelSpec
    expected: dict[str, Rows]  # "decode", "prefill" -> [rows, vocab_size] of torch in float32

    @property
    def lengths(self) -> tuple[int, ...]:
        return lengths_of(self.manifest.max_length)


def lengths_of(max_length: int) -> tuple[int, ...]:
    return tuple(sorted({length for length in (*LENGTHS, max_length - 1) if length < max_length}))


def spec_of(capacity: int, shape: Shape | None = None) -> ModelSpec:
    return (shape or Shape(num_layers=2, vocab_size=VOCAB_SIZE)).spec(capacity)


def build(folder: Path, spec: ModelSpec, *, runtime: str, precision: str, form: str, device: str = "cuda") -> Built:
    """With this form of attention and no other."""
    limits = EngineLimits(NUM_SLOTS, spec.max_position, CHUNK)
    weights = RandomWeights(spec)
    options = {"attention": form, "num_candidates": 16}
    manifest = build_artifact(
        spec, weights, folder, runtime=runtime, precision=precision, limits=limits, options=options
    )
    return Built(folder, manifest, spec, expected(folder, manifest, spec, weights, device))


def expected(folder: Path, manifest: Manifest, spec: ModelSpec, weights: Any, device: str) -> dict[str, Rows]:
    """Torch in float32, row by row: only as many positions as a row has, so there is nothing beyond to see."""
    reference = DeviceReference.load(folder / manifest.runtime_details["reference"])
    decoder = TorchDecoder(spec, TorchWeights(weights, torch.float32, device), spec.max_position, device)
    rows = lengths_of(manifest.max_length)
    return {
        kind: np.stack([_row(decoder, spec, reference, ids, length, device) for ids, length in spans])
        for kind, spans in {
            "decode": [(ids_of(spec, row, 1), length) for row, length in enumerate(rows)],
            "prefill": [(ids_of(spec, row, min(NEW_TOKENS, n)), n) for row, n in enumerate(rows) if n > 1],
        }.items()
    }


def ids_of(spec: ModelSpec, row: int, count: int) -> Any:
    """The new tokens of a row, of which a decode step computes only the last."""
    return ((np.arange(NEW_TOKENS) * 7919 + 100 * row) % spec.vocab_size).astype(np.int32)[-count:]


def _row(
    decoder: TorchDecoder, spec: ModelSpec, reference: DeviceReference, ids: Any, length: int, device: str
) -> Rows:
    start, size = length - len(ids), (spec.num_kv_heads, length, spec.head_size)
    caches = {
        kind: torch.from_numpy(scaled(pattern(kind, *size), reference.exponents[kind])).to(device) for kind in KINDS
    }
    inputs = {
        "token_ids": torch.from_numpy(ids)[None].to(device),
        "position_ids": torch.arange(start, length, device=device)[None],
        "write_indices": torch.tensor([start], device=device),
        "key_positions": torch.arange(length, device=device),
        "logit_indices": torch.tensor([[len(ids) - 1]], device=device),
        **{f"past_{kind}_{layer}": caches[kind][None].clone() for kind in KINDS for layer in range(spec.num_layers)},
    }
    with torch.no_grad():
        return decoder.logits(inputs)[0].float().cpu().numpy()


@contextmanager
def opened(built: Built, trt: Any, cuda: Cuda) -> Iterator[tuple[Any, DeviceCaches]]:
    """The runner, whatever its check would say, and its caches."""
    environ = {"XDG_CACHE_HOME": str(built.folder)}
    runner = open_runner(built.folder, built.manifest, trt, cuda, environ, approve=lambda *given: None)
    reference = DeviceReference.load(built.folder / built.manifest.runtime_details["reference"])
    caches = DeviceCaches(cuda, runner.key_values, TensorShapes.of(built.manifest), reference.exponents)
    try:
        yield runner, caches
    finally:
        caches.close()
        runner.close()


def errors(built: Built, runner: Any, caches: DeviceCaches) -> dict[str, dict[int, float]]:
    """ "decode", "prefill" -> a row's length -> its relative L2 distance; all rows of one step, in one call."""
    decode = [(row, length, 1) for row, length in enumerate(built.lengths)]
    prefill = [(row, length, min(NEW_TOKENS, length)) for row, length in enumerate(built.lengths) if length > 1]
    return {
        kind: dict(zip((length for _, length, _ in rows), _errors(built, kind, rows, runner, caches), strict=True))
        for kind, rows in {"decode": decode, "prefill": prefill}.items()
    }


def _errors(
    built: Built, kind: str, rows: Sequence[tuple[int, int, int]], runner: Any, caches: DeviceCaches
) -> list[float]:
    spans = []
    for row, length, count in rows:
        caches.fill(row, length - count)
        spans.append(Span(row, length - count, ids_of(built.spec, row, count), wants_logits=True))
    found = runner.issue(StepBatch(tuple(spans))).result()
    actual = np.stack([found.full_row(index) for index in range(len(spans))])
    wanted = built.expected[kind]
    return [float(e) for e in np.linalg.norm(actual - wanted, axis=1) / np.linalg.norm(wanted, axis=1)]


def record(**found: Any) -> None:
    """Append what was measured, where somebody asked for it."""
    if path := os.environ.get("AUTOGLM_GPU_RECORD"):
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": "capacity"} | found) + "\n")
