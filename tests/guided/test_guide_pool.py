"""Guides are compiled beside the engine: who brings one, and who has none, waits for no other's."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from autoglm_engine.core import Event, FinishReason, Request, SamplingOptions
from autoglm_engine.engine.background import BackgroundRuns
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.loop import EngineLoop
from autoglm_engine.engine.stats import EngineStats
from autoglm_engine.errors import InvalidRequest, QueueFull, Unavailable
from autoglm_engine.guided import compiler as guide_library
from autoglm_engine.guided.compiler import TokenBits
from autoglm_engine.guided.grammar import Grammar, GuideCompiler
from autoglm_engine.guided.pool import MAX_OF_TENANT, GuidePool, PendingGuide
from autoglm_engine.runners.base import Limits
from llguidance import LLMatcher, LLTokenizer

from tests.support.engine.engine_bench import END, LETTERS, TEXT, VOCAB, Bench
from tests.support.engine.fakes import FakeClock, FakeRunner, answers, expected_greedy, request
from tests.support.engine.small_service import PATIENCE, control, serving, submit, until


def letters_guides() -> GuideCompiler:
    return GuideCompiler(lambda: LLTokenizer(LETTERS.to_str(), n_vocab=VOCAB, eos_token=[END]), VOCAB, [END])


class SlowCompiler:
    """Compiles what is let go; `begun` are the texts in the order in which it was asked."""

    def __init__(self) -> None:
        self.inner = letters_guides()
        self.free: set[str] = set()
        self.begun: list[str] = []
        self.all_free = threading.Event()
        self._changed = threading.Condition()
        self.niceness: list[int] = []

    def find(self, sampling: SamplingOptions, tenant: str) -> Grammar | None:
        return self.inner.find(sampling, tenant)

    def compile(self, sampling: SamplingOptions, tenant: str) -> Grammar | None:
        self.niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        with self._changed:
            self.begun.append(sampling.guided_regex)
            self._changed.wait_for(lambda: sampling.guided_regex in self.free or self.all_free.is_set(), PATIENCE)
        return self.inner.compile(sampling, tenant)

    def let_go(self, *texts: str) -> None:
        with self._changed:
            self.free.update(texts)
            self._changed.notify_all()

    def let_all_go(self) -> None:
        self.all_free.set()
        self.let_go()


@pytest.fixture
def compiler() -> Iterator[SlowCompiler]:
    made = SlowCompiler()
    yield made
    made.let_all_go()


@pytest.fixture
def pool(compiler: SlowCompiler) -> Iterator[GuidePool]:
    made = GuidePool(compiler)
    yield made
    compiler.let_all_go()
    made.close()


def regex(text: str) -> SamplingOptions:
    return SamplingOptions(max_tokens=8, guided_regex=text)


def asked(pool: GuidePool, text: str, tenant: str = "") -> PendingGuide:
    guide = pool.guide_of(regex(text), tenant)
    assert isinstance(guide, PendingGuide)
    guide.start()
    return guide


def guided(pool: GuidePool, name: str, text: str, **options: object) -> Request:
    made = request(name, guided_regex=text, **options)  # type: ignore[arg-type]
    return replace(made, guide=pool.guide_of(made.sampling, made.tenant))


# ---- the pool


def test_tenants_take_turns_and_none_has_all_threads(pool: GuidePool, compiler: SlowCompiler) -> None:
    greedy = [asked(pool, f"a{i}", "greedy") for i in range(4)]
    until(lambda: len(compiler.begun) == 1)
    others = [asked(pool, "b", "other"), asked(pool, "c", "third")]
    until(lambda: compiler.begun == ["a0", "b"])
    compiler.let_go("b")
    until(lambda: compiler.begun == ["a0", "b", "c"])
    assert others[0].is_ready and not any(guide.is_ready for guide in greedy)
    compiler.let_all_go()
    until(lambda: all(guide.is_ready for guide in [*greedy, *others]))


def test_only_so_many_of_a_tenant_wait(pool: GuidePool, compiler: SlowCompiler) -> None:
    first = asked(pool, "first", "greedy")
    until(lambda: compiler.begun == ["first"])
    held = [asked(pool, f"a{i}", "greedy") for i in range(MAX_OF_TENANT)]
    with pytest.raises(QueueFull, match=f"{MAX_OF_TENANT} guides of this tenant wait to be compiled"):
        asked(pool, "one more", "greedy")
    assert asked(pool, "b", "other").failure is None
    held.pop()
    assert asked(pool, "one more", "greedy").failure is None, "what nobody wants any more does not count"
    assert first.failure is None


def test_threads_that_the_system_refuses_cost_who_asks_now(pool: GuidePool, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if not thread.name.endswith(allowed):
            raise RuntimeError("can't start new thread")
        start(thread)

    allowed = "none"
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(Unavailable, match="refuses a thread to compile guides"):
        asked(pool, "a")
    allowed = "0"
    one = [asked(pool, "a"), asked(pool, "b", "other")]
    monkeypatch.setattr(threading.Thread, "start", start)
    both = [*one, asked(pool, "c", "third")]
    pool._guides.let_all_go()  # type: ignore[attr-defined]
    until(lambda: all(guide.is_ready for guide in both))
    assert sorted(thread.name for thread in pool._threads) == ["guides-0", "guides-1"]


def test_equal_guides_of_a_tenant_are_compiled_once_and_for_nobody_never(
    pool: GuidePool, compiler: SlowCompiler
) -> None:
    first = asked(pool, "first")
    until(lambda: compiler.begun == ["first"])
    one = asked(pool, "same")
    assert pool.guide_of(regex("same"), "") is one
    asked(pool, "left")  # whose request ends before its turn comes
    last = asked(pool, "last")
    compiler.let_all_go()
    until(lambda: last.is_ready)
    assert compiler.begun == ["first", "same", "last"]
    assert first.is_ready and isinstance(pool.guide_of(regex("same"), ""), Grammar)


def test_what_takes_too_long_is_given_up() -> None:
    clock, compiler = FakeClock(), SlowCompiler()
    pool = GuidePool(compiler, clock=clock, max_seconds=30)
    slow, waits = asked(pool, "slow"), asked(pool, "waits")
    clock.now += 29
    assert slow.failure is None
    clock.now += 1
    for guide in (slow, waits):
        assert str(guide.failure).startswith("guided_regex was not compiled within 30 s")
        assert guide.failure is not None and guide.failure.code == "UNAVAILABLE"
    assert pool.guide_of(regex("waits"), "") is not waits, "the next one that asks has its own time"
    compiler.let_all_go()
    pool.close()


def test_a_guide_that_cannot_be_compiled_says_why(pool: GuidePool, compiler: SlowCompiler) -> None:
    compiler.let_all_go()
    woken = threading.Event()
    pool.wake = woken.set
    guide = asked(pool, "(a")
    assert woken.wait(PATIENCE)
    assert isinstance(guide.failure, InvalidRequest) and not guide.is_ready


def test_the_engines_threads_go_first(pool: GuidePool, compiler: SlowCompiler) -> None:
    compiler.let_all_go()
    guide = asked(pool, "a")
    until(lambda: guide.is_ready)
    assert compiler.niceness == [min(19, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) + 10)]


# ---- in the engine


def test_who_waits_for_a_guide_stops_nobody_and_keeps_its_place(pool: GuidePool, compiler: SlowCompiler) -> None:
    bench = Bench(0, Limits(1, 64, 8, VOCAB))
    bench.engine.submit(guided(pool, "guided", "[ab]{8}", max_tokens=20))
    for i in range(4):
        bench.engine.submit(request(f"r{i}", [i], ignore_eos=True))
    bench.step(20)
    found = answers(bench.events)
    assert {f"r{i}" for i in range(2)} <= found.keys() and "guided" not in found
    compiler.let_all_go()
    until(lambda: all(waiting.is_ready for waiting in bench.engine._scheduler.waiting))
    bench.drain()
    order = [event.request_id for event in bench.events if event.is_last]
    assert order.index("guided") < order.index("r3"), "it came before"
    assert {answers(bench.events)[f"r{i}"].last.finish_reason for i in range(4)} == {FinishReason.LENGTH}
    assert len(answers(bench.events)["guided"].token_ids) == 9


@pytest.mark.parametrize("how", ["cancel", "deadline", "shut down", "late", "wrong"])
def test_who_waits_for_a_guide_may_end(how: str, compiler: SlowCompiler) -> None:
    bench = Bench(0)
    pool = GuidePool(compiler, clock=bench.clock, max_seconds=10)
    text = "(a" if how == "wrong" else "a"
    bench.engine.submit(guided(pool, "r", text, deadline=105.0 if how == "deadline" else None))
    bench.step(3)
    assert not bench.events
    if how == "cancel":
        assert bench.engine.cancel(["r"]) == 1
    if how in ("deadline", "late"):
        bench.clock.now += 10
    if how == "wrong":
        compiler.let_all_go()
        until(lambda: bench.engine._scheduler.waiting[0].failure is not None)
    bench.events += bench.engine.shut_down() if how == "shut down" else bench.engine.step()
    (last,) = bench.events
    reasons = {"cancel": FinishReason.CANCELLED, "deadline": FinishReason.DEADLINE}
    codes = {"shut down": "UNAVAILABLE", "late": "UNAVAILABLE", "wrong": "INVALID_ARG"}
    assert (last.finish_reason, last.error_code) == (reasons.get(how), codes.get(how, ""))
    bench.assert_idle()
    compiler.let_all_go()
    pool.close()


def test_a_run_for_nobody_is_not_taken_for_somebody_who_waits_while_its_guide_is_compiled(
    pool: GuidePool, compiler: SlowCompiler
) -> None:
    """As the semantic cache's checks are run."""
    engine = Engine(FakeRunner(Limits(2, 64, 8, VOCAB)), TEXT, [END])
    loop = EngineLoop(engine, lambda event: runs.take(event))
    pool.wake = loop.wake
    runs = BackgroundRuns(loop.submit, loop.cancel, lambda: engine.stats)
    found: list[Event | None] = []
    checks = threading.Thread(target=lambda: found.append(runs.compute(guided(pool, "r", "ab"))))
    loop.start()
    checks.start()
    until(lambda: compiler.begun == ["ab"])
    checks.join(0.1)  # many looks at who waits
    compiler.let_all_go()
    checks.join(PATIENCE)
    (answer,) = found
    assert answer is not None and answer.finish_reason is FinishReason.STOP
    loop.close(PATIENCE)


