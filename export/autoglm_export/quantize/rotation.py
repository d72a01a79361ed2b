"""Turn the residual stream so that int8 activations lose little: the same function, without outlier channels.

A decoder's residual stream has a few channels far larger than the rest; a row that is quantised with one scale then
spends its 8 bits on them. An orthogonal matrix R mixes all channels alike, and changes nothing else: RMS norm keeps the
length of its input, so R passes through it once the norm's weights are multiplied into the layers that read it. With x
the stream, what reads it becomes W diag(norm) R, what writes it R^T W (and R^T b), the embedding table E R. The idea is
QuaRot's (arXiv 2404.00456). R needs no data and costs nothing when the model runs.

It does not apply where a norm stands between a layer and the stream (`sandwich_norm`): its weights cannot be moved.

Features of images enter the stream as the embedding's rows do. The last layers of a tower write them, so those become
R^T W, too: `RotatedFeatures`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from autoglm_export.checkpoint.weights import Array
from autoglm_export.model.spec import ModelSpec
from autoglm_export.reproducible import kernels
from autoglm_export.reproducible.reference import normaliser

_SEED = 20
# What reads the stream, and the norm before it.
_READERS = {
    "query": "attention_norm",
    "key": "attention_norm",
    "value": "attention_norm",
    "gate": "mlp_norm",
    "up": "mlp_norm",
}
_WRITERS = {"output", "down"}
_NORMS = {"attention_norm", "mlp_norm", "final_norm"}


def rotated(spec: ModelSpec, weights: Mapping[str, Array]) -> tuple[ModelSpec, Mapping[str, Array]]:
    """(spec, weights) of a decoder that computes the same logits on a rotated stream; unchanged under `sandwich_norm`.

    The embedding table and the head are no longer tied: the final norm's weights are in the head alone.
    """
    if (rotation := stream_rotation(spec.hidden_size, sandwich_norm=spec.sandwich_norm)) is None:
        return spec, weights
    return dataclasses.replace(spec, tied_embeddings=False), RotatedWeights(spec, weights, rotation)


def stream_rotation(hidden_size: int, *, sandwich_norm: bool) -> Rotation | None:
    """What `rotated` turns the stream of such a decoder by; None where it does not."""
    return None if sandwich_norm else Rotation.of_size(hidden_size)


class RotatedWeights(Mapping[str, Array]):
    """The weights of `rotated`, computed at each access."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Array], rotation: Rotation) -> None:
        self._weights, self._rotation = weights, rotation
        self._head = "embed" if spec.tied_embeddings else "lm_head"

    def __getitem__(self, name: str) -> Array:
        words = name.split(".")
        layer, kind = ".".join(words[:2]), words[2] if words[0] == "layers" else name
        if kind in _NORMS:
            return np.ones_like(self._weights[name])
        if kind == "lm_head":
            return self._rotation.rows(self._weights[self._head], self._weights["final_norm"])
        if kind == "embed":
            return self._rotation.rows(self._weights[name])
        if kind in _READERS and words[-1] == "weight":
            return self._rotation.rows(self._weights[name], self._weights[f"{layer}.{_READERS[kind]}"])
        if kind in _WRITERS:
            weight = self._weights[name]
            return self._rotation.columns(weight) if weight.ndim == 2 else self._rotation.rows(weight)
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._weights
        if "lm_head" not in self._weights:
            yield "lm_head"

    def __len__(self) -> int:
        return len(self._weights) + ("lm_head" not in self._weights)


class RotatedFeatures(Mapping[str, Array]):
    """The weights of a tower, computed at each access, whose layers `writers` write features for a rotated stream."""

    def __init__(self, weights: Mapping[str, Array], writers: Collection[str], rotation: Rotation) -> None:
        self._weights, self._writers, self._rotation = weights, writers, rotation

    def __getitem__(self, name: str) -> Array:
        weight = self._weights[name]
        if name.rpartition(".")[0] not in self._writers:
            return weight
        return self._rotation.columns(weight) if weight.ndim == 2 else self._rotation.rows(weight)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """x -> (x * signs) (left (x) H), orthogonal: a Kronecker product, so that wide models rotate fast. H is a Hadamard
    matrix."""

    signs: Array  # [size], 1 or -1
    left: Array  # [m, m]; size / m is a power of two

    @classmethod
    def of_size(cls, size: int) -> Rotation:
        right = min(
            size & -size, 1 << (size.bit_length() // 2 + 1)
        )  # a power of two that divides size, not far over its root
        random = np.random.default_rng(_SEED)
        signs = random.choice(np.array([-1, 1], np.float32), size)
        left = orthogonalised(random.standard_normal((size // right, size // right)))
        return cls(signs, left.astype(np.float32))

    def rows(self, x: Array, weights: Array | None = None) -> Array:
        """x diag(weights) R, for x of [..., size]."""
        factors = self.signs if weights is None else self.signs * weights
        return kernels().rotate(x.reshape(-1, len(self.signs)), factors, self.left).reshape(x.shape)

    def features(self, x: Array) -> Array:
        """Each part of rows of features times R, for x of [num_rows, num_parts * size]."""
        return self.rows(x.reshape(-1, len(self.signs))).reshape(x.shape)

    def columns(self, x: Array) -> Array:
        """R^T x, for x of [size, ...]."""
        return kernels().rotate_columns(x, self.signs, self.left)


def orthogonalised(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Q of the QR decomposition of a square `matrix`, by Householder reflections, in an order that no library
    decides."""
    rest, q = matrix.copy(), np.eye(len(matrix))
    for k in range(len(matrix) - 1):
        reflector = rest[k:, k].copy()
        reflector[0] += np.copysign(np.sqrt((reflector * reflector).sum()), reflector[0])
        norm = (reflector * reflector).sum()
        for target in (rest[k:], q[k:]):
            target -= reflector[:, None] * ((2 / norm) * (reflector[:, None] * target).sum(axis=0))
    return np.ascontiguousarray(q.T)


def hadamard(size: int) -> Array:
    """Sylvester's Hadamard matrix of a power of two, normalised: orthogonal and symmetric."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size), np.float32)


def mixing_block(width: int, most: int = 64) -> int:
    """The largest power of two up to `most` that divides `width`."""
    return min(width & -width, most)


def mix_blocks(x: Array, block: int) -> Array:
    """Multiply every `block` neighbours of the last axis by a Hadamard matrix: its own inverse."""
    return kernels().mix(x.reshape(-1, block), block, 1, normaliser(block)).reshape(x.shape)
