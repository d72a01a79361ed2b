"""Both messages between the steps come back as they were, and anything else is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Event, FinishReason, ImageSpan, Request, SamplingOptions, Stages, TokenLogprobs, Usage
from autoglm_engine.errors import CODES, InvalidRequest, Unavailable
from autoglm_engine.messages import (
    Ack,
    Packed,
    SentEvent,
    pack_event,
    pack_request,
    split_files,
    unpack_event,
    unpack_request,
    unpack_sent_event,
    with_files,
)
from hypothesis import given
from hypothesis import strategies as st

IDS = st.integers(0, 2**31 - 1)
FLOATS = st.floats(allow_nan=False, width=32)
TIMES = st.floats(0, 1e12)
SAMPLING = st.builds(
    SamplingOptions,
    max_tokens=IDS,
    temperature=FLOATS,
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop=st.lists(st.text(max_size=5)).map(tuple),
    ignore_eos=st.booleans(),
)
LOGPROBS = st.builds(TokenLogprobs, IDS, FLOATS, st.lists(st.tuples(IDS, FLOATS), max_size=3).map(tuple))
EVENTS = st.builds(
    Event,
    request_id=st.text(),
    token_ids=st.lists(IDS).map(tuple),
    usage=st.builds(Usage, IDS, IDS, IDS),
    stages=st.builds(Stages, TIMES, TIMES, TIMES, TIMES),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    text_bytes=st.none() | IDS,
    is_first=st.booleans(),
    logprobs=st.lists(LOGPROBS, max_size=3).map(tuple),
    error=st.none() | st.text(),
    error_code=st.sampled_from(CODES),
).map(lambda event: event if event.error is not None else replace(event, error_code=""))
ARTIFACT = "0123456789abcdef"
ACKS = st.none() | st.builds(Ack, IDS, st.integers(1, 2**62))


@given(SAMPLING, st.booleans(), st.none() | TIMES, st.text(max_size=5), st.none() | st.integers(100, 3_600_000))
def test_a_request_survives(
    sampling: SamplingOptions, stream: bool, deadline: float | None, user: str, heartbeat_ms: int | None
) -> None:
    ids = np.array([1, 2, 3], dtype=np.int32)
    request = Request("r", ids, sampling, stream, arrival=1.25, deadline=deadline, tokenize_ms=0.5, user=user)
    request = replace(request, heartbeat_ms=heartbeat_ms)
    packed = pack_request(request, ARTIFACT)
    assert packed.dtype == np.uint8
    unpacked = unpack_request("r", ids, packed, ARTIFACT)
    assert unpacked.prompt_ids is ids
    assert replace(unpacked, prompt_ids=b"") == replace(request, prompt_ids=b"")  # arrays cannot be compared so


@pytest.mark.slow
@given(EVENTS, ACKS, IDS)
def test_an_event_survives(event: Event, ack: Ack | None, number: int) -> None:
    packed = pack_event(event, ack, number, ARTIFACT)
    assert unpack_sent_event(packed) == SentEvent(event, ack, number, ARTIFACT)
    assert packed.dtype == np.uint8
    assert unpack_event(packed) == (event, ack)
    assert unpack_event(packed[np.newaxis]) == (event, ack)  # as Triton hands it over


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"id": 1, "tokens": 5, "usage": [], "stages": []}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_anything_else_is_refused(raw: bytes) -> None:
    packed = np.frombuffer(raw, dtype=np.uint8)
    with pytest.raises(InvalidRequest):
        unpack_event(packed)
    with pytest.raises(InvalidRequest):
        unpack_request("r", np.array([1], dtype=np.int32), packed, ARTIFACT)


@pytest.mark.parametrize(
    "ack",
    [b'"x"', b"[1]", b"[1, 2, 3]", b'["x", 1]', b"[1, null]", b"[-1, 1]", b"[1, -1]", b"[1, 1e3]", b"[1, %d]" % 2**63],
)
def test_a_malformed_acknowledgement_is_refused(ack: bytes) -> None:
    raw = b'{"id": "r", "tokens": [1], "usage": [1, 1, 0], "stages": [0, 0, 0, 0], "ack": ' + ack + b"}"
    with pytest.raises(InvalidRequest, match="ack is"):
        unpack_event(np.frombuffer(raw, dtype=np.uint8))


WRONG_IN_EVENTS: list[dict[str, Any]] = [
    {"id": 1},
    {"tokens": [-1]},
    {"tokens": [2**31]},
    {"tokens": ["1"]},
    {"tokens": [1.5]},
    {"tokens": [True]},
    {"tokens": 5},
    {"usage": [1, 1, 2**31]},
    {"usage": [1, 1, -1]},
    {"usage": [1, 1]},
    {"usage": [1, 1, 1, 1]},
    {"stages": [float("nan"), 0, 0, 0, 0]},
    {"stages": [float("inf"), 0, 0, 0, 0]},
    {"stages": [10**400, 0, 0, 0, 0]},
    {"stages": ["1", 0, 0, 0, 0]},
    {"finish": "done"},
    {"finish": 1},
    {"text_bytes": -1},
    {"text_bytes": 2**31},
    {"first": 1},
    {"logprobs": [[1, 2]]},
    {"logprobs": [[-1, 0.5, []]]},
    {"logprobs": [[1, "x", []]]},
    {"logprobs": [[1, 0.5, [[1]]]]},
    {"error": ["NO_SUCH_CODE", "x"]},
    {"error": ["__class__", "x"]},
    {"error": [["INTERNAL"], "x"]},
    {"error": ["INTERNAL", 1]},
    {"sequence": -1},
    {"sequence": "0"},
    {"sequence": 1.5},
    {"sequence": 2**31},
    {"artifact": 5},
    {"artifact": None},
    {"error": "INTERNAL"},
    {"cache": ["perhaps", 0.0]},
    {"cache": ["exact", float("nan")]},
    {"cache": ["exact", -1]},
]


@pytest.mark.parametrize("wrong", WRONG_IN_EVENTS, ids=str)
def test_every_field_of_an_event_has_a_type_and_a_range(wrong: dict[str, Any]) -> None:
    right = {"id": "r", "tokens": [1], "usage": [1, 1, 0], "stages": [0, 0, 0, 0, 0]}
    unpack_event(packed_json(right))
    with pytest.raises(InvalidRequest):
        unpack_event(packed_json({**right, **wrong}))


WRONG_IN_REQUESTS: list[dict[str, Any]] = [
    {"sampling": []},
    {"sampling": {"max_tokens": 1}},
    {"sampling": {"max_tokens": 1, "stop": [1], "logit_bias": []}},
    {"sampling": {"max_tokens": 1, "stop": [], "logit_bias": [[-1, 0.5]]}},
    {"sampling": {"max_tokens": 1, "stop": [], "logit_bias": [[1, float("inf")]]}},
    {"sampling": {"max_tokens": 1, "stop": [], "logit_bias": [], "heat": 1}},
    {"stream": 1},
    {"stream": "true"},
    {"arrival": -1},
    {"arrival": float("nan")},
    {"arrival": "1"},
    {"arrival": 10**400},
    {"deadline": float("inf")},
    {"deadline": True},
    {"tokenize_ms": -1},
    {"priority": 0},
    {"priority": 10},
    {"priority": None},
    {"prompt_lookup": 1.5},
    {"cache": "always"},
    {"cache": []},
    {"tenant": 1},
    {"user": "x" * 257},
    {"user": None},
    {"semantic": 0},
    {"question": ["x"]},
    {"question": [1, "x"]},
    {"question": 5},
    {"artifact": 5},
    {"artifact": None},
]


@pytest.mark.parametrize("wrong", WRONG_IN_REQUESTS, ids=lambda wrong: str(wrong)[:60])
def test_every_field_of_a_request_has_a_type_and_a_range(wrong: dict[str, Any]) -> None:
    ids = np.array([1], dtype=np.int32)
    packed = pack_request(Request("r", ids, SamplingOptions(max_tokens=1), arrival=1.0), ARTIFACT)
    right = json.loads(packed.tobytes())
    unpack_request("r", ids, packed_json(right), ARTIFACT)
    with pytest.raises(InvalidRequest):
        unpack_request("r", ids, packed_json({**right, **wrong}), ARTIFACT)


IMAGES = (ImageSpan(1, (2, 3), bytes(range(32))), ImageSpan(7, (1, 1), bytes(32)))
IDS_OF_IMAGES = np.array([4, 9, 9, 9, 9, 9, 9, 9, 4], dtype=np.int32)
DIGEST = "ab" * 32
WRONG_IMAGES: list[Any] = [
    None,
    {},
    [5],
    [[1, 2, 3]],
    [[1, 2, 3, DIGEST, 5]],
    [[-1, 2, 3, DIGEST]],
    [[True, 2, 3, DIGEST]],
    [["1", 2, 3, DIGEST]],
    [[1.0, 2, 3, DIGEST]],
    [[9, 1, 1, DIGEST]],
    [[1, 0, 3, DIGEST]],
    [[1, 2, 0, DIGEST]],
    [[1, -2, -3, DIGEST]],
    [[1, 2, 3, DIGEST[:-2]]],
    [[1, 2, 3, DIGEST + "ab"]],
    [[1, 2, 3, "z" * 64]],
    [[1, 2, 3, 5]],
    [[1, 4, 2, DIGEST]],  # also the text behind it
    [[1, 3, 3, DIGEST]],  # past the end
    [[1, 2**31 - 1, 2**31 - 1, DIGEST]],
    [[1, 2, 3, DIGEST], [6, 1, 1, DIGEST]],  # one within the other
    [[7, 1, 1, DIGEST], [1, 2, 3, DIGEST]],  # out of order
]


def test_images_survive() -> None:
    request = Request("r", IDS_OF_IMAGES, SamplingOptions(max_tokens=1), arrival=1.0, images=IMAGES)
    assert unpack_request("r", IDS_OF_IMAGES, pack_request(request, ARTIFACT), ARTIFACT).images == IMAGES


def test_a_request_without_images_says_nothing_of_them() -> None:
    packed = pack_request(Request("r", IDS_OF_IMAGES, SamplingOptions(max_tokens=1)), ARTIFACT)
    assert b"image" not in packed.tobytes()


@pytest.mark.parametrize("wrong", WRONG_IMAGES, ids=lambda wrong: str(wrong)[:40])
def test_an_image_is_where_the_prompt_has_its_tokens(wrong: Any) -> None:
    packed = pack_request(Request("r", IDS_OF_IMAGES, SamplingOptions(max_tokens=1), images=IMAGES), ARTIFACT)
    right = json.loads(packed.tobytes())
    with pytest.raises(InvalidRequest):
        unpack_request("r", IDS_OF_IMAGES, packed_json({**right, "images": wrong}), ARTIFACT)


def test_there_are_not_more_images_than_a_message_holds() -> None:
    ids = np.full(65, 9, dtype=np.int32)
    packed = pack_request(Request("r", ids, SamplingOptions(max_tokens=1)), ARTIFACT)
    images = [[place, 1, 1, DIGEST] for place in range(65)]
    raw = {**json.loads(packed.tobytes()), "images": images}
    assert len(unpack_request("r", ids, packed_json({**raw, "images": images[1:]}), ARTIFACT).images) == 64
    with pytest.raises(InvalidRequest, match="images has 65 entries; at most 64 are allowed"):
        unpack_request("r", ids, packed_json(raw), ARTIFACT)


def test_what_was_tokenized_for_another_artifact_is_refused_and_may_come_again() -> None:
    """Its token ids mean other text there."""
    ids = np.array([1], dtype=np.int32)
    packed = pack_request(Request("r", ids, SamplingOptions(max_tokens=1), arrival=1.0), "fedcba9876543210")
    sentence = (
        "the request was tokenized for the artifact fedcba9876543210, and the engine serves 0123456789abcdef: "
        "a reload is under way; send it again"
    )
    with pytest.raises(Unavailable) as refused:
        unpack_request("r", ids, packed, ARTIFACT)
    assert refused.value.wire_text == f"UNAVAILABLE: {sentence}"


def packed_json(raw: dict[str, Any]) -> Packed:
    return np.frombuffer(json.dumps(raw).encode(), dtype=np.uint8)


@given(st.binary(max_size=9), st.lists(st.binary(max_size=40), max_size=5))
def test_files_come_back_beside_the_sealed_request(content: bytes, files: list[bytes]) -> None:
    sealed = np.frombuffer(content + b"}", np.uint8)
    packed = with_files(sealed, files)
    found, parts = split_files(packed)
    assert found.tobytes() == sealed.tobytes() and [part.tobytes() for part in parts] == files


@given(st.binary(max_size=60))
def test_whatever_is_no_request_with_files_is_refused_or_has_no_more_than_it_holds(raw: bytes) -> None:
    packed = np.frombuffer(raw, np.uint8)
    try:
        sealed, files = split_files(packed)
    except InvalidRequest as error:
        assert "not what the tokenizer model writes" in str(error)
    else:
        assert sealed.size + sum(file.size for file in files) <= packed.size


def test_more_files_than_a_message_may_have_are_refused() -> None:
    sealed = np.frombuffer(b"{}", np.uint8)
    with pytest.raises(InvalidRequest, match="the request has 65 images; at most 64 are allowed"):
        with_files(sealed, [b"x"] * 65)
    assert len(split_files(with_files(sealed, [b"x"] * 64))[1]) == 64
