"""One event in, the ensemble's outputs out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from autoglm_engine.core import Event, FinishReason, Stages, TokenLogprobs, Usage
from autoglm_engine.errors import InvalidRequest, RequestFailed, Unavailable
from autoglm_engine.messages import Ack, pack_event
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_engine.triton.detokenizer_model import Detokenizer

from tests.support.engine.fakes import letters_text, letters_tokenizer

TOKENIZER = letters_tokenizer()


class Clock:
    """Each look takes two milliseconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.002
        return self.now


@pytest.fixture
def acknowledged() -> list[Ack]:
    return []


@pytest.fixture
def pieces(acknowledged: list[Ack]) -> Detokenizer:
    texts = {"": letters_text()}
    return Detokenizer(lambda artifact: texts[artifact], lambda packed: (packed, acknowledged.append), Clock())


def with_room(room: int | None, acknowledged: list[Ack]) -> Detokenizer:
    return Detokenizer(lambda artifact: letters_text(), lambda packed: (packed, acknowledged.append), room=room)


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text).ids)


def event(text: str = "", request_id: str = "r", **more: object) -> Event:
    usage, stages = Usage(7, 2, 3), Stages(1.0, 2.0, 3.0, 4.0, 0.5)
    return Event(request_id, ids(text), usage, stages, **more)  # type: ignore[arg-type]


def test_every_output_has_its_type_and_shape(pieces: Detokenizer) -> None:
    outputs = pieces.outputs(pack_event(event("ab", is_first=True), None)[np.newaxis])
    assert outputs["text_output"].tolist() == [[b"ab"]]
    assert outputs["finish_reason"].tolist() == [[b""]]
    for name, value in (("prompt_tokens", 7), ("completion_tokens", 2), ("cached_tokens", 3)):
        assert (outputs[name].dtype, outputs[name].tolist()) == (np.int32, [[value]])
    assert outputs["stage_times"].dtype == np.float32
    assert outputs["stage_times"].tolist() == [[1.0, 2.0, 3.0, 4.0, 2.0, 0.5]]
    assert outputs["logprobs_output"].tolist() == [[b"[]"]]


def test_the_last_event_says_why_it_ended(pieces: Detokenizer) -> None:
    outputs = pieces.outputs(pack_event(event(finish_reason=FinishReason.LENGTH), None))
    assert (outputs["finish_reason"].item(), outputs["text_output"].item()) == (b"length", b"")


@pytest.mark.parametrize(("kept", "text"), [(0, b""), (1, b"a"), (3, b"abc"), (99, b"abc")])
def test_text_is_cut_where_a_stop_string_began(pieces: Detokenizer, kept: int, text: bytes) -> None:
    outputs = pieces.outputs(pack_event(event("abc", text_bytes=kept), None))
    assert outputs["text_output"].item() == text


def test_each_event_is_acknowledged(pieces: Detokenizer, acknowledged: list[Ack]) -> None:
    ack = Ack(3, 9)
    pieces.outputs(pack_event(event("a"), ack))
    pieces.outputs(pack_event(event("a"), None))
    assert acknowledged == [ack]


def test_detokenize_time_adds_up_over_a_stream(pieces: Detokenizer) -> None:
    def spent(request_id: str, cell: int) -> float:
        outputs = pieces.outputs(pack_event(event("a", request_id), Ack(cell, 1)))
        return float(outputs["stage_times"][0, 4])

    assert [spent("r", 1), spent("s", 2), spent("r", 1), spent("r", 1)] == pytest.approx([2, 2, 4, 6])
    assert spent("t", 1) == pytest.approx(2)  # the cell's next stream


def test_logprobs_are_json_with_the_tokens_text(pieces: Detokenizer) -> None:
    a, b = ids("ab")
    entry = TokenLogprobs(a, -0.25, ((a, -0.25), (b, -1.5)))
    outputs = pieces.outputs(pack_event(event("a", logprobs=(entry,)), None))
    assert json.loads(outputs["logprobs_output"].item()) == [
        {
            "token_id": a,
            "token": "a",
            "logprob": -0.25,
            "top": [
                {"token_id": a, "token": "a", "logprob": -0.25},
                {"token_id": b, "token": "b", "logprob": -1.5},
            ],
        }
    ]


def test_what_is_no_event_is_refused(pieces: Detokenizer) -> None:
    with pytest.raises(InvalidRequest, match="event is not JSON"):
        pieces.outputs(np.array([1, 2, 3], dtype=np.uint8))


def test_a_failure_is_acknowledged_and_raised_with_its_code(pieces: Detokenizer, acknowledged: list[Ack]) -> None:
    failed = event(error="the runner broke", error_code="UNAVAILABLE")
    with pytest.raises(RequestFailed, match="the runner broke") as raised:
        pieces.outputs(pack_event(failed, Ack(3, 9)))
    assert raised.value.wire_text == "UNAVAILABLE: the runner broke"
    assert acknowledged == [Ack(3, 9)]


