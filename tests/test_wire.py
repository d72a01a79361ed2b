"""Both messages between the steps come back as they were, and anything else is refused."""

from __future__ import annotations

import numpy as np
import pytest
from autoglm_engine.core import Event, FinishReason, Request, SamplingOptions, Stages, TokenLogprobs, Usage
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.wire import Ack, pack_event, pack_request, unpack_event, unpack_request
from hypothesis import given
from hypothesis import strategies as st

IDS = st.integers(0, 2**31 - 1)
FLOATS = st.floats(allow_nan=False, width=32)
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
    stages=st.builds(Stages, FLOATS, FLOATS, FLOATS, FLOATS),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    text_bytes=st.none() | IDS,
    is_first=st.booleans(),
    logprobs=st.lists(LOGPROBS, max_size=3).map(tuple),
    error=st.none() | st.text(),
)
ACKS = st.none() | st.builds(Ack, st.text(), IDS, st.integers(1, 2**62))


@given(SAMPLING, st.booleans(), st.none() | FLOATS, st.text(max_size=5))
def test_a_request_survives(sampling: SamplingOptions, stream: bool, deadline: float | None, user: str) -> None:
    ids = np.array([1, 2, 3], dtype=np.int32)
    request = Request("r", ids, sampling, stream, arrival=1.25, deadline=deadline, tokenize_ms=0.5, user=user)
    packed = pack_request(request)
    assert packed.dtype == np.uint8
    assert unpack_request("r", ids, packed) == request


@pytest.mark.slow
@given(EVENTS, ACKS)
def test_an_event_survives(event: Event, ack: Ack | None) -> None:
    packed = pack_event(event, ack)
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
        unpack_request("r", np.array([1], dtype=np.int32), packed)


@pytest.mark.parametrize("ack", [b'"x"', b"[1, 2]", b'["b", "x", 1]', b'["b", 1, null]'])
def test_a_malformed_acknowledgement_is_refused(ack: bytes) -> None:
    raw = b'{"id": "r", "tokens": [1], "usage": [1, 1, 0], "stages": [0, 0, 0, 0], "ack": ' + ack + b"}"
    with pytest.raises(InvalidRequest):
        unpack_event(np.frombuffer(raw, dtype=np.uint8))
