"""Cancels that reach an engine after another one was loaded in its place: Triton hands them to the other, which passes
them on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from autoglm_engine.triton.board.acks import AckBoard

from .responses import Replies


class ForwardedCancels:
    """`cancel` takes the engine's own request ids. One thread looks."""

    def __init__(self, board: AckBoard, replies: Replies, cancel: Callable[[Iterable[str]], object]) -> None:
        self._board = board
        self._replies = replies
        self._cancel = cancel
        self._seen = 0

    def look(self) -> None:
        self._seen, tags = self._board.cancels_since(self._seen)
        if tags:
            self._cancel(self._replies.find_tagged(tags, self._board.seal.tag_of))
