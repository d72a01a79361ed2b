"""The models of a family notice each other's death, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from autoglm_engine.cache import opening
from autoglm_engine.errors import ArtifactError
from autoglm_engine.runners.base import Limits
from autoglm_engine.triton.board.engine_watch import EngineWatch
from autoglm_engine.triton.board.family_watch import DETOKENIZER, EMBEDDER, TOKENIZER, FamilyWatch
from autoglm_engine.triton.board.finder import SHARED_MEMORY, boards_of
from autoglm_engine.triton.board.server_identity import ServerIdentity

from tests.support.engine.engine_bench import VOCAB
from tests.support.engine.fakes import FakeRunner
from tests.support.engine.small_service import serving

# A model's process: loaded on the first line, unloaded in order on the second.
_MODEL = """
import sys; from pathlib import Path; from autoglm_engine.triton.board.family_watch import FamilyWatch
role, engine, folder, pid = sys.argv[1:]
watch = FamilyWatch(role, engine, lambda other: print("died", other, flush=True), Path(folder), int(pid))
print("loaded", flush=True)
sys.stdin.readline()
watch.close()
"""


@contextmanager
def model(role: str, folder: Path, engine: str = "engine") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _MODEL, role, engine, str(folder), str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "loaded\n"
            yield process
        finally:
            process.kill()


class Watching:
    """This process as the model `role`."""

    def __init__(self, role: str, folder: Path) -> None:
        self.dead: list[str] = []
        self._told = threading.Event()
        self.watch = FamilyWatch(role, "engine", self._note, folder, os.getpid())

    def _note(self, role: str) -> None:
        self.dead.append(role)
        self._told.set()

    def wait(self) -> list[str]:
        assert self._told.wait(60)
        return self.dead

    def looks(self) -> None:
        """As its threads do, all at once."""
        for watch in self.watch._watches:
            watch._thread.once()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("watching", "dying"), [(TOKENIZER, DETOKENIZER), (TOKENIZER, EMBEDDER), (DETOKENIZER, TOKENIZER)]
)
def test_a_killed_neighbour_is_noticed(tmp_path: Path, watching: str, dying: str) -> None:
    with ExitStack() as stack:
        neighbour = stack.enter_context(model(dying, tmp_path))
        here = Watching(watching, tmp_path)
        stack.callback(here.watch.close)
        here.looks()
        assert here.dead == []
        neighbour.kill()
        assert here.wait() == [dying]


@pytest.mark.slow
def test_what_is_unloaded_in_order_or_of_another_family_did_not_die(tmp_path: Path) -> None:
    with ExitStack() as stack:
        unloaded = stack.enter_context(model(DETOKENIZER, tmp_path))
        other = stack.enter_context(model(DETOKENIZER, tmp_path, "other-engine"))
        here = Watching(TOKENIZER, tmp_path)
        stack.callback(here.watch.close)
        here.looks()
        other.kill()
        unloaded.communicate("\n")
        here.looks()
        assert here.dead == []


@pytest.mark.slow
def test_one_that_died_beside_its_successor_is_nobodys_end(tmp_path: Path) -> None:
    """A reload: Triton loads the next one before it ends the one before."""
    with ExitStack() as stack:
        before = stack.enter_context(model(DETOKENIZER, tmp_path))
        stack.enter_context(model(DETOKENIZER, tmp_path))
        here = Watching(TOKENIZER, tmp_path)
        stack.callback(here.watch.close)
        here.looks()
        before.kill()
        before.wait()
        here.looks()
        assert here.dead == []


@pytest.mark.parametrize("where", ["open_semantic", "load_redis_tier"])
def test_an_engine_that_cannot_be_loaded_did_not_die(tmp_path: Path, where: str) -> None:
    """The server says why, and goes on: it may have other models, or be given another setting."""
    server = ServerIdentity.of(os.getpid(), f"unloadable {where}")
    watch = EngineWatch(server, lambda: None)

    def refuse(*arguments: object) -> None:
        assert not watch.look() and watch._boards, "it is known by now"
        raise ArtifactError("there is no embedder")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, where, refuse)
        with pytest.raises(ArtifactError), serving(tmp_path, FakeRunner(Limits(4, 64, 8, VOCAB)), identity=server):
            pass
    assert not watch.look()
    assert not list(boards_of(SHARED_MEMORY, server))


def test_a_model_that_cannot_watch_did_not_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        Watching(TOKENIZER, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_in_shared_memory(tmp_path: Path) -> None:
    Watching(TOKENIZER, tmp_path).watch.close()
    assert list(tmp_path.iterdir()) == []
