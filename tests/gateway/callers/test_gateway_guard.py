"""Keys, limits and origins of the gateway, as the openai package and plain HTTP see them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from autoglm_client.exceptions import CannotConnectError
from autoglm_gateway.errors import ApiError
from autoglm_gateway.middleware.guard import Guard
from autoglm_gateway.middleware.limits import Limits, Meter, TokenBucket
from autoglm_gateway.settings.keys import KeyRing, new_key
from autoglm_gateway.settings.model import GatewaySettings
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.client.client_fakes import FakeTransport, Script, inputs_of
from tests.support.gateway.gateway_fakes import BASE, HELLO, bearer, chat, made_keys, opened

CHAT = "/v1/chat/completions"
BODY = {"model": "autoglm", "messages": HELLO}


async def test_a_key_is_forwarded_as_its_tenant_and_any_other_is_refused_before_the_server_hears_of_it() -> None:
    keys, (alice, bob) = made_keys("alice", "bob")
    transport = FakeTransport()
    async with opened(GatewaySettings(keys=keys), transport) as gateway:
        for key in (alice, bob):
            assert await chat(gateway.openai(key)) == "one two three"
        assert [inputs_of(request)["tenant"][4:] for request in transport.requests] == [b"alice", b"bob"]
        for wrong in (alice[:-1], new_key(), "", "Alice"):
            with pytest.raises(openai.AuthenticationError) as caught:
                await chat(gateway.openai(wrong or "none"), stream=True)
            assert caught.value.code == "invalid_api_key" and (wrong or "none") not in caught.value.message
    assert len(transport.requests) == 2


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "missing_api_key"),
        ([("Authorization", "Basic {key}")], "missing_api_key"),
        ([("Authorization", "Bearer {key}"), ("Authorization", "Bearer {key}")], "missing_api_key"),
        ([("Authorization", "{key}")], "missing_api_key"),
        ([("Authorization", "Bearer")], "invalid_api_key"),
        ([("Authorization", "Bearer {key}x")], "invalid_api_key"),
        ([("Authorization", b"Bearer \xff\x00")], "invalid_api_key"),
        ([("Authorization", "bearer  {key} ")], None),
    ],
)
async def test_whatever_is_not_one_key_is_answered_with_401_and_how_to_send_one(
    headers: list[tuple[str, str | bytes]], code: str | None
) -> None:
    keys, (key,) = made_keys("alice")
    filled = [
        (name.encode(), value if isinstance(value, bytes) else value.format(key=key).encode())
        for name, value in headers
    ]
    async with opened(GatewaySettings(keys=keys)) as gateway:
        answer = await gateway.http.post(CHAT, json=BODY, headers=filled)
    if code is None:
        assert answer.status_code == 200
        return
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="autoglm"')
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == code and key not in error["message"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "without", "with_key", "with_metrics"),
    [
        ("/health/live", 200, 200, 200),
        ("/health/ready", 200, 200, 200),
        ("/health", 200, 200, 200),
        ("/version", 401, 200, 200),
        ("/docs", 200, 200, 200),
        ("/openapi.json", 200, 200, 200),
        ("/v1/models", 401, 200, 200),
        ("/v1/models/", 401, 404, 404),
        ("//v1/models", 401, 404, 404),
        ("/health/live/", 401, 404, 404),
        ("/nothing", 401, 404, 404),
        ("/metrics", 401, 403, None),
    ],
)
async def test_what_needs_a_key(path: str, without: int, with_key: int, with_metrics: int | None) -> None:
    plain, (plain_key,) = made_keys("alice")
    scraper, (scraper_key,) = made_keys("prometheus", more=", metrics = true")
    async with opened(GatewaySettings(keys=plain + scraper)) as gateway:
        url = httpx.URL(BASE, raw_path=path.encode())

        async def status(headers: dict[str, str]) -> int:
            return (await gateway.http.send(httpx.Request("GET", url, headers=headers))).status_code

        assert (await status({}), await status(bearer(plain_key))) == (without, with_key)
        found = await status(bearer(scraper_key))
        assert found == with_metrics or (with_metrics is None and found not in (401, 403))


async def test_the_openapi_document_says_where_a_key_is_needed() -> None:
    keys, _ = made_keys("alice")
    documents = []
    for settings in (GatewaySettings(keys=keys), GatewaySettings()):
        async with opened(settings) as gateway:
            documents.append((await gateway.http.get("/openapi.json")).json())
    kept, plain = documents
    assert kept["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert kept["security"] == [{"key": []}] and kept["paths"]["/health/live"]["get"]["security"] == []
    assert "security" not in kept["paths"][CHAT]["post"] and "security" not in plain


async def test_the_pages_own_paths_are_open() -> None:
    keys, _ = made_keys("alice")
    async with opened(GatewaySettings(keys=keys)) as gateway:
        assert [(await gateway.http.get(path)).status_code != 401 for path in ("/", "/page/index.html")] == [True] * 2
        assert await plain_status(gateway.app, "/page/../v1/models") == 404


async def plain_status(app: Any, path: str) -> int:
    """Of a path that no client has made neat."""
    statuses = list[int]()

    async def send(message: dict[str, Any]) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "server": ("x", 80)}
    await app({**scope, "scheme": "http", "root_path": "", "http_version": "1.1"}, receive, send)
    return statuses[0]


async def test_strangers_learn_no_address_from_the_health() -> None:
    keys, _ = made_keys("alice")
    said = {}
    for settings in (GatewaySettings(keys=keys), GatewaySettings()):
        transport = FakeTransport(Script(connect_errors=[CannotConnectError("cannot reach 10.0.0.7:8001")] * 9))
        async with opened(settings, transport) as gateway:
            answer = await gateway.http.get("/health/ready")
        assert answer.status_code == 503
        said[bool(settings.keys)] = answer.json()
    assert said[True] == {"ready": False} and "10.0.0.7:8001" in said[False]["detail"]


@pytest.mark.slow
async def test_one_request_too_many_at_once_is_refused_and_a_slot_is_free_again_after_each_end() -> None:
    keys, (key,) = made_keys("alice", more=", concurrency = 2")
    transport = FakeTransport(Script(pause_s=3600))
    async with opened(GatewaySettings(keys=keys), transport) as gateway:
        client = gateway.openai(key)
        under_way = [asyncio.create_task(chat(client)) for _ in range(2)]
        async with asyncio.timeout(60):
            while len(transport.running) < 2:
                await asyncio.sleep(0.001)
        with pytest.raises(openai.RateLimitError) as caught:
            await chat(client)
        assert caught.value.code == "concurrency_limit_exceeded" and caught.value.response.headers["retry-after"] == "1"
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        transport.script = Script()
        for _ in range(3):
            with pytest.raises(openai.BadRequestError):
                await chat(client, temperature=9)
        assert await asyncio.gather(chat(client), chat(client)) == ["one two three"] * 2
    assert len(transport.requests) == 4


class Slow:
    """An application that begins an answer and then waits, or fails."""

    def __init__(self) -> None:
        self.fails = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if self.fails:
            raise RuntimeError("broken")
        await asyncio.sleep(60)


async def test_errors_and_disconnects_in_the_middle_of_an_answer_free_their_slot() -> None:
    keys, (key,) = made_keys("alice", more=", concurrency = 1")
    inner = Slow()
    guard = Guard(inner, GatewaySettings(keys=keys))
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    def ask() -> asyncio.Task[None]:
        headers = [(b"authorization", f"Bearer {key}".encode())]
        scope = {"type": "http", "path": CHAT, "method": "POST", "headers": headers}
        return asyncio.ensure_future(guard(scope, None, send))  # type: ignore[arg-type]

    for _ in range(3):
        inner.fails = True
        with pytest.raises(RuntimeError, match="broken"):
            await ask()
        inner.fails = False
        running = ask()
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert [message["status"] for message in sent if "status" in message] == [200] * 6


@pytest.fixture
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoglm_gateway.middleware.guard.Meter", partial(Meter, clock=lambda: 0.0))


@pytest.mark.usefixtures("no_time_passes")
async def test_the_rate_is_one_keys_own_and_the_refusal_says_when_to_come_again() -> None:
    keys, (alice, bob) = made_keys("alice", "bob")
    transport = FakeTransport()
    async with opened(GatewaySettings(keys=keys, requests_per_minute=12), transport) as gateway:
        first = gateway.openai(alice)
        assert [await chat(first) for _ in range(2)] == ["one two three"] * 2  # 10 seconds' worth
        with pytest.raises(openai.RateLimitError) as caught:
            await chat(first)
        assert caught.value.code == "rate_limit_exceeded" and "12 requests a minute" in caught.value.message
        assert caught.value.response.headers["retry-after"] == "5"
        assert await chat(gateway.openai(bob)) == "one two three"
    assert len(transport.requests) == 3


@pytest.mark.usefixtures("no_time_passes")
async def test_a_keys_own_limits_go_before_the_default() -> None:
    limited, (first,) = made_keys("alice", more=", requests_per_minute = 6")
    free, (second,) = made_keys("bob", more=", requests_per_minute = 0")
    async with opened(GatewaySettings(keys=limited + free, requests_per_minute=60)) as gateway:
        statuses = {
            key: [(await gateway.http.get("/v1/models", headers=bearer(key))).status_code for _ in range(20)]
            for key in (first, second)
        }
    assert statuses == {first: [200] + [429] * 19, second: [200] * 20}


@pytest.mark.usefixtures("no_time_passes")
async def test_without_keys_everybody_shares_one_limit_and_health_is_not_limited() -> None:
    async with opened(GatewaySettings(requests_per_minute=6)) as gateway:
        assert [(await gateway.http.get("/v1/models")).status_code for _ in range(3)] == [200, 429, 429]
        assert (await gateway.http.get("/health/live")).status_code == 200


@pytest.mark.parametrize(
    ("settings", "origin", "status"),
    [
        ({}, None, 200),
        ({}, "http://127.0.0.1:8080", 200),
        ({}, "http://localhost:3000", 200),
        ({}, "http://[::1]:8080", 200),
        ({}, "https://example.org", 403),
        ({}, "http://127.0.0.1.example.org", 403),
        ({}, "http://localhost@example.org", 403),
        ({}, "null", 403),
        ({}, "http://[", 403),
        ({"allow_origins": ("https://example.org",)}, "https://example.org", 200),
        ({"allow_origins": ("https://example.org",)}, "https://other.example.org", 403),
        ({"open": True}, "https://example.org", 200),
    ],
)
async def test_pages_of_elsewhere_cannot_use_a_gateway_of_this_machine(
    settings: dict[str, Any], origin: str | None, status: int
) -> None:
    async with opened(GatewaySettings(**settings)) as gateway:
        answer = await gateway.http.post(CHAT, json=BODY, headers={"Origin": origin} if origin else {})
    assert answer.status_code == status
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == (origin if "allow_origins" in settings and status == 200 else None)


async def test_a_page_that_is_allowed_may_send_its_key_and_reads_refusals() -> None:
    keys, _ = made_keys("alice")
    origin = {"Origin": "https://example.org"}
    asks = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with opened(GatewaySettings(keys=keys, allow_origins=("https://example.org",))) as gateway:
        before = await gateway.http.options(CHAT, headers=asks)
        refused = await gateway.http.post(CHAT, json=BODY, headers=origin)
    assert before.status_code == 200 and "authorization" in before.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in before.headers
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://example.org"
    async with opened(GatewaySettings(keys=keys)) as gateway:
        shut = await gateway.http.options(CHAT, headers=asks)
    assert shut.status_code == 401 and "access-control-allow-origin" not in shut.headers


async def test_the_deadline_of_the_gateway_holds_for_every_request() -> None:
    transport = FakeTransport(Script(finish_reason="deadline"))
    async with opened(GatewaySettings(deadline_ms=70), transport) as gateway:
        client = gateway.openai("none")
        with pytest.raises(openai.APIStatusError, match="within its time limit of 70 ms") as caught:
            await chat(client)
        assert (caught.value.status_code, caught.value.code) == (422, "deadline")
        stream = await client.chat.completions.create(model="autoglm", messages=HELLO, stream=True)  # type: ignore[call-overload]
        with pytest.raises(openai.APIError, match="70 ms"):
            async for _ in stream:
                pass
    assert [int.from_bytes(inputs_of(request)["deadline_ms"], "little") for request in transport.requests] == [70, 70]


def test_a_key_ring_finds_each_key_of_a_tenant_and_no_other() -> None:
    keys, known = made_keys("alice", "bob", "carol")
    ring = KeyRing(keys)
    assert [found.tenant for key in known if (found := ring.find(key.encode()))] == ["alice", "bob", "carol"]
    digest = keys[0].digests[0]
    assert ring.find(digest) is None and ring.find(digest.hex().encode()) is None and ring.find(b"") is None


@given(
    rate=st.floats(0.1, 100),
    capacity=st.floats(1, 50),
    pauses=st.lists(st.floats(0, 20), min_size=1, max_size=60),
)
def test_a_bucket_gives_no_more_than_its_rate_and_burst_and_no_less_than_it_promised(
    rate: float, capacity: float, pauses: list[float]
) -> None:
    now = 0.0
    bucket = TokenBucket(rate, capacity, lambda: now)
    taken = list[float]()
    for pause in pauses:
        now += pause
        wait = bucket.take()
        if not wait:
            taken.append(now)
        else:
            now += wait * (1 + 1e-9) + 1e-9
            assert bucket.take() == 0
            taken.append(now)
    for at, start in enumerate(taken):
        for later, end in enumerate(taken[at:], start=1):
            assert later <= capacity + (end - start) * rate + 1e-6


@given(
    asked=st.lists(st.tuples(st.integers(1, 64), st.floats(0, 30)), min_size=1, max_size=40), minute=st.integers(6, 600)
)
@example(  # whoever waits as long as was said is admitted, whatever the last bit of the sum
    asked=[
        (1, 5.0698675010424665),
        (1, 29.475118597165736),
        (1, 29.446722174640474),
        (1, 29.28411443205486),
        (6, 29.727166029614253),
        (12, 0.0),
    ],
    minute=72,
)
def test_choices_count_as_requests_whatever_their_number(asked: list[tuple[int, float]], minute: int) -> None:
    """In the long run no more than the rate, plus one bucket, plus the one request that may be larger than a bucket."""
    now, taken = 0.0, 0
    meter = Meter(Limits(requests_per_minute=minute), lambda: now)
    burst = max(1.0, minute / 6)
    for num, pause in asked:
        now += pause
        try:
            places = meter.enter()
        except ApiError:
            continue
        try:
            if num > 1:
                places.take(num - 1)
        except ApiError as error:
            assert error.code == "rate_limit_exceeded" and f"{num} choices" in error.message
            now += error.retry_after or 0  # until then it was promised
            places.leave()
            places = meter.enter()
            places.take(num - 1)
        taken += num
        places.leave()
        assert meter.running == 0
        assert taken <= burst + now * minute / 60 + max(0, num - burst) + 1e-6


async def test_64_choices_are_64_requests_of_the_limit() -> None:
    keys, (key,) = made_keys("alice", more=", requests_per_minute = 390")  # of which 65 may come at once
    async with opened(GatewaySettings(keys=keys)) as gateway:
        many = {**BODY, "n": 16, "max_tokens": 1}
        statuses = [(await gateway.http.post(CHAT, json=many, headers=bearer(key))).status_code for _ in range(5)]
        texts = {"model": "autoglm", "prompt": ["a"] * 4, "n": 16, "max_tokens": 1}
        refused = await gateway.http.post("/v1/completions", json=texts, headers=bearer(key))
    assert statuses == [200, 200, 200, 200, 429]
    assert refused.status_code == 429 and "one of 64 choices, which counts as 64," in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 11


def test_what_a_meter_refuses_counts_for_nothing() -> None:
    now = 0.0
    meter = Meter(Limits(requests_per_minute=12, concurrency=1), lambda: now)
    first = meter.enter()
    for _ in range(50):
        with pytest.raises(Exception, match="under way"):
            meter.enter()
    first.leave()
    meter.enter().leave()  # the second of the burst: the refused ones took none
    assert meter.running == 0
