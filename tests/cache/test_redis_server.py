"""The Redis tier through the whole path: real tritonservers, real clients, a real Redis that is killed and frozen."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from autoglm_client import AsyncClient, Client, LocalServer, LocalServerError, Result

from tests.cache.test_redis_tier import admin, wait_for
from tests.conftest import MODEL_REPOSITORY
from tests.support.server.real_redis import Proxy, RedisServer, proxied, running_redis

pytestmark = pytest.mark.server
PROMPTS = [f"Shared answers, number {number}:" for number in range(24)]
OPTIONS = {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True}
FORGETFUL = {"AUTOGLM_CACHE_BYTES": "1024"}  # room for two answers at most: most requests are looked up in Redis
LIMIT_SECONDS = 2.0  # of a lookup: more than a slow machine takes
ENOUGH = 20  # requests of a kind, for a phase to be one


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with proxied(redis_server.port) as made:
        yield made


@pytest.fixture(scope="module")
def server(artifact: Path, proxy: Proxy) -> Iterator[LocalServer]:
    redis = {"URL": proxy.url, "RETRY_SECONDS": "0.3", "TIMEOUT_MS": str(1e3 * LIMIT_SECONDS)}
    env = {**FORGETFUL, **{f"AUTOGLM_REDIS_{name}": value for name, value in redis.items()}}
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, env=env) as running:
        yield running


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.grpc_url) as made:
        wait_for(lambda: counted(made, "up") == 1)
        yield made


def counted(client: Client, name: str) -> int:
    return client.stats().engine[f"cache_redis_{name}"]


def ask(client: Client, prompt: str, **options: object) -> Result:
    return client.generate(prompt, **{**OPTIONS, **options})  # type: ignore[arg-type]


def kept(client: Client, prompt: str) -> Result:
    """And wait until it is in Redis; asks again where Redis was away just then, as it may be on a busy machine."""
    while True:
        stores, dropped = counts(client)
        result = ask(client, prompt, cache="refresh")
        wait_for(partial(_differ, client, (stores, dropped)))
        if counts(client)[0] > stores:
            return result


def counts(client: Client) -> tuple[int, int]:
    return counted(client, "stores"), counted(client, "dropped")


def _differ(client: Client, before: tuple[int, int]) -> bool:
    return counts(client) != before


def while_redis_answers(client: Client, attempt: Callable[[], None]) -> None:
    """Again where a lookup was given up after its limit, which is no fault on a busy machine."""
    while True:
        before = counted(client, "errors") + counted(client, "skipped")
        try:
            return attempt()
        except AssertionError:
            if counted(client, "errors") + counted(client, "skipped") == before:
                raise
        wait_for(lambda: counted(client, "up") == 1)


def push_out_of_memory(client: Client) -> None:
    """What was asked before these."""
    for prompt in PROMPTS[-3:]:
        kept(client, prompt)


def test_replicas_share_and_answers_outlive_the_server(
    artifact: Path, redis_server: RedisServer, server: LocalServer, client: Client
) -> None:
    first = kept(client, PROMPTS[0])
    secret = kept(client, PROMPTS[1])
    env = {"AUTOGLM_REDIS_URL": redis_server.url, "AUTOGLM_REDIS_TIMEOUT_MS": "20000"}
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, env=env) as another, Client(another.grpc_url) as asker:
        wait_for(lambda: counted(asker, "up") == 1)
        result = ask(asker, PROMPTS[0])
        assert (result.cache_hit, result.text) == ("exact", first.text) and result.cache_age_ms > 0
        assert asker.stats().engine["tokens_out"] == 0 and counted(asker, "hits") == 1
        assert ask(asker, PROMPTS[1], tenant="another").cache_hit == "none"
        assert ask(asker, PROMPTS[1]).text == secret.text
        assert asker.stats().engine["cache_entries"] == 3
        client.flush_cache()
        wait_for(lambda: asker.stats().engine["cache_entries"] == 0)
        assert ask(asker, PROMPTS[0]).cache_hit == "none"


def test_a_damaged_entry_is_computed_again(redis_server: RedisServer, client: Client) -> None:
    while_redis_answers(client, lambda: check_that_a_damaged_entry_is_computed_again(redis_server, client))


def check_that_a_damaged_entry_is_computed_again(redis_server: RedisServer, client: Client) -> None:
    expected = kept(client, PROMPTS[2])
    push_out_of_memory(client)
    before = counted(client, "corrupted")
    damage_all(redis_server)
    result = ask(client, PROMPTS[2])
    assert (result.text, result.cache_hit) == (expected.text, "none")
    assert counted(client, "corrupted") == before + 1
    kept(client, PROMPTS[2])
    push_out_of_memory(client)
    assert ask(client, PROMPTS[2]).cache_hit == "exact"


def damage_all(redis_server: RedisServer) -> None:
    with admin(redis_server) as redis:
        for name in redis.keys("autoglm:1:answer:*"):  # type: ignore[union-attr]
            value = redis.get(name)
            assert isinstance(value, bytes)
            redis.set(name, value.replace(b'"tokens":[', b'"tokens":[1'), px=60_000)


@dataclass
class Load:
    """What clients saw. A failed request ends the test."""

    texts: dict[str, str]
    begun: list[float] = field(default_factory=list)  # when those began that were answered
    hits: list[float] = field(default_factory=list)  # and those that were found
    is_over: bool = False

    async def ask(self, client: AsyncClient, seed: int) -> None:
        draw = random.Random(seed)
        while not self.is_over:
            prompt, began = draw.choice(PROMPTS), time.monotonic()
            result = await client.generate(prompt, **OPTIONS)  # type: ignore[arg-type]
            assert result.text == self.texts[prompt], "a wrong answer"
            self.begun.append(began)
            if result.cache_hit == "exact":
                self.hits.append(began)

    def num_answers(self, since: float) -> int:
        """Of those that were asked since then."""
        return sum(began >= since for began in self.begun)

    def num_hits(self, since: float) -> int:
        return sum(began >= since for began in self.hits)


def test_redis_killed_frozen_and_unreachable_under_load(
    redis_server: RedisServer, proxy: Proxy, server: LocalServer, client: Client
) -> None:
    load = Load({prompt: ask(client, prompt, cache="bypass").text for prompt in PROMPTS})

    def well(begin: Callable[[], object]) -> None:
        """Enough are found in Redis."""
        begin()
        wait_for(lambda: counted(client, "up") == 1)
        since = time.monotonic()
        wait_for(lambda: load.num_hits(since) > ENOUGH)

    def away(begin: Callable[[], object]) -> None:
        """Those that are asked meanwhile are answered, most of them without a word to Redis."""
        skipped = counted(client, "skipped")
        begin()
        since = time.monotonic()
        wait_for(lambda: load.num_answers(since) > ENOUGH and counted(client, "skipped") > skipped + ENOUGH)

    def heal() -> None:
        proxy.is_silent, proxy.delay = False, 0.0

    def play() -> None:
        well(lambda: None)
        away(lambda: setattr(proxy, "is_silent", True))
        well(heal)
        away(redis_server.kill)
        well(redis_server.start)
        away(lambda: setattr(proxy, "delay", 5 * LIMIT_SECONDS))
        well(heal)
        away(redis_server.freeze)
        well(redis_server.thaw)

    async def drive() -> None:
        async with AsyncClient(server.grpc_url) as asker, asyncio.TaskGroup() as group:
            for seed in range(6):
                group.create_task(load.ask(asker, seed))
            try:
                await asyncio.to_thread(play)
            finally:
                load.is_over = True

    asyncio.run(drive())
    assert counted(client, "errors") < counted(client, "skipped"), "the first that fails takes Redis out of use"
    assert "is left alone: " in server.log_text() and "is used again" in server.log_text()


def test_a_wrong_address_is_refused_at_start_by_name_and_without_its_password(artifact: Path) -> None:
    env = {"AUTOGLM_REDIS_URL": "http://:s3cret@cache"}
    with (
        pytest.raises(LocalServerError, match=r"the setting redis_url is '\*\*\*'") as raised,
        LocalServer(MODEL_REPOSITORY, artifact=artifact, env=env),
    ):
        pass
    assert "s3cret" not in str(raised.value)
