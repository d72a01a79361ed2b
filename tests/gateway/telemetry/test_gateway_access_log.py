"""The gateway's access log: what it says of each way that a request can end, and what it never says."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from autoglm_client.exceptions import ServerError
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_gateway.telemetry.access_log import AccessLog
from autoglm_gateway.telemetry.log_writer import LogWriter
from autoglm_gateway.telemetry.observing import Observing

from tests.support.client.client_fakes import FakeTransport, Script
from tests.support.gateway.gateway_fakes import BASE, HELLO, bearer, made_keys, opened
from tests.support.gateway.gateway_server import GatewayThread, fake_client

CHAT = "/v1/chat/completions"
FIELDS = [
    "time",
    "request_id",
    "client",
    "tenant",
    "method",
    "path",
    "status",
    "error",
    "model",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "first_byte_ms",
    "total_ms",
]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_line_says_who_asked_what_it_took_and_nothing_of_what_was_said(tmp_path: Path, stream: bool) -> None:
    keys, (key,) = made_keys("alice")
    file = tmp_path / "access.jsonl"
    body = {"model": "autoglm-phone-9b", "messages": [{"role": "user", "content": "a secret"}], "stream": stream}
    async with opened(GatewaySettings(keys=keys, access_log=str(file))) as gateway:
        answer = await gateway.http.post(f"{CHAT}?token=secret", json=body, headers=bearer(key))
    (line,) = lines_of(file)
    assert list(line) == FIELDS
    assert {name: line[name] for name in FIELDS[3:12]} == {
        "tenant": "alice",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "error": None,
        "model": "autoglm-phone-9b",
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "cached_tokens": 1,
    }
    assert line["request_id"] == answer.headers["x-request-id"] and 0 < line["first_byte_ms"] <= line["total_ms"]
    assert "secret" not in (text := file.read_text()) and "one two" not in text and key not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_a_prompt_counts_once_however_many_choices_it_has(tmp_path: Path) -> None:
    file = tmp_path / "log"
    async with opened(GatewaySettings(access_log=str(file))) as gateway:
        for stream in (False, True):
            body = {"model": "autoglm", "prompt": ["a", "b"], "n": 3, "stream": stream}
            assert (await gateway.http.post("/v1/completions", json=body)).status_code == 200
    for line in lines_of(file):
        assert (line["prompt_tokens"], line["completion_tokens"], line["cached_tokens"]) == (6, 18, 2)


async def test_prompts_are_there_only_where_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "log"
    async with opened(GatewaySettings(access_log=str(file), log_prompts=True)) as gateway:
        await gateway.http.post(CHAT, json={"model": "autoglm", "messages": HELLO})
    (line,) = lines_of(file)
    assert line["prompts"] == [HELLO]


@pytest.mark.parametrize(
    ("headers", "body", "script", "status", "error"),
    [
        ({"Authorization": "Bearer wrong"}, {}, Script(), 401, "invalid_api_key"),
        ({}, {"temperature": 9}, Script(), 400, "invalid_value"),
        ({}, {"model": "gpt"}, Script(), 404, "model_not_found"),
        ({}, {}, Script(errors=[ServerError("broken")]), 500, "server_error"),
        ({}, {"stream": True}, Script(fail_after=(1, ServerError("broken"))), 200, "server_error"),
    ],
)
async def test_what_went_wrong_is_named(
    tmp_path: Path, headers: dict[str, str], body: dict[str, Any], script: Script, status: int, error: str
) -> None:
    keys, (key,) = made_keys("alice")
    file = tmp_path / "log"
    asked = {"model": "autoglm", "messages": HELLO, **body}
    async with opened(GatewaySettings(keys=keys, access_log=str(file)), FakeTransport(script)) as gateway:
        answer = await gateway.http.post(CHAT, json=asked, headers=headers or bearer(key))
    (line,) = lines_of(file)
    assert (line["status"], line["error"], answer.status_code) == (status, error, status)
    assert line["tenant"] == (None if headers else "alice") and answer.headers["x-request-id"] == line["request_id"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("my-request:7", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ('{"injected": 1}', False),
        ("\u00e4", False),
    ],
)
async def test_a_callers_request_id_is_kept_where_it_can_be_shown(said: str, kept: bool) -> None:
    async with opened(GatewaySettings()) as gateway:
        headers = [(b"x-request-id", said.encode())]
        answers = [await gateway.http.get("/health/live", headers=headers) for _ in range(2)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert ids == [said] * 2 if kept else ids[0] != ids[1] and all(one.startswith("req-") for one in ids)


async def serve(app: Any, messages: list[dict[str, Any]], writer: LogWriter) -> list[dict[str, Any]]:
    """One request through the layer; the client sends `messages`, the last of them again and again."""
    sent = list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if len(messages) > 1 else messages[0]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": []}
    await Observing(app, [AccessLog(writer, log_prompts=False)])(scope, receive, send)  # type: ignore[arg-type]
    return sent


GONE = {"type": "http.disconnect"}
START = {"type": "http.response.start", "status": 200, "headers": []}


async def test_a_client_that_leaves_before_the_end_is_499_and_one_that_leaves_after_it_is_not(tmp_path: Path) -> None:
    async def early(scope: Any, receive: Any, send: Any) -> None:
        await send(dict(START))
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        assert await receive() == GONE

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await send(dict(START))
        await send({"type": "http.response.body", "body": b"all"})
        assert await receive() == GONE

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == GONE

    with LogWriter(str(tmp_path / "log"), 10) as writer:
        for app in (early, late, silent):
            await serve(app, [GONE], writer)
    assert [(line["status"], line["error"]) for line in lines_of(tmp_path / "log")] == [
        (499, "client_left"),
        (200, None),
        (499, "client_left"),
    ]


async def test_what_nobody_caught_is_an_answer_with_an_id_and_a_line_and_is_raised(tmp_path: Path) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a secret")

    with LogWriter(str(tmp_path / "log"), 10) as writer, pytest.raises(RuntimeError, match="a secret"):
        await serve(broken, [GONE], writer)
    (line,) = lines_of(tmp_path / "log")
    assert (line["status"], line["error"]) == (500, "internal_error") and "secret" not in json.dumps(line)


async def test_the_whole_gateway_answers_what_nobody_caught_in_the_shape_of_errors(tmp_path: Path) -> None:
    async with opened(GatewaySettings()) as gateway:

        @gateway.app.get("/broken")
        async def broken() -> None:
            raise RuntimeError("a secret")

        answer = await gateway.http.get("/broken")
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"
    assert answer.headers["x-request-id"].startswith("req-") and "secret" not in answer.text


def test_the_writer_never_waits_and_counts_what_it_dropped(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"  # of which nobody reads: the thread is stuck in its first write
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = LogWriter(str(pipe), 4)
    with writer:
        writer.write({"filler": "x" * (1 << 20)})
        waiting = threading.Event()
        while writer._queue.qsize():
            waiting.wait(0.01)
        for number in range(7):
            writer.write({"number": number})
        assert writer.dropped == 3
        read = bytearray()
        while b'"number": 3' not in read:
            try:
                read += os.read(reader, 1 << 16)
            except BlockingIOError:
                waiting.wait(0.01)
        writer.write({"number": 7})
    while chunk := os.read(reader, 1 << 16):
        read += chunk
    os.close(reader)
    lines = [json.loads(line) for line in read.decode().splitlines()][1:]
    assert [line["number"] for line in lines if "number" in line] == [0, 1, 2, 3, 7]
    assert [line for line in lines if "number" not in line] == [{"dropped": 3}]


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with LogWriter(str(file), 10) as writer:
        writer.write({"number": 1})
        wait_for(file, 1)
        file.rename(tmp_path / "log.1")
        writer.write({"number": 2})
    assert lines_of(tmp_path / "log.1") == [{"number": 1}] and lines_of(file) == [{"number": 2}]


def test_a_full_disk_loses_lines_but_no_request_and_says_so(tmp_path: Path) -> None:
    with LogWriter("/dev/full", 10) as writer:
        for _ in range(3):
            writer.write({"number": 1})
    assert writer.dropped == 3


def test_stderr_is_a_target(capfd: pytest.CaptureFixture[str]) -> None:
    with LogWriter("-", 10) as writer:
        writer.write({"text": "ä"})
    assert capfd.readouterr().err == '{"text": "ä"}\n'


def test_a_log_that_cannot_be_opened_is_an_error_before_anybody_asks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LogWriter(str(tmp_path / "missing" / "log"), 10)


def wait_for(file: Path, count: int) -> None:
    waiting = threading.Event()
    for _ in range(6000):
        if len(file.read_text().splitlines()) >= count:
            return
        waiting.wait(0.01)
    raise AssertionError(f"{file} has fewer than {count} lines")


async def test_many_at_once_have_a_line_each(tmp_path: Path) -> None:
    file = tmp_path / "log"
    async with opened(GatewaySettings(access_log=str(file))) as gateway:
        url = httpx.URL(f"{BASE}/health/live")
        ids = [str(number) for number in range(200)]
        await asyncio.gather(*(gateway.http.get(url, headers={"x-request-id": one}) for one in ids))
    assert sorted(line["request_id"] for line in lines_of(file)) == sorted(ids)


async def test_a_line_commands_no_terminal_that_shows_it(tmp_path: Path) -> None:
    file = tmp_path / "log"
    prompt = "C1 \x9b2J, turned \u202eabc, \x7f\u2028"
    async with opened(GatewaySettings(access_log=str(file), log_prompts=True)) as gateway:
        await gateway.http.get("/v1/\x9b2J\u202eabc%C2%9B%E2%80%AE%1B")
        await gateway.http.post(CHAT, json={"model": "autoglm", "messages": [{"role": "user", "content": prompt}]})
    text = file.read_text(encoding="utf-8")
    assert not set(text) & set("\x1b\x9b\x7f\u202e\u2028")
    asked, said = lines_of(file)
    assert asked["path"] == "/v1/\x9b2J\u202eabc\x9b\u202e\x1b" and said["prompts"][0][0]["content"] == prompt


@pytest.mark.parametrize(
    ("host", "trusted", "client"),
    [
        ("127.0.0.1", (), "127.0.0.1"),
        ("127.0.0.1", ("10.0.0.0/8",), "127.0.0.1"),
        ("127.0.0.1", ("127.0.0.1",), "203.0.113.9"),
        ("::", ("10.0.0.0/8",), "::ffff:127.0.0.1"),
        ("::", ("127.0.0.0/8",), "203.0.113.9"),
    ],
)
def test_who_asks_is_said_by_proxies_that_are_named_and_by_nobody_else(
    tmp_path: Path, host: str, trusted: tuple[str, ...], client: str
) -> None:
    file = tmp_path / "log"
    settings = GatewaySettings(host=host, open=True, access_log=str(file), trusted_proxies=trusted)
    with GatewayThread(settings, fake_client) as gateway:
        forwarded = {"X-Forwarded-For": "evil\x9b, 203.0.113.9", "X-Forwarded-Proto": "https"}
        httpx.get(f"{gateway.url}/health/live", headers={k: v.encode("latin-1") for k, v in forwarded.items()})  # type: ignore[arg-type]
    (line,) = lines_of(file)
    assert line["client"] == client


def test_a_line_that_cannot_be_written_does_not_end_the_log(tmp_path: Path) -> None:
    """Half a surrogate pair, as JSON of a client may hold, and a value that JSON has not."""
    file = tmp_path / "log"
    with LogWriter(str(file), 10) as writer:
        writer.write({"tenant": "half \ud83d"})
        wait_for(file, 1)
        writer.write({"tenant": object()})
        while not writer.dropped:
            threading.Event().wait(0.01)
        writer.write({"tenant": "whole"})
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"tenant": "half \ud83d"},
        {"tenant": "whole"},
        {"dropped": 1},
    ]
