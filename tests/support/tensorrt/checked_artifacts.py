"""Artifacts on the fake GPU with the reference that a GPU is checked by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from autoglm_engine.manifest import FileRecord
from autoglm_export.tensorrt.device_reference import write_reference
from autoglm_export.tensorrt.reference_ops import HeldWeights

from tests.support.export.tiny_decoders import Array
from tests.support.tensorrt.contract_network import GpuBench


@dataclass(frozen=True)
class PlainWeights:
    """`HeldWeights` that nobody rounded."""

    weights: Mapping[str, Array]

    def vector(self, name: str) -> Array:
        return self.weights[name]

    def table(self, name: str) -> Array:
        return self.weights[name]

    def matrix(self, layers: Sequence[str]) -> Array:
        return np.concatenate([self.weights[f"{name}.weight"] for name in layers])

    def bias(self, layers: Sequence[str]) -> Array | None:
        found = [self.weights[f"{name}.bias"] for name in layers if f"{name}.bias" in self.weights]
        return np.concatenate(found) if found else None


def add_reference(bench: GpuBench, precision: str = "fp16", weights: HeldWeights | None = None) -> None:
    """As an export leaves it; the manifest tells of it."""
    manifest = bench.manifest
    name = write_reference(
        bench.spec,
        weights or PlainWeights(bench.weights),
        bench.folder,
        precision=precision,
        max_length=manifest.max_length,
        prefill_chunk=manifest.prefill_chunk,
    )
    manifest.runtime_details["reference"] = name
    manifest.files[name] = FileRecord.of(bench.folder / name)
