"""A step in flight: what happens beside it, what it is too late for, and that neither it nor candidates change an
answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from autoglm_engine.core import Event, FinishReason, Request, StepBatch
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.tokenizer.incremental import TextStream, TokenText
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.engine_bench import END, LETTERS, NUM_CANDIDATES, TEXT, VOCAB, Bench, script, spell
from tests.support.engine.fakes import answers, assert_same_logprobs, expected_greedy, request


class NotedText(TokenText):
    """Notes when a token's text is looked at."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__(LETTERS)
        self._notes = notes

    def stream(self) -> TextStream:
        stream = super().stream()
        push = stream.push

        def noted(token_id: int) -> tuple[int, ...]:
            self._notes.append(f"text {TEXT.decode([token_id], False)}")
            return push(token_id)

        stream.push = noted  # type: ignore[method-assign]
        return stream


def noting(num_candidates: int) -> tuple[Bench, list[str]]:
    """A bench with one slot, and the order in which things happen."""
    notes: list[str] = []
    bench = Bench(num_candidates, limits=Limits(1, 64, 8, VOCAB), text=NotedText(notes))
    bench.runner.before_issue = lambda batch: notes.append("issue")
    bench.runner.before_forward = lambda batch: notes.append("result")
    return bench, notes


@pytest.fixture(params=NUM_CANDIDATES, ids=["logits", "candidates"])
def num_candidates(request: pytest.FixtureRequest) -> int:
    return int(request.param)


# ---- beside the step in flight


def test_texts_are_made_while_the_next_step_is_in_flight_and_sent_before_its_result(num_candidates: int) -> None:
    bench, notes = noting(num_candidates)
    script(bench, "abc")
    bench.engine.submit(request(stream=True, max_tokens=3))
    while bench.engine.has_work:
        notes.extend(f"sent {TEXT.decode(event.token_ids, False)}" for event in bench.step())
    assert notes == [
        *("issue", "result"),
        *("issue", "text a", "sent a", "result"),
        *("issue", "text b", "sent b", "result"),
        *("text c", "sent c"),
    ]


def test_a_slot_that_is_certainly_free_is_in_the_very_next_step(num_candidates: int) -> None:
    bench = Bench(num_candidates, limits=Limits(1, 64, 8, VOCAB))
    for i in range(3):
        bench.engine.submit(request(f"r{i}", [i, 7], max_tokens=2, ignore_eos=True))
    bench.step(7)  # one more than there are tokens: the first only issues
    assert [event.request_id for event in bench.events] == ["r0", "r1", "r2"]
    assert len(bench.runner.batches) == 6
    assert not bench.engine.has_work


