"""Questions about tokens: what is asked, what is told, and that nothing of it is for the engine."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.options.options import OptionRules
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.prompt import MAX_COUNTED_BYTES, Prompter
from autoglm_engine.tokenizer.token_questions import MAX_TOKENS, Tokenize, read_token_question
from autoglm_engine.triton.tokenizer_model import RequestPreprocessor, Tensors
from hypothesis import given
from hypothesis import strategies as st

from tests.support.engine.fakes import byte_tokenizer

TEMPLATE = "{{ messages[0].content }}{{ add }}{% if add_generation_prompt %}>{% endif %}"
MAX_LENGTH = 16


@pytest.fixture(scope="module")
def door() -> RequestPreprocessor:
    return made_door()


def made_door(room: int | None = None) -> RequestPreprocessor:
    tokenizer = byte_tokenizer()
    prompter = Prompter(tokenizer, ChatTemplate(TEMPLATE, {}), MAX_LENGTH)
    return RequestPreprocessor(prompter, OptionRules(MAX_LENGTH, tokenizer.get_vocab_size(), {}), "a", room=room)


def tensors(control: object, **more: object) -> Tensors:
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in more.items()}
    texts = {"control": control if isinstance(control, str) else json.dumps(control), **values}
    return {name: np.array([[text.encode()]], dtype=np.object_) for name, text in texts.items()}


def told(door: RequestPreprocessor, control: object, **more: object) -> tuple[list[int], dict[str, Any]]:
    admitted = door.admit(tensors(control, **more))
    return admitted.token_ids.tolist(), json.loads(admitted.request.tobytes())


@given(st.text(min_size=1, max_size=200))
def test_a_text_of_any_length_becomes_tokens_and_a_text_again(door: RequestPreprocessor, text: str) -> None:
    ids, said = told(door, {"tokenize": {"return_token_strs": True}}, text_input=text)
    assert ids == byte_tokenizer().encode(text).ids
    assert [byte_tokenizer().token_to_id(token) for token in said["token_strs"]] == ids
    assert told(door, {"detokenize": ids}) == (ids, {"text": text})


def test_the_beginning_of_the_answer_is_there_unless_it_is_not_wanted(door: RequestPreprocessor) -> None:
    messages = [{"role": "user", "content": "hello"}]
    ids, said = told(door, {"tokenize": {}}, messages=messages, tenant="alice")
    assert said == {}
    assert told(door, {"tokenize": {"add_generation_prompt": False}}, messages=messages)[0] == ids[:-1]


def test_what_is_told_leaves_what_is_answered_as_it_is(door: RequestPreprocessor) -> None:
    long = "a" * 100
    assert len(told(door, {"tokenize": {}}, text_input=long)[0]) == 100
    prompt = {"text_input": np.array([[long.encode()]], dtype=np.object_)}
    with pytest.raises(InvalidRequest, match="text_input has 100 "):
        door.admit(prompt)


@pytest.mark.parametrize(
    ("control", "more", "sentence"),
    [
        ("{", {}, "control is not JSON"),
        ({"stats": True}, {}, "control of the tokenizer must be"),
        ({"tokenize": {}, "detokenize": [1]}, {}, "control of the tokenizer must be"),
        ({"tokenize": {"fast": True}}, {"text_input": "a"}, "tokenize has the option 'fast'; the options are add_spec"),
        ({"tokenize": {"add_special_tokens": 1}}, {"text_input": "a"}, "add_special_tokens of tokenize is 1"),
        ({"tokenize": {}}, {}, "a request needs text_input or messages"),
        ({"tokenize": {}}, {"text_input": "a", "stop": "b"}, "stop does not go with control"),
        (
            {"tokenize": {}},
            {"text_input": "a" * (MAX_COUNTED_BYTES + 1)},
            f"at most {MAX_COUNTED_BYTES} bytes are read",
        ),
        ({"detokenize": [1]}, {"text_input": "a"}, "text_input does not go with control"),
        ({"detokenize": []}, {}, f"detokenize has 0 tokens; 1 to {MAX_TOKENS} are taken"),
        ({"detokenize": [0, True]}, {}, r"detokenize\[1\] is True; it must be a token id"),
        ({"detokenize": [0, -1]}, {}, r"detokenize\[1\] is -1; the tokens of this model are 0 to \d+"),
        ({"detokenize": [0, 10**30]}, {}, r"detokenize\[1\] is 1000\d+; the tokens of this model are 0 to \d+"),
    ],
)
def test_what_cannot_be_told_is_one_sentence(
    door: RequestPreprocessor, control: object, more: dict[str, object], sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        told(door, control, **more)


def test_token_questions_are_read_as_they_are_meant() -> None:
    assert read_token_question(b'{"tokenize": {"add_special_tokens": true}}') == Tokenize(add_special_tokens=True)


@pytest.mark.parametrize(
    ("control", "more"),
    [({"tokenize": {"return_token_strs": True}}, {"text_input": "a" * 200}), ({"detokenize": [97] * 200}, {})],
)
def test_an_answer_that_shared_memory_cannot_hold_is_refused_before_it_is_sent(
    control: object, more: dict[str, object]
) -> None:
    assert len(told(made_door(room=20_000), control, **more)[0]) == 200
    with pytest.raises(InvalidRequest, match="bytes of shared memory, and there are 1500; ask for fewer tokens"):
        told(made_door(room=1_500), control, **more)


def test_ids_that_wait_count_as_what_they_hold(door: RequestPreprocessor) -> None:
    small, large = (door.read(tensors({"detokenize": [97] * number})).num_bytes for number in (1, 1_000))
    assert large - small >= 999 * 8


def test_a_question_says_what_the_template_is_told(door: RequestPreprocessor) -> None:
    messages = [{"role": "user", "content": "hello"}]
    ids, _ = told(door, {"tokenize": {}}, messages=messages, chat_template_kwargs={"add": "!"})
    assert ids == byte_tokenizer().encode("hello!>").ids
    ids, _ = told(door, {"tokenize": {"continue_final_message": True}}, messages=messages)
    assert ids == byte_tokenizer().encode("hello").ids
    with pytest.raises(InvalidRequest, match="chat_template_kwargs goes with messages"):
        told(door, {"tokenize": {}}, text_input="a", chat_template_kwargs={})
    flags = {"continue_final_message": np.array([[True]]), "add_generation_prompt": np.array([[True]])}
    with pytest.raises(InvalidRequest, match="are both true"):
        door.admit({"messages": np.array([[json.dumps(messages).encode()]], dtype=np.object_), **flags})
