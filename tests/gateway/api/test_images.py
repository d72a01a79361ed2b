"""Images are answered, or refused with one sentence, in bounded memory, however large they are."""

from __future__ import annotations

import base64
import gc
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest
from autoglm_gateway.settings.model import MIB, GatewaySettings

from tests.support.client.client_fakes import FakeTransport, Script
from tests.support.gateway.gateway_server import GatewayThread, fake_client, logged_errors
from tests.support.server.raw_http import Answer, ask, connect, post, read_answer

pytestmark = pytest.mark.slow

AT_ONCE = 16


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayThread]:
    with logged_errors() as errors, GatewayThread(GatewaySettings(), fake_client) as running:
        yield running
    assert not errors


def picture(num_bytes: int) -> str:
    return "data:image/png;base64," + base64.b64encode(bytes(3 * num_bytes // 4)).decode()


def asked(url: object, **more: object) -> bytes:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url, **more}}]
    return post(json.dumps({"model": "autoglm", "messages": [{"role": "user", "content": parts}]}).encode())


@pytest.mark.parametrize("more", [{}, {"detail": "auto"}, {"detail": "low"}, {"detail": "high"}])
def test_an_image_is_refused_for_what_the_model_is(gateway: GatewayThread, more: dict[str, str]) -> None:
    answer = ask(gateway.port, asked(picture(1000), **more))
    assert answer.status == 400 and answer.error["param"] == "messages[0].content[1]"
    assert "no vision encoder" in answer.error["message"]


@pytest.mark.parametrize(
    ("url", "more", "param"),
    [
        ("file:///etc/passwd", {}, "messages[0].content[1].image_url.url"),
        ("", {}, "messages[0].content[1].image_url.url"),
        ("data:text/html,<b>", {}, "messages[0].content[1].image_url.url"),
        (7, {}, "messages[0].content[1].image_url.url"),
        ("https://example.org/a.png", {}, "messages[0].content[1].image_url.url"),
        ("http://example.org/a.png", {}, "messages[0].content[1].image_url.url"),
        (picture(3), {"detail": "best"}, "messages[0].content[1].image_url.detail"),
        (picture(3), {"size": 1}, "messages[0].content[1].image_url.size"),
    ],
)
def test_what_is_no_image_is_refused_by_name(
    gateway: GatewayThread, url: object, more: dict[str, object], param: str
) -> None:
    answer = ask(gateway.port, asked(url, **more))
    assert answer.status == 400 and answer.error["param"] == param


@pytest.mark.parametrize(
    ("num_bytes", "limit", "status", "most"),
    [
        pytest.param(3 * MIB // 2, 4 * MIB, 400, 64 * MIB, id="1.5 MB"),  # what is sent is 24
        pytest.param(20 * MIB, 4 * MIB, 413, 16 * MIB, id="20 MB, more than is taken"),
        pytest.param(20 * MIB, 32 * MIB, 400, 480 * MIB, id="20 MB, allowed"),  # what is sent is 320
    ],
)
def test_many_large_images_at_once_take_little_memory(num_bytes: int, limit: int, status: int, most: int) -> None:
    settings = GatewaySettings(max_body_bytes=limit, max_held_bytes=AT_ONCE * limit)
    with GatewayThread(settings, fake_client) as gateway:
        answers, peak = peak_of(gateway.port, asked(picture(num_bytes)))
    assert {answer.status for answer in answers} == {status}
    assert all(len(answer.body) < 500 for answer in answers)
    assert peak < most, f"{peak / MIB:.0f} MiB"


def test_screenshots_that_are_answered_at_once_take_little_memory() -> None:
    """Sent are 16 times 2 MB, which the test keeps besides: the server that lives in it has each request."""
    file = b"\x89PNG\r\n\x1a\n" + bytes(3 * MIB // 2)
    url = "data:image/png;base64," + base64.b64encode(file).decode()
    transport = FakeTransport(Script(pause_s=0.2))
    transport.limits["max_images"] = 10
    with GatewayThread(GatewaySettings(), partial(fake_client, transport=transport)) as gateway:
        answers, peak = peak_of(gateway.port, asked(url))
    assert {answer.status for answer in answers} == {200}
    assert peak < 200 * MIB, f"{peak / MIB:.0f} MiB"


def peak_of(port: int, request: bytes) -> tuple[list[Answer], int]:
    """Bytes, above what there was."""
    ask(port, asked(picture(1000)))
    gc.collect()
    before = start_peak()
    answers = ask_at_once(port, request)
    peak = resident("VmHWM") - before
    print(f"{peak / MIB:.0f} MiB at the peak")
    return answers, peak


def ask_at_once(port: int, request: bytes) -> list[Answer]:
    """All are there but for their last byte before the first is complete."""
    with ExitStack() as stack, ThreadPoolExecutor(AT_ONCE) as pool:
        connections = [stack.enter_context(connect(port)) for _ in range(AT_ONCE)]

        def begin(connection: socket.socket) -> None:
            with suppress(ConnectionError):  # where it is refused before its end
                connection.sendall(memoryview(request)[:-1])

        def end(connection: socket.socket) -> Answer:
            with suppress(ConnectionError):
                connection.sendall(request[-1:])
            return read_answer(connection)

        list(pool.map(begin, connections))
        return list(pool.map(end, connections))


def start_peak() -> int:
    """What is resident now, in bytes, from where the kernel counts the peak again."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(which: str) -> int:
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(which))
    return int(line.split()[1]) * 1024
