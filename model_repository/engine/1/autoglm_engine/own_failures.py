"""What a request's own part of a step raises: its sampler, its draft, its guide, its text. It ends that request alone.

Each place that works for one request on the step thread asks `own_failure` what became of it, and ends the request with
that. What is nobody's own goes on and ends the loop: the device, a wish to stop the process.
"""

from __future__ import annotations

import logging

from .errors import DeviceError, EngineError

_log = logging.getLogger(__name__)
_NOBODYS_OWN = (DeviceError, KeyboardInterrupt, SystemExit, GeneratorExit)


def own_failure(error: BaseException, request_id: str = "") -> EngineError:
    """What the caller is told; the log names the request. To be called in an `except BaseException`: a panic of a
    library in Rust is no Exception. Raises `error` on where it is not the request's own."""
    if isinstance(error, _NOBODYS_OWN):
        raise error
    if isinstance(error, EngineError):
        return error
    _log.error("a request failed by itself", exc_info=error, extra={"request_id": request_id})
    return EngineError(f"the engine failed on this request: {type(error).__name__}")
