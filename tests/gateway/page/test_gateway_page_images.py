"""The page at `/` in a real browser: images of a message."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
from autoglm_client import Image
from playwright.sync_api import Browser, FilePayload, expect

from tests.support.client.client_fakes import FakeTransport, inputs_of
from tests.support.gateway.browser import running_browser, visit
from tests.support.gateway.page_gateway import gateway_before, script

pytestmark = pytest.mark.slow

SCREEN = Image(np.zeros((2, 3, 3), np.uint8))
OTHER = Image(np.ones((3, 2, 4), np.uint8))
PASTE = """
(bytes) => {
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([Uint8Array.from(bytes)], "pasted.png", { type: "image/png" }));
  const pasted = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
  document.getElementById("message").dispatchEvent(pasted);
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


def test_images_are_chosen_or_pasted_shown_and_sent_before_the_text(browser: Browser) -> None:
    transport = FakeTransport(script)
    transport.limits["max_images"] = 10
    with gateway_before(transport) as gateway, visit(browser, gateway.url) as seen:
        page, waiting = seen.page, seen.page.locator("#images li")
        page.set_input_files("#file", [upload(SCREEN), upload(b"no image", "text/plain")])
        page.evaluate(PASTE, list(OTHER.file))
        expect(waiting).to_have_count(2)
        turn = seen.ask("What is new?")
        expect(waiting).to_have_count(0)
        assert turn.locator("img").count() == 2 and seen.answer() == "one two three"
        shown = [{"type": "image_url", "image_url": {"url": image.data_url}} for image in (SCREEN, OTHER)]
        first = {"role": "user", "content": [*shown, {"type": "text", "text": "What is new?"}]}
        assert seen.chats[-1]["messages"] == [first]

        page.set_input_files("#file", [upload(OTHER)])
        page.get_by_role("button", name="Remove image 1").click()
        seen.ask("and now?")
        messages = seen.chats[-1]["messages"]
        assert messages[0] == first and messages[2] == {"role": "user", "content": "and now?"}
        assert [SCREEN.file in inputs_of(one)["images"] for one in transport.requests] == [True, True]
        assert not seen.errors


def test_an_image_is_sent_in_the_size_that_is_chosen_and_keeps_it(browser: Browser) -> None:
    """What the model got of an earlier turn must not change, or all behind it is computed anew."""
    transport = FakeTransport(script)
    transport.limits["max_images"] = 10
    with gateway_before(transport) as gateway, visit(browser, gateway.url) as seen:
        page, size = seen.page, seen.page.get_by_label("Image size")
        expect(size).to_be_hidden()
        page.set_input_files("#file", [upload(SCREEN)])
        size.select_option("low")
        seen.ask("What is new?")
        expect(size).to_be_hidden()
        page.set_input_files("#file", [upload(OTHER)])
        size.select_option("auto")
        seen.ask("and now?")
        first, _, second = seen.chats[-1]["messages"]
        assert first["content"][0]["image_url"] == {"url": SCREEN.data_url, "detail": "low"}
        assert second["content"][0]["image_url"] == {"url": OTHER.data_url}
        (turns,) = (json.loads(inputs_of(request)["messages"][4:]) for request in transport.requests[-1:])
        assert [turns[place]["content"][0] for place in (0, 2)] == [
            {"type": "image", "detail": "low"},
            {"type": "image"},
        ]
        assert not seen.errors


def test_a_copied_command_with_an_image_runs_in_a_shell(browser: Browser) -> None:
    """However long it is: an argument of a shell's command has 128 KiB at most."""
    large = Image(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    transport = FakeTransport(script)
    transport.limits["max_images"] = 10
    clipboard = ["clipboard-read", "clipboard-write"]
    with gateway_before(transport) as gateway, visit(browser, gateway.url, permissions=clipboard) as seen:
        seen.page.set_input_files("#file", [upload(large)])
        expect(seen.page.locator("#images li")).to_have_count(1)
        turn = seen.ask("it's \\n `date`")
        turn.get_by_role("button", name="Copy as curl").click()
        expect(seen.page.locator("#said")).to_have_text("Copied")
        command = seen.page.evaluate("() => navigator.clipboard.readText()")
        subprocess.run(["bash"], input=command, capture_output=True, text=True, check=True, timeout=300)
    asked, again = (inputs_of(request) for request in transport.requests)
    assert again == asked and large.file in asked["images"]


def upload(content: Image | bytes, kind: str = "image/png") -> FilePayload:
    return {"name": "screen", "mimeType": kind, "buffer": content if isinstance(content, bytes) else content.file}
