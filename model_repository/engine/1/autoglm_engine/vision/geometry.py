"""Where the patches of an image lie, as the tower is told: numbers that depend on the grid alone.

`grid` is rows and columns of patches. Patches stand in the order of tokens: block of `merge_size` x `merge_size` after
block, row by row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .resize import Grid

Floats = npt.NDArray[np.float32]
_CUBIC = -0.75  # of torch's bicubic kernel


def patch_order(grid: Grid, merge_size: int) -> npt.NDArray[np.int64]:
    """[rows * columns]: for each patch its index row by row."""
    rows, columns = (side // merge_size for side in grid)
    indices = np.arange(grid[0] * grid[1], dtype=np.int64).reshape(rows, merge_size, columns, merge_size)
    return indices.transpose(0, 2, 1, 3).reshape(-1)


def rope_tables(grid: Grid, merge_size: int, head_size: int, theta: float) -> tuple[Floats, Floats]:
    """Cosines and sines [rows * columns, head_size / 2]: the first half turns by the row, the second by the column."""
    spatial = head_size // 2
    frequencies = 1.0 / theta ** (np.arange(0, spatial, 2) / spatial)
    places = np.stack(np.divmod(patch_order(grid, merge_size), grid[1]), axis=1)
    angles = (places[:, :, None] * frequencies).reshape(len(places), spatial)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def bicubic_weights(length: int, table_size: int) -> Floats:
    """[length, table_size]: the weight of each learned position along one side in each patch's.

    As torch's grid_sample(mode="bicubic", align_corners=False, padding_mode="border") at the patches' centres; the
    interpolation of a grid is this along its rows and along its columns.
    """
    centres = (np.arange(length) + 0.5) / length * table_size - 0.5
    first = np.floor(centres)
    weights = np.zeros((length, table_size))
    for tap in range(-1, 3):
        places = np.clip(first + tap, 0, table_size - 1).astype(np.int64)
        np.add.at(weights, (np.arange(length), places), _kernel(np.abs(centres - first - tap)))
    return weights.astype(np.float32)


def bilinear_weights(length: int, table_size: int) -> Floats:
    """As `bicubic_weights`, for torch's interpolate(mode="bilinear", align_corners=True): the first patch and the last
    have the first learned position and the last."""
    places = np.arange(length) * (table_size - 1) / max(length - 1, 1)
    distances = np.abs(places[:, None] - np.arange(table_size))
    return np.maximum(1 - distances, 0).astype(np.float32)


INTERPOLATIONS = {"bicubic": bicubic_weights, "bilinear": bilinear_weights}


def _kernel(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    return np.where(distance <= 1, near, far)
