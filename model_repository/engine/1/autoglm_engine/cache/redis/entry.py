"""How a kept answer lies in Redis, and how it is read without believing anything that lies there.

magic  4 bytes   this format
check 16 bytes   BLAKE2b of the rest, keyed by the request's fingerprint: an entry under another key is no entry
ttl    8 bytes   milliseconds it was to live when it was computed; with what is left of it, that gives its age
epoch 16 bytes   of the cache when it was kept: a flush begins another
content          a packed event: the whole answer
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace

import numpy as np

from autoglm_engine.core import Event, Stages
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.messages import pack_event, unpack_event

MAX_VALUE_BYTES = 1 << 20  # of a whole entry; a larger answer is not kept, and a larger value not read
EPOCH_BYTES = 16
_MAGIC = b"agl1"
_CHECK_BYTES = 16
_HEAD = struct.Struct(f">Q{EPOCH_BYTES}s")


class Damaged(Exception):
    """It is not an entry for this key, whatever it is."""


@dataclass(frozen=True, slots=True)
class RedisEntry:
    answer: Event  # without a request id
    ttl_ms: int
    epoch: bytes  # [EPOCH_BYTES]


def pack_entry(key: bytes, entry: RedisEntry) -> bytes:
    content = pack_event(replace(entry.answer, request_id="", stages=Stages()), None).tobytes()
    checked = _HEAD.pack(entry.ttl_ms, entry.epoch) + content
    return _MAGIC + _check(key, checked) + checked


def unpack_entry(key: bytes, value: bytes) -> RedisEntry:
    """Raises Damaged."""
    start = len(_MAGIC) + _CHECK_BYTES
    checked = value[start:]
    if not value.startswith(_MAGIC) or len(checked) < _HEAD.size or _check(key, checked) != value[len(_MAGIC) : start]:
        raise Damaged("no entry of this format, or damaged, or another request's")
    ttl_ms, epoch = _HEAD.unpack_from(checked)
    try:
        answer, _ = unpack_event(np.frombuffer(checked, dtype=np.uint8, offset=_HEAD.size))
    except (InvalidRequest, ArithmeticError) as error:
        raise Damaged(str(error)) from None
    if answer.finish_reason is None or answer.error is not None or answer.request_id:
        raise Damaged("no whole answer")
    return RedisEntry(answer, ttl_ms, epoch)


def age_of(entry: RedisEntry, left_ms: int) -> float:
    """Seconds, from what is left of its time; no wall clock is asked. Raises Damaged where somebody changed that
    time."""
    if not 0 <= left_ms <= entry.ttl_ms:
        raise Damaged(f"it has {left_ms} ms left of {entry.ttl_ms}")
    return (entry.ttl_ms - left_ms) / 1e3


def _check(key: bytes, checked: bytes) -> bytes:
    return hashlib.blake2b(checked, key=key, digest_size=_CHECK_BYTES).digest()
