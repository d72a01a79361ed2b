"""Where requests with images come to the engine, and wait until the features of their images are there.

The beginning of a prompt is looked up in the slots before anything is encoded: what is computed already needs no
features. Rows for all others are reserved at once, in the order of priority and arrival as slots are given, so that
nobody holds some of them while waiting for more, and no priority starves. Images are encoded in that order, too. Should
a slot be overwritten meanwhile, the request asks again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from autoglm_engine.core import Request, TokenIds
from autoglm_engine.engine.scheduler import Scheduler
from autoglm_engine.engine.sequence import Sequence, Waiting
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.metrics import IMAGES, IMAGES_REUSED, Metrics
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import EngineSettings

from .admission import Fifo
from .images.feature_pool import FeaturePool, key_of
from .images.feature_store import FeatureStore
from .images.image_ids import ImageIds
from .images.request_images import RequestImages
from .images.vision import Vision
from .priorities import ByPriority, FairClasses

_MAX_PROMPTS = 4  # of full length, for each slot: more rows than their features have are never made


class ImageRequests:
    """The thread that steps uses it, but for `check`."""

    def __init__(
        self,
        vision: Vision,
        scheduler: Scheduler,
        limits: Limits,
        settings: EngineSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        max_rows = _MAX_PROMPTS * limits.num_slots * limits.max_length
        row_bytes = vision.hidden_size * 4
        pool = FeaturePool(min(settings.image_feature_bytes // row_bytes, max_rows), vision.hidden_size)
        self.ids = ImageIds(scheduler.slots.forget_retained)
        self.store = FeatureStore(pool, vision, FairClasses(settings), metrics, clock)
        self._scheduler = scheduler
        self._metrics = metrics
        self._clock = clock
        self._order = ByPriority(Fifo(), settings)
        self._next: Waiting | None = None  # who gets the next rows

    def check(self, request: Request) -> None:
        """Any thread. Raises InvalidRequest where its images can never be served."""
        if request.image_bytes is None:
            raise InvalidRequest(f"the prompt has {len(request.images)} images, and their files did not come with it")
        sizes = {key_of(image, ""): image.num_tokens for image in request.images}
        if (needed := sum(sizes.values())) > self.store.pool.num_rows:
            raise InvalidRequest(
                f"the images have {needed} tokens, and this server has memory for the features of "
                f"{self.store.pool.num_rows}; see the setting image_feature_bytes"
            )

    @property
    def has_news(self) -> bool:
        return self.store.encoder.has_results

    def open(self, request: Request) -> RequestImages:
        """Raises Unavailable."""
        assert request.image_bytes is not None, "a request that was not checked"
        return RequestImages(request, request.image_bytes, self.ids.number(request, self._in_use), self.store)

    def prepare(self) -> None:
        """Take what was encoded, and ask for what those who wait need. The first one that finds no room keeps those
        behind it from taking it."""
        self.store.settle()
        unasked = deque(one for one in self._scheduler.waiting if one.images and not one.images.is_asked)
        while unasked:
            if self._next is None or self._next not in unasked:
                self._next = self._first_of(unasked)
            if not self._ask(self._next):
                return
            unasked.remove(self._next)
        self._next = None

    def _first_of(self, unasked: deque[Waiting]) -> Waiting:
        place = self._order.choose(unasked, (), self._clock())
        assert place is not None, "somebody goes first"
        return unasked[place]

    def _ask(self, waiting: Waiting) -> bool:
        assert waiting.images is not None, "a request without images"
        return waiting.images.ask(self._scheduler.slots.num_reusable(waiting.tokens, waiting.request.tenant))

    def admitted(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            if sequence.images:
                num_images = len(sequence.request.images)
                self._metrics.inc(IMAGES, num_images)
                self._metrics.inc(IMAGES_REUSED, num_images - sequence.images.num_needed(sequence.num_cached))

    def close(self) -> None:
        self.store.encoder.close()

    def _in_use(self) -> list[TokenIds]:
        images = [one.images for one in self._scheduler.running] + [one.images for one in self._scheduler.waiting]
        return [found.tokens for found in images if found]
