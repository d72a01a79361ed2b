"""The address of a Redis server: what is allowed in it, and how it may be shown. A password in it is never shown."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from autoglm_engine.errors import InvalidRequest

_SCHEMES = ("redis", "rediss", "unix")
_HIDDEN = "***"
# Brackets stand around an IPv6 address, or what is before them was a password. Python 3.10 takes them anywhere.
_AUTHORITY = re.compile(r"([^\[\]]*@)?(\[[^\[\]@]*\](:[^\[\]@]*)?|[^\[\]@]*)")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_ALLOWED = "redis://[user:password@]host[:port][/database], rediss:// for TLS, or unix:///path/of/socket[?db=n]"


def check_redis_url(url: str) -> None:
    """Raises InvalidRequest for what is no address of a Redis server. An empty one means that there is none."""
    if url and (problem := _problem(url)):
        raise InvalidRequest(f"the setting redis_url is {shown_redis_url(url)!r}, {problem}; it must be {_ALLOWED}")


def shown_redis_url(url: str) -> str:
    """Without the password, and without whatever might be one."""
    parts = _split(url)
    if parts is None or parts.scheme not in _SCHEMES:
        return _HIDDEN if url else ""
    if not (parts.hostname or parts.scheme == "unix") or _port(parts) is None:  # a password that is not quoted
        return f"{parts.scheme}://{_HIDDEN}"
    user, _, host = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    secret = f"{name}{colon and ':' + _HIDDEN}@" if user else ""
    return f"{parts.scheme}://{secret}{host}{parts.path if '@' not in parts.path else '/' + _HIDDEN}"


def _problem(url: str) -> str:
    parts = _split(url)
    if parts is None or parts.scheme not in _SCHEMES:
        return "which names none of the schemes redis, rediss and unix"
    if parts.fragment or "@" in parts.path or _port(parts) is None:
        return "which cannot be read (in a password, / ? # @ and : have to be written as %2F %3F %23 %40 and %3A)"
    if parts.password == _HIDDEN:
        return "whose password was hidden when it was printed"
    if parts.scheme == "unix":
        return "" if parts.path.startswith("/") and not parts.hostname else "which names no socket"
    if not parts.hostname:
        return "which names no host"
    if not unquote(parts.path).removeprefix("/").isdecimal() and parts.path not in ("", "/"):
        return "whose database is no number"
    return _query_problem(parts)


def _query_problem(parts: SplitResult) -> str:
    allowed = ("db", *_TLS_OPTIONS) if parts.scheme == "rediss" else ("db",)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in allowed:
            return f"where {name!r:.40} is not among the options {', '.join(allowed)}"
        if name == "db" and not value.isdecimal():
            return "whose database is no number"
        if name == "ssl_cert_reqs" and value not in ("none", "optional", "required"):
            return "whose ssl_cert_reqs is not none, optional or required"
    return ""


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    is_sound = "://" in url and url.isprintable() and " " not in url and _AUTHORITY.fullmatch(parts.netloc)
    return parts if is_sound else None


def _port(parts: SplitResult) -> int | None:
    """None: it is no port. Without one it is Redis' own."""
    try:
        return parts.port if parts.port is not None else 6379
    except ValueError:
        return None
