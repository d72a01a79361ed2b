"""The runner over a torch stand-in for TensorRT at GLM-4's width: for a machine with a driver and torch, and no
TensorRT.

    PYTHONPATH=.:export:perf:model_repository/engine/1 python tests/gpu/torch_standin.py [--layers 4] [--slots 64]

Checks what the runner computes as an artifact's GPU is checked (poisoned caches, rows alone and together, a text), then
says what of a decode step is the host's: with a graph, and where none can be captured, kernel by kernel. What it
computes is torch's, so its times on the device are no figures of ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from autoglm_engine.core import Span, StepBatch
from autoglm_engine.manifest import FileRecord, Manifest
from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.device_check.loading import check_on
from autoglm_engine.runners.tensorrt.load import open_runner
from autoglm_engine.runners.tensorrt.runner import TensorRTRunner
from autoglm_engine.runners.tensorrt.shapes import TensorShapes
from autoglm_export.auto_runtime.random_weights import RandomWeights
from autoglm_export.model.spec import ModelSpec
from autoglm_export.tensorrt.device_reference import write_reference
from autoglm_export.tensorrt.reference_ops import HeldWeights
from autoglm_perf.gpu.shapes import Shape

from tests.support.tensorrt.checked_artifacts import PlainWeights
from tests.support.tensorrt.contract_network import contract_manifest, contract_network
from tests.support.tensorrt.torch_decoder import TorchDecoder, TorchWeights
from tests.support.tensorrt.torch_tensorrt import CardCuda, TorchTensorRT

Found = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Standin:
    """An artifact whose engine is torch's, in `folder`. `device`: torch's name of where it computes."""

    folder: Path
    spec: ModelSpec
    manifest: Manifest
    weights: Mapping[str, Any]
    device: str

    def trt(self, cuda: Any) -> Any:
        shapes = TensorShapes.of(self.manifest)
        decoder = TorchDecoder(self.spec, self.weights, shapes.cache_length, self.device)
        return TorchTensorRT(cuda, contract_network(shapes, decoder.compute))


def make(folder: Path, spec: ModelSpec, limits: Mapping[str, int], cache_dtype: str, device: str) -> Standin:
    weights = {name: RandomWeights(spec)[name] for name in RandomWeights(spec)}
    held = TorchWeights(weights, torch.bfloat16 if device == "cuda" else torch.float32, device)
    manifest = contract_manifest(
        folder, spec, num_candidates=64, cache_dtype=cache_dtype, compute_capabilities=[], **limits
    )
    reference: HeldWeights = PlainWeights(weights)
    name = write_reference(
        spec,
        reference,
        folder,
        precision="bf16",
        max_length=manifest.max_length,
        prefill_chunk=manifest.prefill_chunk,
    )
    manifest.runtime_details["reference"] = name
    manifest.files[name] = FileRecord.of(folder / name)
    return Standin(folder, spec, manifest, held, device)


def measure(standin: Standin, cuda: Any, batches: list[int], steps: int = 30) -> list[Found]:
    """Milliseconds of the host and of the whole, of decode steps by batch size; the check must have passed before."""
    opened: Cuda = cuda
    environ = {"XDG_CACHE_HOME": str(standin.folder)}
    runner = open_runner(
        standin.folder, standin.manifest, standin.trt(cuda), opened, environ, approve=lambda *given: None
    )
    try:
        return [step_times(runner, batch, steps) | {"graphs": bool(runner._decode._graphs)} for batch in batches]
    finally:
        runner.close()


def step_times(runner: TensorRTRunner, batch: int, steps: int) -> Found:
    host, whole = [], []
    token = np.array([7], np.int32)
    for place in range(steps):
        spans = tuple(Span(slot, place, token, wants_logits=True) for slot in range(batch))
        started = time.perf_counter()
        pending = runner.issue(StepBatch(spans))
        host.append(time.perf_counter() - started)
        found = pending.result()
        whole.append(time.perf_counter() - started)
        assert np.isfinite(found.logits).all(), f"step {place} of {batch} rows is not finite"
        assert len({row.tobytes() for row in found.token_ids[:, :1]}) == 1, f"equal rows of {batch} differ at {place}"
    return {"batch": batch, "host_ms": 1e3 * statistics.median(host), "whole_ms": 1e3 * statistics.median(whole)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=8192)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("Error: torch sees no GPU on this machine")
    spec = Shape(num_layers=options.layers).spec(options.max_length)
    limits = {"num_slots": options.slots, "max_length": options.max_length, "prefill_chunk": 512}
    with TemporaryDirectory() as name:
        standin = make(Path(name), spec, limits, "bfloat16", "cuda")
        cuda = CardCuda()
        found = check_on(Path(name), standin.manifest, standin.trt(cuda), cuda, {"XDG_CACHE_HOME": name})
        print(
            f"checked: at most {found['worst_error']:.2g} off, {found['equal_tokens']} of {found['tokens']} "
            "tokens equal"
        )
        batches = [batch for batch in (1, 4, 16, 64, 256) if batch <= options.slots]
        for row in measure(standin, CardCuda(), batches):
            how = "a graph" if row["graphs"] else "no graph"
            print(f"batch {row['batch']}: {row['host_ms']:.3f} ms on the host, {row['whole_ms']:.3f} ms in all, {how}")


if __name__ == "__main__":
    main()
