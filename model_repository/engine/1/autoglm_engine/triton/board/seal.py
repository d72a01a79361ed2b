"""What makes a message between two models that work together believable: only they know the key, and everybody with the
port may call them.

A sealed message: board  8 bytes   the id of the engine's board, which has the key
                  tag   16 bytes   BLAKE2b of kind, what the message goes with, and content, keyed
                  content
"""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.messages import Packed

BOARD_ID_BYTES = 8
KEY_BYTES = 32
_TAG_BYTES = 16
SEAL_BYTES = BOARD_ID_BYTES + _TAG_BYTES
_NOTHING = np.empty(0, np.uint8)


class Kind(Enum):
    """A message of one kind is none of the other."""

    REQUEST = "request"
    EVENT = "event"
    IMAGE = "image"


class Seal:
    """`beside`: what travels in a tensor of its own, and must be what it was when the message was sealed."""

    def __init__(self, board_id: bytes, key: bytes) -> None:
        assert (len(board_id), len(key)) == (BOARD_ID_BYTES, KEY_BYTES), "no board's id and key"
        self._board_id = board_id
        self._key = key

    def close(self, kind: Kind, content: Packed, beside: npt.NDArray[Any] | None = None) -> Packed:
        """uint8 [SEAL_BYTES + len(content)]."""
        plain = content.tobytes()
        return np.frombuffer(self._board_id + self._tag(kind, plain, beside) + plain, dtype=np.uint8)

    def open(self, kind: Kind, sealed: Packed, beside: npt.NDArray[Any] | None = None) -> Packed:
        """The content. Raises InvalidRequest for what was not sealed with this key."""
        raw = sealed.tobytes()
        content = raw[SEAL_BYTES:]
        expected = self._board_id + self._tag(kind, content, beside)
        if not hmac.compare_digest(raw[:SEAL_BYTES], expected):
            raise forged(kind)
        return np.frombuffer(content, dtype=np.uint8)

    def tag_of(self, caller_id: str) -> int:
        """64 bits that stand for a request's id between engines of this key; nobody else can find two ids that share
        them."""
        text = caller_id.encode(errors="surrogatepass")
        digest = hashlib.blake2b(text, key=self._key, digest_size=8, person=b"cancel").digest()
        return int.from_bytes(digest, "little")

    def _tag(self, kind: Kind, content: bytes, beside: npt.NDArray[Any] | None) -> bytes:
        other: npt.NDArray[Any] = _NOTHING if beside is None else np.ascontiguousarray(beside)
        digest = hashlib.blake2b(key=self._key, digest_size=_TAG_BYTES, person=kind.value.encode())
        digest.update(other.nbytes.to_bytes(8, "little"))  # so that nothing moves from one part into the other
        digest.update(other.data)
        digest.update(content)
        return digest.digest()


def board_id_of(sealed: Packed) -> bytes:
    """Of the board that the message names; empty where it is too short for one."""
    return sealed.reshape(-1)[:SEAL_BYTES].tobytes()[:BOARD_ID_BYTES] if sealed.size >= SEAL_BYTES else b""


def forged(kind: Kind) -> InvalidRequest:
    return InvalidRequest(
        f"{kind.value} has no valid seal: it must be what another model of this server wrote, unchanged; "
        "requests go to the ensemble, such as autoglm"
    )
