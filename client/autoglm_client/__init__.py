"""A thin client of the Triton ensemble `autoglm`. It knows no model.

with Client("127.0.0.1:8001") as client:
    for piece in client.stream("What is the capital of France?", max_tokens=32):
        print(piece.text, end="", flush=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoglm_client.transport.shared_inputs import SharedMemory
from autoglm_client.transport.tls import TLS

from .async_client import DEFAULT_URL, AsyncClient
from .blocking import BlockingStream
from .client import Client
from .exceptions import (
    AutoGLMError,
    CannotConnectError,
    ClientClosedError,
    ConnectionLost,
    ConnectTimeout,
    CredentialsError,
    FirstTokenTimeout,
    InterTokenTimeout,
    InvalidRequestError,
    LocalServerError,
    NotCachedError,
    PieceOrderError,
    ProtocolError,
    QueueFullError,
    RepositoryError,
    ServerError,
    ServerUnavailableError,
    TimeLimitError,
    TotalTimeout,
)
from .images.image import Image
from .options import GenerationOptions
from .retries import NO_RETRIES, RetryPolicy
from .stream import Stream
from .timeouts import Timeouts
from .types import (
    Candidate,
    Health,
    Message,
    ModelCounters,
    ModelInfo,
    ModelLimits,
    Piece,
    Result,
    StageTimes,
    Stats,
    TensorInfo,
    ThinkingMarks,
    TokenizedPrompt,
    TokenLogprob,
    Usage,
)

if TYPE_CHECKING:
    from autoglm_cli.server.local_server import LocalServer


def __getattr__(name: str) -> object:
    """`LocalServer` is of the command line, which starts servers; here it is loaded by whoever asks for it."""
    if name == "LocalServer":
        from autoglm_cli.server.local_server import LocalServer

        return LocalServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DEFAULT_URL",
    "NO_RETRIES",
    "TLS",
    "AsyncClient",
    "AutoGLMError",
    "BlockingStream",
    "Candidate",
    "CannotConnectError",
    "Client",
    "ClientClosedError",
    "ConnectTimeout",
    "ConnectionLost",
    "CredentialsError",
    "FirstTokenTimeout",
    "GenerationOptions",
    "Health",
    "Image",
    "InterTokenTimeout",
    "InvalidRequestError",
    "LocalServer",
    "LocalServerError",
    "Message",
    "ModelCounters",
    "ModelInfo",
    "ModelLimits",
    "NotCachedError",
    "Piece",
    "PieceOrderError",
    "ProtocolError",
    "QueueFullError",
    "RepositoryError",
    "Result",
    "RetryPolicy",
    "ServerError",
    "ServerUnavailableError",
    "SharedMemory",
    "StageTimes",
    "Stats",
    "Stream",
    "TensorInfo",
    "ThinkingMarks",
    "TimeLimitError",
    "Timeouts",
    "TokenLogprob",
    "TokenizedPrompt",
    "TotalTimeout",
    "Usage",
]
