"""What routers in front of several gateways ask of each, and add to the requests that they pass on."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from autoglm_client.exceptions import CannotConnectError
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.client.client_fakes import FakeTransport, Script, inputs_of
from tests.support.gateway.gateway_fakes import HELLO, bearer, made_keys, opened

CHAT = {"model": "autoglm", "messages": HELLO, "max_tokens": 3}
TEXT = {"model": "autoglm", "prompt": "hello", "max_tokens": 3}
DEFAULTS = {
    "no_stop_trim": False,
    "continue_final_message": False,
    "skip_special_tokens": True,
    "separate_reasoning": True,
    "stream_reasoning": True,
    "return_hidden_states": False,
    "include_reasoning": True,
}
DONE_IN_CHATS = ("continue_final_message", "separate_reasoning", "include_reasoning")
# As vllm-router passes a chat on.
ADDED = {"stream": False, "ignore_eos": False, **DEFAULTS}


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_what_routers_add_is_taken_and_changes_nothing(path: str, body: dict[str, Any]) -> None:
    transport = FakeTransport()
    async with opened(GatewaySettings(), transport) as gateway:
        for more in ({"ignore_eos": False}, ADDED, dict.fromkeys(DEFAULTS)):
            assert (await gateway.http.post(path, json={**body, **more})).status_code == 200
    plain, *routed = [inputs_of(request) for request in transport.requests]
    assert {**routed[1], "ignore_eos": plain["ignore_eos"]} == plain == routed[0]


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_at_other_values_they_ask_for_what_is_not_there(path: str, body: dict[str, Any], name: str) -> None:
    async with opened(GatewaySettings()) as gateway:
        others = [] if body is CHAT and name in DONE_IN_CHATS else [not DEFAULTS[name]]
        for value in (*others, int(DEFAULTS[name]), "true"):
            answer = await gateway.http.post(path, json={**body, name: value})
            error = answer.json()["error"]
            assert answer.status_code == 400 and error["param"] == name and error["code"] == "invalid_value"
    assert str(DEFAULTS[name]).lower() in error["message"] or "boolean" in error["message"]


async def test_health_is_readiness_without_a_key_and_the_version_is_told_with_one() -> None:
    keys, (key,) = made_keys("alice")
    async with opened(GatewaySettings(keys=keys)) as gateway:
        assert (await gateway.http.get("/health")).json() == {"ready": True}
        assert (await gateway.http.get("/version")).status_code == 401
        assert (await gateway.http.get("/version", headers=bearer(key))).json() == {
            "version": version("autoglm-triton")
        }
    down = FakeTransport(Script(connect_errors=[CannotConnectError("nobody there") for _ in range(99)]))
    async with opened(GatewaySettings(), down) as gateway:
        answers = [await gateway.http.get(path) for path in ("/health", "/health/ready")]
    assert [answer.status_code for answer in answers] == [503, 503] and answers[0].json() == answers[1].json()
