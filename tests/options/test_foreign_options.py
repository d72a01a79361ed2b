"""What clients of tensorrtllm_backend, vllm_backend and genai-perf ask for, in options of ours; and what is refused by
name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from autoglm_engine.core import Request
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.messages import unpack_request
from autoglm_engine.options.foreign_inputs import FOREIGN_INPUTS
from autoglm_engine.options.options import OptionRules
from autoglm_engine.options.sampling_json import NAMES
from autoglm_engine.options.table import OPTIONS, VLLM, Option, options_on
from autoglm_engine.tokenizer.prompt import Prompter
from autoglm_engine.triton.tokenizer_model import RequestPreprocessor
from hypothesis import given
from hypothesis import strategies as st

from tests.support.engine.fakes import letters_tokenizer

EOS = 3
VLLM_NUMBERS = [option for option in options_on(VLLM) if option.is_number]
TOKENIZER = letters_tokenizer()
ARTIFACT = "0123456789abcdef"
DOOR = RequestPreprocessor(Prompter(TOKENIZER, None, 1024), OptionRules(1024, 300, {}), ARTIFACT, eos_token_ids=(EOS,))
TYPES = {"INT32": np.int32, "INT64": np.int64, "UINT64": np.uint64, "FP32": np.float32, "BOOL": np.bool_}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(NAMES)) | st.text(), inner),
    max_leaves=8,
)


def tensor(name: str, value: Any) -> npt.NDArray[Any]:
    dtype = (FOREIGN_INPUTS.get(name) or OPTIONS[name]).dtype if name != "text_input" else "STRING"
    values = value if isinstance(value, list) else [value]
    if dtype == "STRING":
        values = [item.encode() if isinstance(item, str) else item for item in values]
    return np.array([values], dtype=TYPES.get(dtype, np.object_))


def admit(**given_values: Any) -> Request:
    tensors = {name: tensor(name, value) for name, value in {"text_input": "abc", **given_values}.items()}
    admitted = DOOR.admit(tensors)
    return unpack_request("r", admitted.token_ids, admitted.request, ARTIFACT)


def admit_parameters(**values: Any) -> Request:
    """As Triton's request parameters."""
    admitted = DOOR.admit({"text_input": tensor("text_input", "abc")}, json.dumps(values))
    return unpack_request("r", admitted.token_ids, admitted.request, ARTIFACT)


def parameters(**values: Any) -> dict[str, Any]:
    return {"sampling_parameters": json.dumps(values)}


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False).ids)


TRANSLATED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"stop_words": ["x", "y"]}, {"stop": ["x", "y"]}),
    ({"stop_words": ""}, {}),
    ({"stop_words": ["", "x"], "bad_words": ""}, {"stop": ["x"]}),
    ({"min_length": 4}, {"min_tokens": 4}),
    ({"random_seed": 7}, {"seed": 7}),
    ({"unsigned_seed": 2**64 - 1}, {"seed": 2**63 - 1}),
    ({"return_log_probs": True}, {"logprobs": 1}),
    ({"return_logprobs": True, "logprobs": 5}, {"logprobs": 5}),
    ({"return_cumulative_logprob": True}, {"logprobs": 1}),
    ({"return_log_probs": False}, {}),
    ({"top_k": -1}, {"top_k": 0}),
    ({"end_id": -1}, {"ignore_eos": True}),
    ({"end_id": EOS, "pad_id": 9}, {}),
    ({"exclude_input_in_output": True, "beam_width": 1, "num_return_sequences": 1, "length_penalty": 0.5}, {}),
    ({"return_num_input_tokens": True, "return_num_output_tokens": True, "return_finish_reason": True}, {}),
    ({"return_context_logits": False, "return_generation_logits": False, "return_perf_metrics": False}, {}),
    ({"guided_decoding_guide_type": "json"}, {"guided_json": "true"}),
    ({"guided_decoding_guide_type": "regex", "guided_decoding_guide": "a+"}, {"guided_regex": "a+"}),
    ({"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": "{}"}, {"guided_json": "{}"}),
]


