"""The network that the lowering defines, computed in numpy, in the runner that serves it: both sides of the
contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from autoglm_engine.core import Adjustments, Candidates, Span, StepBatch

from tests.support.engine.fakes import rank
from tests.support.export.tiny_decoders import expected_logits
from tests.support.tensorrt.contract_network import GpuBench
from tests.support.tensorrt.lowered_network import NUM_CANDIDATES, open_lowered


@pytest.fixture(params=["fp16", "bf16"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> GpuBench:
    return open_lowered(tmp_path, request.param)


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


def greedy(bench: GpuBench, prompts: dict[int, npt.NDArray[np.int32]], count: int) -> dict[int, list[int]]:
    """So many tokens of each prompt, by slot: all of them in each step."""
    done, taken = dict.fromkeys(prompts, 0), {slot: ids.tolist() for slot, ids in prompts.items()}
    end = {slot: len(ids) + count for slot, ids in prompts.items()}
    while any(len(taken[slot]) < end[slot] for slot in prompts):
        going = [slot for slot in prompts if len(taken[slot]) < end[slot]]
        pieces = {slot: np.array(taken[slot][done[slot] :][:8], np.int32) for slot in going}
        spans = [Span(slot, done[slot], ids, True) for slot, ids in pieces.items()]
        found = bench.runner.issue(StepBatch(tuple(spans))).result()
        assert isinstance(found, Candidates)
        for row, slot in enumerate(going):
            done[slot] += len(pieces[slot])
            if done[slot] == len(taken[slot]):
                taken[slot].append(int(found.token_ids[row, 0]))
    return taken


def test_shared_calls_over_few_positions_give_the_tokens_of_one_by_one_over_all(tmp_path: Path) -> None:
    batched = {"batched_prefill": {"batch": [1, 4], "sequence": [1, 8]}}
    lengths = {"attention_lengths": [10, 16, 32], "prefill_lengths": [2, 4, 8], "profiles": batched}
    one_row = {"batched_prefill": {"batch": [1, 1], "sequence": [1, 8]}}
    together = open_lowered(tmp_path, "fp16", num_slots=6, **lengths)
    alone = open_lowered(tmp_path, "fp16", num_slots=6, profiles=one_row)
    prompts = {
        slot: np.random.default_rng(slot).integers(0, 97, count).astype(np.int32)
        for slot, count in ((0, 3), (1, 8), (2, 2), (4, 13), (5, 4))
    }
    found = greedy(together, prompts, 6)
    assert set(together.decoder.keys) == {10, 16, 32}
    assert {shape for shape in together.decoder.calls if shape[1] > 1} == {(4, 8), (2, 8), (1, 8)}
    for slot, ids in prompts.items():
        assert found[slot] == greedy(alone, {slot: ids}, 6)[slot]
    assert {shape[0] for shape in alone.decoder.calls if shape[1] > 1} == {1}
