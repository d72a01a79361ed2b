"""The board and the gate: who may send, and who is lost, whatever the timing."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.messages import Ack
from autoglm_engine.triton.board.acks import AckBoard, AckGate
from autoglm_engine.triton.board.file import Board
from autoglm_engine.triton.board.finder import remove_stale_boards

from tests.support.engine.fakes import FakeClock

LONG = 1.1 * AckGate.PROBE_SECONDS


@pytest.fixture
def board(tmp_path: Path) -> Iterator[AckBoard]:
    with AckBoard(16, tmp_path) as made:
        yield made


def opened(board: AckBoard, folder: Path) -> Board:
    """As the detokenizer has it."""
    made = Board.open(folder / board.name)
    assert made is not None
    return made


class Harness:
    """A gate over a real board, and a detokenizer that handles events in order when told to."""

    def __init__(self, board: AckBoard, folder: Path) -> None:
        self.clock = FakeClock()
        self.gate = AckGate(board, self.clock)
        self.writer = opened(board, folder)
        self.queue: list[tuple[str, Ack]] = []
        self.gone: set[str] = set()

    def send(self, request_id: str) -> Ack:
        ack = self.gate.stamp(request_id)
        self.queue.append((request_id, ack))
        self.gate.confirm(request_id)
        return ack

    def handle(self, count: int = 1) -> None:
        """Triton does not call the detokenizer for a client that is gone."""
        for request_id, ack in self.queue[:count]:
            if request_id not in self.gone:
                self.writer.acknowledge(ack)
        del self.queue[:count]

    def lost(self) -> list[str]:
        """Now, or once that was confirmed."""
        self.gate.lost()
        self.clock.now += 1.5 * AckGate.CONFIRM_SECONDS
        return self.gate.lost()

    def probe(self, waits: float = 0.0) -> bool:
        self.clock.now += waits
        ack = self.gate.probe()
        if ack is not None:
            self.queue.append(("", ack))
        return ack is not None


@pytest.fixture
def harness(board: AckBoard, tmp_path: Path) -> Harness:
    return Harness(board, tmp_path)


def test_a_stream_sends_again_when_its_event_was_handled(harness: Harness) -> None:
    assert harness.gate.may_send("a", 0)
    harness.send("a")
    harness.send("b")
    assert not harness.gate.may_send("a", 0)
    harness.handle()
    assert harness.gate.may_send("a", 0)
    assert not harness.gate.may_send("b", 0)


def test_an_event_that_was_passed_over_is_lost(harness: Harness) -> None:
    harness.gone.add("a")
    harness.send("a")
    harness.send("b")
    assert harness.lost() == []
    assert harness.probe(waits=LONG)
    harness.handle(3)
    assert harness.lost() == ["a"]
    harness.gate.end("a")
    assert harness.lost() == []


def test_loss_must_be_confirmed(harness: Harness) -> None:
    harness.gone.add("a")
    harness.send("a")
    harness.send("b")
    harness.probe(waits=LONG)
    harness.handle(3)
    assert harness.gate.lost() == []
    harness.clock.now += AckGate.CONFIRM_SECONDS / 2
    assert harness.gate.lost() == []


def test_a_slow_detokenizer_loses_nobody(harness: Harness) -> None:
    for request_id in "abc":
        harness.send(request_id)
    for _ in range(100):
        harness.clock.now += 10.0
        harness.probe()
        assert harness.lost() == []
    harness.handle(3)
    harness.handle(1)  # one probe
    assert harness.lost() == []
    assert all(harness.gate.may_send(request_id, 0) for request_id in "abc")


def test_a_lonely_stream_is_found_by_a_probe(harness: Harness) -> None:
    harness.gone.add("a")
    harness.send("a")
    assert not harness.probe()  # too early to ask
    harness.clock.now += LONG
    assert harness.lost() == []
    assert harness.probe()
    assert not harness.probe()  # not again so soon
    harness.handle(2)
    assert harness.lost() == ["a"]


def test_an_acknowledged_stream_is_never_asked_about(harness: Harness) -> None:
    harness.send("a")
    harness.handle()
    harness.clock.now += 100.0
    assert not harness.probe()


def test_an_event_whose_sending_still_blocks_is_not_lost(harness: Harness) -> None:
    harness.gate.stamp("a")  # taken, not yet with Triton
    harness.send("b")
    harness.handle()
    assert harness.lost() == []
    harness.clock.now += 100.0
    assert not harness.probe()


def test_a_late_write_of_a_cells_former_stream_changes_nothing(board: AckBoard, tmp_path: Path) -> None:
    board.give_out(20)
    writer = opened(board, tmp_path)
    writer.acknowledge(Ack(3, 20))
    writer.acknowledge(Ack(3, 7))
    assert (board.number(3), board.mark) == (20, 0)


def test_an_event_that_is_handled_before_its_turn_loses_nobody(harness: Harness) -> None:
    """Who asks the engine directly has his events in his own hands, and may pass them on before others' are handled."""
    for request_id in "abc":
        harness.send(request_id)
    own = harness.send("own")
    harness.writer.acknowledge(own)
    harness.clock.now += LONG
    assert harness.lost() == []
    harness.handle(len(harness.queue))
    assert harness.lost() == []


