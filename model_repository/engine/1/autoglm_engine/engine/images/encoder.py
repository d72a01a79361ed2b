"""From images to features on a thread of its own, one image at a time: no step waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from autoglm_engine.errors import EngineError, Unavailable
from autoglm_engine.own_failures import own_failure

from .feature_pool import FeaturePool, ImageFeatures
from .vision import Encode

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """`failure`: why there are no features."""

    features: ImageFeatures
    seconds: float
    failure: EngineError | None


class ImageEncoder:
    """`wake` is called, on its thread, when `take` has something to give. The thread begins with the first image."""

    def __init__(
        self,
        encode: Encode,
        pool: FeaturePool,
        wake: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wake = wake
        self._encode = encode
        self._pool = pool
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[tuple[ImageFeatures, bytes]] = deque()
        self._encoded: list[Encoded] = []
        self._is_encoding = False
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @property
    def has_results(self) -> bool:
        return bool(self._encoded)

    @property
    def is_idle(self) -> bool:
        """Nothing waits, and nothing is being encoded."""
        with self._changed:
            return not (self._waiting or self._is_encoding)

    def put(self, features: ImageFeatures, file: bytes) -> None:
        """Behind those that wait. Raises Unavailable where there is no thread for it."""
        with self._changed:
            if self._thread is None:
                self._thread = self._start()
            self._waiting.append((features, file))
            self._changed.notify()

    def withdraw(self, features: ImageFeatures) -> bool:
        """Nobody wants it any more. False: it is being encoded, or is, and `take` gives it."""
        with self._changed:
            left = [waiting for waiting in self._waiting if waiting[0] is not features]
            was_waiting = len(left) < len(self._waiting)
            self._waiting = deque(left)
        return was_waiting

    def take(self) -> list[Encoded]:
        """What was encoded since the last call."""
        with self._changed:
            encoded, self._encoded = self._encoded, []
        return encoded

    def close(self) -> None:
        """Encode nothing more. What is being encoded cannot be stopped, and is not waited for."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="image-encode", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            raise Unavailable("the system refuses a thread to encode images; try again later") from None
        return thread

    # ---- the thread

    def _run(self) -> None:
        while (waiting := self._next()) is not None:
            encoded = self._encode_one(*waiting)
            del waiting
            with self._changed:
                self._encoded.append(encoded)
                self._is_encoding = False
            self._wake()

    def _next(self) -> tuple[ImageFeatures, bytes] | None:
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            self._is_encoding = not self._is_closed
            return None if self._is_closed else self._waiting.popleft()

    def _encode_one(self, features: ImageFeatures, file: bytes) -> Encoded:
        began, failure = self._clock(), None
        try:
            self._pool.store(features, self._encode(file, features.key[2]))
        except BaseException as error:
            failure = _failure(error)
        return Encoded(features, self._clock() - began, failure)


def _failure(error: BaseException) -> EngineError:
    """Whatever it was, the thread goes on: others wait for it."""
    try:
        return own_failure(error)
    except BaseException as error:
        _log.error("an image could not be encoded", exc_info=error)
        return EngineError(f"the image could not be encoded: {type(error).__name__}")
