"""HEAD of whatever can be got is answered as GET is, without the body; of what cannot, it is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.gateway.gateway_fakes import bearer, made_keys, opened

PATHS = (
    *("/health", "/health/live", "/health/ready", "/version", "/metrics", "/v1/models", "/v1/models/autoglm"),
    *("/openapi.json", "/docs", "/", "/page/page.css", "/v1/models/none", "/page/none", "/none"),
)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with opened(GatewaySettings()) as gateway:
        yield gateway.http


async def test_every_route_that_can_be_got(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    listed = {path for path, operations in document["paths"].items() if "get" in operations and "{" not in path}
    assert listed <= set(PATHS) and "head" not in str(document["paths"].keys())
    for path in PATHS:
        got, head = await http.get(path), await http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        varying = {"x-request-id", "date"} | ({"content-length"} if path == "/metrics" else set())
        assert {name for name in got.headers if got.headers[name] != head.headers.get(name)} <= varying, path


async def test_what_cannot_be_got_is_refused(http: httpx.AsyncClient) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        head = await http.head(path)
        assert (head.status_code, head.content, head.headers["allow"]) == (405, b"", "POST")


async def test_it_needs_the_key_that_get_needs() -> None:
    keys, (key,) = made_keys("alice")
    async with opened(GatewaySettings(keys=keys)) as gateway:
        assert (await gateway.http.head("/v1/models")).status_code == 401
        assert (await gateway.http.head("/health/live")).status_code == 200
        assert (await gateway.http.head("/v1/models", headers=bearer(key))).status_code == 200
