"""`make held-out-screens`: beside what a CPU serves, the networks that TensorRT would run, computed in numpy with their
types, as it rounds: --only "tensorrt, bf16" and such, with fewer screens (a second each).

Their kernels add up in another order than a card's; what 16, 8 and 4 bits cost is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tensorrt_rtx as trt
from autoglm_engine.core import Features, TokenIds
from autoglm_engine.manifest import Manifest, VisionSettings
from autoglm_engine.runners.base import Limits
from autoglm_engine.runners.tensorrt.tower import tower_inputs
from autoglm_engine.vision.processor import Patches
from autoglm_engine.vision.stop import Stop
from autoglm_export.checkpoint.base import Checkpoint
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.export import export
from autoglm_export.quantize.calibration_text import texts_of
from autoglm_export.tensorrt.build import Builder
from autoglm_export.tensorrt.network import Network
from autoglm_export.tensorrt.options import KV_DTYPES, checked_kv_dtype
from autoglm_export.tensorrt.profiles import cache_length_of, feature_rows_of
from autoglm_export.tensorrt.vision import define_tower
from autoglm_perf.vision_model.held_out import EXPORTS, LIMITS, Open, main
from autoglm_perf.vision_model.opened import OpenedArtifact
from tokenizers import Tokenizer

from tests.support.tensorrt.network_runner import NetworkRunner
from tests.support.tensorrt.tensorrt_networks import define_network
from tests.support.tensorrt.trt_interpreter import Interpreter

PRECISIONS = ("bf16", "fp16", "fp8", "int4")
CHUNK, NUM_CANDIDATES = 128, 64


@dataclass(frozen=True)
class NetworkTower:
    """`Tower` over a network that numpy computes, which `network` keeps alive."""

    settings: VisionSettings
    network: Network
    interpreter: Interpreter

    def encode(self, patches: Patches, stop: Stop | None = None) -> Features:
        found = self.interpreter.run(tower_inputs(patches, self.settings))
        return np.asarray(found["features"], np.float32)

    def close(self) -> None:
        pass


def interpreted(precision: str, checkpoint: Path, folder: Path) -> OpenedArtifact:
    """The prompts are of an artifact in float32."""
    artifact = folder / f"for-{precision}"
    manifest = export(checkpoint, artifact, runtime="onnx", precision="fp32", **LIMITS)
    return OpenedArtifact.open(
        artifact, tower=tower_of(checkpoint, manifest, precision), runner=runner_of(checkpoint, manifest, precision)
    )


def tower_of(checkpoint: Path, manifest: Manifest, precision: str) -> NetworkTower:
    vision, network = open_checkpoint(checkpoint).vision, Network(trt, Builder(trt).handle)
    assert vision is not None and manifest.vision is not None, "a checkpoint without a tower"
    define_tower(network, vision.spec, vision.weights, KV_DTYPES[checked_kv_dtype(precision, None)])
    return NetworkTower(manifest.vision, network, Interpreter(network.definition, trt))


def runner_of(checkpoint: Path, manifest: Manifest, precision: str) -> NetworkRunner:
    source = open_checkpoint(checkpoint)
    limits = Limits(
        num_slots=manifest.num_slots,
        max_length=manifest.max_length,
        prefill_chunk=CHUNK,
        vocab_size=manifest.vocab_size,
        num_candidates=NUM_CANDIDATES,
        feature_size=source.spec.feature_size,
    )
    made = define_network(
        source.spec,
        source.weights,
        precision,
        cache_length=cache_length_of(limits.max_length, CHUNK),
        num_candidates=NUM_CANDIDATES,
        texts=calibration(source) if precision in ("fp8", "int4") else (),
        feature_rows=feature_rows_of(limits.num_slots, CHUNK),
    )
    return NetworkRunner(made, limits, cache_length=cache_length_of(limits.max_length, CHUNK), unwritten=0.0)


def calibration(source: Checkpoint) -> list[TokenIds]:
    """As an export takes it."""
    tokenizer = Tokenizer.from_str(source.tokenizer.decode())
    limit = source.spec.max_position
    return [np.array(tokenizer.encode(text).ids[:limit], np.int32) for text in texts_of(None)]


CONTENDERS: dict[str, Open] = {
    **EXPORTS,
    **{f"tensorrt, {precision}": partial(interpreted, precision) for precision in PRECISIONS},
}

if __name__ == "__main__":
    main(CONTENDERS)
