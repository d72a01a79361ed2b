"""The tokenizer model without Triton: what is quick is answered at once, the rest beside it, everybody exactly once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import TokenIds
from autoglm_engine.errors import ShuttingDown, Unavailable
from autoglm_engine.messages import Packed, unpack_request
from autoglm_engine.options.options import OptionRules
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.encoder_process import EncoderLimits
from autoglm_engine.tokenizer.encoding import BoundedEncoder
from autoglm_engine.tokenizer.prompt import Prompter
from autoglm_engine.tokenizer.template_process import TemplateLimits
from autoglm_engine.triton import tokenizer_dispatcher
from autoglm_engine.triton.board.finder import EngineBoard
from autoglm_engine.triton.board.seal import BOARD_ID_BYTES, KEY_BYTES, Kind, Seal
from autoglm_engine.triton.tokenizer_dispatcher import TokenizerDispatcher
from autoglm_engine.triton.tokenizer_model import QUICK_BYTES, RequestPreprocessor, Tensors
from tokenizers import Tokenizer

from tests.support.engine.fakes import FakeClock, byte_tokenizer
from tests.support.engine.small_service import PATIENCE
from tests.support.engine.split_tokenizers import write_split_only

pytestmark = pytest.mark.slow

SEAL = Seal(b"b" * BOARD_ID_BYTES, b"k" * KEY_BYTES)
TEMPLATE = (
    "{% if messages[0].content == 'evil' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% "
    "endfor %}{% endif %}{{ messages[0].content }}"
)
MAX_LENGTH = 40_000
END = ShuttingDown("the server is shutting down")


class FakeBoard(EngineBoard):
    def __init__(self) -> None:
        self.is_there = True

    def current(self) -> Any:
        if not self.is_there:
            raise Unavailable("the engine is not loaded; try again later")
        return SimpleNamespace(seal=SEAL)


class KeptAnswer:
    """A response sender that keeps what it was sent, and by which thread."""

    request_id = "mine"

    def __init__(self) -> None:
        self.sent: list[tuple[TokenIds, Packed]] = []
        self.failures: list[tuple[str, str]] = []
        self.thread: threading.Thread | None = None
        self._ended = threading.Event()

    def send(self, token_ids: TokenIds, request: Packed) -> None:
        self.sent.append((token_ids, request))
        self._end()

    def fail(self, code: str, message: str) -> None:
        self.failures.append((code, message))
        self._end()

    def _end(self) -> None:
        self.thread = threading.current_thread()
        self._ended.set()

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def wait(self) -> KeptAnswer:
        assert self._ended.wait(PATIENCE), "no answer came"
        assert len(self.sent) + len(self.failures) == 1, "one request has one answer"
        return self


def tensors(**values: Any) -> Tensors:
    def array(value: Any) -> Any:
        text = isinstance(value, str | bytes)
        return np.array([[value.encode() if isinstance(value, str) else value]], dtype=np.object_ if text else np.int32)

    return {name: array(value) for name, value in values.items()}


def chat(content: str) -> str:
    return json.dumps([{"role": "user", "content": content}])


class Made:
    def __init__(self, folder: Path, pattern: str | None = None) -> None:
        path = folder / "tokenizer.json"
        byte_tokenizer().save(str(path)) if pattern is None else write_split_only(path, pattern)
        self.clock, self.board = FakeClock(), FakeBoard()
        tokenizer = Tokenizer.from_file(str(path))
        encoder = BoundedEncoder.load(path, tokenizer, EncoderLimits(seconds=0.5, seconds_a_byte=0.0))
        template = ChatTemplate(TEMPLATE, {}, TemplateLimits(seconds=0.5))
        prompter = Prompter(tokenizer, template, MAX_LENGTH, encoder)
        self.dispatcher = TokenizerDispatcher(
            RequestPreprocessor(prompter, OptionRules(MAX_LENGTH, 300, {}), "artifact", self.clock), self.board
        )

    def take(self, parameters: str = "", **values: Any) -> KeptAnswer:
        answer = KeptAnswer()
        self.dispatcher.take(tensors(**values), parameters, 0, answer)
        return answer


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Made]]:
    made: list[Made] = []

    def one(pattern: str | None = None) -> Made:
        made.append(Made(tmp_path, pattern))
        return made[-1]

    yield one
    for each in made:
        each.dispatcher.close(END, PATIENCE)


@pytest.fixture
def door(make: Callable[..., Made]) -> Made:
    return make()


def test_a_short_text_is_answered_at_once(door: Made) -> None:
    answer = door.take(text_input="a" * QUICK_BYTES)
    assert answer.has_ended and answer.wait().thread is threading.current_thread()
    ((ids, sealed),) = answer.sent
    assert len(ids) == QUICK_BYTES and ids.dtype == np.int32
    SEAL.open(Kind.REQUEST, sealed, beside=ids)


@pytest.mark.parametrize(
    "given", [{"text_input": "a" * (QUICK_BYTES + 1)}, {"text_input": "b" * 20_000}, {"messages": chat("hi")}]
)
def test_what_may_take_long_is_answered_by_another_thread(door: Made, given: dict[str, str]) -> None:
    answer = door.take(**given, tenant="me").wait()
    assert answer.thread is not threading.current_thread()
    ((ids, sealed),) = answer.sent
    request = unpack_request("", ids, SEAL.open(Kind.REQUEST, sealed, beside=ids), "artifact")
    assert request.tenant == "me" and request.prompt_ids.tolist() == ids.tolist()


def test_a_request_arrived_when_it_came_and_waiting_counts_as_tokenizing(door: Made) -> None:
    door.take(messages=chat("warm")).wait()
    slow = door.take(messages=chat("evil"))
    answer = door.take(messages=chat("hi"), deadline_ms=7000)
    door.clock.now += 2.0
    slow.wait()
    ((ids, sealed),) = answer.wait().sent
    request = unpack_request("", ids, SEAL.open(Kind.REQUEST, sealed, beside=ids), "artifact")
    assert (request.arrival, request.deadline, request.tokenize_ms) == (100.0, 107.0, 2000.0)


@pytest.mark.parametrize(
    ("given", "parameters", "message"),
    [
        ({"text_input": "x", "messages": "[]"}, "", "a request needs text_input or messages"),
        ({"text_input": "x"}, '{"top": 1}', "unknown option top"),
        ({"text_input": "x", "min_tokens": -1}, "", "min_tokens is -1"),
        ({"messages": "no JSON"}, "", "messages is not JSON"),
        ({"messages": chat("hi"), "max_tokens": 0}, "", "max_tokens is 0"),
        ({"messages": chat("hi"), "tenant": b"\xff"}, "", "tenant is not valid UTF-8"),
        ({"messages": chat("evil")}, "", "the model's chat template computes for too long on these messages"),
    ],
)
def test_what_is_wrong_is_told_once(door: Made, given: dict[str, Any], parameters: str, message: str) -> None:
    ((code, told),) = door.take(parameters, **given).wait().failures
    assert code == "INVALID_ARG" and told.startswith(message)
    assert door.take(messages=chat("hi")).wait().sent


def test_without_an_engine_it_is_unavailable(door: Made) -> None:
    door.board.is_there = False
    for given in ({"text_input": "x"}, {"messages": chat("x")}):
        assert door.take(**given).wait().failures == [("UNAVAILABLE", "the engine is not loaded; try again later")]


def test_a_tenant_that_fills_its_line_is_refused_and_no_other(door: Made) -> None:
    evil = [door.take(text_input="x" * 20_000, tenant="evil") for _ in range(70)]
    assert door.take(text_input="hi", tenant="good").has_ended
    assert door.take(messages=chat("hi"), tenant="good").wait().sent
    assert door.take(text_input="y" * 20_000, tenant="good").wait().sent
    refused = [answer.failures[0] for answer in evil if answer.wait().failures]
    assert {code for code, _ in refused} <= {"UNAVAILABLE"}


@pytest.mark.parametrize(
    ("pattern", "text", "code", "message"),
    [
        (r"\s+$", " " * 39_000 + "x", "INVALID_ARG", "text_input takes too long to encode with the model's tokenizer"),
        (
            "(a+)+$",
            "a" * 40 + "!",
            "INVALID_ARG|INTERNAL",
            "text_input takes too long|the tokenizer failed on text_input",
        ),
    ],
)
def test_a_bomb_ends_its_request_alone(
    make: Callable[..., Made], pattern: str, text: str, code: str, message: str
) -> None:
    door = make(pattern)
    ((found, told),) = door.take(text_input=text).wait().failures
    assert found in code.split("|") and told.startswith(tuple(message.split("|")))
    assert door.take(text_input="aaa").wait().sent


def test_a_panic_of_the_library_is_one_requests_own(door: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    def panic(*arguments: Any, **options: Any) -> None:
        raise Panic

    with monkeypatch.context() as patch:
        patch.setattr(Prompter, "from_text", panic)
        assert door.take(text_input="x").wait().failures == [("INTERNAL", "the tokenizer failed: Panic")]
        assert door.take(text_input="x" * 5000).wait().failures == [("INTERNAL", "the tokenizer failed: Panic")]
    assert door.take(text_input="x" * 5000).wait().sent


def test_at_the_end_everybody_is_answered(make: Callable[..., Made]) -> None:
    door = make(r"\s+$")
    door.take(text_input="x" * 20_000).wait()  # its process runs
    taken = [door.take(text_input=" " * 39_000 + "x") for _ in range(4)]
    door.dispatcher.close(END, PATIENCE)
    failures = [answer.wait().failures[0] for answer in taken]
    assert ("UNAVAILABLE", "the server is shutting down") in failures
    assert {code for code, _ in failures} <= {"UNAVAILABLE", "INVALID_ARG"}  # one may have been over by then
    assert door.take(messages=chat("hi")).wait().failures == [("UNAVAILABLE", "the server is shutting down")]


class CrowdedAnswer(KeptAnswer):
    """Shared memory has no room for it a few times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def _end(self) -> None:
        self.times -= 1
        if self.times >= 0:
            self.sent.clear()
            self.failures.clear()
            raise OSError("Failed to increase the shared memory pool size")
        super()._end()


