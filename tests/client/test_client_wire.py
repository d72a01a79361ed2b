"""The pure parts of the client: what is put on the wire, what is read from it, limits and retries as numbers."""

from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
import sys
from collections import Counter

import autoglm_client
import pytest
from autoglm_client import (
    FirstTokenTimeout,
    GenerationOptions,
    InterTokenTimeout,
    InvalidRequestError,
    Message,
    ProtocolError,
    QueueFullError,
    RetryPolicy,
    ServerError,
    ServerUnavailableError,
    Timeouts,
    TotalTimeout,
)
from autoglm_client.option_fields import OPTION_KINDS, OptionChanges
from autoglm_client.options import OPTION_NAMES
from autoglm_client.timeouts import Deadlines
from autoglm_client.transport.requests import control_request, generation_request, is_control
from autoglm_client.transport.responses import error_of, parse_control, parse_generation
from hypothesis import given
from hypothesis import strategies as st

from tests.support.client.client_fakes import control_response, end_mark, inputs_of, response, string_bytes


def build(prompt: object = "hi", **options: object) -> dict[str, bytes]:
    request = generation_request(prompt, GenerationOptions(**options), stream=True, request_id="r1")  # type: ignore[arg-type]
    assert request.id == "r1"
    assert request.parameters["triton_enable_empty_final_response"].bool_param
    assert all(tensor.shape[0] == 1 for tensor in request.inputs)
    return inputs_of(request)


def test_every_exported_name_exists_and_every_public_name_is_exported() -> None:
    assert len(set(autoglm_client.__all__)) == len(autoglm_client.__all__)
    classes = {name for name, value in vars(autoglm_client).items() if isinstance(value, type)}
    assert classes <= set(autoglm_client.__all__)
    assert all(hasattr(autoglm_client, name) for name in autoglm_client.__all__)


def test_the_client_imports_nothing_heavy_and_knows_no_model() -> None:
    heavy = "{'torch','transformers','onnx','onnxruntime','pytriton','autoglm_engine','autoglm_export','typer','rich'}"
    code = f"import sys, autoglm_client; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.slow
def test_the_client_imports_in_less_time_than_what_it_rests_on() -> None:
    code = (
        "import time; a = time.process_time(); import grpc.aio, tritonclient.grpc.service_pb2_grpc, asyncio\n"
        "b = time.process_time(); import autoglm_client; print((time.process_time() - b) / (b - a))"
    )
    ratio = min(float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(3))
    assert ratio < 1


def test_the_three_lists_of_options_agree() -> None:
    assert set(OPTION_KINDS) == OPTION_NAMES == set(OptionChanges.__annotations__)


def test_a_request_carries_only_what_was_set() -> None:
    tensors = build(max_tokens=5, temperature=0.5, seed=2**62, ignore_eos=False, stop=["a", "é"], user="ü")
    assert tensors.pop("text_input") == string_bytes("hi")
    assert tensors == {
        "max_tokens": struct.pack("<i", 5),
        "temperature": struct.pack("<f", 0.5),
        "seed": struct.pack("<q", 2**62),
        "ignore_eos": b"\x00",
        "stop": string_bytes("a") + string_bytes("é"),
        "user": string_bytes("ü"),
        "stream": b"\x01",
    }


def test_tools_travel_as_json() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "é"}}
    assert build([{"role": "user", "content": "x"}], tools=[tool])["tools"] == string_bytes(
        json.dumps([tool], ensure_ascii=False)
    )
    with pytest.raises(InvalidRequestError, match="tools cannot be written as JSON"):
        build("x", tools=[{"type": object()}])


