"""Large inputs travel through shared memory to a server on the same host; everything else as ever.

A layer over a transport: it puts tensors of `threshold_bytes` or more into a segment that the server was told of once,
and sends where they are. Where that does not work (another host, a wrong key, no room, a server that was started anew),
the bytes are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from autoglm_client.exceptions import AutoGLMError, CannotConnectError, ConnectionLost, ConnectTimeout

from .segment import Block, Segment, remove_stale
from .transport import Transport

_log = logging.getLogger(__name__)
_HINT = " (since 26.04 tritonserver has to be started with --allow-client-shm=true)"
_TIMEOUT_SECONDS = 5.0
KEY_HEADER = "autoglm-shared-memory-key"
KEY_VARIABLE = "AUTOGLM_SHARED_MEMORY_KEY"
_TRITON_PREFIX = "triton-grpc-protocol-"  # how Triton wants the header of a restricted protocol


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """`key`: opens the server's shared-memory calls, where they are closed. Smaller inputs than `threshold_bytes` are
    sent: below 256 KB nothing is gained. `max_bytes`: of all inputs under way to one server; beyond it they are sent.
    """

    key: str = field(default="", repr=False)
    threshold_bytes: int = 256 << 10
    max_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if not 0 < self.threshold_bytes <= self.max_bytes:
            raise ValueError(
                f"threshold_bytes must be between 1 and max_bytes ({self.max_bytes}), got {self.threshold_bytes}"
            )

    @classmethod
    def chosen(cls, choice: bool | SharedMemory) -> SharedMemory | None:
        if isinstance(choice, bool):
            return cls(os.environ.get(KEY_VARIABLE, "")) if choice else None
        return choice

    @property
    def headers(self) -> dict[str, str]:
        return {_TRITON_PREFIX + KEY_HEADER: self.key} if self.key else {}


class SharedInputs:
    """A `Transport` over `inner`."""

    def __init__(self, inner: Transport, options: SharedMemory) -> None:
        self._inner = inner
        self._options = options
        self._segment: Segment | None = None  # that the server knows
        self._registering = asyncio.Lock()
        self._is_refused = False

    async def connect(self, timeout: float | None) -> None:
        await self._inner.connect(timeout)

    async def unary(self, method: str, request: Any, timeout: float | None) -> Any:
        return await self._inner.unary(method, request, timeout)

    async def stream(self, request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferResponse]:
        segment = await self._known_segment() if self._is_large(request) else None
        if segment is not None:
            placed, blocks = place(request, segment, self._options.threshold_bytes)
            answered = False
            try:
                async for response in self._inner.stream(placed):
                    answered = True
                    yield response
                return
            except AutoGLMError as error:
                if answered or segment.name not in str(error):
                    raise
                await self._forget(segment)  # the server was started anew
            finally:
                for block in blocks:
                    segment.release(block)
        async for response in self._inner.stream(request):
            yield response

    async def close(self) -> None:
        if self._segment is not None:
            await self._forget(self._segment)
        await self._inner.close()

    def _is_large(self, request: pb.ModelInferRequest) -> bool:
        return any(len(raw) >= self._options.threshold_bytes for raw in request.raw_input_contents)

    async def _known_segment(self) -> Segment | None:
        async with self._registering:
            if self._segment is None and not self._is_refused:
                self._segment = await self._register()
            return self._segment

    async def _register(self) -> Segment | None:
        try:
            stale, segment = remove_stale(), Segment(self._options.max_bytes)
        except OSError as error:
            self._refuse(error)
            return None
        try:
            for name in stale:
                await self._unregister(name)
            known = pb.SystemSharedMemoryRegisterRequest(
                name=segment.name, key=f"/{segment.name}", offset=0, byte_size=segment.size
            )
            await self._inner.unary("SystemSharedMemoryRegister", known, _TIMEOUT_SECONDS)
        except AutoGLMError as error:
            segment.close()
            if not isinstance(error, CannotConnectError | ConnectionLost | ConnectTimeout):
                self._refuse(error)
            return None
        return segment

    def _refuse(self, error: Exception) -> None:
        self._is_refused = True
        hint = (
            _HINT if any(word in str(error).lower() for word in ("disabled", "not allowed", "allow-client-shm")) else ""
        )
        _log.warning("shared memory is not used, large inputs are sent: %s%s", error, hint)

    async def _forget(self, segment: Segment) -> None:
        if self._segment is segment:
            self._segment = None
            await self._unregister(segment.name)
            segment.close()

    async def _unregister(self, name: str) -> None:
        with contextlib.suppress(AutoGLMError):  # the server is gone, or never knew it
            await self._inner.unary(
                "SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name), _TIMEOUT_SECONDS
            )


def place(request: pb.ModelInferRequest, segment: Segment, threshold: int) -> tuple[pb.ModelInferRequest, list[Block]]:
    """The request with its large tensors in the segment, as far as there is room, and the blocks to release."""
    placed = pb.ModelInferRequest(model_name=request.model_name, id=request.id, inputs=request.inputs)
    for name, value in request.parameters.items():
        placed.parameters[name].CopyFrom(value)
    blocks = list[Block]()
    for tensor, raw in zip(placed.inputs, request.raw_input_contents, strict=True):
        block = segment.put(raw) if len(raw) >= threshold else None
        if block is None:
            placed.raw_input_contents.append(raw)
            continue
        blocks.append(block)
        tensor.parameters["shared_memory_region"].string_param = segment.name
        tensor.parameters["shared_memory_offset"].int64_param = block.offset
        tensor.parameters["shared_memory_byte_size"].int64_param = len(raw)
    return placed, blocks
