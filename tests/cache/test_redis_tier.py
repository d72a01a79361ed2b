"""The Redis tier against a real redis-server: what it gives, what it refuses, and what it does when Redis is away."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from autoglm_cli.server.ports import free_ports
from autoglm_engine.cache.redis import commands as redis_commands
from autoglm_engine.cache.redis import connection as redis_connection
from autoglm_engine.cache.redis import tier as redis_tier
from autoglm_engine.cache.redis.commands import RedisCommands, Reply
from autoglm_engine.cache.redis.entry import MAX_VALUE_BYTES
from autoglm_engine.cache.redis.tier import RedisTier
from autoglm_engine.cache.tiers import Found
from autoglm_engine.core import CacheHit, Event, FinishReason, Stages, TokenLogprobs, Usage
from autoglm_engine.metrics import CACHE_CORRUPTED, REDIS_LOOKUP, REDIS_UP
from autoglm_engine.settings.model import plain_settings

from tests.support.engine.fakes import request
from tests.support.engine.memory_metrics import MemoryMetrics
from tests.support.server.real_redis import Proxy, RedisServer, proxied, running_redis

pytestmark = pytest.mark.slow

ASKED = request()
ANSWER = Event(
    "",
    (5, 6),
    Usage(3, 2, 1),
    Stages(),
    FinishReason.STOP,
    text_bytes=4,
    is_first=True,
    logprobs=(TokenLogprobs(5, -0.5, ((5, -0.5), (9, -1.25))), TokenLogprobs(6, -0.25, ())),
)
TOO_LARGE = replace(ANSWER, token_ids=tuple(range(MAX_VALUE_BYTES // 6)), logprobs=())
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
SECONDS = 120.0
RETRY_SECONDS = 5.0


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    with admin(shared_server) as client:
        client.flushall()
    return shared_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """To be killed."""
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with proxied(server.port) as made:
        yield made


@pytest.fixture
def make() -> Iterator[Callable[..., RedisTier]]:
    with ExitStack() as stack:

        def build(url: str, *, metrics: MemoryMetrics | None = None, up: bool = True, **options: object) -> RedisTier:
            forget = options.pop("forget", lambda: None)
            chosen = {"redis_url": url, "redis_timeout_ms": 60_000, "redis_retry_seconds": 0.05, **options}
            tier = RedisTier(plain_settings(**chosen), metrics or MemoryMetrics(), forget=forget)  # type: ignore[arg-type]
            stack.callback(tier.close)
            if up:
                wait_for(lambda: tier.is_up)
            return tier

        yield build


@contextmanager
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port) as client:
        yield client


def wait_for(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.002)


def keep(tier: RedisTier, key: bytes = KEY, answer: Event = ANSWER) -> None:
    """And wait until it is there."""
    before = counted(tier, "stores") + counted(tier, "dropped")
    tier.keep(key, ASKED, answer)
    wait_for(lambda: counted(tier, "stores") + counted(tier, "dropped") > before)


def kept_by(tier: RedisTier) -> bool:
    """Whether it finds what it keeps; not yet, where another epoch has just begun."""
    keep(tier)
    return find(tier) is not None


def find(tier: RedisTier, key: bytes = KEY) -> Found | None:
    return tier.find(key, ASKED)


def counted(tier: RedisTier, name: str) -> int:
    return tier.stats[f"cache_redis_{name}"]


def entry_name(client: redis.Redis) -> bytes:
    (name,) = client.keys("autoglm:1:answer:*")  # type: ignore[misc]
    assert isinstance(name, bytes)
    return name


# ---- hits


def test_what_one_server_keeps_another_finds_with_its_age(server: RedisServer, make: Callable[..., RedisTier]) -> None:
    metrics = MemoryMetrics()
    keeps, finds = make(server.url), make(server.url, metrics=metrics)
    began = time.monotonic()
    keep(keeps, answer=replace(ANSWER, request_id="somebody's", stages=Stages(1, 2, 3, 4)))
    time.sleep(0.2)
    found = find(finds)
    assert found is not None and (found.answer, found.hit) == (ANSWER, CacheHit.EXACT)
    assert 0.15 <= found.age <= time.monotonic() - began + 0.1
    assert find(finds, OTHER_KEY) is None
    assert {name: counted(finds, name) for name in ("hits", "misses", "errors", "skipped", "up")} == {
        "hits": 1,
        "misses": 1,
        "errors": 0,
        "skipped": 0,
        "up": 1,
    }
    assert (metrics.histogram(REDIS_LOOKUP).num_values, metrics.value(REDIS_UP)) == (2, 1)


def test_an_answer_ends_with_its_time_and_is_young_in_no_other_server(
    server: RedisServer, make: Callable[..., RedisTier]
) -> None:
    ttl = 1.0
    keeps = make(server.url, cache_ttl_seconds=ttl)
    impatient = make(server.url, cache_ttl_seconds=0.05)
    began = time.monotonic()
    keep(keeps)
    time.sleep(0.1)
    assert find(keeps) is not None or time.monotonic() - began >= ttl
    assert find(impatient) is None
    wait_for(lambda: find(keeps) is None)
    assert time.monotonic() - began > 0.9 * ttl
    with admin(server) as client:
        assert not client.keys("autoglm:1:answer:*")


def test_other_prefixes_and_databases_are_other_caches(server: RedisServer, make: Callable[..., RedisTier]) -> None:
    keep(make(server.url))
    assert find(make(server.url, redis_prefix="other")) is None
    assert find(make(server.url + "/1")) is None
    assert find(make(server.url + "/0")) is not None


def test_an_answer_that_is_too_large_is_not_kept(server: RedisServer, make: Callable[..., RedisTier]) -> None:
    tier = make(server.url)
    tier.keep(KEY, ASKED, TOO_LARGE)
    wait_for(lambda: counted(tier, "dropped") == 1)
    assert find(tier) is None and counted(tier, "stores") == 0


def test_an_answer_that_is_not_kept_takes_the_one_before_with_it(
    own_server: RedisServer, make: Callable[..., RedisTier]
) -> None:
    tier, other = make(own_server.url), make(own_server.url)
    keep(tier)
    keep(tier, answer=TOO_LARGE)
    wait_for(lambda: find(other) is None)
    keep(tier)
    wait_for(lambda: kept_by(tier))
    with admin(own_server) as client:
        client.config_set("maxmemory", "1")
    keep(tier)
    wait_for(lambda: find(other) is None)


@pytest.mark.parametrize(("answers", "is_there"), [((ANSWER, TOO_LARGE), False), ((TOO_LARGE, ANSWER), True)])
def test_of_two_answers_that_are_written_at_once_the_later_counts(
    server: RedisServer,
    make: Callable[..., RedisTier],
    monkeypatch: pytest.MonkeyPatch,
    answers: tuple[Event, ...],
    is_there: bool,
) -> None:
    tier = make(server.url)
    with monkeypatch.context() as patch:
        patch.setattr(tier._connection, "wake", lambda: None)
        for answer in answers:
            tier.keep(KEY, ASKED, answer)
    tier._connection.wake()
    wait_for(lambda: counted(tier, "stores") + counted(tier, "dropped") == 2 and not tier._connection._has_work)
    wait_for(lambda: (find(tier) is not None) == is_there)


def test_an_answer_that_is_forgotten_while_it_waits_to_be_written_is_not_kept(
    proxy: Proxy, make: Callable[..., RedisTier]
) -> None:
    tier = make(proxy.url)
    proxy.is_silent = True
    for key in (KEY, OTHER_KEY, KEY):  # the first is on its way, or waits with the others
        tier.keep(key, ASKED, ANSWER)
    tier.forget(KEY)
    proxy.is_silent = False
    wait_for(lambda: counted(tier, "stores") + counted(tier, "dropped") == 3 and not tier._connection._has_work)
    wait_for(lambda: find(tier) is None)
    assert find(tier, OTHER_KEY) is not None


# ---- what lies in Redis is not believed


def broken_bit(value: bytes) -> bytes:
    return value[:-3] + bytes([value[-3] ^ 1]) + value[-2:]


@pytest.mark.parametrize(
    "damage",
    [
        broken_bit,
        lambda value: value[:-1],
        lambda value: b"",
        lambda value: b"{}",
        lambda value: b"x" * (MAX_VALUE_BYTES + 9),
    ],
    ids=["a bit", "cut", "empty", "foreign", "huge"],
)
def test_a_damaged_entry_is_a_miss_and_is_removed(
    server: RedisServer, make: Callable[..., RedisTier], damage: Callable[[bytes], bytes]
) -> None:
    metrics = MemoryMetrics()
    tier = make(server.url, metrics=metrics)
    keep(tier)
    with admin(server) as client:
        name = entry_name(client)
        value = client.get(name)
        assert isinstance(value, bytes)
        client.set(name, damage(value), px=60_000)
        assert find(tier) is None
        if damage(value):
            wait_for(lambda: not client.exists(name))
            assert (metrics.value(CACHE_CORRUPTED), counted(tier, "corrupted")) == (1, 1)
    keep(tier)
    assert find(tier) is not None, "the tier is still in use"


@pytest.mark.parametrize("tampering", ["another's", "a list", "no end", "a longer life"])
def test_an_entry_that_somebody_tampered_with_is_a_miss_and_is_removed(
    server: RedisServer, make: Callable[..., RedisTier], tampering: str
) -> None:
    tier = make(server.url)
    keep(tier)
    with admin(server) as client:
        name = entry_name(client)
        match tampering:
            case "another's":
                client.rename(name, f"autoglm:1:answer:{OTHER_KEY.hex()}")
            case "a list":
                client.delete(name)
                client.lpush(name, "x")
            case "no end":
                client.persist(name)
            case "a longer life":
                client.pexpire(name, 10**9)
        assert find(tier, OTHER_KEY if tampering == "another's" else KEY) is None
        wait_for(lambda: not client.keys("autoglm:1:answer:*"))
    assert (counted(tier, "corrupted"), counted(tier, "errors")) == (1, 0)


# ---- flushes


def test_a_flush_is_for_all_servers_and_for_what_they_have_in_memory(
    server: RedisServer, make: Callable[..., RedisTier]
) -> None:
    forgot = threading.Event()
    flushes, other = make(server.url), make(server.url, forget=forgot.set)
    keep(other)
    flushes.flush()
    assert find(flushes) is None
    wait_for(lambda: find(other) is None)
    assert forgot.wait(SECONDS), "the other server was not told"
    wait_for(lambda: find(other) is None and other.is_up)
    keep(flushes)
    wait_for(lambda: find(other) is not None)


def watch(*tiers: RedisTier) -> None:
    """Until each has looked twice for the flushes of others."""
    for _ in range(2):
        before = [tier._connection._looked_at for tier in tiers]
        for tier in tiers:
            tier._connection.look_at_epoch()
        wait_for(partial(_have_looked, tiers, before))


def _have_looked(tiers: Sequence[RedisTier], since: Sequence[float]) -> bool:
    return all(tier._connection._looked_at > at for tier, at in zip(tiers, since, strict=True))


def test_two_servers_that_flush_do_not_answer_each_others_flushes(
    server: RedisServer, make: Callable[..., RedisTier]
) -> None:
    told: list[str] = []
    one, two = (make(server.url, forget=lambda name=name: told.append(name)) for name in ("one", "two"))
    one.flush()
    two.flush()
    wait_for(lambda: kept_by(one) and find(two) is not None)
    watch(one, two)
    assert find(one) is not None and find(two) is not None and len(told) <= 2


@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_nothing_of_before_a_flush_comes_back_when_redis_was_away(
    tmp_path: Path, make: Callable[..., RedisTier], how: str
) -> None:
    with running_redis(tmp_path, "--dbfilename", "dump.rdb") as server:
        tier = make(server.url, redis_timeout_ms=500)
        wait_for(lambda: kept_by(tier))
        with admin(server) as client:
            client.save()
        server.freeze() if how == "frozen" else server.kill()
        assert find(tier) is None
        tier.flush()
        server.thaw() if how == "frozen" else server.start()
        with admin(server) as client:
            assert entry_name(client), "it is still there"
            wait_for(lambda: tier.is_up)
            assert find(tier) is None
            assert find(make(server.url)) is None, "another server's, too"
            wait_for(lambda: kept_by(tier))


def test_a_snapshot_of_before_a_flush_that_redis_reads_again_brings_nothing_back(
    tmp_path: Path, make: Callable[..., RedisTier]
) -> None:
    with running_redis(tmp_path, "--dbfilename", "dump.rdb") as server:
        tier = make(server.url)
        keep(tier)
        with admin(server) as client:
            client.save()
        tier.flush()
        wait_for(lambda: tier.is_up)
        server.kill()
        assert find(tier) is None
        server.start()
        wait_for(lambda: tier.is_up)
        assert find(tier) is None
        keep(tier)
        wait_for(lambda: find(tier) is not None)


@pytest.mark.parametrize("rubbish", ["gone", "short", "a list"])
def test_a_lost_or_foreign_epoch_is_replaced(server: RedisServer, make: Callable[..., RedisTier], rubbish: str) -> None:
    tier = make(server.url)
    keep(tier)
    with admin(server) as client:
        client.delete("autoglm:1:generation")
        if rubbish == "short":
            client.set("autoglm:1:generation", "7")
        if rubbish == "a list":
            client.lpush("autoglm:1:generation", "7")
    assert find(tier) is None
    wait_for(lambda: kept_by(tier))


# ---- away


def count_attempts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each time that a tier begins to connect."""
    attempts, connect = list[object](), RedisCommands.connect
    monkeypatch.setattr(RedisCommands, "connect", lambda self: attempts.append(self) or connect(self))
    return attempts


