"""The page at `/` in a real browser: a conversation, its figures, its end, and what goes wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Error, Locator, Page, Route, expect

from tests.support.client.client_fakes import FakeTransport, Script
from tests.support.gateway.browser import Visit, running_browser, visit
from tests.support.gateway.gateway_server import GatewayThread
from tests.support.gateway.page_gateway import MARKUP, TEXT, gateway_before, script

pytestmark = pytest.mark.slow

CUTS = """
async ({ text, ends, widest }) => {
  const { eventData } = await import("/page/events.js");
  const read = async (parts) => {
    const found = [];
    const start = (stream) => { parts.forEach((part) => stream.enqueue(part)); stream.close(); };
    for await (const data of eventData(new ReadableStream({ start }))) found.push(data);
    return JSON.stringify(found);
  };
  const found = new Set();
  for (const end of ends) {
    const bytes = new TextEncoder().encode(text.replaceAll("\\n", end));
    for (let cut = 0; cut <= bytes.length; cut++)
      for (let other = cut; other <= Math.min(bytes.length, cut + widest); other++)
        found.add(await read([bytes.slice(0, cut), bytes.slice(cut, other), bytes.slice(other)]));
    found.add(await read([...bytes].map((byte) => Uint8Array.of(byte))));
  }
  return [...found].map((one) => JSON.parse(one));
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def transport() -> FakeTransport:
    return FakeTransport(script)


@pytest.fixture(scope="module")
def gateway(transport: FakeTransport) -> Iterator[GatewayThread]:
    with gateway_before(transport) as running:
        yield running


@pytest.fixture
def seen(browser: Browser, gateway: GatewayThread) -> Iterator[Visit]:
    with visit(browser, gateway.url, permissions=["clipboard-read", "clipboard-write"]) as opened:
        yield opened


def test_it_asks_its_own_gateway_alone_and_complains_of_nothing(seen: Visit) -> None:
    seen.ask("hello")
    seen.page.wait_for_load_state("networkidle")
    assert seen.answer() == "one two three" and len(seen.asked) > 8
    assert all(request.url.startswith(f"{seen.url}/") for request in seen.asked)
    assert not seen.errors


def test_it_works_under_a_path_of_a_proxy(seen: Visit) -> None:
    prefix, passed = f"{seen.url}/models/here/", []

    def proxy(route: Route) -> None:
        passed.append(route.request)
        route.continue_(url=route.request.url.replace("/models/here/", "/"))

    seen.page.route(f"{prefix}**", proxy)
    seen.asked.clear()
    seen.page.goto(prefix)
    seen.page.wait_for_selector("#model option", state="attached")
    seen.ask("hello")
    assert seen.answer() == "one two three" and passed == seen.asked


def test_the_policy_is_in_force(seen: Visit) -> None:
    attacks = ("document.body.innerHTML = '<b>x</b>'", "document.createElement('script').text = 'window.hurt = 1'")
    for attack in attacks:
        with pytest.raises(Error, match="Trusted"):
            seen.page.evaluate(f"() => {{ {attack} }}")
    outside = "() => fetch('http://127.0.0.1:9/').then(() => 'asked', () => 'refused')"
    assert seen.page.evaluate(outside) == "refused" and any("connect-src" in error for error in seen.errors)


def test_events_are_read_the_same_wherever_they_are_cut(seen: Visit) -> None:
    text = (
        'data: {"a": "é🙂"}\n\n: silence\nevent: x\nid\ndata:b\ndata: c\n\ndata\n\n\ndata: [DONE]\n\ndata: unfinished'
    )
    expected = ['{"a": "é🙂"}', "b\nc", "", "[DONE]"]
    assert seen.page.evaluate(CUTS, {"text": text, "ends": ["\n", "\r\n", "\r"], "widest": 8}) == [expected]


def test_text_is_shown_as_it_is(seen: Visit) -> None:
    seen.ask("text")
    assert seen.answer() == TEXT
    seen.ask("markup")
    assert seen.answer() == MARKUP
    asked = seen.ask(MARKUP).locator(".question")
    assert (asked.text_content() or "").endswith(MARKUP)
    assert (
        seen.page.evaluate("() => window.hurt") is None
        and seen.turns.locator("img, script, b:not(.legend b)").count() == 0
    )


def test_a_kept_answer_says_so_and_how_old_it_is(seen: Visit) -> None:
    seen.ask("kept")
    assert seen.answer() == "one two three" and seen.figures()["Cache"] == "exact, 12.0 s old"


def test_the_figures_are_those_of_the_answer(seen: Visit) -> None:
    seen.ask("hello")
    figures = seen.figures()
    assert list(figures) == ["First token", "Speed", "Prompt", "Answer", "Total", "End", "Cache"]
    assert (figures["Prompt"], figures["Answer"], figures["End"]) == ("3 tokens, 1 cached", "3 tokens", "length")
    assert re.fullmatch(r"\d+\.\d tokens/s", figures["Speed"]) and figures["Cache"] == "no hit"
    given = {"queue": "0.1", "tokenize": "0.2", "embed": "0.6", "prefill": "0.3", "decode": "0.4", "detokenize": "0.5"}
    stages = seen.stages()
    assert {name: stages[name] for name in given} == {name: f"{ms} ms" for name, ms in given.items()}
    widths = {name: _width(seen.turns.last.locator(f".bar .{name}")) for name in given}
    assert widths["embed"] > widths["decode"] > widths["queue"] > 1


def test_a_conversation_has_what_was_said_and_the_options_are_sent(seen: Visit) -> None:
    page = seen.page
    seen.ask("hello")
    for name, value in {
        "system": "Be brief.",
        "temperature": "0.5",
        "top_p": "0.9",
        "max_tokens": "20",
        "seed": "7",
    }.items():
        page.fill(f"#{name}", value)
    page.fill("#stop", "END\n\\n\\n\n\n")
    page.select_option("#model", "autoglm-phone-9b")
    page.get_by_label("Refresh").check()
    seen.ask("and now?")
    common = {"stream": True, "stream_options": {"include_usage": True}}
    plain = {"model": "autoglm", "messages": [{"role": "user", "content": "hello"}], **common}
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "one two three"},
        {"role": "user", "content": "and now?"},
    ]
    chosen = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 20,
        "seed": 7,
        "stop": ["END", "\n\n"],
        "cache": "refresh",
    }
    assert seen.chats == [plain, {"model": "autoglm-phone-9b", "messages": said, **chosen, **common}]
    page.click("#restart")
    assert seen.turns.count() == 0 and page.locator("#welcome").is_visible()


