"""What a request brings beside its tensors: slips are refused by name, what others add on the way is let pass."""

from __future__ import annotations

import json
from typing import Any

import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.options.request_parameters import read_parameters
from autoglm_engine.triton.tokenizer_model import _USED, INPUTS

# What meshes, tracing, gateways and clients of other servers add, and what Triton itself hands on.
FOREIGN = (
    *(
        "id",
        "request_id",
        "x-request-id",
        "x-tenant",
        "x-b3-traceid",
        "traceparent",
        "tracestate",
        "baggage",
        "uber-trace-id",
    ),
    *(
        "host",
        "accept",
        "accept-encoding",
        "user-agent",
        "content-type",
        "content-length",
        "connection",
        "via",
        "date",
        "te",
    ),
    *("x-forwarded-for", "x-envoy-attempt-count", "cache-control", "authorization", "grpc-accept-encoding", "cookie"),
    *("sequence_id", "sequence_start", "session_id", "conversation_id", "model", "model_name"),
    *("triton_enable_empty_final_response", "triton_final_response", "stream_options", "metadata", "parameters"),
    *("exclude_input_in_output", "return_num_input_tokens", "return_num_output_tokens", "return_finish_reason"),
)


def read(parameters: str) -> dict[str, Any]:
    return read_parameters(parameters, INPUTS, _USED)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_others_add_passes(name: str) -> None:
    assert read(json.dumps({name: "anything", "timeout": 5, "temperature": 0.5})) == {"timeout": 5, "temperature": 0.5}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("temprature", "temperature"),
        ("Temperture", "temperature"),
        ("max_token", "max_tokens"),
        ("maxtokens", "max_tokens"),
        ("topk", "top_k"),
        ("top_n", "top_p"),
        ("stops", "stop"),
        ("streaming", "stream"),
        ("message", "messages"),
        ("deadline", "deadline_ms"),
        ("tenant_id", "tenant"),
        ("logprob", "logprobs"),
        ("guided_jsn", "guided_json"),
    ],
)
def test_a_slip_is_refused_with_the_option_that_was_meant(name: str, near: str) -> None:
    with pytest.raises(
        InvalidRequest, match=f"unknown option {name}; the nearest is {near}; the options are text_input"
    ):
        read(json.dumps({name: 1, "traceparent": "00-1"}))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("max_new_tokens", "unknown option max_new_tokens; here it is max_tokens;"),
        ("stop_words", "unknown option stop_words; here it is stop;"),
        ("beam_width", "unknown option beam_width, which this server does not have;"),
        ("lora_name", "unknown option lora_name, which this server does not have;"),
        ("stream", "stream is an input tensor, and came as a request parameter;"),
        ("Max-Tokens", "Max-Tokens is an input tensor, max_tokens, and came as a request parameter;"),
    ],
)
def test_what_would_change_the_answer_is_not_dropped(name: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(json.dumps({name: 1}))
    assert str(caught.value).startswith(sentence)


def test_every_option_is_its_own_nearest_and_nothing_means_nothing() -> None:
    for nothing in ("", "{}"):
        assert read(nothing) == {}
    for name in INPUTS:
        with pytest.raises(InvalidRequest, match=f"{name} is an input tensor"):
            read_parameters(json.dumps({name: 1}), INPUTS, ())
