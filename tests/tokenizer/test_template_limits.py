"""Templates that were made to harm: what they cost in time and memory has a limit, at load and with every request."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import Any

import psutil
import pytest
from autoglm_engine.errors import ArtifactError, InvalidRequest
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.template_process import TemplateLimits
from autoglm_engine.tokenizer.tool_format import visible_tokens
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.support.server.processes import wait_for_end
from tests.tokenizer.conftest import Children

pytestmark = pytest.mark.slow

LIMITS = TemplateLimits(seconds=0.3, memory_bytes=96 << 20, compile_seconds=0.5)
QUIET = "{% if messages[0].content == 'calm' %}calm{% else %}"
CALM, EVIL = [{"role": "user", "content": "calm"}], [{"role": "user", "content": "evil"}]
TOO_LONG, TOO_MUCH = "computes for too long on these messages", "needs more memory than it may have"
DOUBLING = (
    "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ "
    "ns.x|length }}"
)
HOSTILE = {
    "loops in loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", TOO_LONG),
    "a power": ("{{ (messages|length + 8) ** (9 ** 9) }}", TOO_LONG),
    "doubling": (DOUBLING, TOO_MUCH),
    "doubling a list": (DOUBLING.replace("'aaaaaaaa'", "[1]").replace("~", "+"), TOO_MUCH),
    "a product": ("{% set n = messages|length * 10000000000 %}{{ 'a' * n }}", TOO_MUCH),
    "a list": ("{% set n = messages|length * 10000000000 %}{{ ([0] * n)|length }}", TOO_MUCH),
    "a width": ("{{ '%*d' % (messages|length * 2000000000, 1) }}", TOO_MUCH),
    "a format": ("{{ messages[0].content.center(messages|length * 10000000000) }}", TOO_MUCH),
    "many words": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'word' * 1000 }}{% endfor %}{% endfor %}",
        "memory|too long|more than",
    ),
    "without end": ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "do not suit"),
}


@pytest.fixture
def made() -> Iterator[Callable[[str], ChatTemplate]]:
    """Small limits; the processes end with the test."""
    templates: list[ChatTemplate] = []

    def make(source: str) -> ChatTemplate:
        templates.append(ChatTemplate(source, {}, LIMITS))
        return templates[-1]

    yield make
    for template in templates:
        template.close()


@pytest.mark.parametrize("case", HOSTILE)
def test_a_rendering_beyond_its_limits_ends_its_request_alone(case: str, made: Callable[[str], ChatTemplate]) -> None:
    body, message = HOSTILE[case]
    template, before = made(QUIET + body + "{% endif %}"), psutil.Process().memory_info().rss
    for _ in range(2):
        assert template.render(CALM) == "calm"
        with pytest.raises(InvalidRequest, match=message):
            template.render(EVIL)
    assert template.render(CALM) == "calm"
    assert psutil.Process().memory_info().rss < before + (64 << 20)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 9 ** (9 ** 9) }}", "computes for too long when it is compiled"),
        ("{{ x|no_such_filter }}", "cannot be read: No filter named 'no_such_filter'"),
        ("{% for %}", "cannot be read"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be read"),
        ("{% if x %}" * 3000 + "{% endif %}" * 3000, "cannot be read"),
    ],
)
def test_a_template_that_cannot_be_compiled_within_limits_is_refused_at_load(
    source: str, message: str, children: Children
) -> None:
    with pytest.raises(ArtifactError, match=message):
        ChatTemplate(source, {}, LIMITS).start()
    assert not children()


def test_more_text_than_fits_is_not_put_together(made: Callable[[str], ChatTemplate]) -> None:
    template = made("{% for i in range(messages|length * 2000) %}{{ messages[0].content }}{% endfor %}")
    assert len(template.render(CALM, max_characters=8000)) == 8000
    with pytest.raises(InvalidRequest, match="makes more than 7999 characters of messages, which cannot fit"):
        template.render(CALM, max_characters=7999)
    assert len(template.render(CALM)) == 8000


def test_a_process_that_somebody_ended_is_started_again(
    made: Callable[[str], ChatTemplate], children: Children
) -> None:
    template = made("{{ messages[0].content }}")
    template.start()
    (child,) = children()
    assert template.render(CALM) == "calm"
    child.kill()
    assert template.render(EVIL) == "evil"
    assert [other.pid for other in children()] != [child.pid]


def test_a_process_that_stands_still_is_replaced(children: Children) -> None:
    limits = TemplateLimits(wall_seconds=4.0)  # a process starts in it, too
    template = ChatTemplate("{{ messages[0].content }}", {}, limits)
    template.start()
    (child,) = children()
    child.suspend()
    with pytest.raises(InvalidRequest, match=TOO_LONG):
        template.render(CALM)
    assert template.render(EVIL) == "evil"
    template.close()
    assert not children()


def test_any_text_comes_through_as_it_is(made: Callable[[str], ChatTemplate]) -> None:
    template = made("{{ messages[0].content }}|{{ messages[0]|tojson }}")
    text = "caf\u00e9 \U0001f600 \x00 \u2028 \udc9f \"'\\ \n"
    rendered = template.render([{"role": "user", "content": text}])
    assert rendered.startswith(text + "|")
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        template.render([{"role": "user", "content": deep}])
    assert template.render(CALM).startswith("calm|")


def test_renderings_of_many_threads_are_each_their_own(made: Callable[[str], ChatTemplate], children: Children) -> None:
    template = made("{{ messages[0].content }}")
    texts = [f"{i} " * (i * 500) + "end" for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: template.render([{"role": "user", "content": text}]), texts)) == texts
    assert len(children()) == 1


def test_a_long_conversation_has_more_time_and_memory(made: Callable[[str], ChatTemplate]) -> None:
    messages = [{"role": "user", "content": f"{i} " * 2000} for i in range(2000)]
    rendered = made("{% for m in messages %}{{ m.content }}{% endfor %}").render(messages)
    assert len(rendered) == sum(len(message["content"]) for message in messages)


PARENT = """
import sys, time
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
import psutil
template = ChatTemplate("{{ messages[0].content }}", {})
template.start()
print(psutil.Process().children()[0].pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_process_that_started_it(number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    wait_for_end(child)


def test_a_template_that_nobody_holds_takes_its_process_along(children: Children) -> None:
    ChatTemplate("{{ messages[0].content }}", {}).start()
    assert not children()


def test_what_shows_how_a_template_writes_has_a_limit_in_all() -> None:
    slow = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    tags = "{% if false %}" + "".join(f"<think{number}>" for number in range(2000)) + "{% endif %}"
    template = ChatTemplate(slow + tags, {}, TemplateLimits(seconds=0.05, trial_seconds=0.5))
    try:
        with pytest.raises(ArtifactError, match=r"takes more than 0.5 s to show how it marks thinking and calls"):
            template.start()
    finally:
        template.close()


def test_a_template_of_many_variables_is_read_by_its_length() -> None:
    steps = [_lines_run(partial(visible_tokens, NONE, [_many_variables(count)])) for count in (50, 200)]
    assert steps[1] < 6 * steps[0], "four times as long"


NONE = Tokenizer(WordLevel({"a": 0}, unk_token="a"))


def _many_variables(count: int) -> str:
    made = "".join(f"{{% set a{number} = 1 %}}" for number in range(count))
    return made + "".join(f"{{{{ a{number} }}}}{{% if 1 %}}{{% endif %}}" for number in range(count))


def _lines_run(work: Callable[[], object]) -> int:
    """Of `tool_format`."""
    count = 0

    def traced(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_globals.get("__name__") != visible_tokens.__module__:
            return None
        count += event == "line"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        work()
    finally:
        sys.settrace(before)
    return count
