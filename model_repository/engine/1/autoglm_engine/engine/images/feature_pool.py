"""Features of images in memory that is made once: of requests under way, and of images that may come again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import Features, ImageSpan
from autoglm_engine.errors import EngineError

ImageKey = tuple[str, bytes, tuple[int, int]]  # tenant, digest, grid


def key_of(image: ImageSpan, tenant: str) -> ImageKey:
    return tenant, image.digest, image.grid


@dataclass(slots=True, eq=False)
class ImageFeatures:
    """Of one image, for as long as anybody uses it, and afterwards until its rows are needed."""

    key: ImageKey
    rows: npt.NDArray[np.int64]  # [number of the image's tokens], of the pool's memory
    num_users: int = 0
    is_asked: bool = False  # to be computed
    is_ready: bool = False
    failure: EngineError | None = None  # why it will never be


class FeaturePool:
    """`num_rows` rows of `hidden_size` values. One thread uses it, but for `store`."""

    def __init__(self, num_rows: int, hidden_size: int) -> None:
        self._memory: Features = np.empty((num_rows, hidden_size), np.float32)
        self._free = np.arange(num_rows)  # the first `_num_free`
        self._num_free = num_rows
        self._images: OrderedDict[ImageKey, ImageFeatures] = OrderedDict()  # least recently used first

    @property
    def num_rows(self) -> int:
        return len(self._memory)

    @property
    def usage(self) -> float:
        """Share of the rows that requests use, 0 to 1."""
        used = sum(len(found.rows) for found in self._images.values() if found.num_users)
        return used / max(1, self.num_rows)

    def reserve(self, keys: Sequence[ImageKey]) -> list[ImageFeatures] | None:
        """Those of all these images, each with one user more; None, and nothing changed, where they have no room."""
        missing = {key for key in keys if key not in self._images}
        needed = sum(rows * columns for _, _, (rows, columns) in missing)
        unused = [found for key, found in self._images.items() if _can_go(found) and key not in keys]
        if needed > self._num_free + sum(len(found.rows) for found in unused):
            return None
        for found in unused:
            if needed <= self._num_free:
                break
            self.forget(found)
        return [self._use(key) for key in keys]

    def release(self, found: ImageFeatures) -> None:
        found.num_users -= 1
        assert found.num_users >= 0, "features are released more often than reserved"

    def forget(self, found: ImageFeatures) -> None:
        """Its rows are free."""
        del self._images[found.key]
        end = self._num_free + len(found.rows)
        self._free[self._num_free : end] = found.rows
        self._num_free = end

    def fail(self, found: ImageFeatures, failure: EngineError) -> None:
        """Those who use it are to be told; who comes next tries again."""
        found.failure = failure
        self.forget(found)

    def store(self, found: ImageFeatures, features: Features) -> None:
        """Any thread. Raises EngineError for features of another image or model."""
        shape = len(found.rows), self._memory.shape[1]
        if features.shape != shape:
            raise EngineError(f"the vision model gave features of shape {features.shape}, and the image has {shape}")
        self._memory[found.rows] = features

    def gather(self, found: ImageFeatures, first: int, last: int) -> Features:
        """A copy of its rows `first ... last - 1`."""
        assert found.is_ready, "features are read before they are there"
        rows: Features = self._memory[found.rows[first:last]]
        return rows

    def check(self) -> None:
        """Every row is free or of one image; raise otherwise."""
        rows = np.concatenate([self._free[: self._num_free], *(found.rows for found in self._images.values())])
        if not np.array_equal(np.sort(rows), np.arange(self.num_rows)):
            raise EngineError("the memory of image features is damaged: a row is of two images, or of none")

    def _use(self, key: ImageKey) -> ImageFeatures:
        if (found := self._images.get(key)) is None:
            found = self._images[key] = ImageFeatures(key, self._take(key[2][0] * key[2][1]))
        self._images.move_to_end(key)
        found.num_users += 1
        return found

    def _take(self, count: int) -> npt.NDArray[np.int64]:
        self._num_free -= count
        return self._free[self._num_free : self._num_free + count].copy()


def _can_go(found: ImageFeatures) -> bool:
    """What is being computed is written into its rows."""
    return found.is_ready and not found.num_users
