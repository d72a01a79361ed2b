"""Headers (gRPC metadata) that go with every call: a token for a proxy, a trace."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from autoglm_client.exceptions import InvalidRequestError

RequestHeaders = Callable[[], Mapping[str, str]]  # of the request that begins
Headers = Mapping[str, str] | RequestHeaders
Metadata = tuple[tuple[str, str], ...]

_NAME = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_TRACE = ("traceparent", "tracestate")


def source_of(headers: Headers | None) -> Callable[[], Metadata]:
    """Called for each request, in the context of whoever asks. Raises InvalidRequestError, at once for headers that
    never change, where gRPC takes a name or a value not."""
    if callable(headers):
        made = headers
        return lambda: checked(made())
    fixed = checked(headers or {})
    return lambda: fixed


def checked(headers: Mapping[str, str]) -> Metadata:
    """With the names in lower case. A value is never shown: it may be a secret."""
    return tuple((_name(name), _value(name, value)) for name, value in headers.items())


def read_headers(text: str, source: str) -> dict[str, str]:
    """A header a line, `Name: value`; empty lines are passed over. `source`: where they come from. Raises
    InvalidRequestError."""
    found = dict[str, str]()
    for number, line in enumerate(text.splitlines(), start=1):
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon:
            raise InvalidRequestError(f"line {number} of {source} is no header: it must be Name: value")
        found |= dict(checked({name.strip(): value.strip()}))
    return found


def without_trace(metadata: Metadata) -> Metadata:
    """For calls that are no part of what the caller does."""
    return tuple(entry for entry in metadata if entry[0] not in _TRACE)


def _name(name: str) -> str:
    lower = name.lower()
    if not _NAME.fullmatch(lower) or lower.startswith("grpc-") or lower.endswith("-bin"):
        raise InvalidRequestError(
            f"the header name {name!r:.80} cannot be sent: allowed are letters, digits, - _ . and neither "
            "grpc- before nor -bin behind"
        )
    return lower


def _value(name: str, value: str) -> str:
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise InvalidRequestError(f"the value of the header {name!r:.80} cannot be sent: it must be printable ASCII")
    return value
