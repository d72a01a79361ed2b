"""Which request ids were used lately, in constant memory."""

from __future__ import annotations

import numpy as np

_NUM_PLACES = 1 << 16
_ALL_BITS = (1 << 64) - 1


class RecentIds:
    """Some 65,000 of the last ones. An id has one place, by its hash, so another one may push it out early; one that
    was never added is not found."""

    def __init__(self) -> None:
        self._hashes = np.zeros(_NUM_PLACES, np.uint64)

    def add(self, request_id: str) -> None:
        value = hash(request_id) & _ALL_BITS
        self._hashes[value % _NUM_PLACES] = value

    def __contains__(self, request_id: str) -> bool:
        value = hash(request_id) & _ALL_BITS
        return int(self._hashes[value % _NUM_PLACES]) == value
