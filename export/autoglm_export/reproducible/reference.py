"""The definition of `Kernels` in numpy: every operation is one that IEEE 754 rounds exactly, in an order that is
written here.

Products of two values of 12 significant bits are exact in float32, those of two float32 values are exact in float64; so
it makes no difference whether a CPU fuses them with the addition that follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .interface import Array, NotPositiveDefinite

SUM_BLOCK = 256
DOT_LANES = 16
_SHIFTER = np.float32(12582912.0)  # 1.5 * 2^23: adding it leaves no bits for a fraction
# 2^x on [-0.5, 0.5], the Taylor series of e^(x ln 2), highest power first: those of native/csrc/simd.h
_EXP2 = np.array(
    [1.5252734e-5, 1.5403530e-4, 1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 2.4022651e-1, 6.9314718e-1, 1.0], np.float32
)
_LOG2_E = np.float32(1.44269504088896340736)


class ReferenceKernels:
    description = "in numpy for want of a C++ compiler: slow"

    def products(self, rows: Array, columns: Array) -> Array:
        left, right = round_to_12_bits(rows), round_to_12_bits(columns)
        total = np.zeros((len(rows), len(columns)), np.float32)
        for first in range(0, rows.shape[1], SUM_BLOCK):
            part = np.zeros_like(total)
            for k in range(first, min(first + SUM_BLOCK, rows.shape[1])):
                part += left[:, k, None] * right[None, :, k]
            total = total + part if first else part
        return total

    def gram(self, rows: Array, group: slice) -> Array:
        columns = np.ascontiguousarray(rows[:, group].T)
        return self.products(columns, columns)

    def feedback(self, matrix: Array) -> Array:
        rest, factor = matrix.astype(np.float64), np.zeros_like(matrix)
        for k in range(len(matrix)):
            if not rest[k, k] > 0:
                raise NotPositiveDefinite
            factor[k, k] = np.sqrt(rest[k, k])
            factor[k + 1 :, k] = rest[k + 1 :, k] / np.float64(factor[k, k])
            column = factor[k + 1 :, k].astype(np.float64)
            rest[k + 1 :, k + 1 :] -= column[:, None] * column
        lower: Array = factor / factor.diagonal()
        return lower

    def round_columns(
        self,
        weights: Array,
        scales: Array,
        scale_rows: npt.NDArray[np.int32],
        limit: int,
        feedback: Sequence[tuple[slice, Array]],
    ) -> npt.NDArray[np.int8]:
        values = np.empty(weights.shape, np.int8)
        steps = np.where(scales > 0, scales, np.float32(1))
        for group, factors in feedback:
            values[:, group] = _round_group(weights[:, group].T, steps[scale_rows[group]], limit, factors).T
        return values

    def largest(self, rows: Array) -> Array:
        largest: Array = np.abs(rows).max(axis=1)
        return largest

    def rotate(self, rows: Array, factors: Array, left: Array) -> Array:
        size = rows.shape[1] // len(left)
        blocks = (
            self.mix(rows * factors, size, 1, normaliser(size)).reshape(len(rows), len(left), size).astype(np.float64)
        )
        sums = np.zeros_like(blocks)
        for a in range(len(left)):
            for b in range(len(left)):
                sums[:, a] += blocks[:, b] * np.float64(left[b, a])
        return sums.astype(np.float32).reshape(rows.shape)

    def rotate_columns(self, matrix: Array, factors: Array, left: Array) -> Array:
        return np.ascontiguousarray(self.rotate(matrix.T, factors, left).T)

    def mix(self, rows: Array, block: int, lanes: int, scale: np.float32) -> Array:
        mixed, half = rows.astype(np.float32), lanes
        while half < block * lanes:
            pairs = mixed.reshape(-1, 2, half)
            mixed = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(rows.shape)
            half *= 2
        scaled: Array = mixed * scale
        return scaled

    def dot(self, rows: Array, vector: Array) -> Array:
        padding = -rows.shape[1] % DOT_LANES
        left = np.pad(rows, ((0, 0), (0, padding))).reshape(len(rows), -1, DOT_LANES).astype(np.float64)
        right = np.pad(vector, (0, padding)).reshape(-1, DOT_LANES).astype(np.float64)
        lanes = np.zeros((len(rows), DOT_LANES))
        for index in range(len(right)):
            lanes += left[:, index] * right[index]
        while lanes.shape[1] > 1:
            half = lanes.shape[1] // 2
            lanes = lanes[:, :half] + lanes[:, half:]
        return lanes[:, 0].astype(np.float32)

    def swiglu(self, gate: Array, up: Array) -> Array:
        hidden: Array = gate / (self.exp(-gate) + np.float32(1)) * up
        return hidden

    def exp(self, values: Array) -> Array:
        power = np.clip(values * _LOG2_E, np.float32(-126), np.float32(126))
        whole = (power + _SHIFTER) - _SHIFTER
        rest, result = power - whole, np.full_like(power, _EXP2[0])
        for factor in _EXP2[1:]:
            result = result * rest + factor
        scaled: Array = (result.view(np.int32) + (whole.astype(np.int32) << 23)).view(np.float32)
        return scaled


def round_to_12_bits(values: Array) -> Array:
    """To the nearest value of 12 significant bits, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    kept = (bits + np.uint32(0x7FF) + ((bits >> np.uint32(12)) & np.uint32(1))) & np.uint32(0xFFFFF000)
    rounded: Array = kept.view(np.float32)
    return rounded


def normaliser(block: int) -> np.float32:
    """What makes a Hadamard matrix of `block` orthogonal."""
    return np.float32(1 / np.sqrt(np.float32(block)))


def _round_group(weights: Array, steps: Array, limit: int, feedback: Array) -> Array:
    """`weights`, `steps` `[inputs, columns]` -> whole steps, from the last input to the first."""
    wanted, factors = weights.copy(), round_to_12_bits(feedback)
    values = np.empty_like(wanted)
    for i in range(len(wanted) - 1, -1, -1):
        values[i] = np.rint(np.clip(wanted[i] / steps[i], np.float32(-limit), np.float32(limit)))
        error = round_to_12_bits(weights[i] - values[i] * steps[i])
        wanted[:i] += factors[i, :i, None] * error
    return values