def test_a_piece_has_the_number_of_its_event(pieces: Detokenizer) -> None:
    numbers = [pieces.outputs(pack_event(event("a"), None, number))["sequence_number"] for number in (0, 1, 7)]
    assert [(number.dtype, number.tolist()) for number in numbers] == [(np.int32, [[n]]) for n in (0, 1, 7)]


def test_an_event_is_acknowledged_also_where_its_artifact_is_gone(acknowledged: list[Ack]) -> None:
    """It was handled: the stream is no lost one."""

    def gone(artifact: str) -> TokenText:
        raise Unavailable(f"no {artifact}")

    pieces = Detokenizer(gone, lambda packed: (packed, acknowledged.append), Clock())
    with pytest.raises(Unavailable, match="no 0123"):
        pieces.outputs(pack_event(event("a"), Ack(3, 9), 0, "0123"))
    assert acknowledged == [Ack(3, 9)]


NAMES = (
    "num_input_tokens",
    "num_output_tokens",
    "cumulative_logprob",
    "output_log_probs",
    "token_logprobs",
    "end_reason",
)


def logprob(letter: str, value: float, *top: tuple[str, float]) -> TokenLogprobs:
    return TokenLogprobs(ids(letter)[0], value, tuple((ids(other)[0], chance) for other, chance in top))


def test_outputs_of_other_backends_are_made_where_they_are_wanted(pieces: Detokenizer) -> None:
    packed = pack_event(event("ab", is_first=True), None)
    own = set(pieces.outputs(packed))
    assert not own & set(NAMES) and set(pieces.outputs(packed, own)) == own
    found = pieces.outputs(packed, ["text_output", "num_input_tokens"])
    assert set(found) - own == {"num_input_tokens"}


def test_counts_are_of_one_response_and_its_end_is_as_vllm_says_it(pieces: Detokenizer) -> None:
    found = pieces.outputs(pack_event(event("abc", is_first=True), None), NAMES)
    assert [(found[name].dtype, found[name].tolist()) for name in NAMES[:2]] == [(np.int32, [[7]]), (np.int32, [[3]])]
    assert found["end_reason"].tolist() == [[b"None"]]
    assert found["token_logprobs"].tolist() == [[b"null"]]
    assert (found["output_log_probs"].shape, found["cumulative_logprob"].tolist()) == ((1, 1, 0), [[0.0]])
    last = pieces.outputs(pack_event(event(finish_reason=FinishReason.LENGTH), None), NAMES)
    assert (last["end_reason"].tolist(), last["num_output_tokens"].tolist()) == ([[b"length"]], [[0]])


def test_logprobs_are_summed_over_a_stream_and_not_over_two(pieces: Detokenizer) -> None:
    sums = []
    for cell, is_first, value in (
        (1, True, -1.0),
        (2, True, -8.0),
        (1, False, -0.5),
        (1, True, -2.0),
        (1, False, -0.25),
    ):
        sent = event("a", is_first=is_first, logprobs=(logprob("a", value, ("a", value)),))
        found = pieces.outputs(pack_event(sent, Ack(cell, 1)), NAMES)
        assert found["output_log_probs"].tolist() == [[[value]]]
        sums.append(found["cumulative_logprob"].item())
    assert sums == [-1.0, -8.0, -1.5, -2.0, -2.25]


def test_logprobs_look_as_vllms(pieces: Detokenizer) -> None:
    """The rank of a token that is not among the likeliest is not known."""
    told = (logprob("a", -1.0, ("b", -0.5), ("a", -1.0)), logprob("c", -9.0, ("b", -0.5)))
    found = pieces.outputs(pack_event(event("ac", is_first=True, logprobs=told), None), NAMES)["token_logprobs"].item()
    a, b, c = (str(ids(letter)[0]) for letter in "abc")
    best = {"logprob": -0.5, "decoded_token": "b", "rank": 1}
    assert json.loads(found) == [
        {a: {"logprob": -1.0, "decoded_token": "a", "rank": 2}, b: best},
        {c: {"logprob": -9.0, "decoded_token": "c"}, b: best},
    ]


def test_an_answer_without_room_in_shared_memory_is_refused_and_acknowledged(acknowledged: list[Ack]) -> None:
    """Where Triton finds no room for it, others may be lost with it."""
    top = tuple((token_id, -0.123456789) for token_id in range(20))
    large = event("ab" * 300, logprobs=tuple(TokenLogprobs(1, -0.5, top) for _ in range(600)))
    packed = pack_event(large, Ack(3, 5))
    outputs = with_room(None, acknowledged).outputs(packed)
    needed = packed.nbytes + sum(
        len(array.item()) if array.dtype == np.object_ else array.nbytes for array in outputs.values()
    )
    assert needed > 2 * packed.nbytes
    for room, fits in ((needed, True), (needed - 1, False)):
        pieces = with_room(room, acknowledged)
        if fits:
            assert pieces.outputs(packed)["text_output"] == outputs["text_output"]
            continue
        with pytest.raises(InvalidRequest, match=rf"takes {needed} bytes in one piece, and {room} of .*streamed"):
            pieces.outputs(packed)
    assert acknowledged == [Ack(3, 5)] * 3
