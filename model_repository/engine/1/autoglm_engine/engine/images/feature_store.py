"""Features of images on demand: kept, being computed for somebody already, or put in line to be."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from autoglm_engine.core import Features
from autoglm_engine.errors import EngineError
from autoglm_engine.metrics import IMAGE_ENCODE_TIME, IMAGE_FEATURE_USAGE, Metrics

from .encoder import ImageEncoder, Order
from .feature_pool import FeaturePool, ImageFeatures, ImageKey
from .vision import Vision


class FeatureStore:
    """The thread that steps uses it."""

    def __init__(
        self,
        pool: FeaturePool,
        vision: Vision,
        order: Order,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.encoder = ImageEncoder(vision, pool, order, clock)
        self.pool = pool
        self._metrics = metrics
        self._usage = 0.0

    def ask(self, wanted: Sequence[tuple[ImageKey, bytes]], priority: int) -> list[ImageFeatures] | None:
        """Those of these images (and their files), which are to be released each; None where they have no room now.
        What fails is told by themselves. `priority`: of the request that wants them."""
        found = self.pool.reserve([key for key, _ in wanted])
        if found is None:
            return None
        for features, (_, file) in zip(found, wanted, strict=True):
            if features.is_asked:
                self.encoder.hasten(features, priority)
            else:
                self._compute(features, file, priority)
        self._report()
        return found

    def gather(self, found: ImageFeatures, first: int, last: int) -> Features:
        return self.pool.gather(found, first, last)

    def release(self, found: ImageFeatures) -> None:
        """What nobody wants any more is not computed: what is made of it is given up, and what is half made is not
        kept."""
        self.pool.release(found)
        is_unwanted = not found.num_users and not found.is_ready and found.failure is None
        if is_unwanted and self.encoder.withdraw(found):
            self.pool.forget(found)
        self._report()

    def settle(self) -> None:
        """Take what was computed since the last call."""
        for encoded in self.encoder.take():
            self._metrics.observe(IMAGE_ENCODE_TIME, encoded.seconds)
            if encoded.failure is None:
                encoded.features.is_ready = True
            else:
                self.pool.fail(encoded.features, encoded.failure)

    def _compute(self, features: ImageFeatures, file: bytes, priority: int) -> None:
        features.is_asked = True
        try:
            self.encoder.put(features, file, priority)
        except EngineError as error:
            self.pool.fail(features, error)

    def _report(self) -> None:
        if (usage := self.pool.usage) != self._usage:
            self._usage = usage
            self._metrics.set(IMAGE_FEATURE_USAGE, usage)
