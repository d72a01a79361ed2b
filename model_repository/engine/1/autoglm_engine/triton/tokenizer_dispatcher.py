"""What the tokenizer model does with requests of one artifact: takes what a call brings, answers through
`TokenizerReply`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from autoglm_engine.core import TokenIds
from autoglm_engine.errors import EngineError, Unavailable
from autoglm_engine.manifest import Manifest
from autoglm_engine.messages import Packed, with_files
from autoglm_engine.tokenizer.pool import Job, TokenizerPool
from autoglm_engine.tokenizer.prompt import Prompter
from autoglm_engine.triton.board.finder import EngineBoard
from autoglm_engine.triton.board.seal import Kind

from .tokenizer_model import Admitted, ParsedRequest, RequestPreprocessor, Tensors

_log = logging.getLogger(__name__)
_SEND_SECONDS = 5.0
_SEND_PAUSE = 0.005


class TokenizerReply(Protocol):
    """One request's response sender. One of the two is called, once, on any thread."""

    @property
    def request_id(self) -> str:
        """The caller's, for the log."""
        ...

    def send(self, token_ids: TokenIds, request: Packed) -> None: ...

    def fail(self, code: str, message: str) -> None: ...


class TokenizerDispatcher:
    """What is sure to be quick is answered at once, on the thread that brings it; the rest by `tokenizer.pool`."""

    def __init__(self, preprocessor: RequestPreprocessor, board: EngineBoard) -> None:
        self._preprocessor = preprocessor
        self._board = board
        self._pool = TokenizerPool(preprocessor.prompter, preprocessor.prompter.another)
        self._end: EngineError | None = None

    @classmethod
    def load(cls, board: EngineBoard, room: int | None, folder: Path, manifest: Manifest) -> TokenizerDispatcher:
        """Raises ArtifactError."""
        return cls(RequestPreprocessor.load(folder, manifest, room), board)

    def take(self, tensors: Tensors, parameters: str, timeout_us: int, reply: TokenizerReply) -> None:
        """Answers, now or later. `parameters` and `timeout_us` are Triton's. What is found wrong without rendering and
        encoding is told at once."""

        def begin() -> None:
            asked = self._preprocessor.read(tensors, parameters, timeout_us)
            if self._preprocessor.is_quick(asked):
                self._answer(asked, self._preprocessor.prompter, reply)
            else:
                self._pool.put(self._job(asked, reply))

        self._attempt(begin, reply)

    def close(self, failure: EngineError, seconds: float) -> None:
        """Everybody who waits is answered with `failure`; what is under way is ended, and waited for as long as
        `seconds`."""
        self._end = failure
        self._pool.close(failure, seconds)
        self._preprocessor.close()

    def _job(self, asked: ParsedRequest, reply: TokenizerReply) -> Job[Prompter]:
        def work(prompter: Prompter) -> None:
            self._answer(asked, prompter, reply)

        def fail(error: EngineError) -> None:
            reply.fail(error.code, str(error))

        return Job(asked.tenant, asked.num_bytes, work, fail)

    def _answer(self, asked: ParsedRequest, prompter: Prompter, reply: TokenizerReply) -> None:
        made: list[tuple[TokenIds, Packed]] = []

        def encode() -> None:
            admitted = self._preprocessor.encode(asked, prompter)
            made.append((admitted.token_ids, self._sealed(asked, admitted)))

        self._attempt(encode, reply)
        for token_ids, sealed in made:
            self._hand_on(partial(reply.send, token_ids, sealed), reply)

    def _sealed(self, asked: ParsedRequest, admitted: Admitted) -> Packed:
        """Only what the engine may take."""
        if asked.question is not None:
            return admitted.request
        sealed = self._board.current().seal.close(Kind.REQUEST, admitted.request, beside=admitted.token_ids)
        return with_files(sealed, admitted.files)

    def _attempt(self, work: Callable[[], None], reply: TokenizerReply) -> None:
        """Or tell why not: one request never takes others with it."""
        try:
            work()
        except BaseException as error:  # a panic of a library in Rust is no Exception
            known = self._told(error, reply.request_id)
            self._hand_on(lambda: reply.fail(known.code, str(known)), reply)

    def _hand_on(self, send: Callable[[], None], reply: TokenizerReply) -> None:
        """Or the sentence that says why not, which is short: without any answer a request never ends."""
        if (error := self._keep_sending(send)) is None:
            return
        _log.error("an answer was not sent", exc_info=error, extra={"request_id": reply.request_id})
        sentence = "shared memory has had no room for this request for some seconds; try again later"
        self._keep_sending(lambda: reply.fail(Unavailable.code, sentence))

    def _keep_sending(self, send: Callable[[], None]) -> Exception | None:
        """Again and again for a while: what others send may have filled the shared memory just now."""
        give_up_at = time.monotonic() + _SEND_SECONDS
        while True:
            try:
                send()
                return None
            except Exception as error:
                if self._end is not None or time.monotonic() >= give_up_at:
                    return error
            time.sleep(_SEND_PAUSE)

    def _told(self, error: BaseException, request_id: str) -> EngineError:
        if self._end is not None:
            return self._end
        if isinstance(error, EngineError):
            return error
        _log.error("a request could not be encoded", exc_info=error, extra={"request_id": request_id})
        return EngineError(f"the tokenizer failed: {type(error).__name__}")
