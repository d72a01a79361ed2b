"""What `--runtime auto` measures: a reduced model of the same shape, and the steps of a typical request."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import StepBatch
from autoglm_engine.runners.base import Deferred, Limits
from autoglm_export import runtimes as lowering
from autoglm_export.artifact import Options
from autoglm_export.auto_runtime.choice import CANDIDATES, choose
from autoglm_export.auto_runtime.reduced_model import MIN_VOCABULARY, STREAMED_BYTES, matrix_sizes, reduced
from autoglm_export.auto_runtime.timing import STAGE, Bench, Workload, measure
from autoglm_export.errors import ExportError
from autoglm_export.model.spec import ModelSpec, RopeSpec
from autoglm_export.runtimes import no_progress
from hypothesis import given
from hypothesis import strategies as st

from tests.support.export.tiny_decoders import SPECS

TINY = SPECS["llama"]
PLANS = [Options(name, "int8", 16, 1024, 128) for name in CANDIDATES]
TYPICAL = Workload(num_prompt_tokens=128, num_sequences=16)


# ---- the reduced model


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    return dataclasses.replace(
        TINY,
        vocab_size=draw(st.integers(1, 200_000)),
        hidden_size=draw(st.integers(1, 64)) * 64,
        num_layers=draw(st.integers(1, 100)),
        intermediate_size=draw(st.integers(1, 200)) * 64,
        tied_embeddings=draw(st.booleans()),
        sandwich_norm=draw(st.booleans()),
    )


@pytest.mark.slow
@given(specs())
def test_a_reduced_model_has_the_same_layers_and_few_of_them(spec: ModelSpec) -> None:
    small = reduced(spec)
    assert dataclasses.replace(small, num_layers=spec.num_layers, vocab_size=spec.vocab_size) == spec
    assert 1 <= small.num_layers <= spec.num_layers
    assert min(MIN_VOCABULARY, spec.vocab_size) <= small.vocab_size <= spec.vocab_size
    assert small.num_layers == spec.num_layers or sum(matrix_sizes(small)) >= STREAMED_BYTES
    exact = spec.vocab_size * small.num_layers / spec.num_layers
    assert small.vocab_size >= exact and (small.vocab_size < exact + 1 or small.vocab_size <= MIN_VOCABULARY)
    if small.num_layers > 1:
        share = sum(matrix_sizes(spec)) / spec.num_layers
        assert (small.num_layers - 1) * share < STREAMED_BYTES, "one layer less would do"


def test_the_models_that_are_known() -> None:
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_heads": 9, "num_kv_heads": 3, "head_size": 64}
    small = dataclasses.replace(TINY, num_layers=30, vocab_size=49152, tied_embeddings=True, **sizes)
    assert (reduced(small).num_layers, reduced(small).vocab_size) == (15, 24576)
    sizes = {"hidden_size": 4096, "intermediate_size": 13696, "num_heads": 32, "num_kv_heads": 2, "head_size": 128}
    large = dataclasses.replace(TINY, num_layers=40, vocab_size=151552, **sizes)
    assert (reduced(large).num_layers, reduced(large).vocab_size) == (1, 3789)


# ---- the times


class TimedRunner:
    """A step takes 1 s, 10 ms a token and 1 ms a position before it, and 50 s more where it is not the step before
    again."""

    limits = Limits(num_slots=4, max_length=64, prefill_chunk=32, vocab_size=10)

    def __init__(self) -> None:
        self.now = 0.0
        self.steps: list[StepBatch] = []
        self.filled: set[int] = set()

    def clock(self) -> float:
        return self.now

    def issue(self, batch: StepBatch) -> Deferred:
        return Deferred(self._forward, batch)

    def _forward(self, batch: StepBatch) -> Any:
        assert all(span.start == 0 or span.slot in self.filled for span in batch.spans), "behind a prompt"
        self.filled |= {span.slot for span in batch.spans}
        slow = 0.0 if self.steps and self.steps[-1] is batch else 50.0
        self.steps.append(batch)
        self.now += 1 + 0.01 * batch.num_tokens + 0.001 * batch.spans[0].start + slow
        return np.zeros((len(batch.spans), self.limits.vocab_size), np.float32)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        assert source in self.filled
        self.filled.add(target)

    def close(self) -> None: ...


def test_medians_of_steps_scaled_to_the_whole_model() -> None:
    runner = TimedRunner()
    bench = Bench(runner, Workload(num_prompt_tokens=20, num_sequences=4), runner.clock)
    for _ in range(3):
        bench.run()
    timing = bench.timing(scale=2.0)
    assert timing.prefill_ms == pytest.approx(2 * 1200)
    assert timing.decode_ms == pytest.approx(2 * 1060)
    assert timing.decode_1_ms == pytest.approx(2 * 1030)
    assert len(runner.steps) == 3 * 3 * 2, "one that does not count, and one: a second is enough"


@pytest.mark.parametrize(
    ("num_slots", "max_length", "prefill_chunk", "expected"),
    [(16, 1024, 128, (128, 16)), (64, 8192, 512, (128, 16)), (1, 2, 2, (1, 1)), (4, 100, 32, (32, 4))],
)
def test_the_workload_fits_the_artifact(
    num_slots: int, max_length: int, prefill_chunk: int, expected: tuple[int, int]
) -> None:
    plans = [Options("onnx", "int8", num_slots, max_length, prefill_chunk)]
    assert Workload.within(plans) == Workload(*expected)


@pytest.mark.parity
def test_real_runtimes_are_measured(tmp_path: Path) -> None:
    stages: list[str] = []
    found = measure(PLANS, TINY, tmp_path, lambda stage, _: stages.append(stage))
    assert found.failures == {} and found.timings.keys() == set(CANDIDATES)
    assert (found.workload, found.num_layers) == (TYPICAL, TINY.num_layers)
    assert all(value > 0 for timing in found.timings.values() for value in dataclasses.astuple(timing))
    for stage in (STAGE, "measure onnx: write graph", "measure native: quantise weights"):
        assert any(told.startswith(stage) for told in stages), stage
    assert not list(tmp_path.iterdir())


def test_one_that_cannot_be_built_leaves_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lowering.RUNTIMES, "native", dataclasses.replace(lowering.RUNTIMES["native"], module="nowhere"))
    found = measure(PLANS, TINY, tmp_path, no_progress)
    assert found.failures.keys() == {"native"} and found.timings == {}
    unturnable = dataclasses.replace(TINY, head_size=8, rope=RopeSpec(10000.0, 8, interleaved=False))
    with pytest.raises(ExportError, match="ONNX Runtime turns multiples of 16"):
        choose(PLANS, {}, unturnable, tmp_path, no_progress, measure)
    assert not list(tmp_path.iterdir())