def test_an_end_of_sequence_leaves_nothing_in_flight(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    script(bench, [*spell("ab"), END])
    bench.run(request(max_tokens=9))
    assert bench.engine.stats.steps == 3


# ---- too late for the step in flight


def test_what_a_stop_string_ends_is_dropped_from_the_step_in_flight(num_candidates: int) -> None:
    bench = Bench(num_candidates, limits=Limits(1, 64, 8, VOCAB))
    prompt = list(range(20, 50))
    said = expected_greedy(prompt, 8, VOCAB)
    stop = TEXT.decode(said[:3], True)[-1]
    assert stop not in TEXT.decode(said[:2], True)
    bench.engine.submit(request("stopped", prompt, max_tokens=20, stop=(stop,), ignore_eos=True))
    bench.engine.submit(request("next", prompt + said[:8], max_tokens=3, ignore_eos=True))
    while not bench.events:
        bench.step()
    slots = bench.engine._scheduler.slots
    assert (bench.engine.stats.slots_retained, slots.length[0]) == (1, 32), (
        "the slot is free while its step is in flight"
    )
    assert (bench.engine.stats.steps, len(bench.runner.batches)) == (7, 6)
    bench.drain()
    found = answers(bench.events)
    assert found["stopped"].token_ids == said[:3]
    assert found["stopped"].last.finish_reason is FinishReason.STOP
    assert found["next"].last.usage.cached_tokens == 32, "the step in flight counted"
    assert found["next"].token_ids == expected_greedy(prompt + said[:8], 3, VOCAB)


def test_a_lone_stopped_request_leaves_the_engine_idle(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    script(bench, "abc")
    bench.run(request(max_tokens=20, stop=("b",)))
    assert len(bench.runner.batches) == 3, "one step more than it has tokens"
    bench.assert_idle()
    assert bench.step() == []
    assert len(bench.runner.batches) == 3


def test_a_failure_of_the_dropped_row_alone_hurts_nobody(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    script(bench, "abc")

    def fail(batch: StepBatch) -> None:
        raise RuntimeError("out of memory")

    bench.engine.submit(request(max_tokens=20, stop=("b",)))
    while not bench.events:
        bench.step()
    bench.runner.before_forward = fail
    bench.step()
    bench.runner.before_forward = lambda batch: None
    (event,) = bench.events
    assert event.finish_reason is FinishReason.STOP
    assert bench.engine.stats.slots_retained == 0, "what it holds cannot be trusted"
    bench.run(request("next", max_tokens=2))
    bench.assert_idle()


def test_a_token_collected_before_a_failing_issue_is_in_the_answer(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    script(bench, "abc")

    def fail(batch: StepBatch) -> None:
        raise RuntimeError("out of memory")

    for name, stop in (("fails", ()), ("stops", ("b",))):
        bench.engine.submit(request(name, max_tokens=20, stop=stop))
    bench.step(2)
    bench.runner.before_issue = fail
    bench.step()
    found = answers(bench.events)
    assert found["fails"].last.error == "the model runner failed: out of memory"
    assert found["fails"].text(TEXT) == "ab"
    assert found["stops"].last.finish_reason is FinishReason.STOP, "its stop string was complete before"
    bench.assert_idle()


@pytest.mark.parametrize(("stop", "reason"), [((), FinishReason.CANCELLED), (("b",), FinishReason.STOP)])
def test_a_cancel_keeps_what_was_computed_before_it(
    num_candidates: int, stop: tuple[str, ...], reason: FinishReason
) -> None:
    bench = Bench(num_candidates)
    script(bench, "abc")
    bench.engine.submit(request(max_tokens=20, stop=stop))
    bench.step(2)
    bench.engine.cancel(["r"])
    (event,) = bench.step()
    assert (event.finish_reason, event.usage.completion_tokens) == (reason, 2)
    assert not bench.engine.has_work, "a cancelled request takes part in no further step"


def test_shutting_down_abandons_the_step_in_flight(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    bench.engine.submit(request(max_tokens=20, ignore_eos=True))
    bench.step(2)
    (event,) = bench.engine.shut_down()
    assert event.error == "the server is shutting down"
    assert len(bench.runner.batches) == 1, "the step in flight was waited for"
    assert not bench.engine.has_work
    bench.assert_idle()


# ---- no answer changes


@dataclass(frozen=True)
class Caller:
    request: Request
    arrives: int  # before this step
    leaves: int | None  # cancels before this step


OPTIONS = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 10),
        "temperature": st.sampled_from([0.0, 0.2, 1.0, 4.0]),
        "seed": st.integers(0, 9),
    },
    optional={
        "min_tokens": st.integers(0, 4),
        "top_k": st.sampled_from([1, 3, 8, 20]),
        "top_p": st.sampled_from([0.2, 0.5, 0.9]),
        "min_p": st.sampled_from([0.05, 0.5]),
        "repetition_penalty": st.sampled_from([0.7, 1.3, 3.0]),
        "presence_penalty": st.sampled_from([-1.0, 0.5]),
        "frequency_penalty": st.sampled_from([-0.3, 1.0]),
        "ignore_eos": st.booleans(),
        "stop": st.sampled_from([("a",), ("b", "Zq"), ("0",)]),
        "logprobs": st.sampled_from([2]),
        "bad_words": st.sampled_from([((3,), (1, 2)), ((5, 6, 7), (5, 9), (9, 5))]),
        "stream": st.booleans(),
    },
)
PROMPTS = st.builds(
    lambda shared, own: [*range(shared), *own],
    st.integers(0, 30),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5),
)


@st.composite
def callers(draw: st.DrawFn) -> list[Caller]:
    return [
        Caller(
            request(f"c{i}", draw(PROMPTS), **draw(OPTIONS)),
            draw(st.integers(0, 12)),
            draw(st.none() | st.integers(0, 25)),
        )
        for i in range(draw(st.integers(1, 8)))
    ]


EOS = (END, 3, 40)  # so that sequences end now and then


def serve(bench: Bench, visits: list[Caller]) -> Iterator[Event]:
    for step in range(26):
        for caller in visits:
            if caller.arrives == step:
                bench.engine.submit(caller.request)
        bench.engine.cancel(caller.request.id for caller in visits if caller.leaves == step)
        yield from bench.step()
    bench.drain()
    bench.assert_idle()


@settings(max_examples=150, deadline=None)
@given(callers(), st.integers(1, 4), st.integers(1, 40), st.booleans())
@pytest.mark.slow
def test_candidates_and_company_change_no_answer(
    visits: list[Caller], num_slots: int, budget: int, prefix_reuse: bool
) -> None:
    limits, options = Limits(num_slots, 64, 8, VOCAB), plain_settings(prefix_reuse=prefix_reuse, token_budget=budget)
    benches = [Bench(count, limits=limits, settings=options, eos=EOS) for count in NUM_CANDIDATES]
    for bench in benches:
        list(serve(bench, visits))
    whole, candidates = (bench.events for bench in benches)
    assert [replace(event, logprobs=()) for event in candidates] == [replace(event, logprobs=()) for event in whole]
    for one, other in zip(candidates, whole, strict=True):
        assert_same_logprobs(one.logprobs, other.logprobs)
    found = answers(candidates)
    assert len(found) == len(visits)
    for caller in visits:
        check_against_alone(found[caller.request.id].events, caller)


def check_against_alone(events: list[Event], caller: Caller) -> None:
    alone = Bench(0, limits=Limits(1, 64, 8, VOCAB), eos=EOS)
    alone.run(caller.request)
    expected, answer = answers(alone.events)[caller.request.id], answers(events)[caller.request.id]
    if answer.last.finish_reason is FinishReason.CANCELLED:
        assert caller.leaves is not None
        assert answer.token_ids == expected.token_ids[: len(answer.token_ids)]
    else:
        assert (answer.token_ids, answer.text(TEXT)) == (expected.token_ids, expected.text(TEXT))
        assert answer.last.finish_reason is expected.last.finish_reason


def test_candidates_spare_the_whole_rows() -> None:
    """The equality above would hold as well if every row were fetched."""
    enough = [{}, {"top_k": 5}, {"top_p": 0.3}, {"min_p": 0.8}, {"repetition_penalty": 1.5, "frequency_penalty": 1.0}]
    bench = Bench(16)
    for i, options in enumerate(enough):
        temperature = 0.0 if i in (0, 4) else 0.3
        bench.engine.submit(
            request(f"r{i}", [i, 9], max_tokens=20, temperature=temperature, seed=1, min_tokens=3, **options)
        )
    bench.drain()
    assert bench.runner.num_whole_rows == 0
    bench.run(request("all", [4], max_tokens=5, frequency_penalty=1.0, logprobs=1, ignore_eos=True))
    assert bench.runner.num_whole_rows == 5


def test_adjustments_are_told_once_and_only_what_changed() -> None:
    bench = Bench(8)
    bench.engine.submit(request("plain", [1, 2, 3], max_tokens=4, ignore_eos=True))
    bench.engine.submit(request("held", [*range(12)], max_tokens=4, min_tokens=2, temperature=0.5, seed=1, top_p=0.3))
    bench.engine.submit(request("fined", [5, 5], max_tokens=4, frequency_penalty=1.0, ignore_eos=True))
    bench.drain()
    told: dict[int, list[tuple[bool, int] | None]] = {}
    for span in (span for batch in bench.runner.batches for span in batch.spans):
        adjustments = span.adjustments
        note = None if adjustments is None else (adjustments.reset, len(adjustments.token_ids))
        told.setdefault(span.slot, []).append(note)
    assert told[0] == [(True, 0), None, None, None]
    assert told[1] == [None, (True, 1), None, (False, 1), None], "prefill, the ban, nothing, the ban lifted, nothing"
    assert told[2] == [(True, 0), *[(False, 1)] * 3]
    first = next(span.adjustments for span in bench.runner.batches[1].spans if span.slot == 1)
    assert first is not None
    assert (first.inverse_temperature, first.token_ids.tolist(), first.offsets.tolist()) == (2.0, [END], [-np.inf])
