"""The tokenizer model without Triton: a dispatcher for the artifact that the engine serves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from autoglm_engine.errors import EngineError, ShuttingDown, Unavailable
from autoglm_engine.triton.board.finder import EngineBoard

from .followed_artifact import FollowedArtifact
from .tokenizer_dispatcher import TokenizerDispatcher, TokenizerReply
from .tokenizer_model import Tensors

_log = logging.getLogger(__name__)
_LAST_SECONDS = 1.0


class TokenizerService:
    """All of it is for the thread that brings requests. `room`: as of `RequestPreprocessor`."""

    def __init__(self, folder: Path, board: EngineBoard, room: int | None = None) -> None:
        self._board = board
        self._is_ending = False
        load = partial(TokenizerDispatcher.load, board, room)
        self._dispatchers = FollowedArtifact(folder, load, most=1, let_go=self._let_go)

    def read(self, served: Callable[[], str | None]) -> None:
        """As `FollowedArtifact.read`."""
        self._dispatchers.read(served)

    def take(self, tensors: Tensors, parameters: str, timeout_us: int, reply: TokenizerReply) -> None:
        """As `TokenizerDispatcher.take`."""
        try:
            dispatcher = self._dispatchers.of(self._board.current().artifact)
        except EngineError as error:
            reply.fail(error.code, str(error))
            return
        except Exception as error:  # one request never takes its batch with it
            _log.exception("the artifact that is served could not be read", extra={"request_id": reply.request_id})
            reply.fail("INTERNAL", f"the tokenizer failed: {type(error).__name__}")
            return
        dispatcher.take(tensors, parameters, timeout_us, reply)

    def close(self) -> None:
        """Everybody who waits is answered."""
        self._is_ending = True
        self._dispatchers.close()

    def _let_go(self, dispatcher: TokenizerDispatcher) -> None:
        if self._is_ending:
            dispatcher.close(ShuttingDown("the server is shutting down"), _LAST_SECONDS)
        else:
            dispatcher.close(Unavailable("the model was loaded anew; send the request again"), 0.0)
