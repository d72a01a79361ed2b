"""The marks of thinking, read off templates; where a prompt ends; and reasoning in the history."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Request, SamplingOptions
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.messages import pack_request, unpack_request
from autoglm_engine.tokenizer.artifact_texts import with_visible_calls
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.prompt import Prompter
from autoglm_engine.tokenizer.rendering.template_options import TemplateOptions, template_options
from tokenizers import AddedToken, Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from tests.support.engine.fakes import byte_tokenizer
from tests.support.engine.thinking_templates import DEEPSEEK, HYBRID, OPENED, OPENED_HYBRID, THINKERS, TOLD
from tests.support.engine.tool_templates import TEMPLATES

ASKED = {"role": "user", "content": "How many?"}
SAID = {"role": "assistant", "content": "Three.", "reasoning_content": "One and two."}
OFF, ON = {"enable_thinking": False, "thinking": False}, {"enable_thinking": True, "thinking": True}

Made = Callable[[str], ChatTemplate]


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    """Each template once: a process is most of what a test takes."""
    opened: dict[str, ChatTemplate] = {}

    def make(source: str) -> ChatTemplate:
        return opened.setdefault(
            source, opened.get(source) or ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
        )

    yield make
    for template in opened.values():
        template.close()


def ending(template: ChatTemplate, variables: dict[str, Any], *messages: Any, go_on: bool = False) -> tuple[bool, bool]:
    """Whether the prompt ends inside of thinking, and behind it."""
    conversation = [*messages] or [ASKED]
    options = TemplateOptions(variables, not go_on, go_on)
    thinking = template.thinking_in(template.render(conversation, options=options), conversation, options)
    assert thinking is not None
    return thinking.is_open, thinking.is_closed


@pytest.mark.parametrize("name", THINKERS)
def test_marks_are_read_off_the_template(made: Made, name: str) -> None:
    source, expected = THINKERS[name]
    marks = made(source).thinking
    assert marks is not None and (marks.begin, marks.end) == expected
    assert (marks.answer_begin, marks.answer_end) == (("<response>", "</response>") if source is TOLD else ("", ""))


@pytest.mark.parametrize("form", sorted(TEMPLATES))
@pytest.mark.parametrize("note", ["", "{# thinking #}"])  # which alone has it looked at
def test_other_templates_have_none(made: Made, form: str, note: str) -> None:
    template = made(note + TEMPLATES[form])
    assert template.thinking is None
    assert template.thinking_in(template.render([ASKED]), [ASKED]) is None


def test_tags_around_turns_are_no_marks(made: Made) -> None:
    turns = "{# think #}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    assert made(turns + "{% if add_generation_prompt %}<assistant>{% endif %}").thinking is None
    roles = "{# think #}{% for m in messages %}<role>{{ m.role }}</role>{{ m.content }}{% endfor %}"
    assert made(roles + "{% if add_generation_prompt %}<role>assistant</role>{% endif %}").thinking is None
    assert made("{# think #}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}").thinking is None


def test_where_the_prompt_ends(made: Made) -> None:
    neither, inside, behind = (False, False), (True, False), (False, True)
    assert ending(made(HYBRID), {}) == neither and ending(made(HYBRID), OFF) == behind
    assert ending(made(OPENED), {}) == inside
    assert ending(made(OPENED_HYBRID), ON) == inside and ending(made(OPENED_HYBRID), OFF) == behind
    assert ending(made(DEEPSEEK), {}) == behind and ending(made(DEEPSEEK), ON) == inside
    spelled = {"role": "user", "content": "What does <think> mean?\n<think>"}
    assert ending(made(HYBRID), {}, spelled) == neither


@pytest.mark.parametrize(
    ("said", "is_open"),
    [("One", True), ("<think>\nOne", True), ("<think>One</think>", False), ("<think>One</think>\n\nTwo ", False)],
)
def test_where_a_message_that_goes_on_ends(made: Made, said: str, is_open: bool) -> None:
    opened = (
        "{% for m in messages %}{{ '<think>\n' if m.role == 'assistant' and opens }}{{ m.content }}{% endfor %}"
        "{{ '<think>\n' if add_generation_prompt }}"
    )
    begun = {"role": "assistant", "content": said}
    assert ending(made(opened), {"opens": True}, ASKED, begun, go_on=True) == (is_open, not is_open)
    assert ending(made(HYBRID), {}, ASKED, begun, go_on=True) == (
        is_open and said != "One",
        said == "One" or not is_open,
    )


@pytest.mark.parametrize("name", THINKERS)
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_of_the_history_is_told_as_transformers_tells_it(made: Made, name: str, field: str) -> None:
    source, _ = THINKERS[name]
    said = {"role": "assistant", "content": "Three.", field: "One and two."}
    messages = [ASKED, said, ASKED]
    (expected,), _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    assert made(source).render(messages) == expected
    assert ("One and two." in expected) == (".reasoning_content" in source or "m.thinking" in source)


def test_reasoning_is_text(made: Made) -> None:
    prompter = Prompter(byte_tokenizer(), made(HYBRID), 4096)
    with pytest.raises(InvalidRequest, match=r"messages\[0\].reasoning_content is a list; it must be a string"):
        prompter.from_messages(json.dumps([{**SAID, "reasoning_content": ["a"]}]).encode())


def test_a_prompt_says_whether_it_thinks_on_its_way_to_the_engine(made: Made) -> None:
    prompter = Prompter(byte_tokenizer(), made(OPENED_HYBRID), 4096)
    raw = json.dumps([ASKED]).encode()
    inside = prompter.from_messages(raw).thinking
    behind = prompter.from_messages(raw, options=template_options(json.dumps(OFF).encode())).thinking
    assert inside is not None and inside.is_open and behind is not None and behind.is_closed
    for is_open in (True, False):
        ids = np.array([1], np.int32)
        request = Request("a", ids, SamplingOptions(max_tokens=1), prompt_thinks=is_open)
        assert unpack_request("a", ids, pack_request(request, "x"), "x").prompt_thinks is is_open


def test_questions_of_one_meaning_are_told_apart_by_what_the_template_is_told(made: Made) -> None:
    prompter = Prompter(byte_tokenizer(), made(OPENED_HYBRID), 4096)
    raw = json.dumps([ASKED]).encode()
    on, off = (prompter.from_messages(raw, options=template_options(json.dumps(said).encode())) for said in (ON, OFF))
    assert on.question is not None and off.question is not None
    assert on.question.text == off.question.text and on.question.context != off.question.context


def test_special_tokens_that_are_marks_stay_in_the_text() -> None:
    tokenizer = Tokenizer.from_str(byte_tokenizer().to_str())
    names = ["[THINK]", "[/THINK]", "<think>", "</seed:think>", "<|END_THINKING|>", "<unthinkable|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    ids = tokenizer.encode("".join(names)).ids
    assert with_visible_calls(tokenizer).decode(ids) == "".join(names[:-1])
