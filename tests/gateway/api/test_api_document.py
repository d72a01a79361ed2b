"""The document at /openapi.json is true: schemathesis finds no answer that it does not describe, nor any 5xx.

`make conformance` has it generate 2,000 cases and more, and shows its report.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
from autoglm_client import Piece, TokenLogprob, Usage
from autoglm_client.types import Candidate, StageTimes
from autoglm_gateway.api.answers import ChatShape, CompletionShape
from autoglm_gateway.app import create_app
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.client.client_fakes import FakeTransport
from tests.support.gateway.gateway_server import GatewayThread, fake_client, logged_errors
from tests.support.server.raw_http import ask, head, post

CASES = int(os.environ.get("AUTOGLM_CONFORMANCE_CASES", "700"))
HOOKS = Path(__file__).parents[2] / "support" / "gateway" / "schemathesis_hooks.py"
# Not every body that fits the schema can be served: images cannot.
EXCLUDED = ("positive_data_acceptance",)


@pytest.mark.timeout(3600)
@pytest.mark.slow
def test_schemathesis_finds_no_contradiction(capsys: pytest.CaptureFixture[str]) -> None:
    transport = FakeTransport()
    with (
        logged_errors() as errors,
        GatewayThread(GatewaySettings(), partial(fake_client, transport=transport)) as gateway,
    ):
        report = run_schemathesis(gateway.url, examples=max(20, (CASES - 600) // 2))
    if CASES >= 2000:
        with capsys.disabled():
            print(report)
    counted = re.search(r"(\d+) generated, (\d+) passed", report.replace(",", ", ").replace(",  ", ", "))
    assert counted and counted[1] == counted[2] and int(counted[1]) >= CASES, report
    assert len(transport.requests) > CASES / 10, "hardly any case reached the server"
    assert not errors, errors[:3]


def run_schemathesis(url: str, examples: int) -> str:
    """With every check of its own but those that are excluded."""
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "run", f"{url}/openapi.json"]
    options = [f"--max-examples={examples}", f"--exclude-checks={','.join(EXCLUDED)}", "--continue-on-failure"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS), "COLUMNS": "120"}
    ended = subprocess.run(command + options, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_errors_and_answers_are_described_for_every_endpoint() -> None:
    document = create_app(GatewaySettings()).openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            answers = operation["responses"]
            assert {"200", "400", "401", "405", "408", "429", "500", "503"} <= set(answers)
            assert "HTTPValidationError" not in str(operation)
            assert all("schema" in content for answer in answers.values() for content in answer["content"].values())
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"404", "413", "415", "422", "499", "502", "504"} <= set(chat["responses"])
    assert document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == list(
        GatewaySettings().names
    )


def test_whole_answers_and_chunks_have_no_field_that_is_not_described() -> None:
    document = create_app(GatewaySettings()).openapi()["components"]["schemas"]
    with GatewayThread(GatewaySettings(), fake_client) as gateway:
        asked = b'{"model":"autoglm","messages":[{"role":"user","content":"hello"}],"logprobs":true}'
        whole = json.loads(ask(gateway.port, post(asked)).body)
    assert undescribed(whole, "ChatCompletion", document) == set()
    assert undescribed({**whole, "novel": 1}, "ChatCompletion", document) == {"novel"}


def undescribed(answer: object, name: str, document: dict[str, dict[str, object]]) -> set[str]:
    described = document[name]["properties"]
    assert isinstance(answer, dict) and isinstance(described, dict)
    return set(answer) - set(described)


class Outside(HTMLParser):
    """What a page loads, and what it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.targets: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in ("script", "link", "img", "iframe") or "src" in attributes:
            self.found.append(tag)
        if tag == "a":
            self.links.append(attributes.get("href") or "")
        if "id" in attributes:
            self.targets.add(f"#{attributes['id']}")


def test_the_page_at_docs_is_whole_by_itself() -> None:
    with GatewayThread(GatewaySettings(), fake_client) as gateway:
        answer = ask(gateway.port, head(method="GET", path="/docs"))
    page = answer.body.decode()
    seen = Outside()
    seen.feed(page)
    assert answer.status == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not seen.found and set(seen.links) - seen.targets == {"/openapi.json"}
    for told in ("POST /v1/chat/completions", "max_completion_tokens", "text/event-stream", "at most 2", "Retry-After"):
        assert told in page


@pytest.mark.parametrize("shape", [ChatShape(1), CompletionShape(1)])
def test_what_cannot_come_has_a_number_that_json_has(shape: ChatShape | CompletionShape) -> None:
    impossible = TokenLogprob(1, "no", float("-inf"), (Candidate(1, "no", float("-inf")),))
    piece = Piece("no", None, Usage(1, 1, 0), StageTimes(0, 0, 0, 0, 0), (impossible,))
    written = json.dumps(shape.part(0, piece), allow_nan=False)
    assert written.count("-9999.0") == 2
