"""What a request tells a chat template beside its messages: variables, and where the prompt ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.rendering.template_options import MAX_KWARGS_BYTES, TemplateOptions, template_options
from transformers.utils.chat_template_utils import render_jinja_template

from tests.support.engine.tool_templates import TEMPLATES

THINKER = """
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content if keep else m.content | trim }}
{%- else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
ASKED = {"role": "user", "content": "Count to three."}
BEGUN = {"role": "assistant", "content": "One, two, "}

Made = Callable[[str], ChatTemplate]


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    """Each template once: a process is most of what a test takes."""
    opened: dict[str, ChatTemplate] = {}

    def make(source: str) -> ChatTemplate:
        return opened.setdefault(source, opened.get(source) or ChatTemplate(source, SPECIAL))

    yield make
    for template in opened.values():
        template.close()


def theirs(source: str, messages: list[dict[str, Any]], **said: Any) -> str:
    texts, _ = render_jinja_template([messages], chat_template=source, **said)
    return str(texts[0])


@pytest.mark.parametrize(
    "variables", [{}, {"enable_thinking": True}, {"enable_thinking": False}, {"unread": [1]}], ids=str
)
def test_variables_reach_the_template_and_others_have_no_effect(made: Made, variables: dict[str, Any]) -> None:
    options = template_options(json.dumps(variables).encode())
    expected = theirs(THINKER, [ASKED], add_generation_prompt=True, **variables)
    assert made(THINKER).render([ASKED], options=options) == expected
    assert expected.endswith("</think>\n\n") == (variables == {"enable_thinking": False})


@pytest.mark.parametrize("said", ["One, two, ", "One,\ntwo", " One "])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("parts", [True, False])
def test_a_final_message_is_continued_as_transformers_does(made: Made, said: str, keep: bool, parts: bool) -> None:
    content = [{"type": "text", "text": "Well: "}, {"type": "text", "text": said}] if parts else said
    messages: list[dict[str, Any]] = [ASKED, {"role": "assistant", "content": content}]
    text = made(THINKER).render(messages, options=TemplateOptions({"keep": keep}, False, True))
    assert text == theirs(THINKER, messages, continue_final_message=True, keep=keep)
    assert text.rstrip().endswith(said.strip())


@pytest.mark.parametrize("form", sorted(TEMPLATES))
def test_a_final_message_is_continued_by_templates_with_tools(made: Made, form: str) -> None:
    text = made(TEMPLATES[form]).render([ASKED, BEGUN], options=template_options(None, None, True))
    assert text == theirs(TEMPLATES[form], [ASKED, BEGUN], continue_final_message=True, **SPECIAL)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (b"[1]", "is a list; it must be an object"),
        (b"{", "is not JSON"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nests deeper than 64 levels"),
        (b'{"a": "' + b"x" * MAX_KWARGS_BYTES + b'"}', f"at most {MAX_KWARGS_BYTES} are read"),
        (json.dumps({f"v{i}": 1 for i in range(65)}).encode(), "has 65 names; at most 64"),
        (b'{"messages": []}', "messages, which is a field of the request itself"),
        (b'{"add_generation_prompt": false}', "add_generation_prompt, which is a field of the request itself"),
        (b'{"chat_template": "x"}', "chat_template, which the model sets and a request cannot"),
        (b'{"bos_token": "x"}', "bos_token, which the model sets and a request cannot"),
    ],
)
def test_variables_are_bounded_and_what_is_not_theirs_is_refused_by_name(kwargs: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        template_options(kwargs)
    assert words in str(refused.value)


def test_where_the_prompt_ends_is_said_once() -> None:
    assert template_options(None, None, True).add_generation_prompt is False
    assert template_options(None, None, None).add_generation_prompt is True
    with pytest.raises(InvalidRequest, match="are both true"):
        template_options(None, True, True)


def test_what_cannot_be_continued_is_refused(made: Made) -> None:
    going_on = template_options(None, None, True)
    with pytest.raises(InvalidRequest, match="passes over the last message"):
        made("{{ messages[0].content }}").render([ASKED, BEGUN], options=going_on)
    call = {"type": "function", "function": {"name": "now", "arguments": {}}}
    with pytest.raises(InvalidRequest, match="ends with calls"):
        made(TEMPLATES["hermes"]).render([ASKED, {**BEGUN, "tool_calls": [call]}], options=going_on)
    with pytest.raises(InvalidRequest, match="has no text"):
        made(THINKER).render([{"role": "user", "content": [{"type": "image"}]}], options=going_on)


@pytest.mark.parametrize("name", ["self", "loop", "range", "namespace", "m", "context"])
def test_a_name_of_the_languages_own_is_the_callers_trouble_alone(made: Made, name: str) -> None:
    template = made(THINKER + "{% set ns = namespace(a=1) %}{% for i in range(2) %}{{ loop.index }}{% endfor %}")
    with contextlib.suppress(InvalidRequest):
        template.render([ASKED], options=template_options(json.dumps({name: 1}).encode()))
    assert template.render([ASKED]).endswith("12")


@pytest.mark.parametrize("name", ["self", "args", "names", "template", "kwargs"])
def test_no_name_is_one_of_the_renderers_own(made: Made, name: str) -> None:
    template = made("{{ messages[0].content }}{{ seen }}")
    options = template_options(json.dumps({name: 1, "seen": 2}).encode())
    assert template.render([ASKED], options=options) == f"{ASKED['content']}2"
