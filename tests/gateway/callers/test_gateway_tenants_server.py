"""Two tenants of the real server, with its cache and a short queue: neither starves, and neither sees what the other
asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_gateway.settings.model import GatewaySettings

from tests.conftest import MODEL_REPOSITORY
from tests.support.gateway.gateway_fakes import made_keys
from tests.support.gateway.gateway_server import GatewayThread

pytestmark = pytest.mark.server

NUM_SLOTS, QUEUE = 4, 4
LETTER = (
    "Write a letter to the mayor of a small town by the sea, and say what the harbour needs before the winter comes."
)


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[LocalServer]:
    env = {"AUTOGLM_MAX_BATCH_SIZE": str(NUM_SLOTS), "AUTOGLM_MAX_QUEUE": str(QUEUE)}
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, env=env) as running:
        yield running


def asking(gateway: GatewayThread, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=600)


async def ask(client: openai.AsyncOpenAI, text: str = LETTER, **more: Any) -> openai.types.chat.ChatCompletion:
    options = {"temperature": 0.0, "max_tokens": 8, **more}
    messages = [{"role": "user", "content": text}]
    return await client.chat.completions.create(model="autoglm", messages=messages, **options)  # type: ignore[no-any-return,call-overload]


async def test_neither_sees_that_the_other_asked_the_same(server: LocalServer) -> None:
    keys, (first_key, second_key) = made_keys("alice", "bob")
    with GatewayThread(GatewaySettings(servers=(server.grpc_url,), keys=keys)) as gateway:
        async with asking(gateway, first_key) as alice, asking(gateway, second_key) as bob:
            answers = [await ask(client) for client in (alice, alice, bob, bob, alice)]
            for name in ("tenant", "caller"):
                with pytest.raises(openai.BadRequestError, match=name):
                    await ask(bob, extra_body={name: "alice"})
            with pytest.raises(openai.NotFoundError, match="not cached"):
                await ask(bob, "Something else.", extra_body={"cache": "only"})
            prefixes = [
                await ask(client, f"{LETTER} {more}", extra_body={"cache": "bypass"})
                for client, more in ((alice, "Be brief."), (bob, "Be kind."), (bob, "Be polite."))
            ]
    hits = [answer.model_extra["autoglm"]["cache_hit"] for answer in answers]  # type: ignore[index]
    assert hits == ["none", "exact", "none", "exact", "exact"]
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    assert [cached(answer) > 0 for answer in (answers[0], answers[2])] == [False, False]
    assert [cached(answer) > 16 for answer in prefixes] == [True, True, True]


async def test_an_answer_that_takes_longer_than_the_gateway_allows_is_422(server: LocalServer) -> None:
    with GatewayThread(GatewaySettings(servers=(server.grpc_url,), deadline_ms=150)) as gateway:
        async with asking(gateway, "none") as client:
            with pytest.raises(openai.APIStatusError, match="time limit of 150 ms") as caught:
                await ask(client, max_tokens=1000, extra_body={"cache": "bypass", "ignore_eos": True})
    assert caught.value.status_code == 422


def cached(answer: openai.types.chat.ChatCompletion) -> int:
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens or 0


@pytest.mark.parametrize("limit", [0, NUM_SLOTS - 1])
async def test_one_who_floods_takes_no_place_of_another(server: LocalServer, limit: int) -> None:
    """Without a limit the flood fills slots and queue, and the calm tenant is turned away: this is what limits are
    for."""
    flood, (flood_key,) = made_keys("flood", more=f", concurrency = {limit}")
    calm, (calm_key,) = made_keys("calm", more=", concurrency = 2, requests_per_minute = 6000")
    with GatewayThread(GatewaySettings(servers=(server.grpc_url,), keys=flood + calm)) as gateway:
        async with asking(gateway, flood_key) as flooding, asking(gateway, calm_key) as being_calm:
            counts = {"answers": 0, "refusals": 0}
            pressing = [asyncio.create_task(press(flooding, counts)) for _ in range(24)]
            async with asyncio.timeout(300):
                while not (counts["answers"] and counts["refusals"]):
                    await asyncio.sleep(0.02)
            calm_answers = await asyncio.gather(*(ask_again(being_calm, number) for number in range(2)))
            for task in pressing:
                task.cancel()
            await asyncio.gather(*pressing, return_exceptions=True)
    codes = [code for one in calm_answers for code in one]
    print(f"limit {limit}: flood {counts}, calm {codes}")
    assert (codes == [None] * len(codes)) == bool(limit)
    if not limit:
        assert set(codes) - {None} == {"queue_full"}


async def ask_again(client: openai.AsyncOpenAI, number: int) -> list[str | None]:
    """The codes of the refusals; None for an answer."""
    codes = list[str | None]()
    for turn in range(8):
        try:
            await ask(client, f"Count to {number * 100 + turn}.", max_tokens=4, extra_body={"cache": "bypass"})
            codes.append(None)
        except openai.RateLimitError as error:
            codes.append(error.code)
    return codes


async def press(client: openai.AsyncOpenAI, counts: dict[str, int]) -> None:
    while True:
        try:
            await ask(client, "Flood.", max_tokens=24, extra_body={"cache": "bypass", "ignore_eos": True})
            counts["answers"] += 1
        except openai.RateLimitError:
            counts["refusals"] += 1
            await asyncio.sleep(0.02)
