"""The blocking client: `AsyncClient` behind one private event-loop thread. No logic of its own."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from autoglm_client.calls.event_loop import EventLoopThread
from autoglm_client.transport.headers import Headers
from autoglm_client.transport.shared_inputs import SharedMemory
from autoglm_client.transport.tls import TLS
from autoglm_client.transport.transport import Transport

from .async_client import DEFAULT_URL, AsyncClient
from .blocking import BlockingStream, Feed, pull
from .exceptions import AutoGLMError, ClientClosedError
from .mapping import MapLimits, Progress
from .model_names import ENSEMBLE
from .option_fields import OptionChanges
from .options import GenerationOptions
from .retries import RetryPolicy
from .stream import Stream
from .timeouts import Timeouts
from .types import Conversation, Health, ModelInfo, ModelLimits, Prompt, Result, Stats, TokenizedPrompt, TokenizeOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Client:
    """`AsyncClient` for programs without an event loop; its docstrings hold here too. Safe to share between threads.

    Use it with `with`, or call `close()`.
    """

    def __init__(
        self,
        urls: str | Sequence[str] = DEFAULT_URL,
        *,
        model: str = ENSEMBLE,
        options: GenerationOptions | None = None,
        timeouts: Timeouts | None = None,
        retries: RetryPolicy | None = None,
        gzip: bool = False,
        shared_memory: bool | SharedMemory = False,
        tls: TLS | bool | None = None,
        headers: Headers | None = None,
        transport: Callable[[str], Transport] | None = None,
    ) -> None:
        self._async = AsyncClient(
            urls,
            model=model,
            options=options,
            timeouts=timeouts,
            retries=retries,
            gzip=gzip,
            shared_memory=shared_memory,
            tls=tls,
            headers=headers,
            transport=transport,
        )
        self._thread = EventLoopThread()
        # Also at the interpreter's exit: cutting the connection off would leave requests running on the server.
        self._finalizer = weakref.finalize(self, _shut_down, self._async, self._thread)

    @property
    def urls(self) -> tuple[str, ...]:
        return self._async.urls

    def generate(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        timeouts: Timeouts | None = None,
        **changes: Unpack[OptionChanges],
    ) -> Result:
        return self._thread.run(self._async.generate(prompt, options, timeouts=timeouts, **changes))

    def stream(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        timeouts: Timeouts | None = None,
        **changes: Unpack[OptionChanges],
    ) -> BlockingStream:
        async def start() -> Stream:
            return self._async.stream(prompt, options, timeouts=timeouts, **changes)

        return BlockingStream(self._thread.run(start()), self._thread)

    def chat(
        self,
        messages: Conversation,
        options: GenerationOptions | None = None,
        *,
        timeouts: Timeouts | None = None,
        **changes: Unpack[OptionChanges],
    ) -> Result:
        return self._thread.run(self._async.chat(messages, options, timeouts=timeouts, **changes))

    @overload
    def map(
        self,
        prompts: Iterable[Prompt],
        options: GenerationOptions | None = None,
        *,
        concurrency: int = 16,
        prefetch_factor: int = 2,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        progress: Progress | None = None,
        timeouts: Timeouts | None = None,
        **changes: Unpack[OptionChanges],
    ) -> Iterator[Result]: ...

    @overload
    def map(
        self,
        prompts: Iterable[Prompt],
        options: GenerationOptions | None = None,
        *,
        concurrency: int = 16,
        prefetch_factor: int = 2,
        ordered: bool = True,
        return_exceptions: bool,
        progress: Progress | None = None,
        timeouts: Timeouts | None = None,
        **changes: Unpack[OptionChanges],
    ) -> Iterator[Result | AutoGLMError]: ...

    def map(
        self,
        prompts: Iterable[Prompt],
        options: GenerationOptions | None = None,
        *,
        concurrency: int = 16,
        prefetch_factor: int = 2,
        ordered: bool = True,
        return_exceptions: bool = False,
        progress: Progress | None = None,
        timeouts: Timeouts | None = None,
        **changes: Unpack[OptionChanges],
    ) -> Iterator[Result | AutoGLMError]:
        """As `AsyncClient.map`. `prompts` is consumed, and `progress` called, in the caller's thread."""
        feed: Feed[Prompt] = Feed()
        answers = self._async.map(
            feed,
            options,
            concurrency=concurrency,
            prefetch_factor=prefetch_factor,
            ordered=ordered,
            return_exceptions=return_exceptions,
            timeouts=timeouts,
            **changes,
        )
        window = MapLimits(concurrency, prefetch_factor, ordered).window
        return pull(self._thread, feed, prompts, answers, window=window, progress=progress)

    def health(self, *, timeout: float = 5.0) -> Health:
        return self._thread.run(self._async.health(timeout=timeout))

    def models(self) -> list[ModelInfo]:
        return self._thread.run(self._async.models())

    def stats(self) -> Stats:
        return self._thread.run(self._async.stats())

    def limits(self) -> ModelLimits:
        return self._thread.run(self._async.limits())

    def tokenize(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        **asked: Unpack[TokenizeOptions],
    ) -> TokenizedPrompt:
        """As `AsyncClient.tokenize`."""
        return self._thread.run(
            self._async.tokenize(prompt, tools=tools, chat_template_kwargs=chat_template_kwargs, tenant=tenant, **asked)
        )

    def detokenize(self, token_ids: Sequence[int], *, tenant: str | None = None) -> str:
        """As `AsyncClient.detokenize`."""
        return self._thread.run(self._async.detokenize(token_ids, tenant=tenant))

    def flush_cache(self) -> int:
        return self._thread.run(self._async.flush_cache())

    def wait_until_ready(self, timeout: float = 120.0) -> Health:
        return self._thread.run(self._async.wait_until_ready(timeout))

    def close(self) -> None:
        self._finalizer()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shut_down(client: AsyncClient, thread: EventLoopThread) -> None:
    with contextlib.suppress(ClientClosedError):
        thread.run(client.close())
    thread.stop()
