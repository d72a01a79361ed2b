"""The client for programs that use asyncio. `Client` is a facade over this one."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from tritonclient.grpc import service_pb2 as pb

from autoglm_client.calls.call import Call
from autoglm_client.calls.cancelling import Canceller
from autoglm_client.calls.control import ask_tokenizer
from autoglm_client.calls.failover import Endpoint, EndpointPool
from autoglm_client.calls.launching import ENDPOINT_FAILURES, RequestLauncher
from autoglm_client.transport.headers import Headers
from autoglm_client.transport.requests import generation_request, token_request
from autoglm_client.transport.shared_inputs import SharedInputs, SharedMemory
from autoglm_client.transport.tls import TLS
from autoglm_client.transport.transport import GrpcTransport, Transport

from .admin import flush_cache, read_health, read_limits, read_models, read_stats, wait_until_ready
from .exceptions import AutoGLMError, ClientClosedError
from .mapping import MapLimits, Progress, bounded_map
from .model_names import ENSEMBLE
from .option_fields import OptionChanges
from .options import GenerationOptions
from .retries import RetryPolicy
from .stream import Stream
from .timeouts import Deadlines, Timeouts
from .types import Conversation, Health, ModelInfo, ModelLimits, Prompt, Result, Stats, TokenizedPrompt, TokenizeOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
DEFAULT_URL = "127.0.0.1:8001"
_DRAIN_SECONDS = 2.0  # what `close` waits for cancelled streams to end
_GRACE_SECONDS = 1.0  # from the client's own limit to the server's
_LONGEST_DEADLINE_MS = 86_400_000
_LARGE_BYTES = 2 << 20  # a quarter of the smallest pool of shared memory
_BYTES_A_CANDIDATE = 100  # as JSON, with its share of what else is sent
_HEARTBEAT_MS = 5000  # of whole answers; each costs the server as much as a piece of a stream


class AsyncClient:
    """Asks the ensemble on one or several servers. Use it within one event loop, best with `async with`.

    `urls`: `host:port` of the gRPC endpoint; of several, the first that works is used. `model`: the ensemble, of
    servers that have several; cancels, counters and limits are then those of its own engine. `options` and `timeouts`
    are the defaults of all calls. `gzip` compresses what is sent and received: worth it on slow networks only.
    `shared_memory` lets large inputs pass through the memory of this host: worth it from 256 KB on. True takes the
    server's key from $AUTOGLM_SHARED_MEMORY_KEY. `tls`: connections are secure; True trusts the public authorities,
    `TLS(...)` says more. `headers` go with every call as gRPC metadata: names and values, or a function that returns
    them, called in the context of each request's caller: `traceparent` lets the server join a trace. `transport` makes
    the transport of an address; the default is gRPC.
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
        self.urls = (urls,) if isinstance(urls, str) else tuple(urls)
        if not self.urls:
            raise ValueError("a client needs at least one url")
        for url in self.urls:
            if not url or url.startswith(("http://", "https://")):
                raise ValueError(f"a url is {url!r:.100}; it must be host:port of a gRPC endpoint, without http://")
        self._model = model
        self._options = options or GenerationOptions()
        self._timeouts = timeouts or Timeouts()
        self._retries = retries or RetryPolicy()
        self._sharing = SharedMemory.chosen(shared_memory)
        self._transport = transport or partial(
            GrpcTransport,
            gzip=gzip,
            tls=TLS() if tls is True else tls or None,
            headers=headers,
            unary_headers=self._sharing.headers if self._sharing else None,
        )
        self._pool: EndpointPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: set[Call] = set()
        self._closed = False

    async def generate(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        timeouts: Timeouts | None = None,
        **changes: Unpack[OptionChanges],
    ) -> Result:
        """The whole answer at once. Raises errors of `exceptions.py`; cancelling the task cancels on the server."""
        return await self._start(prompt, options, timeouts, changes, streamed=False).read_all()

    def stream(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        timeouts: Timeouts | None = None,
        **changes: Unpack[OptionChanges],
    ) -> Stream:
        """The answer in pieces: `async for piece in client.stream(...)`. The request is sent with the first step."""
        return self._start(prompt, options, timeouts, changes, streamed=True)

    async def chat(
        self,
        messages: Conversation,
        options: GenerationOptions | None = None,
        *,
        timeouts: Timeouts | None = None,
        **changes: Unpack[OptionChanges],
    ) -> Result:
        """The next turn of a conversation. `stream` takes messages too."""
        return await self.generate(messages, options, timeouts=timeouts, **changes)

    @overload
    def map(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        options: GenerationOptions | None = None,
        *,
        concurrency: int = 16,
        prefetch_factor: int = 2,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        progress: Progress | None = None,
        timeouts: Timeouts | None = None,
        **changes: Unpack[OptionChanges],
    ) -> AsyncIterator[Result]: ...

    @overload
    def map(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        options: GenerationOptions | None = None,
        *,
        concurrency: int = 16,
        prefetch_factor: int = 2,
        ordered: bool = True,
        return_exceptions: bool,
        progress: Progress | None = None,
        timeouts: Timeouts | None = None,
        **changes: Unpack[OptionChanges],
    ) -> AsyncIterator[Result | AutoGLMError]: ...

    async def map(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        options: GenerationOptions | None = None,
        *,
        concurrency: int = 16,
        prefetch_factor: int = 2,
        ordered: bool = True,
        return_exceptions: bool = False,
        progress: Progress | None = None,
        timeouts: Timeouts | None = None,
        **changes: Unpack[OptionChanges],
    ) -> AsyncIterator[Result | AutoGLMError]:
        """Answers to many prompts, `concurrency` of them asked at once, in the prompts' order or as they complete.

        `prompts` is consumed lazily: at most `concurrency * prefetch_factor` prompts are ahead of the answers handed
        out. With `return_exceptions` an error takes its answer's place; without it the first one ends the iteration and
        cancels what is under way. `progress(done, total)` is called for each answer; `total` is None where `prompts`
        has no length.
        """
        limits = MapLimits(concurrency, prefetch_factor, ordered)

        async def ask(prompt: Prompt) -> Result:
            return await self.generate(prompt, options, timeouts=timeouts, **changes)

        total, done = (len(prompts) if isinstance(prompts, Sequence) else None), 0
        async with aclosing(bounded_map(ask, prompts, limits)) as outcomes:
            async for outcome in outcomes:
                done += 1
                if progress is not None:
                    progress(done, total)
                if isinstance(outcome, Exception) and not (return_exceptions and isinstance(outcome, AutoGLMError)):
                    raise outcome
                yield outcome

    async def health(self, *, timeout: float = 5.0) -> Health:
        """Of the first endpoint that is ready; of the first one where none is. Never raises: `detail` says what is
        wrong."""
        found = list[Health]()
        for endpoint in self._endpoints().endpoints:
            found.append(await read_health(endpoint.transport, timeout, self._model))
            if found[-1].ready:
                return found[-1]
        return found[0]

    async def models(self) -> list[ModelInfo]:
        return await read_models(self._endpoints().pick().transport, self._timeouts.connect)

    async def stats(self) -> Stats:
        """The engine's own counters, and Triton's of each model."""
        return await read_stats(self._endpoints().pick().transport, self._timeouts.connect, self._model)

    async def limits(self) -> ModelLimits:
        """Of the first endpoint that answers."""
        return await self._ask_any(lambda transport: read_limits(transport, self._timeouts.connect, self._model))

    async def tokenize(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        **asked: Unpack[TokenizeOptions],
    ) -> TokenizedPrompt:
        """The tokens that the model would be given; nothing is computed, and the prompt may be longer than it takes. Of
        images the header alone is read. Raises errors of `exceptions.py`."""
        request = token_request(
            {"tokenize": asked},
            prompt,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
            tenant=tenant,
            model=self._model,
        )
        token_ids, told = await self._ask_any(lambda to: ask_tokenizer(to, request, self._timeouts.connect))
        return TokenizedPrompt(token_ids, tuple(told["token_strs"]) if "token_strs" in told else None)

    async def detokenize(self, token_ids: Sequence[int], *, tenant: str | None = None) -> str:
        """Their text, special tokens as they are written. Raises InvalidRequestError where one is no token."""
        request = token_request({"detokenize": list(token_ids)}, tenant=tenant, model=self._model)
        told = (await self._ask_any(lambda to: ask_tokenizer(to, request, self._timeouts.connect)))[1]
        return str(told.get("text", ""))

    async def flush_cache(self) -> int:
        """Have the server forget the answers it keeps; how many those were."""
        return await flush_cache(self._endpoints().pick().transport, self._timeouts.connect, self._model)

    async def wait_until_ready(self, timeout: float = 120.0) -> Health:
        """Raises `ServerUnavailableError` when the server is not ready within `timeout` seconds."""
        return await wait_until_ready(self.health, timeout, self.urls[0])

    async def close(self) -> None:
        """Cancel what is under way, wait a moment for it to end, and close the connections."""
        if self._closed or self._pool is None:
            self._closed = True
            return
        self._closed = True
        for call in list(self._calls):
            self._cancel(call)
        await asyncio.gather(*(endpoint.canceller.drained(_DRAIN_SECONDS) for endpoint in self._pool.endpoints))
        await asyncio.gather(*(endpoint.transport.close() for endpoint in self._pool.endpoints))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _start(
        self,
        prompt: Prompt,
        options: GenerationOptions | None,
        timeouts: Timeouts | None,
        changes: OptionChanges,
        *,
        streamed: bool,
    ) -> Stream:
        limits = timeouts or self._timeouts
        chosen = (options or self._options).with_changes(changes)
        if not streamed:
            chosen = _with_deadline(chosen, limits)
        beating = chosen if streamed else _with_heartbeats(chosen)
        in_pieces = streamed or _may_be_large(chosen)
        pool = self._endpoints()

        def build(request_id: str, heartbeats: bool) -> pb.ModelInferRequest:
            asked = beating if heartbeats else chosen
            return generation_request(prompt, asked, stream=in_pieces, request_id=request_id, model=self._model)

        launcher = RequestLauncher(build, pool, self._retries, limits.connect, self._track)
        deadlines = Deadlines(limits, asyncio.get_running_loop().time(), streamed=streamed)
        return Stream(launcher, deadlines, streamed=streamed)

    async def _ask_any(self, ask: Callable[[Transport], Awaitable[T]]) -> T:
        """Of the first endpoint that answers."""
        pool = self._endpoints()
        for _ in pool.endpoints[1:]:
            endpoint = pool.pick()
            try:
                return await ask(endpoint.transport)
            except ENDPOINT_FAILURES:
                pool.failed(endpoint)
        return await ask(pool.pick().transport)

    def _endpoints(self) -> EndpointPool:
        """Connections belong to the event loop of the first call."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ClientClosedError("the client is closed")
        if self._pool is None:
            self._loop = loop
            self._pool = EndpointPool([self._endpoint(url) for url in self.urls], clock=loop.time)
        if self._loop is not loop:
            raise ClientClosedError("an AsyncClient is used from one event loop only; make one for each")
        return self._pool

    def _endpoint(self, url: str) -> Endpoint:
        transport = self._transport(url)
        if self._sharing is not None:
            transport = SharedInputs(transport, self._sharing)
        return Endpoint(url, transport, Canceller(transport, self._timeouts.connect, self._model))

    def _track(self, call: Call) -> None:
        self._calls.add(call)
        call.task.add_done_callback(lambda _: self._calls.discard(call))

    def _cancel(self, call: Call) -> None:
        assert self._pool is not None
        for endpoint in self._pool.endpoints:
            if endpoint.address == call.endpoint:
                endpoint.canceller.cancel(call)


def _may_be_large(options: GenerationOptions) -> bool:
    """An answer that may not pass through the server's shared memory in one piece: text always does, log-probabilities
    of many tokens do not. It comes in pieces then, and is joined here."""
    count, most = options.logprobs, options.max_tokens
    if not (isinstance(count, int) and isinstance(most, int) and count > 0):  # what is no number is refused later
        return False
    return (1 + count) * _BYTES_A_CANDIDATE * most > _LARGE_BYTES


def _with_heartbeats(options: GenerationOptions) -> GenerationOptions:
    """So that no proxy takes the connection for dead while an answer is made that comes whole, and the server notices
    where its client is."""
    return options if options.heartbeat_ms is not None else dataclasses.replace(options, heartbeat_ms=_HEARTBEAT_MS)


def _with_deadline(options: GenerationOptions, limits: Timeouts) -> GenerationOptions:
    """A server that knows no heartbeats cannot notice that the client of an answer that comes whole is gone; so it is
    told when to give up."""
    if options.deadline_ms is not None or limits.total is None:
        return options
    return dataclasses.replace(
        options, deadline_ms=min(int(1000 * (limits.total + _GRACE_SECONDS)), _LONGEST_DEADLINE_MS)
    )
