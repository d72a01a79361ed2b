"""A whole answer that is silent for long, against a real tritonserver: its rule for pings ends no connection of ours.

Triton takes one ping in 300 s from a client that it sends nothing, and ends the connection with the third before its
time. Here all of that is a hundred times faster; tests/hostile/test_long_silence.py has it as it is.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from autoglm_client import NO_RETRIES, Client, ConnectionLost, LocalServer, Timeouts
from autoglm_client.transport import transport

from tests.support.server.silent_model import num_asked, write_silent_repository

PER_PING_MS = 3000
SILENT_SECONDS = 13


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_silent_repository(tmp_path_factory.mktemp("silent"))


@pytest.fixture(scope="module")
def server(repository: Path) -> object:
    flags = (f"--grpc-http2-min-recv-ping-interval-without-data={PER_PING_MS}",)
    with LocalServer(repository, arguments=flags) as running:
        yield running


def ping_each(monkeypatch: pytest.MonkeyPatch, milliseconds: int) -> None:
    options = {**dict(transport._CHANNEL_OPTIONS), "grpc.keepalive_time_ms": milliseconds}
    monkeypatch.setattr(transport, "_CHANNEL_OPTIONS", tuple(options.items()))


def test_pings_keep_to_what_triton_takes_by_default() -> None:
    options = dict(transport._CHANNEL_OPTIONS)
    assert options["grpc.keepalive_time_ms"] > 300_000


@pytest.mark.server
@pytest.mark.slow
def test_a_long_silence_ends_with_the_answer(
    server: LocalServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ping_each(monkeypatch, PER_PING_MS + 100)
    before = num_asked(repository)
    with Client(server.grpc_url, timeouts=Timeouts(total=None)) as client:
        result = client.generate(str(SILENT_SECONDS))
    assert (result.text, result.attempts, num_asked(repository) - before) == ("so it was", 1, 1)


@pytest.mark.server
@pytest.mark.slow
def test_what_the_rule_would_end_is_a_lost_connection_and_no_busy_server(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ping_each(monkeypatch, PER_PING_MS // 10)
    with (
        Client(server.grpc_url, timeouts=Timeouts(total=None), retries=NO_RETRIES) as client,
        pytest.raises(ConnectionLost, match="Too many pings"),
    ):
        client.generate(str(SILENT_SECONDS))


@pytest.mark.server
def test_a_server_that_knows_no_heartbeats_is_asked_without(tmp_path: Path) -> None:
    repository = write_silent_repository(tmp_path, without=("heartbeat_ms",))
    with LocalServer(repository) as running, Client(running.grpc_url) as client:
        assert [client.generate("0").attempts for _ in range(2)] == [1, 1]
    assert num_asked(repository) == 2