@pytest.mark.parametrize("why", ["cannot be compiled", "takes too long", "too many wait"])
def test_a_run_for_nobody_whose_guide_never_comes_ends(why: str, compiler: SlowCompiler) -> None:
    pool = GuidePool(compiler, max_seconds=0.05 if why == "takes too long" else 30.0)
    first = asked(pool, "first")
    until(lambda: compiler.begun == ["first"])
    held = [asked(pool, f"a{i}") for i in range(MAX_OF_TENANT if why == "too many wait" else 0)]
    if why == "cannot be compiled":
        compiler.let_go("first", "a(")
    runs = BackgroundRuns(
        lambda request: pytest.fail("it was asked for"), lambda ids: 0, lambda: EngineStats(slots_free=1)
    )
    assert runs.compute(guided(pool, "r", "a(")) is None
    compiler.let_all_go()
    pool.close()
    assert first.asked_at is not None and len(held) in (0, MAX_OF_TENANT)


def test_who_waits_for_guides_silences_nobody_behind(pool: GuidePool) -> None:
    bench = Bench(0, Limits(1, 64, 8, VOCAB))
    bench.engine.submit(request("runs", max_tokens=40, ignore_eos=True))
    bench.step(2)
    for number in range(4):  # more than are told of in the queue
        bench.engine.submit(guided(pool, f"guided {number}", f"a{number}", stream=True))
    bench.engine.submit(request("behind", stream=True))
    bench.clock.now += 1.0
    bench.step(1)
    assert {event.request_id for event in bench.events} == {"guided 0", "guided 1", "behind"}


