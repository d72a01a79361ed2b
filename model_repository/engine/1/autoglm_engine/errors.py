"""Every error the engine raises on purpose.

    EngineError
    ├── InvalidRequest      the caller's fault: names the value and the allowed range
    ├── NotCached           a request that takes only a kept answer, and there is none
    ├── Unavailable         the server's state: try again later
    │   ├── QueueFull
    │   ├── GivenUp         nobody wants it any more
    │   └── ShuttingDown
    ├── ArtifactError       the exported artifact is missing, damaged or made for something else
    │   └── WrongOnThisGpu  what it computes here is not what it was exported from
    ├── DeviceError         the GPU failed
    └── RequestFailed       what a request's last event says: it carries the code of the error that ended it

`code` is the name of the Triton status code the adapter answers with.
"""

from __future__ import annotations

CODES = ("INVALID_ARG", "NOT_FOUND", "UNAVAILABLE", "INTERNAL")


class EngineError(Exception):
    """A sentence for the caller; never a traceback."""

    code = "INTERNAL"

    @property
    def wire_text(self) -> str:
        """What Triton is told. A streamed error reaches gRPC clients as a text alone, so the code stands in it."""
        return f"{self.code}: {self}"


class InvalidRequest(EngineError):
    code = "INVALID_ARG"


class NotCached(EngineError):
    code = "NOT_FOUND"


class Unavailable(EngineError):
    code = "UNAVAILABLE"


class QueueFull(Unavailable):
    pass


class GivenUp(Unavailable):
    pass


class ShuttingDown(Unavailable):
    pass


class ArtifactError(EngineError):
    code = "INTERNAL"


class WrongOnThisGpu(ArtifactError):
    pass


class DeviceError(EngineError):
    """A call to the GPU failed. Most such failures are final: the process can do nothing more on it."""

    code = "INTERNAL"

    def __init__(self, message: str, *, is_out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.is_out_of_memory = is_out_of_memory


class RequestFailed(EngineError):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
