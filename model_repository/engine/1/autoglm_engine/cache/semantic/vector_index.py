"""Unit vectors in groups that never see each other: the nearest ones of a group, exactly, by faiss.

Not thread-safe. A group is one flat index, which costs less than 1 kB beside its vectors; a graph index would cost some
40 kB a group and save nothing below 10,000 vectors (docs/decisions/caching.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import ArtifactError

Vector = npt.NDArray[np.float32]


class VectorIndex:
    def __init__(self, num_dimensions: int) -> None:
        """Raises ArtifactError where faiss is not installed."""
        try:
            import faiss
        except ImportError:
            raise ArtifactError("the semantic cache needs the package faiss-cpu, which is not installed") from None
        self._faiss: Any = faiss
        self._num_dimensions = num_dimensions
        self._groups: dict[bytes, Any] = {}

    def add(self, group: bytes, entry_id: int, vector: Vector) -> None:
        """`vector`: float32 [num_dimensions] of length 1."""
        if (index := self._groups.get(group)) is None:
            index = self._groups[group] = self._faiss.IndexIDMap2(self._faiss.IndexFlatIP(self._num_dimensions))
        index.add_with_ids(vector[np.newaxis], np.array([entry_id], np.int64))

    def remove(self, group: bytes, entry_id: int) -> None:
        index = self._groups[group]
        index.remove_ids(np.array([entry_id], np.int64))
        if not index.ntotal:
            del self._groups[group]

    def nearest(self, group: bytes, vector: Vector, count: int) -> list[tuple[int, float]]:
        """(entry id, cosine) of at most `count`, the nearest first."""
        if (index := self._groups.get(group)) is None:
            return []
        cosines, ids = index.search(vector[np.newaxis], min(count, index.ntotal))
        return [(int(i), float(cosine)) for i, cosine in zip(ids[0], cosines[0], strict=True) if i >= 0]

    def clear(self) -> None:
        self._groups.clear()
