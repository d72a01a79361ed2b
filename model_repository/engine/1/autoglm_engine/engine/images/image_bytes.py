"""The files of images, which requests hold from when they come until they have what they need of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

from autoglm_engine.errors import InvalidRequest, QueueFull


class HeldImages:
    """An `ImageBytes`. Also let go of with the last who holds it."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self._files: tuple[bytes, ...] = tuple(files)

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self._files))

    def file(self, image: int) -> bytes:
        return self._files[image]

    def release(self) -> None:
        self._files = ()


class ImageBudget:
    """At most `max_bytes` are held at once. Any thread."""

    def __init__(self, max_bytes: int) -> None:
        self._most = max_bytes
        self._lock = threading.Lock()
        self._held: weakref.WeakSet[HeldImages] = weakref.WeakSet()

    @property
    def num_bytes(self) -> int:
        """Held now."""
        return sum(held.num_bytes for held in list(self._held))

    def hold(self, files: Sequence[bytes]) -> HeldImages:
        """Raises InvalidRequest for more than could ever be held, and QueueFull for more than can be now."""
        wanted = HeldImages(files)
        if wanted.num_bytes > self._most:
            raise InvalidRequest(f"the images have {wanted.num_bytes} bytes; at most {self._most} are allowed")
        with self._lock:
            if (num_held := self.num_bytes) + wanted.num_bytes > self._most:
                raise QueueFull(
                    f"{num_held} bytes of images wait already, and the limit is {self._most}; try again later"
                )
            self._held.add(wanted)
        return wanted
