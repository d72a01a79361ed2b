"""Two engines that share one redis-server: no tenant ever gets another's answer through it, and no answer differs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
from autoglm_engine.cache.redis.loading import load_redis_tier
from autoglm_engine.cache.redis.tier import RedisTier
from autoglm_engine.core import CacheHit, CacheUse, Request
from autoglm_engine.errors import InvalidRequest, NotCached
from autoglm_engine.settings.model import plain_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.test_redis_tier import admin, wait_for
from tests.cache.test_sharing import OPTIONS, Visit, check, counted, shared_bench, submit
from tests.cache.test_tiers import FakeTier
from tests.support.engine.engine_bench import Bench
from tests.support.engine.fakes import answers, request
from tests.support.engine.memory_metrics import MemoryMetrics
from tests.support.server.real_redis import RedisServer, running_redis

Tiers = tuple[RedisTier, RedisTier]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def tiers(server: RedisServer) -> Iterator[Tiers]:
    chosen = plain_settings(redis_url=server.url, redis_timeout_ms=20_000, redis_retry_seconds=0.05)
    made = RedisTier(chosen, MemoryMetrics()), RedisTier(chosen, MemoryMetrics())
    wait_for(lambda: all(tier.is_up for tier in made))
    yield made
    for tier in made:
        tier.close()


@dataclass(frozen=True)
class Move:
    """Somebody asks one of the two servers. `then` is done to them afterwards."""

    place: int
    question: int
    tenant: str
    use: CacheUse
    then: str


MOVES = st.builds(
    Move,
    st.integers(0, 1),
    st.integers(0, 2),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from([CacheUse.DEFAULT, CacheUse.DEFAULT, CacheUse.DEFAULT, *CacheUse]),
    st.sampled_from(["settle", "forget", "forget", "forget", "cancel", "damage", "flush", "nothing"]),
)


@st.composite
def questions(draw: st.DrawFn) -> Request:
    prompt = draw(st.sampled_from([[1], [2, 1], [1, 2, 3, 4]]))
    return request("", prompt, **draw(OPTIONS))


def forget_everything(tiers: Tiers) -> None:
    tiers[0].flush()
    wait_for(lambda: tiers[0].is_up)
    tiers[1]._connection.look_at_epoch()
    wait_for(lambda: tiers[1]._epochs.current == tiers[0]._epochs.current)


def damage_all(server: RedisServer) -> None:
    with admin(server) as client:
        for name in client.keys("autoglm:1:answer:*"):  # type: ignore[union-attr]
            value = client.get(name)
            assert isinstance(value, bytes)
            client.set(name, value.replace(b"1", b"2"), px=60_000)


def finish(bench: Bench) -> None:
    """What is looked up, then what is computed."""
    wait_for(lambda: not bench.engine._lookups._pending)  # type: ignore[attr-defined]
    bench.drain()


def settle(benches: list[Bench], tiers: Tiers) -> None:
    while any(bench.engine.has_work or bench.engine._lookups._pending for bench in benches):  # type: ignore[attr-defined]
        for bench in benches:
            finish(bench)
    wait_for(lambda: all(tier.is_up and not len(tier._queue) for tier in tiers))
    time.sleep(0.003)  # what was taken from the queue is written


def serve(server: RedisServer, tiers: Tiers, visitors: list[Visit], moves: list[Move]) -> list[Bench]:
    benches = [shared_bench(num_slots=2, tiers=(tier,)) for tier in tiers]
    for visitor, move in zip(visitors, moves, strict=True):
        with suppress(NotCached):  # it takes only a kept answer, and of its kind none is kept
            submit(benches[move.place], visitor.request)
        if move.then == "cancel":
            benches[move.place].step(2)
            benches[move.place].engine.cancel([visitor.request.id])
        if move.then in ("settle", "forget", "damage"):
            settle(benches, tiers)
        if move.then in ("forget", "damage"):
            for bench, tier in zip(benches, tiers, strict=True):
                bench.engine.forget(tier)  # type: ignore[attr-defined]
        if move.then == "damage":
            damage_all(server)
        if move.then == "flush":
            benches[move.place].engine.flush()  # type: ignore[attr-defined]
    settle(benches, tiers)
    return benches


@pytest.mark.slow
def test_no_tenant_gets_anothers_answer_through_redis_and_no_answer_differs(server: RedisServer, tiers: Tiers) -> None:
    @settings(max_examples=80, deadline=None)
    @given(st.lists(questions(), min_size=3, max_size=3), st.lists(MOVES, min_size=5, max_size=20))
    def prove(asked: list[Request], moves: list[Move]) -> None:
        forget_everything(tiers)
        visitors = [
            Visit(replace(asked[move.question], id=f"v{i}", tenant=move.tenant, cache=move.use), 0, None)
            for i, move in enumerate(moves)
        ]
        events = [event for bench in serve(server, tiers, visitors, moves) for event in bench.events]
        refused = {event.request_id for event in events if event.error_code == "NOT_FOUND"}
        answered = {event.request_id for event in events} - refused
        only = {visitor.request.id for visitor in visitors if visitor.request.cache is CacheUse.ONLY}
        assert {visitor.request.id for visitor in visitors} - answered <= only
        check(
            [event for event in events if event.request_id in answered],
            [visitor for visitor in visitors if visitor.request.id in answered],
        )

    for _ in range(5):  # how much is found there depends on what is drawn, and on how busy the machine is
        prove()
        stats = [tier.stats for tier in tiers]
        if sum(one["cache_redis_hits"] for one in stats) > 10:
            break
    else:
        pytest.fail(f"little was proved: {stats}")
    assert sum(one["cache_redis_corrupted"] for one in stats) > 0
    assert sum(one["cache_redis_errors"] for one in stats) == 0


def test_what_one_server_computed_another_answers_without_a_slot(tiers: Tiers) -> None:
    one, two = (shared_bench(tiers=(tier,)) for tier in tiers)
    submit(one, request("computed", max_tokens=6, ignore_eos=True, logprobs=1))
    finish(one)
    wait_for(lambda: tiers[0].stats["cache_redis_stores"] == 1)
    for name in ("from Redis", "from memory"):
        submit(two, request(name, max_tokens=6, ignore_eos=True, logprobs=1, stream=True))
        finish(two)
    found = answers([*one.events, *two.events])
    assert [answer.last.cache_hit for answer in found.values()] == [CacheHit.NONE, CacheHit.EXACT, CacheHit.EXACT]
    assert len({tuple(answer.token_ids) for answer in found.values()}) == 1
    assert (two.engine.stats.steps, tiers[1].stats["cache_redis_hits"]) == (0, 1)
    first, second = found["from Redis"].last.cache_age_ms, found["from memory"].last.cache_age_ms
    assert 0 <= first <= second + 1


@pytest.mark.slow
def test_a_flush_at_one_server_is_one_at_the_other_and_is_not_sent_back(server: RedisServer) -> None:
    chosen = plain_settings(redis_url=server.url, cache_mode="exact", redis_timeout_ms=20_000)
    others, benches, tiers = [FakeTier(), FakeTier()], list[Bench](), list[RedisTier]()
    for number in range(2):
        tier = load_redis_tier(
            chosen,
            MemoryMetrics(),
            lambda n=number: benches[n].engine.forget(tiers[n]),  # type: ignore[misc, attr-defined]
        )
        assert tier is not None
        tiers.append(tier)
        benches.append(shared_bench(tiers=(tier, others[number])))
        wait_for(lambda: tiers[-1].is_up)
    try:
        for bench in benches:
            submit(bench, request("first"))
            finish(bench)
        assert counted(benches[1])["entries"] == 1
        benches[0].engine.flush()  # type: ignore[attr-defined]
        flushed = tiers[0]._epochs.current
        wait_for(lambda: counted(benches[1])["entries"] == 0 and not others[1].answers)
        assert not others[0].answers, "a tier of another kind was not flushed"
        time.sleep(1.2)  # longer than servers look for the flushes of others
        assert [tier._epochs.current for tier in tiers] == [flushed, flushed]
    finally:
        for tier in tiers:
            tier.close()


def test_without_an_address_or_a_cache_there_is_no_tier_and_without_the_client_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for chosen in (plain_settings(cache_mode="exact"), plain_settings(cache_mode="off", redis_url="redis://cache")):
        assert load_redis_tier(chosen, MemoryMetrics(), lambda: None) is None
    for name in [name for name in sys.modules if name.startswith("autoglm_engine.cache.redis.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    monkeypatch.setitem(sys.modules, "redis.exceptions", None)
    with pytest.raises(InvalidRequest, match=r"redis_url needs the Python package redis\S*, which is not installed"):
        load_redis_tier(plain_settings(cache_mode="exact", redis_url="redis://cache"), MemoryMetrics(), lambda: None)
