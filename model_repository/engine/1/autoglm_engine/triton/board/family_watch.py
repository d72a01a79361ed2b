"""The models of one family live and die together: where a process of one of them died, requests are lost or never end,
and Triton may go on saying that the server is ready.

Each of the engine's neighbours has a board (`triton.board.file`) as the engine has one, of which only the lock counts:
it is held for as long as the process lives, and the file says so when it ends in order. The tokenizer looks after all
others, and the detokenizer after the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .acks import AckBoard
from .engine_watch import EngineWatch
from .finder import SHARED_MEMORY
from .server_identity import ServerIdentity

ENGINE, TOKENIZER, DETOKENIZER, EMBEDDER, VISION = "engine", "tokenizer", "detokenizer", "embedder", "vision"
_WATCHED = {
    TOKENIZER: (ENGINE, DETOKENIZER, EMBEDDER, VISION),
    DETOKENIZER: (TOKENIZER,),
    EMBEDDER: (),
    VISION: (),
}


class FamilyWatch:
    """`role`: of this process. `engine`: the name of its family's engine. `died`: called with the role of who died.

    To be made last when a model is loaded, and closed when it is unloaded: one that fails meanwhile did not die.
    """

    def __init__(
        self,
        role: str,
        engine: str,
        died: Callable[[str], object],
        folder: Path = SHARED_MEMORY,
        pid: int | None = None,
    ) -> None:
        self._mark = AckBoard(1, folder, _identity(role, engine, pid))
        with self._mark.ended_by_failure():
            self._watches = [
                EngineWatch(_identity(other, engine, pid), partial(died, other), folder) for other in _WATCHED[role]
            ]
            for watch in self._watches:
                watch.start()

    def close(self) -> None:
        for watch in self._watches:
            watch.close(1.0)
        self._mark.close()


def _identity(role: str, engine: str, pid: int | None) -> ServerIdentity:
    """No model's name has a slash. `pid`: the server's; None: this process's parent."""
    name = engine if role == ENGINE else f"{engine}/{role}"
    return ServerIdentity.of_parent(name) if pid is None else ServerIdentity.of(pid, name)