@pytest.mark.parametrize("way", ["button", "Escape", "New conversation"])
def test_an_answer_can_be_ended_and_the_server_hears_of_it(seen: Visit, transport: FakeTransport, way: str) -> None:
    page = seen.page
    page.fill("#message", "slowly")
    page.press("#message", "Enter")
    expect(seen.turns.last.locator(".answer")).to_contain_text("0 1 2 3")
    (running,) = transport.running
    page.press("#message", "Enter")  # does not send a second question meanwhile
    match way:
        case "button":
            page.click("#send:text('Stop')")
        case "Escape":
            page.keyboard.press("Escape")
        case _:
            page.click("#restart")
    page.wait_for_selector("#send:text('Send')")
    _until(page, lambda: not transport.running)
    assert running in transport.cancelled
    if way != "New conversation":
        assert seen.figures()["End"] == "stopped by you" and seen.answer().startswith("0 1 2 3")
    seen.ask("hello")
    assert seen.answer() == "one two three" and len(seen.chats[-1]["messages"]) == (
        1 if way == "New conversation" else 3
    )


@pytest.mark.parametrize(
    ("question", "sentence", "partial"),
    [
        ("refused", "top_k is 9: it must be 0 ... 5", ""),
        ("full", "the queue is full; worth another try in 1 s", ""),
        ("breaks", "the engine broke", "one "),
    ],
)
def test_an_error_is_the_servers_sentence_and_no_part_of_the_conversation(
    seen: Visit, question: str, sentence: str, partial: str
) -> None:
    turn = seen.ask(question)
    assert turn.get_by_role("alert").inner_text() == sentence and seen.answer() == partial
    seen.ask("hello")
    assert seen.chats[-1]["messages"] == [{"role": "user", "content": "hello"}] and seen.answer() == "one two three"


def test_a_gateway_that_is_gone_or_breaks_off_is_said_to_be(seen: Visit) -> None:
    route = "**/v1/chat/completions"
    seen.page.route(route, lambda route: route.abort())
    assert seen.ask("hello").get_by_role("alert").inner_text() == "The gateway cannot be reached."
    seen.page.unroute(route)
    seen.page.route(
        route, lambda route: route.fulfill(body='data: {"choices": []}\n\n', content_type="text/event-stream")
    )
    seen.turns.last.get_by_role("button", name="Ask again").click()
    alert = seen.completed().get_by_role("alert").inner_text()
    assert alert == "The connection ended before the answer was complete." and seen.turns.count() == 1
    seen.page.unroute(route)
    seen.page.route(route, lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
    assert "502" in seen.ask("hello").get_by_role("alert").inner_text()


def _width(part: Locator) -> float:
    box = part.bounding_box()
    assert box is not None
    return box["width"]


def _until(page: Page, holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < give_up_at, "it did not come about"
        page.wait_for_timeout(20)


def test_thinking_is_folded_above_the_answer_and_is_not_sent_back(browser: Browser) -> None:
    transport = FakeTransport(Script(["<think>\nHm", ", three?</think>\n\n", "Three."], finish_reason="stop"))
    transport.limits["thinking"] = ["<think>", "</think>", "", ""]
    with gateway_before(transport) as gateway, visit(browser, gateway.url) as seen:
        thinking = seen.ask("How many?").locator("details.thinking")
        assert seen.answer() == "Three." and "Hm, three?" not in seen.turns.last.inner_text()
        thinking.locator("summary").click()
        expect(thinking).to_contain_text("Hm, three?")
        seen.ask("Are you sure?")
        assert [turn["content"] for turn in seen.chats[-1]["messages"]] == ["How many?", "Three.", "Are you sure?"]
        assert not seen.errors
