"""The cache of whole answers and requests that share a slot: nobody's answer differs from the one computed alone."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from autoglm_engine.cache.coalescing import CachingEngine
from autoglm_engine.cache.fingerprint import fingerprint
from autoglm_engine.cache.response_cache import ENTRY_OVERHEAD, Entry, ResponseCache, read_entry
from autoglm_engine.cache.shared_request import SharedRequestGate
from autoglm_engine.cache.tiers import Tier
from autoglm_engine.core import CacheHit, CacheUse, Event, FinishReason, Request, SamplingOptions, Stages, Usage
from autoglm_engine.errors import InvalidRequest, NotCached, QueueFull, ShuttingDown
from autoglm_engine.metrics import (
    CACHE_BYTES,
    CACHE_HITS,
    E2E_REQUEST_LATENCY,
    REQUEST_GENERATION_TOKENS,
    REQUESTS,
)
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import plain_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.engine_bench import END, NUM_CANDIDATES, TEXT, VOCAB, Bench, check_same_logprobs, script
from tests.support.engine.fakes import FakeClock, answers, expected_greedy, request
from tests.support.engine.images import FakeVision
from tests.support.engine.memory_metrics import MemoryMetrics

EOS = (END, 3, 40)


def shared_bench(
    num_candidates: int = 0,
    *,
    inner: object = None,
    num_slots: int = 4,
    tiers: tuple[Tier, ...] = (),
    logits_per_span: int = 1,
    max_kept: int | None = None,
    vision: FakeVision | None = None,
    **options: object,
) -> Bench:
    gate = SharedRequestGate(inner)  # type: ignore[arg-type]
    chosen = plain_settings(**{"cache_mode": "exact", **options})  # type: ignore[arg-type]
    limits = Limits(num_slots, 64, 8, VOCAB, max_logits_per_span=logits_per_span)
    bench = Bench(num_candidates, limits=limits, settings=chosen, gate=gate, eos=EOS, vision=vision)
    bench.engine = CachingEngine(  # type: ignore[assignment]
        bench.engine,
        "digest",
        TEXT,
        chosen,
        gate,
        tiers=tiers,
        metrics=bench.metrics,
        clock=bench.clock,
        max_kept=max_kept,
    )
    return bench


def submit(bench: Bench, *requests: Request) -> None:
    for one in requests:
        bench.events += bench.engine.submit(one) or []


def counted(bench: Bench) -> dict[str, int]:
    found: dict[str, int] = bench.engine.cache_stats  # type: ignore[attr-defined]
    return {name.removeprefix("cache_"): value for name, value in found.items()}


# ---- the fingerprint

SAMPLING = st.builds(
    SamplingOptions,
    max_tokens=st.integers(1, 3),
    min_tokens=st.integers(0, 1),
    temperature=st.sampled_from([0.0, -0.0, 0, 1, 1.0, 0.5]),
    top_k=st.integers(0, 1),
    top_p=st.sampled_from([0.5, 1.0]),
    min_p=st.sampled_from([0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    frequency_penalty=st.sampled_from([0.0, 1.0]),
    seed=st.sampled_from([None, 0, 1, 2**63 - 1, 2**63 - 2]),
    stop=st.sampled_from([(), ("a",), ("b",), ("a", "b"), ('a", "b',)]),
    ignore_eos=st.booleans(),
    logprobs=st.integers(0, 1),
)
REQUESTS_ = st.builds(
    lambda prompt, sampling, tenant, stream, deadline, use: Request(
        "r", np.array(prompt, np.int32), sampling, stream, 0.0, deadline, cache=use, tenant=tenant
    ),
    st.sampled_from([[1], [1, 2], [12], [2, 1]]),
    SAMPLING,
    st.sampled_from(["", "a", "b", "\x00"]),
    st.booleans(),
    st.none() | st.just(5.0),
    st.sampled_from(CacheUse),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["x", "y"]), REQUESTS_, st.sampled_from(["x", "y"]), REQUESTS_, st.data())
@pytest.mark.slow
def test_keys_are_equal_when_and_only_when_nothing_differs_that_changes_the_answer(
    digest: str, one: Request, other_digest: str, other: Request, data: st.DataObject
) -> None:
    for field in data.draw(st.sets(st.sampled_from([f.name for f in dataclasses.fields(SamplingOptions)]))):
        other = replace(other, sampling=replace(other.sampling, **{field: getattr(one.sampling, field)}))
    if data.draw(st.booleans()):
        other_digest, other = (
            digest,
            replace(one, id="s", stream=other.stream, deadline=other.deadline, cache=other.cache),
        )
    same = (digest, one.prompt_ids.tolist(), one.sampling, one.tenant) == (
        other_digest,
        other.prompt_ids.tolist(),
        other.sampling,
        other.tenant,
    )
    assert (fingerprint(digest, one) == fingerprint(other_digest, other)) == same


# ---- the store


def answer(num_tokens: int = 3) -> Event:
    return Event("r", tuple(range(num_tokens)), Usage(1, num_tokens, 0), Stages(), FinishReason.LENGTH, is_first=True)


def found(cache: ResponseCache, key: bytes) -> tuple[Event, float] | None:
    """(the answer, its age), as the caching engine looks for it."""
    if (entry := cache.look(key)) is None:
        return None
    answer = read_entry(key, entry, TEXT)
    cache.was_read(key, entry, answer)
    return None if answer is None else (answer, cache.age(entry))


def test_the_least_recently_used_answer_leaves_first_and_the_bound_holds() -> None:
    metrics, clock = MemoryMetrics(), FakeClock()
    cache = ResponseCache(3 * (ENTRY_OVERHEAD + 150), 10.0, metrics, clock)
    for key in (b"a", b"b", b"c"):
        cache.keep(key, answer())
    assert found(cache, b"a") is not None
    cache.keep(b"d", answer())
    assert [found(cache, key) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    cache.keep(b"huge", answer(10_000))
    assert found(cache, b"huge") is None
    assert (cache.stats.evictions, cache.stats.entries, cache.stats.stores) == (1, 3, 4)
    assert metrics.value(CACHE_BYTES) == cache.stats.bytes <= 3 * (ENTRY_OVERHEAD + 150)
    assert cache.flush() == 3
    assert (cache.stats.bytes, cache.stats.entries, found(cache, b"a")) == (0, 0, None)


def test_an_answer_lives_for_its_time_and_keeping_it_again_renews_it() -> None:
    clock = FakeClock()
    cache = ResponseCache(10_000, 10.0, MemoryMetrics(), clock)
    cache.keep(b"a", answer())
    clock.now += 9
    kept = found(cache, b"a")
    assert kept is not None and kept[1] == 9
    cache.keep(b"a", answer())
    clock.now += 9
    assert found(cache, b"a") is not None
    clock.now += 1
    assert found(cache, b"a") is None
    assert (cache.stats.expired, cache.stats.bytes) == (1, 0)


def test_an_answer_that_does_not_fit_takes_the_one_before_with_it() -> None:
    metrics = MemoryMetrics()
    cache = ResponseCache(2 * ENTRY_OVERHEAD, 10.0, metrics, FakeClock())
    cache.keep(b"a", answer())
    cache.keep(b"a", answer(10_000))
    assert found(cache, b"a") is None
    assert (cache.stats.entries, cache.stats.bytes, metrics.value(CACHE_BYTES)) == (0, 0, 0)


def test_a_long_kept_answer_is_read_while_steps_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = shared_bench()
    submit(bench, request("first", ignore_eos=True))
    bench.drain()
    stepped: list[str] = []

    def slow(key: bytes, entry: Entry, text: object) -> Event | None:
        submit(bench, request("other", [7], ignore_eos=True))
        stepper = threading.Thread(target=bench.step, daemon=True)
        stepper.start()
        stepper.join(60)
        stepped.append("waits" if stepper.is_alive() else "done")
        return read_entry(key, entry, TEXT)

    monkeypatch.setattr("autoglm_engine.cache.kept_answers.read_entry", slow)
    submit(bench, request("again", ignore_eos=True))
    bench.drain()
    assert stepped == ["done"]
    assert answers(bench.events)["again"].last.cache_hit is CacheHit.EXACT
    assert answers(bench.events)["again"].token_ids == answers(bench.events)["first"].token_ids


@pytest.mark.parametrize("how", ["flushed", "gone", "damaged"])
def test_what_happens_to_an_entry_while_it_is_read(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    bench = shared_bench()
    submit(bench, request("first", ignore_eos=True))
    bench.drain()

    def meanwhile(key: bytes, entry: Entry, text: object) -> Event | None:
        if how == "flushed":
            bench.engine.flush()  # type: ignore[attr-defined]
        if how == "gone":
            bench.engine._kept._cache.flush()  # type: ignore[attr-defined]
        return None if how == "damaged" else read_entry(key, entry, TEXT)

    monkeypatch.setattr("autoglm_engine.cache.kept_answers.read_entry", meanwhile)
    submit(bench, request("again", ignore_eos=True))
    bench.drain()
    found = answers(bench.events)
    assert found["again"].token_ids == found["first"].token_ids
    assert found["again"].last.cache_hit is (CacheHit.EXACT if how == "gone" else CacheHit.NONE)
    bench.assert_idle()


def test_a_reader_that_leaves_others_is_counted_what_it_was_sent() -> None:
    """The engine has taken more: it holds back what may begin a stop string."""
    bench = shared_bench()
    script(bench, "xyabcabc")
    one = request("stays", stream=True, max_tokens=20, stop=("abcabcd",))
    submit(bench, one, replace(one, id="leaves"))
    bench.step(6)
    bench.engine.cancel(["leaves"])
    bench.step()
    left = answers(bench.events)["leaves"]
    assert left.last.finish_reason is FinishReason.CANCELLED
    assert left.text(TEXT) == "xy" and left.last.usage.completion_tokens == len(left.token_ids) == 2
    bench.drain()
    bench.assert_idle()


@given(st.data())
def test_a_damaged_answer_is_a_miss(data: st.DataObject) -> None:
    cache = ResponseCache(10_000, 10.0, MemoryMetrics(), FakeClock())
    cache.keep(b"a", answer())
    entry = cache._entries[b"a"]
    at = data.draw(st.integers(0, len(entry.content) - 1))
    broken = bytearray(entry.content)
    broken[at] ^= data.draw(st.integers(1, 255))
    cache._entries[b"a"] = replace(entry, content=bytes(broken))
    assert found(cache, b"a") is None
    assert (cache.stats.corrupted, cache.stats.misses, cache.stats.hits) == (1, 1, 0)
    cache.keep(b"a", answer())
    cache._entries[b"b"] = cache._entries[b"a"]  # another request's
    assert found(cache, b"b") is None


# ---- hits


@pytest.fixture(params=NUM_CANDIDATES, ids=["logits", "candidates"])
def num_candidates(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_a_hit_is_the_same_answer_without_a_step(num_candidates: int) -> None:
    bench = shared_bench(num_candidates)
    submit(bench, request("first", max_tokens=6, ignore_eos=True, stream=True, logprobs=2))
    bench.drain()
    steps = bench.engine.stats.steps
    bench.clock.now += 2
    submit(bench, request("second", max_tokens=6, ignore_eos=True, logprobs=2))
    found = answers(bench.events)
    first, second = found["first"], found["second"].last
    assert list(second.token_ids) == first.token_ids
    assert second.logprobs == tuple(entry for event in first.events for entry in event.logprobs)
    assert (second.usage, second.finish_reason) == (first.last.usage, first.last.finish_reason)
    assert (second.is_first, second.cache_hit, second.cache_age_ms) == (True, CacheHit.EXACT, pytest.approx(2000))
    assert {event.cache_hit for event in first.events} == {CacheHit.NONE}
    assert (bench.engine.stats.steps, bench.engine.has_work) == (steps, False)
    assert (bench.metrics.value(CACHE_HITS), bench.metrics.value(REQUESTS, "length")) == (1, 2)
    assert bench.metrics.histogram(REQUEST_GENERATION_TOKENS).total == 12
    whole, took_ms = bench.metrics.histogram(E2E_REQUEST_LATENCY), sum(dataclasses.astuple(first.last.stages))
    assert whole.num_values == 2
    assert whole.total == pytest.approx(took_ms / 1e3), "a kept answer takes no time, whatever it took to make it"


def test_a_hit_passes_a_full_queue(num_candidates: int) -> None:
    bench = shared_bench(num_candidates, max_queue=1)
    submit(bench, request("first", [9, 9]))
    bench.drain()
    submit(bench, request("waits", [8]))
    with pytest.raises(QueueFull):
        submit(bench, request("refused", [7]))
    submit(bench, request("hit", [9, 9]))
    assert bench.events[-1].cache_hit is CacheHit.EXACT
    bench.drain()
    submit(bench, request("refused", [7]))  # nothing of the refused one is left
    bench.drain()
    assert answers(bench.events)["refused"].last.cache_hit is CacheHit.NONE


@pytest.mark.parametrize(
    ("options", "kept"),
    [({}, True), ({"temperature": 1.0, "seed": 3}, True), ({"temperature": 1.0}, False)],
)
def test_only_repeatable_answers_are_kept_unless_asked(options: dict[str, float], kept: bool) -> None:
    for sampled in (False, True):
        bench = shared_bench(cache_sampled=sampled)
        for name in ("a", "b"):
            submit(bench, request(name, **options))
            bench.drain()
        assert (answers(bench.events)["b"].last.cache_hit is CacheHit.EXACT) == (kept or sampled)


def test_bypass_refresh_and_only() -> None:
    bench = shared_bench()

    def ask(name: str, use: CacheUse, tenant: str = "") -> CacheHit:
        submit(bench, replace(request(name), cache=use, tenant=tenant))
        bench.drain()
        return answers(bench.events)[name].last.cache_hit

    with pytest.raises(NotCached, match="not cached"):
        ask("only", CacheUse.ONLY)
    assert ask("bypass", CacheUse.BYPASS) is CacheHit.NONE
    assert counted(bench)["stores"] == 0
    assert ask("default", CacheUse.DEFAULT) is CacheHit.NONE
    bench.clock.now += 100
    assert ask("refresh", CacheUse.REFRESH) is CacheHit.NONE
    assert ask("hit", CacheUse.ONLY) is CacheHit.EXACT
    assert answers(bench.events)["hit"].last.cache_age_ms == pytest.approx(0)
    assert ask("other", CacheUse.DEFAULT, "tenant") is CacheHit.NONE
    assert bench.engine.flush() == 2  # type: ignore[attr-defined]
    assert ask("again", CacheUse.DEFAULT) is CacheHit.NONE


def test_what_was_under_way_before_a_refresh_does_not_replace_it_when_it_ends_later() -> None:
    bench = shared_bench(cache_sampled=True)
    sampled = {"temperature": 2.0, "max_tokens": 6, "ignore_eos": True}
    submit(bench, request("old", **sampled))
    bench.step(3)
    slow = bench.engine._subscriptions._by_id.copy()  # type: ignore[attr-defined]
    submit(bench, replace(request("anew", **sampled), cache=CacheUse.REFRESH), request("joins", **sampled))
    engine_step = bench.engine._engine.step  # type: ignore[attr-defined]
    held: list[Event] = []

    def old_ends_last() -> list[Event]:
        events = engine_step()
        held.extend(event for event in events if event.request_id in slow and event.is_last)
        return [event for event in events if event not in held]

    bench.engine._engine.step = old_ends_last  # type: ignore[attr-defined]
    bench.step(20)
    bench.engine._engine.step = lambda: [*held, *engine_step()]  # type: ignore[attr-defined]
    bench.step()
    submit(bench, request("later", **sampled))
    found = answers(bench.events)
    assert found["joins"].token_ids == found["later"].token_ids == found["anew"].token_ids != found["old"].token_ids
    assert [found[name].last.cache_hit for name in ("joins", "later")] == [CacheHit.COALESCED, CacheHit.EXACT]


def test_a_late_cancel_does_not_meet_the_next_request_of_that_name() -> None:
    bench = shared_bench()
    submit(bench, request(max_tokens=1, ignore_eos=True))
    bench.runner.before_forward = lambda batch: bench.engine.cancel(["r"]) and None  # it ends in this very step
    bench.step(2)
    bench.runner.before_forward = lambda batch: None
    submit(bench, request(max_tokens=2, ignore_eos=True))
    bench.drain()
    assert [event.finish_reason for event in bench.events] == [FinishReason.LENGTH] * 2


def test_what_is_in_flight_at_a_flush_is_not_kept() -> None:
    bench = shared_bench()
    submit(bench, request("a", ignore_eos=True))
    bench.step(2)
    bench.engine.flush()  # type: ignore[attr-defined]
    bench.drain()
    assert counted(bench)["stores"] == 0


def test_incomplete_answers_are_not_kept() -> None:
    bench = shared_bench()
    submit(bench, request("cancelled", ignore_eos=True), request("late", [5], deadline=100.04, ignore_eos=True))
    bench.step(3)
    assert bench.engine.cancel(["cancelled"]) == 1
    bench.drain()
    found = answers(bench.events)
    assert found["cancelled"].last.finish_reason is FinishReason.CANCELLED
    assert found["late"].last.finish_reason is FinishReason.DEADLINE
    assert found["late"].token_ids == expected_greedy([5], len(found["late"].token_ids), VOCAB) != []
    assert counted(bench)["stores"] == 0
    bench.assert_idle()


# ---- shared slots


def test_equal_requests_share_a_slot_and_each_reads_all_of_it(num_candidates: int) -> None:
    bench = shared_bench(num_candidates)
    submit(bench, request("leads", stream=True, max_tokens=8, ignore_eos=True))
    bench.step(4)
    submit(bench, request("streams", stream=True, max_tokens=8, ignore_eos=True))
    submit(bench, request("waits", max_tokens=8, ignore_eos=True))
    bench.drain()
    found = answers(bench.events)
    for name in ("leads", "streams", "waits"):
        assert found[name].token_ids == expected_greedy([1, 2, 3], 8, VOCAB)
        assert [event.is_first for event in found[name].events].index(True) == 0
    assert len(found["waits"].events) == 1
    assert len(found["streams"].events[0].token_ids) > 1, "it did not begin with what was there already"
    assert len(found["streams"].events) > 2
    assert {event.cache_hit for event in found["streams"].events} == {CacheHit.COALESCED}
    assert max(len(batch.spans) for batch in bench.runner.batches) == 1
    assert counted(bench)["coalesced"] == 2
    assert bench.metrics.value(REQUESTS, "length") == 3
    bench.assert_idle()


@pytest.mark.parametrize("leaver", ["leads", "follows"])
@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_one_that_leaves_does_not_end_the_others(leaver: str, how: str) -> None:
    bench = shared_bench()
    for name in ("leads", "follows"):
        late = 100.03 if how == "deadline" and name == leaver else None
        submit(bench, request(name, stream=True, max_tokens=9, ignore_eos=True, deadline=late))
    bench.step(3)
    if how == "cancel":
        assert bench.engine.cancel([leaver]) == 1
    bench.drain()
    found = answers(bench.events)
    stays = found["follows" if leaver == "leads" else "leads"]
    assert stays.token_ids == expected_greedy([1, 2, 3], 9, VOCAB)
    assert found[leaver].last.finish_reason is (FinishReason.CANCELLED if how == "cancel" else FinishReason.DEADLINE)
    assert 0 < len(found[leaver].token_ids) < 9
    bench.assert_idle()


def test_when_all_have_left_the_slot_is_free() -> None:
    bench = shared_bench()
    submit(bench, *(request(name, stream=True, max_tokens=40, ignore_eos=True) for name in "abc"))
    bench.step(2)
    bench.engine.cancel("abc")
    bench.step(1)
    assert not bench.engine.has_work
    assert [answers(bench.events)[name].last.finish_reason for name in "abc"] == [FinishReason.CANCELLED] * 3
    bench.assert_idle()


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_string_cuts_everyones_text(stream: bool) -> None:
    bench = shared_bench()
    script(bench, "hello END more")
    submit(bench, request("a", stream=stream, max_tokens=20, stop=("END",), ignore_eos=True))
    bench.step(4)
    submit(bench, request("b", stream=not stream, max_tokens=20, stop=("END",), ignore_eos=True))
    bench.drain()
    submit(bench, request("c", max_tokens=20, stop=("END",), ignore_eos=True))
    assert {name: answer.text(TEXT) for name, answer in answers(bench.events).items()} == dict.fromkeys("abc", "hello ")


def test_a_failure_and_the_end_reach_everybody() -> None:
    bench = shared_bench()
    submit(bench, request("a", stream=True, ignore_eos=True), request("b", ignore_eos=True))
    bench.step(2)
    with pytest.raises(InvalidRequest, match="in use"):
        submit(bench, request("a"))
    bench.events += bench.engine.shut_down()
    assert {event.request_id: event.error for event in bench.events if event.is_last} == dict.fromkeys(
        "ab", "the server is shutting down"
    )
    with pytest.raises(ShuttingDown):
        submit(bench, request("c"))


def test_a_reader_that_is_behind_holds_nobody_up_and_gets_everything() -> None:
    class Slow:
        def may_send(self, request_id: str, now: float) -> bool:
            return request_id != "slow"

    bench = shared_bench(inner=Slow())
    submit(bench, *(request(name, stream=True, max_tokens=20, ignore_eos=True) for name in ("slow", "fast")))
    bench.drain()
    found = answers(bench.events)
    assert (len(found["slow"].events), len(found["fast"].events)) == (2, 20)
    assert found["slow"].token_ids == found["fast"].token_ids == expected_greedy([1, 2, 3], 20, VOCAB)


def test_followers_are_bounded_and_silence_is_broken_for_all() -> None:
    bench = shared_bench(max_queue=2, num_slots=1, heartbeat_ms=20)
    submit(bench, request("busy", [7], max_tokens=30, ignore_eos=True))
    bench.step(2)
    submit(bench, *(request(name, stream=True) for name in "abc"))
    with pytest.raises(QueueFull):
        submit(bench, request("d", stream=True))
    bench.step(10)
    assert {event.request_id for event in bench.events if not event.token_ids} == set("abc")
    bench.drain()
    submit(bench, request("d", stream=True))
    assert bench.events[-1].cache_hit is CacheHit.EXACT


def test_readers_of_whole_answers_get_their_own_heartbeats() -> None:
    bench = shared_bench()
    for name, more in {"a": {"heartbeat_ms": 100}, "b": {"heartbeat_ms": 200}, "c": {}, "d": {"stream": True}}.items():
        submit(bench, request(name, max_tokens=20, ignore_eos=True, **more))
    while bench.engine.has_work:
        bench.clock.now += 0.04
        bench.step()
    found = answers(bench.events)
    assert len(found["c"].events) == 1 and len(found["a"].events) > len(found["b"].events) > 2
    for name in "abcd":
        assert found[name].token_ids == expected_greedy([1, 2, 3], 20, VOCAB), name
    assert not any(event.token_ids for name in "ab" for event in found[name].events[:-1])
    assert found["a"].events[0].usage.completion_tokens > 0


def test_a_closed_gate_holds_heartbeats_of_whole_answers() -> None:
    class Closed:
        def may_send(self, request_id: str, now: float) -> bool:
            return False

    bench = shared_bench(inner=Closed())
    submit(bench, request("a", max_tokens=20, ignore_eos=True, heartbeat_ms=100))
    while bench.engine.has_work:
        bench.clock.now += 0.04
        bench.step()
    assert len(bench.events) == 1


# ---- no answer changes

OPTIONS = st.fixed_dictionaries(
    {"max_tokens": st.sampled_from([3, 9]), "temperature": st.sampled_from([0.0, 0.0, 1.0])},
    optional={
        "seed": st.integers(0, 1),
        "stop": st.sampled_from([("a",), ("b", "Zq")]),
        "ignore_eos": st.booleans(),
        "logprobs": st.just(2),
        "stream": st.booleans(),
        "heartbeat_ms": st.just(100),
        "top_k": st.just(3),
    },
)


@dataclass(frozen=True)
class Visit:
    request: Request
    arrives: int
    leaves: int | None


@st.composite
def visits(draw: st.DrawFn) -> list[Visit]:
    found = []
    for i in range(draw(st.integers(1, 12))):
        one = request(f"v{i}", draw(st.sampled_from([[1], [2, 1], [1, 2, 3, 4]])), **draw(OPTIONS))
        deadline = draw(st.none() | st.none() | st.floats(100.0, 100.2))
        use = draw(st.sampled_from([CacheUse.DEFAULT, CacheUse.DEFAULT, *CacheUse]))
        one = replace(one, deadline=deadline, cache=use, tenant=draw(st.sampled_from(["", "a"])))
        found.append(Visit(one, draw(st.integers(0, 30)), draw(st.none() | st.none() | st.integers(0, 30))))
    return found


def spoil(bench: Bench) -> None:
    entries = bench.engine._kept._cache._entries  # type: ignore[attr-defined]
    for key, entry in list(entries.items())[:1]:
        entries[key] = replace(entry, content=entry.content.replace(b"1", b"2", 1))


TRICKS: dict[str, Callable[[Bench], object]] = {
    "nothing": lambda bench: None,
    "flush": lambda bench: bench.engine.flush(),  # type: ignore[attr-defined]
    "spoil": spoil,
    "wait": lambda bench: setattr(bench.clock, "now", bench.clock.now + 0.5),
}


@settings(max_examples=120, deadline=None)
@given(
    visits(),
    st.integers(1, 3),
    st.sampled_from([1200, 100_000]),
    st.lists(st.sampled_from(sorted(TRICKS)), min_size=31, max_size=31),
)
@pytest.mark.slow
def test_no_answer_differs_from_the_one_computed_alone(
    callers: list[Visit], num_slots: int, cache_bytes: int, tricks: list[str]
) -> None:
    for num_candidates in NUM_CANDIDATES:
        bench = shared_bench(num_candidates, num_slots=num_slots, cache_bytes=cache_bytes, cache_ttl_seconds=0.4)
        refused = set()
        for step, trick in enumerate(tricks):
            TRICKS[trick](bench)
            for caller in (c for c in callers if c.arrives == step):
                try:
                    submit(bench, caller.request)
                except NotCached:
                    refused.add(caller.request.id)
            bench.engine.cancel(c.request.id for c in callers if c.leaves == step)
            bench.step()
        bench.drain()
        bench.assert_idle()
        check(bench.events, [c for c in callers if c.request.id not in refused])
        assert refused <= {c.request.id for c in callers if c.request.cache is CacheUse.ONLY}
        assert counted(bench)["bytes"] <= cache_bytes


def check(events: list[Event], callers: list[Visit], also_shared: Sequence[Visit] = ()) -> None:
    """`also_shared`: others whose flights the callers may have read."""
    found = answers(events)
    assert set(found) == {caller.request.id for caller in callers}
    by_tenant: dict[bytes, set[str]] = {}
    for caller in callers:
        one, got = caller.request, found[caller.request.id]
        assert sum(event.is_last for event in got.events) == 1 and got.last.is_last
        assert one.stream or one.heartbeat_ms or len(got.events) == 1
        assert one.stream or not any(event.token_ids for event in got.events[:-1])
        assert [event.is_first for event in got.events if event.token_ids] in (
            [],
            [True, *[False] * (sum(bool(e.token_ids) for e in got.events) - 1)],
        )
        key = fingerprint("", replace(one, tenant=""))
        if got.last.cache_hit is not CacheHit.NONE:
            assert one.cache in (CacheUse.DEFAULT, CacheUse.ONLY)
            assert one.tenant in by_tenant.get(key, set()) or any(
                c.request.tenant == one.tenant and fingerprint("", replace(c.request, tenant="")) == key
                for c in [*callers, *also_shared]
                if c is not caller and c.request.cache is not CacheUse.BYPASS
            ), "answered from another tenant's"
        if one.sampling.temperature and one.sampling.seed is None:
            assert got.last.cache_hit is CacheHit.NONE
            continue
        alone = Bench(0, limits=Limits(1, 64, 8, VOCAB), eos=EOS)
        alone.run(replace(one, deadline=None))
        expected = answers(alone.events)[one.id]
        logprobs = [entry for event in got.events for entry in event.logprobs]
        if got.last.finish_reason in (FinishReason.CANCELLED, FinishReason.DEADLINE):
            assert got.token_ids == expected.token_ids[: len(got.token_ids)]
            continue
        assert (got.token_ids, got.text(TEXT)) == (expected.token_ids, expected.text(TEXT))
        assert got.last.finish_reason is expected.last.finish_reason
        check_same_logprobs(logprobs, [entry for event in expected.events for entry in event.logprobs])
        assert got.last.usage.completion_tokens == expected.last.usage.completion_tokens
        assert got.last.usage.prompt_tokens == expected.last.usage.prompt_tokens
