"""Servers that others start in their own way, on the same models: forwarded headers, clients of their own."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from autoglm_client.local_server import LocalServer
from conftest import MODEL_REPOSITORY
from raw_grpc import Stream, tensor

pytestmark = pytest.mark.server
QUESTION = "The sky is"
# As a mesh adds them, in the case that it likes.
HEADERS = {
    "X-Request-Id": "5f0c",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "x-b3-sampled": "1",
    "X-Tenant": "somebody",
    "Cache-Control": "no-cache",
    "baggage": "user=1",
}


@pytest.fixture(scope="module")
def foreign(artifact: Path) -> Iterator[LocalServer]:
    """It forwards every header that it gets."""
    arguments = ("--http-header-forward-pattern=.*", "--grpc-header-forward-pattern=.*")
    with LocalServer(
        MODEL_REPOSITORY, artifact=artifact, env={"AUTOGLM_CACHE_MODE": "off"}, arguments=arguments
    ) as running:
        yield running


def post(server: LocalServer, path: str, **fields: Any) -> tuple[int, str]:
    with closing(http.client.HTTPConnection(server.host, server.http_port, timeout=300)) as connection:
        connection.request("POST", f"/v2/models/{path}", json.dumps(fields), {"Content-Type": "x/json", **HEADERS})
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_forwarded_headers_change_nothing(foreign: LocalServer) -> None:
    status, body = post(foreign, "autoglm/generate", text_input=QUESTION, max_tokens=4)
    assert status == 200, body
    whole = json.loads(body)["text_output"]
    assert whole
    lower = {name.lower(): value for name, value in HEADERS.items()}  # as HTTP/2 wants them
    with Stream(foreign.grpc_url, lower) as stream:
        answer = stream.finish(
            stream.send([tensor("text_input", QUESTION.encode()), tensor("max_tokens", 4)], session_id="1")
        )
    assert (answer.error, answer.text) == ("", whole)


def test_a_slip_is_refused_beside_them(foreign: LocalServer) -> None:
    status, body = post(foreign, "autoglm/generate", text_input=QUESTION, max_token=4)
    assert status == 400
    assert "unknown option max_token; the nearest is max_tokens" in body


def test_an_id_over_http_names_the_request_and_cancels_it(foreign: LocalServer) -> None:
    answers: list[tuple[int, str]] = []
    options = {"text_input": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True, "id": "mine"}
    asking = threading.Thread(target=lambda: answers.append(post(foreign, "autoglm/generate_stream", **options)))
    asking.start()
    with Stream(foreign.grpc_url) as stream:
        while asking.is_alive() and not stream.control(stats=True)["running"]:
            threading.Event().wait(0.02)
    status, body = post(foreign, "engine/generate", control=json.dumps({"cancel": ["mine"]}))
    assert status == 200
    assert json.loads(bytes(json.loads(body)["event"])) == {"cancelled": 1}
    asking.join()
    ((status, body),) = answers
    last = json.loads(body.strip().splitlines()[-1].removeprefix("data: "))
    assert (status, last["finish_reason"]) == (200, "cancelled")
    assert last["completion_tokens"] < 900
