"""From images to features on a thread of its own, one image at a time: no step waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from autoglm_engine.errors import EngineError, Unavailable
from autoglm_engine.own_failures import own_failure

from .feature_pool import FeaturePool, ImageFeatures
from .vision import Vision

_log = logging.getLogger(__name__)
Made = TypeVar("Made")


class Order(Protocol):
    def choose(self, levels: Sequence[int], now: float) -> int:
        """The place of who goes next among those who wait, in the order of arrival and at least one. `levels`: their
        priorities."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """`failure`: why there are no features."""

    features: ImageFeatures
    seconds: float
    failure: EngineError | None


@dataclass(slots=True, eq=False)
class _Image:
    """`priority`: the best of those who wanted it so far."""

    features: ImageFeatures
    file: bytes
    priority: int


class ImageEncoder:
    """Its thread begins with the first image. One thread uses it, whom `vision.wake` tells that `take` has something
    to give."""

    def __init__(
        self, vision: Vision, pool: FeaturePool, order: Order, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._vision = vision
        self._pool = pool
        self._order = order
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: list[_Image] = []  # in the order of arrival
        self._now: ImageFeatures | None = None  # being encoded, and may be given up
        self._number = 0  # of that encode
        self._encoded: list[Encoded] = []
        self._is_busy = False
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @property
    def has_results(self) -> bool:
        return bool(self._encoded)

    @property
    def is_idle(self) -> bool:
        """Nothing waits, and nothing is being encoded."""
        with self._changed:
            return not (self._waiting or self._is_busy)

    def put(self, features: ImageFeatures, file: bytes, priority: int) -> None:
        """Behind those that wait. Raises Unavailable where there is no thread for it."""
        with self._changed:
            if self._thread is None:
                self._thread = self._start()
            self._waiting.append(_Image(features, file, priority))
            self._changed.notify()

    def hasten(self, features: ImageFeatures, priority: int) -> None:
        """Somebody of this priority wants it, too."""
        with self._changed:
            for image in self._waiting:
                if image.features is features:
                    image.priority = min(image.priority, priority)

    def withdraw(self, features: ImageFeatures) -> bool:
        """Nobody wants it any more: nothing is written into its rows from here on. What is being made of it is given
        up. False: it is encoded, and `take` gives it."""
        with self._changed:
            if self._now is features:
                self._give_up()
                return True
            left = [image for image in self._waiting if image.features is not features]
            was_waiting = len(left) < len(self._waiting)
            self._waiting = left
        return was_waiting

    def take(self) -> list[Encoded]:
        """What was encoded since the last call."""
        with self._changed:
            encoded, self._encoded = self._encoded, []
        return encoded

    def close(self) -> None:
        """Encode nothing more. What is being encoded is given up, and not waited for."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            if self._now is not None:
                self._give_up()
            self._changed.notify()

    def _give_up(self) -> None:
        self._now = None
        self._vision.give_up(self._number)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="image-encode", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            raise Unavailable("the system refuses a thread to encode images; try again later") from None
        return thread

    # ---- the thread

    def _run(self) -> None:
        while (image := self._next()) is not None:
            encoded = self._encode(image)
            del image
            with self._changed:
                self._encoded += [encoded] if encoded else []
                self._is_busy = False
            self._vision.wake()

    def _next(self) -> _Image | None:
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            image = self._waiting.pop(self._order.choose([one.priority for one in self._waiting], self._clock()))
            self._now, self._is_busy = image.features, True
            self._number += 1
            return image

    def _encode(self, image: _Image) -> Encoded | None:
        """None: it was given up meanwhile."""
        began, features = self._clock(), image.features
        made, failure = _attempt(lambda: self._vision.encode(image.file, features.key[2], self._number))
        with self._changed:
            if self._now is not features:
                return None
            self._now = None
        if made is not None:
            _, failure = _attempt(lambda: self._pool.store(features, made))
        return Encoded(features, self._clock() - began, failure)


def _attempt(work: Callable[[], Made]) -> tuple[Made | None, EngineError | None]:
    """Whatever goes wrong, the thread goes on: others wait for it."""
    try:
        return work(), None
    except BaseException as error:
        return None, _failure(error)


def _failure(error: BaseException) -> EngineError:
    try:
        return own_failure(error)
    except BaseException as error:
        _log.error("an image could not be encoded", exc_info=error)
        return EngineError(f"the image could not be encoded: {type(error).__name__}")