def test_messages_travel_as_json() -> None:
    raw = build([Message("system", "s"), {"role": "user", "content": "你好"}])["messages"]
    assert json.loads(raw[4:]) == [{"role": "system", "content": "s"}, {"role": "user", "content": "你好"}]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_arrives_unchanged(text: str) -> None:
    assert build(text)["text_input"] == string_bytes(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 2**31}, "max_tokens must be a whole number that fits into INT32, got 2147483648"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number, got 1.5"),
        ({"max_tokens": True}, "max_tokens must be a whole number, got True"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"temperature": 10**400}, "temperature must be a number that fits into FP32"),
        ({"ignore_eos": 1}, "ignore_eos must be true or false, got 1"),
        ({"user": ["u"]}, "user must be a string, got ['u']"),
        ({"stop": [1]}, "stop must be a string or a sequence of strings"),
    ],
)
def test_what_cannot_be_put_on_the_wire_is_refused_by_name(options: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        build(**options)
    assert words in str(caught.value)


def test_values_out_of_range_are_the_servers_to_refuse() -> None:
    assert build(temperature=float("nan"), max_tokens=-1, top_p=0.0)


def test_lone_surrogates_and_unknown_options_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="character 1"):
        build("a\ud800")
    with pytest.raises(InvalidRequestError, match="unknown option 'heat'"):
        GenerationOptions().with_changes({"heat": 1})  # type: ignore[typeddict-unknown-key]


def test_control_requests_go_to_the_engine() -> None:
    request = control_request({"cancel": ["a"]})
    assert request.model_name == "engine"
    assert json.loads(inputs_of(request)["control"][4:]) == {"cancel": ["a"]}
    assert parse_control(control_response({"cancelled": 1})) == {"cancelled": 1}
    assert control_request({"stats": True}, "phone").model_name == "phone-engine"
    asked = generation_request("hi", GenerationOptions(), stream=True, request_id="7")
    assert is_control(request) and not is_control(asked)


def test_a_response_is_read_whole() -> None:
    top = [{"token_id": 2, "token": "b", "logprob": -1.0}]
    entry = [{"token_id": 1, "token": "a", "logprob": -0.5, "top": top}]
    piece = parse_generation(response("a", "stop", 4, json.dumps(entry)))
    assert piece is not None
    assert (piece.text, piece.finish_reason, piece.usage.completion_tokens) == ("a", "stop", 4)
    assert piece.usage.cached_tokens == 1
    assert piece.stages.server_ms == pytest.approx(2.1)
    assert (piece.logprobs[0].token, piece.logprobs[0].top[0].token_id) == ("a", 2)


def test_heartbeats_and_end_marks_are_no_pieces() -> None:
    assert parse_generation(response("", "", 0)) is None
    assert parse_generation(end_mark()) is None


def test_a_response_that_breaks_the_contract_is_a_protocol_error() -> None:
    short = response("x", "", 1)
    del short.outputs[2:], short.raw_output_contents[2:]
    with pytest.raises(ProtocolError, match="lacks the tensor 'prompt_tokens'"):
        parse_generation(short)
    broken = response("x", "", 1)
    broken.raw_output_contents[0] = b"\xff\x00\x00\x00x"
    with pytest.raises(ProtocolError, match="cannot be read"):
        parse_generation(broken)
    with pytest.raises(ProtocolError):
        parse_control(end_mark())


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ("in ensemble 'autoglm', INVALID_ARG: top_p is 0", InvalidRequestError, "top_p is 0"),
        ("in ensemble 'autoglm', UNAVAILABLE: 64 requests wait already", QueueFullError, "64 requests wait already"),
        ("UNAVAILABLE: the server is shutting down", ServerUnavailableError, "the server is shutting down"),
        ("INTERNAL: a slot leaked", ServerError, "a slot leaked"),
        ("[request id: x] unexpected inference input 'foo' for model 'autoglm'", InvalidRequestError, "foo"),
        ("Stub process 'engine_0_0' is not healthy.", ServerError, "not healthy"),
        (
            (
                "in ensemble 'autoglm', Failed to increase the shared memory pool size for key 'autoglm-1' to "
                "8388608 bytes."
            ),
            InvalidRequestError,
            "send less",
        ),
        ("", ServerError, "no reason"),
        (
            "Request for unknown model: 'autoglm' has no available versions",  # it was unloaded, and may come back
            ServerUnavailableError,
            "Request for unknown model: 'autoglm' has no available versions",
        ),
        (
            "[request id: x] Server is stopping, scheduler for model has stopped accepting new inference requests",
            ServerUnavailableError,
            "Server is stopping",
        ),
        ("Request for unknown model: 'x' is not found", InvalidRequestError, "'x' is not found"),
    ],
)
def test_error_texts_become_typed_errors(text: str, kind: type[Exception], sentence: str) -> None:
    error = error_of(text)
    assert type(error) is kind
    assert sentence in str(error)
    assert "ensemble" not in str(error)


