"""The network that the lowering defines, computed in numpy, in the runner that serves it: both sides of the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorrt_rtx as trt
from autoglm_engine.core import Adjustments, Candidates, Span, StepBatch
from autoglm_export.tensorrt_lowering import profiles_of
from contract_network import GpuBench
from fake_tensorrt import Arrays, FakeNetwork, FakeTensor
from fakes import rank
from tensorrt_networks import Defined, define_network
from tiny_decoders import expected_logits
from trt_interpreter import Interpreter

NUM_SLOTS, CHUNK, MAX_LENGTH, NUM_CANDIDATES = 3, 8, 20, 5
CACHE_TYPES = {"fp16": "float16", "bf16": "bfloat16"}
TYPES: dict[Any, Any] = {
    trt.DataType.FLOAT: np.float32,
    trt.DataType.INT32: np.int32,
    trt.DataType.HALF: np.float16,
    trt.DataType.BF16: ml_dtypes.bfloat16,
}


def lowered(bench: GpuBench, defined: Defined) -> FakeNetwork:
    """The definition as an engine: its own tensors, the lowering's profiles."""
    definition = defined.definition
    tensors: dict[str, FakeTensor] = {}
    for index in range(definition.num_inputs):
        tensor = definition.get_input(index)
        tensors[tensor.name] = FakeTensor(TYPES[tensor.dtype], tuple(tensor.shape), is_input=True)
    for index in range(definition.num_outputs):
        tensor = definition.get_output(index)
        alias = tensor.name.replace("present", "past") if tensor.name.startswith("present") else ""
        tensors[tensor.name] = FakeTensor(TYPES[tensor.dtype], tuple(tensor.shape), False, alias)
    profiles = tuple(
        {name: (profile.smallest[name], profile.largest[name]) for name in profile.largest}
        for profile in profiles_of(bench.spec, NUM_SLOTS, CHUNK, bench.shapes.cache_length)
    )
    interpreter = Interpreter(definition, trt)

    def compute(inputs: Arrays, outputs: Arrays) -> None:
        found = interpreter.run(inputs, in_place=True)
        for name, values in found.items():
            if not name.startswith("present"):
                outputs[name][...] = values

    return FakeNetwork(tensors, profiles, lambda given: bench.shapes.outputs(given["token_ids"][0]), compute)


@pytest.fixture(params=["fp16", "bf16"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> GpuBench:
    made = GpuBench(
        tmp_path,
        "glm4",
        rtx=True,
        num_slots=NUM_SLOTS,
        max_length=MAX_LENGTH,
        prefill_chunk=CHUNK,
        num_candidates=NUM_CANDIDATES,
        cache_dtype=CACHE_TYPES[request.param],
    )
    defined = define_network(
        made.spec,
        made.weights,
        request.param,
        cache_length=made.shapes.cache_length,
        num_candidates=NUM_CANDIDATES,
    )
    made.trt.network = lowered(made, defined)
    made.open()
    return made


def test_a_lowered_network_is_served_as_the_reference_computes_it(bench: GpuBench) -> None:
    prompts = [np.random.default_rng(seed).integers(0, 97, 16 + seed).astype(np.int32) for seed in range(3)]
    expected = [expected_logits(bench.spec, bench.weights, ids) for ids in prompts]
    tolerance = 0.02 if bench.manifest.runtime_details["cache_dtype"] == "float16" else 0.15
    bench.step(*(Span(slot, 0, prompts[slot][:8], False) for slot in (2, 0, 1)))
    bench.step(Span(0, 8, prompts[0][8:15], False), Span(2, 8, prompts[2][8:9], False))
    rows = bench.step(
        Span(1, 8, prompts[1][8:16], True), Span(2, 9, prompts[2][9:17], True), Span(0, 15, prompts[0][15:], True)
    )
    for row, wanted in zip(rows, (expected[1][15], expected[2][16], expected[0][15]), strict=True):
        np.testing.assert_allclose(row, wanted, atol=tolerance * np.abs(wanted).max())
    rows = bench.step(Span(2, 17, prompts[2][17:], True))
    np.testing.assert_allclose(rows[0], expected[2][17], atol=tolerance * np.abs(expected[2][17]).max())
    bench.runner.copy_prefix(2, 0, 17)
    rows = bench.step(Span(0, 17, prompts[2][17:], True))
    np.testing.assert_allclose(rows[0], expected[2][17], atol=tolerance * np.abs(expected[2][17]).max())


def test_its_candidates_are_those_of_its_adjusted_rows(bench: GpuBench) -> None:
    ids = np.arange(6, dtype=np.int32)
    factors, offsets = np.full(6, 1.5, np.float32), np.linspace(-1, 1, 6, dtype=np.float32)
    offsets[2] = -np.inf
    told = Adjustments(True, ids, factors, offsets, 0.5)
    found = bench.runner.issue(StepBatch((Span(1, 0, ids, True, told), Span(2, 0, ids[:1], True, told)))).result()
    assert isinstance(found, Candidates)
    rows = np.array([found.full_row(0), found.full_row(1)])
    table = np.ones((2, 97), np.float32), np.zeros((2, 97), np.float32)
    table[0][:, ids], table[1][:, ids] = factors, offsets
    ranked = rank(rows, *table, np.full(2, 0.5, np.float32), 97, found.full_row)
    np.testing.assert_allclose(found.log_sum_exp, ranked.log_sum_exp, rtol=1e-5)
    np.testing.assert_allclose(found.logits, ranked.logits[:, :NUM_CANDIDATES], rtol=1e-6)
    for row in range(2):  # equal logits, which rounding makes, may come in any order
        adjusted = dict(zip(ranked.token_ids[row].tolist(), ranked.logits[row], strict=True))
        candidates = found.token_ids[row].tolist()
        assert len(set(candidates)) == NUM_CANDIDATES
        np.testing.assert_allclose([adjusted[token] for token in candidates], found.logits[row], rtol=1e-6)
