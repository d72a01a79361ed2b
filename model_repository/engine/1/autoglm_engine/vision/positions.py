"""Where tokens are for the rotary embedding of a model that reads images: in time, row and column.

Text goes on by one a token in all three. An image's tokens share one time and have a row and a column each, all counted
from where the text before it ended; the text after it goes on behind the larger side of its grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoglm_engine.core import ImageSpan, Positions


def rope_positions(images: Sequence[ImageSpan], start: int, count: int) -> Positions:
    """Of the tokens `start ... start + count - 1` of a sequence with these images, in their order: int32 `[3, count]`,
    the rows of which are time, row and column."""
    end = start + count
    positions = np.tile(np.arange(start, end, dtype=np.int32), (3, 1))
    shift = 0  # of the text behind the images so far, against its place
    for image in images:
        if image.offset >= end:
            break
        first, last = max(start, image.offset), min(end, image.end)
        if first < last:
            positions[:, first - start : last - start] = _within(image, first, last) + (image.offset + shift)
        shift += max(image.grid) - image.num_tokens
        positions[:, max(0, image.end - start) :] = np.arange(max(start, image.end), end, dtype=np.int32) + shift
    return positions


def _within(image: ImageSpan, first: int, last: int) -> Positions:
    """Of its tokens from place `first` to before `last`, against where the image begins."""
    rows, columns = np.divmod(np.arange(first - image.offset, last - image.offset, dtype=np.int32), image.grid[1])
    return np.stack([np.zeros_like(rows), rows, columns])
