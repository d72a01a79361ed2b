"""What one request has of its images, from when it comes to the engine until its slot is another's."""

from __future__ import annotations

import numpy as np

from autoglm_engine.core import Features, ImageBytes, Positions, Request, TokenIds
from autoglm_engine.errors import EngineError
from autoglm_engine.vision.positions import rope_positions

from .feature_pool import ImageFeatures, key_of
from .feature_store import FeatureStore


class RequestImages:
    """`tokens`: the prompt, with token ids that tell images apart. An image that lies wholly in what the request reuses
    of a slot needs no features. Those of all others are held until they are in a step."""

    def __init__(self, request: Request, files: ImageBytes, tokens: TokenIds, store: FeatureStore) -> None:
        self.tokens = tokens
        self.is_asked = False  # for the features that it needs: they have their rows
        self._images = request.images
        self._keys = [key_of(image, request.tenant) for image in request.images]
        self._priority = request.priority
        self._files = files
        self._store = store
        self._held: dict[int, ImageFeatures] = {}  # by the image's place

    @property
    def is_ready(self) -> bool:
        return self.is_asked and all(found.is_ready for found in self._held.values())

    @property
    def failure(self) -> EngineError | None:
        """Why it will never be ready."""
        return next((found.failure for found in self._held.values() if found.failure), None)

    def ask(self, num_reused: int) -> bool:
        """For the features that it needs where so many of its tokens are reused; False: they have no room now."""
        needed = self._needed(num_reused)
        found = self._store.ask([(self._keys[place], self._files.file(place)) for place in needed], self._priority)
        if found is None:
            return False
        self._held = dict(zip(needed, found, strict=True))
        self.is_asked = True
        return True

    def may_begin(self, num_reused: int) -> bool:
        """With so many tokens reused. False: fewer are than when it asked, so that it has to ask again."""
        if all(place in self._held for place in self._needed(num_reused)):
            return True
        self._release_held()
        self.is_asked = False
        return False

    def begin(self, num_reused: int) -> None:
        """It has a slot, and needs its files no more."""
        self._files.release()
        self._release_until(num_reused)

    def num_needed(self, num_reused: int) -> int:
        return len(self._needed(num_reused))

    def positions(self, start: int, count: int) -> Positions | None:
        """As `Span.positions`, of these tokens of the sequence."""
        return rope_positions(self._images, start, count) if start + count > self._images[0].offset else None

    def take_features(self, start: int, count: int) -> Features | None:
        """As `Span.features`. Each token is asked for once, in their order."""
        end, parts = start + count, []
        for place, image in enumerate(self._images):
            first, last = max(start, image.offset), min(end, image.end)
            if first < last:
                parts.append(self._store.gather(self._held[place], first - image.offset, last - image.offset))
        self._release_until(end)
        return np.concatenate(parts) if parts else None

    def release(self) -> None:
        """All that it holds. May be called twice."""
        self._files.release()
        self._release_held()

    def _needed(self, num_reused: int) -> list[int]:
        return [place for place, image in enumerate(self._images) if image.end > num_reused]

    def _release_until(self, end: int) -> None:
        for place in [place for place in self._held if self._images[place].end <= end]:
            self._store.release(self._held.pop(place))

    def _release_held(self) -> None:
        while self._held:
            self._store.release(self._held.popitem()[1])