@pytest.mark.parametrize("text", ["short", "a" * (QUICK_BYTES + 1), ""])
def test_what_found_no_room_in_shared_memory_is_sent_again(door: Made, text: str) -> None:
    """Somebody's large body lies there for a moment; a request that is never answered would wait for ever."""
    answer = CrowdedAnswer(times=3)
    door.dispatcher.take(tensors(text_input=text), "", 0, answer)
    assert len(answer.wait().sent) == bool(text)


@pytest.mark.parametrize("text", ["short", "a" * (QUICK_BYTES + 1)])
def test_what_cannot_be_sent_costs_nobody_else(door: Made, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(tokenizer_dispatcher, "_SEND_SECONDS", 0.01)
    for _ in range(3):
        door.dispatcher.take(tensors(text_input=text), "", 0, CrowdedAnswer(times=10**6))
    assert door.take(text_input=text).wait().sent


class LargeAnswer(KeptAnswer):
    """Shared memory never has room for it, and for a sentence it has."""

    def send(self, token_ids: TokenIds, request: Packed) -> None:
        raise OSError("Failed to increase the shared memory pool size")


@pytest.mark.parametrize("text", ["short", "a" * (QUICK_BYTES + 1)])
def test_what_shared_memory_never_has_room_for_is_refused(
    door: Made, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(tokenizer_dispatcher, "_SEND_SECONDS", 0.01)
    answer = LargeAnswer()
    door.dispatcher.take(tensors(text_input=text), "", 0, answer)
    ((code, sentence),) = answer.wait().failures
    assert code == "UNAVAILABLE" and "no room for this request" in sentence