def test_a_server_starts_without_redis_and_uses_it_when_it_comes(
    own_server: RedisServer,
    make: Callable[..., RedisTier],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_server.kill()
    tier = make(own_server.url, up=False)
    assert find(tier) is None and not tier.is_up
    tier.keep(KEY, ASKED, ANSWER)
    wait_for(lambda: "is left alone" in caplog.text)
    attempts = count_attempts(monkeypatch)
    wait_for(lambda: len(attempts) > 3)
    assert caplog.text.count("is left alone") == 1, "said once, not at each attempt"
    own_server.start()
    wait_for(lambda: tier.is_up)
    keep(tier)
    assert find(tier) is not None
    assert counted(tier, "skipped") == 1 and counted(tier, "dropped") == 1 and "is used again" in caplog.text


def test_an_answer_that_is_kept_the_moment_redis_comes_stays(
    own_server: RedisServer, make: Callable[..., RedisTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_server.kill()
    tier = make(own_server.url, up=False)
    tier.keep(KEY, ASKED, ANSWER)  # cannot be, so that whatever lies under its key goes
    came_back = tier._connection._came_back

    def keep_at_once() -> None:
        came_back()
        tier.keep(KEY, ASKED, ANSWER)

    monkeypatch.setattr(tier._connection, "_came_back", keep_at_once)
    own_server.start()
    wait_for(lambda: counted(tier, "stores") == 1 and not tier._connection._has_work)
    assert find(tier) is not None


def test_what_is_to_go_goes_also_where_redis_fails_at_that_moment(
    server: RedisServer, make: Callable[..., RedisTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()
    drop = RedisCommands.drop

    async def fails_once(commands: RedisCommands, keys: Sequence[bytes]) -> None:
        if not failed.is_set():
            failed.set()
            raise ConnectionError("gone")
        await drop(commands, keys)

    tier = make(server.url)
    keep(tier)
    monkeypatch.setattr(RedisCommands, "drop", fails_once)
    tier.forget(KEY)
    assert failed.wait(SECONDS)
    with admin(server) as client:
        wait_for(lambda: not client.keys("autoglm:1:answer:*"))


async def test_no_connection_is_left_that_opens_after_another_failed() -> None:
    commands, asked = RedisCommands("redis://127.0.0.1:1", "p"), list[str]()
    late = asyncio.Event()

    async def echo(text: str) -> None:
        asked.append(text)
        if len(asked) == 1:
            raise ConnectionError("refused")
        await late.wait()
        asked.append("late")

    commands._client.echo = echo  # type: ignore[method-assign, assignment]
    connecting = asyncio.create_task(commands.connect())
    while len(asked) < redis_commands._NUM_CONNECTIONS:
        await asyncio.sleep(0)
    late.set()
    with pytest.raises(ConnectionError, match="refused"):
        await connecting
    assert asked.count("late") == redis_commands._NUM_CONNECTIONS - 1, "it goes on after it has failed"


def test_killed_and_started_again(own_server: RedisServer, make: Callable[..., RedisTier]) -> None:
    tier = make(own_server.url)
    for _ in range(3):
        keep(tier)
        assert find(tier) is not None
        own_server.kill()
        assert find(tier) is None and find(tier) is None
        own_server.start()
        wait_for(lambda: tier.is_up)
        assert find(tier) is None
    assert counted(tier, "errors") <= 3, "one failure each time, the others skip it"


@pytest.mark.parametrize("how", ["silent", "slow", "dripping"])
def test_a_lookup_ends_in_time_and_those_after_it_do_not_wait(
    server: RedisServer, proxy: Proxy, make: Callable[..., RedisTier], how: str
) -> None:
    limit = 1.0
    tier = make(proxy.url, redis_timeout_ms=1e3 * limit, redis_retry_seconds=RETRY_SECONDS)
    keep(tier, answer=replace(ANSWER, token_ids=tuple(range(20_000)), logprobs=()))
    wait_for(lambda: find(tier) is not None)
    before = {name: counted(tier, name) for name in ("errors", "skipped")}
    proxy.is_silent, proxy.delay = how == "silent", {"silent": 0.0, "slow": 4.0, "dripping": 0.1}[how]
    proxy.chunk = 1024  # dripping: each read comes within the limit, all of them do not
    began = time.monotonic()
    assert [find(tier) for _ in range(20)] == [None] * 20
    tries = 1 + (time.monotonic() - began) // RETRY_SECONDS  # on a slow machine Redis is tried again meanwhile
    asked = {name: counted(tier, name) - count for name, count in before.items()}
    assert asked["errors"] + asked["skipped"] == 20 and asked["errors"] <= tries
    tier.keep(KEY, ASKED, ANSWER)
    tier.flush()
    proxy.is_silent, proxy.delay = False, 0.0
    wait_for(lambda: tier.is_up)
    keep(tier)
    wait_for(lambda: find(tier) is not None)


def test_a_name_that_does_not_resolve_and_a_wrong_password(
    own_server: RedisServer, make: Callable[..., RedisTier], caplog: pytest.LogCaptureFixture
) -> None:
    with admin(own_server) as client:
        client.config_set("requirepass", "s3cret")
    url = f"redis://:{{}}@127.0.0.1:{own_server.port}"
    assert find(make("redis://nowhere.invalid:1", up=False)) is None
    assert find(make(url.format("wr0ng"), up=False)) is None
    wait_for(lambda: "WRONGPASS" in caplog.text or "invalid username" in caplog.text)
    tier = make(url.format("s3cret"))
    keep(tier)
    assert find(tier) is not None
    assert "s3cret" not in caplog.text and "wr0ng" not in caplog.text


def test_a_full_redis_still_gives(
    own_server: RedisServer, make: Callable[..., RedisTier], caplog: pytest.LogCaptureFixture
) -> None:
    tier = make(own_server.url)
    keep(tier)
    with admin(own_server) as client:
        client.config_set("maxmemory", "1")
    tier.keep(OTHER_KEY, ASKED, ANSWER)
    wait_for(lambda: counted(tier, "dropped") == 1)
    assert find(tier) is not None and "did not take an answer" in caplog.text


def test_the_queue_is_bounded_while_redis_hangs(proxy: Proxy, make: Callable[..., RedisTier]) -> None:
    tier = make(proxy.url)
    proxy.is_silent = True
    for _ in range(3000):
        tier.keep(KEY, ASKED, ANSWER)
    assert counted(tier, "dropped") >= 3000 - 1024 - 64
    proxy.is_silent = False


def test_closing_does_not_wait_for_a_silent_redis_and_lookups_end(
    proxy: Proxy, make: Callable[..., RedisTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = make(proxy.url, redis_timeout_ms=60_000)
    asked, ended = threading.Event(), threading.Event()
    answer_in_time = tier._in_time
    tier._limit = 10 * SECONDS

    def asks(commands: RedisCommands, key: bytes) -> Coroutine[Any, Any, Reply]:
        asked.set()
        return answer_in_time(commands, key)

    monkeypatch.setattr(tier, "_in_time", asks)
    proxy.is_silent = True
    found: list[Found | None] = []
    looks = threading.Thread(target=lambda: (found.append(find(tier)), ended.set()))
    looks.start()
    assert asked.wait(SECONDS)
    tier.flush()
    tier.close()
    assert ended.wait(SECONDS), "the lookup waits for Redis"
    looks.join(SECONDS)
    proxy.is_silent = False
    assert found == [None] and find(tier) is None
    tier.keep(KEY, ASKED, ANSWER)
    tier.flush()
    tier.close()


def test_what_was_kept_just_before_the_end_is_there_at_the_next_start(
    server: RedisServer, make: Callable[..., RedisTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (redis_tier, redis_connection):
        monkeypatch.setattr(module, "_CLOSE_SECONDS", SECONDS)
    tier = make(server.url)
    tier.keep(KEY, ASKED, ANSWER)
    tier.close()
    assert find(make(server.url)) is not None


@pytest.fixture(autouse=True)
def _warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "autoglm_engine")


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """It speaks TLS there, with a certificate of its own for localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    files = {
        name: str(tmp_path / file) for name, file in (("cert", "cert.pem"), ("key", "key.pem"), ("ca-cert", "cert.pem"))
    }
    (tls,) = free_ports("127.0.0.1", 1)
    options = [part for name, file in files.items() for part in (f"--tls-{name}-file", file)]
    with running_redis(tmp_path, "--tls-port", str(tls), *options, "--tls-auth-clients", "no"):
        yield tls


def test_tls_and_lookups_that_open_no_connection(
    tls_port: int, tmp_path: Path, make: Callable[..., RedisTier], caplog: pytest.LogCaptureFixture
) -> None:
    url = f"rediss://localhost:{tls_port}/0"
    tier = make(f"{url}?ssl_ca_certs={tmp_path / 'cert.pem'}", redis_timeout_ms=20_000)
    keep(tier)
    with redis.Redis(port=tls_port, ssl=True, ssl_cert_reqs="none") as client, ThreadPoolExecutor(8) as threads:
        before = client.info("stats")["total_connections_received"]  # type: ignore[index]
        found = list(threads.map(lambda _: find(tier), range(64)))
        assert client.info("stats")["total_connections_received"] == before  # type: ignore[index]
    assert all(one is not None for one in found) and counted(tier, "errors") == 0
    assert find(make(f"{url}?ssl_cert_reqs=none")) is not None
    assert find(make(url, up=False)) is None
    wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
