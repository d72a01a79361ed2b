"""The response cache through the whole path: the real server, the ensemble, the client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from autoglm_client import AsyncClient, Client, InvalidRequestError, LocalServer, NotCachedError

from tests.conftest import MODEL_REPOSITORY
from tests.server.test_server import check_vanishing, open_stream

pytestmark = pytest.mark.server
PROMPT = "The response cache keeps"
OPTIONS = {"max_tokens": 24, "temperature": 0.0, "logprobs": 1}


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[LocalServer]:
    with LocalServer(MODEL_REPOSITORY, artifact=artifact) as running:
        yield running


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.grpc_url) as made:
        made.flush_cache()
        yield made


def test_a_hit_is_the_answer_again(client: Client, server: LocalServer) -> None:
    before = client.stats().engine
    first = client.generate(PROMPT, **OPTIONS)  # type: ignore[arg-type]
    with client.stream(PROMPT, **OPTIONS) as stream:  # type: ignore[arg-type]
        second = stream.read_all()
    assert (first.cache_hit, second.cache_hit) == ("none", "exact")
    assert (second.text, second.logprobs, second.finish_reason) == (first.text, first.logprobs, first.finish_reason)
    assert second.usage.completion_tokens == first.usage.completion_tokens == 24
    assert 0 < second.cache_age_ms < 60_000
    after = client.stats().engine
    assert after["cache_hits"] - before["cache_hits"] == 1
    assert after["tokens_out"] - before["tokens_out"] == 24
    assert after["cache_bytes"] > 0


def test_bypass_refresh_only_and_tenants(client: Client) -> None:
    with pytest.raises(NotCachedError, match="not cached"):
        client.generate(PROMPT, cache="only", **OPTIONS)  # type: ignore[arg-type]
    texts = []
    for use, tenant, hit in (
        ("bypass", None, "none"),
        ("default", None, "none"),
        ("refresh", None, "none"),
        ("only", None, "exact"),
        ("default", "a", "none"),
        ("default", "b", "none"),
        ("default", "a", "exact"),
    ):
        result = client.generate(PROMPT, cache=use, tenant=tenant, **OPTIONS)  # type: ignore[arg-type]
        assert result.cache_hit == hit, (use, tenant)
        texts.append(result.text)
    assert len(set(texts)) == 1
    with pytest.raises(InvalidRequestError, match="allowed are default, bypass, refresh, only"):
        client.generate(PROMPT, cache="sometimes")
    with pytest.raises(InvalidRequestError, match="tenant has 129 characters; at most 128"):
        client.generate(PROMPT, tenant="x" * 129)


def test_equal_requests_at_once_share_a_slot(client: Client, server: LocalServer) -> None:
    async def both() -> list[tuple[str, str]]:
        async with AsyncClient(server.grpc_url) as asker:

            async def read() -> tuple[str, str]:
                result = await asker.stream(PROMPT, max_tokens=200, temperature=0.0, ignore_eos=True).read_all()
                return result.text, result.cache_hit

            async def num_sharing() -> int:
                return int((await asker.stats()).engine["cache_coalesced"])

            before = await num_sharing()
            leaver = asker.stream(PROMPT, max_tokens=200, temperature=0.0, ignore_eos=True)
            await anext(leaver)  # it leads, and leaves
            reading = [asyncio.create_task(read()) for _ in range(3)]
            async with asyncio.timeout(60):
                while await num_sharing() < before + len(reading):
                    await asyncio.sleep(0.01)
            await leaver.aclose()
            return await asyncio.gather(*reading)

    found = asyncio.run(both())
    assert {hit for _, hit in found} == {"coalesced"}
    assert len({text for text, _ in found}) == 1
    alone = client.generate(PROMPT, max_tokens=200, temperature=0.0, ignore_eos=True, cache="bypass")
    assert alone.text == found[0][0]


def test_readers_of_one_computation_that_all_vanish_leave_no_slot_behind(server: LocalServer) -> None:
    def ten_cut_connections() -> None:
        for connection in [open_stream(server, {"stream": True}) for _ in range(10)]:
            connection.close()

    check_vanishing(server, ten_cut_connections)
