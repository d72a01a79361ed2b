"""Steps of the TensorRT runner on a fake GPU: any mix of spans gives what each sequence alone would give."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from autoglm_engine.core import Candidates, Logits, Span, StepBatch
from autoglm_engine.trt_calls import buckets_of
from contract_network import GpuBench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy_runner import NumpyRunner
from tiny_decoders import SPECS, expected_logits

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
    """Random steps over all slots: each has its own sequence, and takes a random piece of it or none."""
    bench = GpuBench(tmp_path)
    runner = bench.open()
    reference = NumpyRunner(bench.spec, bench.weights, num_slots=5, max_length=24)
    sequences = {slot: some_ids(24, seed=data.draw(st.integers(0, 99))) for slot in range(5)}
    done = dict.fromkeys(sequences, 0)
    for _ in range(4):
        spans = []
        for slot in data.draw(st.permutations(range(5)))[: data.draw(st.integers(1, 5))]:
            count = min(data.draw(st.sampled_from([1, 1, 2, 7, 16])), 24 - done[slot])
            if count:
                spans.append(
                    span(slot, done[slot], sequences[slot][done[slot] :][:count].copy(), data.draw(st.booleans()))
                )
                done[slot] += count
        if spans:
            close(bench.step(*spans), reference.forward(StepBatch(tuple(spans))))
    runner.close()
    assert not bench.cuda.leaks


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


def test_longer_spans_are_computed_at_their_exact_length_after_the_decode_call(bench: GpuBench) -> None:
    bench.step(span(2, 0, some_ids(3)), span(0, 0, some_ids(1)), span(1, 0, some_ids(16)))
    bench.step(span(2, 3, some_ids(16)))
    assert bench.decoder.calls == [(1, 1), (1, 3), (1, 16), (1, 16)]


def test_each_bucket_is_captured_once_and_replayed_from_then_on(bench: GpuBench) -> None:
    assert bench.cuda.count("capture") == 4
    for _ in range(3):
        bench.step(span(0, 0, some_ids(1)))
        bench.step(span(3, 0, some_ids(1)))
    assert [graph.num_launches for graph in bench.cuda.graphs] == [3, 0, 3, 0]
    assert bench.cuda.count("capture") == 4
    assert [context.num_enqueued for context in bench.trt.contexts] == [1, 1, 1, 1, 0]


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
    with caplog.at_level(logging.WARNING, "autoglm_engine.trt_calls"):
        bench.open()
        for _ in range(2):
            np.testing.assert_array_equal(bench.step(span(3, 0, ids)), captured.step(span(3, 0, ids)))
    assert bench.cuda.count("launch") == 0
    assert len([r for r in caplog.records if r.name == "autoglm_engine.trt_calls"]) == 1
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
