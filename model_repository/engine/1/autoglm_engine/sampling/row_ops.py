"""The numeric primitives of sampling, on one row of logits `[vocab_size]` (float32), exact and without a full sort."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]

NUM_LIKELIEST = 256  # tokens that `draw_from_all` takes first
_NEAR = 1 / 1024  # times as likely as the best one
_NUM_BLOCKS = 2048  # of which one pass takes the maximum
_BANDS_PER_NAT, _NUM_BANDS = 64, 2048  # of the histogram: what is 32 nats below the best is one band


def most_likely(row: Row, count: int) -> Ids:
    """The ids of the `count` largest values and of all that equal the smallest of them, largest first, then lowest id.

    The count-th largest of the blocks' maxima bounds the count-th largest value from below, so only what reaches it
    is sorted.
    """
    if count >= len(row):
        return _descending(row)
    ids = at_least(row, _lower_bound(row, count))
    if len(ids) <= count:
        return ids
    return ids[: int((row[ids] >= row[ids[count - 1]]).sum())]


def at_least(row: Row, threshold: float | np.float32) -> Ids:
    """The ids of the values that reach `threshold`, largest first, then lowest id."""
    # What a guide forbids is -inf: it reaches a threshold of -inf, and is no candidate.
    reaching = row > threshold if threshold == -np.inf else row >= np.float32(threshold)
    ids: Ids = np.flatnonzero(reaching)
    return ids[_descending(row[ids])]


def large_nucleus(row: Row, best: np.float32, temperature: float, top_p: float, likely: Ids) -> tuple[Ids, Weights]:
    """(ids, weights) of the fewest tokens that hold `top_p` of the softmax: `likely`, the most likely ones of them, in
    that order, then the others in no particular one.

    A histogram of the logits finds the narrow band in which the nucleus ends; only that band is sorted.
    """
    with np.errstate(over="ignore"):  # what is infinitely far below weighs nothing
        depth = (best - row) / np.float32(temperature)  # how far below the best one
        band = np.minimum(depth * np.float32(_BANDS_PER_NAT), np.float32(_NUM_BANDS - 1)).astype(np.int64)
    weights = np.exp(-depth).astype(np.float64)
    held = np.bincount(band, weights, minlength=_NUM_BANDS).cumsum()
    wanted = top_p * held[-1]
    last = min(int(held.searchsorted(wanted)), _NUM_BANDS - 1)
    is_other = np.ones(len(row), np.bool_)
    is_other[likely] = False
    edge: Ids = np.flatnonzero(band == last)
    edge = edge[_descending(row[edge])]
    missing = wanted - (held[last - 1] if last else 0.0)
    edge = edge[: int(weights[edge].cumsum().searchsorted(missing)) + 1]
    ids = np.concatenate([likely, np.flatnonzero((band < last) & is_other), edge[is_other[edge]]])
    return ids, np.append(softmax_weights(row[likely], best, temperature), weights[ids[len(likely) :]])


def softmax_weights(values: Row, best: np.float32, temperature: float) -> Weights:
    """exp((values - best) / temperature)."""
    weights: Weights = np.exp((values.astype(np.float64) - float(best)) / temperature)
    return weights


def min_p_threshold(best: np.float32, temperature: float, min_p: float) -> np.float32:
    """The logit of a token that is `min_p` times as likely as the best one."""
    return np.float32(float(best) + temperature * math.log(min_p))


def total_weight(row: Row, best: np.float32, temperature: float) -> float:
    """Sum of exp((row - best) / temperature)."""
    return float(_weights(row, best, temperature).sum())


def draw_from_all(row: Row, best: np.float32, temperature: float, uniform: float) -> int:
    """The token at `uniform` (in [0, 1)) of the cumulated softmax: first the `NUM_LIKELIEST` most likely tokens,
    largest first, then lowest id, so that who knows only these and the sum can draw, too; then the others, block by
    block."""
    weights = _weights(row, best, temperature)
    wanted = uniform * float(_sums(weights).sum(dtype=np.float64))
    for ids in _likeliest(row, best, temperature):
        cumulative = softmax_weights(row[ids], best, temperature).cumsum()
        if wanted < cumulative[-1]:
            return int(ids[cumulative.searchsorted(wanted, side="right")])
    last = int(ids[np.flatnonzero(weights[ids])[-1]])
    weights[ids] = 0
    return _draw_in_blocks(weights, wanted - cumulative[-1], last)


def _likeliest(row: Row, best: np.float32, temperature: float) -> Iterator[Ids]:
    """Beginnings of the `NUM_LIKELIEST` most likely tokens, which the last one is: the few near the best are found
    quickly."""
    near: Ids = np.flatnonzero(row >= min_p_threshold(best, temperature, _NEAR))
    if len(near) <= 2 * NUM_LIKELIEST:
        yield near[_descending(row[near])][:NUM_LIKELIEST]
    if not NUM_LIKELIEST <= len(near) <= 2 * NUM_LIKELIEST:
        yield most_likely(row, NUM_LIKELIEST)[:NUM_LIKELIEST]


def _draw_in_blocks(weights: Row, wanted: float, otherwise: int) -> int:
    """The token at `wanted` of the cumulated weights; where rounding leads past their end the last one with weight, or
    `otherwise` where none has any."""
    sums = _sums(weights).cumsum(dtype=np.float64)
    block = int(sums.searchsorted(wanted, side="right"))
    if block == len(sums):
        return int(np.flatnonzero(weights)[-1]) if sums[-1] else otherwise
    missing = wanted - (sums[block - 1] if block else 0.0)
    blocks = _blocks(weights)
    if block == blocks.shape[1]:
        return blocks.size + _place(weights[blocks.size :].astype(np.float64), missing)
    return _place(blocks[:, block].astype(np.float64), missing) * blocks.shape[1] + block


def _sums(weights: Row) -> Row:
    """Of each block, and of the last few values. In float32, which loses some 1e-6 of a sum, and takes a third of the
    time."""
    blocks = _blocks(weights)
    return np.append(blocks.sum(axis=0), weights[blocks.size :].sum())


def _weights(row: Row, best: np.float32, temperature: float) -> Row:
    with np.errstate(over="ignore"):  # what is infinitely far below weighs nothing
        weights: Row = row - best
        if temperature != 1.0:
            weights /= np.float32(temperature)
    return np.exp(weights, out=weights)


def _descending(values: Row) -> Ids:
    order: Ids = np.argsort(-values, kind="stable")
    return order


def _blocks(row: Row) -> Row:
    """`[values of a block, blocks]`, a view without the last few values. A block is a column: reducing over the first
    axis is several times faster in numpy than over a short last one."""
    num_blocks = min(_NUM_BLOCKS, len(row))
    height = len(row) // num_blocks
    return row[: height * num_blocks].reshape(height, num_blocks)


def _lower_bound(row: Row, count: int) -> float:
    """At least `count` values of the row reach it."""
    maxima = _blocks(row).max(axis=0)
    if count <= len(maxima) // 2:
        return float(np.partition(maxima, len(maxima) - count)[len(maxima) - count])
    return float(np.partition(row, len(row) - count)[len(row) - count])


def _place(weights: npt.NDArray[np.float64], wanted: float) -> int:
    """The last one with weight where rounding leads past the end."""
    cumulative = weights.cumsum()
    place = int(cumulative.searchsorted(wanted, side="right"))
    return place if place < len(weights) else int(np.flatnonzero(weights)[-1])
