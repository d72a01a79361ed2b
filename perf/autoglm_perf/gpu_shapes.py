"""A model that is only a shape: its spec, its weights at random, and what a step must read of it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from autoglm_export.spec import ModelSpec, RopeSpec
from autoglm_export.weights import Array, weight_shapes

# Bytes of one weight of a linear layer. int4: a 2-byte scale for each block of 128 weights beside them.
WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int4": 0.5 + 2 / 128}
_CACHE_BYTES = {"fp32": 4}  # of one number in the cache, else 2
_BLOCK = 1 << 20  # random numbers drawn for a weight; they repeat in larger ones


@dataclass(frozen=True, slots=True)
class Shape:
    """GLM-4-9B as it stands (GLM-4-9B-0414 and, with biases, the text part of GLM-4.1V-9B and AutoGLM-Phone-9B)."""

    num_layers: int = 40
    hidden_size: int = 4096
    num_heads: int = 32
    num_kv_heads: int = 2
    head_size: int = 128
    intermediate_size: int = 13696
    vocab_size: int = 151552

    def spec(self, max_length: int) -> ModelSpec:
        return ModelSpec(
            family="glm4",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            intermediate_size=self.intermediate_size,
            norm_eps=1e-5,
            rope=RopeSpec(theta=10000.0, dims=self.head_size // 2, interleaved=True),
            max_position=max_length,
            sandwich_norm=True,
        )


class RandomWeights(Mapping[str, Array]):
    """Every weight of `spec`, made at each access and never kept: equal names give equal arrays.

    Matrices are scaled by 1 / sqrt(columns), so that activations stay near 1 in half precision; norms are 1.
    """

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        self._shapes, self._seed = weight_shapes(spec), seed

    def __getitem__(self, name: str) -> Array:
        shape = self._shapes[name]
        if name.endswith("norm"):
            return np.ones(shape, np.float32)
        random = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        block = random.standard_normal(min(_BLOCK, math.prod(shape)), np.float32)
        block /= np.float32(math.sqrt(shape[-1]))
        return np.resize(block, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]


def num_parameters(spec: ModelSpec) -> int:
    return sum(math.prod(shape) for shape in weight_shapes(spec).values())


def weight_bytes_read(spec: ModelSpec, precision: str) -> int:
    """Bytes of weights that any decode step must read: every linear layer and the output layer once, whatever the batch.

    Not counted: the embedding, of which a step reads a row a token, unless it is the output layer as well. Norms and
    biases stay in two bytes (four in fp32).
    """
    small = WEIGHT_BYTES["fp32" if precision == "fp32" else "fp16"]
    total = 0.0
    for name, shape in weight_shapes(spec).items():
        if name == "embed" and not spec.tied_embeddings:
            continue
        total += math.prod(shape) * (WEIGHT_BYTES[precision] if len(shape) > 1 else small)
    return round(total)


def cache_bytes_per_token(spec: ModelSpec, precision: str) -> int:
    """Keys and values of one token over all layers."""
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_size * _CACHE_BYTES.get(precision, 2)


def step_bytes(spec: ModelSpec, precision: str, batch: int, length: int) -> int:
    """Bytes that a decode step of `batch` sequences with `length` tokens each must read."""
    return weight_bytes_read(spec, precision) + batch * length * cache_bytes_per_token(spec, precision)


def floor_ms(num_bytes: int, bytes_per_second: float) -> float:
    """No step that reads `num_bytes` can be faster on this memory."""
    return 1e3 * num_bytes / bytes_per_second
