"""What the gateway keeps of its servers."""

from __future__ import annotations

import pytest
from autoglm_client import AsyncClient
from autoglm_client.exceptions import CannotConnectError
from autoglm_gateway.errors import ApiError
from autoglm_gateway.upstream import Upstream

from tests.support.client.client_fakes import FakeTransport, Script
from tests.support.engine.fakes import FakeClock


async def test_limits_are_asked_once_a_minute_and_kept_while_the_server_is_away() -> None:
    transport, clock = FakeTransport(), FakeClock()
    async with AsyncClient("fake", transport=lambda _: transport) as client:
        upstream = Upstream(client, clock)
        for _ in range(3):
            assert (await upstream.limits()).max_length == 2048
        assert len(transport.controls) == 1
        clock.now += 61
        await upstream.limits()
        assert len(transport.controls) == 2
        transport.script = Script(connect_errors=[CannotConnectError("no server there")] * 9)
        clock.now += 61
        assert (await upstream.limits()).max_length == 2048


async def test_limits_that_were_never_known_are_an_error() -> None:
    transport = FakeTransport(Script(connect_errors=[CannotConnectError("no server there")] * 9))
    async with AsyncClient("fake", transport=lambda _: transport) as client:
        with pytest.raises(ApiError) as caught:
            await Upstream(client).limits()
    assert caught.value.status == 503
