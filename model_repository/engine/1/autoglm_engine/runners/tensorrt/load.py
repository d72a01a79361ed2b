"""The runner of an artifact of the runtimes "tensorrt" and "tensorrt-rtx", where it can run on this machine's GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from autoglm_engine.errors import ArtifactError, DeviceError
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Limits
from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.cuda.memory import free_all

from .calls import graphs_of
from .engine_plan import EnginePlan
from .kernel_cache import KernelCache
from .runner import TensorRTRunner
from .shapes import TensorShapes, check_tensors

_FLOAT = 4  # bytes
Approve = Callable[[Path, Manifest, TensorRTRunner, Cuda], None]
_STEP_TOKENS = 2048  # some 40 ms of an H200's arithmetic (18.8 GFLOP a token of GLM-4-9B at 989 TFLOP/s)
_GRAPH_BYTES = 16 << 20  # that a decode graph and its context may take


def open_runner(
    folder: Path,
    manifest: Manifest,
    trt: Any,
    cuda: Cuda,
    environ: Mapping[str, str] = os.environ,
    *,
    approve: Approve,
) -> TensorRTRunner:
    """`trt`: the module. `environ`: tells where compiled kernels are kept. The runner closes `cuda`, and so does a
    failure to make one. `approve` raises ArtifactError where this GPU must not serve."""
    cleanup = ExitStack()
    cleanup.callback(cuda.close)
    try:
        check_gpu(cuda, manifest)
        kernels = KernelCache(kernels_key(cuda, manifest, manifest.runtime_details["engine"]), environ)
        runner = _open(folder, manifest, trt, cuda, cleanup, kernels)
        approve(folder, manifest, runner, cuda)
        return runner
    except DeviceError as error:
        free_all(cuda, cleanup)
        raise ArtifactError(_why_not(error, manifest)) from error
    except BaseException:
        free_all(cuda, cleanup)
        raise


def _open(
    folder: Path, manifest: Manifest, trt: Any, cuda: Cuda, cleanup: ExitStack, kernels: KernelCache
) -> TensorRTRunner:
    details = manifest.runtime_details
    shapes = TensorShapes.of(manifest)
    plan = EnginePlan(
        trt, cuda, folder / details["engine"], kernels, check=lambda engine: check_tensors(engine, shapes)
    )
    cleanup.callback(plan.close)
    cleanup.callback(plan.keep_kernels)
    if details["weight_streaming"]:
        plan.stream_weights(_slot_bytes(shapes) + len(graphs_of(shapes)) * _GRAPH_BYTES)
    limits = Limits(
        num_slots=manifest.num_slots,
        max_length=manifest.max_length,
        prefill_chunk=manifest.prefill_chunk,
        vocab_size=manifest.vocab_size,
        num_candidates=shapes.num_candidates,
        step_tokens=_STEP_TOKENS,
        on_gpu=True,
        feature_size=shapes.feature_size,
    )
    return TensorRTRunner(plan, cuda, shapes, limits, cleanup)


def _slot_bytes(shapes: TensorShapes) -> int:
    """What all slots need on the device: keys and values, and a row each of logits, factors and offsets."""
    keys_and_values = len(shapes.cache_names) * shapes.bytes_per_slot
    return shapes.num_slots * (keys_and_values + 3 * shapes.vocab_size * _FLOAT)


def kernels_key(cuda: Cuda, manifest: Manifest, plan: str) -> str:
    """`plan`: a file of the artifact."""
    return f"{manifest.files[plan].sha256} {manifest.runtime_version} {cuda.compute_capability}"


def check_gpu(cuda: Cuda, manifest: Manifest) -> None:
    """Raises ArtifactError where the artifact's plans are for other GPUs."""
    targets, actual = manifest.runtime_details["compute_capabilities"], cuda.compute_capability
    if targets and actual not in targets:
        raise ArtifactError(
            f"the artifact was built for GPUs of compute capability {', '.join(targets)}, this machine's has {actual}; "
            "export it again"
        )


def _why_not(error: DeviceError, manifest: Manifest) -> str:
    if not error.is_out_of_memory:
        return str(error)
    return (
        f"there is not enough GPU memory for {manifest.num_slots} slots of {manifest.max_length} tokens beside the "
        f"weights ({error}); export it with fewer or shorter slots"
    )
