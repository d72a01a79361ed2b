"""Fixtures of the GPU tests: what this machine can run, and models built and loaded once a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.gpu.available import Available, available
from tests.gpu.gpu_models import LIMITS, GpuModel, GpuReference, Ids, Make, export_for_gpu, load_on_gpu
from tests.support.export.tiny_models import VOCAB_SIZE, write_checkpoint


@pytest.fixture(scope="session")
def here() -> Available:
    return available()


@pytest.fixture(scope="module")
def tiny_on_gpu(here: Available, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """(family, precision) -> a tiny random model of that family on the GPU; skips what this machine cannot run."""
    made: dict[tuple[str, str], GpuModel] = {}

    def make(family: str, precision: str) -> GpuModel:
        if (reason := here.why_not(precision)) is not None:
            pytest.skip(reason)
        if (family, precision) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{precision}")
            made[family, precision] = build(folder, family, precision, str(here.runtime))
        return made[family, precision]

    yield make
    for model in made.values():
        model.runner.close()


def build(folder: Path, family: str, precision: str, runtime: str) -> GpuModel:
    write_checkpoint(folder / "checkpoint", family, **sizes_of(family))
    manifest = export_for_gpu(folder / "checkpoint", folder / "artifact", runtime, precision, **LIMITS)
    runner = load_on_gpu(folder / "artifact", manifest)
    return GpuModel(folder / "artifact", manifest, runner, GpuReference.load(folder / "checkpoint"))


def sizes_of(family: str) -> dict[str, int]:
    """Wider than the tiny models of the CPU tests: fused attention and quantised products ask for it."""
    if family == "glm4v":  # its heads are hidden_size / num_attention_heads, and its rope's sections fit heads of 32
        return {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}


@pytest.fixture(scope="session")
def ids() -> Ids:
    return np.random.default_rng(1).integers(0, VOCAB_SIZE, 96).astype(np.int32)
