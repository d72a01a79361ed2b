"""Debian's Chromium without a window, and what it saw of a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect, sync_playwright

PATIENCE_MS = 120_000.0  # for anything that should come at once
expect.set_options(timeout=PATIENCE_MS)
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]


@contextmanager
def running_browser() -> Iterator[Browser]:
    found = [path for name in NAMES if (path := shutil.which(name))]
    if not found:
        pytest.fail("there is no chromium: `make test` installs it, or `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=FLAGS, timeout=PATIENCE_MS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """The page of one gateway in a profile of its own. `errors`: of the console and uncaught; `asked`: every
    request."""

    page: Page
    url: str
    asked: list[Request] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def turns(self) -> Locator:
        return self.page.locator("article.turn")

    @property
    def chats(self) -> list[dict[str, Any]]:
        """The bodies of the chat requests so far."""
        return [
            dict(request.post_data_json or {}) for request in self.asked if request.url.endswith("/v1/chat/completions")
        ]

    def ask(self, question: str) -> Locator:
        """The turn, once it is complete."""
        self.page.fill("#message", question)
        self.page.press("#message", "Enter")
        return self.completed()

    def completed(self) -> Locator:
        self.page.wait_for_selector("#send:text('Send')")
        self.page.wait_for_selector("article.turn:last-child[aria-busy=false]")
        return self.turns.last

    def answer(self) -> str:
        return self.turns.last.locator(".answer").text_content() or ""

    def figures(self) -> dict[str, str]:
        """Of the last turn."""
        entries = self.turns.last.locator("dl > div").all()
        return {one.locator("dt").inner_text(): one.locator("dd").inner_text() for one in entries}

    def stages(self) -> dict[str, str]:
        """Of the last turn's legend."""
        entries = [entry.inner_text().split(maxsplit=1) for entry in self.turns.last.locator(".legend li").all()]
        return dict(entries)


@contextmanager
def visit(browser: Browser, url: str, *, is_open: bool = True, **context: Any) -> Iterator[Visit]:
    """`is_open`: it names its models without a key. Playwright's options of a context: `color_scheme`, `viewport`,
    ..."""
    with browser.new_context(**context) as made:
        page = made.new_page()
        page.set_default_timeout(PATIENCE_MS)
        seen = Visit(page, url)
        page.on("request", lambda request: seen.asked.append(request))
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("console", lambda message: seen.errors.extend(_complaint(message)))
        page.goto(url)
        page.wait_for_selector("#model option" if is_open else "#model-note:not(:empty)", state="attached")
        yield seen


def _complaint(message: ConsoleMessage) -> list[str]:
    return [message.text] if message.type in ("error", "warning") else []
