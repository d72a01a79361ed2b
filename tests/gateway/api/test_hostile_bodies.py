"""Bodies that are broken or meant to break: each is refused with one sentence in OpenAI's shape."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import psutil
import pytest
from autoglm_gateway.api.json_body import parse_object
from autoglm_gateway.api.schema import ChatRequest, CompletionRequest
from autoglm_gateway.errors import ApiError
from autoglm_gateway.middleware.body_limit import BodyBounds, BodyLimit
from autoglm_gateway.settings.model import MIB, ConnectionLimits, GatewaySettings
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.types import ASGIApp

from tests.support.gateway.gateway_server import GatewayThread, fake_client, logged_errors
from tests.support.server.raw_http import (
    PATIENCE_SECONDS,
    ask,
    chunked,
    connect,
    head,
    is_closed,
    post,
    read_answer,
    says_something,
    wait_until,
)

pytestmark = pytest.mark.slow

LIMIT = 2 * MIB
BODY_SECONDS = 5.0
GOOD = {"model": "autoglm", "messages": [{"role": "user", "content": "hello"}]}
UNKNOWN = b'{"model":"autoglm","messages":[{"role":"user","content":"hello"}],%s}'
COUNTED = b",".join(b'"a%d":1' % number for number in range(90_000))
MANY = 200_000


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayThread]:
    settings = GatewaySettings(
        max_body_bytes=LIMIT, max_held_bytes=4 * LIMIT, connections=ConnectionLimits(body_s=BODY_SECONDS)
    )
    with logged_errors() as errors, GatewayThread(settings, fake_client) as running:
        yield running
    assert not errors


def body(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


BROKEN = {
    "empty": (b"", "the body is empty"),
    "blank": (b" \n ", "the body is empty"),
    "no JSON": (b"model=autoglm", "the body is no JSON"),
    "cut": (body()[:-3], "EOF while parsing"),
    "two": (body() * 2, "trailing characters"),
    "bad UTF-8": (body().replace(b"hello", b"\xff\xfe"), "invalid unicode"),
    "surrogate in UTF-8": (body().replace(b"hello", b"\xed\xa0\x80"), "invalid unicode"),
    "lone surrogate": (body().replace(b"hello", b"\\ud800"), "hex escape"),
    "lone low surrogate": (body().replace(b"hello", b"\\udc00 "), "surrogate"),
    "control character": (body().replace(b"hello", b"\x00"), "control character"),
    "deep arrays": (b"[" * 100_000, "recursion limit"),
    "deep objects": (b'{"model":' * 45_000, "recursion limit"),
    "deep and complete": (UNKNOWN % (b'"user":' + b"[" * 90_000 + b"]" * 90_000), "recursion limit"),
    "array": (b"[" + body() + b"]", "a JSON array"),
    "string": (b'"' + b"x" * MIB + b'"', "a JSON string"),
    "number": (b"1", "a JSON number"),
    "null": (b"null", "a JSON null"),
    "NaN": (UNKNOWN % b'"temperature":NaN', "the body is no JSON"),
    "Infinity": (UNKNOWN % b'"temperature":-Infinity', "the body is no JSON"),
    "huge float": (UNKNOWN % b'"temperature":1e999', "temperature"),
    "huge integer": (UNKNOWN % (b'"max_tokens":' + b"9" * 100_000), "number out of range"),
    "big integer": (UNKNOWN % (b'"seed":' + b"9" * 4000), "seed"),
    "negative integer": (UNKNOWN % b'"max_tokens":-1', "max_tokens"),
    "number for a text": (UNKNOWN % b'"user":1', "user: input should be a valid string, not 1"),
    "key twice": (UNKNOWN % b'"model":"autoglm"', 'duplicate key "model"'),
    "long key twice": (UNKNOWN % (b'"%s":1,"%s":1' % ((b"k" * 100_000,) * 2)), "duplicate key"),
    "long unknown key": (UNKNOWN % (b'"%s":1' % (b"k" * 100_000)), "is not supported"),
    "many unknown keys": (UNKNOWN % COUNTED, "too many fields"),
    "more keys than are read": (b'{"a":{' + b",".join([b'"":1'] * MANY) + b"}}", "more than 100,000 keys"),
    "more lists than are read": (body(stop=[[]] * MANY), "more than 100,000 keys, lists and objects"),
    "many unknown keys inside": (b'{"model":"autoglm","messages":[{"role":"user",%s}]}' % COUNTED, "too many fields"),
    "many wrong messages": (body(messages=[1] * MANY), "messages[0]"),
    "many messages": (body(messages=GOOD["messages"] * 4000), "at most 2048 items"),  # type: ignore[operator]
    "many wrong parts": (body(messages=[{"role": "user", "content": [1] * MANY}]), "messages[0].content[0]"),
    "many wrong stops": (body(stop=[1] * MANY), "stop[0]"),
    "many wrong biases": (
        body(logit_bias={str(number): "x" for number in range(90_000)}),
        "logit_bias.0: input should",
    ),
    "unknown part": (body(messages=[{"role": "user", "content": [{"type": "video"}]}]), "messages[0].content[0]"),
    "missing text": (
        body(messages=[{"role": "user", "content": [{"type": "text"}]}]),
        "messages[0].content[0].text: field required",
    ),
    "long value": (body(user="u" * MIB), "user: string should have at most 256 characters"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_body_is_refused_with_one_sentence(gateway: GatewayThread, name: str) -> None:
    sent, sentence = BROKEN[name]
    answer = ask(gateway.port, post(sent))
    assert answer.status == 400 and sentence.lower() in answer.error["message"].lower(), answer
    assert is_well(gateway)


@pytest.mark.parametrize(
    ("headers", "kind", "status"),
    [
        ((), "text/plain", 415),
        ((), "application/x-www-form-urlencoded", 415),
        ((), "multipart/form-data; boundary=x", 415),
        ((), "\x80", 415),
        (("Content-Encoding: gzip",), "application/json", 415),
        ((), "application/json; charset=utf-8", 200),
        ((), "Application/JSON", 200),
    ],
)
def test_only_json_as_it_is_is_taken(gateway: GatewayThread, headers: tuple[str, ...], kind: str, status: int) -> None:
    answer = ask(gateway.port, post(body(), *headers, kind=kind))
    assert answer.status == status
    assert status == 200 or "Content-" in answer.error["message"]


def test_no_content_type_is_refused(gateway: GatewayThread) -> None:
    answer = ask(gateway.port, head("Content-Length: 2") + b"{}")
    assert answer.status == 415 and "Content-Type is ''" in answer.error["message"]


def test_a_body_that_is_announced_too_large_is_refused_unread(gateway: GatewayThread) -> None:
    with connect(gateway.port) as connection:
        connection.sendall(head("Content-Type: application/json", f"Content-Length: {10**15}", "Expect: 100-continue"))
        answer = read_answer(connection)
        assert answer.status == 413 and f"{LIMIT:,} bytes" in answer.error["message"]
        assert is_closed(connection)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_client_that_has_sent_too_much_can_read_the_answer(gateway: GatewayThread, is_chunked: bool) -> None:
    sent = b" " * (3 * LIMIT)
    framed = head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunked(sent) + b"0\r\n\r\n"
    answer = ask(gateway.port, framed if is_chunked else post(sent))
    assert answer.status == 413 and answer.error["code"] == "body_too_large"


def test_a_body_just_within_the_limit_is_read_in_whatever_pieces(gateway: GatewayThread) -> None:
    sent = body() + b" " * (LIMIT - len(body()))
    assert ask(gateway.port, post(sent)).status == 200
    pieces = [sent[at : at + 50_000] for at in range(0, len(sent), 50_000)]
    framed = head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunked(*pieces) + b"0\r\n\r\n"
    assert ask(gateway.port, framed).status == 200


def _in_chunks(sent: bytes, size: int) -> bytes:
    pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
    return head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunked(*pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize(("num_bytes", "size"), [(4_000, 1), (400_000, 100), (LIMIT, 256)])
def test_small_chunks_are_read(gateway: GatewayThread, num_bytes: int, size: int) -> None:
    sent = body() + b" " * (num_bytes - len(body()))
    assert ask(gateway.port, _in_chunks(sent, size)).status == 200


@pytest.mark.parametrize(("num_bytes", "size"), [(10_000, 1), (LIMIT, 100)])
def test_more_of_them_than_any_client_sends_are_refused(gateway: GatewayThread, num_bytes: int, size: int) -> None:
    """150,000 chunks of a byte kept everybody else waiting for half a second."""
    answer = ask(gateway.port, _in_chunks(b" " * num_bytes, size))
    assert answer.status == 400 and "must hold 256 bytes on average" in answer.error["message"]


def test_a_body_that_takes_too_long_is_given_up(gateway: GatewayThread) -> None:
    with connect(gateway.port) as connection:
        started = time.monotonic()
        connection.sendall(head("Content-Type: application/json", "Content-Length: 1000"))
        while not says_something(connection, 0.05):  # a byte now and then does not help
            connection.sendall(b" ")
        waited, answer = time.monotonic() - started, read_answer(connection)
        assert answer.status == 408 and "within 5 s" in answer.error["message"]
        assert 0.9 * BODY_SECONDS < waited < PATIENCE_SECONDS
        assert is_closed(connection)


def test_all_bodies_together_are_bounded_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more where four bodies under way fill what may be held."""
    limits: list[BodyLimit] = []

    class Watched(BodyLimit):
        def __init__(self, app: ASGIApp, bounds: BodyBounds) -> None:
            super().__init__(app, bounds)
            limits.append(self)

    monkeypatch.setattr("autoglm_gateway.middleware.layers.BodyLimit", Watched)
    patient = ConnectionLimits(body_s=3600)
    settings = GatewaySettings(max_body_bytes=LIMIT, max_held_bytes=4 * LIMIT, connections=patient)
    with GatewayThread(settings, fake_client) as gateway:
        with ExitStack() as stack:
            for _ in range(4):
                connection = stack.enter_context(connect(gateway.port))
                announced = head("Content-Type: application/json", f"Content-Length: {LIMIT}")
                connection.sendall(announced + b" " * (LIMIT - 1))
            # What is under way may be refused for the one more, until all of it was read.
            wait_until(lambda: limits[-1].num_held == 4 * (LIMIT - 1))
            answer = ask(gateway.port, post(body() + b" " * 1000))
            assert answer.status == 503 and answer.error["code"] == "overloaded", answer
            assert answer.headers["retry-after"] == "1"
        wait_until(lambda: limits[-1].num_held == 0)
        assert is_well(gateway)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_whatever_json_writes_is_read_the_same(value: dict[str, object]) -> None:
    assert parse_object(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
def test_whatever_bytes_are_sent_are_read_or_refused(sent: bytes) -> None:
    try:
        assert isinstance(parse_object(sent), dict)
    except ApiError as error:
        assert error.status == 400


def collections_of(schema: Any) -> Iterator[dict[str, Any]]:
    """Lists and tables of the pydantic schema whose items can be wrong."""
    if isinstance(schema, dict):
        items = schema.get("items_schema") or schema.get("values_schema")
        if schema.get("type") in ("list", "dict") and items and items["type"] != "any":
            yield schema
        for inner in schema.values():
            yield from collections_of(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            yield from collections_of(inner)


@pytest.mark.parametrize("request_type", [ChatRequest, CompletionRequest])
def test_every_list_ends_at_its_first_wrong_item(request_type: type[BaseModel]) -> None:
    found = list(collections_of(request_type.__pydantic_core_schema__))
    assert found and all(schema.get("fail_fast") for schema in found), found


def test_memory_is_flat_over_thousands_of_broken_requests(gateway: GatewayThread) -> None:
    def send_all(times: int) -> None:
        for _ in range(times):
            for sent, _ in small:
                assert ask(gateway.port, post(sent)).status == 400

    small = [case for case in BROKEN.values() if len(case[0]) < 50_000]
    large = [case for case in BROKEN.values() if len(case[0]) >= 50_000]
    for sent, _ in large * 2:
        ask(gateway.port, post(sent))
    send_all(20)

    def growth() -> int:
        before = resident()
        send_all(2000 // len(small))
        for sent, _ in large * 4:
            ask(gateway.port, post(sent))
        return resident() - before

    # What is kept for a request is kept each time; what other tests of this process left unused is used up once.
    grown = [growth()]
    while grown[-1] >= 4 * MIB and len(grown) < 4:
        grown.append(growth())
    assert grown[-1] < 4 * MIB, [f"{each / MIB:.1f} MiB more" for each in grown]


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def is_well(gateway: GatewayThread) -> bool:
    return ask(gateway.port, post(body())).status == 200


@pytest.mark.parametrize(
    ("changes", "status", "raised"),
    [
        ({"max_tokens": -1}, 400, openai.BadRequestError),
        ({"model": "other"}, 404, openai.NotFoundError),
        ({"user": "u" * (LIMIT + 1)}, 413, openai.APIStatusError),
        ({"extra_headers": {"Content-Type": "text/plain"}}, 415, openai.APIStatusError),
    ],
)
def test_refusals_are_typed_errors_of_openais_package(
    gateway: GatewayThread, changes: dict[str, Any], status: int, raised: type[openai.APIStatusError]
) -> None:
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(raised) as caught,
    ):
        client.chat.completions.create(**{**GOOD, **changes})
    assert caught.value.status_code == status and caught.value.type == "invalid_request_error"
