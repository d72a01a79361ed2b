"""Triton's `timeout` and `priority` on the real server, which has one slot here."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from autoglm_cli.server.local_server import LocalServer

from tests.conftest import MODEL_REPOSITORY
from tests.support.server.raw_grpc import Answer, Stream, tensor

pytestmark = pytest.mark.server
LONG = {"max_tokens": 900, "ignore_eos": True}


@pytest.fixture(scope="module")
def narrow(artifact: Path) -> Iterator[LocalServer]:
    settings = {"AUTOGLM_CACHE_MODE": "off", "AUTOGLM_MAX_BATCH_SIZE": "1"}
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, env=settings) as running:
        yield running


@pytest.fixture
def stream(narrow: LocalServer) -> Iterator[Stream]:
    with Stream(narrow.grpc_url) as made:
        yield made


def generate(server: LocalServer, **fields: Any) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"text_input": "Once upon a time", **fields}).encode()
    request = urllib.request.Request(f"{server.http_url}/v2/models/autoglm/generate", body)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def send(stream: Stream, timeout: int | None = None, **options: Any) -> str:
    inputs = {"text_input": b"Once upon a time", "stream": True, **options}
    tensors = [tensor(name, value) for name, value in inputs.items()]
    request_id = uuid4().hex
    stream.answers[request_id] = Answer()
    stream._client.async_stream_infer(
        "autoglm", tensors, request_id=request_id, enable_empty_final_response=True, timeout=timeout
    )
    return request_id


def test_a_grpc_timeout_ends_a_request(stream: Stream) -> None:
    answer = stream.finish(send(stream, timeout=100_000, **LONG))
    assert (answer.finish_reason, answer.error) == ("deadline", "")


def test_the_shorter_of_timeout_and_deadline_ends_a_request(stream: Stream) -> None:
    answer = stream.finish(send(stream, timeout=3_600_000_000, deadline_ms=100, **LONG))
    assert (answer.finish_reason, answer.error) == ("deadline", "")


def test_a_grpc_timeout_that_is_too_long_is_refused(stream: Stream) -> None:
    assert "timeout is 86400000001; it must be" in stream.finish(send(stream, timeout=86_400_000_001)).error


def test_a_timeout_of_generate_ends_a_request(narrow: LocalServer) -> None:
    status, answer = generate(narrow, timeout=100_000, **LONG)
    assert (status, answer["finish_reason"]) == (200, "deadline")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"timeout": "5s"}, "timeout is '5s'; it must be a whole number of microseconds"),
        ({"timeout": -1}, "timeout is -1; it must be a whole number of microseconds"),
        ({"priority": 10}, "priority is 10; it must be between 0 and 9"),
    ],
)
def test_a_wrong_field_of_generate_is_refused(narrow: LocalServer, fields: dict[str, Any], sentence: str) -> None:
    status, answer = generate(narrow, **fields)
    assert status == 400
    assert sentence in answer["error"]


def test_who_is_urgent_is_admitted_first(stream: Stream) -> None:
    running = stream.generate(max_tokens=60, ignore_eos=True)
    while not stream.answers[running].text:
        stream.next()
    waiting = {level: stream.generate(max_tokens=2, priority=level) for level in (9, 5, 1)}
    ended: list[str] = []
    while len(ended) < 4:
        if (request_id := stream.next()) in stream.ended and request_id not in ended:
            ended.append(request_id)
    assert ended == [running, waiting[1], waiting[5], waiting[9]]
