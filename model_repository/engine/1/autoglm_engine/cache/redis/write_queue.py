"""Answers on their way into a slow tier: a bounded queue between the thread that steps and the one that writes."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from autoglm_engine.core import Event

MAX_WRITES = 1024
MAX_NUMBERS = 1 << 20  # token ids and log-probabilities, of all answers in the queue together


@dataclass(frozen=True, slots=True)
class Write:
    key: bytes
    answer: Event
    epoch: bytes
    kept_at: float  # monotonic seconds

    @property
    def num_numbers(self) -> int:
        return len(self.answer.token_ids) + sum(2 + 2 * len(entry.top) for entry in self.answer.logprobs)


class WriteQueue:
    """Thread-safe; nobody waits."""

    def __init__(self, max_writes: int = MAX_WRITES, max_numbers: int = MAX_NUMBERS) -> None:
        self._max_writes = max_writes
        self._max_numbers = max_numbers
        self._lock = threading.Lock()
        self._writes: deque[Write] = deque()
        self._num_numbers = 0

    def __len__(self) -> int:
        return len(self._writes)

    def put(self, write: Write) -> bool:
        """False: there is no room for it."""
        with self._lock:
            if len(self._writes) >= self._max_writes or self._num_numbers + write.num_numbers > self._max_numbers:
                return False
            self._writes.append(write)
            self._num_numbers += write.num_numbers
            return True

    def take(self, most: int) -> list[Write]:
        """The oldest."""
        with self._lock:
            taken = [self._writes.popleft() for _ in range(min(most, len(self._writes)))]
            self._num_numbers -= sum(write.num_numbers for write in taken)
            return taken

    def discard(self, key: bytes) -> int:
        """How many writes of that key there were: they will not be taken."""
        with self._lock:
            gone = [write for write in self._writes if write.key == key]
            if gone:
                self._writes = deque(write for write in self._writes if write.key != key)
                self._num_numbers -= sum(write.num_numbers for write in gone)
            return len(gone)

    def clear(self) -> None:
        self.take(self._max_writes)