@pytest.mark.parametrize(("foreign", "own"), TRANSLATED)
def test_an_input_of_others_is_an_option_of_ours(foreign: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    assert admit(**foreign).sampling == admit(**own).sampling


SAMPLING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_tokens": "16", "min_tokens": "16"}, {"max_tokens": 16, "min_tokens": 16}),  # as genai-perf sends it
    ({"temperature": "0.5", "top_p": 0.25, "top_k": -1}, {"temperature": 0.5, "top_p": 0.25}),
    ({"seed": 5, "ignore_eos": "true", "min_p": 0.125}, {"seed": 5, "ignore_eos": True, "min_p": 0.125}),
    ({"stop": "x"}, {"stop": ["x"]}),
    ({"stop": ["x", "好"], "max_tokens": None}, {"stop": ["x", "好"]}),
    ({"logprobs": 0}, {"logprobs": 1}),
    ({"logprobs": 3}, {"logprobs": 3}),
    ({"presence_penalty": 1, "frequency_penalty": -1}, {"presence_penalty": 1.0, "frequency_penalty": -1.0}),
    ({"repetition_penalty": 1.5, "logit_bias": {"7": 2}}, {"repetition_penalty": 1.5, "logit_bias": '{"7": 2}'}),
    ({"bad_words": ["a"]}, {"bad_words": ["a"]}),
    ({"stop_token_ids": [EOS]}, {}),
    ({"n": "1", "best_of": 1, "use_beam_search": False, "length_penalty": 1.0, "early_stopping": False}, {}),
    (
        {
            "skip_special_tokens": True,
            "include_stop_str_in_output": False,
            "detokenize": "True",
            "spaces_between_special_tokens": False,
        },
        {},
    ),
    ({"guided_decoding": {"regex": "a+", "json": None}}, {"guided_regex": "a+"}),
    ({"structured_outputs": '{"json": "{}", "disable_fallback": false}'}, {"guided_json": "{}"}),
    ({"structured_outputs": {"json": {"type": "null"}}}, {"guided_json": '{"type":"null"}'}),
    ({"structured_outputs": {"json_object": True}}, {"guided_json": '{"type":"object"}'}),
    ({"structured_outputs": {"choice": ["a.b", "c"]}}, {"guided_regex": "a\\.b|c"}),
]


@pytest.mark.parametrize(("said", "own"), SAMPLING)
def test_sampling_parameters_are_options_of_ours(said: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    assert admit(**parameters(**said)).sampling == admit(**own).sampling


@pytest.mark.parametrize("option", VLLM_NUMBERS, ids=lambda option: option.name)
def test_a_number_of_vllms_is_the_option_of_the_same_name(option: Option) -> None:
    high = option.high if isinstance(option.high, (int, float)) else 4
    number = high / 4 if option.kind == "FP32" else 1
    found = admit(**parameters(**{option.name: number})).sampling
    assert found == admit(**{option.name: number}).sampling
    assert getattr(found, option.name) == number


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"beam_width": 4}, "beam_width is 4; it must be 1, since a request has one answer here: send several"),
    ({"num_return_sequences": 2}, "num_return_sequences is 2; it must be 1"),
    ({"exclude_input_in_output": False}, "exclude_input_in_output is false; it must be true, since the prompt is no"),
    ({"return_context_logits": True}, "return_context_logits is true; it must be false, since logits do not leave"),
    ({"return_perf_metrics": True}, "return_perf_metrics is true; it must be false, since what a request took"),
    ({"end_id": 7}, "end_id is 7; this model's answers end with token 3, or end_id -1 for none"),
    (
        {"guided_decoding_guide_type": "ebnf_grammar", "guided_decoding_guide": "x"},
        "guided_decoding_guide_type is 'ebnf_grammar' with a guided_decoding_guide; it must be json, or",
    ),
    ({"guided_decoding_guide_type": "regex"}, "guided_decoding_guide_type is 'regex' without a guided_decoding_guide"),
    ({"guided_decoding_guide": "a"}, "guided_decoding_guide_type is missing with a guided_decoding_guide"),
    ({"embedding_bias_words": ["a"]}, "embedding_bias_words has 1 values and embedding_bias_weights 0; each word"),
    ({"embedding_bias_weights": [1.0]}, "embedding_bias_words has 0 values and embedding_bias_weights 1; each word"),
    ({"embedding_bias_words": ["a"], "embedding_bias_weights": [200.0]}, "logit_bias of token"),
    ({"top_k": -2}, "top_k is -2; it must be between -1 and 300 (vocab_size)"),
    ({"sampling_parameters": "[]"}, "sampling_parameters is a list; it must be an object of sampling parameters"),
    ({"sampling_parameters": "{"}, "sampling_parameters is not JSON: "),
    ({"sampling_parameters": "[" * 100_000}, "sampling_parameters is not JSON: "),
    ({"sampling_parameters": b"\xff"}, "sampling_parameters is not valid UTF-8: byte 0xff at 0"),
    ({"sampling_parameters": " " * 262_145}, "sampling_parameters has 262145 bytes; at most 262144 are allowed"),
    (parameters(n=2), "sampling_parameters.n is 2; it must be 1 here"),
    (parameters(best_of=2), "sampling_parameters.best_of is 2; it must be 1 here"),
    (parameters(use_beam_search=True), "sampling_parameters.use_beam_search is true; it must be false here"),
    (parameters(lora_name="a"), "sampling_parameters has 'lora_name', which is not known here; known are "),
    (parameters(prompt_logprobs=1), "sampling_parameters has 'prompt_logprobs', which is not known here"),
    (
        parameters(stop_token_ids=[5]),
        "sampling_parameters.stop_token_ids is [5]; this model's answers end with token 3",
    ),
    (parameters(stop_token_ids="x"), 'sampling_parameters.stop_token_ids is "x"; this model'),
    (parameters(max_tokens="many"), 'sampling_parameters.max_tokens is "many"; it must be a whole number'),
    (parameters(max_tokens=1.5), "sampling_parameters.max_tokens is 1.5; it must be a whole number"),
    (parameters(max_tokens=True), "sampling_parameters.max_tokens is true; it must be a whole number"),
    (parameters(max_tokens=0), "max_tokens is 0; it must be between 1 and 1024 (max_length)"),
    (parameters(temperature=float("nan")), "sampling_parameters.temperature is NaN; it must be a number"),
    (parameters(temperature=10**400), "sampling_parameters.temperature is 1000"),
    (parameters(ignore_eos="perhaps"), 'sampling_parameters.ignore_eos is "perhaps"; it must be true or false'),
    (parameters(stop=[1]), "sampling_parameters.stop is [1]; it must be a string or a list of strings"),
    (parameters(stop="\ud800"), "stop[0] is not valid UTF-8"),
    (
        parameters(structured_outputs={"grammar": "x"}),
        'sampling_parameters.structured_outputs.grammar is "x"; guides here are json',
    ),
    (parameters(structured_outputs="{"), "sampling_parameters.structured_outputs is not JSON: "),
    (parameters(guided_decoding=[]), "sampling_parameters.guided_decoding is a list; it must be an object"),
    (
        parameters(guided_decoding={"choice": [1]}),
        "sampling_parameters.guided_decoding.choice is [1]; it must be a list of strings",
    ),
]


