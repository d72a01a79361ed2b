"""What a request's head must be beyond what the parser sees to."""

from __future__ import annotations

import re
from collections.abc import Iterable

_VERSIONS = ("1.0", "1.1")
# RFC 3986, section 3.2.2, and a port; empty where a target has no authority.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~%!$&'()*+,;=]*)(:[0-9]*)?")


def violation(version: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Why the request is none of HTTP/1.0 or 1.1 (RFC 9112, sections 2.3 and 3.2); empty where it is one."""
    if version not in _VERSIONS:
        return f"the request is HTTP/{version}; this server speaks HTTP/1.1"
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        return f"the request has {len(hosts)} Host headers; one is allowed"
    if not hosts and version == "1.1":
        return "the request has no Host header, which HTTP/1.1 asks for"
    if hosts and not _HOST.fullmatch(hosts[0].strip()):
        return f"the Host header is {hosts[0].decode('latin-1')!a:.80}, which names no host"
    return ""
