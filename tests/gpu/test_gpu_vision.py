"""The vision tower at its published widths on the card: a phone's screen of 13,416 patches, against transformers in
float32 on the same card, and what an image costs. What was found is recorded as in `capacity.record`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.manifest import FileRecord
from autoglm_engine.runners.cuda.bindings import CudaBindings
from autoglm_engine.runners.tensorrt.tower import open_tensorrt_tower
from autoglm_engine.vision.processor import Patches
from autoglm_export.tensorrt.module import MODULES, load_tensorrt
from autoglm_export.vision_artifact import build_vision

from tests.gpu.available import Available
from tests.gpu.capacity import record
from tests.gpu.gpu_models import exact_float32
from tests.support.export.tiny_decoders import SPECS
from tests.support.tensorrt.contract_network import contract_manifest
from tests.support.vision.published_tower import ROPE, SCREEN, published_tower

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

DEPTH, ROUNDS = 24, 10
GRIDS = [SCREEN, (2, 2), (10, 300), (156, 156)]  # a screen, one token, a strip, and all but the largest image
BOUNDS = {"bf16": 5e-2, "fp16": 2e-2}  # relative L2 of an image's features


@dataclasses.dataclass(frozen=True)
class Built:
    tower: Any
    reference: Any  # transformers' on the card
    build_seconds: float
    plan_bytes: int
    note: str


@pytest.fixture(scope="module", params=BOUNDS)
def built(
    request: pytest.FixtureRequest, here: Available, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Built]]:
    precision: str = request.param
    if (reason := here.why_not(precision)) is not None or here.runtime not in MODULES:
        pytest.skip(reason or f"the runtime {here.runtime} has no tower of its own")
    folder = tmp_path_factory.mktemp(f"vision-{precision}")
    reference, vision = published_tower(DEPTH)
    targets = [CudaBindings().compute_capability] if here.runtime == "tensorrt-rtx" else []
    began = time.monotonic()
    settings, note = build_vision(
        vision, ROPE, folder, runtime=str(here.runtime), precision=precision, compute_capabilities=targets
    )
    seconds = time.monotonic() - began
    tower = opened(folder, str(here.runtime), settings, targets)
    plan = (folder / settings.model).stat().st_size
    yield precision, Built(tower, reference.to("cuda"), seconds, plan, note)
    tower.close()


def opened(folder: Path, runtime: str, settings: Any, targets: list[str]) -> Any:
    """As beside a decoder, which is not there."""
    manifest = contract_manifest(
        folder,
        SPECS["glm4"],
        num_slots=1,
        max_length=24,
        prefill_chunk=16,
        num_candidates=6,
        runtime=runtime,
        module=MODULES[runtime],
        compute_capabilities=targets,
    )
    manifest.files[settings.model] = FileRecord.of(folder / settings.model)
    manifest = dataclasses.replace(manifest, vision=settings)
    return open_tensorrt_tower(folder, manifest, load_tensorrt(MODULES[runtime]), CudaBindings())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_an_images_features_are_those_of_transformers(built: tuple[str, Built], grid: tuple[int, int]) -> None:
    import torch

    precision, made = built
    patches = Patches(np.random.default_rng(1).standard_normal((grid[0] * grid[1], 588)).astype(np.float32), grid)
    frames = np.tile(patches.values.reshape(-1, 3, 1, 196), (1, 1, 2, 1)).reshape(len(patches.values), -1)
    with torch.inference_mode(), exact_float32():
        pixels, shape = torch.from_numpy(frames).to("cuda"), torch.tensor([[1, *grid]], device="cuda")
        expected = made.reference(pixels, shape).pooler_output.float().cpu().numpy()
    seconds = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        features = made.tower.encode(patches)
        seconds.append(time.monotonic() - began)
    error = float(np.linalg.norm(features - expected) / np.linalg.norm(expected))
    record(
        kind="vision",
        precision=precision,
        patches=len(patches.values),
        error=error,
        bound=BOUNDS[precision],
        median_ms=float(np.median(seconds[1:]) * 1e3),
        first_ms=seconds[0] * 1e3,
        build_seconds=made.build_seconds,
        plan_bytes=made.plan_bytes,
        memory=dict(made.tower.memory),
        note=made.note,
    )
    assert error < BOUNDS[precision]
