"""Steps of the TensorRT runner on a fake GPU: any mix of spans gives what each sequence alone would give."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Adjustments, Candidates, Logits, Span, StepBatch
from autoglm_engine.runners.tensorrt.calls import buckets_of
from autoglm_engine.runners.tensorrt.prefill_batches import PrefillBatch, batches_of, max_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.export.numpy_runner import NumpyRunner
from tests.support.export.tiny_decoders import SPECS, expected_logits
from tests.support.tensorrt.contract_network import GpuBench

# Short lengths of every kind, so that small models meet all of them.
SHORT: dict[str, Any] = {
    "num_slots": 9,
    "max_length": 40,
    "prefill_chunk": 16,
    "cache_length": 48,
    "attention_lengths": [8, 16, 48],
    "prefill_lengths": [4, 8, 16],
    "profiles": {"batched_prefill": {"batch": [1, 4], "sequence": [1, 8]}},
}
Ids = np.typing.NDArray[np.int32]
MakeBench = Callable[..., GpuBench]


@pytest.fixture
def make(tmp_path: Path) -> MakeBench:
    def bench(variant: str = "one-kv-head", **settings: object) -> GpuBench:
        made = GpuBench(tmp_path, variant, **settings)  # type: ignore[arg-type]
        made.open()
        return made

    return bench


@pytest.fixture
def bench(make: MakeBench) -> GpuBench:
    return make()


def span(slot: int, start: int, ids: Ids, wants_logits: bool = True) -> Span:
    return Span(slot, start, ids, wants_logits)


def some_ids(count: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, 97, count).astype(np.int32)


def close(actual: Logits, expected: Logits) -> None:
    """The cache holds half precision."""
    np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=2e-2)


def issue(bench: GpuBench, *spans: Span) -> Candidates:
    found = bench.runner.issue(StepBatch(spans)).result()
    assert isinstance(found, Candidates)
    return found


# ---- what a step computes


@pytest.mark.slow
@pytest.mark.parametrize("variant", SPECS)
def test_prefill_chunks_and_decode_agree_with_the_reference(variant: str, make: MakeBench) -> None:
    bench, ids = make(variant), some_ids(14)
    expected = expected_logits(bench.spec, bench.weights, ids)
    close(bench.step(span(0, 0, ids))[0], expected[-1])
    bench.step(span(1, 0, ids[:5], wants_logits=False))
    close(bench.step(span(1, 5, ids[5:6]))[0], expected[5])
    close(bench.step(span(1, 6, ids[6:]))[0], expected[-1])
    for position in range(len(ids)):
        close(bench.step(span(4, position, ids[position : position + 1]))[0], expected[position])


def test_a_ragged_batch_equals_one_by_one_to_the_bit(bench: GpuBench) -> None:
    prompts = {slot: some_ids(count, seed=count) for slot, count in ((4, 3), (0, 1), (3, 9), (1, 16))}
    more = {slot: some_ids(1, seed=slot) for slot in prompts}
    together = bench.step(*(span(slot, 0, ids) for slot, ids in prompts.items()))
    next_together = bench.step(*(span(slot, len(prompts[slot]), ids) for slot, ids in more.items()))
    for row, (slot, ids) in enumerate(prompts.items()):
        alone = bench.step(span(slot, 0, ids))[0]
        np.testing.assert_array_equal(together[row], alone)
        np.testing.assert_array_equal(next_together[row], bench.step(span(slot, len(ids), more[slot]))[0])


def test_a_step_of_decode_and_of_several_prompts_gives_rows_in_the_order_of_the_spans(bench: GpuBench) -> None:
    first, second, third = some_ids(5, seed=1), some_ids(7, seed=2), some_ids(9, seed=3)
    bench.step(span(2, 0, first[:4], wants_logits=False))
    found = issue(
        bench,
        span(3, 0, second),
        span(1, 0, first[:3], wants_logits=False),
        span(2, 4, first[4:]),
        span(0, 0, third),
    )
    for row, ids in enumerate((second, first, third)):
        expected = expected_logits(bench.spec, bench.weights, ids)[-1]
        close(found.full_row(row), expected)
        assert found.token_ids[row, 0] == expected.argmax()
        close(found.logits[row], np.sort(found.full_row(row))[::-1][:6])
        assert found.log_sum_exp[row] == pytest.approx(float(np.log(np.exp(expected).sum())), abs=0.02)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mix_of_spans_equals_the_numpy_runner(tmp_path: Path, data: st.DataObject) -> None:
    """Random steps over all slots: each has its own sequence, and takes a random piece of it or none. One runner gets
    them as they are, another one by one; whatever lies beyond a sequence is poisoned."""
    bench, alone = GpuBench(tmp_path, **SHORT), GpuBench(tmp_path, **SHORT)
    reference = NumpyRunner(bench.spec, bench.weights, num_slots=9, max_length=40)
    for made in (bench, alone):
        made.open()
        made.poison()
    sequences = {slot: some_ids(40, seed=data.draw(st.integers(0, 99))) for slot in range(9)}
    done = dict.fromkeys(sequences, 0)
    for _ in range(4):
        spans = drawn_spans(data, sequences, done)
        rows = bench.step(*spans)
        close(rows, reference.forward(StepBatch(spans)))
        one_by_one = [row for one in spans for row in alone.step(one)]
        np.testing.assert_allclose(rows, np.reshape(one_by_one, rows.shape), rtol=1e-3, atol=1e-3)
    for made in (bench, alone):
        made.runner.close()
        assert not made.cuda.leaks


def drawn_spans(data: st.DataObject, sequences: dict[int, Ids], done: dict[int, int]) -> tuple[Span, ...]:
    """The next piece of some of the sequences, one at least; what is `done` grows by it."""
    spans = []
    for slot in data.draw(st.permutations(range(9)))[: data.draw(st.integers(1, 9))]:
        count = min(data.draw(st.sampled_from([1, 1, 2, 3, 5, 8, 11, 16])), 40 - done[slot])
        if count:
            piece = sequences[slot][done[slot] :][:count].copy()
            spans.append(span(slot, done[slot], piece, data.draw(st.booleans())))
            done[slot] += count
    return tuple(spans) or (span(0, 39, sequences[0][39:]),)


# ---- slots


def test_idle_slots_keep_their_tokens_to_the_byte(bench: GpuBench) -> None:
    kept, other = some_ids(24, seed=1), some_ids(8, seed=2)
    bench.step(span(1, 0, kept[:16], wants_logits=False), span(2, 0, kept[:16], wants_logits=False))
    bench.step(span(1, 16, kept[16:], wants_logits=False), span(2, 16, kept[16:20], wants_logits=False))
    before = {slot: bench.cache(slot) for slot in (0, 1, 2, 4)}
    bench.step(span(3, 0, other[:1]))
    bench.step(span(3, 1, other[1:]))
    assert {slot: bench.cache(slot) for slot in before} == before
    bench.step(span(2, 20, kept[20:21]))
    assert bench.cache(1) == before[1]


def overflow(bench: GpuBench, slot: int, position: int) -> None:
    """As a value beyond half precision leaves it."""
    bench.cuda.synchronize()
    for name, address in bench.runner.key_values.addresses(slot).items():
        if name.startswith("past_value"):
            values = bench.cuda.bytes_at(address, bench.shapes.bytes_per_slot).view(np.float16)
            values.reshape(bench.shapes.cache(1))[0, :, position] = np.inf


@pytest.mark.parametrize("is_copied", [False, True])
def test_what_is_not_finite_ends_with_its_request(bench: GpuBench, is_copied: bool) -> None:
    """A mask gives it no weight, but nothing times infinity is not nothing."""
    ids = some_ids(6)
    wanted = bench.step(span(1, 0, ids))[0]
    bench.step(span(2, 0, some_ids(16), wants_logits=False))
    overflow(bench, 2, 20)
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(bench.step(span(2, 21, some_ids(1)))).any()
    if is_copied:
        bench.runner.copy_prefix(1, 2, 5)
    start = 5 if is_copied else 0
    close(bench.step(span(2, start, ids[start:]))[0], wanted)


def test_copied_prefixes_are_independent(make: MakeBench) -> None:
    bench = make("llama")
    ids, other = some_ids(9, seed=5), some_ids(3, seed=6)
    bench.step(span(0, 0, ids[:6], wants_logits=False))
    bench.runner.copy_prefix(0, 3, 4)
    bench.runner.copy_prefix(3, 3, 4)
    branch = np.concatenate([ids[:4], other])
    close(bench.step(span(3, 4, other))[0], expected_logits(bench.spec, bench.weights, branch)[-1])
    close(bench.step(span(0, 6, ids[6:]))[0], expected_logits(bench.spec, bench.weights, ids)[-1])


def test_a_copied_prefix_takes_no_more_than_its_length(bench: GpuBench) -> None:
    bench.step(span(0, 0, some_ids(9)), span(4, 0, some_ids(9, seed=1)))
    shape = bench.shapes.cache(1)
    heads = [np.frombuffer(bench.cache(slot), np.float16).reshape(2, *shape[1:2], -1, shape[3]) for slot in (0, 4)]
    bench.runner.copy_prefix(0, 4, 5)
    after = np.frombuffer(bench.cache(4), np.float16).reshape(heads[0].shape)
    np.testing.assert_array_equal(after[:, :, :5], heads[0][:, :, :5])
    np.testing.assert_array_equal(after[:, :, 5:], heads[1][:, :, 5:])


# ---- calls and graphs


@pytest.mark.parametrize(
    ("num_slots", "buckets"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])]
)
def test_buckets_are_powers_of_two_and_all_slots(num_slots: int, buckets: list[int]) -> None:
    assert buckets_of(num_slots) == buckets


@pytest.mark.parametrize(("slots", "rows"), [([0], 1), ([1], 2), ([0, 1], 2), ([2], 4), ([3, 0], 4), ([4], 5)])
def test_a_decode_call_has_the_smallest_bucket_with_the_highest_slot(
    bench: GpuBench, slots: list[int], rows: int
) -> None:
    bench.step(*(span(slot, 0, some_ids(1)) for slot in slots))
    assert bench.decoder.calls == [(rows, 1)]


def reads(bench: GpuBench) -> list[int]:
    """How many positions of a row each call since the last question read."""
    bench.cuda.synchronize()
    found, bench.decoder.keys = bench.decoder.keys, []
    return found


def test_attention_reads_as_many_positions_as_the_longest_row_of_the_step_needs(make: MakeBench) -> None:
    bench, ids = make(**SHORT), some_ids(40)
    for start, count in ((0, 8), (8, 9), (17, 16)):
        bench.step(span(0, start, ids[start:][:count], wants_logits=False))
    bench.step(span(1, 0, ids[:7], wants_logits=False))
    assert reads(bench) == [8, 48, 48, 8]
    bench.step(span(1, 7, ids[7:8]))
    bench.step(span(1, 8, ids[8:9]))
    bench.step(span(1, 15, ids[9:10]), span(2, 3, ids[:1]))
    bench.step(span(1, 16, ids[10:11]))
    bench.step(span(0, 33, ids[33:34]), span(2, 0, ids[:1]))
    assert reads(bench) == [8, 16, 16, 48, 48]


def test_each_rows_and_keys_is_captured_once_and_replayed_from_then_on(make: MakeBench) -> None:
    bench = make(**SHORT)
    graphs = [(rows, keys) for rows in (1, 2, 4, 8, 9) for keys in (8, 16, 48)]
    assert bench.cuda.count("capture") == len(graphs)
    for _ in range(3):
        bench.step(span(0, 0, some_ids(1)))
        bench.step(span(3, 9, some_ids(1)))
    launches = dict(zip(graphs, (graph.num_launches for graph in bench.cuda.graphs), strict=True))
    assert {graph: count for graph, count in launches.items() if count} == {(1, 8): 3, (4, 16): 3}
    assert bench.cuda.count("capture") == len(graphs)
    assert [context.num_enqueued for context in bench.trt.contexts][: len(graphs)] == [1] * len(graphs)


# ---- prompts that share a call


def calls_of(bench: GpuBench, *spans: Span) -> list[tuple[int, int]]:
    bench.cuda.synchronize()
    bench.decoder.calls.clear()
    bench.step(*spans)
    return bench.decoder.calls


@pytest.mark.parametrize(
    ("prompts", "calls"),
    [
        ({2: 3}, [(1, 4)]),  # padded
        ({0: 4, 1: 2}, [(2, 4)]),
        ({0: 4, 1: 2, 2: 8}, [(4, 8)]),  # a row of the four is idle
        ({8: 3, 6: 8}, [(4, 8)]),  # of slots 5 ... 8: there is none behind them
        ({0: 3, 4: 3}, [(1, 4), (1, 4)]),  # too far from each other
        ({0: 16, 1: 3}, [(1, 16), (1, 4)]),  # too long for a batch
        (dict.fromkeys(range(9), 5), [(4, 8), (4, 8), (1, 8)]),
    ],
)
def test_neighbours_share_a_call(make: MakeBench, prompts: dict[int, int], calls: list[tuple[int, int]]) -> None:
    bench = make(**SHORT)
    found = calls_of(bench, *(span(slot, 0, some_ids(count)) for slot, count in prompts.items()))
    assert sorted(found) == sorted(calls)


def test_prompts_are_computed_after_the_decode_call(bench: GpuBench) -> None:
    assert calls_of(bench, span(2, 0, some_ids(3)), span(0, 0, some_ids(1)), span(1, 0, some_ids(16))) == [
        (1, 1),
        (2, 16),
    ]


def test_a_prompt_that_padding_would_take_past_the_cache_is_computed_at_its_exact_length(make: MakeBench) -> None:
    bench, ids = make(**SHORT | {"prefill_chunk": 32, "prefill_lengths": [4, 8, 32]}), some_ids(40)
    assert calls_of(bench, span(0, 0, ids[:16], wants_logits=False)) == [(1, 32)]
    assert calls_of(bench, span(0, 16, ids[16:25], wants_logits=False)) == [(1, 32)]  # 16 + 32 are the cache's 48
    bench.step(span(0, 16, ids[16:18], wants_logits=False))
    bench.decoder.calls.clear()
    close(bench.step(span(0, 18, ids[18:]))[0], expected_logits(bench.spec, bench.weights, ids)[-1])
    assert bench.decoder.calls == [(1, 22)]


def test_what_an_idle_row_of_a_batch_holds_stays(make: MakeBench) -> None:
    bench, kept = make(**SHORT), some_ids(40, seed=3)
    for start in (0, 16, 32):
        bench.step(span(1, start, kept[start : start + 16], wants_logits=False))
    before = bench.cache(1)
    assert calls_of(bench, span(0, 0, some_ids(3)), span(2, 0, some_ids(8))) == [(4, 8)]
    assert bench.cache(1) == before
    close(bench.step(span(1, 39, kept[39:]))[0], expected_logits(bench.spec, bench.weights, kept)[-1])


def test_each_row_of_a_batch_has_the_adjustments_of_its_slot(make: MakeBench) -> None:
    bench, ids = make(**SHORT), some_ids(3)
    likeliest = int(issue(bench, span(0, 0, ids)).token_ids[0, 0])

    def told(offset: float, inverse_temperature: float) -> Adjustments:
        values = np.ones(1, np.float32), np.full(1, offset, np.float32)
        return Adjustments(True, np.array([likeliest], np.int32), *values, inverse_temperature)

    changes = {5: told(-np.inf, 1.0), 6: told(2.0, 0.5), 8: told(0.0, 1.0)}
    found = issue(bench, *(Span(slot, 0, ids, True, change) for slot, change in changes.items()))
    assert bench.decoder.calls[-1] == (4, 4)
    assert likeliest not in found.token_ids[0] and found.token_ids[1:, 0].tolist() == [likeliest] * 2
    assert found.logits[1, 0] == pytest.approx(found.logits[2, 0] + 2, abs=1e-3)
    for row, (offset, scale) in enumerate([(-np.inf, 1), (2, 0.5), (0, 1)]):
        logits = found.full_row(row).astype(np.float64)
        logits[likeliest] += offset
        assert found.log_sum_exp[row] == pytest.approx(float(np.log(np.exp(logits * scale).sum())), abs=1e-3)


def test_a_decoded_slot_between_two_prompts_keeps_its_logits(make: MakeBench) -> None:
    bench, ids = make(**SHORT), some_ids(9)
    bench.step(span(1, 0, ids[:8], wants_logits=False))
    found = issue(bench, span(0, 0, ids[:3]), span(1, 8, ids[8:]), span(2, 0, ids[:5]))
    for row, count in enumerate((3, 9, 5)):
        close(found.full_row(row), expected_logits(bench.spec, bench.weights, ids[:count])[-1])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_batches_hold_every_span_once_and_cost_no_more_than_one_by_one(bench: GpuBench, data: st.DataObject) -> None:
    num_slots, rows = data.draw(st.sampled_from([(1, 1), (3, 3), (9, 4), (40, 8)]))
    shapes = replace(
        bench.shapes,
        num_slots=num_slots,
        batched_rows=rows,
        prefill_lengths=(4, 8, 16),
        batched_length=data.draw(st.sampled_from([4, 8])),
    )
    slots = data.draw(st.sets(st.integers(0, num_slots - 1)))
    spans = [span(slot, data.draw(st.integers(0, 8)), some_ids(data.draw(st.integers(2, 16)))) for slot in slots]
    batches = batches_of(spans, shapes)
    alone = [batch for one in spans for batch in batches_of([one], shapes)]
    assert sorted(s.slot for batch in batches for s in batch.spans) == sorted(slots)
    assert sum(batch.num_rows for batch in batches) <= max_rows(num_slots)
    assert sum(batch.cost for batch in batches) <= sum(batch.cost for batch in alone)
    for batch in batches:
        check_batch(batch, shapes)


def check_batch(batch: PrefillBatch, shapes: Any) -> None:
    assert 0 <= batch.first_slot <= batch.first_slot + batch.num_rows <= shapes.num_slots
    assert batch.num_rows == 1 or (batch.num_rows <= shapes.batched_rows and batch.num_tokens <= shapes.batched_length)
    for one in batch.spans:
        assert batch.first_slot <= one.slot < batch.first_slot + batch.num_rows
        assert len(one.token_ids) <= batch.num_tokens and one.start + batch.num_tokens <= shapes.cache_length
    assert all(a.slot < b.slot for a, b in pairwise(batch.spans))


# ---- what is made at load


def test_nothing_is_allocated_after_load(bench: GpuBench) -> None:
    names = ("allocate", "allocate_pinned", "create_event")
    before = {name: bench.cuda.count(name) for name in names}
    for position in range(8):
        bench.step(span(0, 2 * position, some_ids(2)), span(4, position, some_ids(1)))
    assert {name: bench.cuda.count(name) for name in names} == before


@pytest.mark.parametrize("how", ["refused", "not capturable", "fails"])
def test_without_graphs_the_answers_are_the_same(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    ids = some_ids(1)
    captured = GpuBench(tmp_path)
    captured.open()
    bench = GpuBench(tmp_path)
    bench.trt.refuses |= {"capture"} if how == "refused" else set()
    bench.trt.is_capturable = how != "not capturable"
    bench.cuda.failing = "capture" if how == "fails" else ""
    with caplog.at_level(logging.WARNING, "autoglm_engine.runners.tensorrt.calls"):
        bench.open()
        for _ in range(2):
            np.testing.assert_array_equal(bench.step(span(3, 0, ids)), captured.step(span(3, 0, ids)))
    assert bench.cuda.count("launch") == 0
    assert len([r for r in caplog.records if r.name == "autoglm_engine.runners.tensorrt.calls"]) == 1
    bench.runner.close()
    assert not bench.cuda.leaks


def test_a_tensorrt_that_cannot_be_asked_is_captured_all_the_same(tmp_path: Path) -> None:
    bench = GpuBench(tmp_path)
    bench.trt.is_capturable = None
    bench.open()
    assert bench.cuda.count("capture") == 4


# ---- steps in flight


def test_issue_does_not_wait_and_its_result_stays_whatever_follows(bench: GpuBench) -> None:
    a, b = some_ids(4, seed=1), some_ids(4, seed=2)
    expected = [bench.step(span(slot, 0, ids)) for slot, ids in ((0, a), (1, b))]
    bench.cuda.synchronize()
    first = bench.runner.issue(StepBatch((span(0, 0, a),)))
    assert bench.cuda.num_queued
    second = bench.runner.issue(StepBatch((span(1, 0, b),)))
    found = first.result()
    kept = found.logits.copy()
    later = second.result()
    third = bench.runner.issue(StepBatch((span(2, 0, b),)))
    close(found.logits[0], np.sort(expected[0][0])[::-1][:6])
    close(later.logits[0], np.sort(expected[1][0])[::-1][:6])
    third.result()
    np.testing.assert_array_equal(found.logits, kept)


def test_whole_rows_are_good_until_the_next_step_is_issued(bench: GpuBench) -> None:
    ids = some_ids(4)
    found = issue(bench, span(0, 0, ids), span(1, 0, ids[:1]))
    row = found.full_row(0)
    bench.runner.copy_prefix(0, 2, 3)
    np.testing.assert_array_equal(found.full_row(0), row)
    close(found.full_row(1), expected_logits(bench.spec, bench.weights, ids[:1])[0])
    issue(bench, span(1, 1, ids[:2]))
    with pytest.raises(ValueError, match="the logits of step 1 were overwritten by step 2"):
        found.full_row(0)
    close(row, expected_logits(bench.spec, bench.weights, ids)[-1])


def test_pinned_memory_is_not_used_again_while_a_step_may_read_it(bench: GpuBench) -> None:
    """Nobody takes a result; the stream runs nothing that nobody waits for."""
    ids = some_ids(12)
    pending = [
        bench.runner.issue(StepBatch((span(0, position, ids[position : position + 1]), span(3, 2 * position, ids[:2]))))
        for position in range(12)
    ]
    expected = expected_logits(bench.spec, bench.weights, ids)
    close(pending[-1].result().full_row(0), expected[-1])
    for number in (1, 10):
        with pytest.raises(ValueError, match=f"the result of step {number} was overwritten by step 12"):
            pending[number - 1].result()
    close(pending[-2].result().logits[0], np.sort(expected[-2])[::-1][:6])


def test_a_step_that_wants_no_logits_copies_none_back(bench: GpuBench) -> None:
    before = bench.cuda.count("copy")
    found = issue(bench, span(0, 0, some_ids(5), wants_logits=False))
    assert bench.cuda.count("copy") == before + 1
    assert found.token_ids.shape == found.logits.shape == (0, 6)
    assert found.log_sum_exp.shape == (0,)


def test_a_step_copies_its_inputs_at_once_and_its_candidates_at_once(bench: GpuBench) -> None:
    before = bench.cuda.count("copy"), bench.cuda.count("copy_rows")
    issue(bench, span(0, 0, some_ids(1)), span(3, 0, some_ids(1)), span(2, 0, some_ids(9), wants_logits=False))
    assert (bench.cuda.count("copy"), bench.cuda.count("copy_rows")) == (before[0] + 2, before[1])


# ---- what is refused

REFUSED = [
    ((), "at least one span"),
    ((span(5, 0, some_ids(1)),), r"slot 5 is not in 0 \.\.\. 4"),
    ((span(-1, 0, some_ids(1)),), "slot -1 is not in"),
    ((span(0, 0, some_ids(0)),), r"a span of 0 tokens is not in 1 \.\.\. 16"),
    ((span(0, 0, some_ids(17)),), "a span of 17 tokens"),
    ((span(0, 24, some_ids(1)),), r"positions 24 \.\.\. 24 are not in 0 \.\.\. 23"),
    ((span(0, 9, some_ids(16)),), r"positions 9 \.\.\. 24"),
    ((span(0, -1, some_ids(2)),), r"positions -1 \.\.\. 0"),
    ((span(0, 0, np.array([97], np.int32)),), r"slot 0 has a token id that is not in 0 \.\.\. 96"),
    ((span(0, 0, np.array([3, -1], np.int32)),), "slot 0 has a token id"),
    ((span(2, 0, some_ids(1)), span(0, 0, some_ids(3)), span(2, 1, some_ids(1))), "a slot appears twice"),
]


@pytest.mark.parametrize(("spans", "message"), REFUSED)
def test_a_step_outside_the_limits_is_refused_before_anything_is_enqueued(
    bench: GpuBench, spans: tuple[Span, ...], message: str
) -> None:
    good = span(1, 0, some_ids(2))
    before = len(bench.cuda.calls)
    with pytest.raises(ValueError, match=message):
        bench.runner.issue(StepBatch((good, *spans) if spans else ()))
    assert len(bench.cuda.calls) == before
    close(bench.step(good)[0], expected_logits(bench.spec, bench.weights, good.token_ids)[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((5, 0, 1), "slot 5"), ((0, -1, 1), "slot -1"), ((0, 1, 25), r"a prefix of 25 tokens is not in 0 \.\.\. 24")],
)
def test_a_prefix_outside_the_limits_is_refused(bench: GpuBench, arguments: tuple[int, int, int], message: str) -> None:
    before = len(bench.cuda.calls)
    with pytest.raises(ValueError, match=message):
        bench.runner.copy_prefix(*arguments)
    assert len(bench.cuda.calls) == before
