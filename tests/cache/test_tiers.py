"""Answers that take a while to look up: who waits for them, and what becomes of those that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from autoglm_engine.cache.coalescing import CachingEngine
from autoglm_engine.cache.shared_request import SharedRequestGate
from autoglm_engine.cache.tiers import Found
from autoglm_engine.core import CacheHit, CacheUse, Event, FinishReason, Request, Stages, Usage
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.loop import EngineLoop
from autoglm_engine.errors import NotCached
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import plain_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.test_sharing import check, counted, shared_bench, submit, visits
from tests.support.engine.engine_bench import END, TEXT, VOCAB, Bench
from tests.support.engine.fakes import FakeRunner, answers, expected_greedy, request
from tests.support.engine.small_service import until


@dataclass(eq=False)
class FakeTier:
    """Keeps everything. While it is held, lookups wait."""

    hit: CacheHit = CacheHit.EXACT
    wanted: Callable[[Request], bool] = lambda request: True
    answers: dict[bytes, Event] = field(default_factory=dict)
    num_asked: int = 0
    breaks: bool = False
    max_seconds: float = 1e9

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

    def forget(self, key: bytes) -> None:
        self.answers.pop(key, None)

    def flush(self) -> None:
        self.answers.clear()

    def close(self) -> None:
        self.free.set()


def settle(bench: Bench) -> None:
    """Until nothing is being looked up."""
    lookups = bench.engine._lookups  # type: ignore[attr-defined]
    until = time.monotonic() + 120
    while lookups._pending:
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
    bench.engine._kept._cache.flush()  # type: ignore[attr-defined]
    tier.free.clear()
    submit(bench, request("lenient", user="lenient"), request("strict"))
    tier.free.set()
    finish(bench)
    submit(bench, request("strict again"))
    finish(bench)
    hits = {name: answer.last.cache_hit for name, answer in answers(bench.events).items()}
    assert hits == {
        "teaches": CacheHit.NONE,
        "lenient": CacheHit.SEMANTIC,
        "strict": CacheHit.NONE,
        "strict again": CacheHit.EXACT,
    }


def test_equal_requests_share_a_lookup_and_then_a_slot() -> None:
    tier = FakeTier()
    tier.free.clear()
    bench = shared_bench(tiers=(tier,))
    submit(bench, request("a", stream=True, ignore_eos=True), request("b", ignore_eos=True))
    bench.step(2)
    assert not bench.events
    tier.free.set()
    finish(bench)
    assert {n: a.token_ids for n, a in answers(bench.events).items()} == dict.fromkeys(
        "ab", expected_greedy([1, 2, 3], 8, VOCAB)
    )
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
    bench.engine._kept._cache.flush()  # type: ignore[attr-defined]
    submit(bench, replace(request("found"), cache=CacheUse.ONLY))
    finish(bench)
    assert bench.events[-1].cache_hit is CacheHit.EXACT
    tier.answers.clear()
    bench.engine._kept._cache.flush()  # type: ignore[attr-defined]
    tier.free.clear()
    submit(bench, replace(request("joins"), cache=CacheUse.ONLY), request("computes"))
    tier.free.set()
    finish(bench)
    assert answers(bench.events)["joins"].token_ids == answers(bench.events)["computes"].token_ids != []


def test_what_was_looked_up_before_a_refresh_ended_does_not_replace_its_answer() -> None:
    """Who also asks another tier does not join who has the answer computed anew."""
    tier, other = FakeTier(), FakeTier(CacheHit.SEMANTIC, wanted=lambda request: request.user == "lenient")
    bench = shared_bench(tiers=(tier, other), cache_sampled=True)
    sampled = {"temperature": 2.0, "max_tokens": 6, "ignore_eos": True}
    submit(bench, request("old", **sampled))
    finish(bench)
    submit(bench, replace(request("anew", **sampled), cache=CacheUse.REFRESH))
    bench.step()
    bench.engine._kept._cache.flush()  # type: ignore[attr-defined]
    submit(bench, request("meanwhile", user="lenient", **sampled))
    settle(bench)  # it found the old answer
    lookups = bench.engine._lookups  # type: ignore[attr-defined]
    found, take = lookups.take(), lookups.take
    lookups.take = list
    bench.drain()
    lookups.take = lambda: found  # it is handed on after the new one
    bench.step()
    lookups.take = take
    submit(bench, request("later", **sampled))
    told = answers(bench.events)
    assert told["meanwhile"].token_ids == told["old"].token_ids != told["anew"].token_ids
    assert told["later"].token_ids == told["anew"].token_ids
    assert told["later"].last.cache_hit is CacheHit.EXACT


def test_a_refresh_leaves_no_older_answer_where_it_does_not_keep_its_own() -> None:
    tier, other = FakeTier(), FakeTier(wanted=lambda request: request.user == "lenient")
    bench = shared_bench(tiers=(tier, other))
    submit(bench, request("teaches", user="lenient"))
    finish(bench)
    assert len(other.answers) == 1
    submit(bench, replace(request("anew"), cache=CacheUse.REFRESH))
    finish(bench)
    assert (len(tier.answers), len(other.answers)) == (1, 0)
    submit(bench, replace(request("both", user="lenient"), cache=CacheUse.REFRESH))
    finish(bench)
    assert (len(tier.answers), len(other.answers)) == (1, 1)


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


def test_what_stands_in_its_own_way_after_the_lookup_ends_that_request_alone() -> None:
    class Broken:
        is_ready, failure = True, None

        def start(self) -> None:
            raise ValueError("no guide")

    bench = shared_bench(tiers=(FakeTier(),))
    guided = replace(request("broken", guided_regex="a+"), guide=Broken())  # type: ignore[arg-type]
    submit(bench, guided, request("other", [7], ignore_eos=True))
    finish(bench)
    assert bench.events[0].error == "the engine failed on this request: ValueError"
    assert answers(bench.events)["other"].token_ids == expected_greedy([7], 8, VOCAB)
    bench.assert_idle()


def test_what_is_looked_up_at_a_flush_is_not_kept() -> None:
    tier = FakeTier()
    bench = shared_bench(tiers=(tier,))
    submit(bench, request("a"))
    finish(bench)
    bench.engine._kept._cache.flush()  # type: ignore[attr-defined]
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


# ---- tiers that hang


def hung(**options: object) -> FakeTier:
    made = FakeTier(max_seconds=1.0, **options)  # type: ignore[arg-type]
    made.free.clear()
    return made


def begun(tier: FakeTier, count: int) -> None:
    until(lambda: tier.num_asked >= count)


def test_a_tier_that_hangs_has_missed_within_its_time_and_the_next_one_is_asked() -> None:
    stuck, well = hung(), FakeTier()
    teacher = shared_bench(tiers=(well,))
    submit(teacher, request("teaches"))
    finish(teacher)
    bench = shared_bench(tiers=(stuck, well))
    submit(bench, request("known"), request("new", [8], ignore_eos=True))
    begun(stuck, 2)
    bench.clock.now += 0.9
    bench.step()
    assert (bench.events, bench.engine.has_work) == ([], False)
    bench.clock.now += 0.2
    bench.step()
    finish(bench)
    found = answers(bench.events)
    assert found["known"].last.cache_hit is CacheHit.EXACT
    assert found["new"].token_ids == expected_greedy([8], 8, VOCAB)
    bench.assert_idle()
    stuck.close()


def test_nobody_waits_for_a_tier_while_it_hangs_and_it_is_asked_again_once_it_answers() -> None:
    stuck = hung()
    bench = shared_bench(tiers=(stuck,))
    submit(bench, *(request(f"r{i}", [i, 1], ignore_eos=True) for i in range(20)))
    begun(stuck, 8)  # its threads
    bench.clock.now += 1.1
    bench.step()
    bench.drain()
    assert len(answers(bench.events)) == 20, "also those that waited for a thread"
    submit(bench, request("meanwhile", [9, 9], ignore_eos=True))
    assert not bench.engine._lookups._pending  # type: ignore[attr-defined]
    bench.drain()
    assert answers(bench.events)["meanwhile"].token_ids == expected_greedy([9, 9], 8, VOCAB)
    asked = stuck.num_asked
    stuck.free.set()
    lines = bench.engine._lookups._lines.values()  # type: ignore[attr-defined]
    until(lambda: not any(line.num_stuck for line in lines))
    bench.engine._kept._cache.flush()  # type: ignore[attr-defined]
    submit(bench, request("after", [9, 9], ignore_eos=True))
    finish(bench)
    assert stuck.num_asked == asked + 1
    assert answers(bench.events)["after"].last.cache_hit is CacheHit.EXACT
    bench.assert_idle()


def test_what_a_hung_tier_says_in_the_end_is_given_to_nobody() -> None:
    stuck = hung()
    bench = shared_bench(tiers=(stuck,))
    submit(bench, request("r", ignore_eos=True, max_tokens=30))
    begun(stuck, 1)
    bench.clock.now += 1.1
    bench.step(3)
    key, _ = next(iter(bench.engine._subscriptions._by_key))  # type: ignore[attr-defined]
    stuck.answers = dict.fromkeys(stuck.answers) | {key: Event("", (9,), Usage(1, 1, 0), Stages(), FinishReason.LENGTH)}
    stuck.free.set()
    finish(bench)
    assert answers(bench.events)["r"].token_ids == expected_greedy([1, 2, 3], 30, VOCAB)
    assert sum(event.is_last for event in bench.events) == 1


@pytest.mark.parametrize("what", ["deadline", "bound"])
def test_an_idle_loop_keeps_deadlines_and_bounds_while_a_tier_hangs(what: str) -> None:
    """Nothing else comes: it has to look at the time by itself."""
    tier = hung(hit=CacheHit.SEMANTIC)
    tier.max_seconds = 0.05 if what == "bound" else 1e9
    gate, chosen, ended = SharedRequestGate(), plain_settings(cache_mode="exact"), threading.Event()
    events: list[Event] = []
    engine = Engine(FakeRunner(Limits(4, 64, 8, VOCAB)), TEXT, [END], chosen, gate=gate)
    shared = CachingEngine(engine, "digest", TEXT, chosen, gate, tiers=(tier,))
    loop = EngineLoop(shared, lambda event: (events.append(event), ended.set()))
    shared.wake = loop.wake
    loop.start()
    loop.submit(request("r", ignore_eos=True, deadline=time.monotonic() + 0.05 if what == "deadline" else None))
    assert ended.wait(60), "nobody looked at the time"
    assert events[-1].finish_reason is (FinishReason.DEADLINE if what == "deadline" else FinishReason.LENGTH)
    loop.close(60)
    tier.close()


def test_a_thread_that_the_system_refuses_costs_a_lookup_and_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is wanted by who submits, or by who steps, and is there when the system has one again."""
    stuck, well = hung(), FakeTier(max_seconds=1.0)
    bench = shared_bench(tiers=(stuck, well))
    submit(bench, request("steps", ignore_eos=True))
    begun(stuck, 1)
    bench.clock.now += 1.1
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    bench.step()  # asks the next tier
    submit(bench, *(request(f"submits {i}", [7, i], ignore_eos=True) for i in range(10)))
    monkeypatch.setattr(threading.Thread, "start", start)
    bench.clock.now += 1.1
    bench.step()
    bench.drain()
    assert {name: answer.token_ids for name, answer in answers(bench.events).items()} == {
        "steps": expected_greedy([1, 2, 3], 8, VOCAB),
        **{f"submits {i}": expected_greedy([7, i], 8, VOCAB) for i in range(10)},
    }
    asked = well.num_asked
    submit(bench, request("after", [9, 9], ignore_eos=True))
    begun(well, asked + 1)
    finish(bench)
    bench.assert_idle()
    stuck.close()