@pytest.mark.parametrize(
    "error", [c for c in vars(autoglm_client).values() if isinstance(c, type) and issubclass(c, Exception)]
)
def test_every_error_belongs_to_the_tree_in_the_docstring(error: type[Exception]) -> None:
    from autoglm_client import exceptions

    assert issubclass(error, autoglm_client.AutoGLMError)
    assert error.__name__ in (exceptions.__doc__ or "")


def test_deadlines_name_the_limit_that_passes_first() -> None:
    limits = Deadlines(Timeouts(first_token=2.0, between_tokens=1.0, total=10.0), started=100.0, streamed=True)
    assert limits.next is not None and (limits.next.at, limits.next.error) == (102.0, FirstTokenTimeout)
    limits.token_arrived(101.5)
    assert limits.next is not None and (limits.next.at, limits.next.error) == (102.5, InterTokenTimeout)
    limits.token_arrived(109.5)
    assert limits.next is not None and (limits.next.at, limits.next.error) == (110.0, TotalTimeout)
    assert "10 s" in str(limits.next.exceeded("id"))


def test_an_answer_in_one_piece_has_only_the_total_limit() -> None:
    limits = Deadlines(Timeouts(first_token=1.0, total=None), started=0.0, streamed=False)
    assert limits.next is None
    limits.token_arrived(1.0)
    assert limits.next is None


def test_time_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="'total' must be over 0 seconds"):
        Timeouts(total=0.0)


def test_only_errors_that_computed_nothing_are_retried() -> None:
    policy = RetryPolicy(attempts=3)
    tree = [getattr(autoglm_client, name) for name in autoglm_client.__all__]
    retried = {e.__name__ for e in tree if isinstance(e, type) and issubclass(e, Exception) and e.retryable}
    assert retried == {
        "ServerUnavailableError",
        "CannotConnectError",
        "QueueFullError",
        "ConnectTimeout",
        "ConnectionLost",
    }
    assert policy.allows(QueueFullError("full"), failed_attempts=2)
    assert not policy.allows(QueueFullError("full"), failed_attempts=3)
    assert not policy.allows(ServerError("broken"), failed_attempts=1)


@given(st.integers(1, 12), st.floats(0, 1))
def test_delays_double_up_to_a_bound_and_are_spread(failed: int, draw: float) -> None:
    policy = RetryPolicy(attempts=20, first_delay_s=0.1, longest_delay_s=2.0)
    longest = min(0.1 * 2 ** (failed - 1), 2.0)
    assert longest / 2 <= policy.delay_s(failed, draw=draw) <= longest
    assert policy.delay_s(1, endpoints=2) == 0.0


def test_types_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationOptions().max_tokens = 3  # type: ignore[misc]
    assert not [n for n, count in Counter(autoglm_client.__all__).items() if count > 1]


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:8000", "https://server"])
def test_a_url_is_an_address_of_grpc(url: str) -> None:
    with pytest.raises(ValueError, match="it must be host:port of a gRPC endpoint"):
        autoglm_client.AsyncClient(["127.0.0.1:8001", url])
