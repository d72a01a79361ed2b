"""Silent connections, of one address or of many, keep nobody out: not callers, and not those who ask whether the
gateway is well."""

from __future__ import annotations

import random
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
from autoglm_gateway.addresses import counted_as, within
from autoglm_gateway.errors import ApiError
from autoglm_gateway.server.connection_table import ConnectionTable, OpenConnection
from autoglm_gateway.settings.model import ConnectionLimits, GatewaySettings

from tests.support.client.client_fakes import FakeTransport, Script
from tests.support.gateway.gateway_server import GatewayThread, fake_client
from tests.support.server.raw_http import PATIENCE_SECONDS, ask, connect, head, is_closed, post, read_answer, wait_until

BODY = b'{"model":"autoglm","messages":[{"role":"user","content":"hello"}]}'
LIVE = head(method="GET", path="/health/live")
MODELS = head(method="GET", path="/v1/models")
FEW = ConnectionLimits(max_connections=20, max_connections_per_address=20)


@contextmanager
def serving(
    limits: ConnectionLimits, transport: FakeTransport | None = None, **more: object
) -> Iterator[GatewayThread]:
    make_client = partial(fake_client, transport=transport or FakeTransport())
    settings = GatewaySettings(connections=limits, **more)  # type: ignore[arg-type]
    with GatewayThread(settings, make_client) as gateway:
        yield gateway


def never_done() -> FakeTransport:
    return FakeTransport(Script(pause_s=3600))


def ask_without_end(
    stack: ExitStack, gateway: GatewayThread, transport: FakeTransport, num: int
) -> list[socket.socket]:
    """Connections whose requests are under way."""
    asking = [stack.enter_context(connect(gateway.port)) for _ in range(num)]
    for connection in asking:
        connection.sendall(post(BODY))
    wait_until(lambda: len(transport.running) == num)
    return asking