def test_a_stream_that_waits_for_its_guide_says_that_it_lives(pool: GuidePool) -> None:
    bench = Bench(0)
    bench.engine.submit(guided(pool, "r", "a", stream=True))
    bench.clock.now += 0.5
    assert [event.request_id for event in bench.step()] == ["r"]


def test_the_first_mask_is_known_before_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[tuple[str, object]] = []
    compute = guide_library.compute_mask

    def noted(matcher: LLMatcher, mask: TokenBits) -> None:
        computed.append((threading.current_thread().name, mask))
        compute(matcher, mask)

    def computed_by() -> list[str]:
        """But for guides of earlier tests, which nobody wants and nobody can stop."""
        return [name for name, mask in computed if name != "compile-guide" or mask is guide._first]

    monkeypatch.setattr(guide_library, "compute_mask", noted)
    monkeypatch.setattr("autoglm_engine.guided.grammar.compute_mask", noted)
    guide = letters_guides().compile(regex("[a-f]{3}"))
    assert guide is not None
    state = guide.begin()
    assert computed_by() == ["compile-guide"]
    assert sorted(LETTERS.decode([i]) for i in state.allowed().nonzero()[0]) == list("abcdef")
    assert computed_by() == ["compile-guide"]
    state.count(LETTERS.token_to_id("a"))
    state.allowed()
    assert computed_by() == ["compile-guide", threading.current_thread().name]


