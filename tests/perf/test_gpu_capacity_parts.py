"""What the capacity test of a card is made of, on the CPU: a right engine passes, one that sees poison is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from autoglm_engine.runners.tensorrt.shapes import TensorShapes
from autoglm_export.auto_runtime.random_weights import RandomWeights

from tests.gpu import capacity, torch_standin
from tests.support.perf.gpu_fakes import TINY
from tests.support.tensorrt.contract_network import contract_network
from tests.support.tensorrt.fake_cuda import FakeCuda
from tests.support.tensorrt.torch_decoder import TorchDecoder, TorchWeights
from tests.support.tensorrt.torch_tensorrt import TorchTensorRT

LIMITS = {"num_slots": capacity.NUM_SLOTS, "max_length": 64, "prefill_chunk": 40}


def built(folder: Path) -> capacity.Built:
    spec = TINY.spec(64)
    standin = torch_standin.make(folder, spec, LIMITS, "bfloat16", "cpu")
    expected = capacity.expected(folder, standin.manifest, spec, RandomWeights(spec), "cpu")
    return capacity.Built(folder, standin.manifest, spec, expected)


def measured(made: capacity.Built, change: Any = None) -> dict[str, dict[int, float]]:
    """`change` of what the engine is given, before it computes."""
    cuda, shapes = FakeCuda(), TensorShapes.of(made.manifest)
    decoder = TorchDecoder(made.spec, TorchWeights(RandomWeights(made.spec)), shapes.cache_length)

    def compute(inputs: Any, outputs: Any) -> None:
        decoder.compute(inputs if change is None else change(dict(inputs)), outputs)

    with capacity.opened(made, TorchTensorRT(cuda, contract_network(shapes, compute)), cuda) as parts:
        found = capacity.errors(made, *parts)
    assert not cuda.leaks
    return found


def test_a_right_engine_is_as_near_as_its_cache_is_fine(tmp_path: Path) -> None:
    found = measured(built(tmp_path))
    assert {kind: list(rows) for kind, rows in found.items()} == {"decode": [1, 7, 63], "prefill": [7, 63]}
    assert max(max(rows.values()) for rows in found.values()) < 0.02


def test_an_engine_that_sees_beyond_a_row_is_far_off(tmp_path: Path) -> None:
    def beyond(inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs | {"key_positions": inputs["key_positions"] - 1}

    found = measured(built(tmp_path), beyond)
    # A poisoned key may as well be one that no head of two looks at, so not every row is off.
    assert min(max(rows.values()) for rows in found.values()) > capacity.BOUNDS["bf16"]


def test_what_is_found_is_recorded_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOGLM_GPU_RECORD", str(tmp_path / "found.jsonl"))
    capacity.record(form="fused", capacity=8192, errors={"decode": {1: 0.5}})
    capacity.record(form="plain", capacity=8192, failure="none")
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert lines[0] == {"kind": "capacity", "form": "fused", "capacity": 8192, "errors": {"decode": {"1": 0.5}}}
    assert len(lines) == 2


def test_the_reference_of_real_width_fits_the_capacities() -> None:
    spec = capacity.spec_of(25_600)
    assert (spec.hidden_size, spec.num_layers, spec.num_kv_heads, spec.head_size) == (4096, 2, 2, 128)
    assert capacity.lengths_of(25_600) == (1, 7, 1000, 25_599)
