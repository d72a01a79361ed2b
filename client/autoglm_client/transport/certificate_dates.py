"""When a certificate ends: the one field of it that a person has to be told of. X.509 is RFC 5280, its encoding (DER)
X.690."""

from __future__ import annotations

import ssl
from datetime import datetime, timezone

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
_END = "-----END CERTIFICATE-----"


def not_after(pem: str) -> datetime:
    """Of the first certificate in `pem`. Raises ValueError where there is none that can be read."""
    begin, end = pem.find("-----BEGIN CERTIFICATE-----"), pem.find(_END)
    if begin < 0 or end < 0:
        raise ValueError("there is no certificate")
    try:
        _, certificate, _ = _part(ssl.PEM_cert_to_DER_cert(pem[begin : end + len(_END)]))
        _, signed, _ = _part(certificate)
        return _end_of(signed)
    except IndexError:
        raise ValueError("the certificate ends early") from None


def _end_of(signed: bytes) -> datetime:
    """Its parts: the version (may be absent), serial number, algorithm, issuer, validity, ..."""
    kind, _, rest = _part(signed)
    for _ in range(3 if kind == _VERSION else 2):
        _, _, rest = _part(rest)
    _, validity, _ = _part(rest)
    _, _, rest = _part(validity)
    kind, written, _ = _part(rest)
    if kind not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("the certificate has no date where its end should be")
    text = written.decode("ascii")
    if kind == _UTC_TIME:  # of two digits for the year: 50 ... 99 are of the last century
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)


def _part(der: bytes) -> tuple[int, bytes, bytes]:
    """The first element: its kind, its content, and what follows it."""
    kind, length, at = der[0], der[1], 2
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(der[2 : 2 + size], "big"), 2 + size
    if at + length > len(der):
        raise ValueError("the certificate ends early")
    return kind, der[at : at + length], der[at + length :]
