"""The page at `/` in a real browser, as different people use it: keys, keyboards, screens, colours, shells."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest
from autoglm_gateway.settings.keys import line_of, new_key, read_keys
from autoglm_gateway.settings.model import GatewaySettings
from playwright.sync_api import Browser, Page, expect

from tests.support.client.client_fakes import FakeTransport
from tests.support.gateway.browser import Visit, running_browser, visit
from tests.support.gateway.gateway_server import GatewayThread
from tests.support.gateway.page_gateway import gateway_before, script

pytestmark = pytest.mark.slow

LOWEST_CONTRAST = """
() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = channels(colour).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return channels(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const all = [...document.body.querySelectorAll("*")];
  const shown = all.filter((element) => hasText(element) && element.checkVisibility());
  const ratio = (element) => {
    const [a, b] = [luminance(getComputedStyle(element).color), luminance(behind(element))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), element.outerHTML.slice(0, 60)];
  };
  return shown.map(ratio).sort(([x], [y]) => x - y)[0];
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayThread]:
    with gateway_before(FakeTransport(script)) as running:
        yield running


@pytest.fixture
def seen(browser: Browser, gateway: GatewayThread) -> Iterator[Visit]:
    with visit(browser, gateway.url, permissions=["clipboard-read", "clipboard-write"]) as opened:
        yield opened


def test_a_key_is_asked_for_sent_and_stays_in_this_tab(browser: Browser) -> None:
    key = new_key()
    settings = GatewaySettings(keys=read_keys(line_of("alice", key), "the test"))
    clipboard = ["clipboard-read", "clipboard-write"]
    with (
        gateway_before(FakeTransport(script), settings) as gateway,
        visit(browser, gateway.url, is_open=False, permissions=clipboard) as seen,
    ):
        page = seen.page
        expect(page.locator("#model-note")).to_contain_text("an API key is missing")
        assert "an API key is missing" in seen.ask("hello").get_by_role("alert").inner_text()
        page.fill("#key", f" {key} ")
        page.press("#key", "Tab")
        page.wait_for_selector("#model option", state="attached")
        turn = seen.ask("hello")
        assert seen.answer() == "one two three" and seen.asked[-1].all_headers()["authorization"] == f"Bearer {key}"
        kept = "() => [Object.values(sessionStorage), localStorage.length, document.cookie]"
        assert page.evaluate(kept) == [[key], 0, ""]
        turn.get_by_role("button", name="Copy as curl").click()
        copied = _clipboard(page)
        assert key not in copied and "Bearer $AUTOGLM_API_KEY" in copied
        page.reload()
        assert page.input_value("#key") == key
        page.fill("#key", "")
        page.press("#key", "Tab")
        expect(page.locator("#model-note")).to_contain_text("an API key is missing")
        assert page.evaluate("() => sessionStorage.length") == 0


KEEP = """() => {
    const later = window.setTimeout;
    window.kept = [];
    window.setTimeout = (act, ms, ...rest) => (ms === 1500 ? window.kept.push(act) : later(act, ms, ...rest));
}"""


def keep_labels(page: Page) -> None:
    """What a button says for a second and a half, which a busy browser may not show us, stays until `give_back`."""
    page.evaluate(KEEP)


def give_back(page: Page) -> None:
    page.evaluate("() => window.kept.splice(0).forEach((act) => act())")


def test_copying_works_where_the_browser_gives_no_clipboard(seen: Visit) -> None:
    """As it gives none to a page that came over plain HTTP from another host."""
    seen.page.evaluate("() => Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    turn = seen.ask("hello")
    keep_labels(seen.page)
    turn.get_by_role("button", name="Copy answer").click()
    expect(turn.get_by_role("button", name="Copied")).to_be_focused()
    give_back(seen.page)
    expect(turn.get_by_role("button", name="Copy answer")).to_be_focused()
    seen.page.focus("#message")
    seen.page.keyboard.press("Control+V")
    assert seen.page.input_value("#message") == "one two three"


def test_a_copied_command_runs_in_a_shell_and_gives_the_same_answer(seen: Visit) -> None:
    question = """it's "$HOME" `date` \\n\nand ünïcode"""
    turn = seen.ask(question)
    keep_labels(seen.page)
    turn.get_by_role("button", name="Copy as curl").click()
    expect(turn.get_by_role("button", name="Copied")).to_be_visible()
    command = _clipboard(seen.page).replace("curl -N", "curl -sN")
    lines = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, timeout=300
    ).stdout.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]
    assert (
        "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"]) == seen.answer()
    )
    assert json.loads(command.split("-d '", 1)[1].rsplit("'", 1)[0].replace("'\\''", "'")) == seen.chats[0]
    turn.get_by_role("button", name="Copy answer").click()
    expect(seen.page.locator("#said")).to_have_text("Copied")
    assert _clipboard(seen.page) == "one two three"


def test_all_of_it_can_be_done_with_the_keyboard_and_the_focus_is_seen(seen: Visit) -> None:
    page = seen.page
    press = page.keyboard.press
    assert _focused(page) == "message"
    fields = ["model", "system", "temperature", "top_p", "max_tokens", "seed", "stop", "default", "key"]
    assert _tabs(page, 11) == ["attach", "send", *fields]
    page.focus("#temperature")
    page.keyboard.type("0.7")
    _tabs(page, 5)
    press("ArrowRight")
    page.focus("#message")
    page.keyboard.type("hello")
    press("Shift+Enter")
    page.keyboard.type("you")
    press("Enter")
    seen.completed()
    body = seen.chats[0]
    assert (body["messages"][-1]["content"], body["temperature"], body["cache"]) == ("hello\nyou", 0.7, "bypass")
    assert _focused(page) == "message" and page.input_value("#message") == ""
    before = []
    for _ in range(6):
        press("Shift+Tab")
        before.append(page.evaluate("() => document.activeElement.textContent"))
        if before[-1] == "Copy as curl":
            press("Enter")
            expect(page.locator("#said")).to_have_text("Copied")
    assert before[:3] == ["Ask again", "Copy as curl", "Copy answer"]
    assert before[4] == "New conversation" and before[5] == "API"


