"""The page at `/` in front of the real server."""

from __future__ import annotations

import time
from collections.abc import Iterator

import openai
import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import Client
from autoglm_gateway.settings.model import GatewaySettings
from openai.types.chat import ChatCompletion

from tests.support.gateway.browser import Visit, running_browser, visit
from tests.support.gateway.gateway_server import GatewayThread

pytestmark = pytest.mark.server

ASKED = "Name three colours."


@pytest.fixture(scope="module")
def gateway(server: LocalServer) -> Iterator[GatewayThread]:
    with GatewayThread(GatewaySettings(servers=(server.grpc_url,))) as running:
        yield running


@pytest.fixture(scope="module")
def expected(gateway: GatewayThread) -> ChatCompletion:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        return client.chat.completions.create(
            model="autoglm", messages=[{"role": "user", "content": ASKED}], temperature=0.0, max_tokens=24
        )


@pytest.fixture(scope="module")
def seen(gateway: GatewayThread) -> Iterator[Visit]:
    with running_browser() as browser, visit(browser, gateway.url) as opened:
        yield opened


def test_an_answer_streams_in_with_its_figures(seen: Visit, expected: ChatCompletion) -> None:
    page = seen.page
    page.select_option("#model", "autoglm-phone-9b")
    page.fill("#temperature", "0")
    page.fill("#max_tokens", "24")
    seen.ask(ASKED)
    assert seen.answer() == expected.choices[0].message.content
    figures, stages, usage = seen.figures(), seen.stages(), expected.usage
    assert usage is not None and figures["Prompt"].startswith(f"{usage.prompt_tokens} tokens, ")
    assert (
        figures["Answer"] == f"{usage.completion_tokens} tokens" and figures["End"] == expected.choices[0].finish_reason
    )
    assert {"First token", "Total"} <= set(figures) and figures["Speed"].endswith(" tokens/s")
    assert {"prefill", "decode"} <= set(stages) and not seen.errors


def test_the_next_turn_starts_from_what_the_server_has_of_the_conversation(seen: Visit) -> None:
    if not seen.turns.count():
        seen.ask(ASKED)
    first = seen.figures()
    seen.ask("And two more?")
    prompt, cached = (int(part.split()[0]) for part in seen.figures()["Prompt"].split(", "))
    assert prompt > int(first["Prompt"].split()[0]) and cached > 0.5 * prompt


def test_an_answer_that_is_stopped_stops_in_the_server(seen: Visit, server: LocalServer) -> None:
    page = seen.page
    with Client(server.grpc_url) as client:
        before = client.stats().engine["tokens_out"]
    page.fill("#max_tokens", "900")
    page.fill("#message", "Write a long story about the sea, in many chapters.")
    page.press("#message", "Enter")
    page.wait_for_function("() => document.querySelector('article:last-child .answer').textContent.length > 40")
    page.keyboard.press("Escape")
    seen.completed()
    assert seen.figures()["End"] == "stopped by you" and not seen.errors
    with Client(server.grpc_url) as client:
        give_up_at = time.monotonic() + 60
        while client.stats().engine["running"]:
            assert time.monotonic() < give_up_at, "the answer goes on"
            time.sleep(0.05)
        assert client.stats().engine["tokens_out"] - before < 900, "it went on to its end"
