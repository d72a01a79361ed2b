"""The semantic cache: who may be answered by whose answer, and what is never mistaken for the same question."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from autoglm_engine.cache.semantic.cache import SemanticCache
from autoglm_engine.cache.semantic.entries import SemanticEntries
from autoglm_engine.cache.semantic.guards import may_mean_the_same, refusals
from autoglm_engine.cache.semantic.loading import open_semantic
from autoglm_engine.cache.semantic.vector_index import Vector, VectorIndex
from autoglm_engine.cache.semantic.verifier import MIN_CHECKS, SemanticChecks
from autoglm_engine.cache.tiers import Found, Missed
from autoglm_engine.core import (
    CacheHit,
    CacheUse,
    Event,
    FinishReason,
    Request,
    SamplingOptions,
    SemanticQuery,
    Stages,
    Usage,
)
from autoglm_engine.engine.background import BackgroundRuns
from autoglm_engine.engine.stats import EngineStats
from autoglm_engine.errors import ArtifactError, InvalidRequest, QueueFull
from autoglm_engine.metrics import SEMANTIC_CHECKS, SEMANTIC_ENABLED, SEMANTIC_FALSE_RATE
from autoglm_engine.settings.model import EngineSettings, plain_settings
from autoglm_engine.tokenizer.semantic_query import MAX_QUESTION_CHARACTERS, question_of_messages, question_of_text
from autoglm_perf.semantic.precision import PAIRS_FILE
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.fakes import FakeClock
from tests.support.engine.memory_metrics import MemoryMetrics

PAIRS = [json.loads(line) for line in PAIRS_FILE.read_text(encoding="utf-8").splitlines()]
DIMENSIONS = 4


def always_equal(text: str) -> Vector:
    return np.array([1, 0, 0, 0], np.float32)


def by_letter(text: str) -> Vector:
    """Texts that begin alike mean the same."""
    vector = np.zeros(DIMENSIONS, np.float32)
    vector[ord(text[0]) % DIMENSIONS] = 1
    return vector


def ask(text: str, **changes: object) -> Request:
    request = Request(
        "r", np.array([1, 2, 3], np.int32), SamplingOptions(8), semantic=True, question=SemanticQuery(text, "c")
    )
    return replace(request, **changes)  # type: ignore[arg-type]


def answer(token: int = 7) -> Event:
    return Event("r", (token,), Usage(9, 1, 5), Stages(1, 2, 3, 4), FinishReason.LENGTH, is_first=True)


class Bench:
    def __init__(
        self, embed: Callable[[str], Vector] = always_equal, *, guards: bool = False, **options: object
    ) -> None:
        self.clock, self.metrics = FakeClock(), MemoryMetrics()
        chosen = plain_settings(**{"semantic_cache": "asked", "cache_mode": "exact", **options})  # type: ignore[arg-type]
        entries = SemanticEntries(
            VectorIndex(DIMENSIONS), chosen.semantic_entries, chosen.cache_ttl_seconds, self.clock
        )
        match = may_mean_the_same if guards else lambda one, other: True
        self.cache = SemanticCache(embed, entries, "digest", chosen, metrics=self.metrics, may_match=match)

    def find(self, key: bytes, request: Request) -> Found | None:
        found = self.cache.find(key, request)
        return found if isinstance(found, Found) else None

    def keep(self, request: Request, event: Event | None = None, key: bytes = b"k") -> None:
        self.cache.keep(key, request, event or answer())
        wait_until(lambda: self.cache._to_keep.unfinished_tasks == 0)


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.002)


# ---- who may be answered


def test_a_question_of_the_same_meaning_gets_the_answer_again() -> None:
    bench = Bench()
    bench.keep(ask("one"))
    bench.clock.now += 2
    found = bench.find(b"other", ask("another", prompt_ids=np.array([1, 2, 3, 4, 5], np.int32)))
    assert found is not None
    assert (found.hit, found.age, found.answer.token_ids) == (CacheHit.SEMANTIC, 2, (7,))
    assert (found.answer.usage, found.answer.request_id) == (Usage(5, 1, 0), "")
    assert bench.cache.stats["semantic_hits"] == 1
    bench.cache.close()


REQUESTS = st.builds(
    lambda tenant, context, tokens, seed, stop: ask(
        "q", tenant=tenant, question=SemanticQuery("q", context), sampling=SamplingOptions(tokens, seed=seed, stop=stop)
    ),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from(["c", "d"]),
    st.integers(1, 2),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([(), ("x",)]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=6), REQUESTS)
@pytest.mark.slow
def test_another_tenant_option_or_context_never_hits(kept: list[Request], asked: Request) -> None:
    def told_apart(request: Request) -> tuple[object, ...]:
        assert request.question is not None
        return request.tenant, request.question.context, request.sampling

    bench = Bench()
    for number, request in enumerate(kept):
        bench.keep(request, answer(number), key=str(number).encode())
    found = bench.find(b"asked", asked)
    allowed = {number for number, request in enumerate(kept) if told_apart(request) == told_apart(asked)}
    assert (found is not None) == bool(allowed)
    assert found is None or found.answer.token_ids[0] in allowed
    bench.cache.close()


@pytest.mark.parametrize(
    ("mode", "semantic", "wanted"),
    [
        ("asked", True, True),
        ("asked", None, False),
        ("asked", False, False),
        ("on", True, True),
        ("on", None, True),
        ("on", False, False),
    ],
)
def test_only_who_asked_is_served(mode: str, semantic: bool | None, wanted: bool) -> None:
    bench = Bench(semantic_cache=mode)
    assert bench.cache.wants(ask("q", semantic=semantic)) == wanted
    assert not bench.cache.wants(ask("q", semantic=semantic, question=None))
    bench.cache.close()


def test_below_the_threshold_and_past_its_time_there_is_nothing() -> None:
    bench = Bench(by_letter, cache_ttl_seconds=10.0)
    bench.keep(ask("a question"))
    missed = bench.cache.find(b"x", ask("b question"))
    assert isinstance(missed, Missed) and missed.embed_ms >= 0
    bench.clock.now += 9.9
    assert bench.find(b"x", ask("a question")) is not None
    bench.clock.now += 0.1
    assert bench.find(b"x", ask("a question")) is None
    assert bench.cache.stats["semantic_entries"] == 0
    bench.cache.close()


def test_the_least_recently_used_leaves_first_and_a_flush_forgets() -> None:
    bench = Bench(by_letter, semantic_entries=2)
    for text in "ab":
        bench.keep(ask(text), key=text.encode())
    assert bench.find(b"x", ask("a")) is not None
    bench.keep(ask("c"), key=b"c")
    assert [bench.find(b"x", ask(text)) is not None for text in "abc"] == [True, False, True]
    bench.cache.flush()
    assert bench.find(b"x", ask("a")) is None
    bench.keep(ask("a"), answer(1))
    bench.keep(ask("a"), answer(2))
    found = bench.find(b"x", ask("a"))
    assert found is not None and found.answer.token_ids == (2,)
    assert bench.cache.stats["semantic_entries"] == 1
    bench.cache.close()


def test_an_answer_that_cannot_be_kept_takes_the_one_before_with_it() -> None:
    fails = False

    def embed(text: str) -> Vector:
        if fails:
            raise RuntimeError("gone")
        return always_equal(text)

    bench = Bench(embed)
    bench.keep(ask("how"))
    fails = True
    bench.keep(ask("how", cache=CacheUse.REFRESH), answer(8))
    fails = False
    assert bench.find(b"other", ask("how")) is None


def test_what_is_forgotten_is_not_found_also_where_it_waited_to_be_kept() -> None:
    goes_on = threading.Event()

    def embed(text: str) -> Vector:
        assert goes_on.wait(60)
        return by_letter(text)

    bench = Bench(embed)
    for key, text in ((b"a", "a"), (b"b", "b")):
        bench.cache.keep(key, ask(text), answer())
    bench.cache.forget(b"a")
    bench.cache.forget(b"unknown")
    goes_on.set()
    wait_until(lambda: bench.cache._to_keep.unfinished_tasks == 0)
    assert [bench.find(b"other", ask(text)) is not None for text in "ab"] == [False, True]
    bench.cache.close()


def test_an_answer_for_which_there_is_no_room_takes_the_one_before_with_it() -> None:
    goes_on = threading.Event()
    goes_on.set()

    def embed(text: str) -> Vector:
        assert goes_on.wait(60)
        return by_letter(text)

    bench = Bench(embed)
    bench.keep(ask("how"))
    goes_on.clear()
    for number in range(300):  # more than may wait
        bench.cache.keep(str(number).encode(), ask("who"), answer())
    bench.cache.keep(b"k", ask("how", cache=CacheUse.REFRESH), answer(8))
    goes_on.set()
    wait_until(lambda: bench.cache._to_keep.unfinished_tasks == 0)
    assert bench.find(b"other", ask("how")) is None


def test_an_embedder_that_fails_is_a_miss() -> None:
    def fails(text: str) -> Vector:
        raise RuntimeError("no embedder")

    bench = Bench(fails)
    bench.keep(ask("a"))
    assert bench.find(b"x", ask("a")) is None
    assert bench.cache.stats["semantic_entries"] == 0
    bench.cache.close()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ar"), st.integers(0, 3), st.integers(0, 20)), max_size=60))
def test_the_index_finds_what_a_scan_finds(commands: list[tuple[str, int, int]]) -> None:
    index, model, draw = VectorIndex(DIMENSIONS), {}, np.random.default_rng(0)
    for command, group, number in commands:
        name, entry = bytes([group]), (group, number)
        if command == "a" and entry not in model:
            vector = draw.standard_normal(DIMENSIONS).astype(np.float32)
            model[entry] = vector / np.linalg.norm(vector)
            index.add(name, number, model[entry])
        elif command == "r" and entry in model:
            del model[entry]
            index.remove(name, number)
    query = np.array([0.5, 0.5, 0.5, 0.5], np.float32)
    for group in range(4):
        own = {number: float(query @ vector) for (g, number), vector in model.items() if g == group}
        found = index.nearest(bytes([group]), query, 3)
        assert [number for number, _ in found] == sorted(own, key=lambda number: -own[number])[:3]
        assert all(abs(own[number] - cosine) < 1e-5 for number, cosine in found)
    assert len(index._groups) == len({group for group, _ in model})


# ---- what is compared


def test_the_question_is_the_last_user_message_and_the_context_all_else() -> None:
    def messages(*texts: str, role: str = "user") -> SemanticQuery | None:
        turns = [{"role": "system", "content": text} for text in texts[:-1]] + [{"role": role, "content": texts[-1]}]
        return question_of_messages(turns, "|".join(texts) + "|assistant:")

    one, other = messages("be brief", "why?"), messages("be brief", "how come?")
    assert one is not None and other is not None
    assert (one.text, other.text) == ("why?", "how come?")
    assert one.context == other.context
    longer = messages("be long", "why?")
    assert longer is not None and longer.context != one.context
    assert messages("be brief", "why?", role="assistant") is None
    assert question_of_messages([{"role": "user", "content": "lost"}], "another text") is None
    plain = question_of_text(" why?\n")
    assert plain is not None and plain.text == "why?" and plain.context != one.context
    assert question_of_text("x" * (MAX_QUESTION_CHARACTERS + 1)) is None


@given(st.text(max_size=5), st.text(max_size=5), st.text(min_size=1, max_size=5), st.text(min_size=1, max_size=5))
def test_equal_contexts_are_prompts_that_differ_in_their_question_alone(
    before: str, after: str, one: str, other: str
) -> None:
    def question(text: str) -> SemanticQuery | None:
        return question_of_messages([{"role": "user", "content": text}], before + text + after)

    first, second = question(one), question(other)
    if first is not None and second is not None and first.context == second.context:
        rest = [(before + text + after).rpartition(text.strip())[::2] for text in (one, other)]
        assert rest[0] == rest[1]


@pytest.mark.parametrize(
    ("one", "other", "rule"),
    [
        ("Pay 5 euros", "Pay 50 euros", "numbers"),
        ("Give me three tips", "Give me five tips", "numbers"),
        ("给我三个建议", "给我五个建议", "numbers"),
        ("Is it allowed to park here?", "Isn't it allowed to park here?", "negations"),
        ("我能去", "我不能去", "negations"),
        ("What does os.path.join do?", "What does os.path.split do?", "code"),
        ("Explain --soft", "Explain --hard", "code"),
        ('What does "hi" mean?', 'What does "ho" mean?', "quoted"),
        ("Who lives in Paris now?", "Who lives in Rome now?", "names"),
        ("Please turn the light on", "Please turn the light off", "opposites"),
        ("请打开客厅的灯", "请关闭客厅的灯", "opposites"),
        ("How do I cook rice?", "How do I cook pasta?", "few words"),
        ("is the dog after the cat", "is the cat after the dog", "order"),
        ("猫为什么叫", "天上有几颗星星", "characters"),
    ],
)
def test_what_differs_in_a_fact_does_not_mean_the_same(one: str, other: str, rule: str) -> None:
    assert rule in refusals(one, other)
    assert rule in refusals(other, one)
    assert not refusals(one, one)


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_guards_are_symmetric_and_let_equal_texts_pass(one: str, other: str) -> None:
    assert refusals(one, other) == refusals(other, one)
    assert may_mean_the_same(one, one)


def test_the_pair_set_has_enough_of_each_kind() -> None:
    for same in (True, False):
        chosen = [pair for pair in PAIRS if pair["same"] is same]
        assert len(chosen) >= 100
        assert sum(pair["language"] == "zh" for pair in chosen) >= 30
    assert {pair["kind"] for pair in PAIRS} >= {"negation", "number", "name", "identifier", "unit", "direction"}
    assert len({(pair["a"], pair["b"]) for pair in PAIRS}) == len(PAIRS)


@pytest.mark.slow
def test_no_pair_of_other_meaning_passes_guards_and_threshold(embedder: Path) -> None:
    from autoglm_engine.embedder import Embedder

    model, least = Embedder(embedder), EngineSettings().semantic_threshold
    ones, others = model.embed([pair["a"] for pair in PAIRS]), model.embed([pair["b"] for pair in PAIRS])
    cosines = (ones * others).sum(axis=1)
    hits = [p for p, c in zip(PAIRS, cosines, strict=True) if c >= least and may_mean_the_same(p["a"], p["b"])]
    assert not [pair for pair in hits if not pair["same"]]
    assert sum(pair["language"] == "en" for pair in hits) >= 0.5 * sum(
        p["same"] and p["language"] == "en" for p in PAIRS
    )


# ---- verified mode


class Engine:
    """Answers every recomputation with `text`."""

    def __init__(self, text: str | None) -> None:
        self.text = text
        self.asked = 0

    def __call__(self, request: Request) -> Event | None:
        self.asked += 1
        return None if self.text is None else replace(answer(), error_code=self.text)


def checked_bench(computed: str | None, share: float = 1.0) -> tuple[Bench, Engine, SemanticChecks]:
    bench, engine = Bench(semantic_verify_share=share), Engine(computed)
    chosen = plain_settings(semantic_verify_share=share, semantic_max_false_rate=0.1)
    checks = SemanticChecks(
        engine,
        lambda event: event.error_code or "served",
        lambda text: by_letter(text),
        bench.cache.switch_off,
        chosen,
        bench.metrics,
        draw=lambda: 0.5,
    )
    bench.cache.checks = checks
    bench.keep(ask("q"))
    return bench, engine, checks


@pytest.mark.slow
def test_it_switches_itself_off_when_its_hits_are_wrong() -> None:
    bench, _, checks = checked_bench("another answer")
    for number in range(MIN_CHECKS):
        assert bench.cache.wants(ask("q"))
        assert bench.find(b"x", ask("q")) is not None
        wait_until(lambda number=number: checks.stats["checked"] == number + 1)  # type: ignore[misc]
    wait_until(lambda: not bench.cache.wants(ask("q")))
    assert bench.find(b"x", ask("q")) is None
    stats = bench.cache.stats
    assert (stats["semantic_on"], stats["semantic_false_rate"], stats["semantic_entries"]) == (False, 1.0, 0)
    assert (bench.metrics.value(SEMANTIC_ENABLED), bench.metrics.value(SEMANTIC_FALSE_RATE)) == (0, 1)
    bench.keep(ask("q"))
    assert bench.cache.stats["semantic_entries"] == 0
    bench.cache.close()


@pytest.mark.slow
@pytest.mark.parametrize("computed", ["served", "served otherwise"])
def test_it_stays_on_when_its_hits_are_right(computed: str) -> None:
    bench, _, checks = checked_bench(computed)
    for number in range(MIN_CHECKS + 5):
        assert bench.find(b"x", ask("q")) is not None
        wait_until(lambda number=number: checks.stats["checked"] == number + 1)  # type: ignore[misc]
    assert bench.cache.wants(ask("q"))
    assert checks.stats == {"checked": MIN_CHECKS + 5, "false": 0, "false_rate": 0.0}
    assert bench.metrics.value(SEMANTIC_CHECKS, "right") == MIN_CHECKS + 5
    bench.cache.close()


def test_only_the_sampled_share_is_checked_and_none_while_others_wait() -> None:
    bench, engine, _ = checked_bench("another", share=0.5)  # the draw is 0.5, which is not below it
    for _ in range(5):
        bench.find(b"x", ask("q"))
    bench.cache.close()
    assert engine.asked == 0
    bench, engine, checks = checked_bench(None)
    bench.find(b"x", ask("q"))
    wait_until(lambda: bench.metrics.value(SEMANTIC_CHECKS, "skipped") == 1)
    assert checks.stats["checked"] == 0
    bench.cache.close()


def test_short_answers_that_differ_in_a_fact_disagree() -> None:
    bench, _, checks = checked_bench("x")
    for one, other, same in (("It is 4.", "It is 5.", False), ("It is 4.", "It is 4!", True), ("b", "c", False)):
        assert checks.agree(one, other) == same
    bench.cache.close()


# ---- runs in the background


class Loop:
    def __init__(self) -> None:
        self.submitted: list[Request] = []
        self.cancelled: list[str] = []
        self.stats = EngineStats(slots_free=1)
        self.refuses = False
        self.runs = BackgroundRuns(self.submit, self.cancel, lambda: self.stats)
        self.after_submit: Callable[[Request], object] = lambda request: None

    def submit(self, request: Request) -> None:
        if self.refuses:
            raise QueueFull("full")
        self.submitted.append(request)
        self.after_submit(request)

    def cancel(self, ids: object) -> int:
        self.cancelled += list(ids)  # type: ignore[call-overload]
        return 1


def test_a_background_run_gets_its_answer_and_nobody_else_does() -> None:
    loop = Loop()
    loop.after_submit = lambda request: loop.runs.take(replace(answer(), request_id=request.id))
    asked = ask("q", user="u", deadline=5.0, stream=True)
    computed = loop.runs.compute(asked)
    assert computed is not None and computed.token_ids == (7,)
    sent = loop.submitted[0]
    assert (sent.cache, sent.semantic, sent.stream, sent.deadline, sent.user) == (
        CacheUse.BYPASS,
        False,
        False,
        None,
        "",
    )
    assert not loop.runs.take(replace(answer(), request_id=f"{sent.id}#1"))


def test_a_background_run_makes_way() -> None:
    loop = Loop()
    for busy in (EngineStats(waiting=1, slots_free=1), EngineStats(slots_busy=4)):
        loop.stats = busy
        assert loop.runs.compute(ask("q")) is None
    assert not loop.submitted
    loop.stats, loop.refuses = EngineStats(slots_free=1), True
    assert loop.runs.compute(ask("q")) is None
    loop.refuses = False
    loop.after_submit = lambda request: setattr(loop, "stats", EngineStats(waiting=1))
    assert loop.runs.compute(ask("q")) is None
    assert loop.cancelled == [loop.submitted[0].id]
    assert loop.runs.take(replace(answer(), request_id=loop.cancelled[0]))  # its end, which nobody is told of
    assert not loop.runs.take(replace(answer(), request_id=loop.cancelled[0]))


# ---- put together


@pytest.mark.slow
def test_without_an_embedder_it_can_only_be_off(tmp_path: Path, embedder: Path) -> None:
    def opened(folder: Path | None, **options: object) -> tuple[SemanticCache | None, str]:
        chosen = dataclasses.replace(plain_settings(cache_mode="exact"), **options)  # type: ignore[arg-type]
        return open_semantic(chosen, "digest", folder, always_equal, MemoryMetrics())

    assert opened(tmp_path, semantic_cache="off") == (None, "the server's setting semantic_cache is off")
    cache, why = opened(tmp_path, semantic_cache="asked")
    assert cache is None and "make it with `autoglm export-embedder`" in why
    assert opened(None, semantic_cache="asked")[1].endswith("these models have none: embedder_model is empty")
    with pytest.raises(ArtifactError, match="needs the embedder"):
        opened(tmp_path, semantic_cache="on")
    with pytest.raises(InvalidRequest, match="cache_mode exact; it is off"):
        opened(embedder, semantic_cache="on", cache_mode="off")
    cache, why = opened(embedder, semantic_cache="asked")
    assert cache is not None and why == ""
    cache.close()
