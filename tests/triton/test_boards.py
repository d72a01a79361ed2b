"""Boards between strangers' files: what is believed, what is left alone, and that nothing ends the watch over the
engine."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from autoglm_engine.errors import InvalidRequest, Unavailable
from autoglm_engine.messages import Ack
from autoglm_engine.system.periodic import Periodic
from autoglm_engine.triton.board.acks import AckBoard
from autoglm_engine.triton.board.engine_watch import EngineWatch
from autoglm_engine.triton.board.file import MAX_CANCELS, PREFIX, Board, board_name
from autoglm_engine.triton.board.finder import (
    EngineBoard,
    EventBoards,
    RequestBoards,
    boards_of,
    find_board,
    remove_stale_boards,
)
from autoglm_engine.triton.board.seal import Kind
from autoglm_engine.triton.board.server_identity import ServerIdentity

from tests.support.engine.fakes import FakeClock

CONTENT = np.frombuffer(b"{}", dtype=np.uint8)
IDS = np.array([1, 2, 3], dtype=np.int32)
STRANGER = 65534  # nobody
NAME = PREFIX + "0123456789abcdef"
Make = Callable[[Path], object]


@pytest.fixture
def server() -> ServerIdentity:
    return ServerIdentity.of(os.getpid())


@pytest.fixture
def board(tmp_path: Path, server: ServerIdentity) -> Iterator[AckBoard]:
    with AckBoard(16, tmp_path, server) as made:
        yield made


def leave_a_board(folder: Path) -> None:
    """What a killed engine of this process leaves: nobody holds its lock, and it never said that it ends."""
    number = secrets.token_bytes(8)
    file = os.open(folder / board_name(number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    Board.create(file, number, 4, ServerIdentity.of(os.getpid()), b"k" * 32).close()


def given_away(path: Path, content: bytes = b"\0" * 1024, mode: int = 0o600) -> None:
    path.write_bytes(content)
    path.chmod(mode)
    os.chown(path, STRANGER, STRANGER)


def copy_of_a_board(path: Path) -> None:
    with AckBoard(4, path.parent, ServerIdentity.of(os.getpid())) as board:
        content = (path.parent / board.name).read_bytes()
    given_away(path, content, 0o666)


def link_to_a_board(path: Path) -> None:
    copy_of_a_board(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def open_to_others(path: Path) -> None:
    with AckBoard(4, path.parent, ServerIdentity.of(os.getpid())) as board:
        path.write_bytes((path.parent / board.name).read_bytes())
    path.chmod(0o666)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
FOREIGN: list[tuple[str, Make]] = [
    ("empty", lambda path: path.touch(0o600)),
    ("one byte", lambda path: (path.write_bytes(b"x"), path.chmod(0o600))),
    ("header alone", lambda path: (path.write_bytes(b"\0" * 128), path.chmod(0o600))),
    ("zeros", lambda path: (path.write_bytes(b"\0" * 4096), path.chmod(0o600))),
    ("a folder", lambda path: path.mkdir()),
    ("a pipe", lambda path: os.mkfifo(path, 0o600)),
    ("a dangling link", lambda path: path.symlink_to("/nowhere")),
    ("a device", lambda path: path.symlink_to("/dev/zero")),
    ("open to others", open_to_others),
    ("a stranger's", given_away),
    ("a stranger's board", copy_of_a_board),
    ("a link to a stranger's board", link_to_a_board),
]
strange = pytest.mark.parametrize("make", [pytest.param(make, id=name, marks=needs_root) for name, make in FOREIGN])


@strange
def test_what_is_no_board_of_this_user_is_passed_over(tmp_path: Path, server: ServerIdentity, make: Make) -> None:
    make(tmp_path / NAME)
    assert Board.open(tmp_path / NAME) is None
    with AckBoard(4, tmp_path, server) as own:
        assert find_board(tmp_path, server) is not None
        sealed = Board.open(tmp_path / own.name).seal.close(Kind.EVENT, CONTENT)  # type: ignore[union-attr]
        named = np.concatenate([np.frombuffer(bytes.fromhex(NAME.removeprefix(PREFIX)), dtype=np.uint8), sealed[8:]])
        with pytest.raises(InvalidRequest, match="event has no valid seal"):
            EventBoards(server, tmp_path).open(named)


@needs_root
@pytest.mark.parametrize("make", [given_away, copy_of_a_board, link_to_a_board, open_to_others, os.mkfifo])
def test_what_is_no_board_of_this_user_is_not_removed(tmp_path: Path, make: Make) -> None:
    make(tmp_path / NAME)
    remove_stale_boards(tmp_path)
    assert os.path.lexists(tmp_path / NAME)


def test_a_stale_board_of_another_version_is_removed(tmp_path: Path) -> None:
    (tmp_path / NAME).touch(0o600)
    remove_stale_boards(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@strange
def test_the_watch_goes_on_beside_it(tmp_path: Path, make: Make) -> None:
    make(tmp_path / NAME)
    died = threading.Event()
    watch = EngineWatch(ServerIdentity.of(os.getpid()), died.set, tmp_path)
    assert not watch.look()
    leave_a_board(tmp_path)
    watch.start()
    assert died.wait(60)
    watch.close()


@pytest.mark.slow
def test_an_unreadable_folder_does_not_end_the_watch(tmp_path: Path) -> None:
    folder, died = tmp_path / "comes later", threading.Event()
    watch = EngineWatch(ServerIdentity.of(os.getpid()), died.set, folder)
    watch.start()
    time.sleep(0.6)  # it looked once, and raised
    made = folder.with_name("made first")
    made.mkdir()
    leave_a_board(made)
    made.rename(folder)
    assert died.wait(60)
    watch.close()


def test_only_an_engine_that_died_is_dead(tmp_path: Path, server: ServerIdentity) -> None:
    watch = EngineWatch(server, lambda: None, tmp_path)
    assert not watch.look()  # none yet
    board = AckBoard(4, tmp_path, server)
    assert not watch.look()
    board.close()
    assert not watch.look()  # it ended in order
    leave_a_board(tmp_path)
    assert watch.look()  # the next one did not


def test_an_engine_that_is_about_to_end_need_not_have_ended(tmp_path: Path, server: ServerIdentity) -> None:
    """A driver that hangs may keep its process."""
    watch = EngineWatch(server, lambda: None, tmp_path)
    with AckBoard(4, tmp_path, server) as board:
        assert not watch.look()
        board.abandon()
        assert watch.look()


@pytest.mark.slow
def test_the_death_of_an_engine_shows_though_its_board_was_removed(tmp_path: Path) -> None:
    """By another engine of this user, which removes what dead ones left, and may be faster than the watch."""
    script = (
        "import sys, time; from autoglm_engine.triton.board.acks import *; AckBoard(4, Path(sys.argv[1]));"
        "print('made', flush=True); time.sleep(600)"
    )
    watch = EngineWatch(ServerIdentity.of(os.getpid()), lambda: None, tmp_path)
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as engine:
        assert engine.stdout is not None and engine.stdout.readline() == b"made\n"
        assert not watch.look()
        engine.kill()
    remove_stale_boards(tmp_path)
    assert not list(tmp_path.iterdir())
    assert watch.look()


@pytest.mark.parametrize("other", [{"pid": 1}, {"started": 5}, {"namespace": 4026530000}])
def test_the_watch_looks_at_its_own_server(tmp_path: Path, server: ServerIdentity, other: dict[str, int]) -> None:
    """Equal process ids do not make equal servers: ids come again, and containers have their own."""
    leave_a_board(tmp_path)
    assert EngineWatch(server, lambda: None, tmp_path).look()
    assert not EngineWatch(dataclasses.replace(server, **other), lambda: None, tmp_path).look()


def test_an_identity_holds_for_a_process_and_no_other(server: ServerIdentity) -> None:
    assert ServerIdentity.of(os.getpid()) == server
    with subprocess.Popen(["sleep", "60"]) as other:
        assert ServerIdentity.of(other.pid).started >= server.started
        assert ServerIdentity.of(other.pid) != server
        other.kill()


def test_two_that_look_at_once_do_not_take_each_other_for_the_engine(tmp_path: Path) -> None:
    leave_a_board(tmp_path)
    (path,) = tmp_path.iterdir()
    one, other = Board.open(path), Board.open(path)
    assert one is not None and other is not None
    fcntl.flock(one._file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # in the middle of its look
    assert other.is_abandoned


# ---- the two ends of a message


def test_the_tokenizer_seals_for_the_engine_that_runs(tmp_path: Path, server: ServerIdentity) -> None:
    engine = EngineBoard(server, tmp_path)
    with pytest.raises(Unavailable, match="the engine is not loaded"):
        engine.current()
    for _ in range(2):  # loaded, and loaded again
        with AckBoard(4, tmp_path, server) as board:
            sealed = engine.current().seal.close(Kind.REQUEST, CONTENT)
            assert board.seal.open(Kind.REQUEST, sealed).tobytes() == b"{}"
    leave_a_board(tmp_path)
    engine.current()  # whether it lives is the watch's affair
    with AckBoard(4, tmp_path, server) as board:
        board.seal.open(Kind.REQUEST, engine.current().seal.close(Kind.REQUEST, CONTENT))


def test_the_detokenizer_opens_what_its_own_engine_sealed(
    board: AckBoard, tmp_path: Path, server: ServerIdentity
) -> None:
    boards = EventBoards(server, tmp_path)
    content, acknowledge = boards.open(board.seal.close(Kind.EVENT, CONTENT))
    assert content.tobytes() == b"{}"
    board.give_out(3)
    acknowledge(Ack(5, 3))
    assert board.number(5) == 3
    other = EventBoards(dataclasses.replace(server, started=5), tmp_path)
    with pytest.raises(InvalidRequest, match="no valid seal"):
        other.open(board.seal.close(Kind.EVENT, CONTENT))


def test_the_last_answers_of_an_engine_that_ended_are_opened(tmp_path: Path, server: ServerIdentity) -> None:
    boards = EventBoards(server, tmp_path)
    with AckBoard(4, tmp_path, server) as board:
        boards.open(board.seal.close(Kind.EVENT, CONTENT))
    assert boards.open(board.seal.close(Kind.EVENT, CONTENT))[0].tobytes() == b"{}"


def test_names_of_boards_that_are_not_there_push_no_board_out(tmp_path: Path, server: ServerIdentity) -> None:
    boards = EventBoards(server, tmp_path)
    with AckBoard(4, tmp_path, server) as board:
        boards.open(board.seal.close(Kind.EVENT, CONTENT))
        for number in range(100):
            with pytest.raises(InvalidRequest):
                boards.open(np.full(40, number, dtype=np.uint8))
    assert boards.open(board.seal.close(Kind.EVENT, CONTENT))


def test_a_board_says_nothing_to_others(board: AckBoard, tmp_path: Path) -> None:
    assert (tmp_path / board.name).stat().st_mode & 0o777 == 0o600


# ---- two engines of one server, while one is loaded in the other's place


def test_the_tokenizer_works_for_the_engine_that_is_asked(tmp_path: Path, server: ServerIdentity) -> None:
    tokenizer = EngineBoard(server, tmp_path)
    with AckBoard(4, tmp_path, server, "a" * 16) as elder:
        elders = RequestBoards(elder, server, tmp_path)
        elders.note_asked()
        assert tokenizer.current().artifact == "a" * 16
        with AckBoard(4, tmp_path, server, "b" * 16) as newer:
            requests = RequestBoards(newer, server, tmp_path)
            for each in (tokenizer, EngineBoard(server, tmp_path)):
                assert each.current().id == elder.id, "nobody asked the new one yet"
            requests.note_asked()
            elders.note_asked()  # by one that began before
            for each in (tokenizer, EngineBoard(server, tmp_path)):
                assert each.current().id == newer.id
                assert each.current().artifact == "b" * 16


def test_each_engine_opens_what_was_sealed_for_the_other(tmp_path: Path, server: ServerIdentity) -> None:
    with AckBoard(4, tmp_path, server) as elder, AckBoard(4, tmp_path, server) as newer:
        by_elder, by_newer = RequestBoards(elder, server, tmp_path), RequestBoards(newer, server, tmp_path)
        for board in (elder, newer):
            sealed = board.seal.close(Kind.REQUEST, CONTENT, IDS)
            assert by_elder.open(sealed, IDS).tobytes() == by_newer.open(sealed, IDS).tobytes() == b"{}"
            for wrong in (IDS[:2], IDS[::-1]):
                with pytest.raises(InvalidRequest, match="request has no valid seal"):
                    by_newer.open(sealed, wrong)
        with pytest.raises(InvalidRequest, match="request has no valid seal"):
            by_newer.open(elder.seal.close(Kind.EVENT, CONTENT), IDS)
    late = elder.seal.close(Kind.REQUEST, CONTENT, IDS)
    assert by_newer.open(late, IDS).tobytes() == b"{}", "of an engine that has ended meanwhile"
    stranger = dataclasses.replace(server, started=5)
    with AckBoard(4, tmp_path, stranger) as other, pytest.raises(InvalidRequest):
        by_newer.open(other.seal.close(Kind.REQUEST, CONTENT, IDS), IDS)


def test_a_cancel_is_passed_on_to_engines_that_still_run(tmp_path: Path, server: ServerIdentity) -> None:
    stranger = dataclasses.replace(server, started=5)
    with (
        AckBoard(4, tmp_path, server) as elder,
        AckBoard(4, tmp_path, stranger) as other,
        AckBoard(4, tmp_path, server) as newer,
    ):
        requests = RequestBoards(newer, server, tmp_path)
        requests.note_asked()
        assert requests.forward_cancels(["a", "\ud800"])
        seen, tags = elder.cancels_since(0)
        assert (seen, tags) == (2, {elder.seal.tag_of("a"), elder.seal.tag_of("\ud800")})
        requests.forward_cancels([str(number) for number in range(2 * MAX_CANCELS)])
        last = {elder.seal.tag_of(str(number)) for number in range(MAX_CANCELS, 2 * MAX_CANCELS)}
        assert elder.cancels_since(seen) == (2 + 2 * MAX_CANCELS, last)
        assert elder.cancels_since(2 + 2 * MAX_CANCELS)[1] == set()
        assert newer.cancels_since(0) == other.cancels_since(0) == (0, set())
        assert newer.seal.tag_of("a") != elder.seal.tag_of("a")
        elder.close()
        assert not requests.forward_cancels(["too late"])


def test_an_engine_that_is_loaded_in_anothers_place_is_watched(tmp_path: Path, server: ServerIdentity) -> None:
    watch = EngineWatch(server, lambda: None, tmp_path)
    with AckBoard(4, tmp_path, server):
        assert not watch.look()
        leave_a_board(tmp_path)  # one that failed at its load: the other goes on
        assert not watch.look()
    (dead,) = tmp_path.iterdir()
    dead.unlink()
    assert not watch.look(), "its load failed long ago"


def test_the_death_of_the_engine_that_is_asked_counts_though_another_lives(
    tmp_path: Path, server: ServerIdentity
) -> None:
    watch = EngineWatch(server, lambda: None, tmp_path)
    with AckBoard(4, tmp_path, server):
        assert not watch.look()
        leave_a_board(tmp_path)
        opened = [board for board in boards_of(tmp_path, server) if board.is_abandoned]
        opened[0].note_asked()
        assert watch.look()


# ---- threads


def test_a_periodic_thread_outlives_what_its_work_raises(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    enough = threading.Event()

    def work() -> None:
        calls.append(1)
        if len(calls) >= 6:
            enough.set()
        raise PermissionError("one" if len(calls) < 4 else "other")

    thread = Periodic("test", 0.001, work, "it cannot be done")
    thread.start()
    assert enough.wait(60)
    thread.close()
    told = [record.getMessage() for record in caplog.records]
    assert told == ["it cannot be done: PermissionError: one", "it cannot be done: PermissionError: other"]


def test_what_fails_now_and_then_is_told_once_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """As the search for vanished clients does when the server stops."""
    clock = FakeClock()
    fails = iter([True, False, True, True, False, True])

    def work() -> None:
        if next(fails):
            raise RuntimeError("Server not ready")

    periodic = Periodic("test", 1.0, work, "it cannot be done", clock)
    for seconds in (0.0, 0.1, 0.1, 59.0, 0.1, 60.0):
        clock.now += seconds
        periodic.once()
    assert len(caplog.records) == 2
