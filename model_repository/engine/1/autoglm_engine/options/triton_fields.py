"""Triton's own fields of a request, as far as its Python models hear of them.

`timeout`, in microseconds, comes from gRPC (and `/infer`) as the request's timeout, and from `/generate` as a parameter
beside others. `priority` comes from `/generate` alone, as the tensor of that name: of the one in gRPC's parameters
nothing reaches a Python model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.settings.model import DAY_MS

TIMEOUT = "timeout"
MAX_TIMEOUT_US = 1000 * DAY_MS  # as of `deadline_ms`


def shortest_deadline_ms(deadline_ms: float | None, timeout_us: int, parameters: Mapping[str, Any]) -> float | None:
    """Milliseconds from arrival to the first of the request's limits; None where it has none. `timeout_us`: the
    request's timeout, 0 for none. Raises InvalidRequest."""
    given = [timeout_us, parameters.get(TIMEOUT, 0)]
    limits = [_checked(timeout) / 1000 for timeout in given if timeout != 0 or isinstance(timeout, bool)]
    if deadline_ms is not None:
        limits.append(deadline_ms)
    return min(limits, default=None)


def _checked(timeout: Any) -> int:
    if type(timeout) is not int or not 0 <= timeout <= MAX_TIMEOUT_US:
        raise InvalidRequest(
            f"timeout is {timeout!r:.40}; it must be a whole number of microseconds between 0 (none) and "
            f"{MAX_TIMEOUT_US}"
        )
    return timeout