def key_patterns(count: int) -> str:
    return json.dumps({"patternProperties": {f"^x{i}[a-z]*$": {"type": "integer"} for i in range(count)}})


def test_a_schema_that_takes_minutes_is_refused() -> None:
    """The library compares each pattern with all others: 300 take 20 s."""
    guides = letters_guides()
    for text in (key_patterns(1500), json.dumps({"anyOf": [json.loads(key_patterns(50)) for _ in range(30)]})):
        with pytest.raises(InvalidRequest, match="guided_json has 1500 patterns in patternProperties; at most 64"):
            guides.compile(SamplingOptions(max_tokens=8, guided_json=text))
    assert guides.compile(SamplingOptions(max_tokens=8, guided_json=key_patterns(5))) is not None


# ---- in the service


def test_a_call_that_brings_a_guide_returns_at_once(tmp_path: Path, compiler: SlowCompiler) -> None:
    """Arrivals, cancels and the health probe come through the same thread."""
    with serving(tmp_path / "a", FakeRunner(Limits(4, 64, 8, VOCAB))) as service:
        service._guides._guides = compiler
        replies = [submit(service, request(f"g{i}", guided_regex="a" * (i + 1))) for i in range(4)]
        free = submit(service, request("free", ignore_eos=True)).wait()
        assert getattr(free, "token_ids", None) == tuple(expected_greedy([1, 2, 3], 8, VOCAB))
        assert control(service, stats=True)["healthy"] is True
        assert control(service, cancel=["g1", "g3"]) == {"cancelled": 2}
        compiler.let_all_go()
        ends = [reply.wait() for reply in replies]
        assert [getattr(end, "finish_reason", None) for end in ends] == [
            FinishReason.STOP,
            FinishReason.CANCELLED,
            FinishReason.STOP,
            FinishReason.CANCELLED,
        ]


def test_a_service_that_closes_answers_those_who_wait_for_guides(tmp_path: Path, compiler: SlowCompiler) -> None:
    with serving(tmp_path / "a", FakeRunner(Limits(4, 64, 8, VOCAB))) as service:
        service._guides._guides = compiler
        reply = submit(service, request("r", guided_regex="a"))
        until(lambda: compiler.begun == ["a"])
    assert getattr(reply.wait(), "error", None) == "the server is shutting down"