def test_what_is_out_of_range_is_not_sent(seen: Visit) -> None:
    for name, value in {
        "temperature": "2.5",
        "top_p": "-1",
        "max_tokens": "0",
        "seed": "1.5",
        "stop": "x\n" * 17,
    }.items():
        seen.page.fill(f"#{name}", value)
        seen.page.fill("#message", "hello")
        seen.page.press("#message", "Enter")
        assert _focused(seen.page) == name and seen.page.input_value("#message") == "hello"
        seen.page.fill(f"#{name}", "")
    assert not seen.chats and seen.turns.count() == 0
    seen.ask("hello")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_in_either_scheme(browser: Browser, gateway: GatewayThread, scheme: str) -> None:
    with visit(browser, gateway.url, color_scheme=scheme) as seen:
        paper = seen.page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(int(part) for part in re.findall(r"\d+", paper)) > 384) == (scheme == "light")
        ratios = [seen.page.evaluate(LOWEST_CONTRAST)]
        for question in ("hello", "breaks"):
            seen.ask(question)
            ratios.append(seen.page.evaluate(LOWEST_CONTRAST))
    assert min(ratios)[0] >= 4.5, min(ratios)


def test_a_narrow_screen_shows_either_the_conversation_or_the_options(browser: Browser, gateway: GatewayThread) -> None:
    with visit(browser, gateway.url, viewport={"width": 340, "height": 640}) as seen:
        page = seen.page
        seen.ask("hello " + "x" * 200)
        assert not page.locator("#options").is_visible() and page.locator("#send").is_visible()
        page.get_by_role("button", name="Options").press("Enter")
        assert page.locator("#options").is_visible() and not page.locator("#message").is_visible()
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        page.fill("#temperature", "3")
        page.keyboard.press("Escape")
        assert page.locator("#message").is_visible() and _focused(page) == "toggle"
        page.fill("#message", "hello")
        page.press("#message", "Enter")
        assert _focused(page) == "temperature" and len(seen.chats) == 1
        page.fill("#temperature", "")
        page.get_by_role("button", name="Done").click()
        seen.ask("hello")
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("wish", ["reduce", "no-preference"])
def test_nothing_moves_for_those_who_do_not_want_it(browser: Browser, gateway: GatewayThread, wish: str) -> None:
    moving = "() => document.getAnimations().length"
    with visit(browser, gateway.url, reduced_motion=wish) as seen:
        seen.page.fill("#message", "slowly")
        seen.page.press("#message", "Enter")
        expect(seen.turns.last.locator(".answer")).to_contain_text("0 1 2 3")
        assert (seen.page.evaluate(moving) > 0) == (wish == "no-preference")
        seen.page.keyboard.press("Escape")
        seen.completed()


def test_the_end_of_an_answer_stays_in_view_unless_its_reader_looks_elsewhere(seen: Visit) -> None:
    page = seen.page
    page.set_viewport_size({"width": 1000, "height": 420})
    seen.ask("text " * 300)
    page.fill("#message", "slowly")
    page.press("#message", "Enter")
    expect(seen.turns.last.locator(".answer")).to_contain_text(" 120 ")
    left = (
        "() => { const c = document.getElementById('conversation'); return c.scrollHeight - c.scrollTop - "
        "c.clientHeight; }"
    )
    assert page.evaluate(left) < 48
    assert page.evaluate("() => document.documentElement.scrollHeight <= innerHeight"), "the page itself scrolls, too"
    page.evaluate("() => { document.getElementById('conversation').scrollTop = 0; }")
    expect(seen.turns.last.locator(".answer")).to_contain_text(" 200 ")
    assert page.evaluate("() => document.getElementById('conversation').scrollTop") == 0
    page.keyboard.press("Escape")
    seen.completed()


def test_readers_of_the_screen_hear_an_answer_once_it_is_complete(seen: Visit) -> None:
    page = seen.page
    assert page.get_by_role("log", name="Conversation").count() == 1
    page.fill("#message", "slowly")
    page.press("#message", "Enter")
    expect(seen.turns.last).to_have_attribute("aria-busy", "true")
    page.keyboard.press("Escape")
    expect(seen.turns.last).to_have_attribute("aria-busy", "false")
    unnamed = page.locator("input, select, textarea").evaluate_all(
        "all => all.filter((one) => !one.labels.length).length"
    )
    assert unnamed == 0


def _clipboard(page: Page) -> str:
    return str(page.evaluate("() => navigator.clipboard.readText()"))


def _focused(page: Page) -> str:
    return str(page.evaluate("() => document.activeElement.id || document.activeElement.value || ''"))


def _tabs(page: Page, count: int) -> list[str]:
    """What has the focus after each press of Tab; each must be seen to have it."""
    outline = """() => {
      const [focused, beside] = [document.activeElement, document.activeElement.nextElementSibling];
      const isWide = (style) => style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
      const drawn = (one) => one && isWide(getComputedStyle(one));
      return focused === document.body || drawn(focused.type === "radio" ? beside : focused);
    }"""
    passed = []
    for _ in range(count):
        page.keyboard.press("Tab")
        passed.append(_focused(page))
        assert page.evaluate(outline), f"the focus on {passed[-1]} is not seen"
    return passed
