"""Answers that take a while to look up: who waits for them, and what becomes of those that are not there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from autoglm_engine.core import CacheHit, CacheUse, Event, FinishReason, Request
from autoglm_engine.errors import NotCached
from autoglm_engine.tiers import Found
from engine_bench import VOCAB, Bench
from fakes import answers, expected_greedy, request
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sharing import check, counted, shared_bench, submit, visits


@dataclass(eq=False)
class FakeTier:
    """Keeps everything. While it is held, lookups wait."""

    hit: CacheHit = CacheHit.EXACT
    wanted: Callable[[Request], bool] = lambda request: True
    answers: dict[bytes, Event] = field(default_factory=dict)
    num_asked: int = 0
    breaks: bool = False

    def __post_init__(self) -> None:
        self.free = threading.Event()
        self.free.set()

    def wants(self, request: Request) -> bool:
        return self.wanted(request)

    def find(self, key: bytes, request: Request) -> Found | None:
        self.num_asked += 1
        assert self.free.wait(120)
        if self.breaks:
            raise OSError("gone")
        answer = self.answers.get(key)
        return None if answer is None else Found(answer, 5.0, self.hit)

    def keep(self, key: bytes, request: Request, answer: Event) -> None:
        self.answers[key] = replace(answer, request_id="")

    def flush(self) -> None:
        self.answers.clear()

    def close(self) -> None:
        self.free.set()


def settle(bench: Bench) -> None:
    """Until nothing is being looked up."""
    lookups = bench.engine._lookups  # type: ignore[attr-defined]
    until = time.monotonic() + 120
    while lookups.num_pending:
        assert time.monotonic() < until
        time.sleep(0.0005)


def finish(bench: Bench) -> None:
    settle(bench)
    bench.drain()


def test_what_another_process_kept_is_answered_without_a_slot_and_kept_here() -> None:
    tier = FakeTier()
    theirs = shared_bench(tiers=(tier,))
    submit(theirs, request("first", max_tokens=6, ignore_eos=True, logprobs=1))
    finish(theirs)
    ours = shared_bench(tiers=(tier,))
    for name in ("looked up", "kept"):
        submit(ours, request(name, max_tokens=6, ignore_eos=True, logprobs=1, stream=True))
        finish(ours)
    first, found, kept = (answers(b.events)[n] for b, n in ((theirs, "first"), (ours, "looked up"), (ours, "kept")))
    assert (found.token_ids, kept.token_ids) == (first.token_ids, first.token_ids) and len(first.token_ids) == 6
    assert found.last.logprobs == first.last.logprobs
    assert [a.last.cache_hit for a in (first, found, kept)] == [CacheHit.NONE, CacheHit.EXACT, CacheHit.EXACT]
    assert (found.last.cache_age_ms, kept.last.cache_age_ms) == (5000.0, 5000.0), "keeping it does not make it younger"
    assert (ours.engine.stats.steps, tier.num_asked) == (0, 2)
    ours.assert_idle()


def test_a_hit_that_is_not_exact_is_kept_nowhere_and_given_to_those_alone_who_want_such() -> None:
    tier = FakeTier(CacheHit.SEMANTIC, wanted=lambda request: request.user == "lenient")
    bench = shared_bench(tiers=(tier,))
    submit(bench, request("teaches", user="lenient"))
    finish(bench)
    bench.engine._cache.flush()  # type: ignore[attr-defined]
    tier.free.clear()
    submit(bench, request("lenient", user="lenient"), request("strict"))
    tier.free.set()
    finish(bench)
    submit(bench, request("strict again"))
    finish(bench)
    hits = {name: answer.last.cache_hit for name, answer in answers(bench.events).items()}
    assert hits == {
        "teaches": CacheHit.NONE, "lenient": CacheHit.SEMANTIC, "strict": CacheHit.NONE, "strict again": CacheHit.EXACT,
    }  # fmt: skip


def test_equal_requests_share_a_lookup_and_then_a_slot() -> None:
    tier = FakeTier()
    tier.free.clear()
    bench = shared_bench(tiers=(tier,))
    submit(bench, request("a", stream=True, ignore_eos=True), request("b", ignore_eos=True))
    bench.step(2)
    assert not bench.events
    tier.free.set()
    finish(bench)
    assert {n: a.token_ids for n, a in answers(bench.events).items()} == dict.fromkeys("ab", expected_greedy([1, 2, 3], 8, VOCAB))  # fmt: skip
    assert (tier.num_asked, counted(bench)["coalesced"], len(tier.answers)) == (1, 1, 1)


def test_a_tier_that_breaks_costs_nobody_an_answer() -> None:
    bench = shared_bench(tiers=(FakeTier(breaks=True), FakeTier()))
    submit(bench, request("a"))
    finish(bench)
    assert answers(bench.events)["a"].last.finish_reason is not None


def test_only_and_refresh() -> None:
    tier = FakeTier()
    bench = shared_bench(tiers=(tier,))
    submit(bench, replace(request("none"), cache=CacheUse.ONLY))
    finish(bench)
    assert (bench.events[-1].error_code, bench.events[-1].is_last) == ("NOT_FOUND", True)
    submit(bench, replace(request("anew"), cache=CacheUse.REFRESH))
    finish(bench)
    assert (tier.num_asked, len(tier.answers)) == (1, 1)
    bench.engine._cache.flush()  # type: ignore[attr-defined]
    submit(bench, replace(request("found"), cache=CacheUse.ONLY))
    finish(bench)
    assert bench.events[-1].cache_hit is CacheHit.EXACT
    tier.answers.clear()
    bench.engine._cache.flush()  # type: ignore[attr-defined]
    tier.free.clear()
    submit(bench, replace(request("joins"), cache=CacheUse.ONLY), request("computes"))
    tier.free.set()
    finish(bench)
    assert answers(bench.events)["joins"].token_ids == answers(bench.events)["computes"].token_ids != []


@pytest.mark.parametrize("how", ["cancel", "deadline", "shut down"])
def test_who_leaves_during_a_lookup_is_told_at_once(how: str) -> None:
    tier = FakeTier()
    tier.free.clear()
    bench = shared_bench(tiers=(tier,))
    submit(bench, request("a", deadline=100.5 if how == "deadline" else None))
    if how == "cancel":
        assert bench.engine.cancel(["a"]) == 1
    bench.clock.now += 1
    bench.events += bench.engine.shut_down() if how == "shut down" else bench.engine.step()
    (last,) = bench.events
    expected = {"cancel": FinishReason.CANCELLED, "deadline": FinishReason.DEADLINE, "shut down": None}[how]
    assert (last.finish_reason, last.is_last, last.usage.prompt_tokens) == (expected, True, 3)
    tier.free.set()
    if how != "shut down":
        finish(bench)
        bench.assert_idle()
    assert len(bench.events) == 1


def test_a_full_queue_refuses_after_the_lookup_and_nothing_stays_behind() -> None:
    tier = FakeTier()
    bench = shared_bench(tiers=(tier,), max_queue=1)
    submit(bench, request("waits", [8]), request("refused", [7]))
    settle(bench)
    bench.step()
    refused = [event for event in bench.events if event.error_code == "UNAVAILABLE"]
    assert len(refused) == 1
    finish(bench)
    submit(bench, request("again", [7]))
    finish(bench)
    assert answers(bench.events)["again"].last.finish_reason is not None
    bench.assert_idle()


def test_what_is_looked_up_at_a_flush_is_not_kept() -> None:
    tier = FakeTier()
    bench = shared_bench(tiers=(tier,))
    submit(bench, request("a"))
    finish(bench)
    bench.engine._cache.flush()  # type: ignore[attr-defined]
    submit(bench, request("b"))
    settle(bench)  # found, and not handed on yet
    bench.engine.flush()  # type: ignore[attr-defined]
    finish(bench)
    assert (counted(bench)["entries"], len(tier.answers)) == (0, 0)


def test_a_tier_that_ends_may_still_tell_of_anothers_flush() -> None:
    class Watching(FakeTier):
        is_stuck = True

        def close(self) -> None:
            teller = threading.Thread(target=lambda: bench.engine.forget(self), daemon=True)  # type: ignore[attr-defined]
            teller.start()
            teller.join(60)
            self.is_stuck = teller.is_alive()

    tier = Watching()
    bench = shared_bench(tiers=(tier,))
    bench.engine.shut_down()
    bench.engine.close()  # type: ignore[attr-defined]
    assert not tier.is_stuck


@settings(max_examples=60, deadline=None)
@given(visits(), st.integers(1, 3), st.lists(st.sampled_from(["hold", "free", "flush", "settle", "forget", "step"]), min_size=31, max_size=31))  # fmt: skip
@pytest.mark.slow
def test_no_answer_differs_from_the_one_computed_alone(visitors: list, num_slots: int, tricks: list[str]) -> None:  # type: ignore[type-arg]
    tier = FakeTier()
    bench = shared_bench(num_slots=num_slots, tiers=(tier,), cache_ttl_seconds=0.4)
    refused = set()
    for step, trick in enumerate(tricks):
        if trick == "hold":
            tier.free.clear()
        if trick in ("free", "settle"):
            tier.free.set()
        if trick == "settle":
            settle(bench)
        if trick == "flush":
            bench.engine.flush()  # type: ignore[attr-defined]
        if trick == "forget":
            bench.engine._cache.flush()  # type: ignore[attr-defined]
        for visitor in (visitor for visitor in visitors if visitor.arrives == step):
            try:
                submit(bench, visitor.request)
            except NotCached:
                refused.add(visitor.request.id)
        bench.engine.cancel(visitor.request.id for visitor in visitors if visitor.leaves == step)
        bench.step()
    tier.free.set()
    while bench.engine.has_work or bench.engine._lookups.num_pending:  # type: ignore[attr-defined]
        finish(bench)
    bench.assert_idle()
    refused |= {event.request_id for event in bench.events if event.error_code == "NOT_FOUND"}
    assert refused <= {v.request.id for v in visitors if v.request.cache is CacheUse.ONLY}
    kept = [event for event in bench.events if event.request_id not in refused]
    given, turned_away = ([v for v in visitors if (v.request.id in refused) is away] for away in (False, True))
    check(kept, given, turned_away)
    bench.engine.close()  # type: ignore[attr-defined]