def test_cells_are_used_again(harness: Harness) -> None:
    for _ in range(100):
        harness.send("a")
        harness.handle()
        harness.gate.end("a")
    assert harness.gate.may_send("a", 0)


def test_random_traffic_loses_exactly_those_who_left(harness: Harness) -> None:
    chance = random.Random(1)
    alive = {f"r{i}" for i in range(10)}
    for _ in range(3000):
        harness.clock.now += chance.expovariate(20)
        match chance.randrange(4):
            case 0 | 1:
                ready = sorted(i for i in alive if harness.gate.may_send(i, 0))
                if ready:
                    harness.send(chance.choice(ready))
            case 2:
                harness.handle(chance.randrange(4))
            case 3:
                harness.probe()
        if chance.random() < 0.003 and len(alive) > 3:
            harness.gone.add(chance.choice(sorted(alive - harness.gone)))
        lost = set(harness.gate.lost())
        assert lost <= harness.gone
        for request_id in lost:
            harness.gate.end(request_id)
            alive.discard(request_id)
    for request_id in sorted(alive):
        if harness.gate.may_send(request_id, 0):
            harness.send(request_id)
    harness.handle(len(harness.queue))
    harness.clock.now += 1.0
    harness.probe()
    harness.handle(1)
    assert set(harness.lost()) == alive & harness.gone


@pytest.mark.parametrize(("cell", "number"), [(-1, 1), (16, 1), (1, -1), (1, 8), (0, 8), (1, 2**62), (1, 2**63)])
def test_what_was_never_sent_is_not_acknowledged(board: AckBoard, tmp_path: Path, cell: int, number: int) -> None:
    board.give_out(7)
    with pytest.raises(InvalidRequest, match=r"its board has the cells 0 to 15, and numbers up to 7 were sent"):
        opened(board, tmp_path).acknowledge(Ack(cell, number))
    assert (board.mark, board.number(1)) == (0, 0)


def test_a_board_is_removed_at_the_end(tmp_path: Path) -> None:
    with AckBoard(4, tmp_path) as board:
        assert [path.name for path in tmp_path.iterdir()] == [board.name]
    assert list(tmp_path.iterdir()) == []


def test_the_board_of_a_killed_engine_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        f"from autoglm_engine.triton.board.acks import *; AckBoard(4, Path({str(tmp_path)!r})); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with AckBoard(4, tmp_path) as board:
        assert [path.name for path in tmp_path.iterdir()] == [board.name]


def test_a_board_in_use_is_kept(tmp_path: Path) -> None:
    with AckBoard(4, tmp_path) as board:
        holder = os.open(tmp_path / board.name, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(holder)
        remove_stale_boards(tmp_path)
        assert (tmp_path / board.name).exists()
