"""The client as one request uses it: what it is answered is noted."""

from __future__ import annotations

from time import perf_counter
from types import TracebackType
from typing import Protocol, Self

from autoglm_client import AsyncClient, AutoGLMError, GenerationOptions, Piece, Result
from autoglm_client.stream import Stream
from autoglm_client.types import Prompt

from autoglm_gateway.errors import api_error

from .observed import Answered, RequestRecord


class PieceStream(Protocol):
    """An answer in pieces; leaving it early cancels it."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Piece: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class GenerationClient(Protocol):
    async def generate(self, prompt: Prompt, options: GenerationOptions) -> Result: ...

    def stream(self, prompt: Prompt, options: GenerationOptions) -> PieceStream: ...


class RecordingClient:
    def __init__(self, client: AsyncClient, observed: RequestRecord) -> None:
        self._client = client
        self._observed = observed

    async def generate(self, prompt: Prompt, options: GenerationOptions) -> Result:
        self._observed.options = self._observed.options or options
        try:
            result = await self._client.generate(prompt, options)
        except AutoGLMError as error:
            self._observed.failures.append(kind_of(error))
            raise
        _note(self._observed, Answered(result, perf_counter()))
        return result

    def stream(self, prompt: Prompt, options: GenerationOptions) -> PieceStream:
        self._observed.options = self._observed.options or options
        self._observed.streamed = True
        return _RecordingStream(self._client.stream(prompt, options), self._observed)


class _RecordingStream:
    """Costs a piece one more call: what is noted is its first and its last one."""

    def __init__(self, stream: Stream, observed: RequestRecord) -> None:
        self._stream = stream
        self._observed = observed
        self._first_at: float | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        try:
            piece = await self._stream.__anext__()
        except AutoGLMError as error:
            self._observed.failures.append(kind_of(error))
            raise
        if self._first_at is None or piece.finish_reason is not None:
            self._note(piece)
        return piece

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stream.aclose()

    def _note(self, piece: Piece) -> None:
        now = perf_counter()
        if self._first_at is None:
            self._first_at = now
            self._observed.first_at = self._observed.first_at or now
        if piece.finish_reason is not None:
            _note(self._observed, Answered(piece, now, self._first_at))


def kind_of(error: AutoGLMError) -> str:
    """One of `metrics.FAILURE_KINDS`."""
    return api_error(error).code or "server_error"


def _note(observed: RequestRecord, answered: Answered) -> None:
    observed.answers.append(answered)
    if answered.last.finish_reason == "deadline":
        observed.failures.append("deadline")
