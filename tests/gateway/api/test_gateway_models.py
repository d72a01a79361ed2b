"""Several models behind one gateway: the field `model` chooses, and nothing of one is the other's."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from autoglm_client import AsyncClient
from autoglm_client.exceptions import CannotConnectError, ServerError
from autoglm_gateway.app import create_app
from autoglm_gateway.settings.error import SettingsError
from autoglm_gateway.settings.file import settings_of
from autoglm_gateway.settings.model import GatewaySettings

from tests.gateway.callers.test_gateway_settings import run
from tests.support.client.client_fakes import FakeTransport, Script, inputs_of
from tests.support.gateway.gateway_fakes import BASE, HELLO

MODELS = {"phone": "phone", "fast": "chat"}


@asynccontextmanager
async def in_front_of(settings: GatewaySettings, servers: dict[str, FakeTransport]) -> AsyncIterator[httpx.AsyncClient]:
    """`servers`: of each ensemble."""
    app = create_app(settings, lambda urls, model: AsyncClient(urls, model=model, transport=lambda _: servers[model]))
    inner = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=inner, base_url=BASE) as http:
        yield http


async def test_the_field_model_chooses() -> None:
    servers = {name: FakeTransport(Script((f"{name}!",))) for name in MODELS.values()}
    servers["chat"].limits["max_length"] = 64
    settings = GatewaySettings(models=MODELS, aliases={"autoglm-phone-9b": "phone"})
    async with in_front_of(settings, servers) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["phone", "fast", "autoglm-phone-9b"]
        for name, ensemble in (("phone", "phone"), ("fast", "chat"), ("autoglm-phone-9b", "phone")):
            assert (await http.get(f"/v1/models/{name}")).json()["id"] == name
            answer = await http.post("/v1/chat/completions", json={"model": name, "messages": HELLO})
            assert answer.json()["model"] == name
            assert answer.json()["choices"][0]["message"]["content"] == f"{ensemble}!"
            text = await http.post("/v1/completions", json={"model": name, "prompt": "a", "stream": True})
            assert f"{ensemble}!" in text.text
        assert {request.model_name for request in servers["phone"].requests} == {"phone"}
        assert {request.model_name for request in servers["chat"].requests} == {"chat"}
        for strange in ("chat", "autoglm"):  # an ensemble that is served under another name, and none
            refused = await http.post("/v1/completions", json={"model": strange, "prompt": "a"})
            assert refused.status_code == 404 and "phone, fast, autoglm-phone-9b" in refused.json()["error"]["message"]


async def test_limits_are_the_models_own() -> None:
    servers = {name: FakeTransport() for name in MODELS.values()}
    servers["chat"].limits["max_length"] = 64
    async with in_front_of(GatewaySettings(models=MODELS, aliases={}), servers) as http:
        for name in MODELS:
            await http.post("/v1/completions", json={"model": name, "prompt": "a", "max_tokens": 65})
    asked = {name: struct.unpack("<i", inputs_of(server.requests[0])["max_tokens"]) for name, server in servers.items()}
    assert asked == {"phone": (65,), "chat": (64,)}  # what the model can hold


async def test_each_model_is_counted_apart_an_alias_as_what_it_means() -> None:
    servers = {name: FakeTransport() for name in MODELS.values()}
    servers["chat"].script = Script(errors=[ServerError("broken")])
    async with in_front_of(GatewaySettings(models=MODELS, aliases={"nine": "phone"}), servers) as http:
        for name in ("phone", "nine", "fast", "made-up"):
            await http.post("/v1/completions", json={"model": name, "prompt": "a"})
        shown = (await http.get("/metrics")).text
    counts = dict(line.rsplit(" ", 1) for line in shown.splitlines() if not line.startswith("#"))
    asked = 'autoglm_gateway_requests_total{endpoint="/v1/completions",model="%s",status="%d"}'
    found = {asked % at: counts[asked % at] for at in (("phone", 200), ("fast", 500), ("", 404))}
    assert list(found.values()) == ["2.0", "1.0", "1.0"]
    assert counts['autoglm_gateway_upstream_errors_total{kind="server_error",model="fast"}'] == "1.0"
    assert counts['autoglm_gateway_upstream_errors_total{kind="server_error",model="phone"}'] == "0.0"
    assert counts['autoglm_gateway_tokens_out_total{endpoint="/v1/completions",model="phone"}'] == "6.0"
    assert "nine" not in shown and "made-up" not in shown


async def test_it_is_ready_where_all_of_them_are() -> None:
    servers = {name: FakeTransport() for name in MODELS.values()}
    async with in_front_of(GatewaySettings(models=MODELS, aliases={}), servers) as http:
        assert (await http.get("/health/ready")).status_code == 200
    servers["chat"] = FakeTransport(Script(connect_errors=[CannotConnectError("no server there")] * 99))
    async with in_front_of(GatewaySettings(models=MODELS, aliases={}), servers) as http:
        assert (await http.get("/health/ready")).status_code == 503


def test_without_models_the_one_is_autoglm_under_the_name_that_model_says() -> None:
    assert GatewaySettings().served == {"autoglm": "autoglm"}
    assert settings_of({"model": "mine"}, {}).served == {"mine": "autoglm"}
    assert settings_of({"models": {"a": "b"}}, {}).aliases == {"autoglm-phone-9b": "a"}
    assert settings_of({"models": MODELS}, {}).aliases == {}
    with pytest.raises(SettingsError, match="model is 'mine' beside models; one of them says all names"):
        settings_of({"model": "mine", "models": MODELS}, {})
    with pytest.raises(SettingsError, match="it must mean the model, 'phone', 'fast'"):
        settings_of({"models": MODELS, "aliases": {"x": "chat"}}, {})
    with pytest.raises(SettingsError, match="the alias 'x' says not which of phone, fast it means"):
        settings_of({"models": MODELS, "aliases": ("x",)}, {})


def test_the_command_takes_several() -> None:
    shown = run("gateway", "--models", "phone", "--models", "fast=chat", "--alias", "x=phone", "--print-config").output
    assert 'models = {"phone" = "phone", "fast" = "chat"}' in shown and 'aliases = {"x" = "phone"}' in shown
