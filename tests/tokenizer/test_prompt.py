"""Templates render as transformers renders them; what cannot be a prompt is refused in one sentence."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from autoglm_engine.errors import ArtifactError, InvalidRequest
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.prompt import Prompter
from autoglm_engine.tokenizer.rendering.messages import parse_messages
from tokenizers import Tokenizer

from tests.support.engine.fakes import byte_tokenizer

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GLM4 = """[gMASK]<sop>
{%- macro visible(content) -%}
    {%- if content is string -%}{{- content }}
    {%- else -%}{%- for part in content if part.type == 'text' -%}{{- part.text }}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if tools -%}<|system|>
{{ tools | tojson(ensure_ascii=False) }}
{%- endif -%}
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
    {%- if m.role == 'assistant' and loop.index0 < ns.last -%}
<|assistant|>
{{ visible(m.content).split('</think>')[-1].strip() }}
    {%- else -%}
<|{{ m.role }}|>
{{ visible(m.content) }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>
{%- endif -%}
"""
LLAMA = """{{ bos_token }}
{% for message in messages %}
    {% if message['role'] not in ['user', 'assistant', 'system'] %}
        {{ raise_exception('Unknown role: ' + message['role']) }}
    {% endif %}
    {% if message['role'] == 'skip' %}{% continue %}{% endif %}
[{{ message['role'] | upper }}] {{ message['content'] | trim }} {{ {'a<b': '好'} | tojson }}
    {% generation %}
!
    {% endgeneration %}
{% endfor %}
{{ strftime_now('%Y') }} {{ eos_token }}
"""
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "你好 👋\n<b>"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>hm</think> b"},
        {"role": "user", "content": "c"},
    ],
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def prompter(tokenizer: Tokenizer) -> Prompter:
    return Prompter(tokenizer, ChatTemplate(SMOLLM2, {}), max_length=256)


@pytest.mark.slow
@pytest.mark.parametrize("source", [SMOLLM2, GLM4, LLAMA], ids=["smollm2", "glm4", "llama"])
@pytest.mark.parametrize("messages", CHATS)
def test_rendering_equals_transformers(tokenizer: Tokenizer, source: str, messages: list[dict[str, Any]]) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=source, **SPECIAL)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ChatTemplate(source, SPECIAL).render(messages) == expected
    if source is not LLAMA:
        expected_ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        prompter = Prompter(tokenizer, ChatTemplate(source, SPECIAL), max_length=4096)
        assert prompter.from_messages(json.dumps(messages).encode()).token_ids.tolist() == expected_ids


def test_content_in_parts(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    rendered = ChatTemplate(GLM4, {}).render([{"role": "user", "content": parts}])
    assert rendered.endswith("<|user|>\none two<|assistant|>")


def test_text_is_encoded_as_it_is(prompter: Prompter) -> None:
    ids = prompter.from_text(b"hi").token_ids
    assert ids.dtype == np.int32
    assert len(ids) == 2
    assert len(prompter.from_text("é".encode()).token_ids) == 2


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "text_input is empty; it must have at least one character"),
        (b"abc\xff", "text_input is not valid UTF-8: byte 0xff at 3"),
        ("é".encode()[:1], "text_input is not valid UTF-8: byte 0xc3 at 0"),
        (b"x" * 256, "text_input has 256 tokens; the model takes 1 to 255"),
    ],
)
def test_text_that_is_refused(prompter: Prompter, raw: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        prompter.from_text(raw)
    assert str(refusal.value) == sentence


def test_the_longest_prompt_leaves_room_for_one_token(prompter: Prompter) -> None:
    assert len(prompter.from_text(b"x" * 255).token_ids) == 255


def test_fifty_megabytes_are_refused_before_work_is_spent_on_them(
    prompter: Prompter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(raw: bytes, name: str) -> str:
        raise AssertionError(f"{len(raw)} bytes of {name} were decoded")

    monkeypatch.setattr("autoglm_engine.tokenizer.prompt.decode_utf8", work)
    raw = b"x" * 50_000_000
    for prompt in (prompter.from_text, prompter.from_messages):
        with pytest.raises(InvalidRequest, match=r"has 50000000 bytes, which cannot fit into the 255 prompt tokens"):
            prompt(raw)


def test_the_beginning_of_a_long_text_is_enough_to_refuse_it(tokenizer: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_tokens(["y" * 1000])  # so that the number of bytes alone does not refuse it
    prompter = Prompter(tokenizer, None, max_length=100)
    with pytest.raises(InvalidRequest, match="text_input has more than 99 tokens"):
        prompter.from_text(b"x" * 90_000)
    assert len(prompter.from_text(b"y" * 90_000).token_ids) == 90  # 90 tokens of 1,000 characters


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ("", "messages is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("{", "messages is not JSON: Expecting property name"),
        ("[" * 5000, "messages is not JSON: "),
        ("null", "messages must be a JSON list of at least one {role, content} object"),
        ("[]", "messages must be a JSON list of at least one {role, content} object"),
        ('{"role": "user"}', "messages must be a JSON list of at least one {role, content} object"),
        ('["hi"]', "messages[0] is a string; it must be an object with role and content"),
        ('[{"content": "x"}]', "messages[0].role must be a string of 1 to 64 characters, such as user"),
        ('[{"role": 1, "content": "x"}]', "messages[0].role must be a string of 1 to 64 characters, such as user"),
        ('[{"role": "user"}]', "messages[0].content is null; it must be a string or a list of parts"),
        ('[{"role": "user", "content": 5}]', "messages[0].content is a number; it must be a string or a list of parts"),
        (
            '[{"role": "user", "content": [{"type": "image_url"}]}]',
            'messages[0].content[0] must be {"type": "text", "text": string}, or {"type": "image"} for the next of',
        ),
    ],
)
def test_malformed_messages(raw: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_messages(raw)
    assert str(refusal.value).startswith(sentence)


def test_a_lone_surrogate_is_refused(prompter: Prompter) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        prompter.from_messages(b'[{"role": "user", "content": "\\ud800"}]')


def test_what_the_template_refuses_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest, match="do not suit the model's chat template: Unknown role: narrator"):
        ChatTemplate(LLAMA, SPECIAL).render([{"role": "narrator", "content": "x"}])
    with pytest.raises(InvalidRequest, match="do not suit"):  # this template wants a string
        ChatTemplate(SMOLLM2, {}).render([{"role": "user", "content": [{"type": "text", "text": "x"}]}])


def test_a_template_reaches_nothing_of_the_interpreter() -> None:
    hostile = ChatTemplate("{{ messages.__class__.__mro__[-1].__subclasses__() }}", {})
    with pytest.raises(InvalidRequest, match="unsafe"):
        hostile.render([])


def test_a_model_without_template_takes_no_messages(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="this model has no chat template"):
        Prompter(tokenizer, None, max_length=10).from_messages(b"[]")


def test_a_broken_template_is_an_artifact_error() -> None:
    with pytest.raises(ArtifactError, match="the chat template cannot be read"):
        ChatTemplate("{% for %}", {})
