"""A gateway whose server lives in the test, with the clients that ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import openai
from autoglm_client import AsyncClient
from autoglm_gateway.app import create_app
from autoglm_gateway.settings.keys import Key, line_of, new_key, read_keys
from autoglm_gateway.settings.model import GatewaySettings
from fastapi import FastAPI

from tests.support.client.client_fakes import FakeTransport

HELLO = [{"role": "user", "content": "hello"}]
BASE = "http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Opened:
    app: FastAPI
    http: httpx.AsyncClient

    def openai(self, key: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key=key, http_client=self.http, max_retries=0)


@asynccontextmanager
async def opened(settings: GatewaySettings, transport: FakeTransport | None = None) -> AsyncIterator[Opened]:
    server = transport or FakeTransport()
    app = create_app(settings, lambda urls, model: AsyncClient(urls, model=model, transport=lambda _: server))
    inner = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=inner, base_url=BASE) as http:
        yield Opened(app, http)


def made_keys(*tenants: str, more: str = "") -> tuple[tuple[Key, ...], list[str]]:
    """Of each tenant, with `more` in its line: what the gateway is told, and what the tenants know."""
    keys = [new_key() for _ in tenants]
    lines = [line_of(tenant, key).replace("}", f"{more}}}") for tenant, key in zip(tenants, keys, strict=True)]
    return read_keys("\n".join(lines), "the test"), keys


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def chat(client: openai.AsyncOpenAI, **more: object) -> str:
    answer = await client.chat.completions.create(model="autoglm", messages=HELLO, **more)  # type: ignore[call-overload]
    text: str = answer.choices[0].message.content
    return text
