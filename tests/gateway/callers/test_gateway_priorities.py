"""`priority` of a request to the gateway: whose requests the server is told to admit first, and who may not ask for
it."""

from __future__ import annotations

from typing import Any

import pytest
from autoglm_engine.core import DEFAULT_PRIORITY
from autoglm_engine.options.table import OPTIONS
from autoglm_gateway.priorities import BEST, DEFAULT, LAST, admission_class
from autoglm_gateway.settings.model import GatewaySettings
from hypothesis import given
from hypothesis import strategies as st

from tests.support.client.client_fakes import FakeTransport, inputs_of
from tests.support.gateway.gateway_fakes import HELLO, bearer, made_keys, opened

CHAT = ("/v1/chat/completions", {"model": "autoglm", "messages": HELLO})
TEXT = ("/v1/completions", {"model": "autoglm", "prompt": "hello", "n": 2})
LEVELS = st.integers(BEST, LAST)


def asked(transport: FakeTransport) -> list[int | None]:
    said = (inputs_of(request).get("priority") for request in transport.requests)
    return [None if level is None else int.from_bytes(level, "little") for level in said]


@given(LEVELS, LEVELS, LEVELS)
def test_it_has_the_order_of_vllms(own: int, first: int, second: int) -> None:
    """Of those that may be asked for, and at the server: 1 is first there, and no class is out of its range."""
    first, second = sorted((max(own, first), max(own, second)))
    classes = [admission_class(level, own) or DEFAULT_PRIORITY for level in (first, second)]
    assert (classes[0] < classes[1]) == (first < second) and classes[0] <= classes[1]
    option = OPTIONS["priority"]
    assert all(max(1, option.low) <= level <= option.high for level in classes)
    assert admission_class(None, own) == admission_class(own, own)


@pytest.mark.parametrize(("path", "body"), [CHAT, TEXT])
async def test_every_choice_has_it(path: str, body: dict[str, Any]) -> None:
    transport = FakeTransport()
    async with opened(GatewaySettings(priority=BEST), transport) as gateway:
        for level in (BEST, DEFAULT, LAST):
            assert (await gateway.http.post(path, json={**body, "priority": level})).status_code == 200
    times = body.get("n", 1)
    assert asked(transport) == [1] * times + [None] * times + [9] * times, "the server's default is not said"


@pytest.mark.parametrize(("path", "body"), [CHAT, TEXT])
async def test_nobody_is_let_past_others_for_asking(path: str, body: dict[str, Any]) -> None:
    keys, (key,) = made_keys("alice")
    transport = FakeTransport()
    for settings, headers in ((GatewaySettings(), {}), (GatewaySettings(keys=keys), bearer(key))):
        async with opened(settings, transport) as gateway:
            answer = await gateway.http.post(path, json={**body, "priority": -1}, headers=headers)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"], error["code"]) == (403, "priority", "forbidden")
            assert error["message"].startswith("priority is -1; it must be between 0 and 4 for this caller")
            assert (await gateway.http.post(path, json={**body, "priority": 1}, headers=headers)).status_code == 200
    assert set(asked(transport)) == {6}


async def test_a_keys_own_holds_for_its_requests_and_bounds_them() -> None:
    urgent, (first,) = made_keys("urgent", more=", priority = -2")
    batch, (last,) = made_keys("batch", more=", priority = 3")
    plain, (other,) = made_keys("plain")
    transport = FakeTransport()
    path, body = CHAT
    async with opened(GatewaySettings(keys=urgent + batch + plain, priority=1), transport) as gateway:
        for key in (first, last, other):
            assert (await gateway.http.post(path, json=body, headers=bearer(key))).status_code == 200
        assert asked(transport) == [3, 8, 6]
        for key, level, status in ((first, -2, 200), (first, -3, 403), (last, 4, 200), (last, 2, 403), (other, 0, 403)):
            said = await gateway.http.post(path, json={**body, "priority": level}, headers=bearer(key))
            assert said.status_code == status, said.text


@pytest.mark.parametrize("wrong", [-5, 5, "0", 0.5, True])
async def test_it_has_a_range(wrong: object) -> None:
    path, body = CHAT
    async with opened(GatewaySettings(priority=BEST)) as gateway:
        answer = await gateway.http.post(path, json={**body, "priority": wrong})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "priority"
