"""Programs that were written for other backends ask the real server, and only its address was changed."""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from typing import Any

import pytest
from autoglm_cli.server.local_server import LocalServer

from tests.support.server.others_requests import TEXT, Answered, ask, frontend_trtllm, frontend_vllm, tensor

pytestmark = pytest.mark.server
GREEDY = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def own(server: LocalServer) -> Answered:
    """What `autoglm` says to the same."""
    return ask(
        server.grpc_url,
        "autoglm",
        [
            tensor("text_input", "BYTES", TEXT.encode(), batch=True),
            tensor("max_tokens", "INT32", 12, batch=True),
            tensor("temperature", "FP32", 0.0, batch=True),
        ],
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["ensemble", "autoglm"])
def test_tritons_openai_frontend_asks_as_of_an_ensemble(
    server: LocalServer, own: Answered, model: str, stream: bool
) -> None:
    seed = {"seed": 2**64 - 1} if model == "ensemble" else {}  # `seed` of `autoglm` is INT64
    inputs = frontend_trtllm(
        stream=stream,
        top_p=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        exclude_input_in_output=True,
        stop_words=["nowhere", "never"],
        **seed,
        **GREEDY,
    )
    found = ask(server.grpc_url, model, inputs)
    assert (found.text, found.error) == (own.text, "")
    assert stream == (len(found.responses) > 1)
    if model == "ensemble":
        assert found.num_output_tokens == own.all("completion_tokens")[-1] == 12
        assert set(found.all("num_input_tokens")) == set(own.all("prompt_tokens"))


def test_a_seed_without_a_sign_draws_what_the_same_one_with_a_sign_draws(server: LocalServer) -> None:
    drawn = [ask(server.grpc_url, "ensemble", frontend_trtllm(seed=seed, temperature=1.0)).text for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_frontends_tool_choice_is_a_guide(server: LocalServer) -> None:
    schema = json.dumps(
        {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    )
    guide = {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": schema}
    assert json.loads(ask(server.grpc_url, "ensemble", frontend_trtllm(**guide, **GREEDY)).text) == {"a": 1}
    vllm = frontend_vllm(
        structured_outputs=json.dumps({"json": schema, "regex": None, "disable_fallback": False}), max_tokens=16
    )
    assert json.loads(ask(server.grpc_url, "vllm_model", vllm).text) == {"a": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_tritons_openai_frontend_asks_as_of_vllm(server: LocalServer, own: Answered, stream: bool) -> None:
    found = ask(server.grpc_url, "vllm_model", frontend_vllm(stream=stream, logprobs=True, n=1, **GREEDY))
    assert found.text == own.text
    assert all(output.ndim == 1 for response in found.responses for output in response.values())
    assert (found.num_output_tokens, set(found.all("num_input_tokens"))) == (12, set(own.all("prompt_tokens")))
    assert found.all("finish_reason") == [b"None"] * (len(found.responses) - 1) + [b"length"]
    tokens = [token for value in found.all("logprobs") for token in json.loads(value)]
    chosen = [next(iter(token.values())) for token in tokens]
    assert "".join(token["decoded_token"] for token in chosen) == own.text
    assert [token["rank"] for token in chosen] == [1] * 12  # greedy
    assert math.isclose(found.all("cumulative_logprob")[-1], sum(token["logprob"] for token in chosen), rel_tol=1e-5)


def test_vllms_example_client_has_its_sampling_parameters_beside_the_tensors(
    server: LocalServer, own: Answered
) -> None:
    text = [tensor("text_input", "BYTES", TEXT.encode(), batch=False), tensor("stream", "BOOL", True, batch=False)]
    found = ask(server.grpc_url, "vllm_model", text, {"temperature": "0.0", "top_p": "0.95", "max_tokens": "12"})
    assert (found.text, found.error) == (own.text, "")


def test_log_probabilities_as_tensorrt_llm_gives_them(server: LocalServer) -> None:
    asked = [*frontend_trtllm(stream=True, **GREEDY), tensor("return_log_probs", "BOOL", True, batch=True)]
    found = ask(server.grpc_url, "ensemble", asked)
    logprobs = found.all("output_log_probs")
    assert len(logprobs) == 12 and all(value <= 0 for value in logprobs)
    assert math.isclose(found.all("cum_log_probs")[-1], sum(logprobs), rel_tol=1e-5)
    assert [output["output_log_probs"].shape[:2] for output in found.responses] == [(1, 1)] * len(found.responses)


def test_a_word_that_is_banned_does_not_come(server: LocalServer, own: Answered) -> None:
    assert " Paris" in own.text
    words = tensor("bad_words", "BYTES", [b"Paris", b"located in the"], batch=True)
    found = ask(server.grpc_url, "ensemble", [*frontend_trtllm(**GREEDY), words])
    assert found.text and "Paris" not in found.text and "located in the" not in found.text


@pytest.mark.parametrize(
    ("model", "inputs", "sentence"),
    [
        ("ensemble", [tensor("beam_width", "INT32", 2, batch=True)], "INVALID_ARG: beam_width is 2; it must be 1"),
        ("ensemble", [tensor("seed", "INT64", 2, batch=True)], "inference input 'seed' data-type is 'INT64'"),
        (
            "ensemble",
            [tensor("stop", "BYTES", b"x", batch=True), tensor("stop_words", "BYTES", b"y", batch=True)],
            "INVALID_ARG: stop is ['x'] and stop_words is ['y']; they say the same thing in two ways",
        ),
        (
            "vllm_model",
            [
                tensor("max_tokens", "INT32", 3, batch=False),
                tensor("sampling_parameters", "BYTES", b'{"max_tokens": 4}', batch=False),
            ],
            "INVALID_ARG: max_tokens is 3 and sampling_parameters.max_tokens is 4",
        ),
        (
            "vllm_model",
            [tensor("image", "BYTES", b"x", batch=False)],
            "unexpected inference input 'image' for model 'vllm_model'",
        ),
    ],
)
def test_what_is_not_done_is_refused_in_a_sentence(server: LocalServer, model: str, inputs: Any, sentence: str) -> None:
    text = tensor("text_input", "BYTES", TEXT.encode(), batch=model == "ensemble")
    assert sentence in ask(server.grpc_url, model, [text, *inputs]).error


def generate(server: LocalServer, model: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"{server.http_url}/v2/models/{model}/generate", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=300) as response:
        return dict(json.load(response))


def test_generate_of_their_readmes(server: LocalServer, own: Answered) -> None:
    """vLLM's example has its sampling parameters beside `stream`, as an object; TensorRT-LLM's has empty words."""
    vllm = {"text_input": TEXT, "parameters": {"stream": False, "temperature": 0, "max_tokens": 12}}
    answer = generate(server, "vllm_model", vllm)
    assert (answer["text_output"], answer["num_output_tokens"]) == (own.text, 12)
    trtllm = {"text_input": TEXT, "max_tokens": 12, "bad_words": "", "stop_words": "", "pad_id": 2, "end_id": 2}
    answer = generate(server, "ensemble", trtllm)
    assert (answer["text_output"], answer["num_output_tokens"]) == (own.text, 12)