def from_address(address: str, port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS, source_address=(address, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        LIVE[:-2],
        head("Content-Type: application/json", "Content-Length: 1000") + b"{",
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_silent_connections_make_room_for_those_who_ask(sent: bytes) -> None:
    """The oldest goes first, and no more than needed."""
    with serving(FEW) as gateway, ExitStack() as stack:
        silent = [stack.enter_context(connect(gateway.port)) for _ in range(20)]
        for connection in silent:
            connection.sendall(sent)
        silent[-1].sendall(b"")
        with connect(gateway.port) as waited:  # what was sent before has been read when this is answered
            waited.sendall(LIVE)
            assert read_answer(waited).status == 200
        assert is_closed(silent[0])
        for number in range(10):
            connection = stack.enter_context(connect(gateway.port))
            connection.sendall(post(BODY) if number % 2 else LIVE)
            assert read_answer(connection).status == 200
        silent[-1].settimeout(0.05)
        assert not is_closed(silent[-1])


@pytest.mark.slow
def test_where_all_are_being_answered_only_health_is_asked() -> None:
    limits = ConnectionLimits(max_connections=5, max_connections_per_address=20)
    transport = never_done()
    with serving(limits, transport) as gateway, ExitStack() as stack:
        busy = ask_without_end(stack, gateway, transport, 5)
        for path in ("/health", "/health/live", "/health/ready"):
            assert ask(gateway.port, head(method="GET", path=path)).status == 200
        with connect(gateway.port) as one_more:
            one_more.sendall(MODELS)
            answer = read_answer(one_more)
            assert (
                answer.status == 503 and answer.error["code"] == "overloaded" and answer.headers["retry-after"] == "1"
            )
            one_more.sendall(LIVE)
            assert read_answer(one_more).status == 200
            busy.pop().close()
            wait_until(lambda: _asked_again(one_more) == 200)


def _asked_again(connection: socket.socket) -> int:
    connection.sendall(MODELS)
    return read_answer(connection).status


@pytest.mark.slow
def test_an_address_has_a_limit_of_its_own() -> None:
    limits = ConnectionLimits(max_connections=50, max_connections_per_address=3)
    transport = never_done()
    with serving(limits, transport) as gateway, ExitStack() as stack:
        ask_without_end(stack, gateway, transport, 3)
        with connect(gateway.port) as one_more:
            answer = read_answer(one_more)
            assert answer.status == 503 and "this address" in answer.error["message"] and is_closed(one_more)
        with from_address("127.0.0.2", gateway.port) as another:
            another.sendall(MODELS)
            assert read_answer(another).status == 200
    transport = never_done()
    with serving(limits, transport, trusted_proxies=("127.0.0.0/8",)) as gateway, ExitStack() as stack:
        ask_without_end(stack, gateway, transport, 6)  # many are behind a proxy


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=127.0.0.1"
    subprocess.run([*make.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@pytest.mark.slow
def test_a_tls_handshake_is_counted_and_has_its_time(certificate: tuple[str, str]) -> None:
    limits = ConnectionLimits(max_connections=8, max_connections_per_address=8, head_s=3600)
    cert, key = certificate
    trusting = ssl.create_default_context(cafile=cert)
    trusting.check_hostname = False
    with serving(limits, tls_cert=cert, tls_key=key) as gateway, ExitStack() as stack:
        silent = [stack.enter_context(connect(gateway.port)) for _ in range(8)]
        with trusting.wrap_socket(connect(gateway.port)) as asking:
            asking.sendall(post(BODY))
            assert read_answer(asking).status == 200  # type: ignore[arg-type]
        assert is_closed(silent[0])
    brief = ConnectionLimits(head_s=0.2)
    with serving(brief, tls_cert=cert, tls_key=key) as gateway, connect(gateway.port) as silent_one:
        assert is_closed(silent_one)


def test_a_host_of_ipv6_is_its_network_and_one_of_ipv4_is_itself() -> None:
    assert counted_as("2001:db8::1") == counted_as("2001:db8::ffff:1") == "2001:db8::/64"
    assert counted_as("::ffff:10.0.0.7") == counted_as("10.0.0.7") == "10.0.0.7"
    assert counted_as("fe80::1%eth0") == "fe80::/64" and counted_as("") == ""
    proxies = within(["10.0.0.0/8", "2001:db8::/32", "192.0.2.1"])
    assert [proxies(counted_as(found)) for found in ("10.9.9.9", "2001:db8:1::2", "192.0.2.1")] == [True] * 3
    assert [proxies(counted_as(found)) for found in ("11.0.0.1", "2001:db9::1", "192.0.2.2", "")] == [False] * 4


@pytest.mark.parametrize("seed", range(20))
def test_whoever_comes_and_goes_the_bounds_hold(seed: int) -> None:
    """Against a plain list: the bounds hold, only silent ones are ended, and nobody is refused while one is silent."""
    chance = random.Random(seed)
    limits = ConnectionLimits(max_connections=12, max_connections_per_address=5)
    table = ConnectionTable(limits, exempt=lambda address: address == "proxy")
    open_, silent = list[OpenConnection](), set[OpenConnection]()

    def enter(address: str) -> None:
        ended = list[OpenConnection]()
        box = list[OpenConnection]()
        of_address = [place for place in open_ if place.address == address]
        try:
            place = table.enter(address, lambda: ended.append(box[0]))
        except ApiError as error:
            assert error.status == 503
            assert not any(place in silent for place in (of_address if "address" in error.message else open_))
            return
        box.append(place)
        ends[place] = ended
        open_.append(place)
        silent.add(place)

    ends = dict[OpenConnection, list[OpenConnection]]()
    for _ in range(400):
        match chance.choice(["enter", "enter", "leave", "speak", "fall"]):
            case "enter":
                enter(chance.choice(["a", "b", "c", "d", "proxy"]))
            case "leave" if open_:
                place = open_.pop(chance.randrange(len(open_)))
                silent.discard(place)
                table.leave(place)
            case "speak" if open_:
                place = chance.choice(open_)
                table.spoke(place)
                silent.discard(place)
            case "fall" if open_:
                place = chance.choice(open_)
                table.fell_silent(place)
                silent.add(place)
        for place in [place for place in open_ if ends[place]]:
            assert place in silent, "one that was being answered was ended"
            open_.remove(place)
            silent.discard(place)
        assert table.num_open == len(open_) <= limits.max_connections + 64
        for address in ("a", "b", "c", "d"):
            assert sum(place.address == address for place in open_) <= limits.max_connections_per_address


@pytest.mark.slow
def test_the_limit_of_open_files_is_raised_to_fit() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
from autoglm_gateway.server.serving import allow_open_files
for wanted in (100, 1024, 10_000):
    allow_open_files(wanted)
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["356", "1280", "4096"]
