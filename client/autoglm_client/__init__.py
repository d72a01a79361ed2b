"""A thin client of the Triton ensemble `autoglm`. It knows no model.

with Client("127.0.0.1:8001") as client:
    for piece in client.stream("What is the capital of France?", max_tokens=32):
        print(piece.text, end="", flush=True)
"""

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
from .local_server import LocalServer
from .options import GenerationOptions
from .retries import NO_RETRIES, RetryPolicy
from .shared_inputs import SharedMemory
from .stream import Stream
from .timeouts import Timeouts
from .tls import TLS
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
    TokenLogprob,
    Usage,
)

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
    "TimeLimitError",
    "Timeouts",
    "TokenLogprob",
    "TotalTimeout",
    "Usage",
]
