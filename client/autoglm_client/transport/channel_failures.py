"""What a failed gRPC call means: its status and gRPC's own words, as one of this package's errors."""

from __future__ import annotations

import re

import grpc

from autoglm_client.exceptions import (
    AutoGLMError,
    CannotConnectError,
    ConnectionLost,
    ConnectTimeout,
    CredentialsError,
    ServerUnavailableError,
)

from .responses import error_of
from .tls import TLS

CLOSED_AT_ONCE = "it closed the connection"

# How gRPC words what it reports with the same code as a busy server.
_HANDSHAKE = re.compile(r"handshak|certificate|peer name|ssl_error|tls_error|\btsi_", re.IGNORECASE)
_CONNECT_WORDS = ("failed to connect", "connection refused", "name resolution", "dns resolution")
_CLOSED_WORDS = ("socket closed", "connection reset", "endpoint closing")
_LOST_WORDS = (
    "socket closed",
    "connection reset",
    "broken pipe",
    "goaway",
    "recvmsg",
    "ping timeout",
    "keepalive",
    "too many pings",
    "too_many_pings",
    "transport closed",
    "connection closed",
    "endpoint closing",
)
_EXITING_WORDS = "server exiting"  # how Triton answers between the signal that ends it and its end
_RESTRICTED_WORDS = "protocol is restricted"  # Triton's --grpc-restricted-protocol

# (OpenSSL's reason as gRPC shows it, what it is to a person)
_TLS_REASONS = (
    ("wrong_version_number", "the server speaks no TLS"),
    ("certificate has expired", "the server's certificate has expired"),
    ("certificate is not yet valid", "the server's certificate is not valid yet"),
    ("unable to get local issuer", "the server's certificate is signed by none of the trusted authorities"),
    ("self-signed certificate", "the server's certificate is signed by none of the trusted authorities"),
    ("self signed certificate", "the server's certificate is signed by none of the trusted authorities"),
    ("certificate_verify_failed", "the server's certificate is not trusted"),
    ("is not in peer certificate", "the server's certificate is for another name"),
    ("hostname verification", "the server's certificate is for another name"),
    ("certificate_required", "the server asks for a client certificate"),
    ("alert_certificate_expired", "the client's certificate has expired"),
    ("unknown_ca", "the server does not trust the client's certificate"),
    ("bad_certificate", "the server does not take the client's certificate"),
)


def unreachable(address: str, why: str = "no server answers there") -> CannotConnectError:
    return CannotConnectError(f"cannot reach {address}: {why}", endpoint=address)


def no_connection(details: str, address: str, tls: TLS | None) -> AutoGLMError:
    """`details`: why no connection came about, in gRPC's words. `tls`: what the client tried it with."""
    words = details.lower()
    named = next((reason for mark, reason in _TLS_REASONS if mark in words), None)
    if tls is not None and named:
        return CredentialsError(f"no secure connection to {address}: {named}", endpoint=address)
    if any(word in words for word in _CLOSED_WORDS):
        return unreachable(address, _refusal(tls))
    if tls is not None and _HANDSHAKE.search(details):
        return CredentialsError(f"no secure connection to {address}: {details}", endpoint=address)
    return unreachable(address)


def _refusal(tls: TLS | None) -> str:
    """Servers close the connection, and do not say why, where they expect TLS, or another client's certificate; also
    where they end just then."""
    if tls is None:
        return f"{CLOSED_AT_ONCE}; it may ask for TLS, or speak something else than gRPC"
    if tls.cert is None:
        return f"{CLOSED_AT_ONCE} at the TLS handshake; it may ask for a client certificate"
    return f"{CLOSED_AT_ONCE} at the TLS handshake; it may not trust the client certificate {tls.cert}"


def error_of_status(code: grpc.StatusCode, details: str, address: str, tls: TLS | None = None) -> AutoGLMError:
    words = details.lower()
    if code is grpc.StatusCode.UNAVAILABLE and any(word in words for word in _CONNECT_WORDS):
        return no_connection(details, address, tls)
    if code is grpc.StatusCode.UNAVAILABLE and any(word in words for word in _LOST_WORDS):
        return ConnectionLost(f"the connection to {address} broke: {details}", endpoint=address)
    if code is grpc.StatusCode.UNAVAILABLE and _EXITING_WORDS in words:
        return ServerUnavailableError(f"the server at {address} is shutting down", endpoint=address)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED) or _RESTRICTED_WORDS in words:
        return CredentialsError(f"{address} refuses this client: {details}", endpoint=address)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ConnectTimeout(f"{address} did not answer in time", endpoint=address)
    failure = error_of(details, code.name)
    failure.endpoint = address
    return failure
