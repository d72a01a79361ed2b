"""The thread that looks for vanished clients: whom it asks, and when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from autoglm_engine.messages import Ack, Packed, unpack_sent_event
from autoglm_engine.triton.board.acks import AckBoard, AckGate
from autoglm_engine.triton.board.disconnects import DisconnectWatch
from autoglm_engine.triton.board.finder import EventBoards, RequestBoards
from autoglm_engine.triton.board.server_identity import ServerIdentity

ARTIFACT = "0123456789abcdef"


@pytest.fixture
def server() -> ServerIdentity:
    return ServerIdentity.of(os.getpid())


@pytest.fixture
def board(tmp_path: Path, server: ServerIdentity) -> Iterator[AckBoard]:
    with AckBoard(8, tmp_path, server, ARTIFACT) as made:
        yield made


def test_the_detokenizer_is_greeted_once_and_not_before_the_first_request(
    board: AckBoard, tmp_path: Path, server: ServerIdentity
) -> None:
    """A call before the server heard of the end of `initialize` ends it."""
    asked: list[Packed] = []
    failures = [RuntimeError("not loaded")]

    def ask(packed: Packed) -> None:
        if failures:
            raise failures.pop()
        asked.append(packed)

    watch = DisconnectWatch(AckGate(board), lambda ids: None, ask)
    for _ in range(3):
        watch._look()
    assert not asked and failures, "nobody asked the engine yet"
    RequestBoards(board, server, tmp_path).note_asked()
    for _ in range(3):
        watch._look()
    (greeting,) = asked
    sent = unpack_sent_event(EventBoards(server, tmp_path).open(greeting)[0])
    assert (sent.ack, sent.artifact, sent.event.token_ids) == (Ack(0, 0), ARTIFACT, ())