ENDS = """
import socket, sys, threading, time
from autoglm_engine.system.daemon_threads import DaemonExecutor
from autoglm_engine.metrics import NoMetrics
from autoglm_engine.settings.model import EngineSettings, plain_settings
from tests.support.engine.fakes import request
from tests.cache.test_tiers import FakeTier
from autoglm_engine.cache.lookups import Lookups

asked = threading.Event()
if sys.argv[1] == "lookup":
    tier = FakeTier()
    tier.find = lambda key, request: asked.set() or time.sleep(3600)
    lookups = Lookups([tier], lambda: None, lambda answer: answer)
    lookups.start("f", b"k", request(), (tier,))
else:
    socket.getaddrinfo = lambda *args, **options: asked.set() or time.sleep(3600)
    from autoglm_engine.cache.redis.tier import RedisTier
    lookups = RedisTier(plain_settings(redis_url="redis://hangs.invalid:1"), NoMetrics())
assert asked.wait(60)
lookups.close()
print("ends", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["lookup", "name"])
def test_a_process_ends_whatever_a_tier_waits_for(what: str) -> None:
    paths = os.pathsep.join([*(path for path in sys.path if path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", ENDS, what],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr


@settings(max_examples=60, deadline=None)
@given(
    visits(),
    st.integers(1, 3),
    st.lists(st.sampled_from(["hold", "free", "flush", "settle", "forget", "step"]), min_size=31, max_size=31),
)
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
            bench.engine._kept._cache.flush()  # type: ignore[attr-defined]
        for visitor in (visitor for visitor in visitors if visitor.arrives == step):
            try:
                submit(bench, visitor.request)
            except NotCached:
                refused.add(visitor.request.id)
        bench.engine.cancel(visitor.request.id for visitor in visitors if visitor.leaves == step)
        bench.step()
    tier.free.set()
    while bench.engine.has_work or bench.engine._lookups._pending:  # type: ignore[attr-defined]
        finish(bench)
    bench.assert_idle()
    refused |= {event.request_id for event in bench.events if event.error_code == "NOT_FOUND"}
    assert refused <= {v.request.id for v in visitors if v.request.cache is CacheUse.ONLY}
    kept = [event for event in bench.events if event.request_id not in refused]
    given, turned_away = ([v for v in visitors if (v.request.id in refused) is away] for away in (False, True))
    check(kept, given, turned_away)
    bench.engine.close()  # type: ignore[attr-defined]
