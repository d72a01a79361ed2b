"""The engine over a runner that notices every cache mix-up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from autoglm_engine.core import FinishReason, Logits, Request, StepBatch, Usage
from autoglm_engine.engine.engine import Engine
from autoglm_engine.errors import EngineError, InvalidRequest, QueueFull, ShuttingDown
from autoglm_engine.metrics import (
    E2E_REQUEST_LATENCY,
    INTER_TOKEN_LATENCY,
    KV_CACHE_USAGE,
    PREFIX_HIT_TOKENS,
    REQUEST_GENERATION_TOKENS,
    REQUEST_PROMPT_TOKENS,
    REQUEST_QUEUE_TIME,
    REQUESTS,
    RUNNING,
    SLOTS,
    TIME_TO_FIRST_TOKEN,
    TOKENS_IN,
    TOKENS_OUT,
)
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import plain_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.engine_bench import END, LETTERS, NUM_CANDIDATES, TEXT, VOCAB, Bench, script, spell
from tests.support.engine.fakes import Answer, answers, expected_greedy, request


@pytest.fixture(params=NUM_CANDIDATES, ids=["logits", "candidates"])
def num_candidates(request: pytest.FixtureRequest) -> int:
    """Every scenario runs over both kinds of runner."""
    return int(request.param)


# ---- answers


@pytest.mark.parametrize("prefix_reuse", [True, False])
def test_batched_equals_one_by_one(num_candidates: int, prefix_reuse: bool) -> None:
    bench = Bench(num_candidates, settings=plain_settings(prefix_reuse=prefix_reuse, token_budget=20))
    shared = list(range(1, 25))
    prompts = [shared[: 20 + i % 4] + [i] * (i % 9 + 1) for i in range(20)]
    bench.run(*(request(f"r{i}", prompt, max_tokens=12) for i, prompt in enumerate(prompts)))
    found = answers(bench.events)
    for i, prompt in enumerate(prompts):
        assert found[f"r{i}"].token_ids == expected_greedy(prompt, 12, VOCAB, frozenset([END]))
    assert (bench.engine.stats.prefix_hit_tokens > 100) == prefix_reuse
    bench.assert_idle()


def test_a_request_that_is_not_streamed_gets_one_event(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    bench.run(request(prompt=[1, 2, 3], max_tokens=5, ignore_eos=True))
    (event,) = bench.events
    assert event.token_ids == tuple(expected_greedy([1, 2, 3], 5, VOCAB))
    assert (event.finish_reason, event.is_first, event.is_last) == (FinishReason.LENGTH, True, True)
    assert event.usage == Usage(prompt_tokens=3, completion_tokens=5, cached_tokens=0)
    assert event.stages.prefill_ms == pytest.approx(10)
    assert event.stages.decode_ms == pytest.approx(40)


def test_a_stream_gets_an_event_a_token(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    script(bench, "hello")
    bench.run(request(stream=True, max_tokens=5))
    assert [len(event.token_ids) for event in bench.events] == [1] * 5
    assert [event.is_first for event in bench.events] == [True, False, False, False, False]
    assert [event.is_last for event in bench.events] == [False] * 4 + [True]
    assert answers(bench.events)["r"].text(TEXT) == "hello"


def test_characters_are_never_split(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    script(bench, spell("a") + [LETTERS.token_to_id(part) for part in "âĤ¬"] + spell("b"))
    bench.run(request(stream=True, max_tokens=5))
    assert [TEXT.decode(event.token_ids, event.is_first) for event in bench.events] == ["a", "€", "b"]


def test_a_character_cut_by_the_length_is_still_answered(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    script(bench, [LETTERS.token_to_id("â")])
    bench.run(request(stream=True, max_tokens=1))
    assert answers(bench.events)["r"].text(TEXT) == "\ufffd"


def test_end_of_sequence(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    script(bench, [*spell("ab"), END])
    bench.run(request(max_tokens=9))
    (event,) = bench.events
    assert event.finish_reason is FinishReason.STOP
    assert event.token_ids == (*spell("ab"), END)
    assert event.usage.completion_tokens == 3
    assert event.text_bytes is None
    bench.run(request("ignoring", max_tokens=4, ignore_eos=True))
    assert bench.events[-1].usage.completion_tokens == 4


def test_an_end_of_sequence_token_with_text_leaves_none(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    bench.engine = Engine(bench.runner, TEXT, spell("e"), clock=bench.clock)
    script(bench, "abe")
    bench.run(request(max_tokens=9))
    assert answers(bench.events)["r"].text(TEXT) == "ab"


def test_min_tokens_holds_the_end_off(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    script(bench, [END] * 9)
    bench.run(request(max_tokens=9, min_tokens=3))
    assert len(bench.events[0].token_ids) == 4
    assert END not in bench.events[0].token_ids[:3]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("said", "stops", "options", "text", "reason"),
    [
        ("hello END more", ("END",), {}, "hello ", FinishReason.STOP),
        ("hello", ("hello",), {}, "", FinishReason.STOP),
        ("abcabd", ("abd", "zz"), {}, "abc", FinishReason.STOP),
        ("aEN", ("END",), {"max_tokens": 3}, "aEN", FinishReason.LENGTH),
        ("aEND", ("END",), {"max_tokens": 4}, "a", FinishReason.STOP),
        ("xxaxxb", ("xx",), {"min_tokens": 2}, "xxa", FinishReason.STOP),
    ],
)
def test_stop_strings(
    num_candidates: int,
    said: str,
    stops: tuple[str, ...],
    options: dict[str, int],
    text: str,
    reason: FinishReason,
    stream: bool,
) -> None:
    bench = Bench(num_candidates)
    script(bench, said)
    bench.run(request(stream=stream, **{"max_tokens": 20, "stop": stops, **options}))
    answer = answers(bench.events)["r"]
    assert answer.text(TEXT) == text
    assert answer.last.finish_reason is reason
    assert answer.last.usage.completion_tokens == len(answer.token_ids)


def test_an_end_of_sequence_releases_what_was_held_back(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    script(bench, [*spell("aEN"), END])
    bench.run(request(stream=True, max_tokens=9, stop=("END",)))
    assert answers(bench.events)["r"].text(TEXT) == "aEN"


def test_the_slot_is_the_limit_of_the_length(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    bench.run(request(prompt=[1] * 60, max_tokens=1000, ignore_eos=True))
    assert bench.events[0].usage.completion_tokens == 4
    assert bench.events[0].finish_reason is FinishReason.LENGTH


def test_logprobs_come_with_their_tokens(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    bench.run(
        request("plain", max_tokens=4, ignore_eos=True),
        request("stream", stream=True, max_tokens=4, ignore_eos=True, logprobs=2, stop=("0123",)),
    )
    found = answers(bench.events)
    assert found["plain"].last.logprobs == ()
    for event in found["stream"].events:
        assert [logprobs.token_id for logprobs in event.logprobs] == list(event.token_ids)
        assert all(len(logprobs.top) == 2 and logprobs.logprob <= 0 for logprobs in event.logprobs)


def test_a_seeded_request_answers_the_same_in_company(num_candidates: int) -> None:
    seeded = {"temperature": 1.5, "seed": 42, "max_tokens": 10, "ignore_eos": True}
    alone, together = Bench(num_candidates), Bench(num_candidates)
    alone.run(request("s", [9, 9], **seeded))
    together.run(*(request(f"o{i}", [i], temperature=1.0) for i in range(3)), request("s", [9, 9], **seeded))
    assert answers(together.events)["s"].token_ids == answers(alone.events)["s"].token_ids


# ---- cancel, deadlines, the queue


def test_a_cancelled_slot_is_free_within_one_step(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    for i in range(6):
        bench.engine.submit(request(f"r{i}", stream=True, max_tokens=50, ignore_eos=True))
    bench.step(3)
    assert bench.engine.cancel([f"r{i}" for i in range(6)] + ["unknown"]) == 6
    last = bench.step()
    assert sorted(event.request_id for event in last) == [f"r{i}" for i in range(6)]
    assert {event.finish_reason for event in last} == {FinishReason.CANCELLED}
    bench.assert_idle()
    assert bench.engine.cancel(["r0"]) == 0


def test_a_cancel_answers_with_the_text_held_back(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    script(bench, [*spell("aEN"), LETTERS.token_to_id("â")])
    bench.engine.submit(request(stream=True, max_tokens=50, stop=("END",)))
    bench.step(4)
    bench.engine.cancel(["r"])
    bench.drain()
    assert answers(bench.events)["r"].text(TEXT) == "aEN\ufffd"


def test_a_late_cancel_does_not_meet_the_next_request_of_that_name(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    bench.engine.submit(request(max_tokens=1))
    bench.runner.before_forward = lambda batch: bench.engine.cancel(["r"]) and None  # it ends in this very step
    bench.step(2)  # one issues, one collects
    bench.runner.before_forward = lambda batch: None
    bench.run(request(max_tokens=2, ignore_eos=True))
    assert [event.finish_reason for event in bench.events] == [FinishReason.LENGTH] * 2


def test_deadlines_end_running_and_waiting_requests(num_candidates: int) -> None:
    bench = Bench(num_candidates, limits=Limits(1, 64, 8, VOCAB))
    bench.engine.submit(request("runs", max_tokens=60, ignore_eos=True, deadline=100.045))
    bench.engine.submit(request("waits", deadline=100.025))
    bench.engine.submit(request("in time", deadline=500.0))
    bench.drain()
    found = answers(bench.events)
    assert found["runs"].last.finish_reason is FinishReason.DEADLINE
    assert found["runs"].token_ids == expected_greedy([1, 2, 3], 5, VOCAB)
    assert found["waits"].last.finish_reason is FinishReason.DEADLINE
    assert found["waits"].token_ids == []
    assert found["in time"].last.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)


def test_a_full_queue_refuses_at_once_and_loses_nothing(num_candidates: int) -> None:
    bench = Bench(num_candidates, settings=plain_settings(max_queue=3))
    for i in range(3):
        bench.engine.submit(request(f"r{i}"))
    with pytest.raises(QueueFull, match="3 requests wait already"):
        bench.engine.submit(request("one too many"))
    bench.step()  # they have slots now
    for i in range(3, 6):
        bench.engine.submit(request(f"r{i}"))
    with pytest.raises(QueueFull):
        bench.engine.submit(request("one too many"))
    bench.engine.cancel(["r5"])
    bench.step()
    bench.engine.submit(request("one too many"))
    bench.drain()
    assert sorted(answers(bench.events)) == ["one too many", *(f"r{i}" for i in range(6))]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (request(prompt=[]), "the prompt has 0 tokens; it must have between 1 and 63"),
        (request(prompt=[1] * 64), "the prompt has 64 tokens; it must have between 1 and 63"),
        (request(prompt=[1, VOCAB]), f"the prompt holds token {VOCAB}; tokens are between 0 and {VOCAB - 1}"),
        (request(prompt=[-1]), "the prompt holds token -1"),
        (request(max_tokens=0), "max_tokens is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_served_is_refused(num_candidates: int, wrong: Request, sentence: str) -> None:
    bench = Bench(num_candidates)
    with pytest.raises(InvalidRequest, match=sentence):
        bench.engine.submit(wrong)
    assert not bench.engine.has_work


def test_an_id_is_used_once_at_a_time(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    bench.engine.submit(request())
    with pytest.raises(InvalidRequest, match="the request id 'r' is in use"):
        bench.engine.submit(request())
    bench.drain()
    bench.run(request())
    assert len(bench.events) == 2


# ---- failures


@pytest.mark.parametrize("where", ["before_issue", "before_forward"])
def test_a_failing_runner_ends_its_requests_and_nothing_else(num_candidates: int, where: str) -> None:
    bench = Bench(num_candidates)
    kept = [50 + i % 7 for i in range(40)]
    bench.run(request("before", kept, max_tokens=2))
    for i in range(3):  # the fourth slot keeps what was there before
        bench.engine.submit(request(f"r{i}", [i] * 3, max_tokens=4, ignore_eos=True))
    bench.step(2)

    def fail(batch: StepBatch) -> None:
        raise RuntimeError("out of memory")

    setattr(bench.runner, where, fail)
    bench.step()
    setattr(bench.runner, where, lambda batch: None)
    bench.runner.written[:] = -1  # whoever trusted a slot now would fail
    bench.engine.submit(request("new", [8, 9], max_tokens=4, ignore_eos=True))
    bench.engine.submit(request("after", kept, max_tokens=2, ignore_eos=True))
    bench.drain()
    found = answers(bench.events)
    assert len(found) == 6
    assert found["after"].token_ids == expected_greedy(kept, 2, VOCAB)
    assert {found[f"r{i}"].last.error for i in range(3)} == {"the model runner failed: out of memory"}
    assert {found[f"r{i}"].last.error_code for i in range(3)} == {"INTERNAL"}
    assert found["new"].token_ids == expected_greedy([8, 9], 4, VOCAB)
    bench.assert_idle()


def test_logits_that_are_not_finite_end_one_request(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    forward = bench.runner.forward

    def poisoned(batch: StepBatch) -> Logits:
        logits = forward(batch)
        for row, span in zip(logits, (span for span in batch.spans if span.wants_logits), strict=True):
            if bench.runner.written[span.slot, 0] == 13:
                row[:] = np.nan
        return logits

    bench.runner.forward = poisoned  # type: ignore[method-assign]
    bench.run(request("bad", [13, 1]), request("good", [1, 2], max_tokens=5, ignore_eos=True))
    found = answers(bench.events)
    assert found["bad"].last.error == "the model computed logits that are not finite for this request"
    assert found["good"].token_ids == expected_greedy([1, 2], 5, VOCAB)


def test_shutting_down_answers_everybody(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    for i in range(6):
        bench.engine.submit(request(f"r{i}", ignore_eos=True))
    bench.step(2)
    bench.engine.submit(request("new"))
    events = bench.engine.shut_down()
    assert sorted(event.request_id for event in events) == ["new", *(f"r{i}" for i in range(6))]
    assert {(event.error, event.error_code) for event in events} == {("the server is shutting down", "UNAVAILABLE")}
    with pytest.raises(ShuttingDown):
        bench.engine.submit(request("later"))
    bench.assert_idle()


def test_a_step_that_dies_half_way_loses_no_answer(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    bench.engine.submit(request("done", max_tokens=1))
    bench.engine.submit(request("open", max_tokens=9, ignore_eos=True))
    bench.step()
    report = bench.engine._tally.report
    bench.engine._tally.report = lambda scheduler: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(ZeroDivisionError):
        bench.step()
    bench.engine._tally.report = report  # type: ignore[method-assign]
    found = answers(bench.engine.shut_down(EngineError("it broke")))
    assert found["done"].last.finish_reason is FinishReason.LENGTH
    assert found["open"].last.error == "it broke"


def test_a_step_that_dies_before_it_tells_loses_no_answer(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    bench.engine.submit(request("done", max_tokens=1))
    bench.engine.submit(request("open", max_tokens=9, ignore_eos=True))
    bench.step()
    bench.engine._tally.token = lambda sequence, now: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(ZeroDivisionError):
        bench.step()
    events = bench.engine.shut_down(EngineError("it broke"))
    assert [(event.request_id, event.error) for event in events] == [("done", "it broke"), ("open", "it broke")]
    bench.assert_idle()


# ---- streams


class Gate:
    def __init__(self) -> None:
        self.is_open = True

    def may_send(self, request_id: str, now: float) -> bool:
        return self.is_open


def test_tokens_gather_while_the_gate_is_closed(num_candidates: int) -> None:
    gate = Gate()
    bench = Bench(num_candidates, gate=gate)
    gate.is_open = False
    bench.engine.submit(request(stream=True, max_tokens=8, ignore_eos=True))
    assert len(bench.step(2)) == 1, "the first token waits for nobody"
    assert bench.step(3) == []
    gate.is_open = True
    assert [len(event.token_ids) for event in bench.step()] == [4]
    gate.is_open = False
    bench.step(3)
    assert [len(event.token_ids) for event in bench.events] == [1, 4, 3], "the last event waits for nobody"
    assert answers(bench.events)["r"].token_ids == expected_greedy([1, 2, 3], 8, VOCAB)


def test_streams_share_the_event_rate(num_candidates: int) -> None:
    bench = Bench(
        num_candidates, settings=plain_settings(max_events_per_second=52)
    )  # 38 ms each for two; a step takes 10 ms
    script(bench, "")
    for i in range(2):
        bench.engine.submit(request(f"r{i}", stream=True, max_tokens=24))
    while bench.engine.has_work:
        bench.step()
        bench.clock.now += 0.01
    for i in range(2):
        assert [len(event.token_ids) for event in answers(bench.events)[f"r{i}"].events] == [1, 4, 4, 4, 4, 4, 3]


def test_silent_streams_get_heartbeats(num_candidates: int) -> None:
    bench = Bench(num_candidates, limits=Limits(1, 64, 8, VOCAB))
    bench.engine.submit(request("held", stream=True, max_tokens=60, stop=("z" * 100,)))
    script(bench, "")
    for i in range(4):
        bench.engine.submit(request(f"queued{i}", stream=True))
    bench.engine.submit(request("whole"))
    beats = []
    for _ in range(10):
        bench.clock.now += 0.125
        beats += [(event.request_id, bench.clock.now - 100) for event in bench.step()]
    assert beats == [(name, at) for at in (0.375, 0.75, 1.125) for name in ("held", "queued0", "queued1")]
    assert not any(event.token_ids or event.is_last for event in bench.events)


def test_whole_answers_get_the_heartbeats_that_they_ask_for(num_candidates: int) -> None:
    bench = Bench(num_candidates, limits=Limits(1, 64, 8, VOCAB))
    for name, heartbeat_ms in (("held", 250), ("queued", 500), ("never", None)):
        bench.engine.submit(request(name, [1, 2, 3], max_tokens=9, ignore_eos=True, heartbeat_ms=heartbeat_ms))
    beats = []
    while not any(event.is_last for event in bench.events):
        bench.clock.now += 0.125
        beats += [event.request_id for event in bench.step() if not event.is_last]
    assert beats == ["held", "held", "queued", "held", "held", "queued"]
    (last,) = [event for event in bench.events if event.is_last]
    assert list(last.token_ids) == expected_greedy([1, 2, 3], 9, VOCAB), "no heartbeat took a part of the answer along"
    assert [event.usage.completion_tokens for event in bench.events if event.request_id == "held"] == [1, 3, 5, 7, 9]


def test_a_stream_sets_its_own_heartbeat(num_candidates: int) -> None:
    bench = Bench(num_candidates, limits=Limits(1, 64, 8, VOCAB))
    script(bench, "")
    bench.engine.submit(request("slow", stream=True, max_tokens=60, stop=("z" * 100,), heartbeat_ms=1000))
    for _ in range(17):
        bench.clock.now += 0.125
        bench.step()
    assert len(bench.events) == 2


def test_no_heartbeat_passes_a_closed_gate(num_candidates: int) -> None:
    gate = Gate()
    gate.is_open = False
    bench = Bench(num_candidates, gate=gate)
    script(bench, "")
    bench.engine.submit(request(stream=True, max_tokens=60, stop=("z" * 100,)))
    for _ in range(10):
        bench.clock.now += 0.1
        assert bench.step() == []


# ---- measures


def test_metrics(num_candidates: int) -> None:
    bench = Bench(num_candidates)
    prompt = list(range(1, 31))
    bench.run(request("a", prompt, max_tokens=4, ignore_eos=True, arrival=99.0))
    bench.run(request("b", prompt, max_tokens=4, ignore_eos=True))
    bench.engine.submit(request("c", [40, 41, 42], max_tokens=50, ignore_eos=True))
    bench.step()
    metrics = bench.metrics
    assert metrics.value(RUNNING) == 1
    assert metrics.value(SLOTS, "busy") == 1
    assert metrics.value(KV_CACHE_USAGE) == 1 / bench.limits.num_slots
    bench.engine.cancel(["c"])
    bench.step()
    assert metrics.value(REQUESTS, "length") == 2
    assert metrics.value(REQUESTS, "cancelled") == 1
    assert metrics.value(TOKENS_IN) == 63
    assert metrics.value(TOKENS_OUT) == 9
    assert metrics.value(PREFIX_HIT_TOKENS) == 29
    assert metrics.value(RUNNING) == 0
    assert metrics.histogram(TIME_TO_FIRST_TOKEN).num_values == 3
    assert metrics.histogram(TIME_TO_FIRST_TOKEN).total == pytest.approx(1.04 + 0.01 + 0.01)
    assert metrics.histogram(INTER_TOKEN_LATENCY).num_values == 6
    assert sum(metrics.histogram(INTER_TOKEN_LATENCY).counts[3:5]) == 6  # 10 ms each, a bound, with its rounding
    assert metrics.value(KV_CACHE_USAGE) == 0


def test_what_is_measured_of_a_whole_request(num_candidates: int) -> None:
    """Once each, when it ends: of one that came 1 s ago and ran, of one that was late in the queue, none of one that
    failed."""
    bench = Bench(num_candidates, limits=Limits(1, 64, 8, VOCAB))
    bench.engine.submit(request("ran", list(range(1, 31)), max_tokens=4, ignore_eos=True, arrival=99.0))
    bench.engine.submit(request("late", [7, 8], max_tokens=4, arrival=100.0, deadline=100.02))
    bench.drain()
    answer = answers(bench.events)["ran"].last
    prompts, tokens = (bench.metrics.histogram(m) for m in (REQUEST_PROMPT_TOKENS, REQUEST_GENERATION_TOKENS))
    queue, whole = (bench.metrics.histogram(m) for m in (REQUEST_QUEUE_TIME, E2E_REQUEST_LATENCY))
    assert [one.num_values for one in (prompts, tokens, queue, whole)] == [2, 2, 2, 2]
    assert (prompts.total, tokens.total) == (32, 4)
    waited = bench.metrics.value(REQUESTS, "deadline")
    assert waited == 1
    late = answers(bench.events)["late"].last
    assert queue.total == pytest.approx(1.0 + late.stages.queue_ms / 1e3)
    ran_ms = answer.stages.queue_ms + answer.stages.prefill_ms + answer.stages.decode_ms
    assert whole.total == pytest.approx((ran_ms + late.stages.queue_ms) / 1e3)
    assert ran_ms / 1e3 == pytest.approx(bench.clock.now - 99.0, abs=0.05)
    bench.engine.submit(request("fails", [1, 2]))
    bench.engine.shut_down()
    assert bench.metrics.value(REQUESTS, "error") == 1
    assert prompts.num_values == bench.metrics.histogram(REQUEST_PROMPT_TOKENS).num_values == 2


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_queue", 0, "between 1 and 1000000"),
        ("token_budget", -4, "between 0"),
        ("heartbeat_ms", float("nan"), "between 1"),
        ("max_events_per_second", -1.0, "between 0"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float, allowed: str) -> None:
    with pytest.raises(InvalidRequest, match=f"the setting {name} is {value}; it must be {allowed}"):
        plain_settings(**{name: value})  # type: ignore[arg-type]


# ---- anything at any time


@dataclass(frozen=True)
class Visitor:
    arrives: int  # before this step
    prompt: list[int]
    stream: bool
    max_tokens: int
    leaves: int | None  # cancels before this step
    deadline: int | None  # at this step
    stop: tuple[str, ...]


PROMPTS = st.builds(
    lambda family, shared, own: [(family * 7 + i) % 60 for i in range(shared)] + own,
    st.integers(0, 2),
    st.integers(0, 40),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
)
VISITORS = st.builds(
    Visitor,
    arrives=st.integers(0, 25),
    prompt=PROMPTS,
    stream=st.booleans(),
    max_tokens=st.integers(1, 14),
    leaves=st.none() | st.integers(0, 40),
    deadline=st.none() | st.integers(0, 40),
    stop=st.sampled_from([(), ("a",), ("bc", "Z")]),
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(VISITORS, min_size=1, max_size=14),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 40),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.sampled_from(NUM_CANDIDATES),
)
def test_whatever_comes_and_goes(
    visitors: list[Visitor],
    prefix_reuse: bool,
    num_slots: int,
    budget: int,
    gate_opens: list[bool],
    num_candidates: int,
) -> None:
    gate = Gate()
    limits = Limits(num_slots, 64, 8, VOCAB)
    bench = Bench(num_candidates, limits, plain_settings(prefix_reuse=prefix_reuse, token_budget=budget), gate)
    for now in range(42):
        gate.is_open = gate_opens[now % 5]
        for i, visitor in enumerate(visitors):
            if visitor.arrives == now:
                deadline = None if visitor.deadline is None else 100 + visitor.deadline * 0.01
                bench.engine.submit(
                    request(
                        f"v{i}",
                        visitor.prompt,
                        stream=visitor.stream,
                        max_tokens=visitor.max_tokens,
                        stop=visitor.stop,
                        deadline=deadline,
                    )
                )
        bench.engine.cancel(f"v{i}" for i, visitor in enumerate(visitors) if visitor.leaves == now)
        bench.step()
    bench.drain()
    bench.assert_idle()
    found = answers(bench.events)
    assert len(found) == len(visitors), "a request was lost"
    for i, visitor in enumerate(visitors):
        check_answer(found[f"v{i}"], visitor)


def check_answer(answer: Answer, visitor: Visitor) -> None:
    assert [event.is_last for event in answer.events] == [False] * (len(answer.events) - 1) + [True]
    assert visitor.stream or len(answer.events) == 1
    assert answer.last.usage.completion_tokens == len(answer.token_ids)
    token_ids, text, reason = expected_end(visitor)
    if answer.last.finish_reason in (FinishReason.CANCELLED, FinishReason.DEADLINE):
        assert visitor.leaves is not None or visitor.deadline is not None
        assert answer.token_ids == token_ids[: len(answer.token_ids)]
        assert answer.text(TEXT) == TEXT.decode(answer.token_ids, True)
    else:
        assert (answer.token_ids, answer.text(TEXT), answer.last.finish_reason) == (token_ids, text, reason)


def expected_end(visitor: Visitor) -> tuple[list[int], str, FinishReason]:
    """What an undisturbed visitor is answered, found by looking at the text after each token."""
    longest = min(visitor.max_tokens, 64 - len(visitor.prompt))
    whole = expected_greedy(visitor.prompt, longest, VOCAB, frozenset([END]))
    for count in range(1, len(whole) + 1):
        text = TEXT.decode(whole[:count], True)
        if places := [text.find(stop) for stop in visitor.stop if stop in text]:
            return whole[:count], text[: min(places)], FinishReason.STOP
    return whole, TEXT.decode(whole, True), FinishReason.STOP if whole[-1] == END else FinishReason.LENGTH