def test_a_request_parameter_may_be_a_sampling_parameter_of_vllms() -> None:
    """As the example client of `vllm_backend` sends them: texts."""
    said = {"temperature": "0.5", "top_p": "0.95", "max_tokens": "100"}
    asked = admit_parameters(**said, triton_enable_empty_final_response=True).sampling
    assert asked == admit(temperature=0.5, top_p=0.95, max_tokens=100).sampling
    for wrong, sentence in (
        ({"n": 2}, "sampling_parameters.n is 2; it must be 1 here"),
        (
            {"top": "1"},
            "unknown option top; the nearest is stop; the options are text_input, messages, tools, images, chat_",
        ),
        ({"max_tokens": "many"}, 'sampling_parameters.max_tokens is "many"; it must be a whole number'),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            admit_parameters(**wrong)
        assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(("foreign", "sentence"), REFUSED)
def test_what_is_not_done_is_refused_by_name(foreign: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        admit(**foreign)
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(
    ("given_values", "sentence"),
    [
        ({"stop": ["x"], "stop_words": ["y"]}, "stop is ['x'] and stop_words is ['y']"),
        ({"min_tokens": 1, "min_length": 2}, "min_tokens is 1 and min_length is 2"),
        ({"seed": 1, "random_seed": 2}, "seed is 1 and random_seed is 2"),
        ({"random_seed": 1, "unsigned_seed": 2}, "random_seed is 1 and unsigned_seed is 2"),
        ({"logprobs": 0, "return_log_probs": True}, "logprobs is 0 and return_log_probs is true"),
        ({"ignore_eos": False, "end_id": -1}, "ignore_eos is false and end_id is -1"),
        (
            {"temperature": 0.5, **parameters(temperature=0.25)},
            "temperature is 0.5 and sampling_parameters.temperature is 0.25",
        ),
        ({"min_length": 2, **parameters(min_tokens=1)}, "sampling_parameters.min_tokens is 1 and min_length is 2"),
        (
            {"guided_json": "{}", "guided_decoding_guide_type": "json"},
            "guided_json is '{}' and guided_decoding_guide_type is 'json'",
        ),
    ],
)
def test_two_names_that_say_different_things_are_both_named(given_values: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        admit(**given_values)
    assert str(refusal.value).startswith(f"{sentence}; they say the same thing in two ways")


def test_two_names_that_say_the_same_thing_are_taken() -> None:
    """A tensor has 0.7 in 32 bits, JSON in 64."""
    asked = {"temperature": 0.7, "seed": 3, "random_seed": 3, "stop": ["x"], "stop_words": ["x"]}
    assert admit(**asked, **parameters(temperature=0.7, seed=3, stop="x")).sampling.seed == 3


def test_each_token_of_a_biased_word_gets_its_weight() -> None:
    found = admit(embedding_bias_words=["ab", "b"], embedding_bias_weights=[2.0, -5.0]).sampling.logit_bias
    assert dict(found) == {ids("a")[0]: 2.0, ids("b")[0]: -3.0}


def test_a_bad_word_is_banned_as_it_is_spelled() -> None:
    assert admit(bad_words=["ab"]).sampling.bad_words[0] == ids("ab")


def test_every_input_of_others_has_been_tried() -> None:
    assert {name for foreign, _ in (*TRANSLATED, *REFUSED) for name in foreign} >= set(FOREIGN_INPUTS)
    assert {name for said, _ in SAMPLING for name in said} | {option.name for option in VLLM_NUMBERS} == set(NAMES)


@given(JSON)
def test_any_json_is_taken_or_refused(said: Any) -> None:
    try:
        admit(sampling_parameters=json.dumps(said))
    except InvalidRequest as error:
        assert "\n" not in str(error) and len(str(error)) < 700
