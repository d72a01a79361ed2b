"""Every error this package raises on purpose.

    AutoGLMError
    ├── InvalidRequestError         the server refused the prompt or an option: names the value and the allowed range
    │   └── NotCachedError          cache="only", and the server has no such answer
    ├── ServerUnavailableError      nothing was computed: try again later, or elsewhere
    │   ├── CannotConnectError      no connection: wrong address, or no server there
    │   └── QueueFullError          the server is up and has as much to do as it takes on
    ├── TimeLimitError              a time limit of the caller passed; the request was cancelled on the server
    │   ├── ConnectTimeout
    │   ├── FirstTokenTimeout
    │   ├── InterTokenTimeout
    │   └── TotalTimeout
    ├── ConnectionLost              the connection broke while a request was under way
    ├── CredentialsError            TLS, a certificate or a header does not fit: what was refused, and by whom
    ├── ServerError                 the server failed: its own sentence
    ├── ProtocolError               the server answered something this client does not understand
    │   └── PieceOrderError         a part of the answer is missing or out of order
    ├── LocalServerError            the bundled server cannot start here, or ended: what was wrong, what to do
    ├── RepositoryError             a model repository cannot be written so
    └── ClientClosedError           the client was closed, or is used from another event loop

The text of each is one sentence for a person. `retryable` says whether the same request may be sent again
as long as none of its answer was handed out.
"""

from __future__ import annotations

from typing import ClassVar


class AutoGLMError(Exception):
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, request_id: str | None = None, endpoint: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.endpoint = endpoint


class InvalidRequestError(AutoGLMError):
    pass


class NotCachedError(InvalidRequestError):
    pass


class ServerUnavailableError(AutoGLMError):
    retryable = True


class CannotConnectError(ServerUnavailableError):
    pass


class QueueFullError(ServerUnavailableError):
    pass


class TimeLimitError(AutoGLMError):
    pass


class ConnectTimeout(TimeLimitError):
    retryable = True


class FirstTokenTimeout(TimeLimitError):
    pass


class InterTokenTimeout(TimeLimitError):
    pass


class TotalTimeout(TimeLimitError):
    pass


class ConnectionLost(AutoGLMError):
    retryable = True


class CredentialsError(AutoGLMError):
    pass


class ServerError(AutoGLMError):
    pass


class ProtocolError(AutoGLMError):
    pass


class PieceOrderError(ProtocolError):
    pass


class ClientClosedError(AutoGLMError):
    pass


class LocalServerError(AutoGLMError):
    pass


class RepositoryError(AutoGLMError):
    pass
