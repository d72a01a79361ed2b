"""API keys: who may ask. A key is 256 random bits; its SHA-256 is kept, never the key.

A text of keys is TOML, one line a tenant:

    alice = {sha256 = "9f86...", requests_per_minute = 600, concurrency = 8}
    bob = {sha256 = ["new...", "old..."], priority = -2, metrics = true}
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from autoglm_gateway import priorities

from .error import SettingsError

KEYS_VARIABLE = "AUTOGLM_GATEWAY_KEYS"
_PREFIX = "ak-"
_BYTES = 32
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = ("sha256", "requests_per_minute", "concurrency", "metrics", "priority")


class _Range(NamedTuple):
    low: int
    high: int
    meaning: str


_LIMIT = _Range(0, 1_000_000, "0: no limit")
_PRIORITY = _Range(priorities.BEST, priorities.LAST, "lower goes first")


@dataclass(frozen=True, slots=True)
class Key:
    """`digests`: SHA-256 of the keys that a tenant may use, two while one replaces the other. `requests_per_minute`,
    `concurrency`: 0 is no limit, None the gateway's own. `metrics`: it may read /metrics. `priority`: see the module of
    that name; None is the gateway's own."""

    tenant: str
    digests: tuple[bytes, ...]
    requests_per_minute: int | None = None
    concurrency: int | None = None
    metrics: bool = False
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class KeyRing:
    keys: tuple[Key, ...] = ()

    def find(self, key: bytes) -> Key | None:
        """Whose key it is. Takes the same time whichever it is, and whether or not it is one."""
        digest, found = hashlib.sha256(key).digest(), None
        for candidate in self.keys:
            for known in candidate.digests:
                if hmac.compare_digest(known, digest):
                    found = candidate
        return found


def new_key() -> str:
    return _PREFIX + secrets.token_urlsafe(_BYTES)


def line_of(tenant: str, key: str) -> str:
    """For the file of keys. Raises SettingsError for a name that no tenant can have."""
    _check_tenant(tenant)
    return f'{tenant} = {{sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"}}'


def read_keys(text: str, source: str) -> tuple[Key, ...]:
    """Raises SettingsError, which names `source` and the tenant, never what was said instead of a digest: it may be a
    key."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source} is no TOML: {_without_values(error)}") from None
    if not found:
        raise SettingsError(f"{source} holds no key; make one with `autoglm gateway-key NAME`")
    keys = tuple(_key(tenant, entry, source) for tenant, entry in found.items())
    _check_different(keys, source)
    return keys


def _key(tenant: str, entry: Any, source: str) -> Key:
    _check_tenant(tenant)
    where = f"{source}: {tenant}"
    if not isinstance(entry, Mapping):
        raise SettingsError(f'{where} must be a table: {tenant} = {{sha256 = "..."}}')
    if unknown := sorted(entry.keys() - set(_FIELDS)):
        raise SettingsError(f"{where} has the unknown field {unknown[0]!r:.80}; known are {', '.join(_FIELDS)}")
    return Key(
        tenant,
        _digests(entry.get("sha256"), where),
        _number(entry, "requests_per_minute", where, _LIMIT),
        _number(entry, "concurrency", where, _LIMIT),
        _flag(entry, "metrics", where),
        _number(entry, "priority", where, _PRIORITY),
    )


def _digests(said: Any, where: str) -> tuple[bytes, ...]:
    texts = [said] if isinstance(said, str) else said
    if not isinstance(texts, list) or not texts or not all(_is_digest(text) for text in texts):
        raise SettingsError(
            f"{where}: sha256 must be 64 digits of 0-9 and a-f, or a list of such, as gateway-key prints"
        )
    return tuple(bytes.fromhex(text) for text in texts)


def _is_digest(text: Any) -> bool:
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def _number(entry: Mapping[str, Any], name: str, where: str, known: _Range) -> int | None:
    value = entry.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not known.low <= value <= known.high:
        said = f"{where}: {name} is {value!r:.80}; it must be a whole number, {known.low} ... {known.high}"
        raise SettingsError(f"{said} ({known.meaning})")
    return value


def _flag(entry: Mapping[str, Any], name: str, where: str) -> bool:
    value = entry.get(name, False)
    if not isinstance(value, bool):
        raise SettingsError(f"{where}: {name} is {value!r:.80}; it must be true or false")
    return value


def _check_tenant(tenant: str) -> None:
    if not _TENANT.fullmatch(tenant):
        raise SettingsError(f"the tenant {tenant!r:.80} must be named by 1 to 64 letters, digits, _ and -")


def _check_different(keys: Sequence[Key], source: str) -> None:
    owners = dict[bytes, str]()
    for key in keys:
        for digest in key.digests:
            if digest in owners:
                raise SettingsError(
                    f"{source}: {owners[digest]} and {key.tenant} have the same key; each needs its own"
                )
            owners[digest] = key.tenant


def _without_values(error: tomllib.TOMLDecodeError) -> str:
    """Where it is wrong: what stands there may be a key."""
    place = re.search(r"line \d+, column \d+|end of document", str(error))
    return f"wrong at {place.group()}" if place else "it cannot be read"
